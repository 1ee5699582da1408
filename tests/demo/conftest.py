"""Tiny models with fresh weights, the demo in this process, and a headless chromium."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from playwright.sync_api import Browser, Page, Request, sync_playwright
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

from ul_tokenizer.demo.models import Models
from ul_tokenizer.demo.serve import running
from ul_tokenizer.models.presets import build_autoencoder, build_base
from ul_tokenizer.pipelines.generation import UnifiedLatentsPipeline
from ul_tokenizer.schedulers.log_snr import LogSNRScheduler

ROOT = Path(__file__).resolve().parents[2]
PHOTO = ROOT / "examples" / "images" / "moose.jpg"
CHROMIUM = shutil.which("chromium")


@pytest.fixture(scope="session")
def models() -> Models:
    return Models(torch.device("cpu"))


def disturbed(model: Any) -> Any:
    """The same network, whose last layers answer, which start at zero."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture(scope="session")
def distilled(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a tiny autoencoder and another one as its teacher; neither is trained."""
    folder = tmp_path_factory.mktemp("distilled")
    for seed, place in ((0, folder), (1, folder / "teacher")):
        torch.manual_seed(seed)
        disturbed(build_autoencoder("ul-tiny-f8")).save_pretrained(place)
    return str(folder)


@pytest.fixture(scope="session")
def prompted(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a tiny pipeline that takes prompts; nothing in it is trained."""
    torch.manual_seed(0)
    base = disturbed(build_base("ul-base-tiny", {"sample_size": 2, "cross_attention_dim": 16}))
    words = Tokenizer(WordLevel({"[PAD]": 0, "a": 1, "red": 2, "car": 3}, unk_token="[PAD]"))
    words.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", model_max_length=8)
    sizes: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    config = CLIPTextConfig(vocab_size=4, num_attention_heads=2, max_position_embeddings=8, pad_token_id=0, **sizes)
    scheduler = LogSNRScheduler(base.config.latent_logsnr)
    vae = disturbed(build_autoencoder("ul-tiny-f8"))
    pipeline = UnifiedLatentsPipeline(base, scheduler, vae, CLIPTextModel(config).eval(), tokenizer)
    folder = tmp_path_factory.mktemp("prompted")
    pipeline.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def address(prompted: str, distilled: str) -> Iterator[str]:
    """The demo with the bundled models and two tiny ones, which are the first choices."""
    with running([prompted, distilled]) as found:
        yield found


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("needs chromium, which is not on the path")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Browser, address: str) -> Iterator[Callable[[str], Page]]:
    """A function that opens the demo in a window of its own, at a tab.

    Errors in the page's scripts, and requests to anywhere but the demo, fail the test.
    """
    opened: list[Page] = []
    errors: list[str] = []

    def watch(request: Request) -> None:
        if not request.url.startswith((address, "data:", "blob:")):
            errors.append(f"request of {request.url}")

    def open_tab(tab: str) -> Page:
        page = browser.new_page(viewport={"width": 1240, "height": 1200})
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", watch)
        page.on("request", watch)
        page.goto(address)
        page.get_by_role("tab", name=tab, exact=True).click()
        opened.append(page)
        return page

    yield open_tab
    for page in opened:
        if not page.is_closed():
            page.context.close()
    assert errors == []
