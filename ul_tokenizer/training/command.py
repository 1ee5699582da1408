"""Training from a command line: words in, an exit status out, and one sentence for each error."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Literal

from ul_tokenizer.training.arguments import TrainingArguments
from ul_tokenizer.training.distill_arguments import DistillArguments
from ul_tokenizer.training.engine.errors import TrainingError
from ul_tokenizer.training.parsing import parse_arguments
from ul_tokenizer.training.stage1_arguments import Stage1Arguments
from ul_tokenizer.training.stage2_arguments import Stage2Arguments

Target = Literal["autoencoder", "base", "distill"]
ARGUMENTS: dict[Target, type[TrainingArguments]] = {
    "autoencoder": Stage1Arguments,
    "base": Stage2Arguments,
    "distill": DistillArguments,
}
DESCRIPTIONS: dict[Target, str] = {
    "autoencoder": "Train or fine-tune a Unified Latents autoencoder with its prior (stage 1).",
    "base": "Train a base model on the latents of a frozen autoencoder (stage 2).",
    "distill": "Distil the decoder of a trained autoencoder, so that it decodes in one or two steps.",
}

EXAMPLES: dict[Target, str] = {
    "autoencoder": "ul-tokenizer train autoencoder --config ul-photo-f8 --train_data_dir photos/",
    "base": "ul-tokenizer train base --config ul-fashion-base --train_data_dir photos/",
    "distill": "ul-tokenizer train distill --config ul-photo-f8-distilled --train_data_dir my/",
}

NOT_ENOUGH_MEMORY = (
    "error: Not enough memory; use a smaller --train_batch_size with more --gradient_accumulation_steps, or "
    "--gradient_checkpointing. Run the command again to go on from the last checkpoint."
)


def run_command(target: Target, argv: Sequence[str] | None = None, program: str | None = None) -> int:
    """Trains with arguments from a command line and prints what goes wrong.

    Args:
        target: what to train.
        argv: the words after the program's name; None for those of this process.
        program: the program's name, for help and errors; None for that of this process.

    Returns:
        the exit status: 0, also if a signal stopped the run after a checkpoint; 1 after an error; 130 after Ctrl-C
        before the first step.

    Raises:
        SystemExit: with status 2 if the arguments are illegal, or 0 after `--help`.
    """
    others = {f"train {other}": arguments for other, arguments in ARGUMENTS.items() if other != target}
    args = parse_arguments(ARGUMENTS[target], argv, DESCRIPTIONS[target], program, others, EXAMPLES[target])
    try:
        _train(args)
    except KeyboardInterrupt:  # a first signal during the training stops it at the next step, without an exception
        print("interrupted.", file=sys.stderr, flush=True)
        return 130
    except (TrainingError, ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 1
    except RuntimeError as error:
        from accelerate.utils.memory import should_reduce_batch_size

        if not should_reduce_batch_size(error):
            raise
        print(NOT_ENOUGH_MEMORY, file=sys.stderr, flush=True)
        return 1
    return 0


def _train(args: TrainingArguments) -> None:
    """Imports the networks only now: illegal arguments and `--help` are answered without waiting for them."""
    if isinstance(args, Stage1Arguments):
        from ul_tokenizer.training.stage1 import train_autoencoder

        train_autoencoder(args)
    elif isinstance(args, Stage2Arguments):
        from ul_tokenizer.training.stage2 import train_base_model

        train_base_model(args)
    elif isinstance(args, DistillArguments):
        from ul_tokenizer.training.distill import distill_decoder

        distill_decoder(args)
