"""Hidden states of a text encoder of `transformers`, for generation and for training alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def tokenize(tokenizer: Any, texts: Sequence[str | None]) -> tuple[Tensor, Tensor]:
    """Splits texts into tokens, of which those beyond the tokenizer's `model_max_length` are cut off.

    Args:
        tokenizer: a tokenizer of `transformers`, which pads on the right.
        texts: None and texts of nothing but white space mean no text.

    Returns:
        numbers of the tokens (B, L) and their mask (B, L), true where there is a token; L ≥ 1. A row without text has
        no token.
    """
    ids = torch.zeros(len(texts), 1, dtype=torch.long)
    mask = torch.zeros(len(texts), 1, dtype=torch.bool)
    rows = [row for row, text in enumerate(texts) if text and not text.isspace()]
    if not rows:
        return ids, mask
    tokens = tokenizer([texts[row] for row in rows], padding=True, truncation=True, return_tensors="pt")
    length = tokens.input_ids.shape[1]
    if not length:  # some tokenizers leave nothing of some texts, such as one of control characters
        return ids, mask
    ids, mask = ids.repeat(1, length), mask.repeat(1, length)
    ids[rows], mask[rows] = tokens.input_ids, tokens.attention_mask.bool()
    return ids, mask


@torch.no_grad()
def encode_texts(
    text_encoder: Any, tokenizer: Any, texts: Sequence[str | None], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Encodes texts; see `tokenize` for what is a text and how much of it is read.

    Args:
        text_encoder: a model with `last_hidden_state` in its output, on `device`.
        tokenizer: its tokenizer.
        texts: the texts.
        device: where to compute.

    Returns:
        hidden states (B, L, D) and their mask (B, L), true where there is a token; L ≥ 1. A row without text has no
        token. States are 0 where there is none.
    """
    ids, mask = (tensor.to(device) for tensor in tokenize(tokenizer, texts))
    has_text = mask.any(dim=1)
    if not has_text.any():
        return torch.zeros(*mask.shape, int(text_encoder.config.hidden_size), device=device), mask
    output = text_encoder(input_ids=ids[has_text], attention_mask=mask[has_text].long())
    hidden: Tensor = output.last_hidden_state.masked_fill(~mask[has_text][..., None], 0)
    states = hidden.new_zeros(*mask.shape, hidden.shape[-1])
    states[has_text] = hidden
    return states, mask
