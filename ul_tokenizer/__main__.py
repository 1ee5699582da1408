"""Runs the command line: `python -m ul_tokenizer` does the same as `ul-tokenizer`."""

from __future__ import annotations

from ul_tokenizer.cli import main

if __name__ == "__main__":
    main()
