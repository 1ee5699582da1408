"""`ul-tokenizer generate`: which pictures it makes, where it puts them, and what it refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from ul_tokenizer.cli import app
from ul_tokenizer.models.presets import build_autoencoder, build_base, build_prior
from ul_tokenizer.pipelines.generation import UnifiedLatentsPipeline
from ul_tokenizer.schedulers.log_snr import LogSNRScheduler

ROOT = Path(__file__).parent.parent
SIDE = 18  # 16 pixels and a gap of two


def save_pipeline(folder: Path, **base: Any) -> str:
    torch.manual_seed(0)
    transformer = build_base("ul-base-tiny", {"sample_size": 2, "num_class_embeds": 3, **base})
    autoencoder = build_autoencoder("ul-tiny-f8")
    with torch.no_grad():
        for parameter in [*transformer.parameters(), *autoencoder.parameters()]:
            parameter.add_(0.1 * torch.randn_like(parameter))
    UnifiedLatentsPipeline(transformer, LogSNRScheduler(), autoencoder).save_pretrained(folder)
    build_prior("ul-tiny-f8").save_pretrained(folder / "vae" / "prior")
    return str(folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("pipeline")
    save_pipeline(folder)
    (folder / "class_names.json").write_text(json.dumps(["0-cat", "1-dog", "bird"]))
    return str(folder)


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def ul(*arguments: object, status: int = 0) -> Any:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == status, result.output
    return result


def generate(model: str, *arguments: object, status: int = 0, out: str = "out.png") -> Any:
    return ul("generate", "--model", model, "--steps", 2, "-o", out, *arguments, status=status)


def tiles(path: str, columns: int) -> list[np.ndarray[Any, Any]]:
    picture = np.asarray(Image.open(path))
    assert picture.shape[1] == columns * SIDE
    rows = picture.shape[0] // SIDE
    return [picture[y * SIDE :, x * SIDE :][:16, :16] for y in range(rows) for x in range(columns)]


# ---------------------------------------------------------------- pictures


def test_one_grid_holds_all_images_of_a_class(model: str) -> None:
    result = generate(model, "--class", 1, "--num", 5)
    assert Image.open("out.png").size == (3 * SIDE, 2 * SIDE)
    images = tiles("out.png", 3)
    assert len({image.tobytes() for image in images[:5]}) == 5
    assert (images[5] == 255).all()  # the empty place
    assert "generated 5 images in" in result.stderr and "out.png" in result.stderr


def test_several_classes_have_a_row_each(model: str) -> None:
    generate(model, "--class", 0, "--class", "dog", "--num", 4)
    assert Image.open("out.png").size == (4 * SIDE, 2 * SIDE)


def test_classes_go_by_number_by_name_and_by_the_name_behind_the_number(model: str) -> None:
    for n, word in enumerate(("1", "1-dog", "dog")):
        generate(model, "--class", word, "--num", 2, out=f"{n}.png")
    contents = {Path(f"{n}.png").read_bytes() for n in range(3)}
    assert len(contents) == 1


def test_an_image_depends_on_seed_class_and_number_alone(model: str) -> None:
    generate(model, "--class", 2, "--num", 4, "--batch-size", 4, out="a.png")
    generate(model, "--class", 0, "--class", 2, "--num", 3, "--batch-size", 2, out="b.png")
    generate(model, "--class", 2, "--num", 4, "--seed", 1, out="c.png")
    a, b, c = tiles("a.png", 2), tiles("b.png", 3), tiles("c.png", 2)
    for number in range(3):
        assert np.abs(a[number].astype(int) - b[3 + number]).max() <= 1  # of rounding
    assert np.abs(a[0].astype(int) - c[0]).max() > 1


def test_a_folder_gets_a_file_per_image(model: str) -> None:
    generate(model, "--class", 1, "--class", 2, "--num", 2, out="folder")
    names = sorted(path.name for path in Path("folder").iterdir())
    assert names == [f"class-{label}-{number:05d}.png" for label in (1, 2) for number in range(2)]
    assert Image.open(Path("folder", names[0])).size == (16, 16)
    generate(model, "--num", 1, out="folder")
    assert Path("folder", "00000.png").is_file()


def test_every_option_of_sampling_changes_the_picture(model: str) -> None:
    options = [
        ("--steps", 5),
        ("--solver", "ddim", "--steps", 5),
        ("--solver", "ddpm"),
        ("--guidance", 4),
        ("--guidance", 4, "--guidance-low", -5),
        ("--decoder-steps", 3),
        ("--seed", 7),
    ]
    contents = set()
    for n, option in enumerate([(), *options]):
        generate(model, "--class", 1, "--num", 1, *option, out=f"{n}.png")
        contents.add(Path(f"{n}.png").read_bytes())
    assert len(contents) == 1 + len(options)


def test_other_sizes(model: str) -> None:
    generate(model, "--height", 24, "--width", 32, "--num", 1)
    assert Image.open("out.png").size == (34, 26)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision(model: str, dtype: str) -> None:
    generate(model, "--num", 1, "--dtype", dtype)


# ---------------------------------------------------------------- manners


def test_nothing_is_overwritten_without_force_and_nothing_half_written_stays(model: str) -> None:
    Path("out.png").write_bytes(b"mine")
    assert "out.png exists already; --force overwrites." in generate(model, "--num", 1, status=1).stderr
    assert Path("out.png").read_bytes() == b"mine"
    generate(model, "--num", 1, "--force")
    assert Image.open("out.png").size == (SIDE, SIDE)
    assert [path.name for path in Path().iterdir()] == ["out.png"]


def test_it_works_offline_and_says_nothing_else(model: str) -> None:
    program = [sys.executable, "-c", "from ul_tokenizer.cli import main; main()"]
    command = [*program, "generate", "--model", model, "--steps", "1", "-o", "out.png"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("generated 16 images in ") and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--class", 3), "--class must be a number from 0 to 2, or one of 0-cat, 1-dog, bird, got 3."),
        (("--class", "fish"), "--class must be a number from 0 to 2, or one of 0-cat, 1-dog, bird, got fish."),
        (("--height", 20), "height must be a positive multiple of 8, got 20."),
        (
            ("--class", 0, "--guidance", 2, "--guidance-low", 3, "--guidance-high", 1),
            "guidance_interval must be (lowest, highest) log-SNR, rising, got (3.0, 1.0).",
        ),
    ],
)
def test_what_can_not_be_done_is_one_sentence(model: str, arguments: tuple[object, ...], words: str) -> None:
    result = generate(model, "--num", 1, *arguments, status=1)
    assert result.stderr == f"error: {words}\n"
    assert not Path("out.png").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--guidance", 2), "--guidance needs --class or --prompt, got 2 without either."),
        (
            ("--class", 1, "--guidance-low", 0),
            "--guidance-low and --guidance-high need --guidance.",
        ),
        (
            ("--class", 1, "--guidance-high", 0),
            "--guidance-low and --guidance-high need --guidance.",
        ),
        (("--device", "toaster"), "--device must be a device of this machine, such as cpu or cuda, got toaster."),
    ],
)
def test_an_option_without_its_partner_is_wrong_usage(model: str, arguments: tuple[object, ...], words: str) -> None:
    assert generate(model, "--num", 1, *arguments, status=2).stderr == f"error: {words}\n"
    assert not Path("out.png").exists()


def test_a_model_without_classes_has_none(tmp_path: Path) -> None:
    model = save_pipeline(tmp_path / "plain", num_class_embeds=None)
    generate(model, "--num", 1)
    result = generate(model, "--class", 0, "--num", 1, "--force", status=1)
    assert f"--class can't be used: {model} has no classes." in result.stderr


@pytest.fixture(scope="module")
def text_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model of three classes and of texts."""
    from ul_tokenizer.training.fresh_text import build_text_model, full_config, make_tokenizer

    folder = tmp_path_factory.mktemp("text")
    save_pipeline(folder / "plain", cross_attention_dim=16)
    pipeline = UnifiedLatentsPipeline.from_pretrained(folder / "plain")
    tokenizer = make_tokenizer(["a red apple", "a green pear"], 100)
    tokenizer.model_max_length = 8
    sizes = {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 16, "max_position_embeddings": 8}
    encoder = build_text_model(full_config(sizes, len(tokenizer)))
    parts = (pipeline.transformer, pipeline.scheduler, pipeline.vae, encoder, tokenizer)
    UnifiedLatentsPipeline(*parts).save_pretrained(folder / "model")
    return str(folder / "model")


