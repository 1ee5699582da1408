"""`encode_dataset` from Python: all that the command does, also with a source and an autoencoder in memory."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ul_tokenizer import LatentDataset, UnifiedLatentsAutoencoder
from ul_tokenizer.latents.job import encode_dataset, load_encoder
from ul_tokenizer.latents.summary import TooManySkippedError
from ul_tokenizer.models.presets import build_autoencoder
from ul_tokenizer.sources.base import SkippedSample


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model") / "ul-tiny"
    torch.manual_seed(0)
    build_autoencoder("ul-tiny-f8").save_pretrained(folder)
    return str(folder)


class Squares:
    """A source made in Python; sample 3 can't be read."""

    def __init__(self) -> None:
        self.class_names: tuple[str, ...] = ("even", "odd")
        self.skipped = [SkippedSample("folder.txt", "it is no image")]

    def __len__(self) -> int:
        return 6

    def id(self, index: int) -> str:
        return f"square-{index}"

    def open(self, index: int) -> bytes:
        if index == 3:
            return b"no image"
        file = io.BytesIO()
        pixels = np.random.default_rng(index).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(file, "PNG")
        return file.getvalue()

    def columns(self, index: int) -> dict[str, Any]:
        return {"label": index % 2}


def encode(output: Path, model: Any, **options: Any) -> Any:
    given: dict[str, Any] = {"resolution": 16, "batch_size": 2, "max_skip_fraction": 0.5, **options}
    return encode_dataset(Squares(), output, model=model, **given)


