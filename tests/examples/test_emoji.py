"""The recipe of the emoji, run on small archives of the same layout."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ul_tokenizer.sources.folder import FolderSource

SCRIPTS = Path(__file__).parents[2] / "examples" / "data"


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import emoji  # type: ignore[import-not-found, unused-ignore]

    return emoji  # type: ignore[no-any-return, unused-ignore]


def row(code: str, name: str, category: str, subcategory: str, *short_names: str, order: int = 1) -> dict[str, Any]:
    """A row of emoji.json, as far as the recipe reads it."""
    return {
        "unified": code,
        "name": name,
        "short_names": list(short_names),
        "category": category,
        "subcategory": subcategory,
        "sort_order": order,
    }


STRAWBERRY = row("1F353", "STRAWBERRY", "Food & Drink", "food-fruit", "strawberry", order=2)
APPLE = row("1F34E", "RED APPLE", "Food & Drink", "food-fruit", "apple", order=3)
WINK = row("1F609", "WINKING FACE", "Smileys & Emotion", "face-smiling", "wink", order=1)
FRANCE = row("1F1EB-1F1F7", "France Flag", "Flags", "country-flag", "fr", "flag-fr", order=5)
MARTIN = row("1F1F2-1F1EB", "St. Martin Flag", "Flags", "country-flag", "flag-mf", order=4)
SKIN = row("1F3FB", "EMOJI MODIFIER FITZPATRICK TYPE-1-2", "Component", "skin-tone", "skin-tone-2", order=0)
TABLE = [APPLE, STRAWBERRY, FRANCE, MARTIN, WINK, SKIN]


def picture(seed: int, size: tuple[int, int] = (64, 64), format: str = "PNG") -> bytes:
    """A square of one colour with a transparent left half."""
    pixels = np.zeros((size[1], size[0], 4), dtype=np.uint8)
    pixels[:, size[0] // 2 :] = (*np.random.default_rng(seed).integers(0, 200, 3), 255)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format, **({"lossless": True} if format == "WEBP" else {}))
    return buffer.getvalue()


FILES: dict[str, dict[str, bytes]] = {
    "noto": {
        "package/emoji.json": json.dumps(TABLE).encode(),
        "package/img/google/64/1f353.png": picture(0),
        "package/img/google/64/1f34e.png": picture(1),
        "package/img/google/64/1f609.png": picture(2),
        "package/img/google/64/1f3fb.png": picture(3),
        "package/img/google/64/1f1eb-1f1f7.png": picture(4),
        "package/img/google/64/1f1f2-1f1eb.png": picture(4),  # the same flag
        "package/img/google/sheets/64.png": b"a large sheet",
    },
    "twemoji": {"package/img/twitter/64/1f353.png": picture(6), "package/img/twitter/64/1f1f2-1f1eb.png": picture(7)},
    "fluent": {"package/assets/1f353.webp": picture(5, (256, 256), "WEBP")},
}


@pytest.fixture
def offline(recipe: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> SimpleNamespace:
    """The script with FILES in place of npm's archives."""
    packages = tmp_path / "packages"
    packages.mkdir()
    vendors = []
    for vendor in recipe.VENDORS:
        with tarfile.open(packages / vendor.archive, "w:gz") as archive:
            for name, content in FILES[vendor.name].items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
        digest = hashlib.sha512((packages / vendor.archive).read_bytes()).digest()
        vendors.append(vendor._replace(sha512=base64.b64encode(digest).decode()))
    monkeypatch.setattr(recipe, "VENDORS", tuple(vendors))
    cache = tmp_path / "cache"
    run: Callable[[], None] = lambda: recipe.main(["--cache", str(cache), "--packages", str(packages)])  # noqa: E731
    return SimpleNamespace(cache=cache, packages=packages, vendors=vendors, run=run)


