"""The commands `evaluate …`: figures that can be compared, each with its protocol. Only running one imports torch."""

from __future__ import annotations

import enum
import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ul_tokenizer.cli.evaluation_tables import print_all
from ul_tokenizer.cli.flags import in_flags
from ul_tokenizer.cli.help import IMAGES, METRICS, SAMPLING, Group, example
from ul_tokenizer.cli.lists import choices, numbers, texts
from ul_tokenizer.cli.options import (
    DEFAULT_PIPELINE,
    DEFAULT_SOLVER,
    GUIDANCE_HELP,
    SOLVER_HELP,
    STEPS_HELP,
    AsJson,
    BatchSize,
    ClipFps,
    ClipFrames,
    ClipStride,
    ComputeDtype,
    Config,
    DecoderSteps,
    Device,
    Dtype,
    GuidanceHigh,
    GuidanceLow,
    ImageColumn,
    Resolution,
    Revision,
    Seed,
    Solver,
    SourceRevision,
    Split,
    WithoutCuts,
    guidance_interval,
)
from ul_tokenizer.cli.reporting import require

if TYPE_CHECKING:
    from ul_tokenizer.evaluation.drawing import Sampling
    from ul_tokenizer.evaluation.samples import Crops

_OLD = (
    "evaluate is now a group of commands; use `ul-tokenizer evaluate generation TEST --train TRAIN --features "
    "classifier:TRAIN,TEST …` for images of a model, and `ul-tokenizer evaluate reconstruction TEST …` in place of "
    "--reconstruction."
)


class _Group(Group):
    """The group; the former single command is refused with its new spelling."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0].startswith("-") and args[0] not in ("--help", "--"):
            typer.echo(f"error: {_OLD}", err=True)
            raise typer.Exit(2)
        return super().parse_args(ctx, args)


app = typer.Typer(
    name="evaluate",
    cls=_Group,
    help="Measure reconstructions, generated images and predicted frames. Each figure comes with its protocol.",
    epilog=example("evaluate reconstruction photos/ --model ul-photo-f8 --steps 1,4"),
    no_args_is_help=True,
)

# ---------------------------------------------------------------- options


class CropChoice(str, enum.Enum):
    """Which pixels of an image are measured."""

    CENTER = "center"
    RANDOM = "random"
    NONE = "none"


class LatentChoice(str, enum.Enum):
    """What of a latent's distribution is decoded."""

    sample = "sample"
    mode = "mode"


LISTS = "Separate several by commas to measure all combinations."
Data = Annotated[
    str,
    typer.Argument(
        metavar="DATA",
        help="Folder of images, .tar archives, .parquet files or videos; one such file; or a hub data set.",
    ),
]
Models = Annotated[
    list[str],
    typer.Option(
        "--model",
        metavar="NAME",
        help="What to measure; may be repeated. An autoencoder, ours or any of diffusers' (bundled name, folder or hub "
        "id), a codec at a quality (jpeg:30, webp:40, avif:35), or folder:PATH for reconstructions made elsewhere.",
    ),
]
CropOption = Annotated[
    CropChoice | None,
    typer.Option(
        "--crop",
        metavar="NAME",
        help="Pixels to measure: a square from the center or from a random place, or none for whole images.",
        show_default="center with --resolution or --crop-size, else none",
        rich_help_panel=IMAGES,
    ),
]
CropSize = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Side of the squares in pixels.",
        show_default="as --resolution",
        rich_help_panel=IMAGES,
    ),
]
Num = Annotated[
    int | None,
    typer.Option(
        "--num",
        "-n",
        min=1,
        metavar="N",
        help="Images to measure, drawn by the seed. With random crops, it can be more than there are.",
        show_default="all, once",
        rich_help_panel=IMAGES,
    ),
]
StepsList = Annotated[
    str | None,
    typer.Option(
        "--steps",
        metavar="N,…",
        help="Decoding steps of our autoencoders. Separate several by commas to measure each.",
        show_default="set by the model",
    ),
]
Latent = Annotated[
    LatentChoice,
    typer.Option(metavar="NAME", help="Decode a sample of the latent's distribution, as in use, or its mode."),
]
FeatureNames = Annotated[
    list[str] | None,
    typer.Option(
        "--features",
        metavar="NAME",
        help="Network for distances; may be repeated: inception (FID), dinov2, efficientnet-lite0, "
        "classifier:TRAIN,TEST (trained on folders of labelled images), i3d (clips only), or none.",
        show_default="efficientnet-lite0",
        rich_help_panel=METRICS,
    ),
]
FeatureWeights = Annotated[
    list[str] | None,
    typer.Option(
        "--feature-weights",
        metavar="NAME=FILE",
        help="File with a network's weights; may be repeated.",
        rich_help_panel=METRICS,
    ),
]
References = Annotated[
    list[str] | None,
    typer.Option(
        "--reference",
        metavar="NAME=FILE",
        help="File with a network's features of the real images; may be repeated. It is created if needed.",
        show_default="a cache",
        rich_help_panel=METRICS,
    ),
]
Lpips = Annotated[
    str,
    typer.Option(
        metavar="NAME", help="Network of the perceptual distance LPIPS: alex, vgg or none.", rich_help_panel=METRICS
    ),
]
Mosaic = Annotated[
    bool,
    typer.Option(
        "--mosaic",
        help="Let codecs compress each batch as one picture, so that headers of small files hardly count.",
        rich_help_panel=METRICS,
    ),
]
ForceFd = Annotated[
    bool,
    typer.Option(
        "--force-fd",
        help="Compute Fréchet distances even of fewer images than the network has features.",
        rich_help_panel=METRICS,
    ),
]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        file_okay=False,
        metavar="FOLDER",
        help="Folder for the results: one JSON file each, with pictures. Results that are there are not measured "
        "again, and an interrupted job is continued.",
        show_default="keep nothing",
    ),
]
DropDuplicates = Annotated[
    bool,
    typer.Option(
        "--drop-duplicates",
        help="Leave out files that have the same content as another file.",
        rich_help_panel=IMAGES,
    ),
]


