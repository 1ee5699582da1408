"""Conditioning on a class and on a text; each has a learned embedding for "none", which guidance needs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ul_tokenizer.models.attention import Text
from ul_tokenizer.models.layers import TokenNorm


class ClassEmbedding(nn.Module):
    """Class labels (B,) → (B, C), fp32; the label `num_classes` is the null label, which means no class."""

    def __init__(self, num_classes: int, channels: int) -> None:
        super().__init__()
        self.null_label = num_classes
        self.table = nn.Embedding(num_classes + 1, channels)
        nn.init.normal_(self.table.weight, std=0.02)

    def forward(self, class_labels: Tensor | None, batch_size: int) -> Tensor:
        """(B,) int64, or None for no classes → (B, C), fp32.

        Raises:
            ValueError: wrong shape or dtype, or a label out of range. Only labels on a CPU are checked for their
                range, since elsewhere the check would wait for the device.
        """
        if class_labels is None:
            class_labels = torch.full((batch_size,), self.null_label, device=self.table.weight.device)
        self._check(class_labels, batch_size)
        embedding: Tensor = self.table(class_labels)
        return embedding.float()

    def _check(self, labels: Tensor, batch_size: int) -> None:
        if tuple(labels.shape) != (batch_size,) or labels.dtype not in (torch.int64, torch.int32):
            got = f"{tuple(labels.shape)} {labels.dtype}"
            raise ValueError(f"class_labels must be ({batch_size},) integers, one per sample, got {got}.")
        if labels.device.type == "cpu" and not torch.compiler.is_compiling():
            stray = labels[(labels < 0) | (labels > self.null_label)]
            if len(stray):
                raise ValueError(
                    f"class_labels must be from 0 to {self.null_label}, where the last is the null label, "
                    f"got {int(stray[0])}."
                )


class TextEmbedding(nn.Module):
    """A text encoder's hidden states as input of cross-attention, after a learned token that means no text."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.norm_text = TokenNorm(channels)
        self.null_token = nn.Parameter(torch.randn(channels))

    def forward(self, hidden_states: Tensor | None, mask: Tensor | None, batch_size: int) -> Text:
        """(B, L, D), mask (B, L) or None → tokens (B, 1 + L, D); without a mask and without a gradient (B, L, D).

        Samples without a token in their mask use the null token, and so do all samples if `hidden_states` is None.

        Raises:
            ValueError: shapes that do not fit, or a mask without hidden states.
        """
        null = self.null_token.expand(batch_size, 1, self.channels)
        if hidden_states is None:
            if mask is not None:
                raise ValueError("encoder_attention_mask must be None without encoder_hidden_states, got a Tensor.")
            return Text(null, None)
        self._check(hidden_states, mask, batch_size)
        tokens = self.norm_text(hidden_states.to(null.dtype))
        if mask is None and not torch.is_grad_enabled():
            return Text(tokens, None)  # attention is faster without a mask
        # In training the null token is there in any case, so that it has a gradient in every step, which DDP expects.
        mask = torch.ones_like(tokens[..., 0], dtype=torch.bool) if mask is None else mask.bool()
        return Text(torch.cat([null, tokens], dim=1), torch.cat([~mask.any(dim=1, keepdim=True), mask], dim=1))

    def _check(self, hidden_states: Tensor, mask: Tensor | None, batch_size: int) -> None:
        shape = tuple(hidden_states.shape)
        if len(shape) != 3 or shape[0] != batch_size or shape[2] != self.channels:
            raise ValueError(f"encoder_hidden_states must be ({batch_size}, L, {self.channels}), got {shape}.")
        if mask is not None and tuple(mask.shape) != shape[:2]:
            raise ValueError(f"encoder_attention_mask must be {shape[:2]}, got {tuple(mask.shape)}.")
