"""The command `evaluate`: figures of generated images and of reconstructions. Only running it imports torch."""

from __future__ import annotations

import enum
import itertools
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.table import Table

from ul_tokenizer.cli.options import (
    DEFAULT_PIPELINE,
    DEFAULT_SOLVER,
    GUIDANCE_HELP,
    SOLVER_HELP,
    STEPS_HELP,
    AsJson,
    BatchSize,
    ComputeDtype,
    DecoderSteps,
    Device,
    Dtype,
    GuidanceHigh,
    GuidanceLow,
    Revision,
    Seed,
    Solver,
    guidance_interval,
)
from ul_tokenizer.cli.reporting import UsageError, number, print_results, print_table, require

if TYPE_CHECKING:
    from ul_tokenizer.evaluation.generation import Sampling
    from ul_tokenizer.evaluation.labelled_images import LabelledImages
    from ul_tokenizer.evaluation.reference import Reference
    from ul_tokenizer.models.transformer import UnifiedLatentsTransformer
    from ul_tokenizer.pipelines.generation import UnifiedLatentsPipeline

Value = TypeVar("Value")
Choice = TypeVar("Choice", bound=enum.Enum)
Row = dict[str, Any]
METRIC = "FD (classifier features)"  # an FID is measured on Inception's

# ---------------------------------------------------------------- options

LISTS = "Separate several by commas to measure all combinations."
Model = Annotated[
    str,
    typer.Option(
        help="Pipeline: a bundled name, a folder or a hub id, tried in this order. With --prior it can also be an "
        "autoencoder that has a prior."
    ),
]
Train = Annotated[
    Path, typer.Option(exists=True, file_okay=False, help="Real training images, with a subfolder for each class.")
]
Test = Annotated[
    Path, typer.Option(exists=True, file_okay=False, help="Real test images, with a subfolder for each class.")
]
Num = Annotated[
    int,
    typer.Option("--num", "-n", min=0, help="Images to draw for each row of figures; 0 needs --reconstruction."),
]
Solvers = Annotated[str, typer.Option("--solver", help=f"{SOLVER_HELP} {LISTS}")]
Steps = Annotated[str, typer.Option(help=f"{STEPS_HELP} {LISTS}")]
Scales = Annotated[str, typer.Option("--guidance", help=f"{GUIDANCE_HELP} {LISTS}")]
Decode = Annotated[
    str,
    typer.Option(
        help="Latent that is decoded: z0, the sample with its noise, as in use; clean or scaled-clean, an estimate "
        f"without noise, for comparison. {LISTS}"
    ),
]
Unconditional = Annotated[bool, typer.Option("--unconditional", help="Draw images without asking for a class.")]
Prior = Annotated[
    bool, typer.Option("--prior", help="Draw with the autoencoder's stage-1 prior instead of the base model.")
]
Reconstructions = Annotated[
    bool,
    typer.Option(
        "--reconstruction", help="Also measure reconstructions of the test set, the best that drawn images can reach."
    ),
]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        dir_okay=False,
        help="File of JSON lines. Each row is added as soon as it is measured, and rows in the file are not measured "
        "again.",
        show_default="keep no rows",
    ),
]


def evaluate(
    train: Train,
    test: Test,
    model: Model = DEFAULT_PIPELINE,
    revision: Revision = None,
    num: Num = 10_000,
    solver: Solvers = DEFAULT_SOLVER.value,
    steps: Steps = "32",
    guidance: Scales = "1",
    guidance_low: GuidanceLow = None,
    guidance_high: GuidanceHigh = None,
    decoder_steps: DecoderSteps = None,
    decode: Decode = "z0",
    unconditional: Unconditional = False,
    prior: Prior = False,
    reconstruction: Reconstructions = False,
    output: Output = None,
    batch_size: BatchSize = 100,
    seed: Seed = 0,
    device: Device = None,
    dtype: ComputeDtype = Dtype.float32,
    as_json: AsJson = False,
) -> None:
    """Measure generated images against real ones.

    A small classifier is trained once on the real images and kept in ~/.cache/ul_tokenizer/classifiers. It gives the
    accuracy, the part of the images that show the class asked for, and the features for a Fréchet distance to the test
    set (not an FID). The floor is the distance of as many real training images.
    """
    from ul_tokenizer.evaluation.labelled_images import LabelledImages
    from ul_tokenizer.evaluation.reference import load_reference
    from ul_tokenizer.evaluation.sweep import read_rows

    require(num > 0 or reconstruction, "--num 0 needs --reconstruction: nothing else would be measured.")
    ways = Ways(
        choices("--solver", solver, Solver),
        numbers("--steps", steps, int),
        numbers("--guidance", guidance, float),
        texts(decode),
    )
    interval = guidance_interval(guidance_low, guidance_high)
    require(interval is None or set(ways.scales) != {1.0}, "--guidance-low and --guidance-high need --guidance.")
    require(
        not unconditional or set(ways.scales) == {1.0},
        "--guidance can't be used with --unconditional: it needs a class.",
    )
    shared: Row = {
        "num_images": num,
        "decoder_num_inference_steps": decoder_steps,
        "guidance_interval": interval,
        "unconditional": unconditional,
        "seed": seed,
    }
    samplings = ways.samplings(shared) if num else []
    if output:
        read_rows(output)  # refuses another file before any work
    models = load_models(model, revision, prior, dtype.value, device)
    test_set = LabelledImages(test)
    reference = load_reference(train, test_set, device=models.pipeline.device)
    job = Measurement(models, reference, test_set, output, batch_size)
    reconstructed = job.reconstruct(decoder_steps, seed) if reconstruction else []
    generated = job.generate(samplings)
    if as_json:
        print_results(reconstructed + generated)
        return
    for table in _tables(reconstructed, generated):
        print_table(table)
    typer.echo(_footnote(reference, num or len(test_set)))


