"""`benchmarks/draw_pictures.py`: latents as pictures, pages of cells, and what generators are asked for."""

from __future__ import annotations

from typing import Any

import draw_pictures
import numpy as np
import pytest
import torch
from draw_pictures import Cell, generated, latent_picture, page
from PIL import Image

from tests.evaluation.conftest import COLOURS, make_pipeline
from ul_tokenizer.evaluation.report.style import DARK, LIGHT
from ul_tokenizer.pipelines.generation import UnifiedLatentsPipeline
from ul_tokenizer.pretrained import ROOT as PRETRAINED

pytest.importorskip("matplotlib")


def test_the_direction_with_most_variance_is_red() -> None:
    latent = torch.zeros(4, 8, 8)
    latent[2] = 5 * torch.linspace(0, 1, 8).expand(8, 8)
    latent[0] = torch.linspace(0, 1, 8)[:, None].expand(8, 8)
    latent[1, 3, 3] = 0.1
    pixels = np.asarray(latent_picture(latent))
    row = pixels[0, :, 0].tolist()
    assert row == sorted(row) and (row[0], row[-1]) == (0, 255)
    column = pixels[:, 0, 1].tolist()
    assert column == sorted(column) and column[0] < 30 < 225 < column[-1]


def test_the_picture_of_a_latent_does_not_depend_on_its_scale() -> None:
    latent = torch.randn(6, 9, 5, generator=torch.Generator().manual_seed(0))
    assert latent_picture(latent).size == (5, 9)
    one, other = (np.asarray(latent_picture(z)).astype(int) for z in (latent, 3 * latent + 1))
    assert np.abs(one - other).max() <= 1


def test_a_page_shows_its_pictures_and_words_on_its_colour() -> None:
    cells = [Cell(Image.new("RGB", (60, 40), colour), "title", "words") for colour in ("red", "blue")]
    light, dark = page([cells], LIGHT), page([cells], DARK)
    assert light.size == dark.size == (2 * 60 + draw_pictures.GAP + 2 * draw_pictures.MARGIN, light.height)
    margin = draw_pictures.MARGIN
    for drawn, colour in ((light, (255, 255, 255)), (dark, (13, 17, 23))):
        assert drawn.getpixel((0, 0)) == colour
        assert drawn.getpixel((margin, margin)) == (255, 0, 0)
        assert drawn.getpixel((drawn.width - margin - 1, margin)) == (0, 0, 255)
        below = drawn.crop((0, margin + 40, drawn.width, drawn.height))
        assert len(set(below.getdata())) > 2  # letters
    assert page([cells, cells], LIGHT).height > 2 * light.height - 4 * margin


def trained(pipeline: UnifiedLatentsPipeline) -> UnifiedLatentsPipeline:
    """A pipeline that knows the size of its training images, as those from a training do."""
    pipeline.transformer.register_to_config(sample_size=4)
    return pipeline


def test_a_pipeline_with_classes_draws_each_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draw_pictures, "class_names", lambda name: tuple(f"{n}-{c}" for n, c in enumerate(COLOURS)))
    cells = generated("mine", trained(make_pipeline()))
    assert [cell.title for cell in cells] == list(COLOURS)
    assert {cell.picture.size for cell in cells} == {(draw_pictures.TILE, draw_pictures.TILE)}


def test_a_pipeline_without_classes_draws_as_many_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draw_pictures, "class_names", lambda name: ())
    cells = generated("mine", trained(make_pipeline(None)))
    assert [cell.title for cell in cells] == [""] * draw_pictures.TILES


def test_rates_of_two_protocols_are_not_drawn_together(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(draw_pictures, "by_protocol", lambda results: [Any, Any])
    assert draw_pictures.main(["--only", "rates"]) == 1
    assert capsys.readouterr().err.endswith("must hold results of one protocol, got 2.\n")


def test_only_cards_that_show_a_curve_get_one() -> None:
    paths = [path for path, _ in draw_pictures.draw_curves()]
    shown = [
        card.parent / "curve.png" for card in sorted(PRETRAINED.glob("*/README.md")) if "curve.png" in card.read_text()
    ]
    assert paths == shown and PRETRAINED / "ul-photo-f8" / "curve.png" in paths
