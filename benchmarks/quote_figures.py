"""Inserts what documents quote from measured files, and checks that both still agree.

python benchmarks/quote_figures.py            writes every quoted figure and table anew
python benchmarks/quote_figures.py --check    changes nothing, names each place that differs and exits with 1

Documents hold marks that readers don't see. A figure within a sentence or a table:

    <!-- quote: photos.json#metrics.ssim.value .3f -->0.912<!-- /quote -->

FILE#PATH names a value: FILE in benchmarks/results/, or from the repository's root; PATH as in
`ul_tokenizer/evaluation/json_paths.py`, which also explains brackets (`speed.json#rows[name=encode].seconds`). A .jsonl
file is a list of its lines. Values can be calculated with + - * / and parentheses, with spaces around each sign:
`100 * (1 - a.json#bits / b.json#bits) .0f`. The format is Python's; only texts and whole numbers need none.

A whole table, whose definition stands in benchmarks/tables.yaml:

    <!-- table: NAME -->
    ...
    <!-- /table -->

A definition has these parts:

    files    names as above, with * for several; each line of a .jsonl file, or each other file, is a row
    rows     instead, path of a list in these files whose entries are the rows
    where    path: value, or a list of legal values; null also means that there is none
    sort     paths; without it, the order of the files
    lines    paths; rows that agree in them share a line of the table, see `where` of a column
    names    path: {value: what a reader sees}
    columns  heading: cell, with the row's values in braces, as in "{100 * accuracy:.1f} %"; or
             heading: {cell: ..., where: ...}, for tables in which each line has several rows

A row also has `file`, its file's stem, and results of `ul-tokenizer evaluate` have `label`, such as "ul-photo-f8, 4
steps". A cell of a row that lacks a value is a dash; a value that no row has is an error.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from ul_tokenizer.evaluation.json_paths import MissingPathError, find, look_up
from ul_tokenizer.evaluation.results import FORMAT, label_of
from ul_tokenizer.files import write_whole

Row = dict[str, Any]

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "MODEL_CARD.md", "docs/**/*.md", "ul_tokenizer/pretrained/*/README.md")
RESULTS, TABLES = "benchmarks/results", "benchmarks/tables.yaml"
NOTHING = "–"
MARK = re.compile(
    r"<!--\s*(?P<kind>quote|table):\s*(?P<what>.*?)\s*-->(?P<text>(?:(?!<!--).)*)<!--\s*/(?P=kind)\s*-->", re.DOTALL
)
ANY_MARK = re.compile(r"<!--\s*/?(?:quote|table)\b.*?-->", re.DOTALL)
FENCE = re.compile(r"^ *```.*?^ *```", re.DOTALL | re.MULTILINE)
FORM = r"\+?,?(?:\.\d+)?[deEfgs%]"
QUOTED = re.compile(rf"(?P<expression>.*?)(?:\s+(?P<form>{FORM}))?", re.DOTALL)
CELL = re.compile(r"\{([^{}]*?)(?::([^:{}]*))?\}")
TOKEN = re.compile(r"\s*([()]|[-+*/](?=\s)|(?:[^\s()\[\]]|\[[^\]]*\])+)")
NUMBER = re.compile(r"\d+(\.\d+)?(e-?\d+)?")


# ---------------------------------------------------------------- measured files


@dataclass
class Measured:
    """The files that documents quote, each read once."""

    root: Path
    _read: dict[Path, Any] = field(default_factory=dict)

    def paths(self, name: str) -> list[Path]:
        """Files by name, in the order of their names; `*` stands for anything within a name."""
        for folder in (self.root / RESULTS, self.root):
            found = sorted(folder.glob(name))
            if found:
                return found
        raise ValueError(f"there is no file {name!r}, neither in {RESULTS} nor from the repository's root.")

    def content(self, path: Path) -> Any:
        """What a file holds; a list for JSON lines."""
        if path not in self._read:
            text = path.read_text(encoding="utf-8")
            try:
                is_list = path.suffix == ".jsonl"
                self._read[path] = [json.loads(line) for line in text.splitlines()] if is_list else json.loads(text)
            except ValueError:
                raise ValueError(f"{path.relative_to(self.root)} must be JSON, and isn't.") from None
        return self._read[path]

    def value(self, reference: str) -> Any:
        """The value that FILE#PATH names."""
        name, hash_sign, path = reference.partition("#")
        if not hash_sign:
            raise ValueError(f"a value must be a number or FILE#PATH, got {reference!r}.")
        found = self.paths(name)
        if len(found) > 1:
            raise ValueError(f"FILE must be one file, but {name!r} are {len(found)}.")
        try:
            value = look_up(self.content(found[0]), path)
        except MissingPathError as error:
            raise ValueError(f"{name}: {error}") from None
        if value is None:
            raise ValueError(f"{name} has null as {path!r}, which can't be quoted.")
        return value


