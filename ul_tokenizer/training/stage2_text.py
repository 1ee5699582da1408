"""The text encoder of a run of stage 2: loaded or fresh, frozen or trained."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from ul_tokenizer.randomness import Stream, derived_seed, torch_generator
from ul_tokenizer.training.draws.noise import Draws
from ul_tokenizer.training.engine.checkpoints import find_checkpoint, read_state
from ul_tokenizer.training.fresh_text import VOCAB_SIZE, build_text_model, full_config, json_of, make_tokenizer, wrapped
from ul_tokenizer.training.stage2_arguments import Stage2Arguments
from ul_tokenizer.training.text import TextEncoder, TextTokens, load_text_encoder, token_limit

TOKENIZER = "tokenizer"  # where the stage's state has the tokenizer of a fresh encoder


def open_text_encoder(args: Stage2Arguments, captions: Callable[[], Iterable[str | None]]) -> TextEncoder | None:
    """The text encoder that the arguments ask for; None for a run without text.

    Args:
        args: the arguments of the run.
        captions: the training captions, of which a fresh encoder's tokenizer is made.

    Raises:
        ValueError: it can't be loaded or made, or takes fewer tokens than asked for.
        ImportError: `transformers` is not installed.
    """
    if args.text_encoder_config is not None:
        return _make(args, args.text_encoder_config, captions)
    if args.text_encoder is None:
        return None
    return load_text_encoder(
        args.text_encoder,
        args.text_encoder_subfolder,
        args.text_encoder_revision,
        args.max_text_tokens,
        args.trains_text_encoder,
    )


def _make(args: Stage2Arguments, config: dict[str, Any], captions: Callable[[], Iterable[str | None]]) -> TextEncoder:
    try:
        tokenizer = _tokenizer(args, config.get("vocab_size", VOCAB_SIZE), captions)
    except ImportError as error:
        raise ImportError("--text_encoder_config needs an extra: pip install ul_tokenizer[text].") from error
    whole = full_config(config, len(tokenizer))
    torch.manual_seed(derived_seed(args.seed, Stream.TEXT_ENCODER))  # first weights are the same on every process
    model = build_text_model(whole)
    return TextEncoder(model, tokenizer, token_limit(model, tokenizer, args.max_text_tokens), args.trains_text_encoder)


def _tokenizer(args: Stage2Arguments, vocab_size: Any, captions: Callable[[], Iterable[str | None]]) -> Any:
    """That of the checkpoint to resume, as captions may have changed since; otherwise a new one."""
    if type(vocab_size) is not int or vocab_size < 1:
        raise ValueError(f"--text_encoder_config must have a positive number as vocab_size, got {vocab_size!r}.")
    wanted = args.resume_from_checkpoint
    checkpoint = find_checkpoint(Path(args.output_dir), wanted) if wanted else None
    saved = None if checkpoint is None else read_state(checkpoint).get("stage", {}).get(TOKENIZER)
    return make_tokenizer(captions(), vocab_size) if saved is None else wrapped(saved)


def state_of(args: Stage2Arguments, text: TextEncoder | None) -> dict[str, Any]:
    """What a checkpoint keeps of the text encoder beside its weights."""
    return {} if text is None or args.text_encoder_config is None else {TOKENIZER: json_of(text.tokenizer)}


def with_unknown(args: Stage2Arguments, text: TextEncoder, tokens: TextTokens, draws: Draws) -> TextTokens:
    """Makes some tokens of a fresh encoder unknown, so that it learns what to do about words that it never saw."""
    if not args.token_dropout or args.text_encoder_config is None:
        return tokens
    generator = torch_generator(args.seed, Stream.TOKEN_DROPOUT, draws.of_step.start)
    drawn = torch.rand(len(draws.of_step), text.tokenizer.model_max_length, generator=generator)
    is_unknown = draws.pick(drawn < args.token_dropout, tokens.ids.device)[:, : tokens.ids.shape[1]]
    is_word = tokens.mask & (tokens.ids != text.tokenizer.cls_token_id)
    return tokens._replace(ids=tokens.ids.masked_fill(is_unknown & is_word, text.tokenizer.unk_token_id))
