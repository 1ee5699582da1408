"""The recipes in examples/configs/paper: each is planned, says what is the paper's, and trains when scaled down."""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from ul_tokenizer.latents.job import encode_dataset
from ul_tokenizer.models.presets import BASE_PRESETS, PRESETS, build_autoencoder, build_prior, noisiest_level
from ul_tokenizer.training.command import ARGUMENTS, Target, run_command

RECIPES = sorted((Path(__file__).parents[2] / "examples" / "configs" / "paper").glob("*.yaml"))
DATA = {"train_data_dir", "dataset_name", "train_video_dir", "latent_dataset", "validation_data_dir"}
FORMS = ("folder", "tar", "parquet")


def target_of(recipe: Path) -> Target:
    return "base" if "pretrained_autoencoder" in read(recipe) else "autoencoder"


def read(recipe: Path) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    return config


def comment(recipe: Path) -> str:
    """The comment at the top, as running text."""
    text = recipe.read_text(encoding="utf-8")
    head = text[: text.index("\npreset: ")]
    return " ".join(line.lstrip("# ") for line in head.splitlines())


each_recipe = pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)


def test_there_is_a_recipe_for_each_experiment() -> None:
    names = {path.stem for path in RECIPES}
    assert {
        f"imagenet{side}-{part}" for side in (256, 512) for part in ("autoencoder", "base-small", "base-medium")
    } < names
    assert {"k600-autoencoder", "k600-prediction", "text-to-image-base"} < names
    assert {"first-evening-autoencoder", "first-evening-base"} < names


