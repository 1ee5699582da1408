"""What is measured: an autoencoder with a number of decoding steps, or a codec at a quality. Pixels in, pixels out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ul_tokenizer.evaluation.autoencoders import AnyAutoencoder
from ul_tokenizer.evaluation.codecs import Codec, from_mosaic, mosaic
from ul_tokenizer.media.pixels import to_float, to_uint8
from ul_tokenizer.randomness import EvaluationStream, torch_generator


class Reconstruction(NamedTuple):
    """What a subject makes of a batch."""

    pixels: Tensor  # uint8, shaped like the originals
    is_finite: Tensor  # (B,) bool; samples with NaN or infinity have no meaningful pixels
    bits: Tensor  # (B,), float64
    encode_seconds: float  # of the whole batch
    decode_seconds: float


class Subject(Protocol):
    """An autoencoder or a codec, under fixed settings."""

    @property
    def name(self) -> str:
        """What it is called in results."""
        ...

    @property
    def kind_of_bits(self) -> str | None:
        """What its bits are: a bound, the size of a file, or a nominal rate; None if it has none."""
        ...

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        ...

    def facts(self) -> dict[str, Any]:
        """Everything on which its reconstructions depend."""
        ...

    def reconstruct(self, pixels: Tensor, numbers: Sequence[int]) -> Reconstruction:
        """Encodes and decodes a batch.

        Args:
            pixels: uint8, (B, 3, H, W) of images or (B, 3, T, H, W) of clips.
            numbers: numbers of the samples, which seed their noise.
        """
        ...

    def flops(self, shape: tuple[int, ...]) -> dict[str, dict[str, int]] | None:
        """FLOPs of encoding and of decoding one sample of a shape (3, [T,] H, W); None where they aren't counted."""
        ...


# ---------------------------------------------------------------- autoencoders


@dataclass(frozen=True)
class AutoencoderSubject:
    """An autoencoder with a number of decoding steps.

    Models of images take clips frame by frame, with the same noise for all frames of a clip. Models of videos take an
    image as a clip of one frame. Sizes that the compression ratio doesn't divide are padded with copies of the last
    row and column, and the padding is cut off again; its bits count.

    Args:
        autoencoder: the autoencoder.
        num_inference_steps: decoding steps of one of ours; None for the number in its config, and for others.
        seed: seed of all noise. The noise of sample k depends on the seed and k only.
    """

    autoencoder: AnyAutoencoder
    num_inference_steps: int | None = None
    seed: int = 0

    @property
    def name(self) -> str:
        """What it is called in results."""
        return self.autoencoder.name

    @property
    def kind_of_bits(self) -> str:
        """What its bits are."""
        return self.autoencoder.kind_of_bits

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        device: torch.device = self.autoencoder.model.device
        return device

    def facts(self) -> dict[str, Any]:
        """Everything on which its reconstructions depend."""
        steps = self.num_inference_steps
        if steps is None and self.autoencoder.is_ours:
            steps = self.autoencoder.model.config.num_inference_steps
        return {**self.autoencoder.facts(), "num_inference_steps": steps}

    @torch.inference_mode()
    def reconstruct(self, pixels: Tensor, numbers: Sequence[int]) -> Reconstruction:
        """Encodes and decodes a batch (B, 3, [T,] H, W), see `Subject`."""
        height, width = pixels.shape[-2:]
        x, frames_each = self._as_the_model_takes_it(to_float(pixels))
        start = time.perf_counter()
        latents = self.autoencoder.encode(x, self._generators(numbers, frames_each, EvaluationStream.LATENT))
        encoded = self._now()
        decoded = self._decode(latents, x, numbers, frames_each)
        done = self._now()
        bits = self.autoencoder.bits(x, latents, self._generators(numbers, frames_each, EvaluationStream.BITS))
        again = self._as_given(decoded, x, pixels)[..., :height, :width]
        is_finite = again.isfinite().flatten(1).all(1)
        again = torch.where(is_finite.view(-1, *[1] * (again.ndim - 1)), again, torch.zeros_like(again))
        return Reconstruction(
            to_uint8(again), is_finite, bits.view(len(pixels), -1).sum(1), encoded - start, done - encoded
        )

    def flops(self, shape: tuple[int, ...]) -> dict[str, dict[str, int]] | None:
        """See `Subject`."""
        x, _ = self._as_the_model_takes_it(torch.zeros(1, *shape))
        return self.autoencoder.flops(x, self.num_inference_steps)

    def _as_the_model_takes_it(self, pixels: Tensor) -> tuple[Tensor, int]:
        """Padded pixels in the rank that the model takes, and how many of its samples are one of ours."""
        multiple = self.autoencoder.multiple
        right, below = -pixels.shape[-1] % multiple, -pixels.shape[-2] % multiple
        is_clip = pixels.ndim == 5
        if right or below:
            pixels = F.pad(pixels, (0, right, 0, below, *([0, 0] if is_clip else [])), mode="replicate")
        if is_clip and not self.autoencoder.takes_clips:
            return pixels.transpose(1, 2).flatten(0, 1), pixels.shape[2]
        if not is_clip and self.autoencoder.takes_clips and not self.autoencoder.is_ours:
            return pixels.unsqueeze(2), 1
        return pixels, 1

    def _as_given(self, decoded: Tensor, x: Tensor, pixels: Tensor) -> Tensor:
        """Decoded pixels in the rank of the originals, still padded.

        Raises:
            ValueError: the model returns another size or number of frames than it was given.
        """
        if decoded.shape != x.shape:
            got, given = ("×".join(map(str, tensor.shape[2:])) for tensor in (decoded, x))
            raise ValueError(
                f"model must return the size that it is given, got {got} for {given} from {self.name}; choose a "
                f"resolution, crop_size or clip_frames that it takes."
            )
        if pixels.ndim == 5 and decoded.ndim == 4:
            return decoded.unflatten(0, (len(pixels), pixels.shape[2])).transpose(1, 2)
        return decoded.squeeze(2) if pixels.ndim == 4 and decoded.ndim == 5 else decoded

    def _decode(self, latents: Tensor, x: Tensor, numbers: Sequence[int], frames_each: int) -> Tensor:
        generators = self._generators(numbers, frames_each, EvaluationStream.RECONSTRUCTION)
        frames = x.shape[2] if x.ndim == 5 else None
        return self.autoencoder.decode(latents, generators, self.num_inference_steps, frames)

    def _generators(self, numbers: Sequence[int], each: int, stream: EvaluationStream) -> list[torch.Generator]:
        return [torch_generator(self.seed, stream, number) for number in numbers for _ in range(each)]

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


