"""`benchmarks/speed.py` on networks of no size: what it measures, writes and refuses."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import speed
import torch
from _speed_networks import BaseShape, Entrant, Job, Network, Setting, Size
from _speed_report import HEAD, line
from _speed_rows import Row, Timer
from _speed_tasks import AXES, DC, GROUPS, KL, QUICK, Contest, of_preset
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderKLLTXVideo,
    AutoencoderKLWan,
    AutoencoderTiny,
    ConsistencyDecoderVAE,
)

from ul_tokenizer import _compat
from ul_tokenizer.evaluation.measures.flops import Flops

DC_WIDTHS = dict.fromkeys(("encoder_block_out_channels", "decoder_block_out_channels"), (32,) * 6)
LTX_WIDTHS = dict.fromkeys(("block_out_channels", "decoder_block_out_channels"), (8, 8, 8, 8))
LTX_LAYERS = dict.fromkeys(("layers_per_block", "decoder_layers_per_block"), (1,) * 5)
FAST = replace(
    QUICK,
    pictures=(of_preset("ul-tiny-f8"),),
    video=(of_preset("ul-tiny-f8", temporal_compression_ratio=4),),
    kl=Network("AutoencoderKL", partial(AutoencoderKL, **{**KL, "block_out_channels": (32,) * 4})),
    others=(
        Network("AutoencoderDC", partial(AutoencoderDC, **{**DC, **DC_WIDTHS})),
        Network("AutoencoderTiny", AutoencoderTiny),
    ),
    consistency=Network(
        "ConsistencyDecoderVAE", partial(ConsistencyDecoderVAE, decoder_block_out_channels=(32, 32, 32, 32))
    ),
    wan=Network("AutoencoderKLWan", partial(AutoencoderKLWan, base_dim=8, num_res_blocks=1)),
    ltx=Network("AutoencoderKLLTXVideo", partial(AutoencoderKLLTXVideo, **LTX_WIDTHS, **LTX_LAYERS)),
    base=BaseShape(channels=64, layers=1),
    sides=(32,),
    steps=(1, 2),
    training={"ul-tiny-f8": Size(1, 32)},
    base_size=Size(1, 4),
    sampling_size=Size(1, 4),
    sampling_steps=2,
    clip=Size(1, 32, frames=9),
    growing_sides=(32, 64),
    growing_batches=(1, 2),
    growing_frames=(1, 9),
)
PEERS = {"encode": "AutoencoderKL", "decode": "AutoencoderKL", "train": "AutoencoderKL"}
PEERS |= {"base": "DiTTransformer2DModel", "video": "AutoencoderKLWan"}


@pytest.fixture(scope="module")
def patched() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speed, "QUICK", FAST)
        patch.setattr(speed, "convolution_peak", lambda dtype, device: 1e9)
        patch.setattr(speed, "matmul_peak", lambda dtype, device: 2e9)
        yield patch


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, patched: pytest.MonkeyPatch) -> Path:
    path: Path = tmp_path_factory.mktemp("speed") / "deeper" / "tiny.json"
    assert speed.main(["--quick", "--runs", "2", "--output", str(path)]) == 0
    return path


@pytest.fixture(scope="module")
def result(written: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(written.read_text(encoding="utf-8"))
    return content


# ---------------------------------------------------------------- what is written


def test_a_result_says_what_it_is_and_where_it_was_measured(result: dict[str, Any]) -> None:
    assert (result["format"], result["version"]) == ("ul_tokenizer.speed", 1)
    environment = result["environment"]
    assert environment.keys() >= {"machine", "device", "python", "torch", "diffusers", "ul_tokenizer", "git_commit"}
    assert environment["torch"] == torch.__version__
    assert result["options"]["runs"] == 2
    assert result["peaks_flops_per_second"] == {"float32": {"convolution": 1e9, "matmul": 2e9}}
    assert result["missing"] == []


def test_every_group_is_measured_beside_its_peers(result: dict[str, Any]) -> None:
    networks = {group: {row["network"] for row in result["rows"] if row["group"] == group} for group in GROUPS}
    assert networks["encode"] == {"ul-tiny-f8", "AutoencoderKL", "AutoencoderDC", "AutoencoderTiny"}
    assert networks["decode"] == networks["encode"] | {"ConsistencyDecoderVAE"}
    assert networks["train"] == {"ul-tiny-f8", "AutoencoderKL"}
    assert networks["base"] == {"UnifiedLatentsTransformer", "DiTTransformer2DModel"}
    assert networks["video"] == {"ul-tiny-f8, 4", "AutoencoderKLWan", "AutoencoderKLLTXVideo"}
    assert {row["axis"] for row in result["rows"] if row["group"] == "growth"} == set(AXES)
    for group, peer in PEERS.items():
        assert {row["peer"] for row in result["rows"] if row["group"] == group} == {peer, None}


def test_every_figure_is_finite_and_positive(result: dict[str, Any]) -> None:
    for row in result["rows"]:
        seconds = row["seconds"]
        assert 0 < seconds["min"] <= seconds["median"] <= seconds["max"] < math.inf
        assert sum(row["flops"].values()) > 0 and row["parameters"] > 0
        assert row["peak_memory_bytes"] is None or row["peak_memory_bytes"] >= 0
        if row["peer"]:
            assert 0 < row["ratio_to_peer"]["min"] <= row["ratio_to_peer"]["median"] < math.inf
        else:
            assert row["ratio_to_peer"] is None


def test_fractions_are_of_the_peaks(result: dict[str, Any]) -> None:
    for row in result["rows"]:
        rate = sum(row["flops"].values()) / row["seconds"]["median"]
        assert row["of_peak"] == pytest.approx({"convolution": rate / 1e9, "matmul": rate / 2e9})


def test_the_flops_of_decoding_grow_with_its_steps(result: dict[str, Any]) -> None:
    rows = [row for row in result["rows"] if row["group"] == "decode" and row["is_ours"]]
    flops = {row["job"]: sum(row["flops"].values()) for row in rows}
    call = flops.pop("decoder call")
    assert flops.keys() == {"decode, 1 step", "decode, 2 steps"}
    assert flops["decode, 2 steps"] - flops["decode, 1 step"] == call


def test_plots_lie_beside_the_result(written: Path) -> None:
    pytest.importorskip("matplotlib")
    plots = {path.name for path in written.with_suffix(".pictures").iterdir()}
    assert plots == {"ratios-float32.png", "growth-float32.png"}


def test_without_matplotlib_there_are_figures_but_no_plots(
    patched: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    speed.main(["--quick", "--runs", "1", "--only", "base", "--output", str(tmp_path / "base.json")])
    assert "matplotlib is not installed" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["base.json"]


# ---------------------------------------------------------------- how it is measured


def contest_of(order: list[str], **seconds: float) -> Contest:
    """Entrants that do nothing but write down their names; the peer is the last one."""

    def entrant(name: str) -> Entrant:
        def jobs(setting: Setting, size: Size) -> Iterator[Job]:
            yield Job("nothing", 1, lambda: order.append(name))

        return Entrant(name, False, jobs)

    *entrants, peer = map(entrant, seconds)
    return Contest("encode", Size(1, 32), peer, tuple(entrants))


def clock(order: list[str], seconds: dict[str, list[float]]) -> Callable[..., float]:
    """Calls, and takes the next of the seconds of whoever was called."""

    def seconds_of(call: Callable[[], Any], device: torch.device) -> float:
        call()
        return seconds[order[-1]].pop(0)

    return seconds_of


def test_a_ratio_is_the_median_of_pairs_timed_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    contest = contest_of(order, ours=0.0, peer=0.0)
    monkeypatch.setattr("_speed_rows.memory_of", lambda call, device: None)
    monkeypatch.setattr("_speed_rows.split_flops", lambda call: Flops(1, 1))
    times = {"ours": [1.0, 8.0, 3.0], "peer": [2.0, 4.0, 12.0]}
    monkeypatch.setattr("_speed_rows.seconds_of", clock(order, times))
    ours, peer = Timer(runs=3).rows(contest, Setting(torch.device("cpu"), torch.float32, compiled=False))
    assert order == ["ours", "peer"] * 3
    assert isinstance(ours, Row) and isinstance(peer, Row)
    assert ours.ratio == (0.5, 0.25, 2.0) and ours.seconds == (3.0, 1.0, 8.0)
    assert peer.ratio is None and peer.seconds == (4.0, 2.0, 12.0)


def test_what_does_not_fit_into_memory_is_left_out_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    contest = contest_of([], small=0.0, large=0.0, peer=0.0)

    def jobs(setting: Setting, size: Size) -> Iterator[Job]:
        raise torch.OutOfMemoryError("out of memory.")
        yield

    small, large = contest.entrants
    contest = replace(contest, entrants=(replace(large, jobs=jobs), small))
    setting = Setting(torch.device("cpu"), torch.float32, compiled=False)
    sentence, *rows = Timer(runs=1).rows(contest, setting)
    assert sentence == "encode: large at 1×32² is left out: out of memory."
    assert [row.network for row in rows if isinstance(row, Row)] == ["small", "peer"]


def test_another_error_is_not_hidden() -> None:
    contest = contest_of([], ours=0.0, peer=0.0)

    def jobs(setting: Setting, size: Size) -> Iterator[Job]:
        raise RuntimeError("a mistake")
        yield

    contest = replace(contest, entrants=(replace(contest.entrants[0], jobs=jobs),))
    with pytest.raises(RuntimeError, match="a mistake"):
        list(Timer(runs=1).rows(contest, Setting(torch.device("cpu"), torch.float32, compiled=False)))


def test_bfloat16_and_compiled_rows_follow_those_in_float32(
    patched: pytest.MonkeyPatch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[dict[str, Any]] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **kwargs: compiled.append(kwargs))
    words = ["--quick", "--runs", "1", "--only", "base", "--dtypes", "float32,bfloat16", "--compile"]
    speed.main([*words, "--output", str(tmp_path / "base.json")])
    rows = json.loads((tmp_path / "base.json").read_text())["rows"]
    settings = list(dict.fromkeys((row["dtype"], row["compiled"]) for row in rows))
    assert settings == [("float32", False), ("float32", True), ("bfloat16", False), ("bfloat16", True)]
    assert compiled == [{"dynamic": False}] * 8  # training and sampling, ours and the peer's, in two dtypes


def test_emulated_bfloat16_is_left_out_unless_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_compat, "is_native_on_cpu", lambda precision: False)
    only, sentence = speed.settings_of(speed.parsed([]))
    assert isinstance(only, Setting) and only.dtype == torch.float32
    assert isinstance(sentence, str) and "emulates" in sentence
    (asked,) = speed.settings_of(speed.parsed(["--dtypes", "bfloat16"]))
    assert isinstance(asked, Setting) and asked.dtype == torch.bfloat16


# ---------------------------------------------------------------- what is printed and refused


def test_the_table_fits_120_columns(
    patched: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], result: dict[str, Any]
) -> None:
    speed.main(["--quick", "--runs", "1", "--only", "encode,base", "--shares"])
    lines = capsys.readouterr().out.splitlines()
    assert HEAD in lines and len(HEAD) <= 120
    assert max(len(text) for text in lines if not text.startswith("  ")) <= 120  # a slow moment widens a column
    assert any(text.startswith("  ") and "matrix products" in text for text in lines), "shares by kind of operator"


def test_a_row_of_long_names_and_large_figures_fits_too() -> None:
    order: list[str] = []
    (row, _) = Timer(runs=1).rows(
        contest_of(order, ours=0.0, peer=0.0), Setting(torch.device("cpu"), torch.float32, compiled=False)
    )
    assert isinstance(row, Row)
    long = replace(row, network="n" * 50, job="j" * 50, size=Size(1000, 100000, 1000), memory=10**11)
    assert len(line(long, {"convolution": 1e9, "matmul": 1e9})) <= 120


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--only", "encode,nonsense"], "groups must be some of encode, decode, train, base, growth, video"),
        (["--dtypes", "float8"], "dtypes must be some of float32, bfloat16, got 'float8'."),
        (["--device", "nonsense"], "the device must be cpu, cuda or cuda:N, got 'nonsense'."),
        (["--device", "cuda:99"], "the device must exist, got 'cuda:99' where torch sees"),
        (["--sizes", "64,100"], "sides must be multiples of 32, got 100."),
        (["--sizes", ""], "the value must be a whole number of at least 1, got ''."),
        (["--runs", "0"], "the value must be a whole number of at least 1, got '0'."),
    ],
)
def test_a_bad_argument_is_refused_in_a_sentence(
    words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        speed.main(words)
    assert sentence in capsys.readouterr().err


def test_sizes_and_batch_reach_pictures_and_clips() -> None:
    scale = speed.scale_of(speed.parsed(["--quick", "--sizes", "64,96", "--batch", "3"]))
    assert (scale.sides, scale.growing_sides, scale.batch, scale.clip.batch) == ((64, 96), (64, 96), 3, 3)
