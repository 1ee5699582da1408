"""The house: who may import whom, how long functions may be, and what stands in one file or nowhere."""

from __future__ import annotations

import ast
import re
import statistics
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import TypeGuard

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "ul_tokenizer"

# Room → the other rooms it may import from; CONTRIBUTING has the same table. A new room states its place here.
# Single files without a room, which every room may use.
GROUND = {"files", "randomness", "progress", "processes", "decorators", "_compat"}
MAY_IMPORT: dict[str, set[str]] = {
    "files": set(),
    "randomness": set(),
    "progress": set(),
    "processes": set(),
    "decorators": set(),
    "_compat": set(),
    "registration": {"pretrained"},
    "diffusion": set(),
    "media": set(),
    "hub": set(),
    "pretrained": set(),
    "publish": {"hub", "pretrained", "registration"},
    "schedulers": {"diffusion", "publish"},
    "sources": {"media"},
    "models": {"diffusion", "schedulers", "hub", "publish", "pretrained"},
    "latents": {"diffusion", "media", "sources", "hub", "publish", "models"},
    "pipelines": {"diffusion", "schedulers", "models", "hub", "publish", "pretrained"},
}
MAY_IMPORT["evaluation"] = {*MAY_IMPORT}
MAY_IMPORT["training"] = {*MAY_IMPORT["evaluation"], "evaluation"}
MAY_IMPORT["demo"] = {*MAY_IMPORT["evaluation"], "evaluation"}
MAY_IMPORT["cli"] = {*MAY_IMPORT["training"], "training", "demo"}
ONLY_TORCH = {"torch"}  # what the theory may import beside the standard library
MAX_FUNCTION_LINES, MEDIAN_FUNCTION_LINES = 80, 8
PICKLING = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
# What is written once → the files that may hold it.
HOMES: dict[str, set[str]] = {
    "SeedSequence": {"randomness.py", "latents/stream.py"},  # the stream's order of samples is part of its state
    # Others replace what `whole_file` can't write: a container, a whole folder.
    "os.replace": {"files.py", "media/videos.py", "training/engine/checkpoints.py"},
    "127.5": {"media/pixels.py"},
    "tqdm": set(),
}


def library_files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def script_files() -> list[Path]:
    rooms = [sorted((ROOT / room).rglob("*.py")) for room in ("benchmarks", "conversion", "examples")]
    assert all(rooms)
    return [path for room in rooms for path in room]


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def place(path: Path, node: ast.AST) -> str:
    return f"{path.name}:{getattr(node, 'lineno', 0)}"


def imported_modules(tree: ast.Module, package: str) -> Iterator[tuple[ast.AST, str]]:
    """Every absolute dotted name that a module imports, anywhere and in any way; `package` holds the module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            yield from ((node, f"{base}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            constants = (name.value for name in node.args[:1] if isinstance(name, ast.Constant))
            yield from ((node, name) for name in constants if isinstance(name, str))


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def illegal_imports(tree: ast.Module, room: str, package: str) -> Iterator[tuple[ast.AST, str]]:
    for node, name in imported_modules(tree, package):
        parts = name.split(".")
        if parts[0] != "ul_tokenizer" or parts[1:] == ["__version__"]:
            continue
        if room == "registration" and name == "ul_tokenizer":
            continue  # diffusers gets the package itself, to take public names from it when they are used
        # A public name of the package itself would hide which room it comes from: it counts as illegal, too.
        if len(parts) < 2 or parts[1] not in {room, *(GROUND if room != "diffusion" else ()), *MAY_IMPORT[room]}:
            yield node, name


def calls_of(tree: ast.Module) -> Iterator[tuple[ast.AST, str]]:
    """Attributes as dotted names (`torch.load`), and constant keyword arguments (`allow_pickle=True`)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            yield node, f"{node.value.id}.{node.attr}"
        elif isinstance(node, ast.keyword) and isinstance(node.value, ast.Constant):
            yield node.value, f"{node.arg}={node.value.value!r}"