def _crops(resolution: int | None, crop: CropChoice | None, crop_size: int | None, num: int | None, seed: int) -> Crops:
    from ul_tokenizer.evaluation.samples import Crops

    default = CropChoice.NONE if resolution is None and crop_size is None else CropChoice.CENTER
    return Crops(resolution, (crop or default).value, crop_size, num, seed)


def _pairs(option: str, words: Sequence[str] | None) -> dict[str, Path]:
    """NAME=FILE options as a dict."""
    pairs = [word.partition("=") for word in words or ()]
    wrong = next((word for word, pair in zip(words or (), pairs, strict=True) if not (pair[0] and pair[2])), None)
    require(wrong is None, f"{option} must be NAME=FILE, got {wrong!r}.")
    return {name: Path(file).expanduser() for name, _, file in pairs}


def _networks(
    features: Sequence[str] | None, weights: Sequence[str] | None, references: Sequence[str] | None
) -> dict[str, Any]:
    """The options of networks, as the functions take them."""
    from ul_tokenizer.evaluation.job import DEFAULT_NETS

    chosen = DEFAULT_NETS if features is None else tuple(features)
    require("none" not in chosen or len(chosen) == 1, "--features none can't be used with another network.")
    return {
        "features": () if chosen == ("none",) else chosen,
        "feature_weights": _pairs("--feature-weights", weights),
        "references": _pairs("--reference", references),
    }


# Arguments that errors name, and the flags of those that are called otherwise on the command line.
_FLAGS = {
    "data": "DATA",
    "real": "REAL",
    "models": "--model",
    "pipeline": "--model",
    "num_samples": "--num",
    "num_images": "--num",
    "given_frames": "--given",
    "clip_without_cuts": "--without-cuts",
    "references": "--reference",
    "num_inference_steps": "--steps",
    "decoder_num_inference_steps": "--decoder-steps",
    "guidance_scale": "--guidance",
    "guidance_interval": "--guidance-low and --guidance-high",
    "name": "--features",
    "weights": "--feature-weights",
    "path": "--feature-weights",
    "net": "--lpips",
    "size": "the size of REAL",
}
_ALIKE = (
    *("model", "images", "train", "resolution", "crop", "crop_size", "seed", "steps", "features", "feature_weights"),
    *(
        "prompts",
        "caption_column",
        "lpips",
        "batch_size",
        "latent",
        "clip_frames",
        "clip_stride",
        "clip_fps",
        "solver",
        "decode",
        "image_column",
    ),
    "device",
)


