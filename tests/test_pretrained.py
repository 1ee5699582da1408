"""Bundled models are found by name, checked against their manifest, and made from a trained repository."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ul_tokenizer import LogSNRScheduler, UnifiedLatentsAutoencoder, UnifiedLatentsPipeline, pretrained
from ul_tokenizer.models.presets import build_autoencoder, build_base, build_prior
from ul_tokenizer.models.repository import load_autoencoder, load_prior, load_teacher, locate

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def bundle_weights() -> Any:
    sys.path.insert(0, str(ROOT))
    return import_module("conversion.bundle_weights")


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    build_autoencoder("ul-tiny-f8").save_pretrained(folder)
    build_prior("ul-tiny-f8").save_pretrained(folder / "prior")
    rows = [{"step": n, "loss": 1 / n, "images_per_second": 40.0} for n in range(1, 1001)]
    rows += [{"step": n, "validation/psnr_1_step": n / 50} for n in (500, 1000)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "config.yaml").write_text(f"preset: ul-tiny-f8\nmax_train_steps: 1000\noutput_dir: {folder}\n")
    return folder


@pytest.fixture
def bundled(repository: Path, bundle_weights: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package folder of its own, with the model `ul-tiny` bundled."""
    monkeypatch.setattr(pretrained, "ROOT", tmp_path)
    assert bundle_weights.main([str(repository), "ul-tiny"]) == 0
    return tmp_path / "ul-tiny"


def test_importing_it_needs_no_torch() -> None:
    code = "import sys, ul_tokenizer.pretrained as p; p.bundled_names(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_what_is_bundled_with_this_package_is_undamaged_and_small() -> None:
    for name in pretrained.bundled_names():
        folder = pretrained.bundled_path(name)
        assert folder is not None
        assert sum(path.stat().st_size for path in folder.rglob("*.safetensors")) <= 20_000_000
    assert sum(path.stat().st_size for path in pretrained.ROOT.rglob("*.safetensors")) <= 60_000_000


def test_a_bundled_model_is_listed_and_its_folder_found(bundled: Path) -> None:
    assert pretrained.bundled_names() == ["ul-tiny"]
    assert pretrained.bundled_path("ul-tiny") == bundled


@pytest.mark.parametrize("name", ["ul-other", "../ul-tiny", "", "ul-tiny/prior"])
def test_any_other_name_is_not_bundled(bundled: Path, name: str) -> None:
    assert pretrained.bundled_path(name) is None


def test_a_bundled_model_computes_what_the_trained_one_does(bundled: Path, repository: Path) -> None:
    x = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.inference_mode():
        trained, ours = (load_autoencoder(name).encode(x).latent for name in (str(repository), "ul-tiny"))
    assert 0 < (trained - ours).abs().max() < 0.01 * trained.abs().max()  # fp16 weights


def test_bundled_weights_are_stored_in_fp16_and_load_as_fp32_or_as_asked(bundled: Path) -> None:
    stored = load_file(bundled / "diffusion_pytorch_model.safetensors")
    assert stored["encoder.conv_in.weight"].dtype == torch.float16
    assert {p.dtype for p in load_autoencoder("ul-tiny").parameters()} == {torch.float32}
    assert {p.dtype for p in load_prior("ul-tiny").parameters()} == {torch.float32}
    for key in ("torch_dtype", "dtype"):
        model = UnifiedLatentsAutoencoder.from_pretrained("ul-tiny", **{key: torch.bfloat16})
        assert model.encoder.conv_in.weight.dtype == torch.bfloat16


def test_bfloat16_is_stored_where_asked_for(bundled: Path, repository: Path, bundle_weights: Any) -> None:
    bundle_weights.main([str(repository), "ul-tiny-bf16", "--dtype", "bfloat16"])
    stored = load_file(bundled.parent / "ul-tiny-bf16" / "prior" / "diffusion_pytorch_model.safetensors")
    assert stored["conv_in.weight"].dtype == torch.bfloat16
    assert pretrained.bundled_names() == ["ul-tiny", "ul-tiny-bf16"]


