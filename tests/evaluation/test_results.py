"""Result files: what is refused, what a result is called, and which results may share a table."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from tests.evaluation.results_by_hand import autoencoder, codec, generation, reconstructions, write_all
from ul_tokenizer.evaluation.json_paths import MissingPathError, look_up
from ul_tokenizer.evaluation.results import (
    by_protocol,
    figure,
    label_of,
    read_result,
    read_results,
    write_result,
)


def test_a_written_result_is_read_as_it_was(tmp_path: Path) -> None:
    made = autoencoder("ul-photo-f8", 4, 0.38, 26.4, 15.2)
    write_result(tmp_path / "a.json", made)
    assert read_result(tmp_path / "a.json") == made


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": "ul_tokenizer.speed"}, "must have the format 'ul_tokenizer.evaluation', got 'ul_tokenizer.speed'."),
        ({"version": 7}, "must have version 1 of the format, got version 7."),
        ({"kind": "magic"}, "must have a kind of reconstruction, generation, prediction, got 'magic'."),
        ({"protocol": {"data": "photos"}}, "must have 'protocol.num_samples', which is missing."),
        ({"metrics": None}, "must have 'metrics', which is missing."),
        ({"metrics": {"ssim": 0.9}}, "must have 'metrics.ssim.value', which is missing."),
        (
            {"distances": {"inception": {"net": {}, "num": 9}}},
            "must have 'distances.inception.reference_num', which is",
        ),
        ({"missing": "nothing"}, "must have a list as 'missing', got 'nothing'."),
        ({"key": None}, "must have 'key', which is missing."),
    ],
)
def test_what_is_no_result_of_this_version_is_refused_in_a_sentence_with_the_file(
    tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(codec("jpeg:30", 0.5, 26.0) | change), encoding="utf-8")
    with pytest.raises(ValueError) as error:
        read_result(path)
    assert str(error.value).startswith(f"{path} {words}")


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"", b"[1]", b"3"])
def test_a_file_that_is_no_json_object_is_refused_in_a_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.json must .*(got no JSON|got None)\.$"):
        read_result(tmp_path / "a.json")


def test_folders_give_their_json_files_by_name_and_no_file_comes_twice(tmp_path: Path) -> None:
    folder = write_all(tmp_path / "r", {"b": codec("jpeg:5", 1, 20), "a": codec("jpeg:9", 1, 20)})
    (folder / "notes.txt").write_text("no result")
    found = [file.path.name for file in read_results([folder / "b.json", folder])]
    assert found == ["b.json", "a.json"]
    assert [file.path.name for file in read_results([folder])] == ["a.json", "b.json"]


def test_a_path_without_results_is_refused_in_a_sentence(tmp_path: Path) -> None:
    for paths, words in (
        ([], "paths must name at least one result file or folder, got none."),
        ([tmp_path / "no"], "must be a result file or a folder with some, but there is nothing."),
        ([tmp_path], "must be a folder with result files"),
    ):
        with pytest.raises(ValueError, match=words):
            read_results(paths)


def test_an_infinite_psnr_is_written_as_null_and_another_infinity_or_a_nan_is_refused(tmp_path: Path) -> None:
    made = codec("png", 3.0, 26.0)
    made["metrics"]["psnr_of_mean_mse"]["value"] = math.inf
    write_result(tmp_path / "a.json", made)
    read = read_result(tmp_path / "a.json")
    assert read["metrics"]["psnr_of_mean_mse"]["value"] is None
    for value, place in ((math.nan, "psnr_of_mean_mse"), (math.inf, "ssim"), (-math.inf, "mean_psnr")):
        made = codec("png", 3.0, 26.0)
        made["metrics"][place]["value"] = value
        with pytest.raises(ValueError, match=rf"^metrics\.{place}\.value must be finite, got -?(nan|inf)\.$"):
            write_result(tmp_path / "b.json", made)
    assert not (tmp_path / "b.json").exists()


def test_a_result_with_a_missing_part_is_not_written(tmp_path: Path) -> None:
    made = codec("jpeg:5", 1, 20)
    del made["environment"]
    with pytest.raises(ValueError, match="'environment'"):
        write_result(tmp_path / "a.json", made)


# ---------------------------------------------------------------- names and figures


def test_labels_say_what_was_measured() -> None:
    assert label_of(codec("jpeg:30", 0.5, 26.0)) == "jpeg:30"
    assert label_of(autoencoder("ul-photo-f8", 1, 0.4, 26, 9)) == "ul-photo-f8, 1 step"
    assert label_of(autoencoder("me/kl", None, 1.0, 26, 9, "AutoencoderKL")) == "me/kl"
    made = autoencoder("ul-photo-f8", 4, 0.4, 26, 9)
    made["subject"] |= {"latent": "mode", "dtype": "bfloat16"}
    assert label_of(made) == "ul-photo-f8, 4 steps, latent without noise, bfloat16"
    drawn = generation("ul-fashion", 32, 4, 12.0)
    assert label_of(drawn) == "ul-fashion, ddim, 32 steps, guidance 2.5, 4 decoding steps"
    drawn["subject"] |= {"generator": "prior", "unconditional": True, "decode": "clean", "guidance_scale": 1.0}
    expected = "ul-fashion, stage-1 prior, ddim, 32 steps, without classes, decoded clean, 4 decoding steps"
    assert label_of(drawn) == expected
    assert "32 steps" not in label_of(drawn, without=("num_inference_steps",))


def test_a_figure_that_was_not_measured_is_none() -> None:
    made = codec("jpeg:30", 0.5, 26.0)
    assert figure(made, "metrics.psnr_of_mean_mse.value") == 26.0
    assert figure(made, "metrics.lpips.value") is None


DOCUMENT = {
    "rows": [{"model": "a", "steps": 1, "s": {"t": 5}}, {"model": "a", "steps": 4, "s": {"t": 6}}],
    "a.b": {"c": 7},
}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("rows[0].s.t", 5),
        ("rows[-1].s.t", 6),
        ("rows[model=a,steps=4].s.t", 6),
        ("rows[s.t=5].steps", 1),
        ("a.b.c", 7),
    ],
)
def test_paths_lead_through_keys_lists_and_conditions(path: str, value: int) -> None:
    assert look_up(DOCUMENT, path) == value


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("rows[2].s", r"must have an index within its list of 2, got \[2\]"),
        ("rows[model=a].s", r"must match one object, but \[model=a\] matches 2"),
        ("rows[model=b].s", r"must match one object, but \[model=b\] matches 0"),
        ("rows[model].s", r"must have \[number\] or \[key=value"),
        ("rows[0].z", r"there is no 'z': there are model, steps, s"),
        ("a.c", r"there is no 'a\.c'"),
        ("a.b.c.d", r"there are no keys"),
        ("a.b[0]", r"brackets only after a list"),
    ],
)
def test_a_path_to_nothing_is_refused_with_what_there_is(path: str, words: str) -> None:
    with pytest.raises(MissingPathError, match=words):
        look_up(DOCUMENT, path)


# ---------------------------------------------------------------- protocols


def test_results_of_another_protocol_or_kind_stand_apart(tmp_path: Path) -> None:
    other = codec("jpeg:5", 1, 20)
    other["protocol"]["crop"] = "center"
    predicted = codec("jpeg:5", 1, 20) | {"kind": "prediction"}
    folder = write_all(tmp_path / "r", {"a": codec("jpeg:5", 1, 20), "b": other, "c": predicted})
    sections = by_protocol(read_results([folder]))
    assert [[row.path.stem for row in section.rows] for section in sections] == [["a"], ["b"], ["c"]]


def test_samples_that_one_model_broke_are_no_part_of_the_protocol(tmp_path: Path) -> None:
    other = autoencoder("ul-video", 1, 0.5, 20, 9)
    other["nonfinite"] = ["a.png"]
    folder = write_all(tmp_path / "r", {"a": codec("jpeg:5", 1, 20), "b": other})
    (section,) = by_protocol(read_results([folder]))
    assert len(section.rows) == 2


def test_rows_are_ordered_by_kind_of_model_names_and_numbers_whatever_the_files_order(tmp_path: Path) -> None:
    folder = write_all(tmp_path / "r", reconstructions())
    files = read_results([folder])
    (one,), (other,) = by_protocol(files), by_protocol(files[::-1])
    assert one == other
    labels = [row.label for row in one.rows]
    assert labels[:3] == ["runs/my-model, 1 step", "runs/my-model, 4 steps", "ul-photo-f8, 1 step"]
    assert labels[5:8] == ["ul-photo-f8, 16 steps", "mit-han-lab/dc-ae-f32c32", "stabilityai/sd-vae-ft-mse"]
    assert labels[8:10] == ["avif:5", "avif:20"]


def test_two_results_with_one_label_are_told_apart_by_their_files(tmp_path: Path) -> None:
    one = write_all(tmp_path / "one", {"a": codec("jpeg:5", 1, 20), "b": codec("jpeg:5", 1, 21)})
    other = write_all(tmp_path / "other", {"a": codec("jpeg:5", 1, 22)})
    (section,) = by_protocol(read_results([one, other]))
    labels = [row.label for row in section.rows]
    assert len(set(labels)) == 3
    assert "jpeg:5 (b)" in labels
