"""Latent data sets: what is written is read back, at any kill, by any number of processes, in any order."""

from __future__ import annotations

import json
import os
import pickle
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ul_tokenizer import files
from ul_tokenizer.latents.dataset import LatentDataset
from ul_tokenizer.latents.integrity import merge, repair, verify
from ul_tokenizer.latents.manifest import read_shards
from ul_tokenizer.latents.statistics import channel_statistics
from ul_tokenizer.latents.writer import LatentWriter

HEADER = {"latent_channels": 3, "latent_logsnr": 5.0, "dtype": "float32", "autoencoder": "ul-tiny"}
ROOT = Path(__file__).parents[2]


def latents(count: int, shape: tuple[int, ...] = (3, 2, 4), seed: int = 0) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))


def write(folder: Path, count: int = 10, first: int = 0, shard_samples: int = 4, **header: Any) -> Tensor:
    z = latents(count + first)[first:]
    with LatentWriter(folder, {**HEADER, **header}, shard_samples=shard_samples) as writer:
        for i in range(0, count, 3):
            ids = [f"{first + j}.png" for j in range(i, min(i + 3, count))]
            writer.append(ids, z[i : i + 3], [{"label": j % 2} for j in range(len(ids))])
    return z


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


# ---------------------------------------------------------------- round trip


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    z = write(tmp_path)
    dataset = LatentDataset(tmp_path)
    assert len(dataset) == 10 and dataset.column_names == ("label",) and dataset.shapes == {(3, 2, 4): 10}
    assert [sample["id"] for sample in dataset] == [f"{i}.png" for i in range(10)]
    for i in (0, 3, 4, 9, -1):
        assert torch.equal(dataset[i]["latent"], z[i])
    assert [shard.shape[0] for shard in dataset.shards] == [4, 4, 2]
    with pytest.raises(IndexError, match="index must be below 10, got 10"):
        dataset[10]


def test_several_at_once_come_in_the_order_asked_for(tmp_path: Path) -> None:
    z = write(tmp_path)
    order = [9, 0, 5, 5, 1]
    samples = LatentDataset(tmp_path).__getitems__(order)
    assert [sample["id"] for sample in samples] == [f"{i}.png" for i in order]
    assert torch.equal(torch.stack([sample["latent"] for sample in samples]), z[order])


@pytest.mark.parametrize(("dtype", "most"), [("float32", 0), ("float16", 2e-3), ("bfloat16", 2e-2), ("int8", 2e-2)])
def test_what_rounding_costs_is_measured_and_said(tmp_path: Path, dtype: str, most: float) -> None:
    z = write(tmp_path, dtype=dtype)
    dataset = LatentDataset(tmp_path)
    read = torch.stack([sample["latent"] for sample in dataset])
    assert read.dtype == torch.float32
    error = (read - z).abs()
    assert float(error.max()) <= most
    assert max(shard.rounding["max"] for shard in dataset.shards) == pytest.approx(float(error.max()), abs=1e-7)


def test_shapes_and_columns_may_differ_between_samples(tmp_path: Path) -> None:
    clips = latents(2, (3, 5, 2, 2))
    with LatentWriter(tmp_path, HEADER) as writer:
        writer.append(["a", "b"], latents(2), [{"label": 1}, {"caption": "x"}])
        writer.append(["c", "d"], clips)
    dataset = LatentDataset(tmp_path)
    assert dataset.shapes == {(3, 2, 4): 2, (3, 5, 2, 2): 2}
    by_id = {sample.pop("id"): sample for sample in dataset}
    assert by_id["a"].keys() == {"latent", "label"} and by_id["b"].keys() == {"latent", "caption"}
    assert torch.equal(by_id["d"]["latent"], clips[1])