def unpickling(tree: ast.Module) -> Iterator[tuple[ast.AST, str]]:
    for node, name in imported_modules(tree, "ul_tokenizer"):
        if name.split(".")[0] in PICKLING or name == "torch.load":
            yield node, name
    yield from ((n, name) for n, name in calls_of(tree) if name in {"torch.load", "allow_pickle=True"})


def threads_set(tree: ast.Module) -> Iterator[tuple[ast.AST, str]]:
    names = ((node, name) for walk in (calls_of(tree), imported_modules(tree, "ul_tokenizer")) for node, name in walk)
    yield from ((n, name) for n, name in names if name in {"torch.set_num_threads", "torch.set_num_interop_threads"})


@pytest.mark.parametrize("path", library_files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_from_rooms_below_it(path: Path) -> None:
    room = room_of(path)
    if room == "__init__":
        return  # it names every room's public classes, lazily
    room = {"__main__": "cli", "train": "cli"}.get(room, room)  # two doors to the command line
    assert room in MAY_IMPORT, f"{room} is a new room: say in MAY_IMPORT what it may import"
    package = ".".join(path.relative_to(ROOT).parent.parts)
    found = [f"{place(path, node)} {name}" for node, name in illegal_imports(parsed(path), room, package)]
    assert found == []


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def import_graph() -> dict[str, set[str]]:
    """File → the files of ours that it imports, at its top, inside functions or for type checkers."""
    modules = {module_name(path): path for path in library_files()}
    graph: dict[str, set[str]] = {}
    for name, path in modules.items():
        package = ".".join(path.relative_to(ROOT).parent.parts)
        targets = {target for _, target in imported_modules(parsed(path), package)}
        known = {target if target in modules else target.rpartition(".")[0] for target in targets}
        graph[name] = {target for target in known if target in modules and target != name}
    return graph


def find_circle(graph: dict[str, set[str]]) -> list[str]:
    """Files that import one another in turn; an empty list if there are none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_no_files_import_one_another_in_a_circle() -> None:
    graph = import_graph()
    graph.pop("ul_tokenizer")  # it names every room's public classes, lazily
    assert find_circle(graph) == []


def test_a_circle_is_seen() -> None:
    assert find_circle({"a": {"b"}, "b": {"c"}, "c": {"a"}})


@pytest.mark.parametrize("path", sorted((PACKAGE / "diffusion").glob("*.py")), ids=lambda path: path.name)
def test_the_theory_imports_only_torch(path: Path) -> None:
    roots = {name.split(".")[0] for _, name in imported_modules(parsed(path), "ul_tokenizer.diffusion")}
    assert roots - sys.stdlib_module_names - {"ul_tokenizer"} <= ONLY_TORCH


def test_the_layers_import_no_other_network() -> None:
    names = [name for _, name in imported_modules(parsed(PACKAGE / "models" / "layers.py"), "ul_tokenizer.models")]
    networks = ("autoencoder", "encoder", "decoder", "transformer")
    assert [n for n in names if n.startswith(tuple(f"ul_tokenizer.models.{network}" for network in networks))] == []


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("diffusion", "from ul_tokenizer.models.layers import Attention"),
        ("diffusion", "from ..models import layers"),
        ("sources", "def f():\n    from ul_tokenizer.models import autoencoder"),
        ("models", "import ul_tokenizer.training.stage1"),
        ("models", "from ul_tokenizer import UnifiedLatentsAutoencoder"),
        ("hub", "from ul_tokenizer import cli"),
        ("hub", "from ul_tokenizer.models import loading"),
        ("hub", "from ul_tokenizer.publish import cards"),
        ("hub", "import_module('ul_tokenizer.publish.cards')"),
        ("hub", "if TYPE_CHECKING:\n    from ul_tokenizer.publish.cards import Card"),
        ("diffusion", "from ul_tokenizer.files import write_whole"),
    ],
)
def test_an_upward_import_is_seen_however_it_is_written(room: str, source: str) -> None:
    assert list(illegal_imports(ast.parse(source), room, f"ul_tokenizer.{room}"))


@pytest.mark.parametrize("source", ["from .schedule import alpha_sigma", "from . import schedule", "import torch"])
def test_a_rooms_own_modules_and_other_libraries_are_no_upward_import(source: str) -> None:
    assert not list(illegal_imports(ast.parse(source), "diffusion", "ul_tokenizer.diffusion"))


def function_lengths(tree: ast.Module) -> list[tuple[str, int]]:
    """Names and lengths in lines of all functions and methods, nested ones too, without stubs of overloads."""
    functions = [n for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]
    return [(f.name, (f.end_lineno or f.lineno) - f.lineno + 1) for f in functions if not is_overload(f)]


def is_overload(node: ast.AST) -> bool:
    return any(ast.unparse(decorator).endswith("overload") for decorator in getattr(node, "decorator_list", ()))


@pytest.mark.parametrize("path", library_files() + script_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_functions_are_short(path: Path) -> None:
    assert [f for f in function_lengths(parsed(path)) if f[1] > MAX_FUNCTION_LINES] == []


def test_half_of_the_functions_are_very_short() -> None:
    lengths = [lines for path in library_files() for _, lines in function_lengths(parsed(path))]
    assert statistics.median(lengths) <= MEDIAN_FUNCTION_LINES


def test_each_of_two_methods_of_one_name_is_measured() -> None:
    source = "class A:\n    def f(self):\n        x = 1\n        return x\nclass B:\n    def f(self): ...\n"
    assert function_lengths(ast.parse(source)) == [("f", 3), ("f", 1)]


def is_definition(node: ast.AST) -> TypeGuard[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    return isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))


def public_names(body: list[ast.stmt]) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    """Public functions and classes of a module, and the public methods and classes within such classes."""
    for node in body:
        if isinstance(node, (ast.If, ast.Try)):
            yield from public_names([*node.body, *node.orelse])
        elif is_definition(node) and not node.name.startswith("_") and not is_overload(node):
            yield node
            yield from public_names(node.body) if isinstance(node, ast.ClassDef) else ()


def undocumented(tree: ast.Module) -> list[str]:
    return [node.name for node in public_names(tree.body) if not ast.get_docstring(node)]


@pytest.mark.parametrize("path", library_files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_public_name_has_a_docstring(path: Path) -> None:
    tree = parsed(path)
    assert ast.get_docstring(tree) or not tree.body, "the file has no docstring"
    assert undocumented(tree) == []


@pytest.mark.parametrize(
    "source",
    ["def f(): ...", "class A: ...", 'class A:\n    """A."""\n    def f(self): ...', "if x:\n    async def f(): ..."],
)
def test_a_missing_docstring_is_seen(source: str) -> None:
    assert undocumented(ast.parse(source))


def test_private_names_and_overloads_need_no_docstring() -> None:
    assert undocumented(ast.parse("def _f(): ...\n@overload\ndef f(): ...\nclass _A:\n    def f(self): ...")) == []


SHAPE = re.compile(
    r"\(\)|\([\w·…'+\[\]. ]{1,20},[\w·…'+/⌈⌉\[\],. ]*\)|\b(shapes?|any rank|0-dimensional)\b|shaped like"
    r"|(?i:\b(as in|as|see|those of|as of) `\w)"  # what another docstring says
)
# Errors that need no mention: reading a missing attribute, methods to be overridden.
UNSAID = {"AssertionError", "AttributeError", "NotImplementedError", "StopIteration"}


def own_nodes(function: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a function's body, without those of functions in it."""
    for node in ast.iter_child_nodes(function):
        if not (is_definition(node) or isinstance(node, ast.Lambda)):
            yield node
            yield from own_nodes(node)


def has_tensors(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether an argument or the result is a tensor or an array; not if all of them have names, as weights have."""
    arguments = [a.annotation for a in (*function.args.args, *function.args.kwonlyargs)]
    types = " ".join(ast.unparse(a) for a in [*arguments, function.returns] if a is not None)
    return bool(re.search(r"\b(Tensor|ndarray|Array)\b", re.sub(r"(dict|Mapping)\[str, Tensor\]", "", types)))


def raised(function: ast.AST) -> set[str]:
    """Names of what a function raises itself."""
    errors = (node.exc for node in own_nodes(function) if isinstance(node, ast.Raise) and node.exc)
    names = {ast.unparse(error).partition("(")[0] for error in errors}
    return names - UNSAID


def without_shapes(tree: ast.Module) -> list[str]:
    functions = [node for node in public_names(tree.body) if not isinstance(node, ast.ClassDef)]
    return [f.name for f in functions if has_tensors(f) and not SHAPE.search(ast.get_docstring(f) or "")]


def without_errors(tree: ast.Module) -> list[str]:
    """Public functions, and classes by their constructor, that raise errors which their docstring does not mention."""
    found = []
    for node in public_names(tree.body):
        constructors = ("__init__", "__post_init__")
        parts = [n for n in node.body if getattr(n, "name", "") in constructors] if is_class(node) else [node]
        text = ast.get_docstring(node) or ""
        if any(raised(part) for part in parts) and not re.search(r"Raises:|errors?\b.* as in `|errors are", text):
            found.append(node.name)
    return found


def is_class(node: ast.AST) -> bool:
    return isinstance(node, ast.ClassDef)


@pytest.mark.parametrize("path", library_files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_docstring_gives_the_shapes_of_tensors(path: Path) -> None:
    assert without_shapes(parsed(path)) == []


@pytest.mark.parametrize(
    "path",
    [path for path in library_files() if room_of(path) != "cli"],  # whose docstrings are help texts
    ids=lambda path: str(path.relative_to(PACKAGE)),
)
def test_every_docstring_gives_the_errors_that_are_raised(path: Path) -> None:
    assert without_errors(parsed(path)) == []


@pytest.mark.parametrize(
    "source",
    [
        'def f(x: Tensor) -> float:\n    """Mean of x."""',
        'def f() -> Iterator[np.ndarray]:\n    """Rows (Of a file)."""',
        'class A:\n    """A."""\n    def f(self, *, x: list[Tensor]) -> None:\n        """Keeps x."""',
    ],
)
def test_a_missing_shape_is_seen(source: str) -> None:
    assert without_shapes(ast.parse(source)) == ["f"]


@pytest.mark.parametrize(
    "source",
    [
        'def f(x: Tensor) -> float:\n    """Mean of x, (B, …)."""',
        'def f(weights: dict[str, Tensor]) -> None:\n    """Loads weights."""',
        'def f(x: Tensor) -> Tensor:\n    """Arguments and result as in `g`."""',
    ],
)
def test_a_stated_shape_is_seen(source: str) -> None:
    assert without_shapes(ast.parse(source)) == []


@pytest.mark.parametrize(
    "source",
    [
        'def f():\n    """Does."""\n    if x:\n        raise ValueError("x")',
        'class f:\n    """Is."""\n    def __post_init__(self):\n        raise ValueError',
    ],
)
def test_a_missing_error_is_seen(source: str) -> None:
    assert without_errors(ast.parse(source)) == ["f"]


def test_errors_of_inner_functions_and_errors_that_are_passed_on_need_no_mention() -> None:
    inner = 'def f():\n    """Does."""\n    def g():\n        raise ValueError\n'
    assert without_errors(ast.parse(f"{inner}    try:\n        g()\n    except OSError:\n        raise\n")) == []


@pytest.mark.parametrize("path", library_files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_the_library_leaves_threads_to_its_user_and_never_unpickles(path: Path) -> None:
    tree = parsed(path)
    found = [f"{place(path, node)} {name}" for walk in (threads_set, unpickling) for node, name in walk(tree)]
    assert found == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from torch import load",
        "torch.load(p)",
        "np.load(p, allow_pickle=True)",
        "torch.set_num_threads(1)",
    ],
)
def test_pickle_and_thread_settings_are_seen_however_they_are_written(source: str) -> None:
    tree = ast.parse(source)
    assert list(unpickling(tree)) or list(threads_set(tree))


# ---------------------------------------------------------------- what is written once


def mentions(tree: ast.Module, word: str) -> Iterator[ast.AST]:
    """Where a name, a dotted name or a number is used or imported, be it under another name."""
    for node in ast.walk(tree):
        is_number = isinstance(node, ast.Constant) and isinstance(node.value, float) and repr(node.value) == word
        is_name = isinstance(node, (ast.Name, ast.Attribute)) and f".{ast.unparse(node)}".endswith(f".{word}")
        if is_number or is_name:
            yield node
    yield from (node for node, name in imported_modules(tree, "ul_tokenizer") if f".{word}." in f".{name}.")


@pytest.mark.parametrize("word", HOMES)
def test_what_is_written_once_stands_in_its_own_file(word: str) -> None:
    found = {str(path.relative_to(PACKAGE)) for path in library_files() if any(mentions(parsed(path), word))}
    assert found == HOMES[word]


@pytest.mark.parametrize(
    ("word", "source"),
    [
        ("SeedSequence", "numpy.random.SeedSequence(1)"),
        ("SeedSequence", "from numpy.random import SeedSequence as S"),
        ("os.replace", "os.replace(a, b)"),
        ("os.replace", "from os import replace"),
        ("127.5", "x / 127.5 - 1"),
        ("tqdm", "from tqdm.auto import tqdm as bar"),
        ("tqdm", "import tqdm"),
    ],
)
def test_a_second_place_is_seen_however_it_is_written(word: str, source: str) -> None:
    assert list(mentions(ast.parse(source), word))


@pytest.mark.parametrize(("word", "source"), [("os.replace", "'a'.replace('b', 'c')"), ("127.5", "'127.5'")])
def test_other_things_with_such_a_name_are_none(word: str, source: str) -> None:
    assert not list(mentions(ast.parse(source), word))


# ---------------------------------------------------------------- what CONTRIBUTING says


def table_of_rooms(text: str) -> dict[str, set[str]]:
    """Room → the rooms that it may import, from the Markdown table that says so."""
    lines = text.partition("| room | what is in it | may import |\n")[2].partition("\n\n")[0].splitlines()
    table: dict[str, set[str]] = {}
    for line in lines[1:]:
        rooms, *_, allowed = line.strip("| ").split(" | ")
        words = set(re.findall(r"`([^`]+)`", allowed))
        if "all of the above but" in allowed:
            words = {*table} - words
        elif "all of the above" in allowed or allowed == "everything":
            words |= {*table}
        elif not words:
            assert allowed in ("nothing", "–", "torch only"), line
        table |= {room: words for room in re.findall(r"`([^`]+)`", rooms)}
    return table


def test_contributing_has_the_same_table_of_rooms() -> None:
    table = table_of_rooms((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))
    assert table.keys() == MAY_IMPORT.keys()
    for room, allowed in MAY_IMPORT.items():
        assert table[room] - GROUND == allowed - GROUND, room


def test_a_table_that_differs_is_seen() -> None:
    text = "| room | what is in it | may import |\n|---|---|---|\n| `a`, `b` | x | – |\n| `c` | x | `a` |\n"
    text += "| `d` | x | all of the above, `e` |\n\nprose"
    assert table_of_rooms(text) == {"a": set(), "b": set(), "c": {"a"}, "d": {"a", "b", "c", "e"}}