# ---------------------------------------------------------------- codecs


@dataclass(frozen=True)
class CodecSubject:
    """A codec at one quality, with the real bytes of its files.

    Args:
        codec: the codec.
        mosaic: number of images that are compressed as one picture, so that headers, which make up much of the files
            of small images, hardly count; batches must have this size. None makes a file of each image. A clip is a
            file for each frame.
    """

    codec: Codec
    mosaic: int | None = None

    @property
    def name(self) -> str:
        """What it is called in results."""
        return str(self.codec)

    @property
    def kind_of_bits(self) -> str:
        """What its bits are."""
        return "file bytes" if self.mosaic is None else f"file bytes, {self.mosaic} images as one picture"

    @property
    def device(self) -> torch.device:
        """Codecs run on the CPU."""
        return torch.device("cpu")

    def facts(self) -> dict[str, Any]:
        """Everything on which its reconstructions depend."""
        return {
            "name": self.name,
            "type": "codec",
            **self.codec.facts(),
            "mosaic": self.mosaic,
            "num_inference_steps": None,
        }

    def reconstruct(self, pixels: Tensor, numbers: Sequence[int]) -> Reconstruction:
        """Compresses and decompresses a batch (B, 3, [T,] H, W), see `Subject`."""
        images = pixels.transpose(1, 2).flatten(0, 1) if pixels.ndim == 5 else pixels
        pictures = list(images) if self.mosaic is None else [mosaic(images)]
        start = time.perf_counter()
        files = [self.codec.compress(picture) for picture in pictures]
        encoded = time.perf_counter()
        decoded = [self.codec.decompress(file) for file in files]
        done = time.perf_counter()
        again = torch.stack(decoded) if self.mosaic is None else from_mosaic(decoded[0], *images.shape[-2:])
        if pixels.ndim == 5:
            again = again.unflatten(0, (len(pixels), pixels.shape[2])).transpose(1, 2)
        return Reconstruction(
            again, torch.ones(len(pixels), dtype=torch.bool), self._bits(files, pixels), encoded - start, done - encoded
        )

    def flops(self, shape: tuple[int, ...]) -> dict[str, dict[str, int]] | None:
        """None: a codec's operations aren't counted."""
        return None

    def _bits(self, files: Sequence[bytes], pixels: Tensor) -> Tensor:
        sizes = 8 * torch.tensor([len(file) for file in files], dtype=torch.float64)
        return sizes.view(len(pixels), -1).sum(1) if self.mosaic is None else (sizes / len(pixels)).expand(len(pixels))
