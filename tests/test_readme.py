"""The README: commands and snippets run from top to bottom, pictures are ours and small, badges are true."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import draw_pictures
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
MAX_WORDS = 900
# Trainings take a few steps of small crops here, and `make` uses this environment in place of its own.
SHORT = (
    "--max_train_steps 2 --train_batch_size 2 --resolution 32 --num_validation_images 2 --validation_steps 2 "
    "--lr_warmup_steps 0 --mixed_precision no --dataloader_num_workers 0"
)
APPENDED = {
    "ul-tokenizer train autoencoder": f"{SHORT} --validation_resolution 32 --validation_fraction 0.3",
    "ul-tokenizer train base": f"{SHORT} --validation_fraction 0.3",
    "pip install": "--dry-run --quiet --no-deps --no-build-isolation",
    "make demo": "DEMO_ENV=environment",
    "make test": "TEST_ENV=environment PYTEST='-p no:cacheprovider tests/test_progress.py'",
}


# ---------------------------------------------------------------- commands


class Block(NamedTuple):
    """A fenced block: its language and its text."""

    language: str
    text: str


def blocks() -> list[Block]:
    return [Block(*found) for found in re.findall(r"^```(\w+)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)]


def commands(text: str) -> Iterator[str]:
    """The lines of a block of shell commands, continued lines joined."""
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    yield from (line for line in (re.sub(r"(^|\s+)# .*$", "", line).strip() for line in lines) if line)


def shortened(command: str) -> str:
    """A command that takes seconds where a reader's takes hours or a download."""
    appended = [words for start, words in APPENDED.items() if f"{command} ".startswith(f"{start} ")]
    return " ".join([command, *appended])


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A folder that looks like a clone and holds what a reader has: photographs, some of them in classes."""
    for path in ROOT.iterdir():
        if not path.name.startswith(".") and path.name not in ("demo", "runs", "build"):
            (tmp_path / path.name).symlink_to(path)
    images = sorted((ROOT / "examples" / "images").glob("*.jpg"))
    for number in range(2):
        for image in images:
            small = Image.open(image).resize((96 + 16 * number, 80))
            for folder in ("photos", "my/photos", f"my/classes/{'ab'[number]}"):
                (tmp_path / folder).mkdir(parents=True, exist_ok=True)
                small.save(tmp_path / folder / f"{number}-{image.name}")
    shutil.copy(tmp_path / "photos" / f"0-{images[0].name}", tmp_path / "photo.jpg")
    programs = tmp_path / "environment" / "bin"
    programs.mkdir(parents=True)
    for name, start in {"python": "", "ul-tokenizer": "-m ul_tokenizer", "pip": "-m pip"}.items():
        program = programs / name
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" {start} "$@"\n')
        program.chmod(0o755)
    (tmp_path / "environment" / ".installed").touch()  # newer than pyproject.toml: `make` need not install it
    return tmp_path


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_command_and_snippet_runs_from_top_to_bottom(clone: Path) -> None:
    path = f"{clone / 'environment' / 'bin'}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "2"}
    for block in blocks():
        scripts = [shortened(command) for command in commands(block.text)] if block.language == "sh" else [block.text]
        for script in scripts:
            words = ["bash", "-c", script] if block.language == "sh" else [sys.executable, "-c", script]
            done = subprocess.run(words, cwd=clone, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
    for made in (
        "demo/moose.jpg.png",
        "moose-again.png",
        "latents/header.json",
        "out/photo.jpg.png",
        "grid.png",
        "shoes.png",
    ):
        assert (clone / made).is_file(), made


def test_all_blocks_are_commands_or_python_and_short() -> None:
    assert {block.language for block in blocks()} == {"sh", "python"}
    assert max(len(block.text.splitlines()) for block in blocks()) <= 12
    assert max(len(line) for block in blocks() for line in block.text.splitlines()) <= 92  # GitHub scrolls longer lines


def test_only_trainings_installations_and_make_are_shortened() -> None:
    commands_shown = [command for block in blocks() if block.language == "sh" for command in commands(block.text)]
    unchanged = [command for command in commands_shown if shortened(command) == command]
    assert len(unchanged) >= 5 and all(shlex.split(command)[0] == "ul-tokenizer" for command in unchanged)
    assert all(any(command.startswith(start) for command in commands_shown) for start in APPENDED)


# ---------------------------------------------------------------- words, links and pictures


def visible_words(text: str) -> list[str]:
    """The words that a reader sees, those of code and tables included."""
    without = re.sub(r"<!--.*?-->|<[^>]+>|\]\([^)]*\)", " ", text, flags=re.DOTALL)
    return [word for word in without.split() if re.search(r"\w", word)]


def test_the_readme_is_short() -> None:
    assert len(visible_words(README)) <= MAX_WORDS


def test_every_link_leads_to_a_file() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)", README)
    assert len(links) > 15
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_every_picture_is_there_in_light_and_dark_and_small() -> None:
    pictures = re.findall(r'srcset="(\S+)">\n  <img src="(\S+)" alt="[^"]{20,}"', README)
    assert len(pictures) == README.count("<picture>") == 3
    for dark, light in pictures:
        assert dark == light.replace("-light.", "-dark.")
        sizes = [Image.open(ROOT / picture).size for picture in (dark, light)]
        assert sizes[0] == sizes[1]
        assert all((ROOT / picture).stat().st_size <= draw_pictures.MAX_BYTES for picture in (dark, light))


def test_the_photograph_of_the_banner_is_in_the_public_domain() -> None:
    licences = (ROOT / "examples" / "LICENSE-images.md").read_text(encoding="utf-8")
    section = licences.partition(f"## {draw_pictures.PHOTO.name}\n")[2].partition("\n## ")[0]
    assert "* Licence: public domain" in section


def test_the_badges_say_what_the_repository_says() -> None:
    pytest.importorskip("matplotlib")
    for path, content in draw_pictures.draw_badges():
        assert f"{path.relative_to(ROOT)}" in README
        assert path.read_bytes() == content, f"{path.name} is out of date: run `make pictures`"


def test_a_picture_that_is_too_large_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    large = draw_pictures.OUTPUT / "large.png"
    monkeypatch.setitem(draw_pictures.PICTURES, "banner", lambda: iter([(large, bytes(400_001))]))
    assert draw_pictures.main(["--only", "banner"]) == 1
    assert capsys.readouterr().err == "error: large.png must have at most 400,000 bytes, got 400,001.\n"
    assert not large.exists()