def test_a_bundled_name_wins_over_a_folder_of_that_name(bundled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (bundled.parent / "here" / "ul-tiny").mkdir(parents=True)
    monkeypatch.chdir(bundled.parent / "here")
    load_autoencoder("ul-tiny")
    assert locate("ul-tiny").origin == "bundled"
    assert locate("ul-tiny").folder == bundled


@pytest.mark.parametrize(
    "file", ["diffusion_pytorch_model.safetensors", "config.json", "prior/diffusion_pytorch_model.safetensors"]
)
def test_a_changed_byte_is_one_sentence_that_names_the_file(bundled: Path, file: str) -> None:
    data = bytearray((bundled / file).read_bytes())
    data[-3] ^= 1
    (bundled / file).write_bytes(data)
    with pytest.raises(ValueError, match=rf"Bundled file .*ul-tiny/{file} is damaged") as error:
        load_autoencoder("ul-tiny")
    assert "\n" not in str(error.value)


def test_a_missing_file_is_one_sentence_that_names_it(bundled: Path) -> None:
    (bundled / "prior" / "config.json").unlink()
    with pytest.raises(ValueError, match=r"Bundled file .*ul-tiny/prior/config.json is missing"):
        load_autoencoder("ul-tiny")


def test_cards_may_be_edited(bundled: Path) -> None:
    (bundled / "README.md").write_text("A card.")
    assert pretrained.bundled_path("ul-tiny") == bundled


def test_files_are_hashed_once_per_process(bundled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretrained.bundled_path("ul-tiny")
    monkeypatch.setattr(pretrained, "sha256_of", lambda *paths: pytest.fail("hashed again"))
    pretrained.bundled_path("ul-tiny")


def test_a_revision_of_a_bundled_model_is_refused(bundled: Path) -> None:
    with pytest.raises(ValueError, match="revision must be None"):
        load_autoencoder("ul-tiny", revision="main")


def test_the_training_record_is_kept_in_short(bundled: Path) -> None:
    curve = json.loads((bundled / "training_curve.json").read_text())
    assert [row["step"] for row in curve["validation"]] == [500, 1000]
    assert 100 <= len(curve["training"]) <= 200
    assert (bundled / "training-phase-1.yaml").read_text() == "preset: ul-tiny-f8\nmax_train_steps: 1000\n"


def test_the_curve_of_several_phases_goes_on_where_the_earlier_one_ended(
    bundled: Path, repository: Path, bundle_weights: Any
) -> None:
    assert bundle_weights.main([str(repository), "ul-tiny", "--earlier", str(repository)]) == 0
    curve = json.loads((bundled / "training_curve.json").read_text())
    assert [row["step"] for row in curve["validation"]] == [500, 1000, 1500, 2000]
    assert (bundled / "training-phase-2.yaml").is_file()


def test_no_path_of_the_training_machine_is_bundled(bundled: Path, repository: Path) -> None:
    texts = [path for path in bundled.rglob("*") if path.suffix in (".json", ".yaml")]
    assert len(texts) >= 4
    for path in texts:
        assert str(repository) not in path.read_text()


def test_too_large_weights_are_refused_and_leave_what_was_there(
    bundled: Path, repository: Path, bundle_weights: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    before = sorted(bundled.parent.rglob("*"))
    monkeypatch.setattr(bundle_weights, "MAX_BYTES", 100_000)
    assert bundle_weights.main([str(repository), "ul-tiny"]) == 1
    assert "at most 100,000 bytes, got" in capsys.readouterr().out
    assert sorted(bundled.parent.rglob("*")) == before


def test_bundling_again_replaces_the_weights_and_keeps_the_card(
    bundled: Path, repository: Path, bundle_weights: Any
) -> None:
    (bundled / "README.md").write_text("A card.")
    (bundled / "old.safetensors").write_bytes(b"")
    bundle_weights.main([str(repository), "ul-tiny", "--dtype", "bfloat16"])
    assert (bundled / "README.md").read_text() == "A card."
    assert not (bundled / "old.safetensors").exists()
    assert pretrained.bundled_path("ul-tiny") == bundled


def test_a_source_without_a_prior_is_refused(
    repository: Path, bundle_weights: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(pretrained, "ROOT", tmp_path / "package")
    (tmp_path / "package").mkdir()
    load_autoencoder(str(repository)).save_pretrained(tmp_path / "alone")
    assert bundle_weights.main([str(tmp_path / "alone"), "ul-tiny"]) == 1
    assert "has no prior" in capsys.readouterr().out
    assert list((tmp_path / "package").iterdir()) == []


# ---------------------------------------------------------------- pipelines


def test_the_teacher_of_a_distilled_decoder_is_bundled_with_it(
    bundled: Path, repository: Path, bundle_weights: Any, tmp_path: Path
) -> None:
    shutil.copytree(repository, tmp_path / "distilled")
    teacher = load_autoencoder(str(repository), num_inference_steps=3)
    with torch.no_grad():
        teacher.decoder.conv_out.weight.add_(1.0)
    teacher.save_pretrained(tmp_path / "distilled" / "teacher")
    assert bundle_weights.main([str(tmp_path / "distilled"), "ul-tiny"]) == 0
    found = load_teacher("ul-tiny")
    assert found.config.num_inference_steps == 3
    torch.testing.assert_close(found.decoder.conv_out.weight, teacher.decoder.conv_out.weight, atol=1e-3, rtol=0)
    student = load_autoencoder("ul-tiny").decoder.conv_out.weight
    torch.testing.assert_close(student + 1, found.decoder.conv_out.weight, atol=1e-3, rtol=0)


@pytest.fixture
def pipeline(repository: Path, tmp_path: Path) -> Path:
    """A base model's run, whose autoencoder has no prior beside it."""
    torch.manual_seed(1)
    base = build_base("ul-base-tiny", {"num_class_embeds": 3})
    scheduler = LogSNRScheduler(logsnr_max=base.config.latent_logsnr)
    parts: dict[str, Any] = {"transformer": base, "vae": load_autoencoder(str(repository)), "scheduler": scheduler}
    UnifiedLatentsPipeline(**parts).save_pretrained(tmp_path / "run")
    (tmp_path / "run" / "class_names.json").write_text('["a", "b", "c"]')
    return tmp_path / "run"


def test_a_pipeline_is_bundled_with_the_prior_and_decoder_of_another_run(
    pipeline: Path, repository: Path, bundle_weights: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretrained, "ROOT", tmp_path)
    further = load_autoencoder(str(repository))
    with torch.no_grad():
        next(further.decoder.parameters()).add_(0.25)
    further.save_pretrained(tmp_path / "further")
    load_prior(str(repository)).save_pretrained(tmp_path / "further" / "prior")
    words = [str(pipeline), "ul-tiny", "--autoencoder", str(tmp_path / "further"), "--decoding_steps", "3"]
    assert bundle_weights.main(words) == 0
    bundled = UnifiedLatentsPipeline.from_pretrained("ul-tiny")
    assert torch.equal(next(bundled.vae.decoder.parameters()), next(further.decoder.parameters()).half().float())
    assert bundled.vae.config.num_inference_steps == 3
    assert load_prior("ul-tiny").config.in_channels == bundled.vae.config.latent_channels
    assert json.loads((tmp_path / "ul-tiny" / "class_names.json").read_text()) == ["a", "b", "c"]


def test_another_encoder_than_the_base_models_is_refused(
    pipeline: Path, bundle_weights: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(pretrained, "ROOT", tmp_path)
    torch.manual_seed(2)
    build_autoencoder("ul-tiny-f8").save_pretrained(tmp_path / "other")
    build_prior("ul-tiny-f8").save_pretrained(tmp_path / "other" / "prior")
    assert bundle_weights.main([str(pipeline), "ul-tiny", "--autoencoder", str(tmp_path / "other")]) == 1
    assert "got other weights" in capsys.readouterr().out
    assert not (tmp_path / "ul-tiny").exists()
