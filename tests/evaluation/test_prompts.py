"""Text-conditioned pipelines are measured with the captions of a data set as prompts."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from tests.evaluation.conftest import COLOURS, SIDE, make_pipeline, moved
from tests.evaluation.test_generation import Means, flat, measure
from tests.training.text_models import WIDTH, save_text_encoder
from ul_tokenizer.cli import app
from ul_tokenizer.evaluation.drawing import Sampling, sample_generators
from ul_tokenizer.evaluation.job import Networks
from ul_tokenizer.evaluation.prompts import Prompts
from ul_tokenizer.evaluation.results import label_of
from ul_tokenizer.media.pixels import to_uint8
from ul_tokenizer.models.presets import build_autoencoder, build_base
from ul_tokenizer.pipelines.generation import UnifiedLatentsPipeline
from ul_tokenizer.randomness import EvaluationStream
from ul_tokenizer.schedulers.log_snr import LogSNRScheduler
from ul_tokenizer.sources.folder import FolderSource
from ul_tokenizer.training.text import load_text_encoder

CAPTIONS = ["a dark picture", "a light picture", "picture of nothing", "dark dark dark"]
QUICK = Sampling(num_images=9, num_inference_steps=1, guidance_scale=2.0)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ul_tokenizer.evaluation.reference_features.CACHE", tmp_path / "features")


def make_text_pipeline(folder: Path, num_classes: int | None) -> UnifiedLatentsPipeline:
    text = load_text_encoder(str(save_text_encoder(folder / "text")))
    torch.manual_seed(0)
    config = {"cross_attention_dim": WIDTH, "num_class_embeds": num_classes}
    transformer = moved(build_base("ul-base-tiny", config))
    return UnifiedLatentsPipeline(
        transformer, LogSNRScheduler(), moved(build_autoencoder("ul-tiny-f8")), text.model, text.tokenizer
    )


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pipelines")
    for name, num_classes in (("texts", None), ("both", len(COLOURS))):
        make_text_pipeline(folder, num_classes).save_pretrained(folder / name)
    make_pipeline().save_pretrained(folder / "classes")
    return {name: folder / name for name in ("texts", "both", "classes")}


@pytest.fixture(scope="module")
def captioned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pictures with captions and labels; one has no caption, one an empty caption."""
    folder = tmp_path_factory.mktemp("captioned")
    random = np.random.default_rng(0)
    rows = []
    for number in range(12):
        name = f"{number:02d}.png"
        Image.fromarray(random.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(folder / name)
        row = {"file_name": name, "label": number % 3, "words": "light"}
        rows.append(row if number == 5 else {**row, "caption": " " if number == 6 else CAPTIONS[number % 4]})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def by_hand(path: Path, prompts: Prompts) -> torch.Tensor:
    """Images that a pipeline draws for prompts that take turns, in batches of four."""
    pipeline = UnifiedLatentsPipeline.from_pretrained(path)
    pipeline.scheduler = LogSNRScheduler.from_config(pipeline.scheduler.config, algorithm_type="ddim")
    images = []
    for first in range(0, QUICK.num_images, 4):
        numbers = range(QUICK.num_images)[first : first + 4]
        (pixels,) = pipeline(
            None if prompts.labels is None else [prompts.labels[number] for number in numbers],
            prompt=[prompts.texts[number] for number in numbers],
            guidance_scale=QUICK.guidance_scale,
            num_inference_steps=QUICK.num_inference_steps,
            height=SIDE,
            width=SIDE,
            generator=sample_generators(QUICK.seed, EvaluationStream.GENERATION, numbers),
            output_type="pt",
            return_dict=False,
        )
        images.append(to_uint8(2 * pixels - 1))
    return torch.cat(images)


# ---------------------------------------------------------------- which prompts


def test_prompts_are_all_captions_in_a_mixed_order_with_their_classes(captioned: Path) -> None:
    source = FolderSource(captioned)
    prompts = Prompts.of(source, "captioned", num_classes=3)
    labels = prompts.labels
    assert labels is not None
    expected = [(CAPTIONS[n % 4], n % 3) for n in range(12) if n not in (5, 6)]
    assert sorted(zip(prompts.texts, labels, strict=True)) == sorted(expected)
    assert list(prompts.texts) != [text for text, _ in expected]
    assert prompts == Prompts.of(source, "captioned", num_classes=3)
    without = Prompts.of(source, "captioned")
    assert without.labels is None and without.texts == prompts.texts
    assert without.facts()["sha256"] != prompts.facts()["sha256"]
    assert set(Prompts.of(source, "captioned", column="words").texts) == {"light"}


def test_image_k_has_prompt_k_and_prompts_take_turns() -> None:
    prompts = Prompts(["a", "b", "c"], [4, 5, 6])
    assert prompts.of_images([0, 2, 4]) == ["a", "c", "b"]
    assert prompts.labels_of_images([0, 2, 4]) == [4, 6, 5]


# ---------------------------------------------------------------- measured


@pytest.mark.parametrize("name", ["texts", "both"])
def test_a_pipeline_of_texts_is_measured_with_the_captions_of_the_real_images(
    name: str, pipelines: dict[str, Path], captioned: Path, tmp_path: Path
) -> None:
    """Its figures are those of a folder with the images that the pipeline draws for these captions."""
    result = measure(captioned, pipelines[name], samplings=[QUICK], output=tmp_path / "out")
    prompts = Prompts.of(FolderSource(captioned), "", num_classes=3 if name == "both" else None)
    images = by_hand(pipelines[name], prompts)
    assert len(images.unique(dim=0)) == len(images)
    again = measure(captioned, images=flat(tmp_path / "images", images))
    assert result["distances"] == again["distances"]
    said = result["subject"]["prompts"]
    assert (said["num"], said["with_classes"], said["sha256"]) == (10, name == "both", prompts.facts()["sha256"])
    assert ("captions and classes" in label_of(result)) == (name == "both")
    (listing,) = (tmp_path / "out").glob("*.pictures/grid.txt")
    assert listing.read_text().splitlines() == prompts.of_images(range(9))


def test_other_captions_give_other_images(pipelines: dict[str, Path], captioned: Path) -> None:
    results = [
        measure(captioned, pipelines["texts"], samplings=[QUICK], caption_column=column)
        for column in ("caption", "words")
    ]
    assert results[0]["subject"]["generated_sha256"] != results[1]["subject"]["generated_sha256"]
    assert results[0]["key"] != results[1]["key"]


def test_prompts_none_asks_for_classes_only_and_unconditional_for_nothing(
    pipelines: dict[str, Path], captioned: Path
) -> None:
    plain = dataclasses.replace(QUICK, guidance_scale=1.0)
    classes = measure(captioned, pipelines["both"], samplings=[QUICK], prompts="none")
    nothing = measure(captioned, pipelines["both"], samplings=[dataclasses.replace(plain, unconditional=True)])
    assert "prompts" not in classes["subject"] and "prompts" not in nothing["subject"]
    assert classes["subject"]["generated_sha256"] != nothing["subject"]["generated_sha256"]


def test_the_estimate_without_noise_knows_the_prompts(pipelines: dict[str, Path], captioned: Path) -> None:
    ways = [dataclasses.replace(QUICK, decode="clean"), QUICK]
    one, other = (measure(captioned, pipelines["both"], samplings=[way])["subject"] for way in ways)
    assert one["generated_sha256"] != other["generated_sha256"]


# ---------------------------------------------------------------- wrong uses


@pytest.mark.parametrize(
    ("model", "options", "sentence"),
    [
        ("classes", {"prompts": "captioned"}, "prompts must be left out for a pipeline without a text encoder"),
        ("texts", {"caption_column": "title"}, 'with a title, got none in .*; name a data set .* or "none"'),
        ("texts", {"prompts": "captioned", "caption_column": "title"}, "prompts must hold samples with a title, got"),
        ("texts", {"prompts": "captioned", "prior": True}, "prompts can't be used with a stage-1 prior"),
        (None, {"prompts": "captioned", "images": "captioned"}, "can't be used with images, which exist already"),
        ("texts", {"prompts": "none", "samplings": [QUICK]}, "guidance_scale must be 1 where no class and no text"),
        (
            "texts",
            {"prompts": "captioned", "samplings": [Sampling(num_images=2, unconditional=True)]},
            "prompts must be left out for images without conditions",
        ),
    ],
)
def test_wrong_uses_are_refused_with_a_sentence(
    model: str | None, options: dict[str, Any], sentence: str, pipelines: dict[str, Path], captioned: Path
) -> None:
    given = {name: captioned if value == "captioned" else value for name, value in options.items()}
    with pytest.raises(ValueError, match=sentence):
        measure(captioned, None if model is None else pipelines[model], **given)


def test_a_class_that_the_pipeline_lacks_is_refused(pipelines: dict[str, Path], captioned: Path) -> None:
    with pytest.raises(ValueError, match=r"prompts must have the pipeline's 2 classes, got 2 for \d\d\.png"):
        Prompts.of(FolderSource(captioned), "", num_classes=2)


def run(*words: object) -> tuple[int, str]:
    """Exit status and all that a command prints, on one line."""
    result = CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200", "NO_COLOR": "1"})
    shown = result.output if result.exception is None else f"{result.output} {result.exception}"
    return result.exit_code, " ".join(shown.split())


def test_the_command_takes_prompts_and_names_its_flags(
    pipelines: dict[str, Path], captioned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ul_tokenizer.evaluation.job.load_networks", lambda *_: Networks([Means()], None, [], {}))
    words = ["evaluate", "generation", captioned, "--num", "4", "--steps", "1", "--device", "cpu"]
    both = [*words, "--model", pipelines["both"]]
    status, shown = run(*both, "--guidance", "2", "--prompts", captioned, "--train", captioned)
    assert status == 0 and "with captions" in shown
    assert "of 4 images are nearer to a training image than 99 % of the real images are" in shown
    status, shown = run(*words, "--model", pipelines["classes"], "--prompts", captioned)
    assert status != 0 and "--prompts must be left out for a pipeline without a text encoder" in shown
    for options, sentence in (
        ([*both, "--prompts", "x", "--unconditional"], "--prompts can't be used with --unconditional"),
        ([*both, "--prompts", "x", "--prior"], "--prompts can't be used with --prior"),
        (
            [*words[:3], "--images", captioned, "--prompts", "x"],
            "--images can't be used with options for drawing images",
        ),
    ):
        status, shown = run(*options)
        assert status != 0 and sentence in shown
