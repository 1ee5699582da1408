"""The web demo as a Space on the Hugging Face hub: the same page as `ul-tokenizer demo`, open to everyone."""

from __future__ import annotations

import os
from pathlib import Path

from ul_tokenizer.demo.serve import serve

if __name__ == "__main__":
    serve(
        host=os.environ.get("GRADIO_SERVER_NAME", "0.0.0.0"),  # a Space is reached from outside
        port=int(os.environ.get("GRADIO_SERVER_PORT", "7860")),
        samples=Path(__file__).resolve().parent / "samples",
    )
