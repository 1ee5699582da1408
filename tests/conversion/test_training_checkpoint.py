"""Checkpoints and sharded state dicts to loadable repositories."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint.state_dict_saver as saver
from huggingface_hub import save_torch_state_dict
from PIL import Image
from safetensors.torch import load_file

from ul_tokenizer import UnifiedLatentsAutoencoder, UnifiedLatentsPipeline, UnifiedLatentsTransformer
from ul_tokenizer.models.presets import build_base
from ul_tokenizer.training.command import Target, run_command

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of each stage, with a checkpoint whose averages differ from its weights."""
    root = tmp_path_factory.mktemp("runs")
    (root / "images").mkdir()
    for n in range(4):
        pixels = np.random.default_rng(n).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "images" / f"{n}.png")
    shared: dict[str, Any] = {
        "train_data_dir": root / "images",
        "resolution": 16,
        "scale_min": 1.0,
        "train_batch_size": 2,
    }
    shared |= {"max_train_steps": 3, "num_validation_images": 2, "validation_inference_steps": 1, "lr_warmup_steps": 0}
    shared |= {"validation_fraction": 0.5, "learning_rate": 0.01}
    shared |= {"ema_decay": "0.999,0.1", "ema_std": "0.05,0.1"}
    stage1 = {**shared, "preset": "ul-tiny-f8", "output_dir": root / "stage1"}
    stage2 = {
        **shared,
        "preset": "ul-base-tiny",
        "output_dir": root / "base",
        "pretrained_autoencoder": root / "stage1",
    }
    targets: dict[Target, dict[str, Any]] = {"autoencoder": stage1, "base": stage2}
    for target, arguments in targets.items():
        words = [word for name, value in arguments.items() for word in (f"--{name}", str(value))]
        assert run_command(target, words) == 0
    return root


def convert(script: Callable[[str], ModuleType], *words: object, status: int = 0) -> None:
    assert script("training_checkpoint_to_diffusers").main([str(word) for word in words]) == status


@pytest.mark.parametrize(("flag", "folder"), [("auto", "_ema"), ("ema", "_ema"), ("raw", "")])
def test_a_checkpoint_of_stage_1_becomes_an_autoencoder_with_its_prior(
    runs: Path, script: Callable[[str], ModuleType], tmp_path: Path, flag: str, folder: str
) -> None:
    checkpoint = runs / "stage1" / "checkpoint-3"
    convert(script, checkpoint, "-o", tmp_path / "out", "--weights", flag)
    autoencoder = UnifiedLatentsAutoencoder.from_pretrained(tmp_path / "out")
    prior = UnifiedLatentsTransformer.from_pretrained(tmp_path / "out", subfolder="prior")
    for name, model in (("autoencoder", autoencoder), ("prior", prior)):
        there, other = (load_file(checkpoint / f"{name}{f}" / WEIGHTS) for f in (folder, "" if folder else "_ema"))
        here = model.state_dict()
        assert all(torch.equal(weight, here[key]) for key, weight in there.items())
        assert not all(torch.equal(weight, here[key]) for key, weight in other.items())
    assert (tmp_path / "out" / "config.yaml").is_file()


@pytest.mark.parametrize(
    ("flags", "folder"), [(("--weights", "ema_0.1"), "_ema_0.1"), (("--ema_std", "0.1"), "_ema_std0.1")]
)
def test_any_average_of_a_run_can_be_chosen(
    runs: Path, script: Callable[[str], ModuleType], tmp_path: Path, flags: tuple[str, str], folder: str
) -> None:
    checkpoint = runs / "stage1" / "checkpoint-3"
    convert(script, checkpoint, "-o", tmp_path / "out", *flags)
    found = UnifiedLatentsTransformer.from_pretrained(tmp_path / "out", subfolder="prior").state_dict()
    expected, first = (load_file(checkpoint / f"prior{f}" / WEIGHTS) for f in (folder, "_ema"))
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-5, atol=1e-6)
    assert not all(torch.allclose(first[name], found[name], rtol=1e-5, atol=1e-6) for name in found)