def test_a_source_and_an_autoencoder_in_memory_make_a_data_set(tmp_path: Path, model: str) -> None:
    autoencoder = UnifiedLatentsAutoencoder.from_pretrained(model).train()
    summary = encode(tmp_path / "a", autoencoder)
    assert (summary.encoded, summary.found, summary.total, summary.output) == (5, 0, 7, tmp_path / "a")
    assert [skip.id for skip in summary.skipped] == ["folder.txt", "square-3"]
    assert summary.seconds > 0 and summary.images_per_second == pytest.approx(5 / summary.seconds)
    assert str(summary).startswith("encoded 5 images in ") and str(summary).endswith(f", 2 skipped: {tmp_path / 'a'}")
    lines = (tmp_path / "a" / "skipped.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["folder.txt", "square-3"]
    dataset = LatentDataset(tmp_path / "a")
    assert [sample["id"] for sample in dataset] == [f"square-{n}" for n in (0, 1, 2, 4, 5)]
    assert dataset.class_names == ("even", "odd") and dataset[1]["label"] == 1
    encode(tmp_path / "b", model)
    other = LatentDataset(tmp_path / "b")
    assert other.header == dataset.header
    assert all(torch.equal(one["latent"], two["latent"]) for one, two in zip(dataset, other, strict=True))


def test_the_autoencoder_is_handed_back_as_it_was(tmp_path: Path, model: str) -> None:
    autoencoder = UnifiedLatentsAutoencoder.from_pretrained(model).train()
    strides = [parameter.stride() for parameter in autoencoder.parameters()]
    encode(tmp_path / "a", autoencoder)
    assert autoencoder.training
    assert [parameter.stride() for parameter in autoencoder.parameters()] == strides


def test_the_same_call_continues(tmp_path: Path, model: str) -> None:
    encode(tmp_path / "a", model)
    again = encode(tmp_path / "a", model)
    assert (again.encoded, again.found) == (0, 5) and "5 were there already" in str(again)


def test_progress_counts_to_the_end_and_starts_with_what_is_stored(tmp_path: Path, model: str) -> None:
    for first in (0, 5):
        calls: list[tuple[int, int]] = []
        encode(tmp_path / "a", model, on_progress=lambda done, total: calls.append((done, total)))  # noqa: B023
        assert calls == [(done, 6) for done in range(first, 7)]


def test_too_many_skipped_samples_are_an_error_with_the_summary(tmp_path: Path, model: str) -> None:
    with pytest.raises(
        TooManySkippedError, match=r"2 of 7 samples were skipped, more than max_skip_fraction 0\.2"
    ) as e:
        encode(tmp_path / "a", model, max_skip_fraction=0.2)
    assert e.value.summary.encoded == 5
    assert len(LatentDataset(tmp_path / "a")) == 5


def test_dtypes_of_computing_and_of_storage_are_apart(tmp_path: Path, model: str) -> None:
    encode(tmp_path / "exact", model, store_dtype=torch.float32)
    encode(tmp_path / "computed", model, dtype="bfloat16", store_dtype="float32")
    encode(tmp_path / "stored", model, store_dtype="bfloat16")
    exact, computed, stored = (LatentDataset(tmp_path / name) for name in ("exact", "computed", "stored"))
    assert computed.header["dtype"] == "float32" and stored.header["dtype"] == "bfloat16"
    assert torch.equal(stored[0]["latent"], exact[0]["latent"].bfloat16().float())
    assert not torch.equal(computed[0]["latent"], exact[0]["latent"])
    torch.testing.assert_close(computed[0]["latent"], exact[0]["latent"], atol=0.1, rtol=0.1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dtype": "int8"}, "dtype must be one of float32, bfloat16, float16, got 'int8'"),
        ({"store_dtype": "float64"}, "store_dtype must be one of float32, float16, bfloat16, int8, got 'float64'"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"device": "cuda:77"}, "device must be a device of this machine, such as cpu or cuda, got cuda:77"),
        ({"rank": 1}, "rank and world_size must be given together, got 1 and None"),
        ({"rank": 2, "world_size": 2}, "rank must be from 0 to below world_size, got 2 and 2"),
        ({"crop": "round"}, "crop must be one of center, multiple, none, got 'round'"),
        ({"split": "train"}, "split must not be given for a source that is an object"),
    ],
)
def test_illegal_arguments_are_refused_before_anything_is_written(
    tmp_path: Path, model: str, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        encode(tmp_path / "a", model, **options)
    assert not (tmp_path / "a").exists()


def test_options_of_clips_need_the_number_of_frames(tmp_path: Path, model: str) -> None:
    with pytest.raises(ValueError, match=r"clip_stride needs clip_frames, got none\."):
        encode_dataset(tmp_path, tmp_path / "a", model=model, resolution=16, clip_stride=2)


# ---------------------------------------------------------------- which weights


def test_an_autoencoder_that_was_loaded_has_the_identity_of_its_files(model: str) -> None:
    by_name = load_encoder(model).identity
    assert by_name.autoencoder == "ul-tiny" and by_name.revision is None
    assert load_encoder(UnifiedLatentsAutoencoder.from_pretrained(model)).identity == by_name


def test_an_autoencoder_that_was_changed_has_the_identity_of_the_files_it_would_be_saved_as(
    model: str, tmp_path: Path
) -> None:
    autoencoder = UnifiedLatentsAutoencoder.from_pretrained(model)
    with torch.no_grad():
        next(autoencoder.parameters()).add_(1)
    identity = load_encoder(autoencoder).identity
    assert identity.autoencoder is None
    autoencoder.save_pretrained(tmp_path / "changed")
    assert load_encoder(str(tmp_path / "changed")).identity.weights_sha256 == identity.weights_sha256


def test_a_revision_of_an_autoencoder_in_memory_is_refused(model: str) -> None:
    with pytest.raises(ValueError, match="revision must be None for an autoencoder in memory, got 'main'"):
        load_encoder(UnifiedLatentsAutoencoder.from_pretrained(model), revision="main")


def test_a_job_of_an_array_without_samples_is_no_error_and_an_empty_source_is(tmp_path: Path, model: str) -> None:
    assert encode(tmp_path, model, rank=7, world_size=8).total == 0
    empty = type("Empty", (Squares,), {"__len__": lambda self: 0})()
    with pytest.raises(ValueError, match=r"source must hold at least one sample, got none\."):
        encode_dataset(empty, tmp_path / "none", model=model, resolution=16)


def test_lists_of_an_earlier_job_with_more_processes_are_removed(tmp_path: Path, model: str) -> None:
    for rank in range(2):
        encode(tmp_path, model, rank=rank, world_size=2)
    before = (tmp_path / "skipped.jsonl").read_text()
    assert [json.loads(line)["id"] for line in before.splitlines()] == ["folder.txt", "square-3"]
    encode(tmp_path, model, rank=0, world_size=1)
    assert (tmp_path / "skipped.jsonl").read_text() == before
    assert [path.name for path in tmp_path.glob("skipped-*")] == ["skipped-r000.jsonl"]


# ---------------------------------------------------------------- several processes

DRIFTING = """
import datetime, sys, time
from accelerate import PartialState
from pathlib import Path
PartialState(cpu=True, timeout=datetime.timedelta(seconds=2))
from tests.latents.test_job import Squares
from ul_tokenizer.latents import job
rank, kept = PartialState().process_index, job.EncodingJob.run
def run(this, *arguments):
    if rank == 1:
        time.sleep(5)
        if sys.argv[3] == "fails":
            raise OSError("the disk is full")
    return kept(this, *arguments)
job.EncodingJob.run = run
try:
    summary = job.encode_dataset(Squares(), sys.argv[1], model=sys.argv[2], resolution=16, max_skip_fraction=0.9)
    result = f"{summary.encoded} encoded"
except OSError as error:
    result = str(error)
Path(sys.argv[1] + f"-{rank}.txt").write_text(result)
"""


@pytest.mark.multiprocess
@pytest.mark.parametrize(("end", "result"), [("works", "5 encoded"), ("fails", "the disk is full")])
def test_processes_may_drift_further_apart_than_the_groups_timeout(
    tmp_path: Path, model: str, end: str, result: str
) -> None:
    (tmp_path / "script.py").write_text(DRIFTING)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launcher, str(tmp_path / "script.py"), str(tmp_path / "out"), model, end]
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert [(tmp_path / f"out-{rank}.txt").read_text() for rank in (0, 1)] == [result] * 2, done.stderr[-2000:]
