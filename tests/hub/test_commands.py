"""`ul-tokenizer push`, `pull`, `hub list` and `latents push|pull`, against a hub on loopback."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from tests.hub.loopback_hub import LoopbackHub
from ul_tokenizer import LatentDataset, UnifiedLatentsAutoencoder
from ul_tokenizer.cli import app
from ul_tokenizer.models.presets import build_autoencoder, build_prior


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    build_autoencoder("ul-tiny-f8").save_pretrained(tmp_path / "model")
    build_prior("ul-tiny-f8").save_pretrained(tmp_path / "model" / "prior")
    return tmp_path / "model"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    return tmp_path / "cache"


def ul(*words: object, status: int = 0) -> Any:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == status, result.output
    return result


def test_a_folder_goes_to_the_hub_and_comes_back(hub: LoopbackHub, login: str, folder: Path, tmp_path: Path) -> None:
    pushed = ul("push", folder, "model", "--private", "-m", "Hello", "--license", "mit")
    repo = hub.repo("tester/model")
    assert pushed.stdout.strip() == repo.head.oid
    assert (repo.is_private, repo.head.title) == (True, "Hello")
    pulled = ul("pull", "tester/model", "-o", tmp_path / "pulled", "--revision", repo.head.oid)
    assert pulled.stdout.strip() == repo.head.oid
    one, two = (UnifiedLatentsAutoencoder.from_pretrained(path).state_dict() for path in (folder, tmp_path / "pulled"))
    assert all(torch.equal(weight, two[key]) for key, weight in one.items())
    assert "license: mit" in (tmp_path / "pulled" / "README.md").read_text()
    assert "must be a new folder" in ul("pull", "tester/model", "-o", tmp_path / "pulled", status=1).stderr


def test_a_bundled_pipeline_goes_there_whole(hub: LoopbackHub, login: str, tmp_path: Path) -> None:
    ul("push", "ul-fashion", "fashion")
    names = set(hub.repo("tester/fashion").head.files)
    assert {
        "model_index.json",
        "vae/prior/config.json",
        "pipeline.py",
        "transformer/ul_tokenizer.py",
        "grid.png",
    } <= names
    ul("pull", "tester/fashion", "-o", tmp_path / "pulled")
    assert not list((tmp_path / "pulled").rglob("*.py"))
    out = tmp_path / "grid.png"
    ul("generate", "--model", tmp_path / "pulled", "--class", "7", "--num", "2", "--steps", "2", "-o", out)
    assert out.is_file()


def test_info_describes_a_model_of_the_hub(hub: LoopbackHub, login: str, folder: Path) -> None:
    ul("push", folder, "model", "--license", "mit")
    (facts,) = json.loads(ul("info", "tester/model", "--json").stdout)["results"]
    assert (facts["from"], facts["revision"]) == ("hub", hub.repo("tester/model").head.oid)
    assert facts["license"] == "mit"


def test_the_list_has_bundled_and_cached_models(hub: LoopbackHub, login: str, folder: Path) -> None:
    ul("push", folder, "model", "--license", "mit")
    UnifiedLatentsAutoencoder.from_pretrained("tester/model")
    hub.add("owner/foreign", {"config.json": b'{"_class_name": "Other"}'})
    rows = {row["name"]: row for row in json.loads(ul("hub", "list", "--json").stdout)["results"]}
    assert {"ul-photo-f8", "ul-fashion", "ul-video", "tester/model"} == set(rows)
    row = rows["tester/model"]
    assert (row["origin"], row["license"], row["revision"]) == ("cached", "mit", hub.repo("tester/model").head.oid)
    assert row["bytes"] > 100_000
    table = ul("hub", "list").stdout
    assert "ul-fashion" in table and "tester/model" in table


def test_latents_go_to_the_hub_and_come_back(hub: LoopbackHub, login: str, folder: Path, tmp_path: Path) -> None:
    images = Path(__file__).parents[2] / "examples" / "images"
    ul("encode-dataset", images, "-o", tmp_path / "latents", "--model", folder, "--resolution", 32)
    commit = ul("latents", "push", tmp_path / "latents", "photos").stdout.strip()
    assert commit == hub.repo("tester/photos", "dataset").head.oid
    ul("latents", "pull", "tester/photos", "-o", tmp_path / "pulled")
    assert [s["id"] for s in LatentDataset(tmp_path / "pulled")] == [
        s["id"] for s in LatentDataset(tmp_path / "latents")
    ]
    assert "samples" in ul("latents", "info", "tester/photos").stdout


def test_a_data_set_of_the_hub_is_encoded_by_threads_and_by_processes_alike(
    hub: LoopbackHub, login: str, folder: Path, tmp_path: Path
) -> None:
    datasets = pytest.importorskip("datasets", reason="the extra `data` is not installed")
    photos = sorted((Path(__file__).parents[2] / "examples" / "images").glob("*.jpg")) * 3
    rows = {"image": [{"bytes": photo.read_bytes(), "path": None} for photo in photos], "label": [0, 1, 0] * 3}
    kinds = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    table = io.BytesIO()
    datasets.Dataset.from_dict(rows, features=kinds).to_parquet(table, batch_size=2)
    hub.add("owner/photos", {"data/train.parquet": table.getvalue()}, kind="dataset", is_private=True)
    for workers in (0, 2):
        out = tmp_path / f"latents-{workers}"
        options = ("--model", folder, "--resolution", 32, "--batch-size", 4, "--workers", workers)
        ul("encode-dataset", "owner/photos", "-o", out, *options)
    one, two = ({s["id"]: s for s in LatentDataset(tmp_path / f"latents-{workers}")} for workers in (0, 2))
    assert one.keys() == two.keys() == {f"owner/photos/train[{n}]" for n in range(9)}
    assert all(torch.equal(sample["latent"], two[name]["latent"]) for name, sample in one.items())
    assert [one[f"owner/photos/train[{n}]"]["label"] for n in range(3)] == [0, 1, 0]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["push", "nowhere", "model"], "SRC must be a folder that exists or a bundled name"),
        (["push", ".", "model"], "holds no model"),
        (["pull", "a b/c", "-o", "new"], "nor a hub id"),
        (["pull", "owner/none", "-o", "new"], "neither a local folder nor a repository of the hub"),
        (["latents", "push", ".", "x"], "holds no latent data set"),
        (["latents", "pull", "owner/none", "-o", "new"], "neither a local folder nor a repository of the hub"),
    ],
)
def test_what_is_wrong_is_one_sentence(
    hub: LoopbackHub, words: list[str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = ul(*words, status=1).stderr
    assert expected in said
    assert said.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_without_a_token_the_way_is_told(hub: LoopbackHub, folder: Path) -> None:
    assert "log in with `hf auth login`" in ul("push", folder, "model", status=1).stderr
