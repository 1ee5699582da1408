"""Moving averages of the weights, which are validated and saved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from diffusers import ModelMixin
from diffusers.training_utils import EMAModel
from torch import Tensor

from ul_tokenizer import _compat
from ul_tokenizer.training.engine.optimization import is_trained
from ul_tokenizer.training.engine.saved import read_extra, read_weights
from ul_tokenizer.training.engine.sharding import divided, joined, part_of

_WEIGHTS = "shadow_params"  # in the state of diffusers' `EMAModel`; its other entries are numbers


class Averages:
    """An exponential moving average of the weights of each model. With FSDP, each process averages its parts.

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
                average.step(_parts(self.models[name]))

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Replaces the weights of the models by their averages within a `with` block."""
        for name, average in self._averages.items():
            average.store(_parts(self.models[name]))
            average.copy_to(_parts(self.models[name]))
        try:
            yield
        finally:
            for name, average in self._averages.items():
                average.restore(_parts(self.models[name]))

    def weights(self, name: str) -> dict[str, Tensor]:
        """The averaged weights of a model, or its own if there are no averages; divided as its own are."""
        weights: dict[str, Tensor] = self.models[name].state_dict()
        if name in self._averages:
            parts = self._averages[name].state_dict()[_WEIGHTS]
            named = self.models[name].named_parameters()
            weights |= {key: joined(part, weight) for (key, weight), part in zip(named, parts, strict=True)}
        return weights

    def saved(self) -> dict[str, tuple[str, dict[str, object]]]:
        """Folder in a checkpoint → name of the model, and what its config holds in addition."""
        states = {name: average.state_dict() for name, average in self._averages.items()}
        return {
            f"{name}_ema": (name, {key: value for key, value in state.items() if key != _WEIGHTS})
            for name, state in states.items()
        }

    def load(self, folder: Path) -> None:
        """Reads the folders that a checkpoint has for the averages.

        Raises:
            ValueError: the checkpoint contains no averages.
        """
        for name, average in self._averages.items():
            path = folder / f"{name}_ema"
            if not path.is_dir():
                raise ValueError(f"{folder} has no averaged weights; resume with --no-use_ema.")
            tensors = read_weights(path)
            # In place, and so in the same memory layout: the next steps then round as without a stop.
            named = self.models[name].named_parameters()
            parts = [part_of(divided(tensors[key], weight)) for key, weight in named]
            _compat.restore_average(average, parts, read_extra(path, "optimization_step"))


def _parts(model: ModelMixin) -> list[Tensor]:
    """This process's parts of the weights."""
    return [part_of(parameter) for parameter in model.parameters()]


def _average(model: ModelMixin, decay: float) -> EMAModel:
    return EMAModel(
        _parts(model),
        decay=decay,
        use_ema_warmup=True,
        power=0.75,
        foreach=True,
        model_cls=type(model),
        model_config=model.config,
    )
