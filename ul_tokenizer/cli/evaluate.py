"""The command `evaluate`: figures of generated images and of reconstructions. Only the command imports torch."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from ul_tokenizer.evaluation.generation import Sampling
    from ul_tokenizer.evaluation.labelled_images import LabelledImages
    from ul_tokenizer.evaluation.reference import Reference
    from ul_tokenizer.models.transformer import UnifiedLatentsTransformer
    from ul_tokenizer.pipelines.generation import UnifiedLatentsPipeline

Value = TypeVar("Value")
Row = dict[str, Any]
DTYPES = ("float32", "bfloat16", "float16")
LAST_LOGSNR = 1000.0
METRIC = "FD (classifier features)"  # an FID is measured on Inception's

# ---------------------------------------------------------------- options

LISTS = "several with commas between them; all combinations are measured."
Model = Annotated[
    str, typer.Option(help="Pipeline (with --prior also an autoencoder that has one): bundled name, folder or hub id.")
]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a model on the hub.")]
Folder = Annotated[Path, typer.Option(exists=True, file_okay=False, help="Real images, a subfolder for each class.")]
Num = Annotated[
    int, typer.Option("--num", "-n", min=0, help="Images to draw for each row; 0 for --reconstruction alone.")
]
Solvers = Annotated[str, typer.Option("--solver", help=f"ddim, dpmsolver++ or ddpm; {LISTS}")]
Steps = Annotated[str, typer.Option(help=f"Steps of the base model; {LISTS}")]
Scales = Annotated[str, typer.Option("--guidance", help=f"Guidance scale, 1 for none; {LISTS}")]
Low = Annotated[float | None, typer.Option(help="Guide only above this log-SNR.", show_default="everywhere")]
High = Annotated[float | None, typer.Option(help="Guide only below this log-SNR.", show_default="everywhere")]
DecoderSteps = Annotated[int | None, typer.Option(min=1, help="Steps of the decoder.", show_default="the model's")]
Decode = Annotated[
    str,
    typer.Option(
        help=f"What is decoded: z0 as is right; to compare, an estimate without noise: clean, scaled-clean; {LISTS}"
    ),
]
Unconditional = Annotated[bool, typer.Option("--unconditional", help="Ask for no class.")]
Prior = Annotated[
    bool, typer.Option("--prior", help="Draw with the autoencoder's stage-1 prior in place of the base model.")
]
Reconstructions = Annotated[
    bool, typer.Option("--reconstruction", help="Measure the test set's reconstructions too: the upper bound.")
]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output", "-o", dir_okay=False, help="JSON lines: a row is added once it is done, and isn't done again."
    ),
]
BatchSize = Annotated[int, typer.Option(min=1, help="Images at a time; the images don't depend on it.")]
Seed = Annotated[int, typer.Option(min=0, help="Of all noise; an image's follows from it and the image's number.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, …", show_default="cuda if there is one, or cpu")]
Dtype = Annotated[str, typer.Option(help=f"What the networks compute in: {', '.join(DTYPES)}.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def evaluate(
    train: Folder,
    test: Folder,
    model: Model = "ul-fashion",
    revision: Revision = None,
    num: Num = 10_000,
    solver: Solvers = "ddim",
    steps: Steps = "32",
    guidance: Scales = "1",
    guidance_low: Low = None,
    guidance_high: High = None,
    decoder_steps: DecoderSteps = None,
    decode: Decode = "z0",
    unconditional: Unconditional = False,
    prior: Prior = False,
    reconstruction: Reconstructions = False,
    output: Output = None,
    batch_size: BatchSize = 100,
    seed: Seed = 0,
    device: Device = None,
    dtype: Dtype = "float32",
    as_json: AsJson = False,
) -> None:
    """Measure generated images against real ones.

    A small classifier, trained once on the real images and kept in ~/.cache/ul_tokenizer/classifiers, gives the part of
    the images that show the class asked for, and the features for a Fréchet distance (not an FID) to the test set;
    beside it stands its floor, the distance of as many real training images.
    """
    from ul_tokenizer.evaluation.labelled_images import LabelledImages
    from ul_tokenizer.evaluation.reference import load_reference
    from ul_tokenizer.evaluation.sweep import read_rows

    shared: Row = {
        "num_images": num,
        "decoder_num_inference_steps": decoder_steps,
        "guidance_interval": _interval(guidance_low, guidance_high),
        "unconditional": unconditional,
        "seed": seed,
    }
    samplings = _samplings(solver, steps, guidance, decode, shared) if num or not reconstruction else []
    if output:
        read_rows(output)  # refuses another file before any work
    models = load_models(model, revision, prior, dtype, device)
    test_set = LabelledImages(test)
    reference = load_reference(train, test_set, device=models.pipeline.device)
    job = Measurement(models, reference, test_set, output, batch_size)
    reconstructed = job.reconstruct(decoder_steps, seed) if reconstruction else []
    generated = job.generate(samplings)
    if as_json:
        typer.echo(json.dumps(reconstructed + generated, indent=2, allow_nan=False))
        return
    console = Console(soft_wrap=True)
    for table in _tables(reconstructed, generated):
        console.print(table)
    console.print(_footnote(reference, num or len(test_set)))


def _samplings(solvers: str, steps: str, scales: str, decodes: str, shared: dict[str, Any]) -> list[Sampling]:
    """All combinations, checked."""
    from ul_tokenizer.evaluation.generation import Sampling

    names = ("solver", "num_inference_steps", "guidance_scale", "decode")
    values = (
        _list("--solver", solvers, str),
        _list("--steps", steps, int),
        _list("--guidance", scales, float),
        _list("--decode", decodes, str),
    )
    combinations: list[Row] = [dict(zip(names, row, strict=True)) for row in itertools.product(*values)]
    return [Sampling(**combination, **shared) for combination in combinations]


def _list(option: str, text: str, kind: Callable[[str], Value]) -> list[Value]:
    try:
        return [kind(part.strip()) for part in text.split(",")]
    except ValueError:
        wanted = "whole numbers" if kind is int else "numbers"
        raise ValueError(f"{option} must be {wanted} with commas between them, got {text!r}.") from None


def _interval(low: float | None, high: float | None) -> tuple[float, float] | None:
    """An end that isn't given is farther out than any level, and finite, as JSON needs it."""
    if low is None and high is None:
        return None
    return -LAST_LOGSNR if low is None else low, LAST_LOGSNR if high is None else high


