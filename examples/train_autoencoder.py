"""Stage 1: train or fine-tune a Unified Latents autoencoder.

accelerate launch examples/train_autoencoder.py --config examples/configs/ul-photo-f8.yaml
"""

import sys

from ul_tokenizer.training.stage1 import train_autoencoder

if __name__ == "__main__":
    sys.exit(train_autoencoder())
