"""The command `reconstruct`. Only running it imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Column, Table

from ul_tokenizer.cli.help import VIDEOS
from ul_tokenizer.cli.options import (
    AsJson,
    ComputeDtype,
    DecodingSteps,
    Device,
    Dtype,
    Force,
    Fps,
    Media,
    Mode,
    Model,
    Output,
    Pad,
    Revision,
    Seed,
    Tile,
    fit_of,
)
from ul_tokenizer.cli.reporting import number, print_results, print_table

if TYPE_CHECKING:
    from ul_tokenizer.cli.image_codec import ImageReconstruction, ImageTotals
    from ul_tokenizer.cli.models import Models
    from ul_tokenizer.cli.video_codec import VideoReconstruction, VideoTotals
    from ul_tokenizer.media.images import Skipped

Audio = Annotated[
    bool,
    typer.Option("--audio", help="Videos only: copy the sound into the result.", rich_help_panel=VIDEOS),
]


def reconstruct(
    source: Media,
    output: Output,
    model: Model = None,
    revision: Revision = None,
    pad: Pad = True,
    steps: DecodingSteps = None,
    seed: Seed = 0,
    mode: Mode = False,
    fps: Fps = None,
    audio: Audio = False,
    device: Device = None,
    dtype: ComputeDtype = Dtype.float32,
    tile: Tile = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Encode and decode images and videos, and show each original beside its reconstruction.

    The result of photos/a.jpg is OUT/a.jpg.png; that of a video ends in .mp4. Prints PSNR, bits per pixel and seconds.
    The bits are an upper bound, which the model's prior gives. Large inputs are measured in pieces, whose bits are
    added up: at most 512 x 512 pixels of an image, or 16 x 16 x 4 latents of a video.
    """
    from ul_tokenizer.cli import tasks
    from ul_tokenizer.cli.tasks import FileTask, Kind

    of_videos = {"--fps": fps, "--audio": audio}
    plan = tasks.plan_media(source, output, tasks.DECODED_SUFFIXES, force, of_videos)
    from ul_tokenizer.cli.codec import DecodeOptions  # imports torch, after all checks
    from ul_tokenizer.cli.models import ModelOptions, load_models

    models = load_models(plan, ModelOptions(model, revision, device, dtype, tile))
    models.load_priors()
    how = DecodeOptions(seed, steps, mode)
    fit = fit_of(pad)
    images: list[ImageReconstruction] = []
    videos: list[VideoReconstruction] = []

    def work(job: FileTask) -> None:
        if job.kind is Kind.video:
            videos.append(models.videos.reconstruct_file(job, fit, how, fps, audio))
        else:
            images.append(models.images.reconstruct_file(job, fit, how))

    skipped = tasks.run(plan, "reconstructed", work)
    report(models, images, videos, skipped, as_json)


def report(
    models: Models,
    images: Sequence[ImageReconstruction],
    videos: Sequence[VideoReconstruction],
    skipped: Sequence[Skipped],
    as_json: bool,
) -> None:
    """Prints the figures of images and of videos, as JSON or as tables."""
    from ul_tokenizer.cli.image_codec import image_totals
    from ul_tokenizer.cli.video_codec import video_totals

    of_images = image_totals(models.images.model.name, images) if images else None
    of_videos = video_totals(models.videos.model.name, videos) if videos else None
    if as_json:
        totals: dict[str, ImageTotals | VideoTotals | None] = {"images": of_images, "videos": of_videos}
        print_results(
            [row._asdict() for row in images] + [row._asdict() for row in videos],
            [{"file": str(skip.path), "reason": skip.reason} for skip in skipped],
            {kind: figures._asdict() for kind, figures in totals.items() if figures is not None},
        )
        return
    if of_images is not None:
        print_table(_image_table(images, of_images))
    if of_videos is not None:
        print_table(_video_table(videos))


def _image_table(rows: Sequence[ImageReconstruction], totals: ImageTotals) -> Table:
    def cells(psnr: float | None, bits: float | None, seconds: float) -> tuple[str, str, str]:
        return number(psnr, ".2f", "exact"), number(bits, ".3f"), number(seconds, ".2f")

    table = Table("image", "pixels", "PSNR (dB)", "bits/pixel", "seconds")
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        table.add_row(escape(row.file), f"{row.width}×{row.height}", *cells(row.psnr, row.bits_per_pixel, row.seconds))
    table.add_section()
    pixels = f"{totals.pixels:,}"
    table.add_row("mean of PSNR", pixels, *cells(totals.mean_psnr, totals.bits_per_pixel, totals.seconds))
    table.add_row("PSNR of mean MSE", "", number(totals.psnr_of_mean_mse, ".2f", "exact"), "", "")
    return table


def _video_table(rows: Sequence[VideoReconstruction]) -> Table:
    # In 80 columns, the figures take what they need and the name folds into the rest.
    table = Table(Column("video", overflow="fold"))
    for header in ("pixels", "frames", "PSNR\n(dB)", "worst", "flicker/\nsource", "bits/\npixel", "fps"):
        table.add_column(header, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            escape(row.file),
            f"{row.width}×{row.height}",
            str(row.frames),
            f"{row.mean_psnr:.2f}",
            f"{min(row.psnr_per_frame):.2f}",
            f"{row.flicker:.3f}/{row.source_change:.3f}",
            number(row.bits_per_pixel, ".3f"),
            f"{row.frames_per_second:.1f}",
        )
    return table
