"""Trains a tiny autoencoder with TensorBoard as its tracker and takes a picture of TensorBoard's page, for the docs.

    python examples/tensorboard_screenshot.py -o docs/images/tensorboard.png [--steps 300] [--browser /usr/bin/chromium]

Needs the `train` extra (TensorBoard) and playwright, which the `test` extra brings. Nothing is fetched from elsewhere.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from playwright.sync_api import Page, ViewportSize, sync_playwright

from ul_tokenizer.training import Stage1Arguments, train_autoencoder

PHOTOS = Path(__file__).resolve().parent / "images"
SIZE: ViewportSize = {"width": 1280, "height": 860}


def train(folder: Path, steps: int) -> None:
    """A training of some minutes at most, with logs in `folder/logs`."""
    train_autoencoder(
        Stage1Arguments(
            preset="ul-tiny-f8",
            train_data_dir=str(PHOTOS),
            validation_fraction=0.34,
            num_validation_images=8,
            output_dir=str(folder),
            resolution=32,
            train_batch_size=8,
            max_train_steps=steps,
            validation_steps=max(steps // 6, 1),
            checkpointing_steps=steps,
            logging_steps=max(steps // 60, 1),
            prior_min_hold_steps=steps // 4,
            prior_ramp_steps=steps // 4,
            report_to="tensorboard",
        )
    )


@contextlib.contextmanager
def served(logs: Path) -> Iterator[str]:
    """TensorBoard on the loopback interface; yields its address."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logs), "--host", "127.0.0.1", "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            yield next(found[0] for line in server.stderr if (found := re.search(r"http://\S+", line)))
        finally:
            server.terminate()


def photograph(page: Page, address: str, output: Path) -> None:
    """Takes the picture when the curves are drawn."""
    page.goto(f"{address}?tagFilter=validation&smoothing=0#timeseries")
    page.wait_for_selector("line-chart", timeout=60_000)
    page.wait_for_timeout(4000)  # its charts grow with an animation
    output.parent.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=str(output))


def main() -> None:
    """Trains, serves, takes the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/images/tensorboard.png"))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--browser", help="path of a chromium; without it, the one that playwright installed")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        train(Path(folder), args.steps)
        with served(Path(folder) / "logs") as address, sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=args.browser, args=["--no-sandbox"])
            photograph(browser.new_page(viewport=SIZE), address, args.output)
            browser.close()


if __name__ == "__main__":
    main()