@contextmanager
def _in_flags() -> Iterator[None]:
    with in_flags([*_FLAGS, *_ALIKE], _FLAGS):
        yield


# ---------------------------------------------------------------- reconstruction


def reconstruction(
    data: Data,
    model: Models,
    revision: Revision = None,
    resolution: Resolution = None,
    crop: CropOption = None,
    crop_size: CropSize = None,
    num: Num = None,
    seed: Seed = 0,
    steps: StepsList = None,
    latent: Latent = LatentChoice.sample,
    features: FeatureNames = None,
    feature_weights: FeatureWeights = None,
    reference: References = None,
    lpips: Lpips = "alex",
    mosaic: Mosaic = False,
    force_fd: ForceFd = False,
    clip_frames: ClipFrames = None,
    clip_stride: ClipStride = None,
    clip_fps: ClipFps = None,
    without_cuts: WithoutCuts = False,
    drop_duplicates: DropDuplicates = False,
    image_column: ImageColumn = "image",
    split: Split = "train",
    config: Config = None,
    source_revision: SourceRevision = None,
    output: Output = None,
    batch_size: BatchSize = 32,
    device: Device = None,
    dtype: ComputeDtype = Dtype.float32,
    as_json: AsJson = False,
) -> None:
    """Measure how faithfully autoencoders and codecs reconstruct images or clips.

    All of them are measured on the same pixels, rounded to 8 bits. Prints PSNR in two means, SSIM, MS-SSIM, LPIPS,
    distances between features beside their floor, bits per pixel, seconds and memory, with 95 % intervals over images.
    A network that is not installed is named, and the other figures are measured. To use several processes, start
    `accelerate launch -m ul_tokenizer evaluate …`.
    """
    with _in_flags():
        crops = _crops(resolution, crop, crop_size, num, seed)
        wanted = [None] if steps is None else numbers("--steps", steps, int)
        require(all(count is None or count >= 1 for count in wanted), f"--steps must be at least 1, got {steps}.")
        networks = _networks(features, feature_weights, reference)
        from ul_tokenizer.evaluation.job import evaluate_reconstruction

        results = evaluate_reconstruction(
            data,
            model,
            crops=crops,
            steps=wanted,
            latent=latent.value,
            **networks,
            lpips=None if lpips == "none" else lpips,
            mosaic=mosaic,
            force_fd=force_fd,
            output=output,
            batch_size=batch_size,
            dtype=dtype.value,
            device=device,
            revision=revision,
            seed=seed,
            image_column=image_column,
            split=split,
            config=config,
            source_revision=source_revision,
            keep_duplicates=not drop_duplicates,
            clip_frames=clip_frames,
            clip_stride=clip_stride,
            clip_fps=clip_fps,
            clip_without_cuts=without_cuts,
        )
    print_all(results, output, as_json)


# ---------------------------------------------------------------- generation

Real = Annotated[
    str,
    typer.Argument(
        metavar="REAL",
        help="Real images to compare with, usually a test set: a folder, .tar archives, .parquet files or a hub data "
        "set.",
    ),
]
Generator = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Pipeline: a bundled name, a folder or a hub id, tried in this order. With --prior it can also be an "
        "autoencoder that has a prior.",
        show_default=f"{DEFAULT_PIPELINE}, unless --images is given",
    ),
]
Images = Annotated[
    str | None,
    typer.Option(
        metavar="PATH",
        help="Images that another generator wrote, in place of a model: a folder, .tar or .parquet.",
    ),
]
Train = Annotated[
    str | None,
    typer.Option(
        metavar="DATA",
        help="Real training images. They give the floor of the distances and show what is memorised.",
    ),
]
NumDrawn = Annotated[int, typer.Option("--num", "-n", min=2, metavar="N", help="Images to draw for each result.")]
Solvers = Annotated[
    str, typer.Option("--solver", metavar="NAME,…", help=f"{SOLVER_HELP} {LISTS}", rich_help_panel=SAMPLING)
]
SampleSteps = Annotated[
    str, typer.Option("--steps", metavar="N,…", help=f"{STEPS_HELP} {LISTS}", rich_help_panel=SAMPLING)
]
Scales = Annotated[
    str, typer.Option("--guidance", metavar="X,…", help=f"{GUIDANCE_HELP} {LISTS}", rich_help_panel=SAMPLING)
]
Decode = Annotated[
    str,
    typer.Option(
        metavar="NAME,…",
        help="Latent to decode. z0 is the sample with its noise, as in use. clean and scaled-clean are estimates "
        f"without noise, for comparison. {LISTS}",
        rich_help_panel=SAMPLING,
    ),
]
Unconditional = Annotated[
    bool,
    typer.Option(
        "--unconditional",
        help="Draw images without asking for a class or giving a text.",
        rich_help_panel=SAMPLING,
    ),
]
PromptData = Annotated[
    str | None,
    typer.Option(
        "--prompts",
        metavar="DATA",
        help="Data set whose captions are the prompts of a model of captions, and whose classes are requested with "
        "them if the model has classes too; none asks for classes only.",
        show_default="REAL, if the model takes texts",
        rich_help_panel=SAMPLING,
    ),
]
CaptionColumn = Annotated[str, typer.Option(metavar="NAME", help="Column of the captions.", rich_help_panel=SAMPLING)]
Prior = Annotated[
    bool,
    typer.Option(
        "--prior",
        help="Draw with the autoencoder's stage-1 prior instead of the base model.",
        rich_help_panel=SAMPLING,
    ),
]


