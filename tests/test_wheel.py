"""What is published: the sdist, the wheel that is built from it, and the command line in an environment of its own."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from collections.abc import Sequence
from email import message_from_bytes
from email.message import Message
from pathlib import Path

import pytest
import yaml
from markdown_it import MarkdownIt
from PIL import Image

from tests import golden_help
from ul_tokenizer import __version__

ROOT = Path(__file__).resolve().parent.parent
OF_THE_PROJECT = {"CHANGELOG.md", "CITATION.cff", "LICENSE", "MANIFEST.in", "README.md", "pyproject.toml", "setup.py"}
OF_THE_BUILD = {"PKG-INFO", "setup.cfg", "ul_tokenizer.egg-info"}
NO_SERVER = "http://127.0.0.1:9"  # the discard port: a request fails at once
PYTHON_CODE = """
import torch
from ul_tokenizer import UnifiedLatentsAutoencoder, UnifiedLatentsPipeline
from ul_tokenizer.publish.cards import model_card
from ul_tokenizer.models.repository import load_prior
from ul_tokenizer.pretrained import ROOT

vae = UnifiedLatentsAutoencoder.from_pretrained("ul-photo-f8")
x = torch.rand(1, 3, 64, 64)
print(float(vae.bits(x, load_prior("ul-photo-f8"), generator=torch.Generator().manual_seed(0))))
print(UnifiedLatentsPipeline.from_pretrained("ul-fashion")(class_labels=[7], num_inference_steps=1).images[0].size)
assert "What it is" in str(model_card(ROOT / "ul-photo-f8", "me/model"))
"""


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist and the wheel that is built from it, as `python -m build` makes them."""
    folder = tmp_path_factory.mktemp("build")
    source = folder / "source"  # a build must not lean on, or leave, anything in the tree
    shutil.copytree(ROOT / "ul_tokenizer", source / "ul_tokenizer")  # compiled files and all
    shutil.copytree(ROOT / "tests" / "golden", source / "tests" / "golden")
    for name in OF_THE_PROJECT:
        shutil.copyfile(ROOT / name, source / name)
    subprocess.run(
        [sys.executable, "-m", "build", "--outdir", folder / "dist", source],
        check=True,
        timeout=300,
        capture_output=True,
    )
    return folder / "dist"


@pytest.fixture(scope="module")
def installed(distributions: Path) -> Path:
    """An environment with nothing of ours but the wheel; its dependencies are those of this environment."""
    folder = distributions.parent / "environment"
    venv.create(folder)
    site = sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)})
    Path(site, "dependencies.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    (wheel,) = distributions.glob("*.whl")
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "install", "--quiet", "--no-deps"]
    subprocess.run([*pip, "--ignore-installed", str(wheel)], check=True, timeout=300)
    return folder


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    folder = tmp_path / "empty"
    folder.mkdir()
    return folder