@dataclass(frozen=True)
class Ways:
    """Values of options that take several; each combination is a way of drawing."""

    solvers: list[Solver]
    steps: list[int]
    scales: list[float]
    decodes: list[str]

    def samplings(self, shared: Row) -> list[Sampling]:
        """All combinations, with what they share; errors as `Sampling`."""
        from ul_tokenizer.evaluation.generation import Sampling

        return [
            Sampling(
                solver=solver.value,
                num_inference_steps=steps,
                guidance_scale=scale,
                decode=decode,  # type: ignore[arg-type]  # checked by Sampling
                **shared,
            )
            for solver, steps, scale, decode in itertools.product(self.solvers, self.steps, self.scales, self.decodes)
        ]


def texts(value: str) -> list[str]:
    """The parts of a list with commas between them."""
    return [part.strip() for part in value.split(",")]


def numbers(option: str, value: str, kind: Callable[[str], Value]) -> list[Value]:
    """The numbers of a list with commas between them.

    Raises:
        UsageError: something else in it.
    """
    try:
        return [kind(part) for part in texts(value)]
    except ValueError:
        wanted = "whole numbers" if kind is int else "numbers"
        raise UsageError(f"{option} must be {wanted} with commas between them, got {value!r}.") from None


def choices(option: str, value: str, kind: type[Choice]) -> list[Choice]:
    """The members of an enum in a list with commas between them.

    Raises:
        UsageError: another word.
    """
    legal = [str(member.value) for member in kind]
    wrong = next((word for word in texts(value) if word not in legal), None)
    require(wrong is None, f"{option} must be of {', '.join(legal)}, with commas between several, got {wrong!r}.")
    return [kind(word) for word in texts(value)]


# ---------------------------------------------------------------- models


@dataclass
class Models:
    """The networks that are measured."""

    name: str
    generator: str  # "base" or "prior"
    pipeline: UnifiedLatentsPipeline
    prior: UnifiedLatentsTransformer | None  # in fp32, because its bits are a measurement
    dtype: str


def load_models(name: str, revision: str | None, use_prior: bool, dtype: str, device: str | None) -> Models:
    """Loads a pipeline, or makes one of an autoencoder and its stage-1 prior.

    Raises:
        ValueError: no such model, one without a prior, or an unknown device.
    """
    import torch
    from diffusers.utils import logging

    from ul_tokenizer.cli.codec import pick_device
    from ul_tokenizer.pipelines.generation import UnifiedLatentsPipeline

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
    """The prior of a repository; None if it has none."""
    from ul_tokenizer.models.repository import MissingPriorError, load_prior

    try:
        return load_prior(name, revision=revision)
    except MissingPriorError:
        return None


# ---------------------------------------------------------------- work


@dataclass
class Measurement:
    """Measures one model, row by row."""

    models: Models
    reference: Reference
    test: LabelledImages
    output: Path | None
    batch_size: int

    def generate(self, samplings: list[Sampling]) -> list[Row]:
        """One row for each way of drawing."""
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
        """One row with the figures of the test set's reconstructions."""
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
        """What a row's figures depend on beside its sampling; not the name, which may get new weights."""
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
            "PSNR of mean MSE": lambda row: number(row["psnr_of_mean_mse"], ".2f", "exact"),
            "mean PSNR": lambda row: number(row["mean_psnr"], ".2f", "exact"),
            "bits/pixel": lambda row: number(row["bits_per_pixel"], ".3f"),
        },
    )
    drawn = _table(
        f"drawn by the {generated[0]['generator']}" if generated else "",
        generated,
        {
            "solver": lambda row: row["solver"] + (f", {row['decode']}" if row["decode"] != "z0" else ""),
            "steps": lambda row: str(row["num_inference_steps"]),
            "guidance": lambda row: f"{row['guidance_scale']:g}",
            "accuracy": lambda row: number(row["accuracy"], ".1%"),
            "FD": lambda row: f"{row['frechet_distance']:.3f}",
            "FD/floor": lambda row: number(row["ratio"], ".2f"),
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


def _footnote(reference: Reference, num_images: int) -> str:
    train, test = len(reference.train_features), len(reference.test_features)
    return (
        f"{METRIC}, {num_images:,} images against {test:,} of the test set, not an FID. "
        f"Floor: {reference.floor(num_images):.3f} for {min(num_images, train):,} real training images, "
        f"{reference.floor():.3f} for all {train:,}. "
        f"The classifier's accuracy on the test set: {reference.test_accuracy:.2%}."
    )
