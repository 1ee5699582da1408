"""The evaluations, each with one call: reconstructions, generated images, predicted frames."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from diffusers.utils import logging

from ul_tokenizer.evaluation.autoencoders import AnyAutoencoder, LatentChoice, load_any_autoencoder
from ul_tokenizer.evaluation.codecs import Codec
from ul_tokenizer.evaluation.drawing import Drawer, Sampling
from ul_tokenizer.evaluation.generated import FolderImages, PipelineImages
from ul_tokenizer.evaluation.generation import GenerationEvaluation
from ul_tokenizer.evaluation.nets.clips import ClipNet
from ul_tokenizer.evaluation.nets.feature_nets import (
    ClassifierNet,
    FeatureNet,
    MissingFeatureNetError,
    load_feature_net,
)
from ul_tokenizer.evaluation.nets.i3d import load_i3d
from ul_tokenizer.evaluation.nets.perceptual import load_lpips
from ul_tokenizer.evaluation.pairs import PREFIX, FolderSubject
from ul_tokenizer.evaluation.prediction import PredictionSubject
from ul_tokenizer.evaluation.prompts import Prompts
from ul_tokenizer.evaluation.reconstruction import LPIPS, ReconstructionEvaluation
from ul_tokenizer.evaluation.samples import Crops, EvaluationSamples
from ul_tokenizer.evaluation.subjects import AutoencoderSubject, CodecSubject, Subject
from ul_tokenizer.latents.job import SourceOptions, open_samples
from ul_tokenizer.models.devices import pick_device
from ul_tokenizer.pipelines.generation import UnifiedLatentsPipeline
from ul_tokenizer.pipelines.sampling import pipeline_of_prior
from ul_tokenizer.processes import Processes, local_device
from ul_tokenizer.sources.base import CAPTION, Source

if TYPE_CHECKING:
    from typing_extensions import Unpack

_ENDS = 1 << 20  # bytes
NO_PROMPTS = "none"
DEFAULT_NETS = ("efficientnet-lite0",)
Model = str | Codec | AnyAutoencoder


def evaluate_reconstruction(
    data: str | Path | Source,
    models: Sequence[Model],
    *,
    crops: Crops | None = None,
    steps: Sequence[int | None] = (None,),
    latent: LatentChoice = "sample",
    features: Sequence[str | FeatureNet] = DEFAULT_NETS,
    feature_weights: Mapping[str, Path] | None = None,
    references: Mapping[str, Path] | None = None,
    lpips: str | None = "alex",
    mosaic: bool = False,
    force_fd: bool = False,
    output: str | Path | None = None,
    batch_size: int = 32,
    dtype: str | torch.dtype = "float32",
    device: str | torch.device | None = None,
    revision: str | None = None,
    seed: int = 0,
    **source_options: Unpack[SourceOptions],
) -> list[dict[str, Any]]:
    """Measures reconstructions of images or clips by autoencoders and codecs, all on the same pixels.

    Under `accelerate launch` or `torchrun` every process takes its part. The same call continues an interrupted job if
    it has an output folder.

    Args:
        data: a folder of images, of .tar archives, of .parquet files or of videos; one such file; a hub data set; or
            an object with the protocol of `ul_tokenizer.sources.base`. Duplicates count unless `keep_duplicates` says
            otherwise.
        models: autoencoders, ours or any of diffusers', by bundled name, folder or hub id, or loaded; codecs, such as
            "jpeg:30", "webp:40" or "avif:35"; and "folder:PATH" for reconstructions of the same images that somebody
            else made.
        crops: how pixels are taken from the data; None takes whole images.
        steps: numbers of decoding steps of our autoencoders, each measured by itself; None is the config's.
        latent: whether autoencoders decode a sample of their latent's distribution or its mode.
        features: networks for distances, or their names; see `load_feature_net`.
        feature_weights: files with the weights of networks, by the network's name.
        references: files with the originals' features, by the network's name; they are made if they don't exist.
        lpips: network of the perceptual distance, "alex" or "vgg"; None doesn't measure it.
        mosaic: whether codecs compress a whole batch as one picture; see `CodecSubject`.
        force_fd: whether to compute Fréchet distances of fewer images than features.
        output: folder for results, one JSON file each; what is there already is not measured again.
        batch_size: images per batch.
        dtype: of the autoencoders' weights.
        device: where to compute; None for the GPU if there is one.
        revision: branch, tag or commit of models on the hub.
        seed: seed of all noise. The noise of sample k depends on the seed and k only.
        **source_options: see `SourceOptions`.

    Returns:
        one result for each codec, and for each autoencoder and number of steps, as in its JSON file. Networks that are
        not installed are named under "missing"; everything else is measured.

    Raises:
        ValueError: an argument is not legal, or a model doesn't take the data.
        OSError: the disk is full or can't be written.
    """
    parsed = [parse_model(model) for model in models]  # before anything takes time
    processes, place = Processes.of(), pick_device(device or local_device())
    samples = open_evaluation_samples(data, crops or Crops(), source_options)
    found = load_networks(features, feature_weights, references, lpips, place, samples.has_clips, processes)
    evaluation = ReconstructionEvaluation(
        samples,
        found.nets,
        found.lpips,
        output=None if output is None else Path(output),
        references=found.references,
        batch_size=batch_size,
        force_fd=force_fd,
        missing=found.missing,
        processes=processes,
    )
    settings = steps, latent, batch_size if mosaic else None, seed, revision, torch_dtype(dtype), place
    return [
        evaluation.run(subject)
        for model in parsed
        for subject in subjects_of_folder(model, samples, source_options) or subjects_of(model, *settings)
    ]


def evaluate_generation(
    real: str | Path | Source,
    model: str | None = None,
    *,
    images: str | Path | Source | None = None,
    train: str | Path | Source | None = None,
    samplings: Sequence[Sampling] | None = None,
    prior: bool = False,
    prompts: str | Path | Source | None = None,
    caption_column: str = CAPTION,
    crops: Crops | None = None,
    features: Sequence[str | FeatureNet] = DEFAULT_NETS,
    feature_weights: Mapping[str, Path] | None = None,
    references: Mapping[str, Path] | None = None,
    force_fd: bool = False,
    output: str | Path | None = None,
    batch_size: int = 100,
    dtype: str | torch.dtype = "float32",
    device: str | torch.device | None = None,
    revision: str | None = None,
    **source_options: Unpack[SourceOptions],
) -> list[dict[str, Any]]:
    """Measures generated images against real ones: those of a pipeline, or those that somebody else's generator wrote.

    Processes, interruptions and results are as in `evaluate_reconstruction`.

    Args:
        real: the real images, as `data` in `evaluate_reconstruction`.
        model: a pipeline by bundled name, folder or hub id; with `prior` also an autoencoder that has one.
        images: generated images in place of a model, as `data` in `evaluate_reconstruction`.
        train: the real training images, for the floor and for what is memorised.
        samplings: ways of drawing, each measured by itself; None for the defaults of `Sampling`, and with `images`.
        prior: whether the autoencoder's stage-1 prior draws in place of the base model.
        prompts: the data set whose captions are the prompts of a pipeline with a text encoder; None for `real`, "none"
            for no text. If the pipeline has classes, those of the captions' samples are requested with them.
        caption_column: column of the captions.
        crops: how pixels are taken from real images, as many as it says, and from `images`; None takes whole images.
        features: networks for distances, or their names; see `load_feature_net`. A classifier also gives the accuracy.
        feature_weights: files with the weights of networks, by the network's name.
        references: files with the real images' features, by the network's name; they are made if they don't exist.
        force_fd: whether to compute Fréchet distances of fewer images than features.
        output: folder for results, one JSON file each; what is there already is not measured again.
        batch_size: images per batch.
        dtype: of the pipeline's weights.
        device: where to compute; None for the GPU if there is one.
        revision: branch, tag or commit of a model on the hub.
        **source_options: see `SourceOptions`.

    Returns:
        one result for each way of drawing, as in its JSON file.

    Raises:
        ValueError: an argument is not legal, or the model and the data don't fit.
        MissingFeatureNetError: no network can be loaded, so nothing can be measured.
        OSError: the disk is full or can't be written.
    """
    _check_who_draws(model, images, samplings, prior, prompts)
    processes, place, crops = Processes.of(), pick_device(device or local_device()), crops or Crops()
    samples = open_evaluation_samples(real, crops, source_options)
    found = load_networks(features, feature_weights, references, None, place, False, processes)
    if not found.nets:
        raise MissingFeatureNetError([*found.missing, "features must name at least one network, got none."][0])
    whole = replace(crops, num_samples=None)
    evaluation = GenerationEvaluation(
        samples,
        found.nets,
        None if train is None else open_evaluation_samples(train, whole, source_options),
        output=None if output is None else Path(output),
        references=found.references,
        batch_size=batch_size,
        force_fd=force_fd,
        missing=found.missing,
        processes=processes,
        device=place,
    )
    if model is None:
        return [evaluation.run(FolderImages(open_evaluation_samples(images or "", whole, source_options)))]
    pipeline = load_generator(model, revision, prior, torch_dtype(dtype), place)
    drawers = _drawers(pipeline, samplings, samples, found.nets, prompts, caption_column, source_options)
    return [evaluation.run(PipelineImages(drawer, model, "prior" if prior else "base")) for drawer in drawers]


def _drawers(
    pipeline: UnifiedLatentsPipeline,
    samplings: Sequence[Sampling] | None,
    real: EvaluationSamples,
    nets: Sequence[FeatureNet],
    prompts: str | Path | Source | None,
    column: str,
    source_options: SourceOptions,
) -> list[Drawer]:
    ways = samplings or (Sampling(),)
    texts = _prompts_for(pipeline, ways, prompts, real, column, source_options)
    size, num_classes = _size_and_classes(real, nets)
    return [Drawer(pipeline, how, size, num_classes, None if how.unconditional else texts) for how in ways]


def _prompts_for(
    pipeline: UnifiedLatentsPipeline,
    ways: Sequence[Sampling],
    prompts: str | Path | Source | None,
    real: EvaluationSamples,
    column: str,
    source_options: SourceOptions,
) -> Prompts | None:
    """The prompts of a pipeline; None for one without text, and where none are wanted.

    Raises:
        ValueError: prompts for a pipeline without a text encoder or for images without conditions, or no captions.
    """
    are_given = prompts is not None and prompts != NO_PROMPTS
    if pipeline.text_encoder is None or prompts == NO_PROMPTS or all(how.unconditional for how in ways):
        if are_given:
            why = "a pipeline without a text encoder" if pipeline.text_encoder is None else "images without conditions"
            raise ValueError(f"prompts must be left out for {why}, got {prompts}.")
        return None
    samples = open_evaluation_samples(prompts, Crops(), source_options) if prompts is not None else real
    try:
        return Prompts.of(samples.source, samples.name, column, pipeline.transformer.config.num_class_embeds)
    except ValueError as error:
        if are_given:
            raise
        advice = 'name a data set with captions as prompts, or "none"'
        raise ValueError(f"{str(error).removesuffix('.')}; {advice}.") from None


def _check_who_draws(model: Any, images: Any, samplings: Any, prior: bool, prompts: Any) -> None:
    if (model is None) == (images is None):
        raise ValueError(f"model or images must be given, got {'neither' if model is None else 'both'}.")
    if images is not None and (samplings is not None or prior or prompts is not None):
        raise ValueError("samplings, prior and prompts can't be used with images, which exist already.")
    if prior and prompts is not None:
        raise ValueError("prompts can't be used with a stage-1 prior, which takes no text.")


def _size_and_classes(samples: EvaluationSamples, nets: Sequence[FeatureNet]) -> tuple[tuple[int, int], int]:
    """Height and width of the images to draw, and how many classes the data or a classifier have; 0 for none."""
    height, width = samples.shape[-2:]
    of_classifier = next((len(net.class_names) for net in nets if isinstance(net, ClassifierNet)), 0)
    return (height, width), len(samples.source.class_names) or of_classifier


def evaluate_prediction(
    data: str | Path | Source,
    model: str,
    *,
    given_frames: int,
    crops: Crops | None = None,
    sampling: Sampling | None = None,
    features: Sequence[str | FeatureNet] = DEFAULT_NETS,
    feature_weights: Mapping[str, Path] | None = None,
    references: Mapping[str, Path] | None = None,
    lpips: str | None = "alex",
    force_fd: bool = False,
    output: str | Path | None = None,
    batch_size: int = 8,
    dtype: str | torch.dtype = "float32",
    device: str | torch.device | None = None,
    revision: str | None = None,
    **source_options: Unpack[SourceOptions],
) -> dict[str, Any]:
    """Measures how a pipeline continues clips: it sees the first frames, and what it predicts is compared.

    Args:
        data: videos, cut into clips of `clip_frames` frames.
        model: a pipeline by bundled name, folder or hub id.
        given_frames: how many frames of each clip the pipeline sees.
        crops: how pixels are taken from the clips; None takes whole frames.
        sampling: solver, steps and seed; None is the default of `Sampling`.
        features: as in `evaluate_reconstruction`; distances are between whole clips.
        feature_weights: likewise.
        references: likewise.
        lpips: likewise, of the predicted frames.
        force_fd: likewise.
        output: likewise.
        batch_size: clips per batch.
        dtype: of the pipeline's weights.
        device: where to compute; None for the GPU if there is one.
        revision: branch, tag or commit of a model on the hub.
        **source_options: see `SourceOptions`; `clip_frames` is required.

    Returns:
        the result, as in its JSON file. PSNR and SSIM are those of the predicted frames.

    Raises:
        ValueError: an argument is not legal, or the pipeline doesn't take the clips.
        OSError: the disk is full or can't be written.
    """
    if (frames := source_options.get("clip_frames")) is None or not 1 <= given_frames < frames:
        raise ValueError(f"given_frames must be from 1 to below clip_frames, got {given_frames} and {frames}.")
    how, processes, place = sampling or Sampling(), Processes.of(), pick_device(device or local_device())
    samples = open_evaluation_samples(data, crops or Crops(), source_options)
    found = load_networks(features, feature_weights, references, lpips, place, samples.has_clips, processes)
    pipeline = load_generator(model, revision, False, torch_dtype(dtype), place)
    subject = PredictionSubject(
        model,
        pipeline,
        given_frames,
        how.solver,
        how.num_inference_steps,
        how.decoder_num_inference_steps,
        how.seed,
    )
    evaluation = ReconstructionEvaluation(
        samples,
        found.nets,
        found.lpips,
        first_frame=given_frames,
        output=None if output is None else Path(output),
        references=found.references,
        batch_size=batch_size,
        force_fd=force_fd,
        missing=found.missing,
        processes=processes,
    )
    return evaluation.run(subject)


# ---------------------------------------------------------------- what they are made of


def open_evaluation_samples(
    data: str | Path | Source, crops: Crops, source_options: SourceOptions
) -> EvaluationSamples:
    """The samples of a data set that is given by name, or of a source; errors as in `evaluate_reconstruction`."""
    is_name = isinstance(data, (str, Path))
    options: SourceOptions = {"keep_duplicates": True, **source_options} if is_name else source_options
    if not is_name:
        return EvaluationSamples(open_samples(data, options), crops, type(data).__name__)
    return EvaluationSamples(open_samples(data, options), crops, _named(data), _archives(Path(str(data)).expanduser()))


def _archives(path: Path) -> str:
    """What tells the .tar and .parquet files at a path from others that hold the same ids."""
    files = [path] if path.is_file() else sorted([*path.glob("*"), *path.glob("data/*")])
    return "".join(f"{f.name}\t{_fingerprint(f)}\n" for f in files if f.suffix.lower() in (".tar", ".parquet"))


def _fingerprint(path: Path) -> str:
    """Size of a file and hash of its first and last MiB, since archives are too large to be read for that."""
    with path.open("rb") as file:
        digest = hashlib.sha256(file.read(_ENDS))
        size = file.seek(0, 2)
        file.seek(max(0, size - _ENDS))
        digest.update(file.read())
    return f"{size} {digest.hexdigest()}"


def _named(data: object) -> str:
    """What results call a data set: its path or id, without the name of the user's home folder."""
    home = f"{Path.home()}/"
    return f"~/{str(data).removeprefix(home)}" if str(data).startswith(home) else str(data)


