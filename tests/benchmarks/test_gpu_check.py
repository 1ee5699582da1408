"""`benchmarks/gpu_check.py` on networks of no size and a CPU: what it checks, writes and refuses."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import _gpu_checks
import gpu_check
import pytest
import torch
from _gpu_checks import Bench, CheckError, check_precision

from ul_tokenizer.models.presets import build_prior

CPU = torch.device("cpu")
ON_CPU = ["--device", "cpu", "--quick"]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(CPU, True, tmp_path)


def run(output: Path, *words: str) -> tuple[int, dict[str, Any]]:
    status = gpu_check.main([*ON_CPU, "--output", str(output), *words])
    report: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
    return status, report


def test_steps_of_both_stages_and_the_encoding_job_are_measured(tmp_path: Path) -> None:
    status, report = run(tmp_path / "check.json", "--only", "precision,stage1,job,base")
    assert status == 0 and [check["name"] for check in report["checks"]] == ["precision", "stage1", "job", "base"]
    figures = {name: value for check in report["checks"] for name, value in check["figures"].items()}
    assert figures["stage 1: largest batch"] == figures["base: largest batch"] == 2
    for name in ("stage 1: images/s", "base: images/s", "encoding job: images/s"):
        assert figures[name] > 0
    assert 0 < figures["stage 1: fraction of the measured peak"] < 1
    assert figures["stage 1: waits for the GPU per step"] is None, "a CPU is never waited for"
    assert set(report["peaks_flops_per_second"]) == {"convolution", "matmul"}


def test_a_file_of_networks_of_no_size_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, report = run(tmp_path / "check.json", "--only", "precision")
    assert "say nothing about any machine" in report["note"]
    assert report["note"] in capsys.readouterr().out


@pytest.mark.slow
def test_all_checks_pass_here(tmp_path: Path) -> None:
    status, report = run(tmp_path / "check.json")
    assert status == 0, [check["error"] for check in report["checks"]]
    assert len(report["checks"]) == len(_gpu_checks.CHECKS)
    figures = report["checks"][-2]["figures"]
    assert figures["training: loss at the end"] < 0.9 * figures["training: loss at the start"]


def test_a_check_that_fails_is_named_and_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(bench: Bench) -> Iterator[tuple[str, Any]]:
        yield "first", 1
        raise CheckError("it is broken.")

    def crashing(bench: Bench) -> Iterator[tuple[str, Any]]:
        raise RuntimeError("out of\nmemory")
        yield

    checks = {"broken": broken, "crashing": crashing, "precision": check_precision}
    monkeypatch.setattr(gpu_check, "CHECKS", checks)
    status, report = run(tmp_path / "check.json", "--only", ",".join(checks))
    assert status == 1
    first, second, third = report["checks"]
    assert (first["passed"], first["error"], first["figures"]) == (False, "it is broken.", {"first": 1})
    assert (second["passed"], second["error"]) == (False, "RuntimeError: out of")
    assert third["passed"]


def test_values_that_are_not_finite_are_found(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def overflowing(network: Any) -> Any:
        with torch.no_grad():
            next(network.parameters()).fill_(float("inf"))
        return network

    monkeypatch.setattr(_gpu_checks, "awake", overflowing)
    with pytest.raises(CheckError, match="in bfloat16 these are not finite: encoder, decoder at -15"):
        list(check_precision(bench))


def test_weights_that_start_as_zero_are_awoken() -> None:
    """Otherwise every denoiser would return zero, which is finite whatever happens before its last layer."""
    network = _gpu_checks.awake(build_prior("ul-tiny-f8"))
    assert all(weight.any() for weight in network.parameters() if weight.ndim > 1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--device", "cpu"], "--device cpu needs --quick"),
        ([*ON_CPU, "--only", "nonsense"], "checks must be some of precision, .*, got 'nonsense'"),
    ],
)
def test_arguments_are_refused_in_a_sentence(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit:
        gpu_check.main(words)
    assert exit.value.code == 2
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_nothing_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gpu_check.main([])
    assert "needs a GPU that torch sees" in capsys.readouterr().err
