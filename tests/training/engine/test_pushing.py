"""Pushing while training goes on, against a hub on loopback."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from tests.hub.loopback_hub import Fault, LoopbackHub
from ul_tokenizer import UnifiedLatentsAutoencoder, UnifiedLatentsPipeline
from ul_tokenizer.models.repository import load_prior
from ul_tokenizer.training.command import run_command

Flags = Callable[..., list[str]]


def test_models_are_pushed_at_checkpoints_and_at_the_end_with_a_card(
    hub: LoopbackHub, login: str, smallest_flags: Flags, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    names = {"push_to_hub": True, "hub_model_id": "tester/trained", "hub_private_repo": True}
    flags = smallest_flags(run, checkpointing_steps=1, validation_steps=2, **names, hub_token=hub.token)
    assert run_command("autoencoder", flags) == 0
    repo = hub.repo("tester/trained")
    titles = [commit.title for commit in repo.commits.values()]
    assert titles[0] == "initial commit"
    assert titles[-1] == "Step 2"
    assert repo.is_private
    assert {"README.md", "config.json", "config.yaml", "prior/config.json"} <= set(repo.head.files)
    assert not any("checkpoint" in name or name == "metrics.jsonl" for name in repo.head.files)
    card = repo.head.files["README.md"].content.decode()
    assert "after step 2" in card
    assert "| psnr 1 step |" in card
    assert hub.token not in card
    assert "hub_token" not in yaml.safe_load((run / "config.yaml").read_text())
    pulled = UnifiedLatentsAutoencoder.from_pretrained("tester/trained", cache_dir=tmp_path / "cache", token=hub.token)
    there = UnifiedLatentsAutoencoder.from_pretrained(run)
    assert all(torch.equal(weight, pulled.state_dict()[key]) for key, weight in there.state_dict().items())
    assert load_prior("tester/trained", cache_dir=tmp_path / "cache", token=hub.token).config.in_channels == 4


def test_a_base_model_is_pushed_as_a_pipeline(
    hub: LoopbackHub, login: str, smallest_flags: Flags, tmp_path: Path, images: Path, flags: Flags
) -> None:
    assert run_command("autoencoder", smallest_flags(tmp_path / "stage1")) == 0
    arguments = {
        "pretrained_autoencoder": tmp_path / "stage1",
        "train_data_dir": images,
        "output_dir": tmp_path / "base",
        "preset": "ul-base-tiny",
        "resolution": 16,
        "scale_min": 1.0,
        "train_batch_size": 2,
        "max_train_steps": 1,
        "num_validation_images": 2,
        "validation_inference_steps": 1,
        "push_to_hub": True,
    }
    assert run_command("base", flags(**arguments)) == 0
    pipeline = UnifiedLatentsPipeline.from_pretrained("tester/base", cache_dir=tmp_path / "cache")
    assert pipeline.commit_hash == hub.repo("tester/base").head.oid


def test_without_the_right_to_write_nothing_is_trained(
    hub: LoopbackHub, smallest_flags: Flags, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = smallest_flags(tmp_path / "run", push_to_hub=True, hub_token=hub.read_token)
    assert run_command("autoencoder", flags) == 1
    said = capsys.readouterr().err
    assert "error: Access to hub repository run was denied" in said
    assert "step 1" not in said
    assert hub.read_token not in said


def test_a_push_that_fails_on_the_way_costs_the_training_nothing(
    hub: LoopbackHub, login: str, smallest_flags: Flags, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.faults.append(Fault("unavailable", "/commit/", times=1000))
    flags = smallest_flags(tmp_path / "run", checkpointing_steps=1, push_to_hub=True)
    assert run_command("autoencoder", flags) == 1
    said = capsys.readouterr().err
    assert "Training goes on." in said
    assert "Trained to step 2" in said
    assert f"`ul-tokenizer push {tmp_path / 'run'} tester/run` tries again" in said
    assert UnifiedLatentsAutoencoder.from_pretrained(tmp_path / "run").config.latent_channels == 4
