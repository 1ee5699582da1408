"""Stage 2: the base model trained on latents of a frozen autoencoder."""

from __future__ import annotations

from torch import Tensor, nn

from ul_tokenizer.diffusion.objective import SigmoidWeighting, diffuse, sigmoid_loss
from ul_tokenizer.diffusion.schedule import LogSNRSchedule
from ul_tokenizer.models.transformer import UnifiedLatentsTransformer


class Stage2Model(nn.Module):
    """The base model and its loss."""

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
            z_clean: the target (B, c, [t,] h, w); not z_0, which would be noised twice.
            noise: ε, shaped like it.
            t: (B,) in [0, 1).
            class_labels: (B,), with the null label where they were dropped; None for models without classes.
            context: clean latents of the frames before the target's, (B, c, t', h, w), which are given.
        """
        logsnr = self.schedule.logsnr(t)
        z_t = diffuse(z_clean, noise, logsnr)
        v = self.transformer(z_t, logsnr, class_labels, context_latents=context).sample
        return sigmoid_loss(v, z_clean, noise, t, self.schedule, self.weighting)
