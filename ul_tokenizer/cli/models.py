"""Which model works on which kind of file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ul_tokenizer.cli.codec import LoadedModel, load_model, pick_device
from ul_tokenizer.cli.image_codec import ImageCodec
from ul_tokenizer.cli.options import DEFAULT_IMAGE_MODEL, DEFAULT_VIDEO_MODEL, Dtype
from ul_tokenizer.cli.reporting import UsageError
from ul_tokenizer.cli.tasks import Kind, Plan
from ul_tokenizer.cli.video_codec import VideoCodec

DEFAULT_MODELS = {Kind.image: DEFAULT_IMAGE_MODEL, Kind.video: DEFAULT_VIDEO_MODEL}


@dataclass(frozen=True)
class ModelOptions:
    """What the command line says about the model; None stands for a default."""

    name: str | None
    revision: str | None
    device: str | None
    dtype: Dtype
    tile: int | None


@dataclass(frozen=True)
class Models:
    """The loaded model for each kind of file in a plan."""

    by_kind: dict[Kind, LoadedModel]
    shows_frames: bool

    @property
    def images(self) -> ImageCodec:
        """The model of images, for a plan with images."""
        return ImageCodec(self.by_kind[Kind.image])

    @property
    def videos(self) -> VideoCodec:
        """The model of videos, for a plan with videos."""
        return VideoCodec(self.by_kind[Kind.video], self.shows_frames)

    def load_priors(self) -> None:
        """Loads the models' priors, which measure bits; a damaged prior is an error before any work."""
        for model in self.by_kind.values():
            _ = model.prior


def load_models(plan: Plan, options: ModelOptions) -> Models:
    """The model that the options name, or for each kind of file its default.

    Raises:
        UsageError: a revision without a model.
        ValueError: a model of images for a plan with videos, or a model that can't be loaded.
    """
    if options.name is None and options.revision is not None:
        raise UsageError(f"--revision needs --model, got {options.revision} without it.")
    by_kind = dict(_loaded(plan, options))
    video_model = by_kind.get(Kind.video)
    if video_model is not None and video_model.temporal_ratio == 1:
        raise ValueError(_not_for_videos(video_model.name, plan))
    return Models(by_kind, plan.single)


def _loaded(plan: Plan, options: ModelOptions) -> Iterator[tuple[Kind, LoadedModel]]:
    device = pick_device(options.device)
    names = {kind: options.name or DEFAULT_MODELS[kind] for kind in sorted(plan.kinds)}
    models = {
        name: load_model(name, options.revision, device, options.dtype.value, options.tile)
        for name in dict.fromkeys(names.values())
    }
    yield from ((kind, models[name]) for kind, name in names.items())


def _not_for_videos(name: str, plan: Plan) -> str:
    videos = [job.source for job in plan.jobs if job.kind is Kind.video]
    more = f" and {len(videos) - 1} more" if len(videos) > 1 else ""
    return (
        f"--model must be a model of videos for {videos[0]}{more}, got {name}, which is one of images; without "
        f"--model, videos take {DEFAULT_VIDEO_MODEL}."
    )
