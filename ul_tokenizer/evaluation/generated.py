"""Images that are judged: those that a pipeline draws, or those that somebody else's generator wrote."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from typing import Any, Protocol

import torch
from torch import Tensor

from ul_tokenizer.evaluation.drawing import Drawer
from ul_tokenizer.evaluation.parts import Batch
from ul_tokenizer.evaluation.samples import EvaluationSamples, Sample
from ul_tokenizer.evaluation.weights import weights_sha256


class Generated(Protocol):
    """Numbered images."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """What the classes of `label` are called; none if that isn't known."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the first image.

        Raises:
            ValueError: none can be read.
        """
        ...

    def __len__(self) -> int: ...

    def id(self, number: int) -> str:
        """Name of an image."""
        ...

    def read(self, number: int) -> Sample:
        """The image, or for one that is still to be drawn a sample without pixels."""
        ...

    def label(self, number: int) -> int | None:
        """The class that the image should show; None if there is none."""
        ...

    def prompt(self, number: int) -> str | None:
        """The text that the image should show; None if there is none."""
        ...

    def facts(self) -> dict[str, Any]:
        """What a result file says about the subject."""
        ...

    def images(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The images of a batch, (B, 3, H, W) uint8, and which of them are finite, (B,) bool."""
        ...


class PipelineImages:
    """Images that a pipeline draws when they are needed.

    Args:
        drawer: draws them.
        name: what the pipeline is called in results.
        generator: "base", or "prior" if the stage-1 prior draws.
    """

    class_names = ()

    def __init__(self, drawer: Drawer, name: str, generator: str = "base") -> None:
        self.drawer, self._name, self._generator = drawer, name, generator

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of all images."""
        return 3, *self.drawer.size

    def __len__(self) -> int:
        """Number of images."""
        return self.drawer.sampling.num_images

    def id(self, number: int) -> str:
        """Name of an image."""
        return f"image {number}"

    def read(self, number: int) -> Sample:
        """A sample without pixels: drawing is the work of a batch."""
        return Sample(self.id(number), torch.empty(0, dtype=torch.uint8))

    def label(self, number: int) -> int | None:
        """The requested class; None if none is requested."""
        labels = self.drawer.labels([number])
        return None if labels is None else int(labels)

    def prompt(self, number: int) -> str | None:
        """The image's prompt; None without prompts."""
        texts = self.drawer.texts([number])
        return None if texts is None else texts[0]

    def facts(self) -> dict[str, Any]:
        """What a result file says about the subject."""
        pipeline, sampling = self.drawer.pipeline, asdict(self.drawer.sampling)
        del sampling["num_images"]
        prompts = self.drawer.prompts
        interval, steps = sampling["guidance_interval"], sampling["decoder_num_inference_steps"]
        return {
            "name": self._name,
            "type": type(pipeline).__name__,
            "weights_sha256": weights_sha256(pipeline.transformer, pipeline.vae),
            **({} if prompts is None else {"text_sha256": _text_sha256(pipeline), "prompts": prompts.facts()}),
            "dtype": str(pipeline.transformer.dtype).removeprefix("torch."),
            "generator": self._generator,
            "size": list(self.drawer.size),
            **sampling,
            "guidance_interval": None if interval is None else list(interval),  # as JSON gives it back
            "decoder_num_inference_steps": steps or pipeline.vae.config.get("num_inference_steps"),
        }

    def images(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Draws the images of a batch, (B, 3, H, W) uint8; also which of them are finite, (B,) bool."""
        return self.drawer.draw(batch.numbers)


def _text_sha256(pipeline: Any) -> str:
    """Hash of a pipeline's text encoder and of the numbers of its tokens."""
    tokens = json.dumps(sorted(pipeline.tokenizer.get_vocab().items()))
    return hashlib.sha256(f"{weights_sha256(pipeline.text_encoder)} {tokens}".encode()).hexdigest()


class FolderImages:
    """Images that somebody else's generator wrote.

    Args:
        samples: the images; classes are those of their folders.
    """

    def __init__(self, samples: EvaluationSamples) -> None:
        self._samples = samples

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the folders that are classes."""
        return tuple(self._samples.source.class_names)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the first image that can be read."""
        return self._samples.shape

    def __len__(self) -> int:
        """Number of images."""
        return len(self._samples)

    def id(self, number: int) -> str:
        """Name of an image."""
        return self._samples.id(number)

    def read(self, number: int) -> Sample:
        """The image."""
        return self._samples.read(number)

    def label(self, number: int) -> int | None:
        """The class whose folder the image lies in; None without classes."""
        return self._samples.label(number)

    def prompt(self, number: int) -> str | None:
        """None: what the images were made of isn't known."""
        return None

    def facts(self) -> dict[str, Any]:
        """What a result file says about the subject."""
        crops = {name: value for name, value in self._samples.facts().items() if name not in ("data", "rounding")}
        return {"name": self._samples.name, "type": "folder", "num_inference_steps": None, **crops}

    def images(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The images of a batch, (B, 3, H, W) uint8, all of which are finite, (B,) bool."""
        pixels = torch.stack([sample.pixels for sample in batch.samples])
        return pixels, torch.ones(len(pixels), dtype=torch.bool)
