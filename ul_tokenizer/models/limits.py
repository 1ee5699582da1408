"""Bounds on configurations: a config is untrusted, so its sizes are checked before anything is allocated."""

from __future__ import annotations

from collections.abc import Sequence

MAX_SIZE = 1 << 16  # widest layer or channel count that a config may ask for
MAX_ENTRIES = 16  # stages
MAX_LAYERS = 512
MAX_WEIGHTS = 1 << 35  # in all, as `check_weights` estimates them


def check_bounds(**sizes: int | Sequence[int]) -> None:
    """Raises one ValueError that names the first argument that is no positive integer within bounds.

    Arguments whose name ends in `layers` or `layers_per_block` may be zero and are bounded by MAX_LAYERS.
    """
    for name, value in sizes.items():
        values = list(value) if isinstance(value, Sequence) else [value]
        counts_layers = name.endswith(("layers", "layers_per_block"))
        low, high = (0, MAX_LAYERS) if counts_layers else (1, MAX_SIZE)
        legal = all(isinstance(v, int) and not isinstance(v, bool) and low <= v <= high for v in values)
        if not legal or not 0 < len(values) <= MAX_ENTRIES:
            raise ValueError(f"{name} must hold integers from {low} to {high}, at most {MAX_ENTRIES}, got {value!r}.")


def check_weights(widths: Sequence[int], layers: Sequence[int]) -> None:
    """Raises a ValueError where each size is legal, but all together would fill any machine.

    The estimate takes every block for two 3×3 convolutions of the greatest width: too high, by less than tenfold.
    """
    estimate = 18 * max(widths) ** 2 * (sum(layers) + len(layers))
    if estimate > MAX_WEIGHTS:
        raise ValueError(
            f"the config's widths and layers would make about {estimate:.0e} weights, more than the {MAX_WEIGHTS:.0e} "
            f"that are legal, got a width of {max(widths)} and {sum(layers)} layers."
        )
