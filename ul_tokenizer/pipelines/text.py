"""Hidden states of a text encoder of `transformers`, for generation and for training alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


@torch.no_grad()
def encode_texts(
    text_encoder: Any, tokenizer: Any, texts: Sequence[str | None], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Encodes texts, of which those beyond the tokenizer's `model_max_length` are cut off.

    Args:
        text_encoder: a model with `last_hidden_state` in its output, on `device`.
        tokenizer: its tokenizer.
        texts: None and "" both mean no text.
        device: where to compute.

    Returns:
        hidden states (B, L, D) and their mask (B, L), true where there is a token; L ≥ 1. A row without text has no
        token. States are 0 where there is none.
    """
    rows = [row for row, text in enumerate(texts) if text]
    if not rows:
        states = torch.zeros(len(texts), 1, int(text_encoder.config.hidden_size), device=device)
        return states, torch.zeros(len(texts), 1, dtype=torch.bool, device=device)
    tokens = tokenizer([texts[row] for row in rows], padding=True, truncation=True, return_tensors="pt").to(device)
    output = text_encoder(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask)
    mask = tokens.attention_mask.bool()
    hidden: Tensor = output.last_hidden_state.masked_fill(~mask[..., None], 0)
    if len(rows) == len(texts):
        return hidden, mask
    all_hidden = hidden.new_zeros(len(texts), *hidden.shape[1:])
    all_masks = mask.new_zeros(len(texts), mask.shape[1])
    all_hidden[rows], all_masks[rows] = hidden, mask
    return all_hidden, all_masks
