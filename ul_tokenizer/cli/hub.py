"""The commands `push`, `pull` and `hub list`: models to the hub and from it. Only running one imports torch."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from ul_tokenizer.cli import options
from ul_tokenizer.cli.help import Group, example
from ul_tokenizer.cli.reporting import print_results, print_table, require

if TYPE_CHECKING:
    from ul_tokenizer.hub.upload import Target

app = typer.Typer(
    name="hub", cls=Group, help="List the models on this machine.", epilog=example("hub list"), no_args_is_help=True
)

Repo = Annotated[
    str, typer.Argument(metavar="REPO", help="Hub repository: owner/name, or just the name for one of yours.")
]
Revision = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Branch to push to. It is created if needed.", show_default="main"),
]
Private = Annotated[
    bool | None,
    typer.Option("--private/--public", help="Who can see a new repository.", show_default="the hub's setting"),
]
CreatePr = Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead of committing.")]
Message = Annotated[
    str | None,
    typer.Option("--message", "-m", metavar="TEXT", help="Message of the commit.", show_default="Upload REPO"),
]
Licence = Annotated[
    str | None,
    typer.Option("--license", metavar="NAME", help="License for a new card, as the hub names it, e.g. apache-2.0."),
]


def push(
    source: Annotated[str, typer.Argument(metavar="SRC", help="A model's folder, or a bundled name.")],
    repo: Repo,
    revision: Revision = None,
    subfolder: Annotated[
        str | None, typer.Option(metavar="NAME", help="Folder in the repository to push to, without a card.")
    ] = None,
    private: Private = None,
    create_pr: CreatePr = False,
    message: Message = None,
    license: Licence = None,
) -> None:
    """Push a model to the hub: weights, configs and a card in one commit.

    The folder of a training can be pushed as it is: checkpoints, samples and logs are left out. Log in with
    `hf auth login` before, or set HF_TOKEN.
    """
    require(license is None or subfolder is None, "--license can't be used with --subfolder, which pushes no card.")
    from ul_tokenizer.hub.upload import Target
    from ul_tokenizer.models.loading import local_folder
    from ul_tokenizer.publish.mixin import push_folder

    folder = local_folder(source)
    if folder is None:
        raise ValueError(f"SRC must be a folder that exists or a bundled name, got {source}.")
    target = Target(repo, "model", revision, subfolder, private, create_pr, message)
    tell(target, push_folder(folder, target, license))


def tell(target: Target, commit: str) -> None:
    """Prints the commit on standard output and a sentence for people on standard error."""
    where = f"{target.repo_id}, revision {target.revision}" if target.revision else target.repo_id
    typer.echo(commit)
    typer.echo(f"pushed to {where} as commit {commit}", err=True)


def pull(
    repo: Annotated[str, typer.Argument(metavar="REPO", help="Repository of the hub: owner/name.")],
    output: options.NewFolder,
    revision: options.Revision = None,
) -> None:
    """Download a model into a folder: the files of one commit, verified against the repository's hashes.

    Only safetensors files, configs and cards are downloaded, but no pickled weights and no code.
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
    code = shutil.ignore_patterns("*.py", "*.bin")  # other programs may have fetched them into the cache
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}-") as temporary:
        shutil.copytree(snapshot.folder, Path(temporary, "model"), ignore=code)
        Path(temporary, "model").rename(output)
    typer.echo(snapshot.commit)
    typer.echo(f"pulled {repo} at commit {snapshot.commit}: {output}", err=True)


def list_models(as_json: options.AsJson = False) -> None:
    """List the models that load without a network: bundled models, and those in the hub's cache."""
    from ul_tokenizer.publish import listing

    models = listing.list_models()
    if as_json:
        print_results([model._asdict() for model in models], totals={"bytes": sum(model.bytes for model in models)})
        return
    table = Table("name", "class", "from", "MB", "revision", "license")
    for model in models:
        size, commit = f"{model.bytes / 1e6:.1f}", (model.revision or "-")[:12]
        table.add_row(model.name, model.kind, model.origin, size, commit, model.license or "-")
    print_table(table)
