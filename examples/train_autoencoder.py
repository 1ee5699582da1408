"""Stage 1, the same as `ul-tokenizer train autoencoder`: accelerate launch examples/train_autoencoder.py --help."""

from ul_tokenizer.training.command import run_command

if __name__ == "__main__":
    raise SystemExit(run_command("autoencoder"))
