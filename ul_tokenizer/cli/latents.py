"""The commands `latents …`: what a latent data set holds, whether it is whole, and what else can be done with it."""

from __future__ import annotations

import enum
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from ul_tokenizer.cli import hub

app = typer.Typer(
    name="latents",
    help="Look into latent data sets, check, merge and export them.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)
Folder = Annotated[str, typer.Argument(metavar="DATA", help="A latent data set: a folder, or a hub id.")]
Local = Annotated[
    Path, typer.Argument(metavar="DATA", exists=True, file_okay=False, help="A latent data set's folder.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def info(data: Folder, as_json: AsJson = False) -> None:
    """Describe a data set: samples, shapes, columns, classes, and the header."""
    from ul_tokenizer.latents.dataset import LatentDataset

    dataset = LatentDataset(data)
    size = sum(shard.bytes for shard in dataset.shards)
    facts: dict[str, Any] = {
        "samples": len(dataset),
        "shards": len(dataset.shards),
        "bytes": size,
        "shapes": {"×".join(map(str, shape)): count for shape, count in dataset.shapes.items()},
        "columns": list(dataset.column_names),
        "rounding_rms": max(shard.rounding.get("rms", 0.0) for shard in dataset.shards),
        **dataset.header,
    }
    if as_json:
        typer.echo(json.dumps(facts, indent=2, ensure_ascii=False))
        return
    for key, value in facts.items():
        shown = ", ".join(map(str, value)) if isinstance(value, list) else value
        typer.echo(f"{key.replace('_', ' '):28}{shown}")


def verify(
    data: Local,
    repair: Annotated[
        bool, typer.Option("--repair", help="Take out what is wrong; the job that made the data makes it again.")
    ] = False,
) -> None:
    """Read every byte and compare it with the manifest. Exit status: 0 if the data set is whole, 1 otherwise."""
    from ul_tokenizer.latents import integrity as latent_checks

    problems = latent_checks.repair(data) if repair else latent_checks.verify(data)
    for problem in problems:
        typer.echo(f"{problem.file}: {problem.reason}")
    if problems and not repair:
        raise ValueError(f"{data} is not whole, {len(problems)} problems; --repair takes them out.")
    typer.echo(f"{data}: {'repaired' if problems else 'whole'}", err=True)


def stats(
    data: Folder,
    model: Annotated[
        str | None, typer.Option(help="The autoencoder, for bits per image by its prior.", show_default="no bits")
    ] = None,
    num: Annotated[int, typer.Option(min=1, help="Samples for the bits.")] = 256,
    write_config: Annotated[
        Path | None,
        typer.Option(
            "--write-config", exists=True, file_okay=False, help="Write mean and std into this autoencoder's config."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Exact mean, standard deviation and extremes per channel, and on request bits per image."""
    from ul_tokenizer.latents.dataset import LatentDataset

    dataset = LatentDataset(data)
    statistics = dataset.statistics
    facts: dict[str, Any] = {"samples": len(dataset), **statistics.to_json(), "std": statistics.std.tolist()}
    if model is not None:
        facts["bits_per_image"] = mean_bits(dataset, model, num)
    if write_config is not None:
        _write_statistics(write_config, statistics.to_config())
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    table = Table("channel", "mean", "std", "min", "max")
    rows = zip(statistics.mean, statistics.std, statistics.minimum, statistics.maximum, strict=True)
    for channel, row in enumerate(rows):
        table.add_row(str(channel), *(f"{float(value):.4f}" for value in row))
    Console(soft_wrap=True).print(table)
    if "bits_per_image" in facts:
        typer.echo(f"bits per image, by the prior, {min(num, len(dataset))} samples: {facts['bits_per_image']:.1f}")


def mean_bits(dataset: Any, model: str, num: int) -> float:
    """Mean of the prior's bound over the first samples, of whatever shapes."""
    import torch

    from ul_tokenizer.diffusion.schedule import LogSNRSchedule
    from ul_tokenizer.models.rate import latent_bits
    from ul_tokenizer.models.repository import load_prior

    prior = load_prior(model).eval()
    schedule = LogSNRSchedule(prior.config.latent_logsnr, -10.0, "linear")
    generator = torch.Generator().manual_seed(0)
    bits = [
        float(latent_bits(dataset[i]["latent"][None], prior, schedule, 16, generator))
        for i in range(min(num, len(dataset)))
    ]
    return sum(bits) / len(bits)


def _write_statistics(folder: Path, values: dict[str, Any]) -> None:
    from ul_tokenizer.files import write_json

    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"--write-config must be an autoencoder's folder, got {folder} without a config.json.")
    config = json.loads(path.read_text(encoding="utf-8"))
    write_json(path, {**config, **values}, sort_keys=True)


def merge(
    sources: Annotated[list[Path], typer.Argument(metavar="DATA…", exists=True, file_okay=False, help="Data sets.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="A new folder.")],
) -> None:
    """Make one data set of several that one autoencoder made in one way."""
    from ul_tokenizer.latents import integrity as latent_checks

    count = latent_checks.merge(sources, output)
    typer.echo(f"merged {count} samples: {output}", err=True)


# ---------------------------------------------------------------- to other formats, and to pictures


class Form(str, enum.Enum):
    """What `export` writes."""

    webdataset = "webdataset"
    parquet = "parquet"
    npy = "npy"


def export(
    data: Folder,
    output: Annotated[Path, typer.Option("--output", "-o", help="A new folder.")],
    form: Annotated[Form, typer.Option("--format", help="webdataset and parquet need the extra 'data'.")],
    normalize: Annotated[
        bool, typer.Option("--normalize", help="Write (z − mean) / std by the data set's own statistics.")
    ] = False,
) -> None:
    """Write latents and columns in a format that other libraries read."""
    from ul_tokenizer.latents import export as latent_export
    from ul_tokenizer.latents.dataset import LatentDataset

    dataset = LatentDataset(data, normalize=normalize)
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("exporting", total=len(dataset))
        count = latent_export.export(dataset, output, form.value, lambda done: bar.update(task, advance=done))
    typer.echo(f"exported {count} samples as {form.value}: {output}", err=True)


def decode(
    data: Folder,
    output: Annotated[Path, typer.Option("--output", "-o", help="The sheet, a .png file.")],
    model: Annotated[
        str | None, typer.Option(help="The autoencoder: bundled name, folder or hub id.", show_default="the header's")
    ] = None,
    num: Annotated[int, typer.Option("--num", "-n", min=1, help="Samples, drawn at random.")] = 16,
    steps: Annotated[int | None, typer.Option(min=1, help="Decoding steps.", show_default="the model's")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the draw and of all noise.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the sheet.")] = False,
) -> None:
    """Decode some samples into a contact sheet, to see with one's own eyes what was encoded.

    The model must be the one that made the latents, weight for weight.
    """
    from ul_tokenizer.cli import contact_sheet
    from ul_tokenizer.files import whole_file
    from ul_tokenizer.latents.dataset import LatentDataset

    if output.suffix != ".png":
        raise ValueError(f"--output must be a .png file, got {output}.")
    if output.exists() and not force:
        raise ValueError(f"{output} exists already; --force overwrites.")
    dataset = LatentDataset(data)
    autoencoder = contact_sheet.load_maker(dataset, model)
    indices = contact_sheet.choose(len(dataset), num, seed)
    sheet = contact_sheet.arrange(contact_sheet.decode(dataset, indices, autoencoder, steps, seed))
    with whole_file(output) as temporary:
        sheet.save(temporary, format="PNG")
    for index in indices:
        typer.echo(dataset.id(index))
    typer.echo(f"decoded {len(indices)} of {len(dataset)} samples: {output}", err=True)


# ---------------------------------------------------------------- the hub


def push(
    data: Local,
    repo: hub.Repo,
    revision: hub.Revision = None,
    private: hub.Private = None,
    create_pr: hub.CreatePr = False,
    message: hub.Message = None,
    license: hub.Licence = None,
) -> None:
    """Push a data set to the hub: shards, manifests and a card in one commit, after all was verified."""
    from ul_tokenizer.hub.upload import Target
    from ul_tokenizer.latents.hub import push_latents

    target = Target(repo, "dataset", revision, None, private, create_pr, message)
    hub.tell(target, push_latents(data, target, license))


def pull(
    repo: Annotated[str, typer.Argument(metavar="REPO", help="Data set repository of the hub: owner/name.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="A new folder.")],
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit.", show_default="main")] = None,
) -> None:
    """Fetch a data set into a folder, whole and verified. Training reads one from the hub without it."""
    from ul_tokenizer.latents.hub import pull_latents

    snapshot = pull_latents(repo, output, revision)
    typer.echo(snapshot.commit)
    typer.echo(f"pulled {repo} at commit {snapshot.commit}: {output}", err=True)
