"""UnifiedLatentsTransformer: the prior P of stage 1 and the base model of stage 2."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.attention import AttentionMixin
from diffusers.models.modeling_utils import ModelMixin, get_parameter_dtype
from diffusers.utils import BaseOutput
from torch import Tensor, nn

from ul_tokenizer.models.layers import (
    FP32_MODULES,
    ChannelNorm,
    Downsample,
    LogSNREmbedding,
    OutputConv,
    TransformerStage,
    Upsample,
    fold_time,
    to_frames,
    to_tokens,
    unfold_time,
)
from ul_tokenizer.models.limits import (
    check_bounds,
    check_dropout,
    check_latents,
    check_numbers,
    check_stage_bounds,
    check_weights,
)
from ul_tokenizer.models.loading import BundledNamesMixin


@dataclass
class UnifiedLatentsTransformerOutput(BaseOutput):
    """Output of `UnifiedLatentsTransformer`.

    Attributes:
        sample: predicted v, shaped like the input sample, fp32.
    """

    sample: Tensor


class UnifiedLatentsTransformer(BundledNamesMixin, ModelMixin, AttentionMixin, ConfigMixin):
    r"""Multi-stage ViT on noisy latents, conditioned on the log-SNR, with v-prediction.

    ```
    z_t ─ 1×1 conv ─ stage 0, first half ─ ½ ─ … ─ last stage ─ … ─ ×2 ─ stage 0, second half ─ norm, 1×1 conv ─ v
                              │h_before     │h_after                  │
                              └─────────────┴ x ← Up(x − h_after) + h_before
    ```

    Args:
        in_channels: channels c of the latents.
        block_out_channels: width of each stage; every stage after the first halves the grid.
        num_layers: transformer blocks of each stage; all but the last split theirs before and after the deeper ones.
        attention_head_dim: channels of a head; divides every width.
        embedding_channels: width of the log-SNR embedding.
        dropout: probability, in attention outputs and feed-forwards.
        latent_logsnr: λ_z(0), the cleanest level that the model was trained at.
        sample_size: height and width of the latents in training; informative.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["TransformerBlock"]
    _repeated_blocks = ["TransformerBlock"]
    _keep_in_fp32_modules = FP32_MODULES
    _skip_layerwise_casting_patterns = ["norm", "logsnr_embedding", "conv_out", "modulation"]

    @register_to_config
    def __init__(
        self,
        in_channels: int = 32,
        block_out_channels: tuple[int, ...] = (1024,),
        num_layers: tuple[int, ...] = (8,),
        attention_head_dim: int = 64,
        embedding_channels: int = 256,
        dropout: float = 0.0,
        latent_logsnr: float = 5.0,
        sample_size: int | None = None,
    ) -> None:
        super().__init__()
        check_bounds(
            in_channels=in_channels, attention_head_dim=attention_head_dim, embedding_channels=embedding_channels
        )
        check_stage_bounds(block_out_channels=block_out_channels, num_layers=num_layers)
        check_dropout(dropout)
        check_numbers(latent_logsnr=latent_logsnr)
        check_weights((in_channels, embedding_channels, *block_out_channels), num_layers)
        if len(num_layers) != len(block_out_channels):
            raise ValueError(
                "num_layers must have one entry per stage of block_out_channels, "
                f"got {num_layers} for {block_out_channels}."
            )
        widths, outer = block_out_channels, num_layers[:-1]

        def stage(channels: int, layers: int) -> TransformerStage:
            return TransformerStage(channels, layers, attention_head_dim, embedding_channels, dropout)

        self.logsnr_embedding = LogSNREmbedding(embedding_channels)
        self.conv_in = nn.Conv2d(in_channels, widths[0], 1)
        pairs = list(pairwise(widths))
        self.down_stages = nn.ModuleList([stage(c, n - n // 2) for c, n in zip(widths, outer, strict=False)])
        self.downsamples = nn.ModuleList([Downsample(a, b) for a, b in pairs])
        self.mid_stage = stage(widths[-1], num_layers[-1])
        self.upsamples = nn.ModuleList([Upsample(b, a) for a, b in pairs])
        self.up_stages = nn.ModuleList([stage(c, n // 2) for c, n in zip(widths, outer, strict=False)])
        self.norm_out = ChannelNorm(widths[0])
        self.conv_out = OutputConv(widths[0], in_channels, 1)
        nn.init.zeros_(self.conv_out.weight)

    @property
    def size_multiple(self) -> int:
        """Height and width of the latents must be multiples of this: 2 for every stage after the first."""
        return 2 ** (len(self.config.block_out_channels) - 1)

    def forward(
        self,
        sample: Tensor,
        logsnr: Tensor,
        class_labels: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        context_latents: Tensor | None = None,
        return_dict: bool = True,
    ) -> UnifiedLatentsTransformerOutput | tuple[Tensor]:
        """Predicts v.

        Args:
            sample: z_t, (B, c, h, w) or (B, c, t, h, w), float.
            logsnr: λ, (B,), or one for all, ().
            class_labels: must be None; the place of classes, for models that are conditioned on them.
            encoder_hidden_states: must be None; likewise of a text.
            context_latents: must be None; likewise of given frames.
            return_dict: a `UnifiedLatentsTransformerOutput`, or a tuple of its values.

        Returns:
            v shaped like `sample`, fp32.

        Raises:
            ValueError: wrong rank, channels or dtype, an empty sample, a grid that is no multiple of `size_multiple`,
                another number of levels than of samples, or a condition.
        """
        _check_unconditional(class_labels, encoder_hidden_states, context_latents)
        self._check_sample(sample, logsnr)
        is_image = sample.ndim == 4
        z = sample.unsqueeze(2) if is_image else sample
        z = z.to(get_parameter_dtype(self.conv_in))
        v = self._denoise(z, logsnr.expand(z.shape[0]))
        v = v.squeeze(2) if is_image else v
        return UnifiedLatentsTransformerOutput(sample=v) if return_dict else (v,)

    def _check_sample(self, sample: Tensor, logsnr: Tensor) -> None:
        check_latents("sample", sample, self.config.in_channels)
        if any(size % self.size_multiple for size in sample.shape[-2:]):
            raise ValueError(
                f"sample height and width must be multiples of {self.size_multiple}, got {tuple(sample.shape[-2:])}."
            )
        if tuple(logsnr.shape) not in ((), (1,), (sample.shape[0],)):
            raise ValueError(f"logsnr must be ({sample.shape[0]},), one per sample, got {tuple(logsnr.shape)}.")

    def _denoise(self, z_BxCxTxHxW: Tensor, logsnr: Tensor) -> Tensor:
        num_frames = z_BxCxTxHxW.shape[2]
        embedding = F.silu(self.logsnr_embedding(logsnr))

        def run(stage: nn.Module, x: Tensor) -> Tensor:
            grid = (num_frames, x.shape[2], x.shape[3])
            return to_frames(stage(to_tokens(x, num_frames), embedding, grid), grid)

        h = self.conv_in(fold_time(z_BxCxTxHxW))
        skips = []
        for stage, downsample in zip(self.down_stages, self.downsamples, strict=True):
            before = run(stage, h)
            h = downsample(before)
            skips.append((before, h))
        h = run(self.mid_stage, h)
        for stage, upsample in zip(reversed(self.up_stages), reversed(self.upsamples), strict=True):
            before, after = skips.pop()
            h = run(stage, upsample(h - after) + before)
        return unfold_time(self.conv_out(self.norm_out(h)), num_frames)


def _check_unconditional(class_labels: object, encoder_hidden_states: object, context_latents: object) -> None:
    conditions = (
        ("class_labels", "class", class_labels),
        ("encoder_hidden_states", "text", encoder_hidden_states),
        ("context_latents", "context", context_latents),
    )
    for name, kind, value in conditions:
        if value is not None:
            got = f"a {type(value).__name__}"
            raise ValueError(f"{name} must be None: this model has no {kind} conditioning, got {got}.")
