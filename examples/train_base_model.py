"""Stage 2: train a base model on the latents of a frozen autoencoder.

accelerate launch examples/train_base_model.py --config examples/configs/ul-fashion-base.yaml
"""

import sys

from ul_tokenizer.training.stage2 import train_base_model

if __name__ == "__main__":
    sys.exit(train_base_model())
