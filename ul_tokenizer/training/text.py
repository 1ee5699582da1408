"""Captions as a condition: a text encoder of `transformers`, frozen or trained, and the hidden states that it gives."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from ul_tokenizer.evaluation.weights import weights_sha256
from ul_tokenizer.pipelines.text import encode_texts, tokenize

MAX_TOKENS = 256  # without --max_text_tokens, if the encoder itself takes more
_POOLER = "pooler"  # a head that some encoders have and no hidden state depends on


class TextStates(NamedTuple):
    """Hidden states of texts."""

    states: Tensor  # (B, L, D) fp32, L ≥ 1
    mask: Tensor  # (B, L) bool, true where there is a token; a row without tokens has no text

    def rows(self, which: slice | Tensor) -> TextStates:
        """Some of the texts, by a slice or by their numbers (n,) int64."""
        return TextStates(self.states[which], self.mask[which])

    def without(self, is_dropped: Tensor) -> TextStates:
        """The same with no text in rows (B,) where `is_dropped` is true."""
        return TextStates(self.states, self.mask & ~is_dropped[:, None])


class TextTokens(NamedTuple):
    """Tokens of texts, for an encoder that is trained."""

    ids: Tensor  # (B, L) int64, L ≥ 1
    mask: Tensor  # (B, L) bool, true where there is a token
    has_text: Tensor  # (B,) bool; others are encoded all the same, so that every step has the same graph

    def without(self, is_dropped: Tensor) -> TextTokens:
        """The same with no text in rows (B,) where `is_dropped` is true."""
        return TextTokens(self.ids, self.mask, self.has_text & ~is_dropped)

    def states(self, hidden: Tensor) -> TextStates:
        """The texts with the hidden states (B, L, D) of their tokens."""
        return TextStates(hidden.float(), self.mask & self.has_text[:, None])


def padded(states: Sequence[Tensor]) -> TextStates:
    """(L_i, D) of any float dtype for each text, L_i = 0 where there is none → one padded tensor."""
    length = max(1, *(len(state) for state in states))
    lengths = torch.tensor([len(state) for state in states])
    filled = pad_sequence([*states, states[0].new_zeros(length, states[0].shape[1])], batch_first=True)[:-1]
    return TextStates(filled.float(), torch.arange(length) < lengths[:, None])


class TextEncoder:
    """A text encoder with its tokenizer.

    Args:
        model: a model with `last_hidden_state` in its output; it is set to evaluation mode.
        tokenizer: its tokenizer.
        max_tokens: longer texts are cut off; the tokenizer is changed so that it does so after it was saved, too.
        is_trained: whether its weights are trained; otherwise they are frozen.
    """

    def __init__(self, model: Any, tokenizer: Any, max_tokens: int, is_trained: bool = False) -> None:
        self.model, self.tokenizer, self.is_trained = model.eval(), tokenizer, is_trained
        for name, weight in model.named_parameters():
            weight.requires_grad_(is_trained and _POOLER not in name)
        tokenizer.model_max_length, tokenizer.padding_side = max_tokens, "right"
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token

    @property
    def width(self) -> int:
        """Channels D of the hidden states."""
        return int(self.model.config.hidden_size)

    def to(self, device: torch.device) -> None:
        """Moves the encoder to a device."""
        self.model.to(device)

    def with_model(self, model: Any) -> TextEncoder:
        """The same with another model, such as a copy of its own with whole weights."""
        other = copy.copy(self)
        other.model = model
        return other

    def tokens(self, texts: Sequence[str | None]) -> TextTokens:
        """Tokens of texts, on the device of the model; None and white space mean no text."""
        ids, mask = (tensor.to(self.model.device) for tensor in tokenize(self.tokenizer, texts))
        return TextTokens(ids, mask, mask.any(dim=1))

    def __call__(self, texts: Sequence[str | None]) -> TextStates:
        """Encodes texts, without a gradient; None and white space mean no text."""
        states, mask = encode_texts(self.model, self.tokenizer, texts, self.model.device)
        return TextStates(states.float(), mask)

    def identity(self) -> str:
        """A text that differs between encoders, tokenizers and lengths that give other hidden states."""
        vocabulary = sorted(self.tokenizer.get_vocab().items())
        kind = f"{type(self.model).__name__} {type(self.tokenizer).__name__} {self.tokenizer.model_max_length}"
        assert isinstance(self.model, nn.Module)
        return f"{kind} {weights_sha256(self.model)} {vocabulary}"


# ---------------------------------------------------------------- loading


def load_text_encoder(
    name: str,
    subfolder: str | None = None,
    revision: str | None = None,
    max_tokens: int | None = None,
    is_trained: bool = False,
) -> TextEncoder:
    """Loads the text part of any model of `transformers`, with its tokenizer.

    Args:
        name: a folder or hub id.
        subfolder: where the encoder lies in it. The tokenizer of `text_encoder_2`, as pipelines call it, lies in
            `tokenizer_2`; otherwise it lies in the same folder.
        revision: branch, tag or commit on the hub.
        max_tokens: see `TextEncoder`; None for the encoder's own limit, and at most `MAX_TOKENS`.
        is_trained: see `TextEncoder`.

    Raises:
        ValueError: there is no such model or tokenizer, or its limit is lower than `max_tokens`.
        ImportError: `transformers` is not installed.
    """
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise ImportError("--text_encoder needs an extra: pip install ul_tokenizer[text].") from error
    try:
        model = _load_model(name, subfolder or "", revision)
        tokenizer = AutoTokenizer.from_pretrained(name, subfolder=tokenizer_folder(subfolder), revision=revision)
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise ValueError(f"--text_encoder {name} can't be loaded: {reason}.") from error
    return TextEncoder(model, tokenizer, token_limit(model, tokenizer, max_tokens), is_trained)


def token_limit(model: Any, tokenizer: Any, wanted: int | None) -> int:
    """The number of tokens after which texts are cut off; without a wish the encoder's own, at most `MAX_TOKENS`.

    Raises:
        ValueError: the encoder's own is lower than `wanted`.
    """
    limit = _limit(model, tokenizer)
    if wanted is not None and limit is not None and wanted > limit:
        raise ValueError(f"--max_text_tokens must be at most {limit} for this text encoder, got {wanted}.")
    return wanted or min(limit or MAX_TOKENS, MAX_TOKENS)


def tokenizer_folder(subfolder: str | None) -> str:
    """Where the tokenizer of an encoder in `subfolder` lies."""
    if subfolder is None or not subfolder.rpartition("/")[2].startswith("text_encoder"):
        return subfolder or ""
    parent, slash, folder = subfolder.rpartition("/")
    return f"{parent}{slash}{folder.replace('text_encoder', 'tokenizer', 1)}"


def _load_model(name: str, subfolder: str, revision: str | None) -> Any:
    """The text part alone: of T5 the encoder, of CLIP the text model."""
    from transformers import MODEL_FOR_TEXT_ENCODING_MAPPING, AutoConfig, AutoModel, AutoModelForTextEncoding
    from transformers.utils import logging

    logging.disable_progress_bar()
    config = AutoConfig.from_pretrained(name, subfolder=subfolder, revision=revision)
    config = getattr(config, "text_config", None) or config
    kind = AutoModelForTextEncoding if type(config) in MODEL_FOR_TEXT_ENCODING_MAPPING else AutoModel
    model, report = kind.from_pretrained(
        name,
        config=config,
        subfolder=subfolder,
        revision=revision,
        use_safetensors=True,
        dtype=torch.float32,
        output_loading_info=True,
    )
    missing = sorted(key for key in report["missing_keys"] if _POOLER not in key)
    if missing:  # transformers would train with random weights in their place
        raise ValueError(f"a {type(model).__name__} needs the weights {missing[0]}, which it doesn't have")
    return model


def _limit(model: Any, tokenizer: Any) -> int | None:
    """The largest number of tokens; None if nothing limits it, as in T5, whose positions are relative."""
    positions = getattr(model.config, "max_position_embeddings", None)
    stated = tokenizer.model_max_length
    limits = [limit for limit in (positions, stated) if limit is not None and limit < 1_000_000]
    return min(limits) if positions is not None and limits else None