def generation(
    real: Real,
    train: Train = None,
    model: Generator = None,
    images: Images = None,
    revision: Revision = None,
    num: NumDrawn = 10_000,
    solver: Solvers = DEFAULT_SOLVER.value,
    steps: SampleSteps = "32",
    guidance: Scales = "1",
    guidance_low: GuidanceLow = None,
    guidance_high: GuidanceHigh = None,
    decoder_steps: DecoderSteps = None,
    decode: Decode = "z0",
    unconditional: Unconditional = False,
    prompts: PromptData = None,
    caption_column: CaptionColumn = "caption",
    prior: Prior = False,
    resolution: Resolution = None,
    crop: CropOption = None,
    crop_size: CropSize = None,
    features: FeatureNames = None,
    feature_weights: FeatureWeights = None,
    reference: References = None,
    force_fd: ForceFd = False,
    image_column: ImageColumn = "image",
    split: Split = "train",
    config: Config = None,
    source_revision: SourceRevision = None,
    output: Output = None,
    batch_size: BatchSize = 100,
    seed: Seed = 0,
    device: Device = None,
    dtype: ComputeDtype = Dtype.float32,
    as_json: AsJson = False,
) -> None:
    """Measure generated images against real ones.

    Prints Fréchet distances and KID beside their floor, precision, recall, density and coverage. With a classifier
    among the --features also the accuracy, the part of the images that show the class asked for. With --train also how
    many images are nearer to a training image than real test images are. Models of captions draw images for the
    captions of REAL or of --prompts.
    """
    drawing: dict[str, Any] = {
        "num_images": num,
        "decoder_num_inference_steps": decoder_steps,
        "guidance_interval": guidance_interval(guidance_low, guidance_high),
        "unconditional": unconditional,
        "seed": seed,
    }
    with _in_flags():
        samplings = _samplings(solver, steps, guidance, decode, drawing)
        _check_images(images, model, revision, prior, samplings, prompts)
        _check_prompts(prompts, unconditional, prior)
        networks = _networks(features, feature_weights, reference)
        from ul_tokenizer.evaluation.job import evaluate_generation

        results = evaluate_generation(
            real,
            None if images is not None else model or DEFAULT_PIPELINE,
            images=images,
            train=train,
            samplings=samplings if images is None else None,
            prior=prior,
            prompts=prompts,
            caption_column=caption_column,
            crops=_crops(resolution, crop, crop_size, None, 0),  # real images stay the same for all seeds
            **networks,
            force_fd=force_fd,
            output=output,
            batch_size=batch_size,
            dtype=dtype.value,
            device=device,
            revision=revision,
            image_column=image_column,
            split=split,
            config=config,
            source_revision=source_revision,
        )
    print_all(results, output, as_json)


