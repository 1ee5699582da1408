"""Moving averages of the weights, which are validated and saved."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from diffusers import ModelMixin
from diffusers.training_utils import EMAModel
from diffusers.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file

from ul_tokenizer import _compat
from ul_tokenizer.training.engine.optimization import is_trained


class Averages:
    """An exponential moving average of the weights of each model.

    Args:
        models: name → model, on its final device.
        decay: decay per step, reached gradually; None keeps no averages.
    """

    def __init__(self, models: Mapping[str, ModelMixin], decay: float | None) -> None:
        self.models, self.decay = models, decay
        self._averages = {} if decay is None else {name: _average(model, decay) for name, model in models.items()}

    def step(self) -> None:
        """Updates the averages after an optimiser step."""
        for name, average in self._averages.items():
            if is_trained(self.models[name]):
                average.step(self.models[name].parameters())

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Replaces the weights of the models by their averages within a `with` block."""
        for name, average in self._averages.items():
            average.store(self.models[name].parameters())
            average.copy_to(self.models[name].parameters())
        try:
            yield
        finally:
            for name, average in self._averages.items():
                average.restore(self.models[name].parameters())

    def save(self, folder: Path) -> None:
        """Writes a folder `<name>_ema` for each model, which its `from_pretrained` loads."""
        for name, average in self._averages.items():
            average.save_pretrained(folder / f"{name}_ema")

    def load(self, folder: Path) -> None:
        """Reads the folders that `save` wrote.

        Raises:
            ValueError: the checkpoint contains no averages.
        """
        for name, average in self._averages.items():
            path = folder / f"{name}_ema"
            if not path.is_dir():
                raise ValueError(f"{folder} has no averaged weights; resume with --no-use_ema.")
            tensors = load_file(path / SAFETENSORS_WEIGHTS_NAME)
            # In place, and so in the same memory layout: the next steps then round as without a stop.
            weights = [tensors[key] for key, _ in self.models[name].named_parameters()]
            config = json.loads((path / CONFIG_NAME).read_text(encoding="utf-8"))
            _compat.restore_average(average, weights, config["optimization_step"])


def _average(model: ModelMixin, decay: float) -> EMAModel:
    return EMAModel(
        list(model.parameters()),
        decay=decay,
        use_ema_warmup=True,
        power=0.75,
        foreach=True,
        model_cls=type(model),
        model_config=model.config,
    )
