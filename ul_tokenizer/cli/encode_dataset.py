"""The command `encode-dataset`: a whole data set to latents. Only the command imports torch."""

from __future__ import annotations

import enum
import os
import sys
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ul_tokenizer import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from torch import Tensor

    from ul_tokenizer.latents.encode import Summary
    from ul_tokenizer.media.transforms import Preprocessing
    from ul_tokenizer.models.autoencoder import UnifiedLatentsAutoencoder
    from ul_tokenizer.sources.base import Source as SampleSource


class CropChoice(str, enum.Enum):
    """What becomes of an image's size."""

    CENTER = "center"
    MULTIPLE = "multiple"
    NONE = "none"


class Stored(str, enum.Enum):
    """What latents are stored as."""

    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"
    int8 = "int8"


class Compute(str, enum.Enum):
    """What the encoder computes in."""

    float32 = "float32"
    bfloat16 = "bfloat16"


Source = Annotated[
    str,
    typer.Argument(
        metavar="SRC",
        help="A folder of images, of .tar archives, of .parquet files or of videos; one of these; or a hub data set.",
    ),
]
Output = Annotated[Path, typer.Option("--output", "-o", help="Folder of the latent data set; the same one goes on.")]


def encode_dataset(
    source: Source,
    output: Output,
    model: Annotated[str, typer.Option(help="Autoencoder: bundled name, folder or hub id.")] = "ul-photo-f8",
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a model on the hub.")] = None,
    resolution: Annotated[
        int | None, typer.Option(min=1, help="Scale the shorter side to so many pixels.", show_default="as it is")
    ] = None,
    crop: Annotated[
        CropChoice,
        typer.Option(
            help="center cuts a square, multiple only what the compression ratio doesn't divide, none refuses such."
        ),
    ] = CropChoice.CENTER,
    batch_size: Annotated[int, typer.Option("--batch-size", "--batch_size", min=1, help="Images at a time.")] = 32,
    dtype: Annotated[Stored, typer.Option(help="What latents are stored as.")] = Stored.float16,
    compute: Annotated[Compute, typer.Option(help="What the encoder computes in.")] = Compute.float32,
    workers: Annotated[
        int | None,
        typer.Option(min=0, help="Processes that decode; 0: threads.", show_default="0 on a CPU, or the cores"),
    ] = None,
    flip: Annotated[bool, typer.Option("--flip", help="Store each image mirrored, too.")] = False,
    clip_frames: Annotated[int | None, typer.Option(min=1, help="Take videos, in clips of so many frames.")] = None,
    clip_stride: Annotated[
        int | None, typer.Option(min=1, help="Frames from clip to clip.", show_default="those of a clip")
    ] = None,
    clip_fps: Annotated[float | None, typer.Option(help="Frame rate of clips.", show_default="each file's own")] = None,
    without_cuts: Annotated[bool, typer.Option("--without-cuts", help="Skip clips in which a scene begins.")] = False,
    keep_duplicates: Annotated[
        bool, typer.Option("--keep-duplicates", help="Keep files with the content of another one.")
    ] = False,
    image_column: Annotated[str, typer.Option(help="Of tables.")] = "image",
    split: Annotated[str, typer.Option(help="Of a hub data set.")] = "train",
    config: Annotated[str | None, typer.Option(help="Of a hub data set.")] = None,
    source_revision: Annotated[str | None, typer.Option(help="Of a hub data set.")] = None,
    max_skip_fraction: Annotated[
        float,
        typer.Option("--max-skip-fraction", "--max_skip_fraction", min=0, max=1, help="Exit 1 if more is skipped."),
    ] = 0.1,
    rank: Annotated[
        int | None, typer.Option(min=0, help="This job's part, of --world-size: for arrays of jobs.")
    ] = None,
    world_size: Annotated[int | None, typer.Option(min=1, help="How many jobs share the data set.")] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1, …", show_default="cuda if there is one, or cpu")
    ] = None,
) -> None:
    """Encode a whole data set to latents, once and for all trainings.

    The same command goes on where it was stopped. Under `accelerate launch` or `torchrun` (with
    examples/encode_dataset.py) every process takes its part. What can't be read is listed with its reason in
    skipped.jsonl. Exit status: 0 if all went well or little was skipped, 1 otherwise.
    """
    from ul_tokenizer.latents.encode import EncodingJob, write_skipped
    from ul_tokenizer.latents.writer import LatentWriter
    from ul_tokenizer.media.transforms import Preprocessing
    from ul_tokenizer.sources.open import open_source

    part = Part.of(rank, world_size)
    autoencoder, where, header = load_encoder(model, revision, device)
    preprocessing = Preprocessing(resolution, crop.value, autoencoder.spatial_compression_ratio)
    samples = open_source(
        source,
        image_column=image_column,
        split=split,
        config=config,
        revision=source_revision,
        keep_duplicates=keep_duplicates,
        clip_frames=clip_frames,
        clip_stride=clip_stride,
        clip_fps=clip_fps,
        clip_without_cuts=without_cuts,
    )
    header |= describe_job(preprocessing, samples, dtype.value, flip)
    part.wait()  # no process writes before all know that the arguments are right
    writer = LatentWriter(output, header, part.rank, part.world_size)
    job = EncodingJob(
        samples,
        preprocessing,
        make_encode(autoencoder, where, compute.value),
        batch_size,
        pick_workers(where) if workers is None else workers,
        flip,
        part.rank,
        part.world_size,
    )
    with progress(len(range(part.rank, len(samples), part.world_size)), part.rank == 0) as advance, writer:
        summary = job.run(writer, advance)
    write_skipped(output / f"skipped-r{part.rank:03d}.jsonl", summary.skipped)
    total = part.total(summary)
    if part.rank == 0:
        gather_skipped(output)
        report(total, output)
    part.wait()
    check(total, max_skip_fraction)


