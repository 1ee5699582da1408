"""Averages of weights on the disk, as checkpoints have them."""

from __future__ import annotations

from pathlib import Path

from ul_tokenizer.training.engine.averages import Averages
from ul_tokenizer.training.engine.saved import SavedModel


def save_averages(averages: Averages, folder: Path) -> None:
    """Writes a folder `<model>_<profile>` for each average of each model."""
    for place, (name, number, extra) in averages.saved().items():
        weights = {key: weight.detach().clone() for key, weight in averages.weights(name, number).items()}
        SavedModel.of(averages.models[name], weights, **extra).write(folder / place)
