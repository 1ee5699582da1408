"""The photo recipe: Qt resource files are parsed, and no photo of the validation split gets into training."""

from __future__ import annotations

import hashlib
import io
import struct
import subprocess
import warnings
import zlib
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from PIL import Image, ImageDraw

SCRIPTS = Path(__file__).parents[2] / "examples" / "data"


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import debian_photos  # type: ignore[import-not-found, unused-ignore]

    return debian_photos  # type: ignore[no-any-return, unused-ignore]


@pytest.fixture
def resources(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import qt_resources  # type: ignore[import-not-found, unused-ignore]

    return qt_resources  # type: ignore[no-any-return, unused-ignore]


# ---------------------------------------------------------------- .rcc


def make_rcc(files: list[tuple[str, bytes, int]], version: int = 3, count: int | None = None) -> bytes:
    """An .rcc with one folder `pictures` that holds `files`: (name, stored bytes, flags)."""
    names, data, offsets = b"", b"", []
    for name in ["pictures", *(name for name, _, _ in files)]:
        offsets.append(len(names))
        names += struct.pack(">HI", len(name), 0) + name.encode("utf-16-be")
    tail = struct.pack(">Q", 0) if version >= 2 else b""
    tree = struct.pack(">IHII", 0, 2, 1, 1) + tail  # the root
    tree += struct.pack(">IHII", offsets[0], 2, count or len(files), 2) + tail
    for (_, stored, flags), offset in zip(files, offsets[1:], strict=True):
        tree += struct.pack(">IHHHI", offset, flags, 0, 1, len(data)) + tail
        data += struct.pack(">I", len(stored)) + stored
    start = 24 if version >= 3 else 20
    header = struct.pack(">4s4I", b"qres", version, start, start + len(tree), start + len(tree) + len(data))
    return header + (struct.pack(">I", 0) if version >= 3 else b"") + tree + data + names


@pytest.mark.parametrize("version", [1, 2, 3])
def test_plain_and_compressed_resources_are_read_in_every_version(resources: ModuleType, version: int) -> None:
    text = b"long " * 50
    packed = struct.pack(">I", len(text)) + zlib.compress(text)
    blob = make_rcc([("ä.webp", b"RIFF", 0), ("b.txt", packed, 1)], version)
    assert list(resources.read_resources(blob)) == [("pictures/ä.webp", b"RIFF"), ("pictures/b.txt", text)]


@pytest.mark.parametrize(
    "blob",
    [b"", b"RIFF....", b"qres", make_rcc([("a", b"123", 0)])[:40], make_rcc([("a", b"123", 0)], count=99)],
    ids=["empty", "other", "header only", "cut", "wrong number of children"],
)
def test_what_is_no_resource_file_or_damaged_is_one_error(resources: ModuleType, blob: bytes) -> None:
    with pytest.raises(ValueError, match="Qt resource file"):
        list(resources.read_resources(blob))


def test_a_folder_that_contains_itself_is_an_error(resources: ModuleType) -> None:
    blob = struct.pack(">4s5I", b"qres", 3, 24, 46, 46, 0) + struct.pack(">IHIIQ", 0, 2, 1, 0, 0) + bytes(6)
    with pytest.raises(ValueError, match="deeper than 64"):
        list(resources.read_resources(blob))


# ---------------------------------------------------------------- what is a photograph


def photo(seed: int, size: tuple[int, int] = (640, 400)) -> Image.Image:
    """Smooth noise: every seed has a scene of its own, at any size."""
    scene = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    image = Image.fromarray(scene).resize(size, Image.Resampling.BICUBIC)
    grain = np.random.default_rng(seed + 1000).normal(0, 3, (size[1], size[0], 3))
    return Image.fromarray((np.asarray(image) + grain).clip(0, 255).astype(np.uint8))


def test_line_art_is_flat_and_a_photo_is_not(recipe: ModuleType) -> None:
    drawing = Image.new("RGB", (400, 300), "white")
    ImageDraw.Draw(drawing).ellipse((50, 50, 250, 250), fill="orange", outline="black", width=5)
    assert recipe.is_flat(drawing)
    assert not recipe.is_flat(photo(0))


def test_a_cut_out_has_holes_and_an_opaque_alpha_channel_is_none(recipe: ModuleType) -> None:
    opaque = photo(0).convert("RGBA")
    assert not recipe.has_holes(photo(0))
    assert not recipe.has_holes(opaque)
    opaque.paste((0, 0, 0, 0), (0, 0, 200, 200))
    assert recipe.has_holes(opaque)


@pytest.mark.parametrize(
    ("size", "smaller"),
    [((5120, 2880), (910, 512)), ((400, 300), (400, 300)), ((4000, 600), (1024, 154)), ((512, 900), (512, 900))],
)
def test_photos_are_scaled_down_to_both_limits_and_never_up(
    recipe: ModuleType, size: tuple[int, int], smaller: tuple[int, int]
) -> None:
    assert recipe.downscale(Image.new("L", size)).size == smaller
    assert recipe.downscale(Image.new("L", size)).mode == "RGB"


def test_a_wallpaper_in_two_sizes_has_nearly_one_fingerprint_and_other_photos_have_others(recipe: ModuleType) -> None:
    large, small = photo(0, (1280, 800)), photo(0, (1280, 800)).resize((480, 300))
    near = (recipe.fingerprint(large) != recipe.fingerprint(small)).sum()
    far = min((recipe.fingerprint(photo(0)) != recipe.fingerprint(photo(seed))).sum() for seed in range(1, 20))
    assert near <= recipe.NEAR_DUPLICATE_BITS / 2
    assert far >= recipe.NEAR_DUPLICATE_BITS * 2


# ---------------------------------------------------------------- the splits, on packages made by hand


def encode(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


PACKAGES: dict[str, list[tuple[str, bytes]]] = {
    "lxqt-themes": [("w/a.png", encode(photo(0))), ("w/triangles.png", encode(photo(1)))],
    "palapeli-data": [("w/b.png", encode(photo(2))), ("w/small.png", encode(photo(9, (600, 255))))],
    "libjs-jquery-backstretch": [("w/a-small.png", encode(photo(0).resize((480, 300))))],
    "gcompris-qt-data": [("w/a-in-train.png", encode(photo(0, (960, 600)))), ("w/c.png", encode(photo(3)))],
    "mate-backgrounds": [("w/icon.png", encode(photo(4, (191, 600)))), ("w/d.png", encode(photo(5)))],
    "plasma-workspace-wallpapers": [("w/d-small.png", encode(photo(5).resize((480, 300))))],
    "lomiri-wallpapers-20.04": [("w/e.png", encode(photo(6))), ("w/Kleiber_1.png", encode(photo(7)))],
    "gcompris-qt-data-bullseye": [
        ("w/c.png", encode(photo(8, (320, 192)))),  # another photo under the name of one in bookworm
        ("w/c.jpeg", encode(photo(10))),
        ("w/held-out-under-another-name.png", encode(photo(7, (480, 300)))),
    ],
    "gnome-backgrounds-bullseye": [("w/Symbolics-1.jpg", encode(photo(11)))],
    "budgie-backgrounds-trixie": [("w/c-of-bookworm.png", encode(photo(3, (960, 600))))],
}


@pytest.fixture
def offline(recipe: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> SimpleNamespace:
    """The script with PACKAGES in place of Debian's; `read` counts the packages that were opened."""
    state = SimpleNamespace(read=[], cache=tmp_path / "cache", list=tmp_path / "photos.sha256", version="1-1")

    def read_package(deb: Path) -> list[tuple[str, bytes]]:
        state.read.append(deb.name)
        return PACKAGES[deb.name]

    monkeypatch.setattr(
        recipe, "fetch_package", lambda package, folder, suite: folder / recipe.Source(package, suite).prefix
    )
    monkeypatch.setattr(recipe, "read_package", read_package)
    monkeypatch.setattr(recipe, "version_of", lambda deb: state.version)
    monkeypatch.setattr(recipe, "CHECKSUMS", state.list)
    state.run = lambda *options: recipe.main(["--cache", str(state.cache), *options])
    state.files = lambda: sorted(path.relative_to(state.cache).as_posix() for path in state.cache.glob("*/*"))
    return state


EXPECTED = [
    "train/gcompris-qt-data--w-c.png",
    "train/gcompris-qt-data-bullseye--w-c-jpeg.png",
    "train/gcompris-qt-data-bullseye--w-c.png",
    "train/lomiri-wallpapers-20.04--w-e.png",
    "train/mate-backgrounds--w-d.png",
    "validation/lxqt-themes--w-a.png",
    "validation/palapeli-data--w-b.png",
]


def test_near_duplicates_stay_in_validation_only_and_small_or_listed_pictures_nowhere(offline: SimpleNamespace) -> None:
    offline.run("--write-list")
    assert offline.files() == EXPECTED


def test_photos_of_two_releases_under_one_name_are_both_kept(offline: SimpleNamespace) -> None:
    offline.run("--write-list")
    names = (f"gcompris-qt-data{suite}--w-c.png" for suite in ("", "-bullseye"))
    for name, original in zip(names, (photo(3), photo(8, (320, 192))), strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(offline.cache / "train" / name)), np.asarray(original))


def test_every_package_is_asked_for_in_its_release(
    offline: SimpleNamespace, recipe: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, fetch = [], recipe.fetch_package

    def fetch_package(package: str, folder: Path, suite: str) -> Path:
        asked.append((package, folder.name, suite))
        deb: Path = fetch(package, folder, suite)
        return deb

    monkeypatch.setattr(recipe, "fetch_package", fetch_package)
    offline.run("--write-list")
    assert ("gcompris-qt-data", "bookworm", "bookworm") in asked
    assert ("gcompris-qt-data", "bullseye", "bullseye") in asked
    assert ("budgie-backgrounds", "trixie", "trixie") in asked
    assert len(set(asked)) == len(asked) == len(PACKAGES)


def test_the_collector_takes_validation_first(recipe: ModuleType, offline: SimpleNamespace) -> None:
    offline.run("--write-list")
    assert offline.read[:3] == [source.prefix for source in recipe.VALIDATION]


def test_the_list_names_the_source_files(offline: SimpleNamespace) -> None:
    offline.run("--write-list")
    checksum = hashlib.sha256(PACKAGES["palapeli-data"][0][1]).hexdigest()
    assert f"{checksum}  validation  palapeli-data=1-1  w/b.png" in offline.list.read_text().splitlines()


def test_a_complete_cache_is_left_alone(offline: SimpleNamespace) -> None:
    offline.run("--write-list")
    offline.read.clear()
    offline.run()
    assert not offline.read


def test_a_cache_that_lost_a_file_is_completed_and_strangers_in_it_stay(offline: SimpleNamespace) -> None:
    offline.run("--write-list")
    (offline.cache / EXPECTED[0]).unlink()
    (offline.cache / "train" / "mine.png").write_bytes(b"")
    (offline.cache / "train" / "gcompris-qt-data--old.png").write_bytes(b"")
    offline.run()
    assert offline.files() == sorted([*EXPECTED, "train/mine.png"])


def test_a_run_killed_in_between_goes_on_to_the_same_result(
    offline: SimpleNamespace, recipe: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    offline.run("--write-list")
    whole = {name: (offline.cache / name).read_bytes() for name in offline.files()}
    offline.cache = offline.cache.with_name("second")
    write, written = recipe._write_png, []

    def killed_at_the_third(image: Image.Image, target: Path) -> None:
        written.append(target)
        if len(written) == 3:
            target.parent.mkdir(exist_ok=True)
            target.with_suffix(".part").write_bytes(b"half of it")
            raise KeyboardInterrupt
        write(image, target)

    monkeypatch.setattr(recipe, "_write_png", killed_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        offline.run()
    assert not (offline.cache / "complete.json").exists()
    offline.run()
    assert {name: (offline.cache / name).read_bytes() for name in offline.files()} == whole
    assert len(written) == len(EXPECTED) + 1  # nothing was made twice but the one that was interrupted


def test_another_version_of_a_package_is_a_warning_that_names_it(offline: SimpleNamespace) -> None:
    offline.run("--write-list")
    (offline.cache / "complete.json").unlink()
    offline.version = "2-1"
    with pytest.warns(UserWarning, match="palapeli-data=2-1 is not the version"):
        offline.run()
    assert offline.files() == EXPECTED


def test_other_bytes_under_the_same_version_are_an_error(
    offline: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    offline.run("--write-list")
    (offline.cache / "complete.json").unlink()
    monkeypatch.setitem(PACKAGES, "palapeli-data", [("w/b.png", encode(photo(2)) + b"\0")])
    with pytest.raises(ValueError, match="palapeli-data=1-1 must be those of"):
        offline.run()
    assert not (offline.cache / "complete.json").exists()


def test_the_shipped_list_keeps_the_splits_apart(recipe: ModuleType) -> None:
    lines = [line.split("  ") for line in recipe.CHECKSUMS.read_text().splitlines()[1:]]
    assert {package.split("=")[0] for _, split, package, _ in lines if split == "validation"} == {
        "lxqt-themes",
        "palapeli-data",
        "libjs-jquery-backstretch",
    }
    assert len({checksum for checksum, *_ in lines}) == len(lines) == 569
    assert {package for _, _, package, _ in lines if package.startswith("gcompris")} == {
        "gcompris-qt-data=3.1-2",
        "gcompris-qt-data=1.0-1",
    }
    assert not any("moose" in member or "Kleiber" in member for *_, member in lines)  # the demo's
    assert not any(recipe.is_skipped(package.split("=")[0], member) for _, _, package, member in lines)


def test_pictures_are_found_in_a_real_package_also_inside_resource_files(recipe: ModuleType, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN" / "control").write_text(
        "Package: p\nVersion: 1\nArchitecture: all\nMaintainer: a <a@b.c>\nDescription: d\n"
    )
    (tree / "usr").mkdir()
    (tree / "usr" / "a.png").write_bytes(b"1")
    (tree / "usr" / "notes.txt").write_bytes(b"2")
    (tree / "usr" / "link.png").symlink_to("a.png")
    (tree / "usr" / "b.rcc").write_bytes(make_rcc([("x.webp", b"3", 0), ("x.qml", b"4", 0)]))
    try:
        subprocess.run(["dpkg-deb", "-b", str(tree), str(tmp_path / "p.deb")], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("no dpkg-deb on this machine")
    found = dict(recipe.read_package(tmp_path / "p.deb"))
    assert found == {"usr/a.png": b"1", "usr/b.rcc/pictures/x.webp": b"3"}


def test_nothing_is_warned_of_when_everything_is_as_listed(offline: SimpleNamespace) -> None:
    offline.run("--write-list")
    (offline.cache / "complete.json").unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        offline.run()
