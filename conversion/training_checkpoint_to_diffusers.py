"""Makes a loadable repository of a training checkpoint, or of a sharded state dict of its networks.

    python conversion/training_checkpoint_to_diffusers.py runs/my-model/checkpoint-5000 -o my-model [--weights raw]
    python conversion/training_checkpoint_to_diffusers.py runs/base/checkpoint-5000 -o my-base --autoencoder my-model
    python conversion/training_checkpoint_to_diffusers.py runs/base/checkpoint-5000 -o my-base --ema_std 0.12
    python conversion/training_checkpoint_to_diffusers.py weights/ -o my-model --like ul-photo-f8

A checkpoint of stage 1 becomes an autoencoder with its prior. A checkpoint of stage 2 becomes a pipeline; its
autoencoder is the one in the run's config.yaml, unless --autoencoder names another, and so is its text encoder, if it
has one that was not trained. Averaged weights are preferred:
the first of --ema_decay, or with --ema_std an average of any length, from a run that kept such averages.

Any other source must contain the state dict of the training's module (`encoder.…`, `decoder.…`, `prior.…`, or
`transformer.…`), and --like must name a model of the same architecture. Such a source is a set of safetensors files
with or without an index, as accelerate's `save_model` writes them, or a folder of torch.distributed.checkpoint, as FSDP
writes it. Reading the latter unpickles its `.metadata`, which can run code, so it needs --trust_pickle.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from diffusers import ModelMixin
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict_loader import load as load_distributed

from ul_tokenizer.models.autoencoder import UnifiedLatentsAutoencoder
from ul_tokenizer.models.repository import AUTOENCODER, PRIOR, MissingPriorError, load_autoencoder, load_prior
from ul_tokenizer.models.transformer import UnifiedLatentsTransformer
from ul_tokenizer.pipelines.generation import UnifiedLatentsPipeline
from ul_tokenizer.schedulers.log_snr import LogSNRScheduler
from ul_tokenizer.training.engine.posthoc import average_of
from ul_tokenizer.training.stage2_arguments import Stage2Arguments
from ul_tokenizer.training.stage2_text import open_text_encoder
from ul_tokenizer.training.text import TextEncoder
from ul_tokenizer.training.trained_text import TrainedTextEncoder

RECORDS = ("config.yaml", "metrics.jsonl", "class_names.json")
LOGSNR_MIN = -10.0  # for base models whose run has no config.yaml


def convert(
    source: Path,
    output: Path,
    *,
    weights: str = "auto",
    ema_std: float | None = None,
    autoencoder: str | None = None,
    like: str | None = None,
    trust_pickle: bool = False,
) -> None:
    """Writes the repository into a new folder.

    Args:
        source: the folder of a checkpoint or of a state dict.
        output: a new folder.
        weights: "ema", "raw", "auto" for the averages if there are any, or the name of an average, such as
            "ema_0.9999".
        ema_std: relative standard deviation of an average that is made of those which the run kept with --ema_std.
        autoencoder: the autoencoder of a base model (bundled name, folder or hub id); None for the one in the run's
            config.yaml.
        like: a model (bundled name, folder or hub id) with the architecture of a bare state dict.
        trust_pickle: whether to unpickle a torch.distributed.checkpoint.

    Raises:
        ValueError: the source is no checkpoint, its weights don't fit, or the output exists.
    """
    if output.exists():
        raise ValueError(f"--output must be a new folder, got {output}, which exists.")
    if (source / "autoencoder").is_dir():
        _save_stage1(
            _model(UnifiedLatentsAutoencoder, source, "autoencoder", weights, ema_std),
            _model(UnifiedLatentsTransformer, source, "prior", weights, ema_std),
            output,
        )
    elif (source / "transformer").is_dir():
        transformer = _model(UnifiedLatentsTransformer, source, "transformer", weights, ema_std)
        config = _run_config(source)
        _save_stage2(transformer, config, autoencoder, output, _text(source, config, weights, ema_std))
    else:
        _convert_state_dict(source, output, like, autoencoder, trust_pickle)
    for record in RECORDS:  # the model card is made from these
        if (source.parent / record).is_file() and (source / "trainer_state.json").is_file():
            shutil.copyfile(source.parent / record, output / record)


def _model(cls: type[Any], checkpoint: Path, name: str, weights: str, ema_std: float | None) -> Any:
    if ema_std is None:
        return cls.from_pretrained(_chosen(checkpoint, name, weights))
    model = cls.from_pretrained(checkpoint / name)
    model.load_state_dict(average_of(checkpoint.resolve(), name, ema_std))
    return model


def _text(checkpoint: Path, config: dict[str, object], weights: str, ema_std: float | None) -> TextEncoder | None:
    """The text encoder of a checkpoint of stage 2, with its tokenizer; None for a model without text."""
    if config.get("text_encoder") is None and config.get("text_encoder_config") is None:
        return None
    values: dict[str, Any] = {**config, "resume_from_checkpoint": str(checkpoint)}
    text = open_text_encoder(Stage2Arguments(**values), lambda: [])
    name = "text_encoder"
    if text is None or not (checkpoint / name).is_dir():
        return text
    average = None if ema_std is None else average_of(checkpoint.resolve(), name, ema_std)
    folder = checkpoint / name if ema_std is not None else _chosen(checkpoint, name, weights)
    return text.with_model(TrainedTextEncoder.read(folder, average).encoder)


def _chosen(checkpoint: Path, name: str, weights: str) -> Path:
    averaged = checkpoint / f"{name}_{weights if weights.startswith('ema') else 'ema'}"
    if weights.startswith("ema") and not averaged.is_dir():
        raise ValueError(f"{checkpoint} has no averaged weights {averaged.name}; use --weights raw.")
    return averaged if averaged.is_dir() and weights != "raw" else checkpoint / name


def _run_config(checkpoint: Path) -> dict[str, object]:
    path = checkpoint.parent / "config.yaml"
    return dict(yaml.safe_load(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def _save_stage1(autoencoder: ModelMixin, prior: ModelMixin, output: Path) -> None:
    autoencoder.save_pretrained(output)
    prior.save_pretrained(output / PRIOR)


def _save_stage2(
    transformer: UnifiedLatentsTransformer,
    config: Mapping[str, object],
    autoencoder: str | None,
    output: Path,
    text: TextEncoder | None = None,
) -> None:
    name = autoencoder or config.get("pretrained_autoencoder")
    if not isinstance(name, str):
        raise ValueError("--autoencoder is needed, because the run's config.yaml names none of our autoencoders.")
    minimum = config.get("logsnr_min", LOGSNR_MIN)
    assert isinstance(minimum, int | float)
    scheduler = LogSNRScheduler(transformer.config.latent_logsnr, float(minimum))
    parts = (None, None) if text is None else (text.model, text.tokenizer)
    UnifiedLatentsPipeline(transformer, scheduler, load_autoencoder(name), *parts).save_pretrained(output)
    with contextlib.suppress(MissingPriorError):
        load_prior(name).save_pretrained(output / AUTOENCODER / PRIOR)


# ---------------------------------------------------------------- bare state dicts


def _convert_state_dict(
    source: Path, output: Path, like: str | None, autoencoder: str | None, trust_pickle: bool
) -> None:
    if like is None:
        raise ValueError(f"{source} is no checkpoint of ours; a bare state dict needs --like.")
    models = _models_like(like)
    found = _read(
        source, {f"{p}{key}": w for p, model in models.items() for key, w in model.state_dict().items()}, trust_pickle
    )
    is_base = any(key.startswith("transformer.") for key in found)
    for prefix in ("transformer.",) if is_base else ("", "prior."):
        if prefix not in models:
            raise ValueError(
                f"--like {like} must have the network of the state dict, {prefix.rstrip('.') or 'autoencoder'}."
            )
        _load(models[prefix], _part(found, prefix), like)
    if is_base:
        base = models["transformer."]
        assert isinstance(base, UnifiedLatentsTransformer)
        _save_stage2(base, {}, autoencoder or like, output)
    else:
        _save_stage1(models[""], models["prior."], output)


def _part(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Weights with a prefix; for an empty prefix, those without any."""
    if prefix:
        return {key.removeprefix(prefix): weight for key, weight in weights.items() if key.startswith(prefix)}
    return {key: weight for key, weight in weights.items() if not key.startswith(("prior.", "transformer."))}


