"""A text encoder of one's own: a small model of `transformers` with first weights, and a tokenizer made of captions.

The tokenizer is a BPE over letters, which the library `tokenizers` learns. Case, accents and repeated white space make
no difference. Every text begins with a token of its own, [CLS]. A character that no caption has is [UNK], several in a
row are one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

START = "[CLS]"
SPECIAL = ("[PAD]", "[UNK]", START)  # in the order of their numbers, from 0
VOCAB_SIZE = 8192  # at most, if the config doesn't say
# A DistilBERT of 0.4 M weights beside those of its tokens: it has no weight that the hidden states don't depend on.
SMALL: dict[str, Any] = {
    "dim": 128,
    "n_layers": 2,
    "n_heads": 4,
    "hidden_dim": 512,
    "max_position_embeddings": 64,
    "dropout": 0.0,
    "attention_dropout": 0.0,
}
KIND = "distilbert"


def make_tokenizer(captions: Iterable[str | None], vocab_size: int) -> Any:
    """Learns a tokenizer; the same captions give the same one in every process.

    Args:
        captions: the texts to learn from; None is left out.
        vocab_size: largest number of tokens.

    Returns:
        a tokenizer of `transformers`.
    """
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(unk_token=SPECIAL[1], fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFKD(),
            normalizers.StripAccents(),
            normalizers.Lowercase(),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Strip(),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation()])
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL),
        limit_alphabet=max(1, vocab_size // 2),  # or scripts of many characters would leave no place for words
        show_progress=False,
    )
    tokenizer.train_from_iterator((caption for caption in captions if caption), trainer)
    return wrapped(tokenizer)


def wrapped(tokenizer: Any) -> Any:
    """A tokenizer of `transformers` from one of `tokenizers`, or from its JSON."""
    from tokenizers import Tokenizer, processors
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer.from_str(tokenizer) if isinstance(tokenizer, str) else tokenizer
    start = (START, tokenizer.token_to_id(START))
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{START} $A", special_tokens=[start])
    pad, unknown, _ = SPECIAL
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=pad, unk_token=unknown, cls_token=START)


def json_of(tokenizer: Any) -> str:
    """The JSON from which `wrapped` makes the same tokenizer."""
    text: str = tokenizer.backend_tokenizer.to_str()
    return text


def full_config(config: Mapping[str, Any], vocab_size: int) -> dict[str, Any]:
    """The config of a text model, with everything that `transformers` needs to make it.

    Args:
        config: keys to change of a small DistilBERT or, with "model_type", of another kind's defaults.
        vocab_size: number of tokens.

    Raises:
        ValueError: an unknown kind or key, or a value that the kind can't have.
    """
    from transformers import AutoConfig

    kind = config.get("model_type", KIND)
    if not isinstance(kind, str):
        raise ValueError(f"--text_encoder_config must have a text as model_type, got {kind!r}.")
    defaults = SMALL if kind == KIND else {}
    _check_keys(kind, config)
    tokens = {"vocab_size": vocab_size, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 2}
    try:
        made = AutoConfig.for_model(kind, **{**defaults, **_without_kind(config), **tokens})
    except Exception as error:  # transformers validates with errors of several libraries
        raise ValueError(f"--text_encoder_config is illegal: {_first_line(error)}.") from error
    return json_safe(made)


def json_safe(config: Any) -> dict[str, Any]:
    """All of a config of `transformers`, as JSON holds it."""
    import json

    values: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    return values


def build_text_model(config: Mapping[str, Any]) -> Any:
    """A text model with first weights, fp32.

    Args:
        config: the result of `full_config` or `json_safe`.

    Raises:
        ValueError: sizes that don't fit each other.
    """
    from transformers import MODEL_FOR_TEXT_ENCODING_MAPPING, AutoConfig, AutoModel, AutoModelForTextEncoding

    made = AutoConfig.for_model(config["model_type"], **_without_kind(config))
    kind = AutoModelForTextEncoding if type(made) in MODEL_FOR_TEXT_ENCODING_MAPPING else AutoModel
    try:
        return kind.from_config(made, dtype=torch.float32)
    except (ValueError, TypeError, RuntimeError, ZeroDivisionError) as error:
        raise ValueError(f"--text_encoder_config gives no text encoder: {_first_line(error)}.") from error


def _check_keys(kind: str, config: Mapping[str, Any]) -> None:
    """Refuses keys that `transformers` would store and never read."""
    from transformers import CONFIG_MAPPING

    if kind not in CONFIG_MAPPING:
        raise ValueError(f"--text_encoder_config must have a model_type of transformers, got {kind!r}.")
    made = CONFIG_MAPPING[kind]()
    legal = {"model_type", *made.to_dict(), *made.attribute_map}
    for key in config:
        if key not in legal:
            raise ValueError(f"--text_encoder_config of the model_type {kind} has no key {key!r}.")


def _without_kind(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key != "model_type"}


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
