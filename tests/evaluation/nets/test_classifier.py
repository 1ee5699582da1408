"""The classifier: that it learns, repeats itself, and is trained once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.evaluation.conftest import squares
from ul_tokenizer.evaluation.nets import reference as reference_module
from ul_tokenizer.evaluation.nets.classifier import NUM_FEATURES, SmallClassifier, judge, train_classifier
from ul_tokenizer.evaluation.nets.labelled_images import LabelledImages
from ul_tokenizer.evaluation.nets.reference import Reference, load_reference

ROOT = Path(__file__).resolve().parents[3]


def only_folder(cache: Path) -> Path:
    (folder,) = cache.iterdir()
    return folder


def test_it_tells_coloured_squares_apart(reference: Reference) -> None:
    assert reference.test_accuracy == 1.0


@pytest.mark.parametrize(("channels", "side"), [(1, 8), (1, 28), (3, 33), (3, 128)])
def test_it_takes_images_of_any_small_size(channels: int, side: int) -> None:
    images = torch.zeros(2, channels, side, side, dtype=torch.uint8)
    judgement = judge(SmallClassifier(channels, 5).eval(), images)
    assert judgement.features.shape == (2, NUM_FEATURES)
    assert judgement.predictions.shape == (2,)


def test_accuracy_is_the_part_of_right_classes(reference: Reference, test: Path) -> None:
    judgement = judge(reference.classifier, LabelledImages(test).images)
    wrong = LabelledImages(test).labels.clone()
    wrong[:15] = (wrong[:15] + 1) % 3
    assert judgement.accuracy(wrong) == 0.75


def test_judging_does_not_depend_on_the_batch(reference: Reference, test: Path) -> None:
    images = LabelledImages(test).images
    one, many = judge(reference.classifier, images, batch_size=7), judge(reference.classifier, images)
    assert torch.allclose(one.features, many.features, atol=1e-5)


def test_the_same_seed_gives_the_same_weights_and_leaves_torchs_alone(
    train: Path, test: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ul_tokenizer.evaluation.nets.classifier.MIN_STEPS", 5)
    sets = LabelledImages(train), LabelledImages(test)
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    states = [train_classifier(*sets, seed=seed).classifier.state_dict() for seed in (0, 0, 1)]
    assert torch.equal(torch.rand(1), expected)
    same = [all(torch.equal(states[0][name], other[name]) for name in other) for other in states[1:]]
    assert same == [True, False]


def test_a_second_call_takes_it_from_the_cache(
    train: Path, test: Path, cache: Path, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    stamps = {path.name: path.stat().st_mtime_ns for path in only_folder(cache).iterdir()}
    monkeypatch.setattr(reference_module, "train_classifier", lambda *_: pytest.fail("it was trained again"))
    again = load_reference(train, test, cache_dir=cache)
    assert {path.name: path.stat().st_mtime_ns for path in only_folder(cache).iterdir()} == stamps
    assert (again.digest, again.image_shape, again.test_accuracy) == (reference.digest, (3, 16, 16), 1.0)
    images = LabelledImages(test).images
    assert torch.equal(judge(again.classifier, images).features, judge(reference.classifier, images).features)


def test_the_cache_says_what_it_holds(cache: Path, reference: Reference) -> None:
    facts = json.loads((only_folder(cache) / "classifier.json").read_text())
    assert facts["test_accuracy"] == 1.0
    assert facts["classes"] == ["blue", "green", "red"]
    assert facts["seed"] == 0


@pytest.fixture
def small_cache(train: Path, test: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own, with a classifier that is quickly trained."""
    monkeypatch.setattr("ul_tokenizer.evaluation.nets.classifier.MIN_STEPS", 5)
    load_reference(train, test, cache_dir=tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["classifier.safetensors", "classifier.json"])
@pytest.mark.parametrize("damage", ["cut", "flipped", "gone"])
def test_a_damaged_cache_is_made_again(train: Path, test: Path, small_cache: Path, name: str, damage: str) -> None:
    path = only_folder(small_cache) / name
    whole = path.read_bytes()
    middle = len(whole) // 2
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(
            whole[:middle] if damage == "cut" else whole[:middle] + bytes([whole[middle] ^ 0xFF]) + whole[middle + 1 :]
        )
    load_reference(train, test, cache_dir=small_cache)
    if name != "classifier.json":
        assert path.read_bytes() == whole
    assert json.loads((path.parent / "classifier.json").read_text())["sha256"]
    assert not list(path.parent.glob(".*"))


def test_other_data_or_another_seed_is_another_classifier(
    train: Path, test: Path, small_cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = squares(tmp_path_factory.mktemp("other"), 21, seed=3)
    load_reference(train, other, cache_dir=small_cache)
    load_reference(train, test, seed=1, cache_dir=small_cache)
    assert len(list(small_cache.iterdir())) == 3


def test_killing_it_in_training_leaves_no_cache(train: Path, test: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from ul_tokenizer.evaluation.nets import classifier, reference; classifier.MIN_STEPS = 10**6; "
        "print('ready', flush=True); reference.load_reference(*sys.argv[1:3], cache_dir=sys.argv[3])"
    )
    command = [sys.executable, "-c", code, str(train), str(test), str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == "ready\n"
        assert "training a classifier" in process.stderr.readline()
        time.sleep(0.3)
        os.kill(process.pid, signal.SIGKILL)
    assert not list(tmp_path.rglob("*.*"))


def test_test_images_of_another_shape_are_refused(train: Path, tmp_path: Path) -> None:
    from PIL import Image

    squares(tmp_path, 2, seed=0)
    for path in tmp_path.rglob("*.png"):
        Image.open(path).convert("L").save(path)
    with pytest.raises(ValueError, match=r"train's shape .* got \(1, 16, 16\), not \(3, 16, 16\)"):
        load_reference(train, tmp_path, cache_dir=tmp_path / "cache")
