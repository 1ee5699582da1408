"""Encodes a data set to latents with several processes, e.g. one per GPU.

accelerate launch --multi_gpu examples/encode_dataset.py SRC -o OUT --model ul-photo-f8 --resolution 256

Options are those of `ul-tokenizer encode-dataset`. A Slurm array needs no launcher; each of its jobs runs

    ul-tokenizer encode-dataset SRC -o OUT … --rank $SLURM_ARRAY_TASK_ID --world-size $SLURM_ARRAY_TASK_COUNT
"""

import sys

from ul_tokenizer.cli import app

if __name__ == "__main__":
    app(["encode-dataset", *sys.argv[1:]])
