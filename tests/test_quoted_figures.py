"""What documents quote is what the measured files have; and the check can fail."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import quote_figures
import yaml

from tests.evaluation.results_by_hand import autoencoder, codec
from ul_tokenizer.evaluation.results import write_result


def test_every_figure_and_table_in_our_documents_is_that_of_its_file(capsys: pytest.CaptureFixture[str]) -> None:
    status = quote_figures.main(["--check"])
    assert (status, capsys.readouterr().err) == (0, "")


def test_the_tables_on_generation_are_among_them() -> None:
    card = (quote_figures.ROOT / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert len(re.findall(r"<!-- table: fashion-\S+ -->\n\n\| ", card)) == 7


# ---------------------------------------------------------------- a repository for the tests

RESULTS = {"ul-photo-f8-4": autoencoder("ul-photo-f8", 4, 0.382, 26.4225, 15.2), "jpeg-30": codec("jpeg:30", 0.5, 26.0)}
SPEED = {
    "machine": "a machine",
    "rows": [{"name": "encode", "steps": None, "seconds": 0.25}, {"name": "decode", "steps": 4, "seconds": 1.5}],
}
LINES = [
    {"solver": solver, "steps": steps, "fd": 10.0 * steps + len(solver), "accuracy": None if steps == 8 else 0.5}
    for steps in (8, 4)
    for solver in ("ddim", "ddpm", "dpm++")
    if (solver, steps) != ("ddpm", 8)
]
TABLES = """
codecs:
  files: ["*-*.json"]
  columns:
    "": "{label}"
    PSNR (dB): "{metrics.psnr_of_mean_mse.value:.2f}"
    parameters (M): "{1e-6 * subject.parameters.total:.1f}"
solvers:
  files: [sweep.jsonl]
  where: {solver: [ddim, ddpm]}
  sort: [steps]
  lines: [steps]
  columns:
    steps: "{steps}"
    DDIM: {cell: "{fd:.1f}", where: {solver: ddim}}
    DDPM: {cell: "{fd:.1f}", where: {solver: ddpm}}
speed:
  files: [speed.json]
  rows: rows
  names: {name: {encode: encoding}}
  columns: {what: "{name}", seconds: "{seconds:.2f}"}
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "benchmarks" / "results"
    folder.mkdir(parents=True)
    for name, made in RESULTS.items():
        write_result(folder / f"{name}.json", made)
    (folder / "speed.json").write_text(json.dumps(SPEED))
    (folder / "sweep.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    (tmp_path / "docs").mkdir()
    return tmp_path


def quoted(root: Path, text: str, tables: str = "") -> str:
    """A document after the script has run over it."""
    document = root / "README.md"
    document.write_text(text, encoding="utf-8")
    (root / "benchmarks" / "tables.yaml").write_text(tables, encoding="utf-8")
    assert quote_figures.main([], root) == 0
    return document.read_text(encoding="utf-8")


def complaint(root: Path, text: str, capsys: pytest.CaptureFixture[str], tables: str = "") -> str:
    """What the check says about a document, which must be something."""
    (root / "README.md").write_text(text, encoding="utf-8")
    (root / "benchmarks" / "tables.yaml").write_text(tables, encoding="utf-8")
    assert quote_figures.main(["--check"], root) == 1
    return capsys.readouterr().err.strip()


def figure(root: Path, what: str) -> str:
    """What a mark stands for."""
    text = quoted(root, f"It is <!-- quote: {what} -->?<!-- /quote --> there.\n")
    found = re.fullmatch(rf"It is <!-- quote: {re.escape(what)} -->(.*)<!-- /quote --> there\.\n", text)
    assert found
    return found[1]


# ---------------------------------------------------------------- figures


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("ul-photo-f8-4.json#metrics.psnr_of_mean_mse.value .2f", "26.42"),
        ("ul-photo-f8-4.json#subject.name", "ul-photo-f8"),
        ("ul-photo-f8-4.json#subject.parameters.total ,d", "4,570,000"),
        ("ul-photo-f8-4.json#distances.efficientnet-lite0.num", "256"),
        ("speed.json#rows[1].seconds .1f", "1.5"),
        ("speed.json#rows[name=decode,steps=4].seconds .1f", "1.5"),
        ("speed.json#rows[name=encode].seconds .0%", "25%"),
        ("sweep.jsonl#[solver=ddim,steps=4].fd .0f", "44"),
        ("speed.json#rows[1].seconds / speed.json#rows[0].seconds .0f", "6"),
        ("100 * (1 - speed.json#rows[0].seconds / speed.json#rows[1].seconds) .1f", "83.3"),
        ("benchmarks/results/speed.json#machine", "a machine"),
    ],
)
def test_a_mark_gets_the_figure_of_its_file(root: Path, what: str, expected: str) -> None:
    assert figure(root, what) == expected