# ---------------------------------------------------------------- processes


class Part:
    """Which part of the samples this process takes."""

    def __init__(self, rank: int, world_size: int, is_group: bool) -> None:
        self.rank, self.world_size, self.is_group = rank, world_size, is_group

    @classmethod
    def of(cls, rank: int | None, world_size: int | None) -> Part:
        """As the options say, or as `accelerate launch` or `torchrun` started it.

        Raises:
            ValueError: one option without the other, or a rank beyond the world.
        """
        if (rank is None) != (world_size is None):
            raise ValueError("--rank and --world-size must be given together, got one of them.")
        if rank is not None and world_size is not None:
            if rank >= world_size:
                raise ValueError(f"--rank must be below --world-size, got {rank} and {world_size}.")
            return cls(rank, world_size, False)  # jobs of an array don't know when the others run
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return cls(0, 1, False)
        import torch
        from accelerate import PartialState

        state = PartialState(cpu=not torch.accelerator.is_available())
        return cls(state.process_index, state.num_processes, True)

    def wait(self) -> None:
        """For the other processes of the group."""
        if self.is_group:
            from accelerate import PartialState

            PartialState().wait_for_everyone()

    def total(self, summary: Summary) -> Summary:
        """Of all processes of the group, each of which is told."""
        if not self.is_group:
            return summary
        from accelerate.utils import gather_object

        from ul_tokenizer.latents.encode import Summary

        parts: list[Summary] = gather_object([summary])
        skipped = [skip for part in parts for skip in part.skipped]
        encoded, found = sum(part.encoded for part in parts), sum(part.found for part in parts)
        return Summary(encoded, found, skipped, max(part.seconds for part in parts))


# ---------------------------------------------------------------- the model


def load_encoder(
    name: str, revision: str | None, device: str | None
) -> tuple[UnifiedLatentsAutoencoder, torch.device, dict[str, Any]]:
    """An autoencoder on its device, and what a latent data set's header says of it."""
    from ul_tokenizer.cli.codec import pick_device
    from ul_tokenizer.models.repository import load_autoencoder, locate

    if device is None and "LOCAL_RANK" in os.environ:
        import torch

        device = f"cuda:{os.environ['LOCAL_RANK']}" if torch.cuda.is_available() else None
    where = pick_device(device)
    autoencoder = load_autoencoder(name, revision=revision).to(where).eval()
    files = locate(name, revision=autoencoder.commit_hash or revision)
    config = autoencoder.config
    header = {
        "autoencoder": name if files.origin != "folder" else Path(name).name,
        "revision": files.revision,
        "weights_sha256": files.sha256(),
        "latent_channels": config.latent_channels,
        "latent_logsnr": config.latent_logsnr,
        "spatial_compression_ratio": autoencoder.spatial_compression_ratio,
        "temporal_compression_ratio": autoencoder.temporal_compression_ratio,
        "library_version": __version__,
    }
    return autoencoder, where, header


