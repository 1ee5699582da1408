"""The loss of stage 2."""

from __future__ import annotations

from torch import Tensor, nn

from ul_tokenizer.diffusion.objective import SigmoidWeighting, diffuse, sigmoid_loss
from ul_tokenizer.diffusion.schedule import LogSNRSchedule
from ul_tokenizer.models.transformer import UnifiedLatentsTransformer
from ul_tokenizer.training.text import TextStates, TextTokens
from ul_tokenizer.training.trained_text import TrainedTextEncoder


class Stage2Model(nn.Module):
    """The base model, a text encoder that is trained with it, and their loss in a single module.

    Args:
        transformer: the base model.
        schedule: noise schedule λ(t).
        weighting: weighting of the loss.
        text_encoder: encodes captions that come as tokens; None if it is frozen, or for models without text.
    """

    def __init__(
        self,
        transformer: UnifiedLatentsTransformer,
        schedule: LogSNRSchedule,
        weighting: SigmoidWeighting,
        text_encoder: TrainedTextEncoder | None = None,
    ) -> None:
        super().__init__()
        self.transformer, self.schedule, self.weighting = transformer, schedule, weighting
        self.text_encoder = text_encoder

    def forward(
        self,
        z_clean: Tensor,
        noise: Tensor,
        t: Tensor,
        class_labels: Tensor | None,
        context: Tensor | None = None,
        text: TextStates | TextTokens | None = None,
    ) -> Tensor:
        """½ (−dλ/dt) sigmoid(b − λ) ‖ε − ε̂‖² (B,), nats per sample.

        Args:
            z_clean: the target (B, c, [t,] h, w). It is not z_0, which contains noise already.
            noise: ε, with the shape of z_clean.
            t: (B,) in [0, 1).
            class_labels: (B,), with the null label for dropped ones; None for models without classes.
            context: clean latents (B, c, t', h, w) of the frames before the target, which the model sees.
            text: captions, without tokens where they are dropped; None for models without text.
        """
        if isinstance(text, TextTokens):
            assert self.text_encoder is not None  # without one, texts come as hidden states
            text = self.text_encoder(text)
        logsnr = self.schedule.logsnr(t)
        v = self.transformer(
            diffuse(z_clean, noise, logsnr),
            logsnr,
            class_labels,
            context_latents=context,
            encoder_hidden_states=None if text is None else text.states,
            encoder_attention_mask=None if text is None else text.mask,
        ).sample
        loss = sigmoid_loss(v, z_clean, noise, t, self.schedule, self.weighting)
        return loss if context is not None else loss + self._zero_of_unused_weights(z_clean)

    def _zero_of_unused_weights(self, z_clean: Tensor) -> Tensor | float:
        """0 with a gradient of 0 for weights that a step without context leaves out.

        Otherwise they would have no gradient, for which DDP waits.
        """
        if not self.transformer.config.context_conditioning:
            return 0.0
        pixel = z_clean.new_zeros(1, z_clean.shape[1], 1, 1)
        return 0.0 * self.transformer.context_conv_in(pixel).sum()
