"""Tiny random text encoders of transformers with a tokenizer of a few words, saved to folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

WORDS = ["[PAD]", "[EOS]", "a", "dark", "light", "picture", "of", "nothing"]
WIDTH = 16
_SIZES: dict[str, Any] = {
    "vocab_size": len(WORDS),
    "hidden_size": WIDTH,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 1,
}
_T5_TOKENS: dict[str, Any] = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
_T5: dict[str, Any] = {"d_model": WIDTH, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}


def make_model(kind: str) -> Any:
    """A model of random weights: "clip-text", "clip", "t5" or "bert"."""
    torch.manual_seed(0)
    if kind == "clip-text":
        return CLIPTextModel(CLIPTextConfig(**_SIZES))
    if kind == "clip":
        vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        sizes = {"image_size": 8, "patch_size": 4}
        return CLIPModel(CLIPConfig(text_config=_SIZES, vision_config={**vision, **sizes}, projection_dim=8))
    if kind == "t5":
        config = T5Config(**_T5, vocab_size=len(WORDS), **_T5_TOKENS)
        return T5ForConditionalGeneration(config)
    return BertModel(BertConfig(**_SIZES))


def save_text_encoder(folder: Path, kind: str = "clip-text") -> Path:
    """Saves a model and its tokenizer."""
    make_model(kind).save_pretrained(folder)
    words = Tokenizer(WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="[PAD]"))
    words.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", eos_token="[EOS]")
    tokenizer.save_pretrained(folder)
    return folder
