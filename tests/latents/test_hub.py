"""Latent data sets as repositories of the hub, against one on loopback."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.hub.loopback_hub import Fault, LoopbackHub
from ul_tokenizer import LatentDataset
from ul_tokenizer.hub import errors
from ul_tokenizer.hub.upload import Target
from ul_tokenizer.latents.hub import pull_latents, push_latents
from ul_tokenizer.latents.manifest import make_header
from ul_tokenizer.latents.writer import LatentWriter

HEADER = {"autoencoder": "me/model", "latent_channels": 4, "latent_logsnr": 5.0, "dtype": "float32"}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three shards of two samples."""
    folder = tmp_path / "data"
    torch.manual_seed(0)
    with LatentWriter(folder, make_header(**HEADER), shard_samples=2) as writer:
        writer.append([f"{n}.jpg" for n in range(6)], torch.randn(6, 4, 2, 2), [{"label": n % 3} for n in range(6)])
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def samples(dataset: LatentDataset) -> list[dict[str, Any]]:
    return [{**sample, "latent": sample["latent"].tolist()} for sample in dataset]


def test_what_is_pushed_is_read_from_the_hub_and_pulled_into_a_folder(
    hub: LoopbackHub, login: str, data: Path, tmp_path: Path
) -> None:
    commit = push_latents(data, Target("tester/latents"), "cc0-1.0")
    repo = hub.repo("tester/latents", "dataset")
    assert (repo.head.oid, len(repo.commits)) == (commit, 2)
    there = LatentDataset("tester/latents")
    assert samples(there) == samples(LatentDataset(data))
    pulled = pull_latents("tester/latents", tmp_path / "pulled")
    assert pulled.commit == commit
    assert samples(LatentDataset(pulled.folder)) == samples(LatentDataset(data))
    card = repo.head.files["README.md"].content.decode()
    for text in (
        "license: cc0-1.0",
        "| samples | 6 |",
        "| latents | 4×2×2 |",
        "me/model",
        'LatentDataset("tester/latents")',
    ):
        assert text in card


def test_a_shard_is_fetched_when_it_is_first_touched(hub: LoopbackHub, login: str, data: Path) -> None:
    push_latents(data, Target("tester/latents"))
    dataset = LatentDataset("tester/latents")
    hub.log.clear()
    dataset[3], dataset[2]
    assert {path.rpartition("/")[2] for _, path in hub.log if "/resolve/" in path} == {"shard-r000-000001.safetensors"}
    hub.log.clear()
    dataset[3], LatentDataset("tester/latents", dataset._files.revision)[2]  # type: ignore[attr-defined]
    assert hub.log == []


def test_a_pinned_revision_stays_what_it_was(hub: LoopbackHub, login: str, data: Path) -> None:
    first = push_latents(data, Target("tester/latents"))
    with LatentWriter(data, make_header(**HEADER), shard_samples=2) as writer:
        writer.append(["new.jpg"], torch.randn(1, 4, 2, 2))
    push_latents(data, Target("tester/latents"))
    assert (len(LatentDataset("tester/latents", first)), len(LatentDataset("tester/latents"))) == (6, 7)


def test_a_private_data_set_needs_a_token(hub: LoopbackHub, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {path.name: path.read_bytes() for path in data.iterdir()}
    hub.add("tester/latents", files, kind="dataset", is_private=True)
    with pytest.raises(errors.RepositoryMissingError):
        LatentDataset("tester/latents", token=False)
    dataset = LatentDataset("tester/latents", token=hub.read_token)
    assert samples(dataset) == samples(LatentDataset(data))


def test_downloads_go_to_the_cache_that_is_named(
    hub: LoopbackHub, login: str, data: Path, cache: Path, tmp_path: Path
) -> None:
    push_latents(data, Target("tester/latents"))
    dataset = LatentDataset("tester/latents", cache_dir=tmp_path / "other")
    assert samples(dataset) == samples(LatentDataset(data))
    assert not cache.exists() and len(list((tmp_path / "other").rglob("*.safetensors"))) == 3


def test_local_files_only_asks_nothing(hub: LoopbackHub, login: str, data: Path) -> None:
    push_latents(data, Target("tester/latents"))
    with pytest.raises(errors.OfflineError):
        LatentDataset("tester/latents", local_files_only=True)
    LatentDataset("tester/latents")[0]
    hub.log.clear()
    dataset = LatentDataset("tester/latents", local_files_only=True)
    assert dataset[1]["id"] == "1.jpg" and hub.log == []
    with pytest.raises(errors.OfflineError):  # the second shard was never downloaded
        dataset[2]


def test_wrong_bytes_on_the_way_are_seen(hub: LoopbackHub, login: str, data: Path) -> None:
    push_latents(data, Target("tester/latents"))
    hub.faults.append(Fault("corrupt", "shard-r000-000000", times=2))
    with pytest.raises(errors.DamagedDownloadError):
        LatentDataset("tester/latents")[0]
    assert LatentDataset("tester/latents")[0]["id"] == "0.jpg"


def test_a_data_set_that_is_not_whole_is_not_pushed(hub: LoopbackHub, login: str, data: Path) -> None:
    shard = next(data.glob("*.safetensors"))
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    with pytest.raises(ValueError, match="is not whole"):
        push_latents(data, Target("tester/latents"))
    assert hub.log == []


def test_a_repository_without_latents_and_an_existing_folder_are_refused(
    hub: LoopbackHub, login: str, data: Path, tmp_path: Path
) -> None:
    hub.add("owner/other", {"x.txt": b""}, kind="dataset")
    for read in (LatentDataset, lambda name: pull_latents(name, tmp_path / "new")):
        with pytest.raises(ValueError, match="holds no latent data set"):
            read("owner/other")
    assert not (tmp_path / "new").exists()
    with pytest.raises(ValueError, match="must be a new folder"):
        pull_latents("owner/other", data)
    with pytest.raises(errors.RepositoryMissingError):
        LatentDataset("owner/none")
