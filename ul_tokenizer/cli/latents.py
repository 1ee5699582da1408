"""The commands `latents …`: describe, check, convert and decode latent data sets.

Only the commands that compute import torch; `info`, `verify`, `merge`, `push` and `pull` don't.
"""

from __future__ import annotations

import enum
import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from ul_tokenizer.cli import hub
from ul_tokenizer.cli.help import Group, example
from ul_tokenizer.cli.options import AsJson, DecodingSteps, Force, NewFolder, Revision
from ul_tokenizer.cli.reporting import print_facts, print_results, print_table, require

app = typer.Typer(
    name="latents",
    cls=Group,
    help="Describe, check, merge, export and decode latent data sets.",
    epilog=example("latents info latents/"),
    no_args_is_help=True,
    rich_markup_mode="markdown",
)
BITS_SAMPLES = 256
Folder = Annotated[str, typer.Argument(metavar="DATA", help="A latent data set: a folder or a hub id.")]
Local = Annotated[
    Path, typer.Argument(metavar="DATA", exists=True, file_okay=False, help="Folder of a latent data set.")
]


def info(data: Folder, as_json: AsJson = False) -> None:
    """Describe a data set: samples, shapes, columns, classes and the fields of its header."""
    from ul_tokenizer.latents.index import LatentIndex
    from ul_tokenizer.latents.location import find_files
    from ul_tokenizer.latents.manifest import read_header

    folder = find_files(data).folder
    facts = LatentIndex(folder, read_header(folder)).facts()
    if as_json:
        totals = {name: facts[name] for name in ("samples", "shards", "bytes")}
        print_results([{"data": data, **facts}], totals=totals)
        return
    print_facts(facts, width=28)


