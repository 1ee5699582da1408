"""The loss of stage 2."""

from __future__ import annotations

from torch import Tensor, nn

from ul_tokenizer.diffusion.objective import SigmoidWeighting, diffuse, sigmoid_loss
from ul_tokenizer.diffusion.schedule import LogSNRSchedule
from ul_tokenizer.models.transformer import UnifiedLatentsTransformer


class Stage2Model(nn.Module):
    """The base model and its loss in a single module.

    Args:
        transformer: the base model.
        schedule: noise schedule λ(t).
        weighting: weighting of the loss.
    """

    def __init__(
        self, transformer: UnifiedLatentsTransformer, schedule: LogSNRSchedule, weighting: SigmoidWeighting
    ) -> None:
        super().__init__()
        self.transformer, self.schedule, self.weighting = transformer, schedule, weighting

    def forward(
        self, z_clean: Tensor, noise: Tensor, t: Tensor, class_labels: Tensor | None, context: Tensor | None = None
    ) -> Tensor:
        """½ (−dλ/dt) sigmoid(b − λ) ‖ε − ε̂‖² (B,), nats per sample.

        Args:
            z_clean: the target (B, c, [t,] h, w). It is not z_0, which contains noise already.
            noise: ε, with the shape of z_clean.
            t: (B,) in [0, 1).
            class_labels: (B,), with the null label for dropped ones; None for models without classes.
            context: clean latents (B, c, t', h, w) of the frames before the target, which the model sees.
        """
        logsnr = self.schedule.logsnr(t)
        z_t = diffuse(z_clean, noise, logsnr)
        v = self.transformer(z_t, logsnr, class_labels, context_latents=context).sample
        return sigmoid_loss(v, z_clean, noise, t, self.schedule, self.weighting)
