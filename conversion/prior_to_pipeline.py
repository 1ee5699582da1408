"""Makes a pipeline that generates with the prior of a stage-1 model, as single-stage training is meant to be used.

    python conversion/prior_to_pipeline.py runs/single-stage -o my-pipeline
    ul-tokenizer generate --model my-pipeline -o grid.png

The prior of the usual two stages works as well, but less well than a base model: it is smaller and its loss weighs all
noise levels alike. To compare it with a base model of its size is what this is good for, then.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ul_tokenizer.models.repository import PRIOR
from ul_tokenizer.pipelines.generation import UnifiedLatentsPipeline
from ul_tokenizer.pipelines.sampling import pipeline_of_prior


def make_pipeline(name: str, resolution: int | None = None) -> UnifiedLatentsPipeline:
    """The pipeline of a repository's prior and autoencoder.

    Args:
        name: a bundled name, a local folder or a hub id.
        resolution: sides of generated images in pixels, if the caller gives none; the autoencoder's `sample_size`
            if None.

    Raises:
        ValueError: there is no such model or it has no prior, or a resolution that its ratio doesn't divide.
    """
    pipeline = pipeline_of_prior(name)
    side, ratio = resolution or pipeline.vae.config.sample_size, pipeline.vae.spatial_compression_ratio
    if side is not None:
        if side % ratio:
            raise ValueError(f"--resolution must be a multiple of {ratio}, got {side}.")
        pipeline.transformer.register_to_config(sample_size=side // ratio)
    return pipeline


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the pipeline; returns the exit status."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a bundled name, a local folder or a hub id")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of the pipeline")
    parser.add_argument("--resolution", type=int, help="sides of generated images, in pixels")
    args = parser.parse_args(argv)
    try:
        if args.output.exists() and any(args.output.iterdir()):
            raise ValueError(f"{args.output} must be empty, it holds files.")
        pipeline = make_pipeline(args.model, args.resolution)
        pipeline.save_pretrained(args.output)
        pipeline.transformer.save_pretrained(args.output / "vae" / PRIOR)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(args.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
