"""The commands `push`, `pull` and `hub list`: models to the hub and from it."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from ul_tokenizer.hub.upload import Target

app = typer.Typer(name="hub", help="Models on this machine and on the hub.", no_args_is_help=True)

Repo = Annotated[str, typer.Argument(metavar="REPO", help="Repository of the hub: owner/name, or a name of yours.")]
Revision = Annotated[str | None, typer.Option(help="Branch, made if need be.", show_default="main")]
Private = Annotated[
    bool | None, typer.Option("--private/--public", help="For a new repository.", show_default="your default")
]
CreatePr = Annotated[bool, typer.Option("--create-pr", help="Make a pull request of it.")]
Message = Annotated[str | None, typer.Option("--message", "-m", help="Of the commit.")]
Licence = Annotated[str | None, typer.Option("--license", help="For the card: the hub's identifier, e.g. apache-2.0.")]


def push(
    source: Annotated[str, typer.Argument(metavar="SRC", help="A model's folder, or a bundled name.")],
    repo: Repo,
    revision: Revision = None,
    subfolder: Annotated[str | None, typer.Option(help="In the repository; no card is pushed then.")] = None,
    private: Private = None,
    create_pr: CreatePr = False,
    message: Message = None,
    license: Licence = None,
) -> None:
    """Push a model to the hub: weights, configs and a card in one commit.

    The folder of a training can be pushed as it is; checkpoints, samples and logs stay. Log in with `hf auth login`, or
    set HF_TOKEN.
    """
    from ul_tokenizer.hub.upload import Target
    from ul_tokenizer.models.loading import local_folder
    from ul_tokenizer.publish.mixin import push_folder

    folder = local_folder(source)
    if folder is None:
        raise ValueError(f"SRC must be a folder that exists or a bundled name, got {source}.")
    target = Target(repo, "model", revision, subfolder, private, create_pr, message)
    tell(target, push_folder(folder, target, license))


def tell(target: Target, commit: str) -> None:
    """Prints the commit, and for people where it went."""
    where = f"{target.repo_id}, revision {target.revision}" if target.revision else target.repo_id
    typer.echo(commit)
    typer.echo(f"pushed to {where} as commit {commit}", err=True)


def pull(
    repo: Annotated[str, typer.Argument(metavar="REPO", help="Repository of the hub: owner/name.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="A new folder.")],
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit.", show_default="main")] = None,
) -> None:
    """Fetch a model into a folder, all of one commit and compared with the repository's hashes.

    Safetensors, configs and cards come; pickled weights and code stay where they are.
    """
    from ul_tokenizer.hub.download import fetch
    from ul_tokenizer.models.loading import check_hub_id
    from ul_tokenizer.publish.repository_files import belongs_in_repository

    check_hub_id(repo)
    if output.exists():
        raise ValueError(f"--output must be a new folder, got {output}, which exists.")
    snapshot = fetch(
        repo, lambda files: [f for f in files if belongs_in_repository(f) and not f.endswith(".py")], revision
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    code = shutil.ignore_patterns("*.py", "*.bin")  # that something else may have brought into the cache
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}-") as temporary:
        shutil.copytree(snapshot.folder, Path(temporary, "model"), ignore=code)
        Path(temporary, "model").rename(output)
    typer.echo(snapshot.commit)
    typer.echo(f"pulled {repo} at commit {snapshot.commit}: {output}", err=True)


@app.command("list")
def list_models(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List the models that load without a network: bundled ones, and ours in the hub's cache."""
    from ul_tokenizer.publish import listing

    models = listing.list_models()
    if as_json:
        rows = [{**model._asdict(), "folder": str(model.folder)} for model in models]
        typer.echo(json.dumps(rows, indent=2))
        return
    table = Table("name", "class", "from", "MB", "revision", "license")
    for model in models:
        size, commit = f"{model.bytes / 1e6:.1f}", (model.revision or "-")[:12]
        table.add_row(model.name, model.kind, model.origin, size, commit, model.license or "-")
    Console(file=sys.stdout, soft_wrap=True).print(table)