def test_a_figure_that_differs_is_named_with_its_place_and_both_values(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    right = quoted(root, "A\n\nIt is <!-- quote: speed.json#rows[0].seconds .2f -->?<!-- /quote --> s.\n")
    assert quote_figures.main(["--check"], root) == 0
    said = complaint(root, right.replace("0.25", "0.24"), capsys)
    assert said == "README.md:3: quotes '0.24', the file has '0.25' (speed.json#rows[0].seconds .2f)"
    assert "0.24" in (root / "README.md").read_text()  # the check changes nothing


def test_every_document_is_looked_at(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = "<!-- quote: speed.json#machine -->?<!-- /quote -->"
    names = ["MODEL_CARD.md", "CONTRIBUTING.md", "docs/a.md", "ul_tokenizer/pretrained/m/README.md"]
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(wrong)
    said = complaint(root, wrong, capsys)
    assert {line.split(":")[0] for line in said.splitlines()} == {"README.md", *names}


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("no.json#a .2f", "there is no file 'no.json', neither in benchmarks/results nor"),
        ("speed.json#rows[0].second .2f", "speed.json: path 'rows[0].second' must lead to a value, but there is no"),
        ("speed.json#rows[0].steps d", "speed.json has null as 'rows[0].steps', which can't be quoted."),
        ("speed.json#rows[0].seconds", "a number with a point must have a format such as .2f, got 0.25 without."),
        ("speed.json#machine .2f", "a format must suit its value, got '.2f' for 'a machine'."),
        ("2 * speed.json#machine .2f", "must calculate with numbers, got 'a machine'."),
        ("speed.json#rows[0].seconds / 0 .2f", "must not divide by 0."),
        ("speed.json#rows[0].seconds + .2f", "values must have + - * / between them"),
        ("(speed.json#rows[0].seconds .2f", "values must have + - * / between them"),
        ("speed.json .2f", "a value must be a number or FILE#PATH, got 'speed.json'."),
        ("*.json#machine", "FILE must be one file, but '*.json' are 3."),
    ],
)
def test_what_cannot_be_quoted_is_one_sentence_with_its_place(
    root: Path, what: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    said = complaint(root, f"<!-- quote: {what} -->1<!-- /quote -->", capsys)
    assert said.startswith("README.md:1: ") and words in said
    assert len(said.splitlines()) == 1
    assert quote_figures.main([], root) == 1  # and writing refuses, too


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("<!-- quote: speed.json#machine -->a machine", "must come in a pair"),
        ("a machine<!-- /quote -->", "must come in a pair"),
        ("<!-- quote: speed.json#machine -->a<!-- /table -->", "must come in a pair"),
        ("```\n<!-- quote: speed.json#machine -->a machine<!-- /quote -->\n```\n", "in a block of code would be seen"),
        ("<!-- quote: a--b.json#x -->1<!-- /quote -->", "a mark with -- in it would be seen"),
    ],
)
def test_a_mark_that_is_broken_or_that_readers_would_see_is_refused(
    root: Path, text: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert words in complaint(root, text, capsys)


def test_marks_are_invisible_in_rendered_markdown(root: Path) -> None:
    markdown = pytest.importorskip("markdown_it")
    text = quoted(root, "It is <!-- quote: speed.json#machine -->?<!-- /quote --> here.\n")
    html = markdown.MarkdownIt("commonmark").render(text)
    assert re.sub(r"<!--.*?-->", "", html) == "<p>It is a machine here.</p>\n"


# ---------------------------------------------------------------- tables


def table(root: Path, name: str, tables: str = TABLES) -> list[str]:
    """The lines of a table that the script has made."""
    others = [f"<!-- table: {key} -->\n<!-- /table -->" for key in yaml.safe_load(tables) if key != name]
    text = quoted(root, "\n".join([f"<!-- table: {name} -->\nold\n<!-- /table -->", *others]), tables)
    return text.partition("<!-- /table -->")[0].strip().splitlines()[2:]


def test_a_table_has_a_row_for_each_result_and_a_dash_for_what_it_lacks(root: Path) -> None:
    assert table(root, "codecs") == [
        "|  | PSNR (dB) | parameters (M) |",
        "|---|---|---|",
        "| jpeg:30 | 26.00 | – |",
        "| ul-photo-f8, 4 steps | 26.42 | 4.6 |",
    ]


def test_rows_that_share_a_line_fill_its_columns(root: Path) -> None:
    assert table(root, "solvers") == [
        "| steps | DDIM | DDPM |",
        "|---|---|---|",
        "| 4 | 44.0 | 44.0 |",
        "| 8 | 84.0 | – |",
    ]


def test_a_list_within_a_file_gives_rows_and_values_get_names(root: Path) -> None:
    assert table(root, "speed")[2:] == ["| encoding | 0.25 |", "| decode | 1.50 |"]


def test_a_table_within_a_list_keeps_its_indentation(root: Path) -> None:
    one = "t: {files: [speed.json], rows: rows, columns: {what: '{name}'}}"
    text = quoted(root, "* item\n\n  <!-- table: t -->\n  <!-- /table -->\n", one)
    expected = "  <!-- table: t -->\n\n  | what |\n  |---|\n  | encode |\n  | decode |\n\n  <!-- /table -->\n"
    assert text.partition("\n\n")[2] == expected
    assert quote_figures.main(["--check"], root) == 0


def test_a_line_of_a_table_that_differs_is_named(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = "t: {files: [speed.json], rows: rows, columns: {what: '{name}', s: '{seconds:.2f}'}}"
    right = quoted(root, "A\n<!-- table: t -->\n<!-- /table -->\n", one)
    said = complaint(root, right.replace("0.25", "0.26"), capsys, one)
    assert said == "README.md:2: table t quotes '| encode | 0.26 |', the files have '| encode | 0.25 |'"
    said = complaint(root, right.replace("| decode | 1.50 |\n", ""), capsys, one)
    assert said == "README.md:2: table t has 3 lines, by the files 4"


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"columns": {"a": "{second:.2f}"}}, "table 't' must have values of its rows, but none has 'second'."),
        ({"where": {"name": "train"}}, "table 't' must have rows, but none fits its `where`."),
        ({"lines": ["nothing"]}, "table 't' must have one row for each cell, got encode and decode."),
        ({"color": "red"}, "must have parts of files (list), columns (dict)"),
        ({"sort": "name"}, "must have parts of files (list), columns (dict)"),
        ({"columns": {"a": {"where": {}}}}, "must have a cell in each column"),
        ({"files": ["no.json"]}, "there is no file 'no.json'"),
        ({"rows": "lines"}, "must lead to a value, but there is no 'lines'"),
        ({"rows": "machine"}, "must have objects as rows, speed.json has 'a machine'."),
    ],
)
def test_a_wrong_definition_is_one_sentence(
    root: Path, parts: dict[str, Any], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    definition = {"files": ["speed.json"], "rows": "rows", "columns": {"what": "{name}"}} | parts
    said = complaint(root, "<!-- table: t -->\n<!-- /table -->\n", capsys, json.dumps({"t": definition}))
    assert words in said.splitlines()[0]
    assert sum("'t'" in line or "README" in line for line in said.splitlines()) == 1


def test_unknown_tables_and_tables_that_no_document_shows_are_named(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = complaint(root, "<!-- table: other -->\n<!-- /table -->\n", capsys, "t: {files: [speed.json], columns: {}}")
    assert said.splitlines() == [
        "README.md:1: there is no table 'other' in benchmarks/tables.yaml.",
        "benchmarks/tables.yaml: no document shows the table 't'.",
    ]
    assert "must be YAML" in complaint(root, "text", capsys, "a: [")