def verify(
    data: Local,
    repair: Annotated[
        bool, typer.Option("--repair", help="Remove damaged shards. Run the encoding job again to replace them.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Read every byte and compare it with the manifests.

    The exit status is 1 if the data set is damaged or incomplete.
    """
    from ul_tokenizer.latents import integrity

    problems = integrity.repair(data) if repair else integrity.verify(data)
    if as_json:
        print_results([vars(problem) for problem in problems])
    else:
        for problem in problems:
            typer.echo(f"{problem.file}: {problem.reason}")
    if problems and not repair:
        raise ValueError(f"{data} is not whole: {len(problems)} problems; --repair removes damaged shards.")
    typer.echo(f"{data}: {'repaired' if problems else 'whole'}", err=True)


def stats(
    data: Folder,
    model: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Autoencoder whose prior gives the bits per image.", show_default="no bits"),
    ] = None,
    num: Annotated[
        int | None,
        typer.Option(
            "--num",
            "-n",
            min=1,
            metavar="N",
            help="Number of samples for the bits. Needs --model.",
            show_default=str(BITS_SAMPLES),
        ),
    ] = None,
    write_config: Annotated[
        Path | None,
        typer.Option(
            "--write-config",
            exists=True,
            file_okay=False,
            metavar="FOLDER",
            help="Write mean and std into the config of the autoencoder in this folder.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print the exact mean, standard deviation and extremes of each channel, and with --model bits per image."""
    require(num is None or model is not None, "--num needs --model, whose prior gives the bits.")
    from ul_tokenizer.latents.dataset import LatentDataset

    dataset = LatentDataset(data)
    statistics = dataset.statistics
    facts: dict[str, Any] = {"samples": len(dataset), **statistics.to_json(), "std": statistics.std.tolist()}
    if model is not None:
        facts["bits_per_image"] = mean_bits(dataset, model, num or BITS_SAMPLES)
    if write_config is not None:
        _write_statistics(write_config, statistics.to_config())
    if as_json:
        print_results([{"data": data, **facts}], totals={"samples": len(dataset)})
        return
    table = Table("channel", "mean", "std", "min", "max")
    rows = zip(statistics.mean, statistics.std, statistics.minimum, statistics.maximum, strict=True)
    for channel, row in enumerate(rows):
        table.add_row(str(channel), *(f"{float(value):.4f}" for value in row))
    print_table(table)
    if "bits_per_image" in facts:
        used = min(num or BITS_SAMPLES, len(dataset))
        typer.echo(f"bits per image by the prior, over {used} samples: {facts['bits_per_image']:.1f}")


def mean_bits(dataset: Any, model: str, num: int) -> float:
    """Mean of the prior's bound on the bits, over the first samples."""
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
        raise ValueError(f"--write-config must be the folder of an autoencoder, got {folder} without a config.json.")
    config = json.loads(path.read_text(encoding="utf-8"))
    write_json(path, {**config, **values}, sort_keys=True)


def merge(
    sources: Annotated[
        list[Path], typer.Argument(metavar="DATA…", exists=True, file_okay=False, help="Latent data sets.")
    ],
    output: NewFolder,
) -> None:
    """Merge data sets that the same autoencoder made with the same settings."""
    from ul_tokenizer.latents import integrity

    count = integrity.merge(sources, output)
    typer.echo(f"merged {count} samples: {output}", err=True)


# ---------------------------------------------------------------- to other formats, and to pictures


class Form(str, enum.Enum):
    """The formats that `export` writes."""

    webdataset = "webdataset"
    parquet = "parquet"
    npy = "npy"


def export(
    data: Folder,
    output: NewFolder,
    form: Annotated[
        Form,
        typer.Option(
            "--format", metavar="NAME", help="webdataset, parquet or npy. The first two need the extra 'data'."
        ),
    ],
    normalize: Annotated[
        bool, typer.Option("--normalize", help="Write (z − mean) / std, with the data set's own statistics.")
    ] = False,
) -> None:
    """Write latents and columns in a format that other libraries read."""
    from ul_tokenizer.latents import export as latent_export
    from ul_tokenizer.latents.dataset import LatentDataset
    from ul_tokenizer.progress import progress

    dataset = LatentDataset(data, normalize=normalize)
    with progress("exporting", len(dataset), "samples") as bar:
        count = latent_export.export(dataset, output, form.value, bar.update)
    typer.echo(f"exported {count} samples as {form.value}: {output}", err=True)


def decode(
    data: Folder,
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="A .png file, or an .mp4 file for clips. In a .png file, a clip is shown as three of its frames.",
        ),
    ],
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The autoencoder: bundled name, folder or hub id.",
            show_default="the one that made the data set",
        ),
    ] = None,
    num: Annotated[
        int, typer.Option("--num", "-n", min=1, metavar="N", help="Number of samples, drawn at random.")
    ] = 16,
    steps: DecodingSteps = None,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Seed of the choice of samples and of all noise.")] = 0,
    force: Force = False,
) -> None:
    """Decode some samples and show them side by side, to see what a data set contains.

    The autoencoder must have exactly the weights that made the latents.
    """
    from ul_tokenizer.cli import contact_sheet
    from ul_tokenizer.latents.dataset import LatentDataset

    if output.suffix not in (".png", ".mp4"):
        raise ValueError(f"--output must be a .png or .mp4 file, got {output}.")
    if output.exists() and not force:
        raise ValueError(f"{output} exists already; --force overwrites.")
    dataset = LatentDataset(data)
    if output.suffix == ".mp4" and any(len(shape) == 3 for shape in dataset.shapes):
        raise ValueError(f"--output must be a .png file for a data set of images, got {output}.")
    autoencoder = contact_sheet.load_maker(dataset, model)
    indices = contact_sheet.choose(len(dataset), num, seed)
    samples = list(contact_sheet.decode(dataset, indices, autoencoder, steps, seed))
    write = contact_sheet.write_video if output.suffix == ".mp4" else contact_sheet.write_picture
    write(samples, output)
    for sample in samples:
        typer.echo(sample.id)
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
    """Verify a data set and push it to the hub: shards, manifests and a card in one commit."""
    from ul_tokenizer.hub.upload import Target
    from ul_tokenizer.latents.hub import push_latents

    target = Target(repo, "dataset", revision, None, private, create_pr, message)
    hub.tell(target, push_latents(data, target, license))


def pull(
    repo: Annotated[str, typer.Argument(metavar="REPO", help="Data set repository on the hub: owner/name.")],
    output: NewFolder,
    revision: Revision = None,
) -> None:
    """Download a data set into a folder and verify it. Training can read a data set from the hub without this."""
    from ul_tokenizer.latents.hub import pull_latents

    snapshot = pull_latents(repo, output, revision)
    typer.echo(snapshot.commit)
    typer.echo(f"pulled {repo} at commit {snapshot.commit}: {output}", err=True)