def run(environment: Path, where: Path, program: str, *words: str) -> str:
    """What a program of the environment prints, run in a folder and without a network."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "HF_"))}
    variables |= {"HF_ENDPOINT": NO_SERVER, "HTTPS_PROXY": NO_SERVER, "HOME": str(where), "COLUMNS": "80"}
    command = [str(environment / "bin" / program), *words]
    done = subprocess.run(command, cwd=where, env=variables, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def members(distributions: Path) -> tuple[set[str], set[str]]:
    """Names of the files in the sdist, below its folder, and of those in the wheel."""
    (sdist,), (wheel,) = distributions.glob("*.tar.gz"), distributions.glob("*.whl")
    with tarfile.open(sdist) as archive:
        in_sdist = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    return in_sdist, set(zipfile.ZipFile(wheel).namelist())


def metadata(distributions: Path) -> Message:
    (wheel,) = distributions.glob("*.whl")
    return message_from_bytes(zipfile.ZipFile(wheel).read(f"ul_tokenizer-{__version__}.dist-info/METADATA"))


# ---------------------------------------------------------------- sdist and wheel


def test_every_file_of_the_package_is_in_the_sdist_and_in_the_wheel_and_nothing_else(distributions: Path) -> None:
    of_package = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "ul_tokenizer").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert any(name.endswith(".safetensors") for name in of_package)
    in_sdist, in_wheel = members(distributions)
    assert {n for n in in_wheel if not n.startswith(f"ul_tokenizer-{__version__}.dist-info/")} == of_package
    others = {name for name in in_sdist if not name.startswith("ul_tokenizer/")}
    assert in_sdist - others == of_package
    assert {name.partition("/")[0] for name in others} == OF_THE_PROJECT | OF_THE_BUILD


def test_both_pass_the_check_of_the_package_index(distributions: Path) -> None:
    files = [str(path) for path in distributions.iterdir()]
    done = subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *files], capture_output=True, text=True)
    assert done.returncode == 0 and len(files) == 2, done.stdout


def test_the_metadata_say_what_the_package_is_and_where_its_method_is_from(distributions: Path) -> None:
    found = metadata(distributions)
    assert found["Version"] == __version__ and found["License-Expression"] == "Apache-2.0"
    assert "Paper, https://arxiv.org/abs/2602.17270" in (found.get_all("Project-URL") or [])
    assert "Typing :: Typed" in (found.get_all("Classifier") or [])


def test_the_page_of_the_package_index_has_neither_pictures_nor_links_that_lead_nowhere(distributions: Path) -> None:
    page = MarkdownIt("commonmark").enable("table").render(str(metadata(distributions).get_payload()))
    addresses = re.findall(r"(?:href|src|srcset)=\"([^\"]*)\"", page)
    assert addresses
    assert [address for address in addresses if not address.startswith(("https://", "#"))] == []


def test_pictures_and_links_of_every_form_are_taken_out_of_that_page_and_words_stay() -> None:
    text = """[![Licence](docs/badge.svg)](LICENSE) [![CI](https://ci.example/badge.svg)](https://ci.example)
<picture>
  <source media="(prefers-color-scheme: dark)" srcset="docs/dark.webp">
  <img src="docs/light.webp" alt="A moose">
</picture>
<img src="docs/strip.png"> <img src="https://example.org/a.png"> ![plot](docs/plot.png "Title")
See [the format](docs/format.md), [below](#use) and [the paper](https://arxiv.org/abs/2602.17270)."""
    expected = """[![CI](https://ci.example/badge.svg)](https://ci.example)
<img src="https://example.org/a.png">
See the format, [below](#use) and [the paper](https://arxiv.org/abs/2602.17270)."""
    assert runpy.run_path(str(ROOT / "setup.py"))["for_index"](text).split() == expected.split()


def test_changelog_and_citation_name_the_version_and_its_date() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    released = re.search(r"^## \[([\d.]+)\] - (.+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert released and released.groups() == (__version__, citation["date-released"])
    assert citation["version"] == __version__ and citation["license"] == "Apache-2.0"


# ---------------------------------------------------------------- installed


def test_the_bundled_models_load_offline_from_an_installed_wheel(installed: Path, empty: Path) -> None:
    bits, size = run(installed, empty, "python", "-c", PYTHON_CODE).splitlines()
    assert float(bits) > 0
    assert size == "(32, 32)"


def test_info_and_the_list_of_models_work_offline(installed: Path, empty: Path) -> None:
    described = run(installed, empty, "ul-tokenizer", "info")
    assert f"{installed}/" in described and "bundled" in described
    assert "ul-fashion" in run(installed, empty, "ul-tokenizer", "hub", "list")


def test_reconstruct_works_offline(installed: Path, empty: Path) -> None:
    Image.open(ROOT / "examples" / "images" / "moose.jpg").resize((64, 48)).save(empty / "moose.png")
    assert "moose.png" in run(installed, empty, "ul-tokenizer", "reconstruct", "moose.png", "-o", "out")
    assert Image.open(empty / "out" / "moose.png.png").size[0] > 2 * 64  # original and reconstruction


def test_generate_works_offline(installed: Path, empty: Path) -> None:
    run(installed, empty, "ul-tokenizer", "generate", "--class", "7", "-n", "4", "--steps", "2", "-o", "grid.png")
    assert Image.open(empty / "grid.png").size[0] >= 64


COMMANDS = sorted({words[:1] for words in golden_help.commands() if words})


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_answers_help(installed: Path, empty: Path, words: Sequence[str]) -> None:
    assert f"ul-tokenizer {words[0]}" in run(installed, empty, "ul-tokenizer", *words, "--help")


def test_training_starts_by_the_name_of_a_recipe(installed: Path, empty: Path) -> None:
    photos = str(ROOT / "examples" / "images")
    words = ["autoencoder", "--config", "ul-photo-f8", "--dry_run", "--train_data_dir", photos]
    printed = run(installed, empty, "python", "-m", "ul_tokenizer.train", *words)
    assert "output_dir: runs/ul-photo-f8" in printed and "# decoder: " in printed


def test_damaged_weights_are_seen(installed: Path, empty: Path) -> None:
    (weights,) = installed.glob("lib/*/site-packages/ul_tokenizer/pretrained/ul-photo-f8/*.safetensors")
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    try:
        with pytest.raises(AssertionError, match="is damaged: its sha256 differs from the manifest"):
            run(installed, empty, "ul-tokenizer", "info")
    finally:
        weights.write_bytes(content)
