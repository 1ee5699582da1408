"""Ids and columns in few bytes: what is packed comes back, from memory and from a mapped file, for every process."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ul_tokenizer import LatentDataset
from ul_tokenizer.latents import index as latent_index
from ul_tokenizer.latents.ids import IdSet, RepeatedIds
from ul_tokenizer.latents.manifest import Shard, read_all_shards
from ul_tokenizer.latents.packed_shards import PackedShards, pack_shards
from ul_tokenizer.latents.packed_values import pack, unpack
from ul_tokenizer.latents.writer import LatentWriter

HEADER = {"latent_channels": 2, "latent_logsnr": 5.0, "dtype": "float32"}

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters(codec=None))
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=5
)
LISTS = st.one_of(
    *(st.lists(kind, min_size=1, max_size=6) for kind in (JSON, st.text(), st.integers(), st.floats(allow_nan=False))),
    *(st.lists(kind, min_size=1, max_size=6) for kind in (st.booleans(), st.integers(-300, 300), st.just("same"))),
)


def typed(values: Any) -> Any:
    """Values with their types, so that True, 1 and 1.0 differ, and −0.0 from 0.0."""
    return [(type(value), json.dumps(value)) for value in values]


@given(LISTS)
def test_values_come_back_with_their_types(values: list[Any]) -> None:
    kind, content = pack(values)
    packed = unpack(kind, np.frombuffer(content, np.uint8), len(values))
    assert typed(packed) == typed(values) and len(packed) == len(values)
    assert typed([packed[i] for i in range(-len(values), 0)]) == typed(values)
    assert typed(packed[1:]) == typed(values[1:])
    with pytest.raises(IndexError):
        packed[len(values)]


def test_what_repeats_or_is_small_takes_few_bytes() -> None:
    assert len(pack(["a caption"] * 1000)[1]) < 20
    assert len(pack(list(range(100)) * 10)[1]) == 1000
    assert len(pack([f"{n:08d}.jpg" for n in range(1000)])[1]) == 1000 * 12 + 1001 * 4


def write(folder: Path, count: int = 20, first: int = 0) -> None:
    z = torch.randn(count + first, 2, 2, 2, generator=torch.Generator().manual_seed(0))[first:]
    with LatentWriter(folder, HEADER, shard_samples=3) as writer:
        for n in range(count):
            columns = {"label": n % 3, **({"caption": f"no. {n}"} if n % 2 else {})}
            writer.append([f"{first + n}.jpg"], z[n : n + 1], [columns])


def everything(dataset: LatentDataset) -> list[dict[str, Any]]:
    return [{**sample, "latent": sample["latent"].tolist()} for sample in dataset]


def test_packed_shards_are_those_of_the_manifests(tmp_path: Path) -> None:
    write(tmp_path)
    file = io.BytesIO()
    pack_shards(read_all_shards(tmp_path), file)
    packed, shards = PackedShards(file.getvalue()), list(read_all_shards(tmp_path))
    assert [shard.to_line() for shard in packed] == [shard.to_line() for shard in shards]
    assert packed[-1].to_line() == shards[-1].to_line() and packed[1:3][1].ids == shards[2].ids
    assert packed.column_names == ("label", "caption") and packed.shapes == [(2, 2, 2)]
    with pytest.raises(ValueError, match="is not the index"):
        PackedShards(b"something else entirely")


# ---------------------------------------------------------------- in a mapped file


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Every data set counts as large."""
    monkeypatch.setattr(latent_index, "IN_MEMORY_BYTES", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield tmp_path / "cache" / "ul_tokenizer" / "latent-index"


def test_a_mapped_index_gives_the_same_data_set(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "data")
    mapped = [LatentDataset(tmp_path / "data") for _ in range(2)]  # the second one finds the file
    assert len(list(cache.iterdir())) == 1
    monkeypatch.setattr(latent_index, "IN_MEMORY_BYTES", 10**9)
    in_memory = LatentDataset(tmp_path / "data")
    for dataset in mapped:
        assert everything(dataset) == everything(in_memory)
        assert dataset.shapes == in_memory.shapes and dataset.id(-1) == "19.jpg"
        assert [batch["id"] for batch in dataset.stream(3)] == [batch["id"] for batch in in_memory.stream(3)]


def test_the_manifests_are_read_once(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "data")
    LatentDataset(tmp_path / "data")
    monkeypatch.setattr(latent_index, "read_shards", lambda path: pytest.fail(f"{path} is read again"))
    assert len(LatentDataset(tmp_path / "data")) == 20


def test_other_processes_get_a_path_and_not_the_data(tmp_path: Path, cache: Path) -> None:
    write(tmp_path / "data", 300)
    dataset = LatentDataset(tmp_path / "data")
    content = pickle.dumps(dataset)
    assert len(content) < 2000
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(everything, (dataset,)) == everything(dataset)


def test_a_data_set_that_grew_has_a_new_index_and_old_ones_stay_for_their_users(tmp_path: Path, cache: Path) -> None:
    write(tmp_path / "data", 6)
    before = LatentDataset(tmp_path / "data")
    write(tmp_path / "data", 6, first=6)
    assert len(LatentDataset(tmp_path / "data")) == 12
    assert len(pickle.loads(pickle.dumps(before))) == 6
    for path in cache.iterdir():
        os.utime(path, (0, 0))  # unused for decades
    write(tmp_path / "data", 6, first=12)
    assert len(LatentDataset(tmp_path / "data")) == 18
    assert len(list(cache.iterdir())) == 1


def test_a_damaged_index_is_made_again(tmp_path: Path, cache: Path) -> None:
    write(tmp_path / "data")
    LatentDataset(tmp_path / "data")
    (path,) = cache.iterdir()
    path.write_bytes(b"half of it")
    assert len(everything(LatentDataset(tmp_path / "data"))) == 20


def test_a_cache_that_cannot_be_written_is_replaced_by_memory(tmp_path: Path, cache: Path) -> None:
    write(tmp_path / "data")
    cache.parent.parent.write_text("a file where the folder should be")
    assert len(everything(LatentDataset(tmp_path / "data"))) == 20


def test_an_id_that_stands_twice_is_seen_and_leaves_no_index(tmp_path: Path, cache: Path) -> None:
    write(tmp_path / "data")
    manifest = tmp_path / "data" / "manifest-r000.jsonl"
    manifest.write_text(manifest.read_text().replace('"17.jpg"', '"4.jpg"'))
    with pytest.raises(ValueError, match=r"it has the id '4\.jpg' twice"):
        LatentDataset(tmp_path / "data")
    assert list(cache.iterdir()) == []


# ---------------------------------------------------------------- ids


@given(st.lists(st.lists(st.text(max_size=3), max_size=5), max_size=6))
def test_repeated_ids_are_all_found(groups: list[list[str]]) -> None:
    repeated = RepeatedIds()
    for names in groups:
        repeated.add(names)
    first: dict[str, int] = {}
    expected = []
    for number, names in enumerate(groups):
        for name in names:
            if name in first:
                expected.append((number, name, first[name]))
            first.setdefault(name, number)
    assert list(repeated.find(groups)) == expected


@settings(deadline=None)
@given(st.lists(st.text(max_size=4)), st.lists(st.lists(st.text(max_size=4), max_size=5)), st.text(max_size=4))
def test_an_id_set_knows_what_was_put_into_it(first: list[str], more: list[list[str]], other: str) -> None:
    ids, plain = IdSet([first]), set(first)
    for names in more:
        ids.update(names)
        plain |= set(names)
    assert len(ids) == len(plain)
    assert all(ids.contains(list(plain))) and (other in ids) == (other in plain)


def test_an_id_set_that_grows_is_sorted_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ul_tokenizer.latents.ids._FEW", 8)
    ids = IdSet()
    for n in range(0, 100, 2):
        ids.update([str(n), str(n + 1)])
    assert len(ids) == 100 and ids.contains(["0", "57", "99", "100", "-1"]) == [True, True, True, False, False]


def test_a_shard_without_columns_is_one(tmp_path: Path) -> None:
    shard = Shard("shard-r000-000000.safetensors", "0" * 64, 1, (2, 2, 1, 1), "float32", ["a", "b"])
    file = io.BytesIO()
    pack_shards([shard], file)
    assert PackedShards(file.getvalue())[0] == shard


def test_reading_in_any_order_decodes_a_shard_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with LatentWriter(tmp_path, HEADER, shard_samples=1) as writer:
        writer.append([f"{n}.png" for n in range(600)], torch.zeros(600, 2, 1, 1), [{}] * 600)
    dataset, decoded = LatentDataset(tmp_path), list[int]()
    decode = PackedShards._decode

    def counted(self: PackedShards, number: int) -> Shard:
        decoded.append(number)
        return decode(self, number)

    monkeypatch.setattr(PackedShards, "_decode", counted)
    for _ in range(2):
        assert [dataset[n]["id"] for n in range(600)] == [f"{n}.png" for n in range(600)]
        dataset.__getitems__(range(600))
    assert decoded == list(range(600))
