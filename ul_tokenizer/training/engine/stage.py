"""What the training loop needs to know about a stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from accelerate import Accelerator
from diffusers import ModelMixin
from PIL import Image
from torch import Tensor, nn

from ul_tokenizer.training.draws.noise import Draws

Batch = dict[str, Any]  # tensors by name; under "skipped", a sentence for each sample that could not be read


class DrawDataset(Protocol):
    """The samples of a run, in the order of training; numbers beyond the length belong to later epochs."""

    def __len__(self) -> int:
        """Number of samples in an epoch."""

    def __getitem__(self, n: int, /) -> Any:
        """Draw n since the start of the training; it depends on n alone."""


class Stage(Protocol):
    """A stage of the training: its networks, data, loss and validation."""

    model: nn.Module  # the module to prepare; a single one, so that DDP reduces every gradient
    # The parts of it that checkpoints contain, by folder name. Validation and saving must take them from here: with
    # FSDP, the loop puts whole models here for that time.
    models: dict[str, ModelMixin]

    @property
    def dataset(self) -> DrawDataset:
        """The samples to train on."""

    def collate(self, samples: list[Any]) -> Any:
        """Makes a `Batch` of samples of the data set."""

    def prepare(self, accelerator: Accelerator) -> None:
        """Runs once before the first step, after the models were moved to their device."""

    def describe(self) -> str:
        """Sizes of networks and data; every line is a YAML comment."""

    def loss(self, model: nn.Module, batch: Any, draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the scalar to minimise, (), and values to log, for one batch."""

    def validate(self, accelerator: Accelerator, step: int) -> tuple[dict[str, float], Image.Image]:
        """Returns metrics and a picture; runs on the main process only, with the averaged weights in place.

        It must use the models themselves. The prepared module's forward pass would wait for the other processes.
        """

    def observe(self, step: int, metrics: dict[str, float]) -> str | None:
        """Receives the metrics of a validation, on every process; returns a warning for the user, or None."""

    def state_dict(self) -> dict[str, Any]:
        """State beside the weights, of types that JSON can hold."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""

    def save(self, folder: Path) -> None:
        """Writes the trained models to a folder that `from_pretrained` loads; leaves the models as they are."""
