"""The server: how it starts and ends, who can reach it, and what it leaves behind."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import httpx
import pytest
import yaml
from packaging.requirements import Requirement

from tests.demo.conftest import PHOTO, ROOT
from ul_tokenizer.demo import serve
from ul_tokenizer.demo.uploads import MAX_UPLOAD

SPACE = ROOT / "examples" / "space"
DEMO = ("-m", "ul_tokenizer", "demo")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def started(words: tuple[str, ...], folder: Path, **variables: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server in a process of its own, whose temporary files lie in a folder, and its address."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(folder), "HF_HUB_OFFLINE": "1", **variables}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    server: subprocess.Popen[str] = subprocess.Popen(
        [sys.executable, "-u", *words], env=environment, cwd=folder, **pipes
    )  # type: ignore[call-overload]
    try:
        assert server.stdout is not None
        line = server.stdout.readline()
        assert line.startswith("The demo is at http://"), server.communicate()[1]
        yield server, line.rpartition(" ")[2].strip().rstrip("/")
    finally:
        server.kill()
        server.communicate()


def listening(port: int) -> set[str]:
    """Local addresses on which this machine listens at a port, in the kernel's spelling."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    ends = [row[1].split(":") for row in rows if row[3] == "0A"]
    return {address for address, hexadecimal in ends if int(hexadecimal, 16) == port}


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_only_this_machine_reaches_it_and_nothing_is_left_behind(number: signal.Signals, tmp_path: Path) -> None:
    temporary, work = tmp_path / "tmp", tmp_path / "work"
    temporary.mkdir()
    work.mkdir()
    port = free_port()
    with started((*DEMO, "--port", str(port)), temporary) as (server, address):
        assert address == f"http://127.0.0.1:{port}"
        assert listening(port) == {"0100007F"}
        (path,) = httpx.post(f"{address}/gradio_api/upload", files={"files": ("a.jpg", PHOTO.read_bytes())}).json()
        assert Path(path).read_bytes() == PHOTO.read_bytes() and temporary in Path(path).parents
        server.send_signal(number)
        _, errors = server.communicate(timeout=60)
        assert server.returncode == 0, errors
        assert "Everyone" not in errors and "Traceback" not in errors
    assert list(temporary.iterdir()) == []


@pytest.mark.slow
def test_the_space_serves_the_page_to_others_and_says_so(tmp_path: Path) -> None:
    port = free_port()
    words = (str(SPACE / "app.py"),)
    with started(words, tmp_path, GRADIO_SERVER_PORT=str(port)) as (server, _):
        assert listening(port) == {"00000000"}
        assert "Unified Latents" in httpx.get(f"http://127.0.0.1:{port}/").text
        server.send_signal(signal.SIGTERM)
        _, errors = server.communicate(timeout=60)
    assert "Everyone who can reach this address can use it." in errors


def test_the_spaces_metadata_fit_the_demo() -> None:
    _, metadata, _ = (SPACE / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    facts = yaml.safe_load(metadata)
    assert facts["sdk"] == "gradio" and (SPACE / facts["app_file"]).is_file()
    pinned = re.search(r"^gradio==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned and facts["sdk_version"] == pinned[1] == version("gradio")
    assert len(facts["short_description"]) <= 60
    requirement = Requirement((SPACE / "requirements.txt").read_text().strip())
    assert (requirement.name, requirement.extras) == ("ul_tokenizer", {"demo"})


def test_without_gradio_one_sentence_names_the_extra() -> None:
    code = (
        "import sys; sys.modules['gradio'] = None; from ul_tokenizer.cli import main; sys.argv = ['x', 'demo']; main()"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stderr.strip() == "error: the demo needs gradio: pip install 'ul_tokenizer[demo]'."


def test_a_model_that_does_not_exist_ends_it_with_one_sentence(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    command = [sys.executable, *DEMO, "--model", "./nothing-here"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_what_is_larger_than_the_limit_is_refused(address: str) -> None:
    content = b"\0" * (int(MAX_UPLOAD.removesuffix("mb")) * 1024**2 + 1)
    answer = httpx.post(f"{address}gradio_api/upload", files={"files": ("huge.png", content)}, timeout=60)
    assert answer.status_code == 413


def test_every_answer_allows_the_browser_this_server_only(address: str) -> None:
    for path in ("", "config", "gradio_api/info"):
        assert "default-src 'self';" in httpx.get(address + path).headers["content-security-policy"]


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("localhost", True),
        ("::1", True),
        ("0.0.0.0", False),
        ("10.0.0.2", False),
        ("me", False),
    ],
)
def test_loopback_addresses_are_known(host: str, expected: bool) -> None:
    assert serve.is_loopback(host) is expected