def torch_dtype(name: str | torch.dtype) -> torch.dtype:
    """The dtype with a name such as "float32"."""
    dtype: torch.dtype = getattr(torch, str(name).removeprefix("torch."))
    return dtype


def parse_model(model: Model) -> Model:
    """The codec that a text names, or what was given.

    Raises:
        ValueError: a codec that there isn't, one with a quality that it doesn't have, or one that Pillow can't write.
    """
    if not isinstance(model, str) or model.startswith(PREFIX):
        return model
    codec = Codec.parse(model)
    if codec is None and ":" in model and not Path(model).exists():
        raise ValueError(
            f"model must be an autoencoder, {PREFIX}PATH, or a codec at a quality such as jpeg:30, webp:40 or avif:35, "
            f"got {model!r}."
        )
    return codec or model


def subjects_of_folder(model: Model, originals: EvaluationSamples, source_options: SourceOptions) -> list[Subject]:
    """The folder that "folder:PATH" names, as reconstructions of the originals; empty for anything else.

    Raises:
        ValueError: the folder's images don't pair with the originals.
    """
    if not (isinstance(model, str) and model.startswith(PREFIX)):
        return []
    made = open_evaluation_samples(model.removeprefix(PREFIX), originals.crops, source_options)
    return [FolderSubject(made, originals)]


