"""Names of weight files, as diffusers gives them: single or in shards, with or without a variant, and their index."""

from __future__ import annotations

import re

_FILE = re.compile(r"diffusion_pytorch_model(?:\.([\w-]+?))?(?:-\d{5}-of-\d{5})?\.safetensors")
_INDEX = re.compile(r"diffusion_pytorch_model\.safetensors\.index(?:\.([\w-]+))?\.json")


def is_weights(name: str) -> bool:
    """Whether it is a file of weights; their index is none."""
    return bool(_FILE.fullmatch(name))


def variant_of(name: str) -> str | None:
    """The variant of weights or of their index, "" for none; None for any other file."""
    found = _FILE.fullmatch(name) or _INDEX.fullmatch(name)
    return (found[1] or "") if found else None
