"""Rows of figures: added once they are measured, and not measured again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ul_tokenizer.evaluation.sweep import append_row, read_rows, run_rows, weights_sha256

KEYS: list[dict[str, Any]] = [{"steps": 4, "interval": (1.0, 2.0)}, {"steps": 8, "interval": None}]


class Measuring:
    """Counts; stops as a killed process would."""

    def __init__(self, dies_at: int | None = None) -> None:
        self.measured: list[int] = []
        self.dies_at = dies_at

    def __call__(self, index: int) -> dict[str, Any]:
        if index == self.dies_at:
            raise KeyboardInterrupt
        self.measured.append(index)
        return {"figure": 10 * index}


def test_rows_are_there_as_soon_as_they_are_measured_and_are_not_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "made" / "rows.jsonl"
    with pytest.raises(KeyboardInterrupt):
        run_rows(KEYS, Measuring(dies_at=1), path)
    assert [row["figure"] for row in read_rows(path)] == [0]
    again = Measuring()
    rows = run_rows(KEYS, again, path)
    assert again.measured == [1]
    assert [(row["steps"], row["figure"]) for row in rows] == [(4, 0), (8, 10)]
    last = Measuring()
    assert run_rows(KEYS, last, path) == read_rows(path)
    assert last.measured == []


def test_a_row_of_another_key_is_no_result(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    run_rows(KEYS, Measuring(), path)
    for other in ({"steps": 4, "interval": None}, {**KEYS[0], "seed": 1}):
        measuring = Measuring()
        run_rows([other], measuring, path)
        assert measuring.measured == [0]


def test_a_key_named_twice_is_measured_once() -> None:
    measuring = Measuring()
    assert len(run_rows([KEYS[0], KEYS[0]], measuring, None)) == 2
    assert measuring.measured == [0]


def test_a_line_that_a_killed_process_cut_short_is_dropped_and_made_again(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    run_rows(KEYS, Measuring(), path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    measuring = Measuring()
    run_rows(KEYS, measuring, path)
    assert measuring.measured == [1]
    assert path.read_bytes() == whole


@pytest.mark.parametrize("content", ["a picture\n", "[1, 2]\n", '{"steps": 4}\n\n'])
def test_a_file_of_something_else_is_refused_and_left_alone(tmp_path: Path, content: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"JSON lines.*rows.jsonl with another line \d"):
        run_rows(KEYS, Measuring(), path)
    assert path.read_text() == content


def test_a_figure_that_json_has_no_word_for_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="float"):
        append_row(tmp_path / "rows.jsonl", {"figure": float("nan")})
    assert not (tmp_path / "rows.jsonl").exists() or read_rows(tmp_path / "rows.jsonl") == []


def test_weights_are_told_apart_by_a_single_bit_and_by_their_dtype() -> None:
    network = nn.BatchNorm2d(3)
    same, other = weights_sha256(network), weights_sha256(nn.BatchNorm2d(3))
    assert same == other
    with torch.no_grad():
        network.weight[1] += 1e-6
    assert weights_sha256(network) != same
    assert weights_sha256(network.bfloat16()) != weights_sha256(nn.BatchNorm2d(3).half())
