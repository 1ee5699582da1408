"""Writes a model as one safetensors file with its config inside, for `from_single_file`.

    python conversion/to_safetensors_single_file.py ul-photo-f8 -o ul-photo-f8.safetensors
    python conversion/to_safetensors_single_file.py ul-photo-f8 --prior -o ul-photo-f8-prior.safetensors

SRC is a bundled name, a folder or a hub id. Of a pipeline, its autoencoder; --prior and --transformer take the others.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from ul_tokenizer.models.repository import load_autoencoder, load_prior
from ul_tokenizer.models.single_file import save_single_file
from ul_tokenizer.models.transformer import UnifiedLatentsTransformer

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="A model as one safetensors file.")
    parser.add_argument("source", metavar="SRC", help="bundled name, folder or hub id")
    parser.add_argument("--output", "-o", type=Path, required=True, help="the .safetensors file to write")
    parser.add_argument("--revision", help="branch, tag or commit on the hub")
    parser.add_argument(
        "--dtype", choices=DTYPES, default="float32", help="dtype of the stored weights (default: %(default)s)"
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--prior", action="store_true", help="convert the stage-1 prior")
    which.add_argument("--transformer", action="store_true", help="convert the base model of a pipeline")
    args = parser.parse_args(argv)
    load = (
        UnifiedLatentsTransformer.from_pretrained
        if args.transformer
        else load_prior
        if args.prior
        else load_autoencoder
    )
    try:
        if args.output.suffix != ".safetensors":
            raise ValueError(f"--output must be a .safetensors file, got {args.output}.")
        save_single_file(load(args.source, revision=args.revision, torch_dtype=DTYPES[args.dtype]), args.output)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{args.output}: {args.output.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
