"""Pixels to the encoder's device, and latents back."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from ul_tokenizer.latents import encode as encode_module
from ul_tokenizer.latents.encode import EncodingJob, encode_batch
from ul_tokenizer.latents.transfers import Arriving, Transfers
from ul_tokenizer.media.pixels import to_float
from ul_tokenizer.media.transforms import Preprocessing
from ul_tokenizer.sources.base import SkippedSample

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


class Grey:
    """Six grey images of 8×8 pixels."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.class_names: tuple[str, ...] = ()
        self.skipped: list[SkippedSample] = []
        for n in range(len(self)):
            Image.new("RGB", (8, 8), (40 * n,) * 3).save(self.open(n))

    def __len__(self) -> int:
        return 6

    def id(self, index: int) -> str:
        return str(index)

    def open(self, index: int) -> Path:
        return self.folder / f"{index}.png"

    def columns(self, index: int) -> dict[str, Any]:
        return {}


class Kept(list[Tensor]):
    """A writer that keeps latents in memory."""

    done_ids: Any = type("NoIds", (), {"contains": staticmethod(lambda names: [False] * len(names))})()

    def append(self, ids: Sequence[str], latents: Tensor, columns: Any) -> None:  # type: ignore[override]
        self.extend(latents)


def means(pixels: Tensor) -> Tensor:
    """An encoder with one latent per picture: its mean."""
    return pixels.mean(dim=(1, 2, 3), keepdim=True)


class OnDevice:
    """An encoder that has a device."""

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)
        self.seen: list[Tensor] = []

    def __call__(self, pixels: Tensor) -> Tensor:
        self.seen.append(pixels)
        return torch.zeros(len(pixels), 1, 1, 1) if pixels.is_meta else means(pixels)


def job(folder: Path, encode: Any, **options: Any) -> EncodingJob:
    return EncodingJob(Grey(folder), Preprocessing(8, "center", 8), encode, **{"batch_size": 2, **options})


def test_pixels_travel_as_bytes_and_become_floats_on_the_encoders_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    converted: list[Tensor] = []

    def noted(pixels: Tensor) -> Tensor:
        converted.append(pixels)
        return to_float(pixels)

    monkeypatch.setattr(encode_module, "to_float", noted)
    encode = OnDevice("meta")
    job(tmp_path, encode, batch_size=4).run(Kept())
    assert [(pixels.dtype, pixels.device.type) for pixels in converted] == [(torch.uint8, "meta")] * 2
    assert [(pixels.dtype, tuple(pixels.shape)) for pixels in encode.seen] == [(torch.float32, (4, 3, 8, 8))] * 2


def test_an_encoder_without_a_device_gets_pixels_on_the_cpu_and_a_full_batch() -> None:
    pixels = [torch.full((3, 8, 8), value, dtype=torch.uint8) for value in (0, 255)]
    seen: list[Tensor] = []

    def encode(x: Tensor) -> Tensor:
        seen.append(x)
        return means(x).double()

    latents = encode_batch(encode, pixels, 3)
    assert (seen[0].device.type, seen[0].dtype) == ("cpu", torch.float32)
    assert torch.equal(seen[0][1:], torch.ones(2, 3, 8, 8))
    assert torch.equal(latents, torch.tensor([-1.0, 1.0]).reshape(2, 1, 1, 1)) and latents.dtype == torch.float32


def test_the_next_batch_is_encoded_while_latents_are_on_their_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first latents arrive only after the third batch was given to the encoder; else the job would never end."""
    third = threading.Event()
    calls: list[int] = []

    class Slow(Arriving):
        def get(self) -> Tensor:
            assert third.wait(timeout=20)
            return super().get()

    def encode(pixels: Tensor) -> Tensor:
        calls.append(len(pixels))
        if len(calls) == 3:
            third.set()
        return means(pixels)

    monkeypatch.setattr(Transfers, "latents", lambda self, latents: Slow(latents))
    kept = Kept()
    summary = job(tmp_path, encode).run(kept)
    assert (summary.encoded, calls) == (6, [2, 2, 2])
    expected = [40 * n / 127.5 - 1 for n in range(6)]
    torch.testing.assert_close(torch.cat([latent.flatten() for latent in kept]), torch.tensor(expected))


def test_an_error_while_latents_arrive_ends_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Lost(Arriving):
        def get(self) -> Tensor:
            raise RuntimeError("the device is lost")

    monkeypatch.setattr(Transfers, "latents", lambda self, latents: Lost(latents))
    with pytest.raises(RuntimeError, match="the device is lost"):
        job(tmp_path, means).run(Kept())


@pytest.fixture
def _no_waiting() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


@needs_cuda
@pytest.mark.usefixtures("_no_waiting")
def test_transfers_do_not_wait_for_the_gpu() -> None:
    transfers = Transfers(torch.device("cuda"))
    pixels = [torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8) for _ in range(3)]
    arriving = [transfers.latents(to_float(transfers.batch(pixels, 4))) for _ in range(8)]
    for latents in arriving:
        assert torch.equal(latents.get()[:3], to_float(torch.stack(pixels)))


@needs_cuda
def test_a_job_on_a_gpu_stores_what_a_job_on_the_cpu_stores(tmp_path: Path) -> None:
    stored = {}
    for device in ("cuda", "cpu"):
        kept = Kept()
        job(tmp_path, OnDevice(device)).run(kept)
        stored[device] = torch.stack(list(kept))
    torch.testing.assert_close(stored["cuda"], stored["cpu"])
