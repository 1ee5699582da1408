"""What trackers get beside the JSON lines: the validation picture and the arguments of the run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ul_tokenizer.training.engine.tracking import hyperparameters, log_picture

Train = Callable[..., int]
Logged = Callable[[Path], list[dict[str, Any]]]


def test_tensorboard_gets_scalars_the_picture_and_the_hyperparameters(
    train: Train, logged: Logged, tmp_path: Path
) -> None:
    from tensorboard.backend.event_processing import event_accumulator
    from tensorboard.plugins.hparams import plugin_data_pb2

    changes = {"prior_config": {"dropout": 0.5}, "learning_rate": 2e-3}
    assert train(tmp_path, report_to="tensorboard", **changes, validation_steps=1, hub_token="secret") == 0
    folder = tmp_path / "logs" / "unified-latents"
    reader = event_accumulator.EventAccumulator(str(folder))
    reader.Reload()
    scalars = {(e.step, tag): e.value for tag in reader.Tags()["scalars"] for e in reader.Scalars(tag)}
    for line in logged(tmp_path):
        for name, value in line.items():
            assert name == "step" or scalars[line["step"], name] == pytest.approx(value, rel=1e-6, abs=1e-9)

    pictures = reader.Images("validation/picture")
    assert [picture.step for picture in pictures] == [1, 2]
    file = tmp_path / "picture.png"
    file.write_bytes(pictures[1].encoded_image_string)
    kept = np.asarray(Image.open(tmp_path / "samples" / "step-0000002.png"))
    assert np.array_equal(np.asarray(Image.open(file)), kept)

    (settings,) = (path.parent for path in folder.glob("*/events.out.tfevents.*"))
    reader = event_accumulator.EventAccumulator(str(settings))
    reader.Reload()
    start = reader.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    values = plugin_data_pb2.HParamsPluginData.FromString(start).session_start_info.hparams
    assert values["learning_rate"].number_value == 2e-3 and values["prior_config.dropout"].number_value == 0.5
    assert values["preset"].string_value == "ul-tiny-f8" and values["revision"].string_value == "null"
    assert values["use_ema"].number_value == 1 and values["train_batch_size"].number_value == 2
    assert "hub_token" not in values and not any(b"secret" in path.read_bytes() for path in files_below(tmp_path))


def files_below(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".safetensors")


def test_hyperparameters_are_flat_values_that_every_tracker_takes() -> None:
    values = {"a": True, "b": 1, "c": 0.5, "d": "x", "e": None, "f": [1, 2], "g": {"h": None, "i": {"j": 3}}, "k": {}}
    expected = {"a": True, "b": 1, "c": 0.5, "d": "x", "e": "null", "f": "[1, 2]", "g.h": "null", "g.i.j": 3}
    assert hyperparameters(values) == expected
    assert all(type(value) in (bool, int, float, str) for value in hyperparameters(values).values())


@pytest.mark.parametrize(("name", "is_list"), [("wandb", True), ("swanlab", True), ("aim", False), ("clearml", False)])
def test_every_tracker_gets_the_picture_in_its_own_form_and_others_none(name: str, is_list: bool) -> None:
    class Tracker:
        def __init__(self) -> None:
            self.name = name
            self.calls: list[Any] = []

        def log_images(self, values: dict[str, Any], step: int) -> None:
            self.calls.append((values, step))

    tracker, picture = Tracker(), Image.new("RGB", (2, 2))
    trackers: Any = [object(), tracker]
    log_picture(trackers, "validation/picture", picture, 7)
    assert tracker.calls == [({"validation/picture": [picture] if is_list else picture}, 7)]


def test_a_picture_that_cannot_be_logged_does_not_end_the_run(
    train: Train, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("ul_tokenizer.training.engine.loop.log_picture", fail)
    assert train(tmp_path) == 0
    assert "the picture of step 2 could not be logged: no space left; training goes on." in capfd.readouterr().err
    assert (tmp_path / "samples" / "step-0000002.png").is_file()
