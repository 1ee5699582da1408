"""The report: what its page, table, plots and pictures show, and what it leaves alone."""

from __future__ import annotations

import csv
import io
import re
import sys
from pathlib import Path

import pytest
import typer
from PIL import Image, ImageChops
from typer.testing import CliRunner

from tests.evaluation.results_by_hand import (
    add_pictures,
    autoencoder,
    codec,
    compressed,
    generations,
    picture,
    reconstructions,
    write_all,
)
from ul_tokenizer.cli.evaluate_report import report
from ul_tokenizer.cli.reporting import reported
from ul_tokenizer.evaluation.report.page import MARK, Report, make_report, write_report
from ul_tokenizer.evaluation.report.pictures import difference, picture_grid
from ul_tokenizer.evaluation.report.plots import distance_against_steps, rate_distortion, series_of
from ul_tokenizer.evaluation.results import by_protocol, label_of, read_results

app = typer.Typer()
app.command()(reported(report))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of two protocols, some with pictures."""
    results = write_all(tmp_path_factory.mktemp("made") / "results", reconstructions() | generations())
    for name, quality in (
        ("ul-photo-f8-1", 30),
        ("kl", 50),
        ("jpeg-5", 5),
        ("jpeg-20", 20),
        ("jpeg-80", 80),
        ("avif-5", 5),
        ("avif-20", 9),
    ):
        add_pictures(results / f"{name}.json", quality)
    drawn = results / "fashion-32-4.pictures"
    drawn.mkdir()
    picture(5).save(drawn / "grid.png")
    picture(6).save(drawn / "neighbours.png")
    return results


@pytest.fixture(scope="module")
def made(folder: Path) -> Report:
    pytest.importorskip("matplotlib")
    return make_report(read_results([folder]))


@pytest.fixture(scope="module")
def page(made: Report) -> str:
    return made.files["report.md"].decode()


def cells(page: str, label: str) -> list[list[str]]:
    """The cells behind a label, in each table that has a line with it."""
    lines = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith(f"| {label} |")]
    return [line[1:] for line in lines]


# ---------------------------------------------------------------- the page


def test_each_protocol_has_a_section_with_all_its_parts(page: str) -> None:
    headings = re.findall(r"^## (.*)$", page, re.MULTILINE)
    assert headings == [
        "1. Reconstruction of photos/validation, 256 samples",
        "2. Generation, measured against fashion-mnist/test, 1,000 samples",
    ]
    assert page.count("| pixels sha256 | `" + "c3" * 32 + "` |") == 2


def test_a_figure_stands_with_its_interval_and_bits_with_their_kind(page: str) -> None:
    results = cells(page, "ul-photo-f8, 1 step")[0]
    assert results[0] == "26.91 [26.66, 27.16]"
    assert results[3:] == ["0.382 [0.370, 0.394]", "bound by the prior"]
    assert cells(page, "jpeg:20")[0][4] == "file bytes"
    assert cells(page, "stabilityai/sd-vae-ft-mse")[0][4] == "nominal, 16 bits per latent value"


def test_a_distance_stands_beside_its_floor_and_its_numbers_of_images(page: str) -> None:
    distances = cells(page, "ul-photo-f8, 4 steps")[1]
    assert distances == ["15.20", "1.20", "12.7", "3.80 ± 0.70", "0.12", "100 × 256", "256", "256"]


def test_a_refused_distance_is_a_dash_with_its_reason_below(page: str) -> None:
    assert cells(page, "mit-han-lab/dc-ae-f32c32")[1][:3] == ["–", "–", "–"]
    assert "* mit-han-lab/dc-ae-f32c32: FD-EffLite0 needs more images than its 1280 features, got 256; use KID." in page


def test_what_was_not_measured_is_said_once_and_skipped_samples_are_named(page: str) -> None:
    assert page.count("* all: LPIPS needs the weights of AlexNet") == 2
    assert r"* broken\|.jpg: cannot be read: image file is truncated." in page


def test_reconstructions_that_are_not_finite_are_counted_and_named(tmp_path: Path) -> None:
    broken = autoencoder("ul-video", 1, 0.5, 20, 9)
    broken["nonfinite"] = ["a.png", "b.png"]
    made = make_report(read_results([write_all(tmp_path / "r", {"a": broken})]))
    expected = "* ul-video, 1 step: 2 reconstructions with NaN or infinity, so that no mean is given: a.png, b.png."
    assert expected in made.files["report.md"].decode()


def test_an_infinite_psnr_and_a_figure_that_is_absent_look_different(tmp_path: Path) -> None:
    exact = codec("png", 3.0, 26.0)
    exact["metrics"]["psnr_of_mean_mse"] = {"value": float("inf"), "low": 90.0, "high": float("inf")}
    lpips = codec("webp:9", 3.0, 26.0)
    lpips["metrics"]["lpips"] = {"value": 0.125}
    made = make_report(read_results([write_all(tmp_path / "r", {"a": exact, "b": lpips})]))
    results = cells(made.files["report.md"].decode(), "png")[0]
    assert results[0] == "∞ [90.00, ∞]"
    assert results[3] == "–"


def test_networks_with_other_weights_have_tables_of_their_own(tmp_path: Path) -> None:
    other = codec("jpeg:9", 1.0, 26.0)
    net = other["distances"]["efficientnet-lite0"]["net"]
    other["distances"]["efficientnet-lite0"]["net"] = {**net, "weights_sha256": "12" * 32}
    made = make_report(read_results([write_all(tmp_path / "r", {"a": codec("jpeg:5", 1, 20), "b": other})]))
    assert made.files["report.md"].decode().count("### Distances on efficientnet-lite0") == 2


def test_machines_that_differ_are_named_with_their_results(tmp_path: Path) -> None:
    other = codec("jpeg:9", 1.0, 26.0)
    other["environment"]["machine"] = "another"
    made = make_report(read_results([write_all(tmp_path / "r", {"a": codec("jpeg:5", 1, 20), "b": other})]))
    assert "\n* jpeg:9: machine another," in made.files["report.md"].decode()


def test_everything_that_the_page_shows_is_there_and_nothing_else(made: Report, page: str) -> None:
    shown = re.findall(r"!\[[^]]*\]\(([^)]+)\)", page)
    assert len(shown) == len(set(shown)) == 9
    assert {*shown, "report.md", "results.csv"} == set(made.files)
    for name in shown:
        Image.open(io.BytesIO(made.files[name])).verify()


def test_the_same_files_give_the_same_bytes(made: Report, folder: Path) -> None:
    assert make_report(read_results([folder])).files == made.files


# ---------------------------------------------------------------- CSV


def test_the_table_has_a_row_for_each_result_with_all_figures_in_full(made: Report) -> None:
    rows = list(csv.DictReader(io.StringIO(made.files["results.csv"].decode())))
    assert len(rows) == len(reconstructions()) + len(generations())
    (row,) = (row for row in rows if row["label"] == "ul-photo-f8, 4 steps")
    assert float(row["metrics.psnr_of_mean_mse.value"]) == 26.42
    assert float(row["distances.efficientnet-lite0.kid.floor"]) == 0.00012
    assert row["protocol.pixels_sha256"] == "c3" * 32
    assert row["subject.num_inference_steps"] == "4"


# ---------------------------------------------------------------- plots


def test_a_report_without_matplotlib_has_no_plots_and_says_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    bare = make_report(read_results([folder]))
    assert bare.without_plots == "There are no plots: plots need matplotlib: pip install 'ul_tokenizer[plot]'."
    assert bare.without_plots in bare.files["report.md"].decode()
    assert {name for name in bare.files if name.endswith(".png")} == {
        "2-fashion-32-4-grid.png",
        "2-fashion-32-4-neighbours.png",
        "1-pictures.png",
    }


def test_plots_do_not_depend_on_the_users_own_style(folder: Path) -> None:
    matplotlib = pytest.importorskip("matplotlib")
    section = by_protocol(read_results([folder]))[0]
    plain = rate_distortion(section)
    with matplotlib.rc_context({"axes.facecolor": "black", "lines.linewidth": 9}):
        assert rate_distortion(section) == plain
        assert matplotlib.rcParams["lines.linewidth"] == 9


def test_qualities_of_a_codec_and_steps_of_a_model_are_one_series(folder: Path) -> None:
    rows = by_protocol(read_results([folder]))[0].rows
    series = series_of(rows, lambda row: label_of(row.result, without=("name", "num_inference_steps")))
    assert {one.label: len(one.rows) for one in series} == {
        "runs/my-model": 2,
        "ul-photo-f8": 4,
        "mit-han-lab/dc-ae-f32c32": 1,
        "stabilityai/sd-vae-ft-mse": 1,
        "avif": 4,
        "jpeg": 4,
        "webp": 4,
    }


def test_a_plot_with_nothing_to_compare_is_not_drawn(tmp_path: Path) -> None:
    one = {"a": autoencoder("ul-photo-f8", 1, 0.38, 26, 9)}
    (section,) = by_protocol(read_results([write_all(tmp_path / "r", one)]))
    assert rate_distortion(section) is None
    assert distance_against_steps(section.rows, "efficientnet-lite0", "decoder") is None
    assert distance_against_steps(section.rows, "efficientnet-lite0", "sampling") is None


# ---------------------------------------------------------------- pictures


def test_a_difference_is_four_times_enlarged_around_grey() -> None:
    a, b = Image.new("RGB", (1, 1), (100, 100, 0)), Image.new("RGB", (1, 1), (110, 98, 255))
    assert difference(a, b).getpixel((0, 0)) == (168, 120, 255)
    assert difference(a, a).getpixel((0, 0)) == (128, 128, 128)


def test_the_grid_shows_a_codec_at_the_rate_of_our_model(folder: Path) -> None:
    grid = picture_grid(by_protocol(read_results([folder]))[0])
    assert grid is not None
    assert grid.labels == ["ul-photo-f8, 1 step", "stabilityai/sd-vae-ft-mse", "avif:20", "jpeg:5"]
    assert grid.left_out == ["avif:5", "jpeg:20", "jpeg:80"]
    assert grid.bits_of == "ul-photo-f8, 1 step"


def test_the_grid_has_pictures_pixel_for_pixel_and_differences_below(folder: Path) -> None:
    grid = picture_grid(by_protocol(read_results([folder]))[0])
    assert grid is not None
    page = Image.open(io.BytesIO(grid.content))
    factor = 256 // 40
    original, ours = picture(0), compressed(picture(0), 30)
    for expected in (original, ours, difference(original, ours)):
        wanted = expected.resize((40 * factor, 40 * factor), Image.Resampling.NEAREST)
        assert any(found(page, wanted, left, top) for left in range(10, 300) for top in range(20, 330))


def found(page: Image.Image, part: Image.Image, left: int, top: int) -> bool:
    if page.getpixel((left, top)) != part.getpixel((0, 0)):
        return False
    region = page.crop((left, top, left + part.width, top + part.height))
    return ImageChops.difference(region, part).getbbox() is None


def test_results_with_other_originals_are_left_out_of_the_grid(tmp_path: Path) -> None:
    results = write_all(tmp_path / "r", {"a": codec("jpeg:5", 1, 20), "b": codec("webp:5", 1, 20)})
    add_pictures(results / "a.json")
    add_pictures(results / "b.json", originals=[picture(seed) for seed in (7, 8, 9)])
    grid = picture_grid(by_protocol(read_results([results]))[0])
    assert grid is not None
    assert (grid.labels, grid.left_out) == (["jpeg:5"], ["webp:5"])


def test_pictures_of_any_size_fit_into_the_grid(tmp_path: Path) -> None:
    results = write_all(tmp_path / "r", {"a": codec("jpeg:5", 1, 20)})
    add_pictures(results / "a.json", originals=[picture(0, 20), picture(1, 300), Image.new("RGB", (600, 30))])
    grid = picture_grid(by_protocol(read_results([results]))[0])
    assert grid is not None
    assert Image.open(io.BytesIO(grid.content)).width < 600


# ---------------------------------------------------------------- writing


def test_the_command_writes_a_report_and_force_replaces_it(folder: Path, made: Report, tmp_path: Path) -> None:
    run, output = CliRunner().invoke, str(tmp_path / "report")
    first = run(app, [str(folder), "-o", output])
    assert (first.exit_code, first.stdout) == (0, f"{output}/report.md: 26 results, 2 protocols\n")
    assert {path.name: path.read_bytes() for path in Path(output).iterdir()} == made.files
    again = run(app, [str(folder), "-o", output])
    assert again.exit_code == 1
    assert again.stderr.strip().endswith(f"got {output}, which holds a report; --force overwrites it.")
    assert run(app, [str(folder / "kl.json"), "-o", output, "--force"]).exit_code == 0
    left = {path.name for path in Path(output).iterdir()}
    assert left == {"report.md", "results.csv", "1-pictures.png"}  # no plot of the earlier report is left


def test_a_folder_with_other_files_is_refused_even_with_force(made: Report, tmp_path: Path) -> None:
    (tmp_path / "report.md").write_text("# Mine")
    for force in (False, True):
        with pytest.raises(ValueError, match="which holds other files"):
            write_report(made, tmp_path, force)
    assert [path.name for path in tmp_path.iterdir()] == ["report.md"]
    assert (tmp_path / "report.md").read_text() == "# Mine"


def test_replacing_a_report_removes_only_what_its_page_shows(made: Report, tmp_path: Path) -> None:
    outside = tmp_path / "keep.png"
    outside.touch()
    folder = tmp_path / "report"
    folder.mkdir()
    (folder / "report.md").write_text(f"{MARK}\n\n![x](../keep.png)\n\n![x](old.png)\n")
    for name in ("old.png", "mine.png"):
        (folder / name).touch()
    write_report(made, folder, force=True)
    assert outside.exists() and (folder / "mine.png").exists() and not (folder / "old.png").exists()


def test_a_wrong_file_ends_the_command_with_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{}")
    done = CliRunner().invoke(app, [str(tmp_path), "-o", str(tmp_path / "report")])
    assert done.exit_code == 1
    assert done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "report").exists()


def test_the_command_needs_no_torch() -> None:
    import subprocess

    modules = "ul_tokenizer.cli.evaluate_report, ul_tokenizer.evaluation.report.page"
    code = f"import sys, {modules}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_help_fits_eighty_columns() -> None:
    done = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "80", "TERMINAL_WIDTH": "80", "NO_COLOR": "1"})
    assert done.exit_code == 0
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "--output" in done.stdout and "…" not in done.stdout
