"""The page in a real browser: each tab used as a person would, wrong files, two visitors, and one who leaves."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import Locator, Page, expect
from torch.nn.modules.module import register_module_forward_hook

from tests.demo.conftest import PHOTO
from tests.demo.test_uploads import BAD_CLIPS, BAD_PICTURES, write_clip
from tests.demo.test_work import wait_for
from ul_tokenizer.demo import work
from ul_tokenizer.models.transformer import UnifiedLatentsTransformer

OpenTab = Callable[[str], Page]
PATIENCE = 90_000.0  # milliseconds
pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "small.png"
    Image.open(PHOTO).crop((150, 60, 278, 156)).save(path)
    return path


def shown(page: Page, selector: str) -> Locator:
    """What is on the tab that is open."""
    return page.locator(selector).filter(visible=True)


def choose(page: Page, label: str, option: str) -> None:
    page.get_by_label(label, exact=True).filter(visible=True).click()
    page.get_by_role("option", name=option, exact=True).click()


def upload(page: Page, path: Path, number: int = 0) -> None:
    page.get_by_role("tabpanel").filter(visible=True).locator("input[type=file]").nth(number).set_input_files(path)


def wait_until_done(page: Page) -> None:
    expect(shown(page, ".ul-status")).to_contain_text("Done in", timeout=PATIENCE)


def expect_problem(page: Page, text: str) -> None:
    expect(shown(page, ".ul-problem")).to_contain_text(text, timeout=PATIENCE)


def is_loaded(picture: Locator) -> bool:
    return bool(picture.evaluate("image => image.complete && image.naturalWidth > 0"))


# ---------------------------------------------------------------- reconstruct


def test_a_dropped_picture_is_reconstructed_with_its_figures(open_page: OpenTab, photo: Path) -> None:
    page = open_page("Reconstruct")
    choose(page, "Model", "ul-photo-f8")
    upload(page, photo)
    wait_until_done(page)
    figures = shown(page, ".ul-figures").inner_text()
    assert re.search(r"\d\d\.\d\d dB\s+PSNR", figures) and "bits per pixel (at most)" in figures
    expect(page.get_by_text(re.compile(r"JPEG, quality \d+: \d\d\.\d\d dB, \d\.\d{3} bits per pixel"))).to_be_visible()
    expect(page.get_by_text(re.compile(r"WebP, quality \d+: \d\d\.\d\d dB"))).to_be_visible()
    pictures = shown(page, ".ul-result img")
    expect(pictures).to_have_count(4)
    wait_for(lambda: all(is_loaded(pictures.nth(number)) for number in range(4)))
    sides = shown(page, ".slider-wrap img")
    wait_for(lambda: {side.evaluate("image => image.naturalWidth") for side in sides.all()} == {128})
    page.get_by_label("4", exact=True).filter(visible=True).first.check()
    page.get_by_role("button", name="Reconstruct", exact=True).filter(visible=True).click()
    wait_for(lambda: shown(page, ".ul-figures").inner_text() != figures)
    wait_until_done(page)


def test_a_distilled_model_offers_the_decoder_before_distillation(open_page: OpenTab, photo: Path) -> None:
    page = open_page("Reconstruct")
    expect(page.get_by_text("before distillation")).to_be_visible()  # the first model is a distilled one
    page.get_by_label("before distillation").check()
    upload(page, photo)
    wait_until_done(page)
    choose(page, "Model", "ul-photo-f8")
    expect(page.get_by_text("before distillation")).to_be_hidden()


def test_a_sample_is_one_click_away(open_page: OpenTab) -> None:
    page = open_page("Reconstruct")
    page.get_by_label("256", exact=True).filter(visible=True).check()
    shown(page, ".gallery-item").first.click()
    wait_until_done(page)
    assert "scaled down to 256×192" in shown(page, ".ul-status").inner_text()


@pytest.mark.parametrize("name", sorted(BAD_PICTURES))
def test_a_bad_picture_is_answered_with_a_sentence(open_page: OpenTab, name: str, tmp_path: Path) -> None:
    BAD_PICTURES[name][0](tmp_path / name)
    page = open_page("Reconstruct")
    upload(page, tmp_path / name)
    expect_problem(page, f"“{name}” can't be read: ")


def test_a_picture_of_40_megapixels_works(open_page: OpenTab, tmp_path: Path) -> None:
    Image.open(PHOTO).resize((8000, 5000)).save(tmp_path / "large.jpg", quality=60)
    page = open_page("Reconstruct")
    page.get_by_label("256", exact=True).filter(visible=True).check()
    upload(page, tmp_path / "large.jpg")
    wait_until_done(page)
    expect(shown(page, ".ul-status")).to_contain_text(
        "“large.jpg” has 8000×5000 pixels and was scaled down to 256×160."
    )


def test_a_file_above_the_limit_is_answered_in_the_page(open_page: OpenTab, tmp_path: Path) -> None:
    with open(tmp_path / "huge.png", "wb") as file:
        file.truncate(101 * 1024**2)
    page = open_page("Reconstruct")
    upload(page, tmp_path / "huge.png")
    expect(page.get_by_text(re.compile(r"exceed the maximum allowed size of")).first).to_be_visible(timeout=PATIENCE)


def test_nothing_to_work_on_is_answered_with_what_to_do(open_page: OpenTab) -> None:
    page = open_page("Reconstruct")
    page.get_by_role("button", name="Reconstruct", exact=True).filter(visible=True).click()
    expect_problem(page, "Please drop a picture first.")


# ---------------------------------------------------------------- interpolate and edit


def test_two_pictures_are_mixed_and_edited(open_page: OpenTab, photo: Path) -> None:
    page = open_page("Interpolate and edit")
    choose(page, "Model", "ul-photo-f8")
    page.get_by_label("128", exact=True).filter(visible=True).check()
    page.get_by_role("button", name="Mix and decode").click()
    wait_until_done(page)
    expect(shown(page, ".ul-status")).to_contain_text("log-SNR of 5.0")
    expect(shown(page, ".ul-result img")).to_have_count(2)
    before = shown(page, ".ul-result img").first.get_attribute("src")
    slider = shown(page, "input[type=range]").nth(1)
    box = slider.bounding_box()
    assert box is not None
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)  # a slider answers when it is released
    expect(shown(page, ".ul-status")).to_contain_text("log-SNR of 1.0", timeout=PATIENCE)
    wait_until_done(page)
    assert shown(page, ".ul-result img").first.get_attribute("src") != before


# ---------------------------------------------------------------- generate


def test_a_class_is_generated_as_a_grid(open_page: OpenTab) -> None:
    page = open_page("Generate")
    choose(page, "Model", "ul-fashion")
    choose(page, "Class", "7-sneaker")
    page.get_by_label("number input for Images").fill("4")
    page.get_by_label("number input for Steps of the base model").fill("4")
    page.get_by_role("button", name="Generate", exact=True).click()
    wait_until_done(page)
    wait_for(lambda: is_loaded(shown(page, ".ul-result img").first))
    assert shown(page, ".ul-result img").first.evaluate("image => image.naturalWidth") == 2 * 384 + 2


def test_a_prompt_is_taken_and_a_long_one_answered_with_a_sentence(open_page: OpenTab) -> None:
    page = open_page("Generate")  # the first model takes prompts
    page.get_by_label("number input for Images").fill("1")
    page.get_by_label("Prompt").fill("a red car")
    page.get_by_role("button", name="Generate", exact=True).click()
    wait_until_done(page)
    page.get_by_label("Prompt").fill("a" * 10_000)
    page.get_by_role("button", name="Generate", exact=True).click()
    expect_problem(page, "A prompt can have at most 2,000 characters; this one has 10,000.")


@pytest.fixture
def calls() -> Any:
    """One entry for each call of a base model, anywhere in this process."""
    found: list[int] = []

    def count(module: Any, *_: Any) -> None:
        if isinstance(module, UnifiedLatentsTransformer):
            found.append(1)

    handle = register_module_forward_hook(count)
    yield found
    handle.remove()


def start_long_sampling(page: Page) -> None:
    choose(page, "Model", "ul-fashion")
    page.get_by_label("number input for Images").fill("36")
    page.get_by_label("number input for Steps of the base model").fill("100")
    page.get_by_role("button", name="Generate", exact=True).click()
    expect(shown(page, ".ul-bar")).to_be_visible(timeout=PATIENCE)


def test_a_closed_tab_in_the_middle_of_sampling_stops_the_work(open_page: OpenTab, calls: list[int]) -> None:
    page = open_page("Generate")
    start_long_sampling(page)
    page.context.close()
    wait_for(lambda: not work._COMPUTING.locked())
    assert 0 < len(calls) < 600


def test_the_stop_button_stops_the_work(open_page: OpenTab, calls: list[int]) -> None:
    page = open_page("Generate")
    start_long_sampling(page)
    page.get_by_role("button", name="Stop").filter(visible=True).click()
    wait_for(lambda: not work._COMPUTING.locked())
    assert 0 < len(calls) < 600
    expect(shown(page, ".ul-status")).to_contain_text("Stopped.", timeout=PATIENCE)


def test_two_visitors_at_once_both_get_their_results(open_page: OpenTab, photo: Path) -> None:
    pages = [open_page("Reconstruct"), open_page("Reconstruct")]
    for page in pages:
        upload(page, photo)
    for page in pages:
        wait_until_done(page)
        expect(shown(page, ".ul-figures")).to_contain_text("PSNR")


# ---------------------------------------------------------------- video


def test_a_dropped_clip_is_shown_beside_its_reconstruction(open_page: OpenTab, tmp_path: Path) -> None:
    page = open_page("Video")
    upload(page, write_clip(tmp_path / "clip.mp4", frames=6))
    wait_until_done(page)
    figures = shown(page, ".ul-figures").inner_text()
    assert "flicker (original: " in figures and "bits per frame" in figures
    player = shown(page, "video").first
    wait_for(lambda: player.evaluate("video => video.readyState") >= 2)
    assert player.evaluate("video => video.videoWidth") == 2 * 6 * 64 + 4


def test_the_sample_clip_is_a_pan_over_a_photo(open_page: OpenTab) -> None:
    page = open_page("Video")
    page.get_by_label("number input for Frames").fill("5")
    page.get_by_role("button", name="Use a pan over a photo").click()
    wait_until_done(page)
    assert re.search(r"\b5\s+frames", shown(page, ".ul-figures").inner_text())


@pytest.mark.parametrize("name", sorted(BAD_CLIPS))
def test_a_bad_clip_is_answered_with_a_sentence(open_page: OpenTab, name: str, tmp_path: Path) -> None:
    BAD_CLIPS[name][0](tmp_path / name)
    page = open_page("Video")
    upload(page, tmp_path / name)
    expect_problem(page, f"“{name}” can't be read: ")