@each_recipe
def test_a_recipe_is_planned_without_data(recipe: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run_command(target_of(recipe), ["--config", str(recipe), "--dry_run"]) == 0
    shown = capfd.readouterr().out
    assert "GPU-hours" in shown and "# warning" not in shown, shown[shown.index("\n# ") :]


@each_recipe
def test_a_recipe_says_what_is_the_papers_and_leaves_the_data_to_the_reader(recipe: Path) -> None:
    assert "The paper's: " in comment(recipe)
    assert "Our reading: " in comment(recipe) or "Everything else is ours" in comment(recipe)
    assert f"--config examples/configs/paper/{recipe.name}" in comment(recipe)
    assert not DATA & set(read(recipe))


@each_recipe
def test_a_recipe_of_one_stage_is_refused_by_the_other(recipe: Path, capfd: pytest.CaptureFixture[str]) -> None:
    target = target_of(recipe)
    other: Target = "autoencoder" if target == "base" else "base"
    with pytest.raises(SystemExit) as exit:
        run_command(other, ["--config", str(recipe), "--dry_run"])
    error = capfd.readouterr().err
    assert exit.value.code == 2 and f"is a config for `train {target}`" in error and error.count("\n") == 1


@pytest.mark.parametrize("recipe", [path for path in RECIPES if target_of(path) == "autoencoder"], ids=lambda p: p.stem)
def test_the_decoders_noisiest_level_fits_the_resolution(recipe: Path) -> None:
    config = read(recipe)
    autoencoder, _ = PRESETS[config["preset"]]
    level = config.get("autoencoder_config", {}).get("decoder_logsnr_min", autoencoder["decoder_logsnr_min"])
    assert autoencoder["sample_size"] == config["resolution"]
    assert level == noisiest_level(config["resolution"])


@pytest.mark.parametrize("recipe", [path for path in RECIPES if target_of(path) == "base"], ids=lambda p: p.stem)
def test_a_base_model_fits_its_autoencoder(recipe: Path) -> None:
    config = read(recipe)
    autoencoder, _ = PRESETS[config["autoencoder_preset"]]
    stage1 = recipe.parent / f"{Path(config['pretrained_autoencoder']).name}.yaml"
    assert read(stage1)["output_dir"] == config["pretrained_autoencoder"]
    assert read(stage1)["preset"] == config["autoencoder_preset"]
    ratio = 2 ** (len(autoencoder["encoder_block_out_channels"]))
    assert BASE_PRESETS[config["preset"]]["sample_size"] == config["resolution"] // ratio


def test_the_first_evening_takes_less_than_two_hours_on_a_card_with_24_gb(capfd: pytest.CaptureFixture[str]) -> None:
    hours = 0.0
    for name in ("first-evening-autoencoder", "first-evening-base"):
        (recipe,) = (path for path in RECIPES if path.stem == name)
        assert read(recipe)["dry_run_gpu"] == "rtx4090" and read(recipe)["dry_run_utilization"] <= 0.3
        assert 64 <= read(recipe)["resolution"] <= 128
        assert run_command(target_of(recipe), ["--config", str(recipe), "--dry_run"]) == 0
        found = re.search(r"([\d.]+) GPU-hours", capfd.readouterr().out)
        assert found
        hours += float(found[1])
    assert 0.5 < hours < 2


# ----------------------------------------------------------------------------------------------------------------
# Twins: the same files, with small sizes by flags
# ----------------------------------------------------------------------------------------------------------------

TWIN: dict[str, Any] = {
    "train_batch_size": 8,
    "global_batch_size": 8,
    "max_train_steps": 20,
    "learning_rate": 3e-3,
    "lr_warmup_steps": 0,
    "dataloader_num_workers": 0,
    "mixed_precision": "no",
    "num_validation_images": 2,
    "validation_fraction": 0.1,
    "validation_steps": 1000,
    "validation_inference_steps": 1,
    "checkpointing_steps": 1000,
    "logging_steps": 1,
}
PIXELS = {"resolution": 32, "scale_min": 1.0}
CLIP = 17  # frames


def pictures() -> list[tuple[str, bytes, int, str]]:
    """(name, PNG, class, caption) of pictures that are dark or light."""
    random, found = np.random.default_rng(0), []
    for number in range(24):
        light = number % 2
        coarse = (60 + 120 * light + random.integers(-50, 50, (3, 3, 3))).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(coarse).resize((44, 40), Image.Resampling.BICUBIC).save(file, "PNG")
        found.append((f"{number:02}", file.getvalue(), light, f"a {'light' if light else 'dark'} picture"))
    return found


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same labelled and captioned pictures as a folder, as tar archives and as parquet files."""
    root = tmp_path_factory.mktemp("sources")
    paths = {form: root / form for form in FORMS}
    for path in paths.values():
        path.mkdir()
    rows = pictures()
    lines = ["file_name,label,caption"]
    for name, png, label, caption in rows:
        (paths["folder"] / f"{name}.png").write_bytes(png)
        lines.append(f"{name}.png,{label},{caption}")
    (paths["folder"] / "metadata.csv").write_text("\n".join(lines) + "\n")
    for number in range(2):
        with tarfile.open(paths["tar"] / f"{number}.tar", "w") as archive:
            for name, png, label, caption in rows[number::2]:
                for suffix, data in ((".png", png), (".cls", str(label).encode()), (".txt", caption.encode())):
                    info = tarfile.TarInfo(name + suffix)
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))
    _write_parquet(paths["parquet"] / "train-0.parquet", rows)
    return paths


def _write_parquet(path: Path, rows: list[tuple[str, bytes, int, str]]) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        image=datasets.Image(), label=datasets.ClassLabel(names=["dark", "light"]), caption=datasets.Value("string")
    )
    columns = {"image": [{"bytes": png, "path": None} for _, png, _, _ in rows]}
    labels = {"label": [row[2] for row in rows], "caption": [row[3] for row in rows]}
    datasets.Dataset.from_dict({**columns, **labels}, features=features).to_parquet(str(path))


@pytest.fixture(scope="session")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Short videos of a picture that grows lighter."""
    import av

    folder = tmp_path_factory.mktemp("films")
    for number, (_, png, _, _) in enumerate(pictures()[:4]):
        pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(float)
        with av.open(str(folder / f"{number}.mp4"), "w") as container:
            stream = container.add_stream("mpeg4", rate=25, width=44, height=40, pix_fmt="yuv420p")
            for frame in range(40):
                shown = (pixels * (0.5 + frame / 80)).clip(0, 255).astype(np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(shown, format="rgb24")))
            container.mux(stream.encode())
    return folder


