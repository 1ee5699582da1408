"""Whatever a kill leaves behind, the next run completes the data set: hypothesis tries to find something else."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ul_tokenizer.latents.dataset import LatentDataset
from ul_tokenizer.latents.integrity import verify
from ul_tokenizer.latents.manifest import manifest_name, read_all_shards
from ul_tokenizer.latents.writer import LatentWriter

HEADER = {"latent_channels": 1, "latent_logsnr": 5.0, "dtype": "float32"}
COUNT = 12
LATENTS = torch.randn(COUNT, 1, 1, 2, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True, scope="module")
def no_waiting_for_the_disk() -> Iterator[None]:
    """Nothing is really killed here, so files needn't be flushed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda handle: None)
        yield


def run(folder: Path, rank: int, world_size: int, stop: int | None, shard_samples: int, batch: int) -> None:
    """One process's part of the job; `stop` kills it behind so many batches, with samples still in memory."""
    writer = LatentWriter(folder, HEADER, rank, world_size, shard_samples=shard_samples)
    pending = [n for n in range(rank, COUNT, world_size) if f"{n}.png" not in writer.done_ids]
    for number, first in enumerate(range(0, len(pending), batch)):
        if number == stop:
            return
        part = pending[first : first + batch]
        writer.append([f"{n}.png" for n in part], LATENTS[part], [{"label": n} for n in part])
    if stop is None:
        writer.flush()


def leave_traces(folder: Path, rank: int, cut: int, data: st.DataObject) -> None:
    """What a kill in the middle of a shard leaves: half a line, a shard without a line, a temporary file."""
    manifest = folder / manifest_name(rank)
    if manifest.is_file():
        content = manifest.read_bytes()
        # Lines are synced one by one, so that a kill can cut off any part of the last one alone.
        last = content.rfind(b"\n", 0, len(content) - 1) + 1
        manifest.write_bytes(content[: max(last, len(content) - cut)])
    if data.draw(st.booleans(), "shard without a line"):
        (folder / f"shard-r{rank:03d}-000777.safetensors").write_bytes(b"whole, but in no manifest")
    if data.draw(st.booleans(), "temporary file"):
        (folder / f".shard-r{rank:03d}-000777.safetensors.77.tmp").write_bytes(b"half")


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 3), st.integers(0, 5), st.integers(0, 4000)), max_size=4),
    st.integers(1, 5),
    st.integers(1, 4),
    st.data(),
)
def test_kills_lose_and_double_nothing(
    kills: list[tuple[int, int, int]], shard_samples: int, batch: int, data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for world_size, stop, cut in kills:
            for rank in range(world_size):
                run(folder, rank, world_size, stop, shard_samples, batch)
                leave_traces(folder, rank, cut, data)
        run(folder, 0, 1, None, shard_samples, batch)
        assert verify(folder) == []
        by_id = {sample["id"]: sample for sample in LatentDataset(folder)}
        assert sum(len(shard.ids) for shard in read_all_shards(folder)) == len(by_id) == COUNT
        for n in range(COUNT):
            assert torch.equal(by_id[f"{n}.png"]["latent"], LATENTS[n]) and by_id[f"{n}.png"]["label"] == n


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_a_manifest_that_is_cut_at_any_byte_is_a_shorter_one(cut: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run(folder, 0, 1, None, 3, 2)
        manifest = folder / manifest_name(0)
        content = manifest.read_bytes()
        manifest.write_bytes(content[: cut % len(content)])
        whole = content[: cut % len(content)].count(b"\n")
        assert len(list(read_all_shards(folder))) == whole
        run(folder, 0, 1, None, 3, 2)
        assert verify(folder) == [] and len(LatentDataset(folder)) == COUNT
