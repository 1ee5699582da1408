"""The Dockerfile, as far as it can be tested without Docker: what it copies, and what its RUN lines do in a venv."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sysconfig
import venv
from pathlib import Path
from typing import Any

import pytest

tomllib = pytest.importorskip("tomllib", reason="the image has Python 3.11 or newer, and so must this test")
ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "Dockerfile").read_text(encoding="utf-8")


def instructions(word: str) -> list[str]:
    """What follows a word at the start of a line, continued lines joined."""
    joined = re.sub(r"\\\n\s*", "", re.sub(r"(?m)^#.*\n", "", TEXT))
    return re.findall(rf"^{word} (.*)$", joined, re.MULTILINE)


def sources() -> set[str]:
    """Files and folders that are copied from the repository."""
    copied = [words.split() for words in instructions("COPY") if not words.startswith("--from")]
    return {name for words in copied for name in words[:-1]}


def project() -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return found


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder /build after all RUN lines but torch's, and the environment that they installed into."""
    build = tmp_path_factory.mktemp("docker")
    for path in (ROOT / name for name in sources()):
        shutil.copytree(path, build / path.name) if path.is_dir() else shutil.copyfile(path, build / path.name)
    environment = build / "environment"
    venv.create(environment, with_pip=True)
    old = [str(environment / "bin" / "pip"), "uninstall", "--quiet", "--yes", "setuptools"]
    subprocess.run(old, check=True)  # an old one that comes with pip would hide that of the dependencies
    site = sysconfig.get_path("purelib", vars={"base": str(environment), "platbase": str(environment)})
    Path(site, "dependencies.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    programs = f"{environment / 'bin'}{os.pathsep}{os.environ['PATH']}"
    for line in instructions("RUN"):
        command = re.sub(r"--mount=\S+ ", "", line)
        if "torch" in command:
            continue  # a download of hundreds of megabytes
        is_offline = {"PIP_NO_INDEX": "1"} if "requirements.txt" in command and "-r " in command else {}
        done = subprocess.run(
            ["sh", "-c", command.replace('-c constraints.txt "$wheel', '--no-deps --ignore-installed "$wheel')],
            cwd=build,
            env={**os.environ, "PATH": programs, **is_offline},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, f"{command}\n{done.stderr}"
    return build


def test_the_build_context_is_what_the_dockerfile_copies_and_nothing_else() -> None:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert lines[1] == "*"  # all is left out but what follows
    assert {line[1:] for line in lines if line.startswith("!")} == sources()
    assert [name for name in sources() if not (ROOT / name).exists()] == []


def test_one_torch_is_chosen_by_an_argument_and_the_default_is_for_cpus() -> None:
    assert "DEVICE=cpu" in instructions("ARG") and "torch-${DEVICE}" in instructions("FROM")
    assert {"base AS torch-cpu", "base AS torch-cuda"} <= set(instructions("FROM"))
    assert any("/whl/cpu" in line and "'^torch=='" in line for line in instructions("RUN"))
    assert re.search(r"^torch==\d", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)


def test_the_image_starts_the_command_line_as_a_user_without_rights() -> None:
    (words,) = map(json.loads, instructions("ENTRYPOINT"))
    assert set(words) <= set(project()["scripts"])
    assert instructions("USER") == ["1000:1000"]


def test_the_layer_of_dependencies_has_those_of_the_package(built: Path) -> None:
    lines = (built / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert lines == project()["dependencies"]


def test_the_image_describes_a_bundled_model_without_a_network(built: Path, tmp_path: Path) -> None:
    (values,) = instructions("ENV")[1:]
    variables = dict(pair.split("=") for pair in values.split())
    assert variables["HF_HUB_OFFLINE"] == "1"
    command = [str(built / "environment" / "bin" / "ul-tokenizer"), "info", "ul-fashion", "--json"]
    environment = {"PATH": os.environ["PATH"], **variables}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (result,) = json.loads(done.stdout)["results"]
    assert result["from"] == "bundled" and result["folder"].startswith(str(built / "environment"))