def test_statistics_are_exact_however_shards_divide_the_samples(tmp_path: Path) -> None:
    z = write(tmp_path, 11)
    statistics, exact = LatentDataset(tmp_path).statistics, channel_statistics([z])
    values = z.double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(statistics.mean, values.mean(1), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(statistics.std, values.std(1, correction=0), rtol=1e-12, atol=1e-14)
    assert torch.equal(statistics.minimum, values.amin(1)) and torch.equal(statistics.maximum, values.amax(1))
    assert torch.equal(statistics.histogram, exact.histogram) and int(statistics.histogram.sum()) == z.numel()


def test_normalising_gives_unit_statistics(tmp_path: Path) -> None:
    write(tmp_path, 40)
    z = torch.stack([sample["latent"] for sample in LatentDataset(tmp_path, normalize=True)])
    statistics = channel_statistics([z])
    torch.testing.assert_close(statistics.mean, torch.zeros(3).double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(statistics.std, torch.ones(3).double(), atol=1e-6, rtol=0)


def test_z_0_has_its_noise_level_and_depends_on_seed_epoch_and_id_alone(tmp_path: Path) -> None:
    write(tmp_path / "a", 10)
    write(tmp_path / "b", 5, first=5)
    a, b = LatentDataset(tmp_path / "a"), LatentDataset(tmp_path / "b")
    assert torch.equal(a.sample_z0(7, seed=1, epoch=2), b.sample_z0(2, seed=1, epoch=2))
    assert not torch.equal(a.sample_z0(7, 1, 2), a.sample_z0(7, 1, 3))
    noise = torch.stack([a.sample_z0(0, seed) - 0.99665 * a[0]["latent"] for seed in range(200)])
    assert float(noise.std()) == pytest.approx(0.08181, rel=0.05)
    with pytest.raises(ValueError, match="normalize must be False"):
        LatentDataset(tmp_path / "a", normalize=True).sample_z0(0, 0)


# ---------------------------------------------------------------- order


def stream_ids(dataset: LatentDataset, **options: Any) -> list[list[str]]:
    return [batch["id"] for batch in dataset.stream(**options)]


def test_an_epoch_is_every_sample_once_in_an_order_of_its_own(tmp_path: Path) -> None:
    write(tmp_path, 30)
    stream = LatentDataset(tmp_path).stream(seed=1, batch_size=4)
    epochs = [[name for batch in stream for name in batch["id"]] for _ in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(f"{i}.png" for i in range(30))
    assert epochs[0] != epochs[1]
    assert len(stream) == 8


@pytest.mark.parametrize("workers", [0, 2])
def test_processes_and_workers_share_the_same_batches_without_repetition(tmp_path: Path, workers: int) -> None:
    write(tmp_path, 30)
    dataset = LatentDataset(tmp_path)
    whole = stream_ids(dataset, seed=3, batch_size=4)
    parts = []
    for rank in range(3):
        stream = dataset.stream(3, rank=rank, world_size=3, batch_size=4)
        parts.append([batch["id"] for batch in DataLoader(stream, batch_size=None, num_workers=workers)])
    together = [parts[k % 3][k // 3] for k in range(len(whole))]
    assert together == whole


def test_a_stream_goes_on_where_it_stood(tmp_path: Path) -> None:
    write(tmp_path, 30)
    dataset = LatentDataset(tmp_path)
    stream = dataset.stream(seed=5, batch_size=4)
    batches = iter(stream)
    first = [next(batches)["id"] for _ in range(3)]
    state = json.loads(json.dumps(stream.state_dict()))
    other = dataset.stream(seed=5, batch_size=4)
    other.load_state_dict(state)
    rest = [batch["id"] for batch in other]
    assert first + rest == stream_ids(dataset, seed=5, batch_size=4)
    assert [batch["id"] for batch in other] != rest  # the next epoch


def test_workers_that_do_not_persist_are_told_the_epoch(tmp_path: Path) -> None:
    write(tmp_path, 30)
    dataset = LatentDataset(tmp_path)
    stream = dataset.stream(seed=5, batch_size=4)
    loader: Any = DataLoader(stream, batch_size=None, num_workers=1)
    other = dataset.stream(seed=5, batch_size=4)
    for epoch in range(2):
        stream.set_epoch(epoch)
        assert [batch["id"] for batch in loader] == [batch["id"] for batch in other]


def test_batches_have_one_shape_each(tmp_path: Path) -> None:
    with LatentWriter(tmp_path, HEADER) as writer:
        writer.append([f"a{i}" for i in range(7)], latents(7))
        writer.append([f"b{i}" for i in range(6)], latents(6, (3, 4, 2)))
    batches = list(LatentDataset(tmp_path).stream(batch_size=4))
    assert sorted(len(batch["id"]) for batch in batches) == [2, 3, 4, 4]
    assert {tuple(batch["latents"].shape[1:]) for batch in batches} == {(3, 2, 4), (3, 4, 2)}


def test_a_data_set_travels_to_worker_processes(tmp_path: Path) -> None:
    z = write(tmp_path)
    dataset = LatentDataset(tmp_path)
    assert torch.equal(dataset[0]["latent"], pickle.loads(pickle.dumps(dataset))[0]["latent"])
    loader: Any = DataLoader(dataset, batch_size=4, num_workers=2)
    assert torch.equal(torch.cat([batch["latent"] for batch in loader]), z)


# ---------------------------------------------------------------- going on


def test_a_second_run_knows_what_is_done_and_touches_no_finished_shard(tmp_path: Path) -> None:
    write(tmp_path, 8)
    before = {path.name: path.stat().st_mtime_ns for path in shards(tmp_path)}
    writer = LatentWriter(tmp_path, HEADER, shard_samples=4)
    assert len(writer.done_ids) == 8 and writer.done_ids.contains([f"{i}.png" for i in range(9)]) == [True] * 8 + [
        False
    ]
    with writer:
        writer.append(["new"], latents(1))
    after = {path.name: path.stat().st_mtime_ns for path in shards(tmp_path)}
    assert before.items() < after.items()
    assert len(LatentDataset(tmp_path)) == 9


def test_what_a_kill_left_is_removed(tmp_path: Path) -> None:
    write(tmp_path, 8)
    (tmp_path / "shard-r000-000002.safetensors").write_bytes(b"finished, but in no manifest")
    (tmp_path / "shard-r000-000003.tmp").write_bytes(b"half")
    manifest = tmp_path / "manifest-r000.jsonl"
    manifest.write_bytes(manifest.read_bytes() + b'{"file": "shard-r0')
    assert len(LatentDataset(tmp_path)) == 8  # readers need no repair
    write(tmp_path, 4, first=8)
    assert verify(tmp_path) == []
    assert len(LatentDataset(tmp_path)) == 12


CHILD = """
    import sys, torch
    from ul_tokenizer.latents.writer import LatentWriter
    z = torch.randn(60, 3, 2, 4, generator=torch.Generator().manual_seed(0))
    header = {"latent_channels": 3, "latent_logsnr": 5.0, "dtype": "float32", "autoencoder": "ul-tiny"}
    print("ready", flush=True)
    with LatentWriter(sys.argv[1], header, shard_samples=3) as writer:
        for i in range(60):
            if f"{i}.png" not in writer.done_ids:
                writer.append([f"{i}.png"], z[i : i + 1], [{"label": i}])
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
def test_kills_at_any_moment_lose_and_double_nothing(tmp_path: Path) -> None:
    delays = random.Random(0)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", textwrap.dedent(CHILD), str(tmp_path)]
    kills = 0
    for _ in range(8):
        child = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None and child.stdout.readline() == "ready\n"
        time.sleep(delays.uniform(0, 0.05))
        child.kill()
        kills += child.wait() == -signal.SIGKILL
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    assert kills >= 3
    assert verify(tmp_path) == []
    by_id = {sample["id"]: sample for sample in LatentDataset(tmp_path)}
    assert by_id.keys() == {f"{i}.png" for i in range(60)}
    z = latents(60)
    assert all(torch.equal(by_id[f"{i}.png"]["latent"], z[i]) and by_id[f"{i}.png"]["label"] == i for i in range(60))


def test_several_processes_write_one_data_set(tmp_path: Path) -> None:
    z = latents(9)
    for rank in range(3):
        with LatentWriter(tmp_path, HEADER, rank, 3) as writer:
            writer.append([f"{i}.png" for i in range(rank, 9, 3)], z[rank::3])
    by_id = {sample["id"]: sample["latent"] for sample in LatentDataset(tmp_path)}
    assert all(torch.equal(by_id[f"{i}.png"], z[i]) for i in range(9))
    done = LatentWriter(tmp_path, HEADER).done_ids
    assert len(done) == 9 and all(name in done for name in by_id)


def test_fewer_processes_clear_up_after_more(tmp_path: Path) -> None:
    write(tmp_path, 4)
    for rank in (1, 2):
        LatentWriter(tmp_path, HEADER, rank, 3)
        (tmp_path / f"shard-r00{rank}-000000.safetensors").write_bytes(b"half")
    LatentWriter(tmp_path, HEADER, 0, 2)
    assert [path.name[:10] for path in shards(tmp_path)] == ["shard-r000", "shard-r001"]


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(("name", "value"), [("autoencoder", "other"), ("latent_logsnr", 4.0), ("dtype", "float16")])
def test_another_configuration_is_refused_by_the_field_that_differs(tmp_path: Path, name: str, value: Any) -> None:
    write(tmp_path)
    with pytest.raises(ValueError, match=f"must have the {name} {value!r}, got {HEADER[name]!r}"):
        LatentWriter(tmp_path, {**HEADER, name: value})
    with pytest.raises(ValueError, match=f"must have the {name} {value!r}, got {HEADER[name]!r}"):
        LatentDataset(tmp_path, expected={name: value})
    LatentWriter(tmp_path, {**HEADER, "library_version": "9.9"})  # which may change in between
    LatentDataset(tmp_path, expected={"autoencoder": "ul-tiny"})


@pytest.mark.parametrize(
    ("ids", "z", "words"),
    [
        (["0.png"], latents(1), "ids must be unique, got 0.png twice"),
        (["a", "a"], latents(2), "ids must be unique, got one twice"),
        (["a"], latents(2), "ids, latents and columns must have the same length, got 1, 2, 1"),
        (["a"], latents(1, (4, 2, 4)), r"latents must be \(B, 3, \[t,\] h, w\), got \(1, 4, 2, 4\)"),
        (["a"], latents(1) * torch.nan, "latents must be finite"),
    ],
)
def test_bad_samples_are_refused(tmp_path: Path, ids: list[str], z: Tensor, words: str) -> None:
    write(tmp_path)
    with pytest.raises(ValueError, match=words):
        LatentWriter(tmp_path, HEADER).append(ids, z)


def test_latents_beyond_half_precision_are_refused_before_they_become_infinite(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match="latents must lie within the range of float16, got 100000"),
        LatentWriter(tmp_path, {**HEADER, "dtype": "float16"}) as writer,
    ):
        writer.append(["a"], torch.full((1, 3, 2, 2), 1e5))


def damage(folder: Path, kind: str) -> None:
    manifest, header, shard = folder / "manifest-r000.jsonl", folder / "header.json", shards(folder)[0]
    if kind == "no header":
        header.unlink()
    elif kind == "version":
        header.write_text(header.read_text().replace('"version": 1', '"version": 2'))
    elif kind == "header":
        header.write_text(header.read_text()[:20])
    elif kind == "line":
        manifest.write_text("nonsense\n" + manifest.read_text())
    elif kind == "outside":
        manifest.write_text(manifest.read_text().replace(shard.name, "../" + shard.name))
    elif kind == "double":
        manifest.write_text(manifest.read_text().replace('"1.png"', '"0.png"'))
    elif kind == "empty":
        manifest.unlink()


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("no header", "holds no latent data set: there is no header.json in it"),
        ("version", "header.json must be of version 1, got 2: another ul_tokenizer wrote it"),
        ("header", "must be the header of a latent data set"),
        ("line", "manifest-r000.jsonl is damaged: line 1 does not describe a shard"),
        ("outside", r"line 1 names '../shard-r000-000000.safetensors', which is not a shard's name"),
        ("double", "it has the id '0.png' twice"),
        ("empty", "is empty: it has no finished shard"),
    ],
)
def test_a_damaged_data_set_is_one_sentence(tmp_path: Path, kind: str, words: str) -> None:
    write(tmp_path)
    damage(tmp_path, kind)
    with pytest.raises(ValueError, match=words) as caught:
        LatentDataset(tmp_path)
    assert "\n" not in str(caught.value)


def test_what_is_neither_a_folder_nor_a_hub_id_is_one_sentence() -> None:
    with pytest.raises(ValueError, match=r"Latent data set /no/such is neither an existing folder nor a hub id"):
        LatentDataset("/no/such")


@pytest.mark.parametrize("kind", ["flipped", "short", "missing"])
def test_a_damaged_shard_is_found_and_made_again(tmp_path: Path, kind: str) -> None:
    z = write(tmp_path)
    path = shards(tmp_path)[1]
    content = bytearray(path.read_bytes())
    if kind == "flipped":
        content[-5] ^= 1
        path.write_bytes(content)
    elif kind == "short":
        path.write_bytes(content[:-7])
    else:
        path.unlink()
    assert [problem.file for problem in verify(tmp_path)] == [path.name]
    assert [problem.file for problem in repair(tmp_path)] == [path.name]
    assert verify(tmp_path) == []
    writer = LatentWriter(tmp_path, HEADER)
    lost = [name for name in (f"{i}.png" for i in range(10)) if name not in writer.done_ids]
    assert lost == ["4.png", "5.png", "6.png", "7.png"]
    with writer:
        writer.append(lost, z[4:8])
    assert verify(tmp_path) == [] and len(LatentDataset(tmp_path)) == 10


def test_a_short_or_missing_shard_is_one_sentence_when_it_is_read(tmp_path: Path) -> None:
    write(tmp_path)
    path = shards(tmp_path)[0]
    path.write_bytes(path.read_bytes()[:-7])
    dataset = LatentDataset(tmp_path)
    with pytest.raises(
        ValueError, match=r"shard-r000-000000.safetensors is missing or damaged: .*; run `latents verify`"
    ):
        dataset[0]
    assert dataset[5]["id"] == "5.png"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_full_disk_keeps_what_was_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, 8)
    manifest = tmp_path / "manifest-r000.jsonl"
    content = manifest.read_bytes()
    writer = LatentWriter(tmp_path, HEADER)
    full = tmp_path / ".shard-r000-000002.safetensors.0.tmp"
    full.symlink_to("/dev/full")
    monkeypatch.setattr(files, "temporary_path", lambda path: full)
    with pytest.raises(OSError, match="No space left"), writer:
        writer.append(["new"], latents(1))
    assert manifest.read_bytes() == content
    assert verify(tmp_path) == []


# ---------------------------------------------------------------- merging


def test_data_sets_merge(tmp_path: Path) -> None:
    z = torch.cat([write(tmp_path / "a", 5), write(tmp_path / "b", 5, first=5)])
    assert merge([tmp_path / "a", tmp_path / "b"], tmp_path / "c") == 10
    dataset = LatentDataset(tmp_path / "c")
    assert torch.equal(torch.stack([sample["latent"] for sample in dataset]), z)
    assert verify(tmp_path / "c") == []
    assert [shard.file for shard in read_shards(tmp_path / "c" / "manifest-r000.jsonl")] == sorted(
        path.name for path in shards(tmp_path / "c")
    )


def test_data_sets_that_do_not_fit_do_not_merge(tmp_path: Path) -> None:
    write(tmp_path / "a")
    write(tmp_path / "b", first=20, autoencoder="other")
    with pytest.raises(ValueError, match="must have the autoencoder 'ul-tiny', got 'other'"):
        merge([tmp_path / "a", tmp_path / "b"], tmp_path / "c")
    with pytest.raises(ValueError, match=r"sources must not share samples: .* its id '0.png' is in"):
        merge([tmp_path / "a", tmp_path / "a"], tmp_path / "c")
    with pytest.raises(ValueError, match="output must be a new folder"):
        merge([tmp_path / "a"], tmp_path / "b")