# ---------------------------------------------------------------- models


@dataclass
class Models:
    """What is measured."""

    name: str
    generator: str  # "base" or "prior"
    pipeline: UnifiedLatentsPipeline
    prior: UnifiedLatentsTransformer | None  # for bits; in fp32, as they are a measurement
    dtype: str


def load_models(name: str, revision: str | None, use_prior: bool, dtype: str, device: str | None) -> Models:
    """Loads a pipeline, or makes one of an autoencoder and its stage-1 prior.

    Raises:
        ValueError: nothing there that can be read, no prior, or an unknown device or dtype.
    """
    import torch
    from diffusers.utils import logging

    from ul_tokenizer.cli.codec import pick_device
    from ul_tokenizer.pipelines.generation import UnifiedLatentsPipeline

    if dtype not in DTYPES:
        raise ValueError(f"--dtype must be one of {', '.join(DTYPES)}, got {dtype!r}.")
    where = pick_device(device)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    weights = getattr(torch, dtype)
    if use_prior:
        pipeline = _pipeline_of_prior(name, {"revision": revision, "torch_dtype": weights})
    else:
        pipeline = UnifiedLatentsPipeline.from_pretrained(name, revision=revision, dtype=weights)
    prior = _prior_of(name, revision)
    return Models(
        name,
        "prior" if use_prior else "base",
        pipeline.to(where),
        None if prior is None else prior.to(where),
        dtype,
    )


def _pipeline_of_prior(name: str, options: dict[str, Any]) -> UnifiedLatentsPipeline:
    from ul_tokenizer.models.repository import load_autoencoder, load_prior
    from ul_tokenizer.pipelines.generation import UnifiedLatentsPipeline
    from ul_tokenizer.schedulers.log_snr import LogSNRScheduler

    prior = load_prior(name, **options)
    scheduler = LogSNRScheduler(logsnr_max=prior.config.latent_logsnr)
    return UnifiedLatentsPipeline(transformer=prior, scheduler=scheduler, vae=load_autoencoder(name, **options))


def _prior_of(name: str, revision: str | None) -> UnifiedLatentsTransformer | None:
    """The prior of a repository; None where it has none."""
    from ul_tokenizer.models.repository import MissingPriorError, load_prior

    try:
        return load_prior(name, revision=revision)
    except MissingPriorError:
        return None


# ---------------------------------------------------------------- work