def rows_of(cache: Path) -> dict[str, dict[str, Any]]:
    """All lines of both metadata files, by file name."""
    lines = [line for split in ("train", "validation") for line in (cache / split / "metadata.jsonl").open()]
    return {content["file_name"]: content for content in map(json.loads, lines)}


# ---------------------------------------------------------------- what is written


def test_every_picture_is_written_with_its_caption_and_its_class_of_group_and_vendor(offline: SimpleNamespace) -> None:
    offline.run()
    rows = rows_of(offline.cache)
    assert rows["noto/1f34e.png"] == {
        "file_name": "noto/1f34e.png",
        "caption": "red apple, food fruit",
        "name": "red apple",
        "label": 3,
        "group": "Food & Drink",
        "subgroup": "food-fruit",
        "vendor": "noto",
        "code": "1f34e",
    }
    assert {name: content["label"] for name, content in rows.items()} == {
        "noto/1f609.png": 0,
        "noto/1f353.png": 3,
        "noto/1f34e.png": 3,
        "noto/1f1eb-1f1f7.png": 8,
        "twemoji/1f353.png": 12,
        "twemoji/1f1f2-1f1eb.png": 17,
        "fluent/1f353.png": 21,
    }


def test_what_is_transparent_becomes_white_and_every_picture_has_64_pixels(offline: SimpleNamespace) -> None:
    offline.run()
    for path in offline.cache.glob("*/*/*.png"):
        pixels = np.asarray(Image.open(path))
        assert pixels.shape == (64, 64, 3)
        assert (pixels[:, :28] == 255).all()
        assert (pixels[:, 36:] <= 200).all()


def test_the_librarys_folder_source_finds_the_classes_and_captions(offline: SimpleNamespace) -> None:
    offline.run()
    found: dict[str, dict[str, Any]] = {}
    for split in ("train", "validation"):
        if any((offline.cache / split).rglob("*.png")):
            source = FolderSource(offline.cache / split)
            found |= {source.id(index): source.columns(index) for index in range(len(source))}
            assert not source.skipped
    assert found["fluent/1f353.png"]["label"] == 21
    assert found["noto/1f609.png"]["caption"] == "winking face, wink, face smiling"


def test_of_equal_pictures_of_a_vendor_the_one_with_the_shortest_name_stays(offline: SimpleNamespace) -> None:
    offline.run()
    flags = [name for name in rows_of(offline.cache) if "1f1" in name]
    assert flags == ["noto/1f1eb-1f1f7.png", "twemoji/1f1f2-1f1eb.png"]


def test_a_picture_that_is_not_square_is_neither_stretched_nor_cut(recipe: ModuleType) -> None:
    buffer = io.BytesIO()
    Image.new("RGBA", (32, 64), "black").save(buffer, "PNG")
    pixels = np.asarray(recipe.on_white(buffer.getvalue()))
    assert (pixels[:, 16:48] == 0).all()
    assert (pixels[:, :16] == 255).all()
    assert (pixels[:, 48:] == 255).all()


# ---------------------------------------------------------------- words


@pytest.mark.parametrize(
    ("fields", "caption"),
    [
        (STRAWBERRY, "strawberry, food fruit"),
        (FRANCE, "france flag, country flag"),
        (row("2764-FE0F", "HEAVY BLACK HEART", "Smileys & Emotion", "heart", "heart"), "heart"),
        (row("1F408", "BLACK CAT", "Animals & Nature", "animal-mammal", "black_cat"), "black cat, animal mammal"),
        (row("1F929", "GRINNING FACE", "Smileys & Emotion", "a-b", "star-struck"), "grinning face, star struck, a b"),
    ],
)
def test_captions_are_plain_words_without_repetitions_and_without_the_printers_terms(
    recipe: ModuleType, fields: dict[str, Any], caption: str
) -> None:
    assert recipe.emoji_of(fields).caption == caption


# ---------------------------------------------------------------- splits