@pytest.fixture(scope="session")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Untrained autoencoders, of images and of clips."""
    folder, made = tmp_path_factory.mktemp("tokenizers"), {}
    for name, changes in (("images", {}), ("clips", {"temporal_compression_ratio": 4})):
        made[name] = folder / name
        build_autoencoder("ul-tiny-f8", changes).save_pretrained(made[name])
        build_prior("ul-tiny-f8").save_pretrained(made[name] / "prior")
    return made


@pytest.fixture
def losses(flags: Callable[..., list[str]], tmp_path: Path) -> Callable[..., list[float]]:
    """Trains a recipe with other sizes; returns the loss of each step."""

    def run(recipe: Path, **changes: Any) -> list[float]:
        arguments = {"config": recipe, **TWIN, "output_dir": tmp_path / "run", **changes}
        assert run_command(target_of(recipe), flags(**arguments)) == 0
        lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
        found = [json.loads(line)["loss"] for line in lines if "loss" in json.loads(line)]
        assert len(found) == 20
        return found

    return run


def assert_falls(values: list[float]) -> None:
    assert np.mean(values[-5:]) < 0.95 * np.mean(values[:5]), values


def recipes(*names: str) -> list[Path]:
    return [path for path in RECIPES if path.stem in names]


IMAGE_AUTOENCODERS = recipes("imagenet512-autoencoder", "imagenet256-autoencoder", "first-evening-autoencoder")
LATENT_BASES = [path for path in RECIPES if re.fullmatch(r"imagenet\d+-base-\w+", path.stem)]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("recipe", IMAGE_AUTOENCODERS, ids=lambda path: path.stem)
def test_the_loss_of_an_autoencoders_twin_falls(
    recipe: Path, form: str, sources: dict[str, Path], losses: Callable[..., list[float]]
) -> None:
    assert_falls(losses(recipe, preset="ul-tiny-f8", train_data_dir=sources[form], **PIXELS))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("recipe", LATENT_BASES, ids=lambda path: path.stem)
def test_the_loss_of_a_base_models_twin_falls(
    recipe: Path,
    form: str,
    sources: dict[str, Path],
    tokenizers: dict[str, Path],
    losses: Callable[..., list[float]],
    tmp_path: Path,
) -> None:
    encode_dataset(sources[form], tmp_path / "latents", model=str(tokenizers["images"]), resolution=32, flip=True)
    changes = {"preset": "ul-base-tiny", "pretrained_autoencoder": tokenizers["images"], "resolution": 32}
    assert_falls(losses(recipe, latent_dataset=tmp_path / "latents", **changes))


@pytest.mark.parametrize("form", FORMS)
def test_the_loss_of_the_first_evenings_base_models_twin_falls(
    form: str, sources: dict[str, Path], tokenizers: dict[str, Path], losses: Callable[..., list[float]]
) -> None:
    (recipe,) = recipes("first-evening-base")
    changes = {"preset": "ul-base-tiny", "pretrained_autoencoder": tokenizers["images"], **PIXELS}
    assert_falls(losses(recipe, train_data_dir=sources[form], **changes))


@pytest.mark.parametrize("form", FORMS)
def test_the_loss_of_the_text_to_image_twin_falls(
    form: str,
    sources: dict[str, Path],
    tokenizers: dict[str, Path],
    losses: Callable[..., list[float]],
    tmp_path: Path,
) -> None:
    text_models = import_module("tests.training.text_models")
    (recipe,) = recipes("text-to-image-base")
    changes = {"preset": "ul-base-tiny", "pretrained_autoencoder": tokenizers["images"], **PIXELS}
    encoder = text_models.save_text_encoder(tmp_path / "text")
    caption = {"caption_column": "caption"} if form != "tar" else {}
    assert_falls(
        losses(recipe, train_data_dir=sources[form], text_encoder=encoder, max_text_tokens=8, **caption, **changes)
    )


def test_the_loss_of_the_kinetics_twin_falls(films: Path, losses: Callable[..., list[float]]) -> None:
    (recipe,) = recipes("k600-autoencoder")
    changes = {"autoencoder_config": {"temporal_compression_ratio": 4}, "validation_video_dir": films}
    sizes = {"preset": "ul-tiny-f8", "train_batch_size": 2, "global_batch_size": 2, **PIXELS}
    assert_falls(losses(recipe, train_video_dir=films, **changes, **sizes))


def test_the_loss_of_the_frame_predictions_twin_falls(
    films: Path, tokenizers: dict[str, Path], losses: Callable[..., list[float]], tmp_path: Path
) -> None:
    (recipe,) = recipes("k600-prediction")
    clips: dict[str, Any] = {"clip_frames": CLIP, "clip_stride": 4, "resolution": 32}
    encode_dataset(films, tmp_path / "latents", model=str(tokenizers["clips"]), **clips)
    changes = {"preset": "ul-base-tiny", "pretrained_autoencoder": tokenizers["clips"], "resolution": 32}
    assert_falls(losses(recipe, latent_dataset=tmp_path / "latents", **changes))


def test_the_twins_cover_every_recipe() -> None:
    single = recipes("first-evening-base", "text-to-image-base", "k600-autoencoder", "k600-prediction")
    assert {*IMAGE_AUTOENCODERS, *LATENT_BASES, *single} == set(RECIPES)
    assert {target_of(recipe) for recipe in RECIPES} == set(ARGUMENTS) - {"distill"}  # which the paper leaves open