# ---------------------------------------------------------------- values


class Expression:
    """Sums and products of numbers and values.

    Args:
        text: as this module's docstring says.
        value_of: gives the value that a reference names.
    """

    def __init__(self, text: str, value_of: Callable[[str], Any]) -> None:
        self.text, self.value_of = text, value_of
        self.tokens: list[str] = []
        rest = text.strip()
        while rest:
            token = TOKEN.match(rest)
            if not token:
                raise self._error()
            self.tokens.append(token[1])
            rest = rest[token.end() :]

    def evaluate(self) -> Any:
        """The value; a single reference may also name a text."""
        value = self._sum()
        if self.tokens:
            raise self._error()
        return value

    def _sum(self) -> Any:
        value = self._product()
        while sign := self._next("+", "-"):
            other = self._number(self._product())
            value = self._number(value) + (other if sign == "+" else -other)
        return value

    def _product(self) -> Any:
        value = self._atom()
        while sign := self._next("*", "/"):
            other = self._number(self._atom())
            if sign == "/" and other == 0:
                raise ValueError(f"{self.text!r} must not divide by 0.")
            value = self._number(value) * (other if sign == "*" else 1 / other)
        return value

    def _atom(self) -> Any:
        if self._next("("):
            value = self._sum()
            if not self._next(")"):
                raise self._error()
            return value
        if not self.tokens or self.tokens[0] in ")+-*/":
            raise self._error()
        token = self.tokens.pop(0)
        return float(token) if NUMBER.fullmatch(token) else self.value_of(token)

    def _next(self, *signs: str) -> str | None:
        return self.tokens.pop(0) if self.tokens and self.tokens[0] in signs else None

    def _number(self, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError(f"{self.text!r} must calculate with numbers, got {value!r}.")
        return value

    def _error(self) -> ValueError:
        return ValueError(f"values must have + - * / between them, with spaces around each, got {self.text!r}.")


def formatted(value: Any, form: str | None) -> str:
    """A value as a reader sees it.

    Raises:
        ValueError: a number with a point and no format, or a format that does not suit the value.
    """
    if form:
        try:
            return format(value, form)
        except (TypeError, ValueError):
            raise ValueError(f"a format must suit its value, got {form!r} for {value!r}.") from None
    if isinstance(value, (str, int)):
        return str(value)
    raise ValueError(f"a number with a point must have a format such as .2f, got {value!r} without.")


def figure(what: str, measured: Measured) -> str:
    """What a mark `quote` stands for; errors as `Measured.value` and `formatted`."""
    parts = QUOTED.fullmatch(what)
    assert parts, "everything matches"
    return formatted(Expression(parts["expression"], measured.value).evaluate(), parts["form"])


# ---------------------------------------------------------------- tables


@dataclass(frozen=True)
class Column:
    """A column of a table."""

    cell: str
    where: dict[str, Any]


@dataclass
class Table:
    """A definition in tables.yaml; its parts are explained in this module's docstring."""

    name: str
    files: list[str]
    columns: dict[str, Column]
    rows: str = ""
    where: dict[str, Any] = field(default_factory=dict)
    sort: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    names: dict[str, dict[Any, str]] = field(default_factory=dict)
    _wanted: set[str] = field(default_factory=set)
    _found: set[str] = field(default_factory=set)

    @classmethod
    def parsed(cls, name: str, content: Any) -> Table:
        """Checks a definition.

        Raises:
            ValueError: a part is missing, unknown or of another type.
        """
        known = {"files": list, "columns": dict, "rows": str, "where": dict, "sort": list, "lines": list, "names": dict}
        parts = content if isinstance(content, dict) else {}
        wrong = [key for key, value in parts.items() if key not in known or not isinstance(value, known[key])]
        if wrong or not {"files", "columns"} <= parts.keys():
            legal = ", ".join(f"{key} ({kind.__name__})" for key, kind in known.items())
            got = wrong[0] if wrong else "no files or no columns"
            raise ValueError(f"table {name!r} in {TABLES} must have parts of {legal}, got {got}.")
        return cls(**{**parts, "name": name, "columns": {k: cls._column(name, c) for k, c in parts["columns"].items()}})

    @staticmethod
    def _column(name: str, content: Any) -> Column:
        cell = {"cell": content} if isinstance(content, str) else content
        if not isinstance(cell, dict) or not {"cell"} <= cell.keys() <= {"cell", "where"}:
            raise ValueError(f"table {name!r} in {TABLES} must have a cell in each column, got {content!r}.")
        return Column(cell["cell"], cell.get("where", {}))

    def markdown(self, measured: Measured) -> str:
        """The table.

        Raises:
            ValueError: no rows, several for one cell, or a value that none of them has.
        """
        rows = [row for row in self._all_rows(measured) if _fits(row, self.where)]
        if not rows:
            raise ValueError(f"table {self.name!r} must have rows, but none fits its `where`.")
        for path in reversed(self.sort):
            rows.sort(key=lambda row: _sortable(find(row, path)))
        lines = [[self._cell(group, column) for column in self.columns.values()] for group in self._groups(rows)]
        for path in sorted(self._wanted - self._found):
            raise ValueError(f"table {self.name!r} must have values of its rows, but none has {path!r}.")
        rule = "|".join(["---"] * len(self.columns))
        body = [f"| {' | '.join(line)} |" for line in [list(self.columns), *lines]]
        return "\n".join([body[0], f"|{rule}|", *body[1:]])

    def _all_rows(self, measured: Measured) -> Iterator[Row]:
        for path in (path for name in self.files for path in measured.paths(name)):
            content = measured.content(path)
            entries = look_up(content, self.rows) if self.rows else content
            for entry in entries if isinstance(entries, list) else [entries]:
                if not isinstance(entry, dict):
                    raise ValueError(f"table {self.name!r} must have objects as rows, {path.name} has {entry!r}.")
                label = {"label": label_of(entry)} if find(entry, "format") == FORMAT else {}
                yield {"file": path.stem, **label, **entry}

    def _groups(self, rows: Sequence[Row]) -> list[list[Row]]:
        """The rows of each line of the table."""
        if not self.lines:
            return [[row] for row in rows]
        groups: dict[str, list[Row]] = {}
        for row in rows:
            groups.setdefault(json.dumps([find(row, path) for path in self.lines]), []).append(row)
        return list(groups.values())

    def _cell(self, rows: Sequence[Row], column: Column) -> str:
        fitting = [row for row in rows if _fits(row, column.where)]
        texts = list(dict.fromkeys(self._text(row, column.cell) for row in fitting))
        if len(texts) > 1:
            raise ValueError(f"table {self.name!r} must have one row for each cell, got {' and '.join(texts)}.")
        return texts[0] if texts else NOTHING

    def _text(self, row: Row, cell: str) -> str:
        """A cell of one row; a dash if it lacks a value."""

        def value_of(path: str) -> Any:
            self._wanted.add(path)
            value = look_up(row, path)
            self._found.add(path)
            if value is None:
                raise MissingPathError(path)
            return self.names.get(path, {}).get(value, value) if isinstance(value, (str, int)) else value

        try:
            return CELL.sub(lambda part: formatted(Expression(part[1], value_of).evaluate(), part[2]), cell)
        except MissingPathError:
            return NOTHING


def _fits(row: Row, where: Mapping[str, Any]) -> bool:
    return all(find(row, path) in (legal if isinstance(legal, list) else [legal]) for path, legal in where.items())


def _sortable(value: Any) -> tuple[bool, Any]:
    """Numbers before texts; nothing, as the smallest number, comes first."""
    is_text = isinstance(value, str)
    return is_text, value if is_text or value is not None else float("-inf")


def read_tables(root: Path) -> dict[str, Table]:
    """The definitions of all tables.

    Raises:
        ValueError: the file is no YAML, or a definition is wrong.
    """
    path = root / TABLES
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else {}
    except yaml.YAMLError:
        raise ValueError(f"{TABLES} must be YAML, and isn't.") from None
    return {str(name): Table.parsed(str(name), parts) for name, parts in (content or {}).items()}


# ---------------------------------------------------------------- documents


@dataclass
class Quotes:
    """What documents quote, what the files say instead, and what is wrong with marks and definitions."""

    root: Path
    differences: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    shown_tables: set[str] = field(default_factory=set)

    @cached_property
    def measured(self) -> Measured:
        """The files."""
        return Measured(self.root)

    @cached_property
    def tables(self) -> dict[str, Table]:
        """The definitions; errors as `read_tables`."""
        return read_tables(self.root)

    def documents(self) -> list[Path]:
        """All documents that may quote."""
        return [path for pattern in DOCUMENTS for path in sorted(self.root.glob(pattern))]

    def renewed(self, document: Path) -> str:
        """A document's text with every quoted figure and table made anew; notes differences and errors."""
        text = document.read_text(encoding="utf-8")
        complete = {place for mark in MARK.finditer(text) for place in (mark.start(), mark.end("text"))}
        for mark in ANY_MARK.finditer(text):
            if mark.start() not in complete:
                self._note(document, text, mark.start(), f"mark {mark[0]} must come in a pair.")
        fences = [fence.span() for fence in FENCE.finditer(text)]

        def renew(mark: re.Match[str]) -> str:
            if any(start < mark.start() < end for start, end in fences):
                return self._wrong(document, mark, "a mark in a block of code would be seen.")
            if "--" in mark["what"]:
                return self._wrong(document, mark, f"a mark with -- in it would be seen, got {mark['what']!r}.")
            try:
                return self._figure(document, mark) if mark["kind"] == "quote" else self._table(document, mark)
            except ValueError as error:
                return self._wrong(document, mark, str(error))

        return MARK.sub(renew, text)

    def _figure(self, document: Path, mark: re.Match[str]) -> str:
        measured = figure(" ".join(mark["what"].split()), self.measured)
        if measured != mark["text"]:
            self._differs(document, mark, f"quotes {mark['text']!r}, the file has {measured!r} ({mark['what']})")
        return _with_text(mark, measured)

    def _table(self, document: Path, mark: re.Match[str]) -> str:
        name = mark["what"]
        if name not in self.tables:
            raise ValueError(f"there is no table {name!r} in {TABLES}.")
        self.shown_tables.add(name)
        measured, quoted = self.tables[name].markdown(self.measured).splitlines(), mark["text"].strip().splitlines()
        for old, new in zip(quoted, measured, strict=False):
            if old.strip() != new:
                self._differs(document, mark, f"table {name} quotes {old.strip()!r}, the files have {new!r}")
        if len(quoted) != len(measured):
            self._differs(document, mark, f"table {name} has {len(quoted)} lines, by the files {len(measured)}")
        before = mark.string[: mark.start()].rpartition("\n")[2]
        indent = "" if before.strip() else before  # of a table within a list
        return _with_text(mark, "\n\n" + "".join(f"{indent}{line}\n" for line in measured) + f"\n{indent}")

    def _differs(self, document: Path, mark: re.Match[str], what: str) -> None:
        self.differences.append(f"{self._place(document, mark.string, mark.start())}: {what}")

    def _wrong(self, document: Path, mark: re.Match[str], what: str) -> str:
        self._note(document, mark.string, mark.start(), what)
        return mark[0]

    def _note(self, document: Path, text: str, start: int, what: str) -> None:
        self.errors.append(f"{self._place(document, text, start)}: {what}")

    def _place(self, document: Path, text: str, start: int) -> str:
        return f"{document.relative_to(self.root)}:{text.count(chr(10), 0, start) + 1}"


def _with_text(mark: re.Match[str], text: str) -> str:
    before, after = mark.start("text") - mark.start(), mark.end("text") - mark.start()
    return mark[0][:before] + text + mark[0][after:]


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing, and name each place that differs")
    check = parser.parse_args(arguments).check
    quotes = Quotes(root)
    try:
        read_tables(root)  # no document is to blame for what is wrong there
        renewed = {document: quotes.renewed(document) for document in quotes.documents()}
        unused = sorted(quotes.tables.keys() - quotes.shown_tables)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    quotes.errors += [f"{TABLES}: no document shows the table {name!r}." for name in unused]
    for sentence in [*quotes.errors, *(quotes.differences if check else [])]:
        print(sentence, file=sys.stderr)
    if quotes.errors or check:
        return 1 if quotes.errors or quotes.differences else 0
    for document, text in renewed.items():
        if text != document.read_text(encoding="utf-8"):
            write_whole(document, text)
            print(f"wrote {document.relative_to(root)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