def describe_job(preprocessing: Preprocessing, source: SampleSource, dtype: str, flip: bool) -> dict[str, Any]:
    """What a latent data set's header says of the job."""
    from ul_tokenizer.sources.video import VideoSource

    return {
        "dtype": dtype,
        "class_names": list(source.class_names),
        "preprocessing": {"resolution": preprocessing.resolution, "crop": preprocessing.crop, "flip_views": flip},
        **({"clips": source.settings} if isinstance(source, VideoSource) else {}),
    }


def pick_workers(device: torch.device) -> int:
    """Processes that decode beside a GPU: the cores that this process may use, less one and at most 16."""
    if device.type == "cpu":
        return 0  # they would take the encoder's cores
    cores = (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(0, min(16, cores - 1))


def make_encode(
    autoencoder: UnifiedLatentsAutoencoder, device: torch.device, compute: str
) -> Callable[[Tensor], Tensor]:
    """Pixels (B, 3, [T,] H, W) in [−1, 1] → z_clean."""
    import torch

    autoencoder.to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def encode(pixels: Tensor) -> Tensor:
        x = pixels.to(device, non_blocking=True)
        if x.ndim == 4:  # of clips, the encoder arranges frames itself
            x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=compute == "bfloat16"):
            latent: Tensor = autoencoder.encode(x).latent
        return latent

    return encode


# ---------------------------------------------------------------- what is told


@contextmanager
def progress(total: int, is_shown: bool) -> Iterator[Callable[[int], None]]:
    """A bar with rate and time left, on terminals."""
    console = Console(stderr=True)
    columns = (
        TextColumn("encoding"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not (is_shown and sys.stderr.isatty())) as bar:
        task = bar.add_task("encoding", total=total, rate="")

        def advance(count: int) -> None:
            speed = bar.tasks[0].speed
            bar.update(task, advance=count, rate=f"{speed:.0f} images/s" if speed else "")

        yield advance


def gather_skipped(output: Path) -> None:
    """skipped.jsonl of all processes' lists."""
    from ul_tokenizer.files import write_whole

    parts = sorted(output.glob("skipped-r*.jsonl"))
    write_whole(output / "skipped.jsonl", "".join(part.read_text(encoding="utf-8") for part in parts))


def report(summary: Summary, output: Path) -> None:
    """Prints what was done."""
    skipped = len(summary.skipped)
    for skip in summary.skipped[:5]:
        print(f"skipped {skip.id}: {skip.reason}", file=sys.stderr)
    if skipped > 5:
        print(f"… and {skipped - 5} more, see {output / 'skipped.jsonl'}", file=sys.stderr)
    found = f", {summary.found} were there already" if summary.found else ""
    rate = f"{summary.seconds:.1f} s, {summary.images_per_second:.1f} images/s"
    print(f"encoded {summary.encoded} images in {rate}{found}, {skipped} skipped: {output}", file=sys.stderr)


def check(summary: Summary, max_skip_fraction: float) -> None:
    """Refuses a result of which too much is missing.

    Raises:
        ValueError: nothing could be encoded, or too much was skipped.
    """
    skipped, total = len(summary.skipped), len(summary.skipped) + summary.encoded + summary.found
    if total == skipped:
        raise ValueError(f"SRC must hold images that can be encoded, got none among {total}.")
    if skipped > max_skip_fraction * total:
        limit = f"--max-skip-fraction {max_skip_fraction:g}"
        raise ValueError(f"{skipped} of {total} samples were skipped, more than {limit}.")
