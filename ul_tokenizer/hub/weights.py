"""Names of weight files in diffusers' scheme: one file or shards with an index, each with or without a variant."""

from __future__ import annotations

import re

_FILE = re.compile(r"diffusion_pytorch_model(?:\.([\w-]+?))?(?:-\d{5}-of-\d{5})?\.safetensors")
_INDEX = re.compile(r"diffusion_pytorch_model\.safetensors\.index(?:\.([\w-]+))?\.json")


def is_weights(name: str) -> bool:
    """Whether a file of this name holds weights; an index of shards does not."""
    return bool(_FILE.fullmatch(name))


def variant_of(name: str) -> str | None:
    """The variant of a weight file or of an index, "" for the plain one; None for any other file."""
    found = _FILE.fullmatch(name) or _INDEX.fullmatch(name)
    return (found[1] or "") if found else None
