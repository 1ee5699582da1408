"""UnifiedLatentsTransformer: the prior P of stage 1 and the base model of stage 2."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin
from diffusers.models.attention import AttentionMixin
from diffusers.models.modeling_utils import ModelMixin, get_parameter_dtype
from diffusers.utils import BaseOutput
from torch import Tensor, nn

from ul_tokenizer.decorators import register_to_config
from ul_tokenizer.models.attention import Text
from ul_tokenizer.models.blocks import TransformerStage
from ul_tokenizer.models.conditioning import ClassEmbedding, TextEmbedding
from ul_tokenizer.models.layers import (
    FP32_MODULES,
    ChannelNorm,
    Downsample,
    LogSNREmbedding,
    OutputConv,
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
    check_train_tokens,
    check_weights,
)
from ul_tokenizer.models.loading import BundledNamesMixin
from ul_tokenizer.publish.facts import ModelFacts


@dataclass
class UnifiedLatentsTransformerOutput(BaseOutput):
    """Output of `UnifiedLatentsTransformer`.

    Attributes:
        sample: predicted v, shaped like the input sample, fp32.
    """

    sample: Tensor


class UnifiedLatentsTransformer(BundledNamesMixin, ModelMixin, AttentionMixin, ConfigMixin):
    r"""Multi-stage ViT on noisy latents, conditioned on the log-SNR, with v-prediction.

    Depending on the config, it can also be conditioned on a class, a text and given frames.

    ```
    z_t ─ 1×1 conv ─ stage 0, first half ─ ½ ─ … ─ last stage ─ … ─ ×2 ─ stage 0, second half ─ norm, 1×1 conv ─ v
                              │h_before     │h_after                  │
                              └─────────────┴ x ← Up(x − h_after) + h_before
    λ + class ─ embedding ─ every block          text ─ cross-attention in every block
    context latents ─ 1×1 conv ─ frames before those of z_t; attention reads them, their output is dropped
    ```

    Args:
        in_channels: channels c of the latents.
        block_out_channels: width of each stage; every stage after the first halves the grid.
        num_layers: transformer blocks of each stage; in all but the last, half of them run after the deeper stages.
        attention_head_dim: channels of a head; divides every width.
        embedding_channels: width of the log-SNR embedding.
        dropout: dropout probability, on attention outputs and in feed-forwards.
        num_class_embeds: number of classes; None for a model without them.
        cross_attention_dim: width of a text encoder's hidden states; None for a model without text.
        context_conditioning: whether the model can continue given frames.
        latent_logsnr: λ_z(0), the cleanest level in training.
        sample_size: height and width of the latents in training; informative.
        sample_frames: latent frames of a clip in training, None for images; informative.
        attention_train_tokens: positions of the latents in training. Larger latents are then attended to with sharper
            logits, see `log_length_temperature`. None leaves the logits alone.

    Raises:
        ValueError: an argument out of range, widths that heads do not divide, or stages that do not fit together.
    """

    _pipeline_part = "transformer"
    card_facts: ClassVar[ModelFacts] = ModelFacts(
        role="A diffusion transformer on latents",
        usage='model = UnifiedLatentsTransformer.from_pretrained("{repo_id}")',
        config_facts={"latent_logsnr": "log-SNR of z_0", "num_class_embeds": "classes"},
    )
    _supports_gradient_checkpointing = True
    _no_split_modules = ["TransformerBlock"]
    _repeated_blocks = ["TransformerBlock"]
    _keep_in_fp32_modules = FP32_MODULES
    _skip_layerwise_casting_patterns = [
        "norm",
        "logsnr_embedding",
        "class_embedding",
        "null_token",
        "conv_out",
        "modulation",
    ]

    @register_to_config
    def __init__(
        self,
        in_channels: int = 32,
        block_out_channels: tuple[int, ...] = (1024,),
        num_layers: tuple[int, ...] = (8,),
        attention_head_dim: int = 64,
        embedding_channels: int = 256,
        dropout: float = 0.0,
        num_class_embeds: int | None = None,
        cross_attention_dim: int | None = None,
        context_conditioning: bool = False,
        latent_logsnr: float = 5.0,
        sample_size: int | None = None,
        sample_frames: int | None = None,
        attention_train_tokens: int | None = None,
    ) -> None:
        super().__init__()
        check_bounds(
            in_channels=in_channels, attention_head_dim=attention_head_dim, embedding_channels=embedding_channels
        )
        optional = {
            "num_class_embeds": num_class_embeds,
            "cross_attention_dim": cross_attention_dim,
            "sample_frames": sample_frames,
        }
        check_bounds(**{name: value for name, value in optional.items() if value is not None})
        check_stage_bounds(block_out_channels=block_out_channels, num_layers=num_layers)
        check_dropout(dropout)
        check_numbers(latent_logsnr=latent_logsnr)
        check_train_tokens(attention_train_tokens, len(num_layers))
        check_weights((in_channels, embedding_channels, *block_out_channels), num_layers)
        if len(num_layers) != len(block_out_channels):
            raise ValueError(
                "num_layers must have one entry per stage of block_out_channels, "
                f"got {num_layers} for {block_out_channels}."
            )
        widths, outer = block_out_channels, num_layers[:-1]

        def stage(channels: int, layers: int, depth: int) -> TransformerStage:
            tokens = None if attention_train_tokens is None else attention_train_tokens // 4**depth
            return TransformerStage(
                channels, layers, attention_head_dim, embedding_channels, dropout, cross_attention_dim, tokens
            )

        self.logsnr_embedding = LogSNREmbedding(embedding_channels)
        if num_class_embeds is not None:
            self.class_embedding = ClassEmbedding(num_class_embeds, embedding_channels)
        if cross_attention_dim is not None:
            self.text_embedding = TextEmbedding(cross_attention_dim)
        if context_conditioning:
            self.context_conv_in = nn.Conv2d(in_channels, widths[0], 1)
        self.conv_in = nn.Conv2d(in_channels, widths[0], 1)
        pairs = list(pairwise(widths))
        self.down_stages = nn.ModuleList([stage(widths[k], n - n // 2, k) for k, n in enumerate(outer)])
        self.downsamples = nn.ModuleList([Downsample(a, b) for a, b in pairs])
        self.mid_stage = stage(widths[-1], num_layers[-1], len(outer))
        self.upsamples = nn.ModuleList([Upsample(b, a) for a, b in pairs])
        self.up_stages = nn.ModuleList([stage(widths[k], n // 2, k) for k, n in enumerate(outer)])
        self.norm_out = ChannelNorm(widths[0])
        self.conv_out = OutputConv(widths[0], in_channels, 1)
        nn.init.zeros_(self.conv_out.weight)

    @property
    def size_multiple(self) -> int:
        """Height and width of the latents must be multiples of this number, 2^(stages − 1)."""
        return 2 ** (len(self.config.block_out_channels) - 1)

    @property
    def null_class_label(self) -> int | None:
        """The class label that means no class, which guidance needs; None for a model without classes."""
        num_classes: int | None = self.config.num_class_embeds
        return num_classes

    def forward(
        self,
        sample: Tensor,
        logsnr: Tensor,
        class_labels: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        context_latents: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        return_dict: bool = True,
    ) -> UnifiedLatentsTransformerOutput | tuple[Tensor]:
        """Predicts v.

        Args:
            sample: z_t, (B, c, h, w) or (B, c, t, h, w), float.
            logsnr: λ, (B,), or one for all, ().
            class_labels: (B,) integers from 0 to `null_class_label`; None means the null label for all.
            encoder_hidden_states: a text encoder's output, (B, L, `cross_attention_dim`); None means no text for all.
            context_latents: given frames that come before those of `sample`, (B, c, t', h, w) with any t'.
            encoder_attention_mask: (B, L), true where there is a token; a sample without tokens has no text.
            return_dict: whether to return a `UnifiedLatentsTransformerOutput` or a tuple of its values.

        Returns:
            v shaped like `sample`, fp32.

        Raises:
            ValueError: wrong rank, channels or dtype, an empty sample, a grid that `size_multiple` does not divide,
                a wrong number of levels, a condition that the config does not provide for, or a condition that does
                not fit the sample.
        """
        self._check_conditions(class_labels, encoder_hidden_states, context_latents)
        self._check_sample(sample, logsnr)
        is_image = sample.ndim == 4
        dtype = get_parameter_dtype(self.conv_in)
        z = (sample.unsqueeze(2) if is_image else sample).to(dtype)
        context = None if context_latents is None else self._checked_context(context_latents, z).to(dtype)
        embedding = self._embedding(logsnr.expand(z.shape[0]), class_labels)
        text = self._text(encoder_hidden_states, encoder_attention_mask, z.shape[0])
        v = self._denoise(z, embedding, text, context)
        v = v.squeeze(2) if is_image else v
        return UnifiedLatentsTransformerOutput(sample=v) if return_dict else (v,)

    def _embedding(self, logsnr: Tensor, class_labels: Tensor | None) -> Tensor:
        embedding = self.logsnr_embedding(logsnr)
        if self.config.num_class_embeds is not None:
            embedding = embedding + self.class_embedding(class_labels, len(logsnr))
        return F.silu(embedding)

    def _text(self, hidden_states: Tensor | None, mask: Tensor | None, batch_size: int) -> Text | None:
        if self.config.cross_attention_dim is None:
            return None
        text: Text = self.text_embedding(hidden_states, mask, batch_size)
        return text

    def _check_conditions(self, class_labels: object, encoder_hidden_states: object, context_latents: object) -> None:
        config = self.config
        conditions = (
            ("class_labels", "class", class_labels, config.num_class_embeds is not None),
            ("encoder_hidden_states", "text", encoder_hidden_states, config.cross_attention_dim is not None),
            ("context_latents", "context", context_latents, config.context_conditioning),
        )
        for name, kind, value, has_place in conditions:
            if value is not None and not has_place:
                got = f"a {type(value).__name__}"
                raise ValueError(f"{name} must be None: this model has no {kind} conditioning, got {got}.")

    def _checked_context(self, context: Tensor, z_BxCxTxHxW: Tensor) -> Tensor:
        b, c, _, h, w = z_BxCxTxHxW.shape
        fits = context.ndim == 5 and context.shape[2] and (*context.shape[:2], *context.shape[3:]) == (b, c, h, w)
        if not fits or not context.is_floating_point():
            raise ValueError(
                f"context_latents must be floats ({b}, {c}, t, {h}, {w}) with at least one frame, as the sample is, "
                f"got {tuple(context.shape)} {context.dtype}."
            )
        return context

    def _check_sample(self, sample: Tensor, logsnr: Tensor) -> None:
        check_latents("sample", sample, self.config.in_channels)
        if any(size % self.size_multiple for size in sample.shape[-2:]):
            raise ValueError(
                f"sample height and width must be multiples of {self.size_multiple}, got {tuple(sample.shape[-2:])}."
            )
        if tuple(logsnr.shape) not in ((), (1,), (sample.shape[0],)):
            raise ValueError(f"logsnr must be ({sample.shape[0]},), one per sample, got {tuple(logsnr.shape)}.")

    def _denoise(
        self, z_BxCxTxHxW: Tensor, embedding: Tensor, text: Text | None, context_BxCxTxHxW: Tensor | None
    ) -> Tensor:
        h, num_frames = self._project(z_BxCxTxHxW, context_BxCxTxHxW)

        def run(stage: nn.Module, x: Tensor) -> Tensor:
            grid = (num_frames, x.shape[2], x.shape[3])
            return to_frames(stage(to_tokens(x, num_frames), embedding, grid, text), grid)

        skips = []
        for stage, downsample in zip(self.down_stages, self.downsamples, strict=True):
            before = run(stage, h)
            h = downsample(before)
            skips.append((before, h))
        h = run(self.mid_stage, h)
        for stage, upsample in zip(reversed(self.up_stages), reversed(self.upsamples), strict=True):
            before, after = skips.pop()
            h = run(stage, upsample(h - after) + before)
        v = unfold_time(self.conv_out(self.norm_out(h)), num_frames)
        return v[:, :, num_frames - z_BxCxTxHxW.shape[2] :]

    def _project(self, z_BxCxTxHxW: Tensor, context_BxCxTxHxW: Tensor | None) -> tuple[Tensor, int]:
        """Features (B·T, C, h, w) of the frames of the context, if given, and of the sample; and their number T."""
        h = self.conv_in(fold_time(z_BxCxTxHxW))
        num_frames = z_BxCxTxHxW.shape[2]
        if context_BxCxTxHxW is None:
            return h, num_frames
        given = self.context_conv_in(fold_time(context_BxCxTxHxW))
        frames = [unfold_time(given, context_BxCxTxHxW.shape[2]), unfold_time(h, num_frames)]
        return fold_time(torch.cat(frames, dim=2)), num_frames + context_BxCxTxHxW.shape[2]