@pytest.mark.parametrize("flags", [("--weights", "ema_0.7"), ("--weights", "mine")])
def test_an_average_that_is_not_there_is_refused(
    runs: Path, script: Callable[[str], ModuleType], tmp_path: Path, flags: tuple[str, str]
) -> None:
    convert(script, runs / "stage1" / "checkpoint-3", "-o", tmp_path / "out", *flags, status=1)
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_of_stage_2_becomes_the_pipeline_that_the_run_saved(
    runs: Path, script: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    convert(script, runs / "base" / "checkpoint-3", "-o", tmp_path / "out")
    images = []
    for folder in (runs / "base", tmp_path / "out"):
        pipeline = UnifiedLatentsPipeline.from_pretrained(folder)
        generator = torch.Generator().manual_seed(0)
        made = pipeline(
            height=16, width=16, num_inference_steps=2, output_type="np", generator=generator, return_dict=False
        )
        images.append(made[0])
    np.testing.assert_array_equal(images[0], images[1])
    assert (tmp_path / "out" / "vae" / "prior" / "config.json").is_file()


def state_dict_of(runs: Path) -> dict[str, torch.Tensor]:
    """As of the training's module, wrapped as accelerate and FSDP do."""
    autoencoder = UnifiedLatentsAutoencoder.from_pretrained(runs / "stage1").state_dict()
    prior = UnifiedLatentsTransformer.from_pretrained(runs / "stage1", subfolder="prior").state_dict()
    return {f"module.{k}": w.contiguous() for k, w in autoencoder.items()} | {
        f"prior._orig_mod.{k}": w.contiguous() for k, w in prior.items()
    }


@pytest.mark.parametrize(("is_trained", "folder"), [(True, "_ema"), (True, ""), (False, None)])
def test_a_text_encoder_of_its_own_is_in_the_pipeline(
    runs: Path, script: Callable[[str], ModuleType], tmp_path: Path, is_trained: bool, folder: str | None
) -> None:
    captions = [{"file_name": f"{n}.png", "caption": f"picture {n}"} for n in range(4)]
    shutil.copytree(runs / "images", tmp_path / "images")
    (tmp_path / "images" / "metadata.jsonl").write_text("\n".join(map(json.dumps, captions)))
    arguments: dict[str, Any] = {
        "preset": "ul-base-tiny",
        "pretrained_autoencoder": runs / "stage1",
        "train_data_dir": tmp_path / "images",
        "validation_fraction": 0.5,
        "output_dir": tmp_path / "base",
        "text_encoder_config": json.dumps({"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 16}),
        "resolution": 16,
        "scale_min": 1.0,
        "max_train_steps": 2,
        "learning_rate": 0.01,
        "train_batch_size": 2,
        "num_validation_images": 2,
        "validation_inference_steps": 1,
    }
    words = [word for name, value in arguments.items() for word in (f"--{name}", str(value))]
    assert run_command("base", [*words, "--train_text_encoder" if is_trained else "--no-train_text_encoder"]) == 0
    checkpoint = tmp_path / "base" / "checkpoint-2"
    convert(script, checkpoint, "-o", tmp_path / "out", "--weights", "raw" if folder == "" else "auto")
    pipeline, saved = (UnifiedLatentsPipeline.from_pretrained(tmp_path / name) for name in ("out", "base"))
    assert pipeline.tokenizer.get_vocab() == saved.tokenizer.get_vocab()
    expected = saved.text_encoder.state_dict()
    if folder is not None:
        kept = load_file(checkpoint / f"text_encoder{folder}" / WEIGHTS)
        expected = {name.removeprefix("encoder."): weight for name, weight in kept.items()}
    found = pipeline.text_encoder.state_dict()
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


@pytest.mark.parametrize("form", ["safetensors", "distributed"])
def test_a_sharded_state_dict_becomes_a_repository(
    runs: Path, script: Callable[[str], ModuleType], tmp_path: Path, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "sharded", tmp_path / "out"
    more: list[object] = []
    if form == "safetensors":
        source.mkdir()
        save_torch_state_dict(
            state_dict_of(runs), source, max_shard_size="100KB", filename_pattern="model{suffix}.safetensors"
        )
        assert len(list(source.glob("*.safetensors"))) > 1
    else:
        saver.save({"model": state_dict_of(runs)}, checkpoint_id=source / "pytorch_model_fsdp_0", no_dist=True)
        convert(script, source, "-o", out, "--like", runs / "stage1", status=1)
        assert "must be unpickled" in capsys.readouterr().err
        more = ["--trust_pickle"]
    convert(script, source, "-o", out, "--like", runs / "stage1", *more)
    one, other = (UnifiedLatentsAutoencoder.from_pretrained(path).state_dict() for path in (out, runs / "stage1"))
    assert all(torch.equal(weight, other[key]) for key, weight in one.items())
    prior = load_file(out / "prior" / WEIGHTS)
    assert all(
        torch.equal(weight, prior[key]) for key, weight in load_file(runs / "stage1" / "prior" / WEIGHTS).items()
    )


def test_a_base_models_state_dict_becomes_a_pipeline(
    runs: Path, script: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    transformer = UnifiedLatentsPipeline.from_pretrained(runs / "base").transformer
    weights = {f"transformer.{key}": weight.contiguous() for key, weight in transformer.state_dict().items()}
    (tmp_path / "x").mkdir()
    save_torch_state_dict(weights, tmp_path / "x", filename_pattern="model{suffix}.safetensors")
    convert(script, tmp_path / "x", "-o", tmp_path / "out", "--like", runs / "base")
    again = UnifiedLatentsPipeline.from_pretrained(tmp_path / "out").transformer.state_dict()
    assert all(torch.equal(weight, again[key]) for key, weight in transformer.state_dict().items())


def test_what_is_wrong_is_one_sentence_and_nothing_is_written(
    runs: Path, script: Callable[[str], ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    build_base("ul-base-tiny").save_pretrained(tmp_path / "other")
    out = tmp_path / "out"
    cases: list[tuple[list[object], str]] = [
        ([runs / "stage1" / "checkpoint-3", "-o", runs], "must be a new folder"),
        ([tmp_path / "empty", "-o", out], "is no checkpoint of ours"),
        ([tmp_path / "empty", "-o", out, "--like", runs / "stage1"], "holds neither safetensors files"),
        ([tmp_path / "other", "-o", out, "--like", runs / "stage1"], "does not fit the architecture of"),
    ]
    for words, expected in cases:
        convert(script, *words, status=1)
        said = capsys.readouterr().err
        assert expected in said
        assert said.count("\n") == 1
    assert not out.exists()
