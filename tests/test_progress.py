"""Progress in logs."""

from __future__ import annotations

import pytest

from ul_tokenizer import progress as module
from ul_tokenizer.progress import progress


def test_a_log_gets_a_line_from_time_to_time_with_the_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr("ul_tokenizer.progress.time.monotonic", lambda: clock[0])
    with progress("measuring", 1_000, "samples", completed=200, in_logs=True) as bar:
        for _ in range(12):
            clock[0] += 10
            bar.update(20)
    assert capsys.readouterr().err.splitlines() == [
        "measuring: 320 of 1,000 samples, 2/s, 0:05:40 left",
        "measuring: 440 of 1,000 samples, 2/s, 0:04:40 left",
    ]


@pytest.mark.parametrize("options", [{}, {"in_logs": True, "shown": False}])
def test_nothing_is_printed_unless_asked_for_and_shown(
    options: dict[str, bool], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LINE_SECONDS", 0.0)
    with progress("measuring", 10, "samples", **options) as bar:
        bar.update()
    assert capsys.readouterr().err == ""
