"""`python -m ul_tokenizer` is the command line `ul-tokenizer`."""

from __future__ import annotations

from ul_tokenizer.cli import main

if __name__ == "__main__":
    main()
