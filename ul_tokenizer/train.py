"""Training as a module, for launchers: `accelerate launch -m ul_tokenizer.train autoencoder --config ul-photo-f8`."""

from ul_tokenizer.cli.train import app

if __name__ == "__main__":
    app(prog_name="python -m ul_tokenizer.train")
