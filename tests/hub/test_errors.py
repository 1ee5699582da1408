"""Errors of the hub's client become one sentence, keep their cause, and leave errors of this machine alone."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled

from tests.hub.loopback_hub import Fault, LoopbackHub
from ul_tokenizer.hub import errors
from ul_tokenizer.hub.download import Access, fetch
from ul_tokenizer.hub.errors import HubError, explained
from ul_tokenizer.hub.upload import Target, push


def everything(files: object) -> list[str]:
    return list(files)  # type: ignore[call-overload]


def test_an_error_of_this_machine_passes_unchanged() -> None:
    with pytest.raises(PermissionError) as caught, explained("owner/model"):
        raise PermissionError("read-only disk")
    assert caught.value.__cause__ is None  # and not the error itself, which would make an endless chain


def test_an_error_of_the_program_passes_unchanged() -> None:
    with pytest.raises(ZeroDivisionError), explained("owner/model"):
        raise ZeroDivisionError


def test_a_hub_error_passes_unchanged() -> None:
    error = errors.FileMissingError("A file is missing.")
    with pytest.raises(errors.FileMissingError) as caught, explained("owner/model"):
        raise error
    assert caught.value is error


@pytest.mark.parametrize("cause", [OfflineModeIsEnabled("offline"), HFValidationError("bad id"), TimeoutError("slow")])
def test_a_client_error_is_the_cause_of_ours(cause: Exception) -> None:
    with pytest.raises(HubError) as caught, explained("owner/model"):
        raise cause
    assert caught.value.__cause__ is cause


def test_a_refused_download_keeps_its_cause(hub: LoopbackHub, tmp_path: Path) -> None:
    with pytest.raises(errors.RepositoryMissingError) as caught:
        fetch("owner/none", everything, access=Access(cache_dir=tmp_path))
    assert caught.value.__cause__ is not None


def test_an_unreachable_hub_keeps_its_cause(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.faults.append(Fault("unavailable", times=1000))
    with pytest.raises(errors.OfflineError) as caught:
        fetch("owner/model", everything, access=Access(cache_dir=tmp_path))
    assert caught.value.__cause__ is not None


def test_a_refused_push_keeps_its_cause(hub: LoopbackHub) -> None:
    with pytest.raises(errors.NoAccessError) as caught:
        push(Target("tester/model", token=hub.read_token), {"a.txt": b"a"})
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize("is_cached_by_another_tool", [False, True])
def test_a_hub_that_fails_between_list_and_files_is_not_reached(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_cached_by_another_tool: bool
) -> None:
    """Also if the client has no list of the commit's files, and would return an incomplete folder."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the client waits before it tries again
    hub.add("owner/data", {"a.txt": b"a", "b.txt": b"b", "kind.txt": str(is_cached_by_another_tool).encode()})
    if is_cached_by_another_tool:
        huggingface_hub.hf_hub_download("owner/data", "a.txt", cache_dir=tmp_path)
    access = Access(cache_dir=tmp_path)
    commit = fetch("owner/data", lambda files: ["a.txt"], access=access).commit
    hub.faults.append(Fault("unavailable", times=1000))
    for revision in (None, commit):
        with pytest.raises(errors.OfflineError):
            fetch("owner/data", everything, revision, access=access)


def test_a_read_only_cache_is_an_error_of_this_machine(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("owner/data", {"a.txt": b"a"})

    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.makedirs", refuse)
    monkeypatch.setattr("pathlib.Path.mkdir", refuse)
    with pytest.raises(OSError, match="Permission denied") as caught:
        fetch("owner/data", everything, access=Access(cache_dir=tmp_path / "none"))
    assert not isinstance(caught.value, HubError)
    assert caught.value.__cause__ is not caught.value