def test_texts_have_a_row_each_and_a_text_alone_gives_the_same_pictures(text_model: str) -> None:
    generate(text_model, "--prompt", "red apple", "--prompt", "green pear", "--guidance", 3, "--num", 2)
    apple, _, pear, _ = tiles("out.png", 2)
    generate(text_model, "--prompt", "green pear", "--guidance", 3, "--num", 1, out="pear.png")
    assert np.array_equal(tiles("pear.png", 1)[0], pear) and not np.array_equal(apple, pear)
    generate(text_model, "--prompt", "", "--num", 1, out="none.png")
    generate(text_model, "--num", 1, out="plain.png")
    assert np.array_equal(tiles("none.png", 1)[0], tiles("plain.png", 1)[0])


def test_every_class_is_made_with_every_text(text_model: str) -> None:
    generate(text_model, "--prompt", "red", "--prompt", "苹果", "--class", 0, "--class", 2, "--num", 1, out="folder")
    names = {f"class-{label}-prompt-{text}-00000.png" for label in (0, 2) for text in (0, 1)}
    assert {path.name for path in Path("folder").iterdir()} == names
    assert len({path.read_bytes() for path in Path("folder").iterdir()}) == 4


def test_a_model_without_a_text_encoder_takes_no_text(model: str) -> None:
    result = generate(model, "--prompt", "red apple", "--num", 1, status=1)
    assert result.stderr == f"error: --prompt can't be used: {model} has no text encoder.\n"


def test_a_folder_without_a_pipeline_is_one_sentence(tmp_path: Path) -> None:
    build_autoencoder("ul-tiny-f8").save_pretrained(tmp_path / "ae")
    result = generate(str(tmp_path / "ae"), status=1)
    assert result.stderr == f"error: Folder {tmp_path / 'ae'} holds no pipeline: there is no model_index.json in it.\n"
    assert "is neither a bundled name" in generate("nothing", status=1).stderr


# ---------------------------------------------------------------- a pipeline's autoencoder


def test_the_codec_commands_take_a_pipelines_autoencoder(model: str) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 24, 3), dtype=np.uint8)).save("a.png")
    ul("encode", "a.png", "-o", "latents", "--model", model)
    ul("decode", "latents", "-o", "pictures", "--model", model)
    report = json.loads(ul("reconstruct", "a.png", "-o", "both", "--model", model, "--json").stdout)
    assert report["results"][0]["bits_per_pixel"] > 0  # by vae/prior
    facts = json.loads(ul("info", model, "--json").stdout)
    assert "prior" in json.dumps(facts)