def _samplings(solver: str, steps: str, guidance: str, decode: str, shared: dict[str, Any]) -> list[Sampling]:
    """All combinations of options that take several values, with what they share; errors as `Sampling`."""
    solvers, counts = choices("--solver", solver, Solver), numbers("--steps", steps, int)
    scales = numbers("--guidance", guidance, float)
    is_guided = set(scales) != {1.0}
    require(shared["guidance_interval"] is None or is_guided, "--guidance-low and --guidance-high need --guidance.")
    require(
        not (shared["unconditional"] and is_guided),
        "--guidance can't be used with --unconditional: it needs a class or a text.",
    )
    from ul_tokenizer.evaluation.drawing import Sampling

    return [
        Sampling(
            solver=way.value,
            num_inference_steps=count,
            guidance_scale=scale,
            decode=decoded,  # type: ignore[arg-type]  # checked by Sampling
            **shared,
        )
        for way, count, scale, decoded in itertools.product(solvers, counts, scales, texts(decode))
    ]


def _check_images(
    images: str | None,
    model: str | None,
    revision: str | None,
    prior: bool,
    samplings: Sequence[Sampling],
    prompts: str | None,
) -> None:
    """Refuses options for drawing images if the images are given."""
    from ul_tokenizer.evaluation.drawing import Sampling

    is_drawing = prior or list(samplings) != [Sampling(solver=DEFAULT_SOLVER.value)]
    require(images is None or model is None, "--model and --images can't be used together.")
    require(
        images is None or not (is_drawing or revision or prompts),
        "--images can't be used with options for drawing images, such as --num, --steps or --prior.",
    )


def _check_prompts(prompts: str | None, unconditional: bool, prior: bool) -> None:
    require(not (unconditional and prompts), "--prompts can't be used with --unconditional.")
    require(not (prior and prompts), "--prompts can't be used with --prior: a stage-1 prior takes no text.")


# ---------------------------------------------------------------- prediction

Given = Annotated[int, typer.Option("--given", min=1, metavar="N", help="Frames of each clip that the model sees.")]
WholeClips = Annotated[
    int, typer.Option("--clip-frames", min=2, metavar="N", help="Frames of a clip, including the given ones.")
]

OneSolver = Annotated[Solver, typer.Option(metavar="NAME", help=SOLVER_HELP, rich_help_panel=SAMPLING)]
OneCount = Annotated[int, typer.Option(min=1, metavar="N", help=STEPS_HELP, rich_help_panel=SAMPLING)]


def prediction(
    data: Data,
    model: Annotated[str, typer.Option(metavar="NAME", help="Pipeline of clips: a folder or a hub id.")],
    clip_frames: WholeClips,
    given: Given,
    revision: Revision = None,
    resolution: Resolution = None,
    crop: CropOption = None,
    crop_size: CropSize = None,
    num: Num = None,
    seed: Seed = 0,
    solver: OneSolver = DEFAULT_SOLVER,
    steps: OneCount = 32,
    decoder_steps: DecoderSteps = None,
    features: FeatureNames = None,
    feature_weights: FeatureWeights = None,
    reference: References = None,
    lpips: Lpips = "alex",
    force_fd: ForceFd = False,
    clip_stride: ClipStride = None,
    clip_fps: ClipFps = None,
    without_cuts: WithoutCuts = False,
    output: Output = None,
    batch_size: BatchSize = 8,
    device: Device = None,
    dtype: ComputeDtype = Dtype.float32,
    as_json: AsJson = False,
) -> None:
    """Measure how a model continues clips: it sees the first frames and predicts the rest.

    PSNR, SSIM and flicker are measured on the predicted frames, distances between features on whole clips.
    """
    require(given < clip_frames, f"--given must be less than --clip-frames {clip_frames}, got {given}.")
    with _in_flags():
        crops = _crops(resolution, crop, crop_size, num, seed)
        networks = _networks(features, feature_weights, reference)
        from ul_tokenizer.evaluation.drawing import Sampling
        from ul_tokenizer.evaluation.job import evaluate_prediction

        result = evaluate_prediction(
            data,
            model,
            given_frames=given,
            crops=crops,
            sampling=Sampling(
                solver=solver.value, num_inference_steps=steps, decoder_num_inference_steps=decoder_steps, seed=seed
            ),
            **networks,
            lpips=None if lpips == "none" else lpips,
            force_fd=force_fd,
            output=output,
            batch_size=batch_size,
            dtype=dtype.value,
            device=device,
            revision=revision,
            clip_frames=clip_frames,
            clip_stride=clip_stride,
            clip_fps=clip_fps,
            clip_without_cuts=without_cuts,
        )
    print_all([result], output, as_json)
