"""Generated images, measured against real ones."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.evaluation.conftest import COLOURS, SIDE, make_pipeline, moved, squares
from ul_tokenizer.evaluation.drawing import Drawer, Sampling
from ul_tokenizer.evaluation.generation import NUM_SHOWN, GenerationEvaluation
from ul_tokenizer.evaluation.job import evaluate_generation
from ul_tokenizer.evaluation.measures.frechet import Gaussian, frechet_distance
from ul_tokenizer.evaluation.measures.kernel_distance import kernel_distance
from ul_tokenizer.evaluation.measures.manifold import manifold_metrics, nearest_neighbours
from ul_tokenizer.evaluation.nets.reference import Reference
from ul_tokenizer.evaluation.parts import BATCHES_PER_PART
from ul_tokenizer.evaluation.results import check_result, read_result
from ul_tokenizer.evaluation.samples import Crops
from ul_tokenizer.models.presets import build_prior
from ul_tokenizer.pipelines.generation import UnifiedLatentsPipeline

ROOT = Path(__file__).resolve().parents[2]
QUICK = Sampling(num_images=13, num_inference_steps=1)


class Means:
    """Features of an image: the mean colours of its upper half and of the whole."""

    name, dim, metric = "means", 6, "FD-means"

    def facts(self) -> dict[str, Any]:
        return {"name": self.name, "weights_sha256": "0"}

    def __call__(self, images: Tensor) -> Tensor:
        scaled = images.float() / 255
        return torch.cat([scaled[:, :, : SIDE // 2].mean((2, 3)), scaled.mean((2, 3))], 1)


@pytest.fixture(autouse=True)
def _caches(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ul_tokenizer.evaluation.reference_features.CACHE", tmp_path / "features")
    monkeypatch.setattr("ul_tokenizer.evaluation.nets.reference.CACHE", cache)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    make_pipeline().save_pretrained(folder)
    return folder


def sampling(**changes: Any) -> Sampling:
    return dataclasses.replace(QUICK, **changes)


def measure(real: Path, model: Path | None = None, **options: Any) -> dict[str, Any]:
    if model is not None:
        options = {"samplings": [QUICK], **options}
    defaults = {"features": [Means()], "batch_size": 4, "device": "cpu"}
    (result,) = evaluate_generation(real, None if model is None else str(model), **{**defaults, **options})
    return result


def pixels_of(folder: Path) -> Tensor:
    """All images of a folder in the order of their paths, uint8."""
    paths = sorted(folder.rglob("*.png"), key=lambda path: path.relative_to(folder).as_posix())
    return torch.stack([torch.from_numpy(np.array(Image.open(p).convert("RGB"))) for p in paths]).permute(0, 3, 1, 2)


def drawn(model: Path, how: Sampling = QUICK) -> Tensor:
    drawer = Drawer(UnifiedLatentsPipeline.from_pretrained(model), how, (SIDE, SIDE), 3)
    numbers = range(how.num_images)
    return torch.cat([drawer.draw(numbers[first : first + 4])[0] for first in range(0, len(numbers), 4)])


def flat(folder: Path, images: Tensor) -> Path:
    """A folder with images, without classes."""
    folder.mkdir(parents=True)
    for number, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(folder / f"{number:03d}.png")
    return folder


def figures(result: dict[str, Any]) -> dict[str, Any]:
    """What may not depend on machines and times."""
    names = ("subject", "protocol", "metrics", "distances", "missing", "skipped", "nonfinite", "key")
    return {name: result[name] for name in names}


# ---------------------------------------------------------------- figures


def check_figures(result: dict[str, Any], images: Tensor, real: Tensor) -> None:
    check_result(result)
    generated, reference = Means()(images), Means()(real)
    entry = result["distances"]["means"]
    expected = frechet_distance(Gaussian.of(generated), Gaussian.of(reference))
    assert entry["frechet"]["value"] == pytest.approx(expected, rel=1e-6)
    assert entry["frechet"]["name"] == "FD-means"
    kid = kernel_distance(generated, reference)
    assert (entry["kid"]["value"], entry["kid"]["std"]) == pytest.approx((kid.mean, kid.std))
    assert (entry["num"], entry["reference_num"]) == (len(images), len(real))
    for name, value in manifold_metrics(generated, reference)._asdict().items():
        assert result["metrics"][name] == {"value": pytest.approx(value), "net": "means", "unit": ""}


def test_figures_of_a_pipeline_are_those_of_its_images(model: Path, test: Path) -> None:
    result = measure(test, model)
    check_figures(result, drawn(model), pixels_of(test))
    assert result["subject"]["solver"] == "ddim" and result["subject"]["generator"] == "base"
    assert result["protocol"]["num_generated"] == 13 and result["protocol"]["num_samples"] == 60
    assert result["cost"]["seconds_per_image"] > 0


def test_a_folder_of_the_same_images_has_the_same_figures(model: Path, test: Path, tmp_path: Path) -> None:
    images = drawn(model)
    result = measure(test, images=flat(tmp_path / "images", images))
    check_figures(result, images, pixels_of(test))
    assert result["subject"]["type"] == "folder"
    by_pipeline = measure(test, model)
    assert result["distances"] == by_pipeline["distances"]
    assert result["subject"]["generated_sha256"] == by_pipeline["subject"]["generated_sha256"]


def test_images_and_real_ones_are_cropped_alike(test: Path, tmp_path: Path) -> None:
    large = torch.randint(0, 256, (12, 3, 20, 30), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    result = measure(test, images=flat(tmp_path / "large", large), crops=Crops(crop="center", crop_size=SIDE))
    check_figures(result, large[:, :, 2:18, 7:23], pixels_of(test))


def test_few_images_have_a_kid_and_no_frechet_distance_unless_it_is_forced(test: Path, tmp_path: Path) -> None:
    class Wide(Means):
        dim = 24

        def __call__(self, images: Tensor) -> Tensor:
            return super().__call__(images).repeat(1, 4)

    images = flat(tmp_path / "images", pixels_of(test)[:12])
    entry = measure(test, images=images, features=[Wide()], output=tmp_path)["distances"]["means"]
    assert entry["frechet"]["value"] is None
    assert "FD-means of 12 images" in entry["frechet"]["refused"] and "use the KID" in entry["frechet"]["refused"]
    assert entry["kid"]["value"] is not None
    forced = measure(test, images=images, features=[Wide()], output=tmp_path, force_fd=True)["distances"]["means"]
    assert forced["frechet"]["value"] is not None


# ---------------------------------------------------------------- classes


@pytest.fixture
def judge(train: Path, test: Path, reference: Reference) -> str:
    """The name of the classifier that the fixture `reference` has trained."""
    return f"classifier:{train},{test}"


def test_accuracy_is_the_part_of_images_that_show_their_class(judge: str, test: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    for name, other in (("blue", "blue"), ("green", "green"), ("red", "green")):
        flat(wrong / name, pixels_of(test / other)[:7])
    result = measure(test, images=wrong, features=[judge])
    assert result["metrics"]["accuracy"]["value"] == pytest.approx(14 / 21)
    assert result["metrics"]["accuracy"]["low"] < 14 / 21 < result["metrics"]["accuracy"]["high"]
    assert result["metrics"]["real_accuracy"]["value"] == 1.0
    assert result["distances"][judge]["frechet"]["name"] == "FD (classifier)"
    nameless = measure(test, images=flat(tmp_path / "flat", pixels_of(wrong)), features=[judge])
    assert "accuracy" not in nameless["metrics"]


def test_a_pipelines_classes_take_turns_and_are_judged(
    judge: str, test: Path, model: Path, reference: Reference
) -> None:
    result = measure(test, model, features=[judge])
    seen = reference.classifier(drawn(model)).argmax(1)
    assert result["metrics"]["accuracy"]["value"] == pytest.approx(float((seen == torch.arange(13) % 3).float().mean()))
    without = measure(test, model, features=[judge], samplings=[sampling(unconditional=True)])
    assert "accuracy" not in without["metrics"]


def test_other_classes_than_the_classifiers_are_refused(judge: str, test: Path, model: Path, tmp_path: Path) -> None:
    others = squares(tmp_path / "others", 4, seed=0, classes={"blue": COLOURS["blue"], "pink": (255, 150, 150)})
    with pytest.raises(ValueError, match="images must have the classifier's classes, blue, green, red, got blue, pink"):
        measure(test, images=others, features=[judge])
    with pytest.raises(ValueError, match="real must have the classifier's classes, blue, green, red, got blue, pink"):
        measure(others, images=test, features=[judge])
    make_pipeline(num_classes=5).save_pretrained(tmp_path / "five")
    unlabelled = flat(tmp_path / "flat", pixels_of(test))
    with pytest.raises(ValueError, match="pipeline must know the data's 3 classes, got one of 5"):
        measure(unlabelled, tmp_path / "five", features=[judge])


# ---------------------------------------------------------------- floor


def test_without_training_images_the_floor_is_the_distance_of_halves(test: Path, tmp_path: Path) -> None:
    entry = measure(test, images=flat(tmp_path / "images", pixels_of(test)[:20]))["distances"]["means"]
    assert entry["floor_nums"] == [30, 30]
    assert 0 < entry["frechet"]["floor"] < entry["frechet"]["value"]
    features = Means()(pixels_of(test))
    halves = [frechet_distance(Gaussian.of(features[:30]), Gaussian.of(features[30:]))]
    assert entry["frechet"]["floor"] < halves[0] / 10  # those would differ in their classes


def test_the_floor_of_training_images_has_the_real_ones_class_proportions(
    train: Path, test: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """19 blue and one red image among the real ones; the mean colours of the training images tell their classes."""
    real = tmp_path / "real"
    flat(real / "blue", pixels_of(test / "blue")[:19])
    flat(real / "green", pixels_of(test / "green")[:0])
    flat(real / "red", pixels_of(test / "red")[:1])
    Image.new("RGB", (SIDE, SIDE)).save(real / "green" / "0.png")  # so that it is a class
    seen: list[Sequence[Any]] = []
    whole = GenerationEvaluation._floor

    def floor(self: Any, *arguments: Any) -> Any:
        seen.append(whole(self, *arguments))
        return seen[-1]

    monkeypatch.setattr(GenerationEvaluation, "_floor", floor)
    images = flat(tmp_path / "images", pixels_of(test)[:42])
    entry = measure(real, images=images, train=train)["distances"]["means"]
    assert len(seen[0]) == 10  # draws, since there are few features
    for rows, _ in seen[0]:
        colours = torch.from_numpy(rows[0:99])[:, 3:].argmax(1)
        assert torch.bincount(2 - colours, minlength=3).tolist() == [38, 2, 2]
    assert entry["floor_nums"] == [42, 21]
    assert entry["frechet"]["floor"] is not None


# ---------------------------------------------------------------- memorised


def test_a_copy_of_a_training_image_is_found_and_shown(train: Path, test: Path, tmp_path: Path) -> None:
    """A broken file in front shifts the rows of features: the picture must show the copied image nevertheless."""
    seen = tmp_path / "train"
    flat(seen / "blue", pixels_of(train / "blue"))
    flat(seen / "green", pixels_of(train / "green"))
    (seen / "blue" / "000.png").write_bytes(b"no image")
    copied = torch.from_numpy(np.array(Image.open(seen / "green" / "011.png"))).permute(2, 0, 1)
    images = pixels_of(test)[:12].roll(3, -1) // 2  # darker than anything real
    images[5] = copied
    result = measure(test, images=flat(tmp_path / "images", images), train=seen, output=tmp_path / "out")
    found = result["metrics"]["memorisation"]
    assert found["value"] == pytest.approx(1 / 12)
    assert 0 < found["nearer_than"] < found["median_of_real"] < found["median"]
    distances = nearest_neighbours(Means()(images), Means()(pixels_of(train)))[0]
    assert distances.min() == 0
    assert [entry["id"] for entry in result["skipped"]] == [f"{seen}/blue/000.png"]
    (path,) = (tmp_path / "out").glob("*.pictures/neighbours.png")
    picture = torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)
    assert torch.equal(picture[:, :SIDE, :SIDE], copied)
    assert torch.equal(picture[:, SIDE + 2 : 2 * SIDE + 2, :SIDE], copied)
    second = picture[:, 2 * (SIDE + 2) + 12 :]  # from the nearest image to the farthest
    farthest = Means()(images)[nearest_neighbours(Means()(images), Means()(pixels_of(train)))[0][:, 0].argmax()]
    assert torch.equal(second[:, :SIDE, :SIDE], copied)
    torch.testing.assert_close(Means()(second[None, :, :SIDE, 7 * (SIDE + 2) :][..., :SIDE])[0], farthest)
    assert found["count"] == 1


def test_images_that_are_no_copies_are_not_called_memorised(train: Path, test: Path, tmp_path: Path) -> None:
    random = squares(tmp_path / "new", 10, seed=77)
    assert measure(test, images=random, train=train)["metrics"]["memorisation"]["value"] < 0.1
    assert "memorisation" not in measure(test, images=random)["metrics"]


def test_the_grid_shows_the_first_images_in_order(model: Path, test: Path, tmp_path: Path) -> None:
    measure(test, model, output=tmp_path)
    (path,) = tmp_path.glob("*.pictures/grid.png")
    assert [p.name for p in path.parent.iterdir()] == ["grid.png"]
    grid, images, step = torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1), drawn(model), SIDE + 2
    assert grid.shape == (3, 2 * step, 10 * step)  # ten in a row, the second filled up with white
    for number in range(20):
        cell = grid[:, number // 10 * step :, number % 10 * step :][:, :SIDE, :SIDE]
        assert torch.equal(cell, images[number]) if number < 13 else bool((cell == 255).all())
    many = pixels_of(test).repeat(2, 1, 1, 1)
    measure(test, images=flat(tmp_path / "many", many), output=tmp_path / "out")
    (path,) = (tmp_path / "out").glob("*.pictures/grid.png")
    assert Image.open(path).size == (10 * step, NUM_SHOWN // 10 * step)


# ---------------------------------------------------------------- bad input


def test_images_that_are_not_finite_are_named_and_have_no_figures(judge: str, test: Path, tmp_path: Path) -> None:
    broken = make_pipeline()
    broken.vae.decoder.conv_out.bias.data.fill_(torch.nan)
    broken.save_pretrained(tmp_path / "broken")
    result = measure(test, tmp_path / "broken", features=[Means(), judge], train=test, output=tmp_path)
    assert result["nonfinite"] == [f"image {number}" for number in range(13)]
    for entry in result["distances"].values():
        assert (entry["frechet"]["value"], entry["kid"]["value"]) == (None, None)
        assert entry["frechet"]["refused"] == entry["kid"]["refused"] != None  # noqa: E711
    metrics = result["metrics"]
    assert {"accuracy", "precision", "coverage", "memorisation"} <= metrics.keys()
    assert metrics.pop("real_accuracy")["value"] == 1
    assert {entry["value"] for entry in metrics.values()} == {None}
    assert all("not finite" in entry["reason"] for entry in metrics.values())


def test_images_of_another_size_are_refused(model: Path, test: Path, train: Path, tmp_path: Path) -> None:
    small = flat(tmp_path / "small", pixels_of(test)[:12, :, :12])
    with pytest.raises(ValueError, match=r"images must have the real ones' size 16×16, got 12×16; choose resolution"):
        measure(test, images=small)
    with pytest.raises(ValueError, match=r"train must have the real ones' size 16×16, got 12×16"):
        measure(test, model, train=small)
    with pytest.raises(ValueError, match="size must be a multiple of 8 pixels"):
        measure(small, model)
    Image.new("RGB", (20, 20)).save(flat(tmp_path / "mixed", pixels_of(test)[:12]) / "007.png")
    with pytest.raises(ValueError, match=r"images must have the real ones' size 16×16, got 20×20"):
        measure(test, images=tmp_path / "mixed")


def test_a_model_or_images_are_wanted_and_not_both(model: Path, test: Path) -> None:
    with pytest.raises(ValueError, match=r"^model or images must be given, got neither\.$"):
        measure(test)
    with pytest.raises(ValueError, match=r"^model or images must be given, got both\.$"):
        measure(test, model, images=test)
    for drawing in ({"samplings": [QUICK]}, {"prior": True}):
        with pytest.raises(ValueError, match="samplings, prior and prompts can't be used with images"):
            measure(test, images=test, **drawing)


def test_files_that_cant_be_read_are_named(test: Path, tmp_path: Path) -> None:
    images, real = flat(tmp_path / "images", pixels_of(test)[:12]), flat(tmp_path / "real", pixels_of(test))
    (images / "004.png").write_bytes(b"no image")
    (real / "000.png").write_bytes(b"no image")  # the first, whose size would be that of all
    result = measure(real, images=images)
    assert [entry["id"] for entry in result["skipped"]] == ["004.png", f"{real}/000.png"]
    assert (result["distances"]["means"]["num"], result["distances"]["means"]["reference_num"]) == (11, 59)
    only = flat(tmp_path / "only", pixels_of(test)[:1])
    (only / "000.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match="only must hold images that can be read, got none among 1"):
        measure(test, images=only)
    with pytest.raises(ValueError, match="only must hold images that can be read, got none among 1"):
        measure(only, images=test)


def test_without_any_network_nothing_can_be_measured(test: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(ValueError, match=r"ul_tokenizer\[eval\]"):
        measure(test, images=test, features=["inception"])
    with pytest.raises(ValueError, match="features must name at least one network, got none"):
        measure(test, images=test, features=[])
    assert "ul_tokenizer[eval]" in measure(test, images=test, features=["inception", Means()])["missing"][0]


# ---------------------------------------------------------------- runs


def test_a_second_run_measures_nothing(
    model: Path, test: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ways = [sampling(), sampling(guidance_scale=2.0, guidance_interval=(-1.0, 3.0))]
    options: dict[str, Any] = {"samplings": ways, "features": [Means()], "output": tmp_path, "device": "cpu"}
    first = evaluate_generation(test, str(model), **options)
    assert [read_result(path) for path in sorted(tmp_path.glob("*.json"))] == sorted(first, key=lambda r: r["key"])
    assert not (tmp_path / ".parts").exists()
    monkeypatch.setattr(Drawer, "draw", None)
    assert evaluate_generation(test, str(model), **options) == first


def test_other_weights_settings_or_real_images_are_another_result(
    model: Path, test: Path, train: Path, tmp_path: Path
) -> None:
    changed = make_pipeline()
    changed.transformer.conv_out.weight.data.add_(0.1)
    changed.save_pretrained(tmp_path / "changed")
    out = tmp_path / "out"
    keys = [
        measure(test, model, output=out)["key"],
        measure(test, tmp_path / "changed", output=out)["key"],
        measure(test, model, output=out, train=train)["key"],
        measure(test, model, output=out, crops=Crops(num_samples=50))["key"],
        measure(test, model, output=out, force_fd=True)["key"],
    ]
    for changes in ({"seed": 1}, {"solver": "ddpm"}, {"num_images": 12}, {"decode": "clean"}, {"guidance_scale": 2.0}):
        keys.append(measure(test, model, output=out, samplings=[sampling(**changes)])["key"])
    assert len(set(keys)) == len(list(out.glob("*.json"))) == 10


def test_the_prior_draws_in_place_of_the_base_model(test: Path, tmp_path: Path) -> None:
    make_pipeline().vae.save_pretrained(tmp_path / "vae")
    moved(build_prior("ul-tiny-f8")).save_pretrained(tmp_path / "vae" / "prior")
    result = measure(test, tmp_path / "vae", prior=True)
    assert result["subject"]["generator"] == "prior"
    assert result["distances"]["means"]["num"] == 13


# ---------------------------------------------------------------- several processes, kills

SCRIPT = """
import os, signal, sys
from pathlib import Path
from tests.evaluation import test_generation as t
from ul_tokenizer.evaluation import drawing, reference_features
from ul_tokenizer.evaluation.nets import reference
real, train, model, folder = map(Path, sys.argv[1:5])
reference_features.CACHE, reference.CACHE = folder / "features", folder / "classifiers"
t.QUICK = t.sampling(num_images=30)
if len(sys.argv) > 5:
    whole = drawing.Drawer.draw
    def killed(self, numbers):
        if numbers[0] >= int(sys.argv[5]):
            os.kill(os.getpid(), signal.SIGKILL)
        return whole(self, numbers)
    drawing.Drawer.draw = killed
