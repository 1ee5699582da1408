"""Adds a trained model to the package as a bundled model: half-precision weights, manifest and training curve.

    python conversion/bundle_weights.py runs/phase-2 ul-photo-f8 [--earlier runs/phase-1] [--dtype float16]
    python conversion/bundle_weights.py runs/base ul-fashion --autoencoder runs/stage-1 --earlier runs/stage-1

SRC is the folder of an autoencoder, with its prior in `prior/`, or of a pipeline, with the autoencoder in `vae/` and
the prior in `vae/prior/`. If the decoder was distilled, its teacher in `teacher/` is bundled, too. Use `--autoencoder`
to take all of them from another folder, if the pipeline has no prior or its decoder was trained further.

The script also keeps the configurations and the training curve of SRC and of the earlier phases of its training,
without the names of folders, and what each phase was and cost, for the card's table: see
conversion/training_record.py. It replaces the model that was bundled as NAME before, except for its cards and figures
(*.md, *.png, *.jsonl). Norms are stored in fp32.

After bundling, `make figures` measures the new weights and makes the cards' tables, figures and curves anew, and
`python tests/bundled_figures.py --write` and `python tests/golden.py --write` renew what the tests expect.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import yaml
from diffusers import ModelMixin
from torch import nn

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from conversion.training_record import add_options, write_record
from ul_tokenizer import pretrained
from ul_tokenizer.files import read_json_object, write_json
from ul_tokenizer.models.repository import (
    PRIOR,
    TEACHER,
    MissingTeacherError,
    autoencoder_subfolder,
    load_autoencoder,
    load_prior,
    load_teacher,
)
from ul_tokenizer.models.transformer import UnifiedLatentsTransformer
from ul_tokenizer.training.stage1 import Stage1Arguments
from ul_tokenizer.training.stage2 import Stage2Arguments
from ul_tokenizer.training.text import load_text_encoder

MAX_BYTES = 20_000_000  # of safetensors in all
MAX_CURVE_POINTS = 200
PIPELINE_FILES = ("model_index.json", "class_names.json", "scheduler/scheduler_config.json")
PATHS = {*Stage1Arguments.PATHS, *Stage2Arguments.PATHS}  # useless on another machine
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


def bundle(
    source: Path,
    name: str,
    dtype: torch.dtype,
    earlier: Sequence[Path] = (),
    autoencoder: Path | None = None,
    decoding_steps: int | None = None,
    machine: str | None = None,
    watts: float | None = None,
) -> Path:
    """Writes the bundled model completely or not at all, and returns its folder.

    Args:
        source: folder of an autoencoder or of a pipeline.
        name: of the bundled model.
        dtype: of the stored weights.
        earlier: folders of the trainings that `source` continued, in order.
        autoencoder: folder that replaces a pipeline's `vae`; it must have the same encoder.
        decoding_steps: new default of the autoencoder; None keeps the old one.
        machine: what trained it, in words.
        watts: power of this machine while it trained, for an estimate of the energy.

    Raises:
        ValueError: `source` holds no model, the encoders differ, a weight exceeds the dtype's range, or the weights
            exceed MAX_BYTES.
    """
    with tempfile.TemporaryDirectory(dir=pretrained.ROOT) as temporary:
        folder = Path(temporary, name)
        models = _load_models(source, dtype, autoencoder)
        if decoding_steps is not None:
            models[autoencoder_subfolder(source)].register_to_config(num_inference_steps=decoding_steps)
        _save_models(models, name, folder, dtype)
        _save_text_encoder(source, folder, dtype)
        _copy_pipeline_files(source, folder)
        _check_size(folder)
        _keep_training_record([*earlier, source], folder, machine, watts)
        final = pretrained.ROOT / name
        if final.exists():
            _keep_cards(final, folder)
            shutil.rmtree(final)
        folder.rename(final)
    pretrained.write_manifest(final)
    return final


def _halve(model: nn.Module, dtype: torch.dtype) -> None:
    """Stores all but norms and biases in half precision."""
    for parameter in model.parameters():  # also those that run in fp32
        parameter.data = parameter.data.to(dtype if parameter.ndim > 1 else parameter.dtype)
    for key, weight in model.state_dict().items():
        if not weight.isfinite().all():
            raise ValueError(f"weights must be finite in {dtype}, got {key} that is not; try --dtype bfloat16.")


def _save_text_encoder(source: Path, folder: Path, dtype: torch.dtype) -> None:
    """The text encoder of a pipeline with its tokenizer, if it has one."""
    if not (source / "text_encoder").is_dir():
        return
    text = load_text_encoder(str(source), "text_encoder")
    _halve(text.model, dtype)
    text.model.save_pretrained(folder / "text_encoder")
    config = folder / "text_encoder" / "config.json"
    write_json(config, {**read_json_object(config), "dtype": "float32"})  # as the other parts are loaded by default
    text.tokenizer.save_pretrained(folder / "tokenizer")


def _save_models(models: dict[str, ModelMixin], name: str, folder: Path, dtype: torch.dtype) -> None:
    for subfolder, model in models.items():
        _halve(model, dtype)
        model.register_to_config(_name_or_path=name)  # instead of a path on this machine
        model.save_pretrained(folder / subfolder)
    for path in folder.rglob("*.safetensors"):
        path.chmod(0o644)  # safetensors makes them readable for their owner only


def _copy_pipeline_files(source: Path, folder: Path) -> None:
    for file in PIPELINE_FILES:
        if (source / file).is_file():
            (folder / file).parent.mkdir(exist_ok=True)
            shutil.copyfile(source / file, folder / file)


def _load_models(source: Path, dtype: torch.dtype, autoencoder: Path | None) -> dict[str, ModelMixin]:
    """Folder below `source` → model."""
    where = autoencoder_subfolder(source)
    if autoencoder is not None:
        _check_same_encoder(source, autoencoder)
    models: dict[str, ModelMixin] = {
        where: load_autoencoder(str(autoencoder or source), torch_dtype=dtype),
        where + PRIOR: load_prior(str(autoencoder or source), torch_dtype=dtype),
    }
    with suppress(MissingTeacherError):
        models[where + TEACHER] = load_teacher(str(autoencoder or source), torch_dtype=dtype)
    if where:  # a pipeline
        models["transformer"] = UnifiedLatentsTransformer.from_pretrained(source, torch_dtype=dtype)
    return models


def _check_same_encoder(source: Path, autoencoder: Path) -> None:
    """A base model works only with the encoder that it was trained on."""
    ours, other = (load_autoencoder(str(path)).encoder.state_dict() for path in (source, autoencoder))
    if ours.keys() != other.keys() or not all(torch.equal(ours[key], other[key]) for key in ours):
        raise ValueError(f"the encoder of {autoencoder} must be that of {source}, got other weights.")


def _check_size(folder: Path) -> None:
    size = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
    if size > MAX_BYTES:
        raise ValueError(f"bundled weights must have at most {MAX_BYTES:,} bytes, got {size:,}.")


def _keep_training_record(runs: Sequence[Path], folder: Path, machine: str | None, watts: float | None) -> None:
    phases = [run for run in runs if (run / "config.yaml").is_file() and (run / "metrics.jsonl").is_file()]
    rows: list[dict[str, Any]] = []
    for number, run in enumerate(phases, 1):
        config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
        kept = {key: value for key, value in config.items() if key not in PATHS}
        text = yaml.safe_dump(kept, sort_keys=False, allow_unicode=True)
        (folder / f"training-phase-{number}.yaml").write_text(text, encoding="utf-8")
        rows += read_rows(run, first_step=max((row["step"] for row in rows), default=0))
    if rows:
        (folder / "training_curve.json").write_text(json.dumps(summarise(rows), indent=1) + "\n", encoding="utf-8")
        write_record(folder, rows, machine, watts)


def read_rows(run: Path, first_step: int) -> list[dict[str, Any]]:
    """Reads the metrics of a run and adds `first_step` to its steps."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{**row, "step": row["step"] + first_step} for row in rows]


