"""What diffusers' autoencoders share, without importing all of them.

`diffusers.models.autoencoders.vae` imports every network of diffusers, and with these most of transformers and SciPy,
which took a third of the time of `ul-tokenizer info`. So the switches of its `AutoencoderMixin` are defined here again,
and its `DecoderOutput` is imported when the first picture is decoded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from diffusers.models.autoencoders.vae import DecoderOutput


class AutoencoderMixin:
    """Switches for tiling and slicing, under the names of diffusers' mixin."""

    use_tiling: bool
    use_slicing: bool

    def enable_tiling(self) -> None:
        """Processes large pictures tile by tile, which bounds memory."""
        self.use_tiling = True

    def disable_tiling(self) -> None:
        """Processes each picture as a whole."""
        self.use_tiling = False

    def enable_slicing(self) -> None:
        """Processes a batch sample by sample, which saves memory."""
        self.use_slicing = True

    def disable_slicing(self) -> None:
        """Processes a batch as a whole."""
        self.use_slicing = False


def decoder_output(sample: Tensor) -> DecoderOutput:
    """diffusers' own `DecoderOutput` around pixels (B, C, [T,] H, W)."""
    from diffusers.models.autoencoders.vae import DecoderOutput

    return DecoderOutput(sample=sample)