if __name__ == "__main__":
    nets = [t.Means(), f"classifier:{train},{real}"]
    t.measure(real, model, features=nets, train=train, output=folder / "out")
"""


def start(
    folder: Path, real: Path, train: Path, model: Path, *more: object, processes: int = 1
) -> subprocess.CompletedProcess[str]:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "script.py").write_text(SCRIPT)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    words = [*(launcher if processes > 1 else []), folder / "script.py", real, train, model, folder, *more]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *map(str, words)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=250, check=False)


def pictures(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.glob("*.pictures/*")}


@pytest.mark.multiprocess
@pytest.mark.slow
def test_two_processes_give_the_figures_of_one(model: Path, test: Path, train: Path, tmp_path: Path) -> None:
    for name, processes in (("one", 1), ("two", 2)):
        done = start(tmp_path / name, test, train, model, processes=processes)
        assert done.returncode == 0, done.stderr[-8000:]
        assert done.stderr.count("training a classifier") == 1
    (one,), (two,) = ((tmp_path / name / "out").glob("*.json") for name in ("one", "two"))
    assert figures(read_result(one)) == figures(read_result(two))
    assert pictures(one.parent) == pictures(two.parent)
    assert {"grid.png", "neighbours.png"} == pictures(one.parent).keys()


@pytest.mark.multiprocess
def test_a_killed_run_is_continued(
    model: Path, test: Path, train: Path, judge: str, tmp_path: Path, cache: Path
) -> None:
    folder, out = tmp_path / "killed", tmp_path / "killed" / "out"
    shutil.copytree(cache, folder / "classifiers")
    assert start(folder, test, train, model, 4 * BATCHES_PER_PART).returncode == -9
    assert len(list(out.glob(".parts/*/part-*.safetensors"))) == 1 and not list(out.glob("*.json"))
    done = start(folder, test, train, model)
    assert done.returncode == 0, done.stderr[-8000:]
    (path,) = out.glob("*.json")
    result, expected = (
        read_result(path),
        measure(
            test, model, samplings=[sampling(num_images=30)], features=[Means(), judge], train=train, output=tmp_path
        ),
    )
    assert result["key"] == expected["key"]
    for name in ("means", judge):
        found, whole = (each["distances"][name] for each in (result, expected))
        assert found["num"] == 30
        assert found["kid"]["value"] == pytest.approx(whole["kid"]["value"], rel=1e-3)  # other threads, other rounding
    assert {"grid.png", "neighbours.png"} == pictures(out).keys()
    assert Image.open(next(out.glob("*.pictures/grid.png"))).size == (10 * (SIDE + 2), 3 * (SIDE + 2))


def test_a_run_that_ends_while_it_writes_its_result_is_continued(
    model: Path, test: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError("the disk is full")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="full"):
        patch.setattr("ul_tokenizer.evaluation.generation.write_result", full)
        measure(test, model, output=tmp_path)
    monkeypatch.setattr(Drawer, "draw", None)
    measure(test, model, output=tmp_path)
    assert len(list(tmp_path.glob("*.pictures/grid.png"))) == 1
    assert not (tmp_path / ".parts").exists()
