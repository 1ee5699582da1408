"""The command `demo`. Only running it imports torch and gradio."""

from __future__ import annotations

from typing import Annotated

import typer

from ul_tokenizer.cli.options import Device

LOOPBACK = "127.0.0.1"  # as in `ul_tokenizer.demo.serve`

Models = Annotated[
    list[str] | None,
    typer.Option(
        "--model",
        metavar="NAME",
        help="A model to offer first: a bundled name, a folder or a hub id, tried in this order. Repeat the option "
        "for several.",
        show_default="the bundled models",
    ),
]
Host = Annotated[
    str, typer.Option(metavar="ADDRESS", help="Address to listen on; 0.0.0.0 lets other machines use the demo.")
]
Port = Annotated[
    int | None,
    typer.Option(min=1, max=65535, metavar="N", help="Port to listen on.", show_default="the first free one from 7860"),
]
Share = Annotated[
    bool,
    typer.Option("--share", help="Make a public address through Gradio's servers, which then send a part of the page."),
]


def demo(
    models: Models = None,
    host: Host = LOOPBACK,
    port: Port = None,
    share: Share = False,
    device: Device = None,
) -> None:
    """Serve a page in the browser to try the models: reconstruct, interpolate, generate and video.

    Only this machine can open it, unless you give --host or --share. The browser fetches nothing from elsewhere, and
    uploaded files are deleted at the end. Needs the extra "demo": pip install 'ul_tokenizer[demo]'.
    """
    from ul_tokenizer.demo.serve import serve

    serve(models or [], host=host, port=port, share=share, device=device)
