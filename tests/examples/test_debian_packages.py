"""Packages of another release of Debian: apt is asked with settings of its own, and old releases are found as well."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

SCRIPTS = Path(__file__).parents[2] / "examples" / "data"


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import debian_packages  # type: ignore[import-not-found, unused-ignore]

    (tmp_path / "keyring.gpg").write_bytes(b"")
    monkeypatch.setattr(debian_packages, "KEYRING", tmp_path / "keyring.gpg")
    return debian_packages  # type: ignore[no-any-return, unused-ignore]


class FakeApt:
    """apt, with one mirror that has the package; `commands` are those that it was asked."""

    def __init__(self, mirror: str) -> None:
        self.mirror = mirror
        self.commands: list[tuple[str, ...]] = []
        self.known = False

    def __call__(self, *command: str, cwd: str | None = None, check: bool = True) -> str:
        self.commands.append(command)
        settings = dict(part.split("=", 1) for part in command if "::" in part)
        if "update" in command:
            self.known |= self.mirror in Path(settings["Dir::Etc::SourceList"]).read_text()
        elif "show" in command:
            return "Package: p" if self.known else ""
        elif "download" in command:
            assert cwd is not None
            assert self.known
            Path(cwd, "p_1_all.deb").write_bytes(b"deb")
        return ""


@pytest.mark.parametrize(("mirror", "updates"), [(0, 1), (1, 2)], ids=["current release", "archived release"])
def test_a_release_is_looked_for_on_both_mirrors_and_its_index_is_fetched_once(
    packages: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, mirror: int, updates: int
) -> None:
    apt = FakeApt(f"{packages.MIRRORS[mirror]} bullseye main")
    monkeypatch.setattr(packages, "run", apt)
    deb = packages.fetch_package("p", tmp_path / "bullseye", "bullseye")
    assert deb == tmp_path / "bullseye" / "p_1_all.deb"
    assert sum("update" in command for command in apt.commands) == updates
    deb.unlink()
    packages.fetch_package("p", tmp_path / "bullseye", "bullseye")
    assert sum("update" in command for command in apt.commands) == updates


def test_no_setting_or_index_of_this_machine_is_used_or_changed(
    packages: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    apt = FakeApt("bullseye")
    monkeypatch.setattr(packages, "run", apt)
    packages.fetch_package("p", tmp_path / "bullseye", "bullseye")
    for command in apt.commands:
        settings = dict(part.split("=", 1) for part in command if "::" in part)
        for place in ("Dir::Etc::SourceList", "Dir::State::Lists", "Dir::Cache"):
            assert Path(settings[place]).is_relative_to(tmp_path)
        assert settings["Dir::Etc::SourceParts"] == "/dev/null"


def test_a_package_that_is_there_is_not_asked_for(
    packages: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(packages, "run", lambda *command, **_: pytest.fail(f"ran {command}"))
    (tmp_path / "p_1_all.deb").write_bytes(b"deb")
    assert packages.fetch_package("p", tmp_path, "bullseye") == tmp_path / "p_1_all.deb"


def test_without_debians_keys_the_error_says_what_to_install(
    packages: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(packages, "KEYRING", tmp_path / "missing.gpg")
    with pytest.raises(SystemExit, match="install debian-archive-keyring"):
        packages.fetch_package("p", tmp_path / "bullseye", "bullseye")