def _models_like(name: str) -> dict[str, ModelMixin]:
    """Loads the models of a repository; the keys are their prefixes in the training's module."""
    models: dict[str, ModelMixin] = {"": load_autoencoder(name)}
    with contextlib.suppress(MissingPriorError):
        models["prior."] = load_prior(name)
    with contextlib.suppress(ValueError):  # an autoencoder's repository has none
        models["transformer."] = UnifiedLatentsTransformer.from_pretrained(name)
    return models


def _load(model: ModelMixin, weights: Mapping[str, Tensor], like: str) -> None:
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(
            f"The state dict does not fit the architecture of {like}: {' '.join(str(error).split())}"
        ) from error


def _read(source: Path, wanted: Mapping[str, Tensor], trust_pickle: bool) -> dict[str, Tensor]:
    distributed = next(iter(sorted(source.rglob(".metadata"))), None)
    if distributed is not None:
        if not trust_pickle:
            raise ValueError(f"{distributed} must be unpickled, which can run code; --trust_pickle allows it.")
        return _read_distributed(distributed.parent, wanted)
    files = [source] if source.is_file() else sorted(source.glob("*.safetensors"))
    if not files:
        raise ValueError(f"{source} holds neither safetensors files nor a distributed checkpoint.")
    return {_plain(key): weight for file in files for key, weight in load_file(file).items()}


