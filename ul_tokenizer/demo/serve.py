"""Serves the page: on the loopback interface unless told otherwise, from a folder that is deleted at the end."""

from __future__ import annotations

import ipaddress
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import FrameType

LOOPBACK = "127.0.0.1"
# The browser is allowed to fetch from this server only, whatever a library's page asks for.
CONTENT_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:"
)
SAMPLES = Path(__file__).resolve().parents[2] / "examples" / "images"  # in a clone


class MissingGradioError(ImportError):
    """The page is wanted, and Gradio isn't installed."""


def check_gradio() -> None:
    """Makes sure that the page can be made.

    Raises:
        MissingGradioError: Gradio isn't installed; one sentence says how to install it.
    """
    from importlib.util import find_spec

    if find_spec("gradio") is None:
        raise MissingGradioError("the demo needs gradio: pip install 'ul_tokenizer[demo]'.")


@contextmanager
def running(
    models: Sequence[str] = (),
    *,
    host: str = LOOPBACK,
    port: int | None = None,
    share: bool = False,
    device: str | None = None,
    samples: Path | None = None,
) -> Iterator[str]:
    """Serves the page while the context lasts.

    Args:
        models: models to offer before the bundled ones: bundled names, folders or hub ids.
        host: the address to listen on.
        port: the port; None takes the first free one from 7860 on.
        share: whether Gradio's servers make a public address that leads here.
        device: where to compute; None for a GPU if there is one, else the CPU.
        samples: a folder of pictures to start with; None for those of a clone.

    Yields:
        the page's address.

    Raises:
        MissingGradioError: as `check_gradio`.
        ValueError: a model that can't be offered, or a device that this machine doesn't have.
        OSError: the port is taken.
    """
    check_gradio()
    with _temporary_cache():
        from ul_tokenizer.demo import page
        from ul_tokenizer.demo.models import Models, offered_models
        from ul_tokenizer.demo.panel import Page
        from ul_tokenizer.media.images import find_images
        from ul_tokenizer.models.devices import pick_device

        folder = SAMPLES if samples is None else samples
        pictures = find_images(folder).images if folder.is_dir() else []
        blocks = page.build(Page(Models(pick_device(device)), offered_models(models), pictures))
        _, local_url, public_url = blocks.launch(**_launch_options(host, port, share, pictures))
        try:
            yield public_url or local_url
        finally:
            blocks.close(verbose=False)


def serve(models: Sequence[str] = (), *, host: str = LOOPBACK, share: bool = False, **options: Any) -> None:
    """Serves the page until Ctrl-C or SIGTERM; arguments and errors as `running`."""
    with running(models, host=host, share=share, **options) as address:
        print(f"The demo is at {address}", flush=True)
        if share or not is_loopback(host):
            print("Everyone who can reach this address can use it.", file=sys.stderr)
        print("Ctrl-C ends it.", file=sys.stderr, flush=True)
        _wait_for_a_signal()


def _launch_options(host: str, port: int | None, share: bool, samples: Sequence[Path]) -> dict[str, Any]:
    from starlette.middleware import Middleware

    from ul_tokenizer.demo import look, uploads

    return {
        "server_name": host,
        "server_port": port,
        "share": share,
        "theme": look.theme(),
        "css": look.CSS,
        "max_file_size": uploads.MAX_UPLOAD,
        "allowed_paths": sorted({str(path.parent) for path in samples}),
        # Of a shared page, Gradio's servers send a part.
        "app_kwargs": {"middleware": [] if share else [Middleware(_ContentPolicy)]},
        "footer_links": [],
        "run_history": False,  # which would keep pictures in the browser
        "enable_monitoring": False,
        "mcp_server": False,
        "ssr_mode": False,
        "prevent_thread_lock": True,
        "inbrowser": False,
        "quiet": True,
    }


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class _ContentPolicy:
    """Adds our content policy to every answer of the server."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def send_with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                header = (b"content-security-policy", CONTENT_POLICY.encode())
                message = {**message, "headers": [*message.get("headers", []), header]}
            await send(message)

        await self.app(scope, receive, send_with_policy)


@contextmanager
def _temporary_cache() -> Iterator[None]:
    """Lets Gradio, which reads these variables, keep files in a folder that is deleted, and send nothing anywhere."""
    with tempfile.TemporaryDirectory(prefix="ul-tokenizer-demo-", ignore_cleanup_errors=True) as folder:
        variables = {
            "GRADIO_TEMP_DIR": folder,
            "GRADIO_EXAMPLES_CACHE": str(Path(folder) / "examples"),
            "GRADIO_ANALYTICS_ENABLED": "False",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }
        before = {name: os.environ.get(name) for name in variables}
        os.environ.update(variables)
        try:
            yield
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})


def _wait_for_a_signal() -> None:
    """Returns at Ctrl-C or SIGTERM."""
    ended = threading.Event()

    def end(number: int, frame: FrameType | None) -> None:
        ended.set()

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        while not ended.wait(1.0):
            pass
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
