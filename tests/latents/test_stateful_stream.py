"""Streams through torchdata's StatefulDataLoader: interrupted anywhere, they continue with the very next batch."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ul_tokenizer import LatentDataset
from ul_tokenizer.latents.stream import LatentStream
from ul_tokenizer.latents.writer import LatentWriter


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> LatentDataset:
    """22 samples: 11 batches of 2."""
    folder = tmp_path_factory.mktemp("latents")
    with LatentWriter(folder, {"latent_channels": 2, "latent_logsnr": 5.0, "dtype": "float32"}, shard_samples=5) as w:
        w.append([f"{n}" for n in range(22)], torch.randn(22, 2, 1, 1))
    return LatentDataset(folder)


def loader(data: LatentDataset, workers: int, epoch: int = 0, persistent: bool = False) -> Any:
    library = pytest.importorskip("torchdata.stateful_dataloader")
    stream = data.stream(seed=1, batch_size=2)
    stream.set_epoch(epoch)
    return library.StatefulDataLoader(stream, batch_size=None, num_workers=workers, persistent_workers=persistent)


def ids(batches: Any) -> list[list[str]]:
    return [batch["id"] for batch in batches]


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")
@pytest.mark.parametrize(("workers", "stops"), [(0, (0, 1, 5, 10, 11)), (2, (1, 10))])
def test_a_loader_continues_in_the_middle_of_an_epoch(
    data: LatentDataset, workers: int, stops: tuple[int, ...]
) -> None:
    whole = [ids(loader(data, 0, epoch)) for epoch in (0, 1)]
    for stop in stops:
        first = loader(data, workers)
        batches = iter(first)
        assert ids(next(batches) for _ in range(stop)) == whole[0][:stop]
        state = json.loads(json.dumps(first.state_dict()))
        second = loader(data, workers)
        second.load_state_dict(state)
        assert ids(second) == whole[0][stop:]


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")
def test_workers_that_persist_go_on_to_the_next_epoch(data: LatentDataset) -> None:
    whole = [ids(loader(data, 0, epoch)) for epoch in (0, 1)]
    first = loader(data, 2, persistent=True)
    batches = iter(first)
    # The second worker has given its last batch, and the first one has one more: number 10.
    assert ids(next(batches) for _ in range(10)) == whole[0][:10]
    second = loader(data, 2, persistent=True)
    second.load_state_dict(first.state_dict())
    assert ids(second) == whole[0][10:]
    assert ids(second) == whole[1]


class Numbers:
    """A data set of numbers, in shards of two shapes."""

    def __init__(self, counts: list[int], seconds: list[bool]) -> None:
        ends = [sum(counts[: n + 1]) for n in range(len(counts))]
        self._parts: dict[tuple[int, ...], list[range]] = {}
        for end, count, second in zip(ends, counts, seconds, strict=True):
            self._parts.setdefault((1, 1, 2 if second else 1), []).append(range(end - count, end))

    @property
    def shapes(self) -> dict[tuple[int, ...], int]:
        return {shape: sum(map(len, parts)) for shape, parts in self._parts.items()}

    def ranges(self, shape: tuple[int, ...]) -> list[range]:
        return self._parts[shape]

    def __getitems__(self, indices: Any) -> list[dict[str, Any]]:
        return [{"id": str(index), "latent": torch.zeros(1, 1, 1)} for index in indices]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 9), st.booleans()), min_size=1, max_size=20),
    st.integers(1, 5),
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(0, 3),
    st.booleans(),
    st.data(),
)
def test_any_number_of_processes_and_workers_takes_every_sample_once(
    shards: list[tuple[int, bool]], batch: int, world: int, workers: int, epoch: int, shuffle: bool, data: st.DataObject
) -> None:
    numbers = Numbers([count for count, _ in shards], [second for _, second in shards])
    seen: list[str] = []
    for rank in range(world):
        parts = []
        for worker in range(workers):
            stream = LatentStream(numbers, 7, shuffle=shuffle, rank=rank, world_size=world, batch_size=batch)
            stream.set_epoch(epoch)
            parts.append(in_worker(stream, worker, workers, data.draw(st.integers(0, 3))))
        assert sum(map(len, parts)) == len(stream)
        seen += [name for part in parts for names in part for name in names]
    assert sorted(seen, key=int) == [str(n) for n in range(sum(count for count, _ in shards))]


def in_worker(stream: LatentStream, worker: int, workers: int, stop: int) -> list[list[str]]:
    """A worker's batches, interrupted after `stop` of them and continued from its state by another worker."""
    info = type("Info", (), {"id": worker, "num_workers": workers})()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ul_tokenizer.latents.stream.get_worker_info", lambda: info)
        batches = iter(stream)
        first = [batch["id"] for _, batch in zip(range(stop), batches, strict=False)]
        other = LatentStream(
            stream.dataset,
            stream.seed,
            shuffle=stream.shuffle,
            rank=stream.rank,
            world_size=stream.world_size,
            batch_size=stream.batch_size,
        )
        other.load_state_dict(stream.state_dict())
        return first + [batch["id"] for batch in other]
