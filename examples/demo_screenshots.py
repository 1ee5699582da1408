"""Takes the pictures of the web demo that the documents show: each tab, used on the pictures of a clone.

    python examples/demo_screenshots.py            # writes docs/images/demo-*.png, light and dark

Needs the extras "demo" and "test" and a chromium, which playwright drives.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

ROOT = Path(__file__).resolve().parent.parent
WIDTH, HEIGHT = 1240, 900  # of the window; pictures are as high as their tab
MINUTES = 5.0
MAX_BYTES = 290_000  # of a picture
PHOTO = ROOT / "examples" / "images" / "moose.jpg"
SAFE_OPTIONS = ("--no-sandbox", "--hide-scrollbars")


@contextmanager
def served() -> Iterator[str]:
    """Starts the demo on a free port and yields its address."""
    command = [sys.executable, "-u", "-m", "ul_tokenizer", "demo"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment)
    try:
        assert server.stdout is not None
        line = server.stdout.readline()
        if not line.startswith("The demo is at "):
            raise SystemExit("the demo did not start; see above.")
        yield line.rpartition(" ")[2].strip()
    finally:
        server.terminate()
        server.wait()


def wait_until_done(page: Page) -> None:
    """Waits until the open tab says that it is done."""
    page.locator(".ul-status:visible", has_text="Done in").wait_for(timeout=60_000 * MINUTES)
    page.wait_for_load_state("networkidle")
    page.wait_for_timeout(800)  # pictures fade in


def reconstruct(page: Page) -> None:
    """A photograph beside its reconstruction."""
    page.locator("input[type=file]:visible, .image-container input[type=file]").first.set_input_files(PHOTO)
    wait_until_done(page)


def interpolate(page: Page) -> None:
    """A mix of the two photographs with which the tab starts."""
    page.get_by_role("button", name="Mix and decode").click()
    wait_until_done(page)


def generate(page: Page) -> None:
    """A grid of one class."""
    page.get_by_label("Class").click()
    page.get_by_role("option", name="sneaker").click()
    page.get_by_role("button", name="Generate", exact=True).click()
    wait_until_done(page)


def video(page: Page) -> None:
    """A pan over a photograph."""
    page.get_by_role("button", name="Use a pan over a photo").click()
    wait_until_done(page)


TABS: dict[str, tuple[str, Callable[[Page], None]]] = {
    "reconstruct": ("Reconstruct", reconstruct),
    "interpolate": ("Interpolate and edit", interpolate),
    "generate": ("Generate", generate),
    "video": ("Video", video),
}


def take(browser: Browser, address: str, name: str, scheme: str, folder: Path) -> Path:
    """Uses a tab and saves its picture, with 256 colours and as large as `MAX_BYTES` allows."""
    title, use = TABS[name]
    page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme=scheme)  # type: ignore[arg-type]
    page.goto(address)
    page.get_by_role("tab", name=title, exact=True).click()
    use(page)
    picture = Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("RGB")
    page.close()
    path = folder / f"demo-{name}{'-dark' if scheme == 'dark' else ''}.png"
    for width in (WIDTH, 1100, 1000, 900, 800):
        size = width, round(picture.height * width / picture.width)
        picture.resize(size, Image.Resampling.LANCZOS).quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
        if path.stat().st_size < MAX_BYTES:
            break
    return path


def main() -> None:
    """Takes the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "docs" / "images", help="folder of the pictures")
    parser.add_argument(
        "--chromium", default=shutil.which("chromium"), help="the browser; by default the one on the path"
    )
    parser.add_argument("--tab", choices=TABS, action="append", help="only this tab; may be repeated")
    parser.add_argument("--scheme", choices=("light", "dark"), action="append", help="only this scheme")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    with served() as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=arguments.chromium, args=list(SAFE_OPTIONS))
        for name in arguments.tab or TABS:
            for scheme in arguments.scheme or ("light", "dark"):
                path = take(browser, address, name, scheme, arguments.output)
                print(f"{path}: {path.stat().st_size / 1000:.0f} kB")
        browser.close()


if __name__ == "__main__":
    main()