@dataclass
class Measurement:
    """Rows of figures of one model."""

    models: Models
    reference: Reference
    test: LabelledImages
    output: Path | None
    batch_size: int

    def generate(self, samplings: list[Sampling]) -> list[Row]:
        """A row per way of drawing."""
        from ul_tokenizer.evaluation.generation import evaluate_generation
        from ul_tokenizer.evaluation.sweep import run_rows

        pipeline = self.models.pipeline
        about = self._about(pipeline.transformer, pipeline.vae)
        kind = {"measured": "generation", "generator": self.models.generator}
        keys = [{**kind, **about, **asdict(sampling)} for sampling in samplings]

        def measure(index: int) -> Row:
            return asdict(evaluate_generation(pipeline, self.reference, samplings[index], self.batch_size))

        return run_rows(keys, measure, self.output)

    def reconstruct(self, decoder_steps: int | None, seed: int) -> list[Row]:
        """One row, of the test set's reconstructions."""
        from ul_tokenizer.evaluation.reconstruction import evaluate_reconstruction
        from ul_tokenizer.evaluation.sweep import run_rows

        vae, prior = self.models.pipeline.vae, self.models.prior
        key = {"measured": "reconstruction", **self._about(vae, *([] if prior is None else [prior]))}
        key |= {"num_images": len(self.test), "decoder_num_inference_steps": decoder_steps, "seed": seed}

        def measure(_: int) -> Row:
            quality = evaluate_reconstruction(
                vae,
                self.reference,
                self.test,
                prior,
                num_inference_steps=decoder_steps,
                batch_size=self.batch_size,
                seed=seed,
            )
            return asdict(quality)

        return run_rows([key], measure, self.output)

    def _about(self, *networks: Any) -> Row:
        """What a row's figures depend on, beside its sampling; not the name, which can stand for new weights."""
        from ul_tokenizer.evaluation.sweep import weights_sha256

        return {
            "metric": METRIC,
            "weights_sha256": weights_sha256(*networks),
            "reference": self.reference.digest,
            "dtype": self.models.dtype,
        }


# ---------------------------------------------------------------- printing


def _tables(reconstructed: list[Row], generated: list[Row]) -> list[Table]:
    reconstructions = _table(
        "reconstructions",
        reconstructed,
        {
            "images": lambda row: f"{row['num_images']:,}",
            "accuracy": lambda row: f"{row['accuracy']:.1%}",
            "FD": lambda row: f"{row['frechet_distance']:.3f}",
            "floor": lambda row: f"{row['floor']:.3f}",
            "PSNR of mean MSE": lambda row: _number(row["psnr_of_mean_mse"], ".2f", "exact"),
            "mean PSNR": lambda row: _number(row["mean_psnr"], ".2f", "exact"),
            "bits/pixel": lambda row: _number(row["bits_per_pixel"], ".3f"),
        },
    )
    drawn = _table(
        f"drawn by the {generated[0]['generator']}" if generated else "",
        generated,
        {
            "solver": lambda row: row["solver"] + (f", {row['decode']}" if row["decode"] != "z0" else ""),
            "steps": lambda row: str(row["num_inference_steps"]),
            "guidance": lambda row: f"{row['guidance_scale']:g}",
            "accuracy": lambda row: _number(row["accuracy"], ".1%"),
            "FD": lambda row: f"{row['frechet_distance']:.3f}",
            "FD/floor": lambda row: _number(row["ratio"], ".2f"),
            "images/s": lambda row: f"{row['images_per_second']:.1f}",
        },
    )
    return [table for table in (reconstructions, drawn) if table.rows]


def _table(title: str, rows: list[Row], columns: dict[str, Callable[[Row], str]]) -> Table:
    table = Table(title=title)
    for name in columns:
        table.add_column(name, justify="left" if name == "solver" else "right")
    for row in rows:
        table.add_row(*(cell(row) for cell in columns.values()))
    return table


def _number(value: float | None, form: str, otherwise: str = "-") -> str:
    return otherwise if value is None else format(value, form)


def _footnote(reference: Reference, num_images: int) -> str:
    train, test = len(reference.train_features), len(reference.test_features)
    return (
        f"{METRIC}, {num_images:,} images against {test:,} of the test set, not an FID. "
        f"Floor: {reference.floor(num_images):.3f} for {min(num_images, train):,} real training images, "
        f"{reference.floor():.3f} for all {train:,}. "
        f"The classifier's accuracy on the test set: {reference.test_accuracy:.2%}."
    )