def _read_distributed(folder: Path, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    stored = FileSystemReader(folder).read_metadata().state_dict_metadata
    names = {key: _plain(key.removeprefix("model.")) for key in stored}
    places = {key: torch.empty_like(wanted[name]) for key, name in names.items() if name in wanted}
    load_distributed(places, checkpoint_id=folder, no_dist=True)
    return {names[key]: weight for key, weight in places.items()}


def _plain(key: str) -> str:
    """Removes the parts that wrappers add to names."""
    for wrapper in ("module.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_orig_mod."):
        key = key.replace(wrapper, "")
    return key


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit status."""
    parser = argparse.ArgumentParser(description="Convert a training checkpoint to a loadable repository.")
    parser.add_argument("source", metavar="SRC", type=Path, help="checkpoint-N, or a folder with a state dict")
    parser.add_argument("--output", "-o", type=Path, required=True, help="a new folder")
    parser.add_argument(
        "--weights",
        default="auto",
        help="auto (averaged if there are averages), ema, raw, or the name of an average, such as ema_0.9999",
    )
    parser.add_argument("--ema_std", type=float, help="make an average of this relative standard deviation")
    parser.add_argument("--autoencoder", help="autoencoder of a base model (default: the one in the run's config.yaml)")
    parser.add_argument("--like", help="model with the architecture of a bare state dict (name, folder or hub id)")
    parser.add_argument("--trust_pickle", action="store_true", help="unpickle a distributed checkpoint's metadata")
    args = parser.parse_args(argv)
    options = {name: getattr(args, name) for name in ("weights", "ema_std", "autoencoder", "like", "trust_pickle")}
    try:
        if args.weights not in ("auto", "raw") and not args.weights.startswith("ema"):
            raise ValueError(f"--weights must be auto, raw, ema or the name of an average, got {args.weights}.")
        convert(args.source, args.output, **options)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(args.output)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