def summarise(rows: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Two curves: all validations, and at most MAX_CURVE_POINTS evenly spaced training logs."""
    validation = [row for row in rows if any(key.startswith("validation/") for key in row)]
    training = [row for row in rows if "loss" in row]
    return {"training": training[:: -(-len(training) // MAX_CURVE_POINTS) or 1], "validation": validation}


def _keep_cards(old: Path, new: Path) -> None:
    for pattern in ("*.md", "*.png", "*.jsonl"):
        for path in old.glob(pattern):
            shutil.copyfile(path, new / path.name)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit status."""
    parser = argparse.ArgumentParser(description="Add trained weights to the package.")
    parser.add_argument(
        "source", metavar="SRC", type=Path, help="folder of an autoencoder with prior/, or of a pipeline"
    )
    parser.add_argument("name", metavar="NAME", help="bundled name, e.g. ul-photo-f8")
    parser.add_argument(
        "--earlier", metavar="RUN", type=Path, nargs="*", default=[], help="trainings that SRC continued, in order"
    )
    parser.add_argument("--autoencoder", metavar="RUN", type=Path, help="replaces a pipeline's vae")
    parser.add_argument("--decoding_steps", metavar="N", type=int, help="new default of the autoencoder")
    add_options(parser)
    parser.add_argument("--dtype", choices=DTYPES, default="float16", help="of the stored weights (%(default)s)")
    args = parser.parse_args(argv)
    try:
        dtype = DTYPES[args.dtype]
        folder = bundle(
            args.source,
            args.name,
            dtype,
            args.earlier,
            args.autoencoder,
            args.decoding_steps,
            args.machine,
            args.watts,
        )
    except (ValueError, OSError) as error:
        print(f"error: {error}")
        return 1
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            print(f"{path.stat().st_size:>10,}  {path.relative_to(pretrained.ROOT)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