@pytest.mark.parametrize(
    "codes",
    [
        ("1f9d1-200d-1f680", "1f468-200d-1f680", "1f469-200d-1f680"),  # astronauts
        ("1f3c3", "1f3c3-200d-2640-fe0f", "1f3c3-200d-2642-fe0f-200d-27a1-fe0f"),  # runners, one to the right
        ("2764", "2764-fe0f"),
    ],
)
def test_genders_directions_and_styles_of_one_emoji_share_their_split(
    recipe: ModuleType, codes: tuple[str, ...]
) -> None:
    assert len({recipe.kind_of(code) for code in codes}) == 1


def test_other_emoji_have_other_kinds(recipe: ModuleType) -> None:
    codes = ("1f353", "1f34e", "1f468-200d-1f680", "1f468-200d-1f692", "1f1eb-1f1f7", "1f1f2-1f1eb", "2642-fe0f")
    assert len({recipe.kind_of(code) for code in codes}) == len(codes)


def test_about_a_sixteenth_is_held_out_by_the_code_alone(recipe: ModuleType) -> None:
    splits = [recipe.Emoji(f"{code:x}", "name", (), "Flags", "").split for code in range(0x1F000, 0x1F000 + 4000)]
    assert 200 < splits.count("validation") < 300
    assert recipe.Emoji("1f353", "another name", ("x",), "Flags", "").split == recipe.emoji_of(STRAWBERRY).split


def test_the_vendors_pictures_of_one_emoji_share_their_split(offline: SimpleNamespace) -> None:
    offline.run()
    splits = {path.parents[1].name for path in offline.cache.glob("*/*/1f353.png")}
    assert len(splits) == 1
    assert len(list(offline.cache.glob("*/*/1f353.png"))) == 3


# ---------------------------------------------------------------- interrupted, damaged, missing


def test_a_complete_cache_is_left_alone(offline: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    offline.run()
    (offline.cache / "train" / "mine.txt").write_text("x")
    offline.run()
    assert (offline.cache / "train" / "mine.txt").exists()
    assert "is complete" in capsys.readouterr().out


def test_what_a_killed_run_left_is_made_anew(
    offline: SimpleNamespace, recipe: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = recipe.os.replace

    def killed_after_the_first_split(source: Path, target: Path) -> None:
        if target.name == "validation":
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as killing:
        killing.setattr(recipe.os, "replace", killed_after_the_first_split)
        with pytest.raises(KeyboardInterrupt):
            offline.run()
    (offline.cache / "train" / "noto" / "stale.png").write_bytes(b"")
    offline.run()
    assert len(rows_of(offline.cache)) == len(list(offline.cache.glob("*/*/*.png"))) == 7
    assert not list(offline.cache.glob("*.part"))


def test_another_archive_is_an_error_that_names_the_package(offline: SimpleNamespace) -> None:
    (offline.packages / offline.vendors[1].archive).write_bytes(b"another")
    with pytest.raises(ValueError, match=r"must be npm's emoji-datasource-twitter 16\.0\.0"):
        offline.run()
    assert not (offline.cache / "train").exists()


def test_without_npm_the_error_says_what_is_missing(
    offline: SimpleNamespace, recipe: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    (offline.packages / offline.vendors[2].archive).unlink()
    monkeypatch.setattr(recipe.shutil, "which", lambda name: None)
    with pytest.raises(SystemExit, match=r"lobehub-fluent-emoji-3d-1\.1\.0\.tgz must be in --packages"):
        offline.run()


def test_npm_is_asked_for_the_known_version(
    offline: SimpleNamespace, recipe: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = offline.packages / offline.vendors[2].archive
    content = archive.read_bytes()
    archive.unlink()
    asked: list[str] = []

    def npm(*command: str) -> str:
        asked.append(command[2])
        Path(command[-1], archive.name).write_bytes(content)
        return archive.name

    monkeypatch.setattr(recipe.shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(recipe, "run", npm)
    offline.run()
    assert asked == ["@lobehub/fluent-emoji-3d@1.1.0"]
    assert "fluent/1f353.png" in rows_of(offline.cache)
