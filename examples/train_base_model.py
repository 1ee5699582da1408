"""Stage 2, the same as `ul-tokenizer train base`: accelerate launch examples/train_base_model.py --help."""

from ul_tokenizer.training.command import run_command

if __name__ == "__main__":
    raise SystemExit(run_command("base"))