def subjects_of(
    model: Model,
    steps: Sequence[int | None],
    latent: LatentChoice,
    mosaic: int | None,
    seed: int,
    revision: str | None,
    dtype: torch.dtype,
    device: torch.device,
) -> list[Subject]:
    """What is measured of a model: a codec once, one of our autoencoders for each number of steps, others once."""
    if isinstance(model, Codec):
        return [CodecSubject(model, mosaic)]
    if isinstance(model, str):
        model = load_any_autoencoder(model, revision, dtype=dtype, device=device, latent=latent)
    return [AutoencoderSubject(model, number, seed) for number in (steps if model.is_ours else (None,))]


class Networks(NamedTuple):
    """Networks that measure, and what there is of them."""

    nets: list[FeatureNet]
    lpips: LPIPS | None
    missing: list[str]  # a sentence for each network that isn't installed
    references: dict[str, Path]  # files with features of the real images, by the name of one of `nets`


def load_networks(
    features: Sequence[str | FeatureNet],
    weights: Mapping[str, Path] | None,
    references: Mapping[str, Path] | None,
    lpips: str | None,
    device: torch.device,
    of_clips: bool,
    processes: Processes,
) -> Networks:
    """Loads feature networks and LPIPS; arguments as in `evaluate_reconstruction`.

    Raises:
        ValueError: an unknown name, a file for a network that isn't among the features, or a network of clips for
            images.
    """
    weights, references = weights or {}, references or {}
    asked = [feature if isinstance(feature, str) else feature.name for feature in features]
    for place, files in (("feature_weights", weights), ("references", references)):
        if others := sorted(set(files) - set(asked)):
            raise ValueError(f"{place} must be of networks among the features, {', '.join(asked)}, got {others[0]!r}.")
    found = Networks([], None, [], {})
    for name, feature in zip(asked, features, strict=True):
        try:
            with processes.main_first():  # it may train a classifier, or download weights
                net = _loaded_net(feature, weights, device) if isinstance(feature, str) else feature
        except MissingFeatureNetError as error:
            found.missing.append(str(error))
            continue
        takes_clips = bool(getattr(net, "takes_clips", False))
        if takes_clips and not of_clips:
            raise ValueError(f"features must be networks for images, got {net.name}, which takes clips.")
        found.nets.append(ClipNet(net) if of_clips and not takes_clips else net)
        if name in references:
            found.references[found.nets[-1].name] = references[name]
    if lpips is None:
        return found
    try:
        with processes.main_first():
            return found._replace(lpips=load_lpips(lpips, device))
    except MissingFeatureNetError as error:
        found.missing.append(str(error))
        return found


def _loaded_net(name: str, weights: Mapping[str, Path], device: torch.device) -> FeatureNet:
    if name != "i3d":
        return load_feature_net(name, weights.get(name), device)
    if name not in weights:
        raise MissingFeatureNetError(
            "FVD needs the weights of an I3D network; pass a TorchScript or safetensors file with --feature-weights "
            "i3d=FILE. Other networks measure a distance over clips without it."
        )
    return load_i3d(weights[name], device)


def load_generator(
    name: str, revision: str | None, prior: bool, dtype: torch.dtype, device: torch.device
) -> UnifiedLatentsPipeline:
    """Loads a pipeline, or makes one of an autoencoder and its stage-1 prior.

    Raises:
        ValueError: no such model, or one without a prior.
    """
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if not prior:
        pipeline: UnifiedLatentsPipeline = UnifiedLatentsPipeline.from_pretrained(name, revision=revision, dtype=dtype)
        return pipeline.to(device)
    return pipeline_of_prior(name, revision, dtype).to(device)
