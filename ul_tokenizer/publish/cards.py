"""Cards of repositories, generated from the files of a model or a latent data set.

The text around the generated sections is in the templates beside this file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

import huggingface_hub
import yaml

from ul_tokenizer.publish.card_merge import METRICS, Card, section
from ul_tokenizer.publish.facts import ModelFacts, facts_of
from ul_tokenizer.publish.records import (
    class_name,
    has_text_encoder,
    last_figures,
    parameter_count,
    read_config,
    training_arguments,
)

CARD = "README.md"
PAPER = "https://arxiv.org/abs/2602.17270"
TAGS = ["unified-latents", "latent-diffusion"]
_DATA = ("dataset_name", "dataset_config_name", "latent_dataset", "train_data_dir")
NO_LIMIT = 1_000_000  # tokens; tokenizers without a limit have a huge number
_UNITS = {
    "psnr": "dB",
    "gap_db": "dB",
    "bits_per_pixel": "bits per pixel",
    "bits_per_latent_dim": "bits per latent value",
}


def model_card(folder: Path, repo_id: str, license: str | None = None, base_model: str | None = None) -> Card:
    """Generates the card of a model from its configs, weights, training arguments and last validation.

    Args:
        folder: of a model, a scheduler or a pipeline, as `save_pretrained` writes it.
        repo_id: the repository that the card is for.
        license: the hub's identifier, e.g. "apache-2.0"; None for no entry.
        base_model: hub id of the model that this one was trained from; None to look for it in the training arguments.
    """
    name = class_name(folder)
    facts, training, figures = facts_of(name), training_arguments(folder), last_figures(folder)
    sections = {
        "use": _usage(facts, name, repo_id, folder),
        "description": _description(folder, facts),
        METRICS: _metrics(figures, training),
        "training": _training_text(facts, training),
    }
    metadata = _model_metadata(facts, repo_id, training, figures, license, base_model, has_text_encoder(folder))
    return _filled("model_card.md", repo_id, sections, metadata)


def latents_card(
    header: Mapping[str, Any], repo_id: str, samples: int, shapes: str, license: str | None = None
) -> Card:
    """Generates the card of a latent data set.

    Args:
        header: the data set's header.
        repo_id: the repository that the card is for.
        samples: number of samples.
        shapes: of the latents, as text.
        license: the hub's identifier, e.g. "cc0-1.0"; None for no entry.
    """
    rows = {
        "samples": f"{samples:,}",
        "latents": shapes,
        "stored as": header.get("dtype"),
        "autoencoder": header.get("autoencoder"),
        "revision of the autoencoder": header.get("revision"),
        "sha256 of its weights": header.get("weights_sha256"),
        "log-SNR of z_0": header.get("latent_logsnr"),
        "preprocessing": json.dumps(header.get("preprocessing", {})),
        "written by": f"ul_tokenizer {header.get('library_version')}",
    }
    usage = (
        "```python\nfrom ul_tokenizer import LatentDataset\n\n"
        f'latents = LatentDataset("{repo_id}")\n'
        'latents[0]["latent"]  # z_clean; latents.sample_z0(0, seed=0) adds the noise that the decoder expects\n```'
    )
    data = huggingface_hub.DatasetCardData(license=license, tags=[*TAGS, "latents"])
    return _filled("latents_card.md", repo_id, {"use": usage, "description": _table(rows)}, _as_dict(data))


# ---------------------------------------------------------------- metadata


def _model_metadata(
    facts: ModelFacts | None,
    repo_id: str,
    training: Mapping[str, Any],
    figures: Mapping[str, float],
    license: str | None,
    base_model: str | None,
    has_text: bool,
) -> dict[str, Any]:
    dataset = next((str(training[key]) for key in _DATA[:2] if training.get(key)), None)
    task = facts.pipeline_tag if facts else None
    task = "text-to-image" if task == "unconditional-image-generation" and has_text else task
    data = huggingface_hub.ModelCardData(
        license=license,
        library_name="ul_tokenizer" if facts else None,
        pipeline_tag=task,
        tags=[*TAGS, *facts.tags] if facts else None,
        base_model=base_model or _base_model(training),
        datasets=[dataset] if dataset and dataset.count("/") == 1 else None,
        model_name=repo_id.rpartition("/")[2],
        eval_results=_eval_results(figures, training, task or "image-to-image") or None,
    )
    values = _as_dict(data)
    values.pop("model_name", None)  # the hub knows it only as a part of the model-index
    return values


def _as_dict(data: huggingface_hub.CardData) -> dict[str, Any]:
    values: dict[str, Any] = data.to_dict()  # type: ignore[no-untyped-call]
    return values


def _base_model(training: Mapping[str, Any]) -> str | None:
    names = (training.get(key) for key in ("pretrained_model_name_or_path", "pretrained_autoencoder"))
    return next((name for name in names if isinstance(name, str) and name.count("/") == 1), None)


def _eval_results(
    figures: Mapping[str, float], training: Mapping[str, Any], task: str
) -> list[huggingface_hub.EvalResult]:
    data = Path(str(next((training[key] for key in _DATA if training.get(key)), "held-out images"))).name
    return [
        huggingface_hub.EvalResult(
            task_type=task,
            dataset_type=data,
            dataset_name=f"{data}, held-out part",
            metric_type=name,
            metric_value=round(value, 6),
        )
        for name, value in figures.items()
        if name != "step"
    ]


# ---------------------------------------------------------------- sections


def _filled(template: str, repo_id: str, sections: Mapping[str, str], metadata: Mapping[str, Any]) -> Card:
    text = resources.files(__package__).joinpath(template).read_text(encoding="utf-8")
    marked = {name: section(name, content, metadata) for name, content in sections.items()}
    body = Template(text).substitute(title=repo_id.rpartition("/")[2], **marked)
    return Card(dict(metadata), body)


def _usage(facts: ModelFacts | None, name: str, repo_id: str, folder: Path) -> str:
    if facts is None:
        return f"The model in this repository has the class `{name}`."
    code = facts.usage.replace("{repo_id}", repo_id)
    if has_text_encoder(folder):
        code = code.replace("pipe()", 'pipe(prompt="a red apple", guidance_scale=2.0)')
    return f"```python\nfrom ul_tokenizer import {name}\n\n{code}\n```"


def _description(folder: Path, facts: ModelFacts | None) -> str:
    role = facts.role if facts else "A model"
    method = f", by the method of [Unified Latents]({PAPER}), for the library `ul_tokenizer`" if facts else ""
    parts = {"": folder, **{f"{path.name}: ": path for path in sorted(folder.iterdir()) if path.is_dir()}}
    rows = {f"{label}{key}": value for label, part in parts.items() for key, value in _part_rows(part).items()}
    return f"{role}{method}.\n\n{_table(rows)}" if rows else f"{role}{method}."


def _part_rows(folder: Path) -> dict[str, Any]:
    """Rows about one network: its class, the facts that users ask first, and its size."""
    config = read_config(folder / "config.json")
    name = config.get("_class_name")
    if not name:
        return _text_rows(folder, config)
    facts = facts_of(str(name))
    labels = facts.config_facts if facts else {}
    known = {label: config[key] for key, label in labels.items() if config.get(key) is not None}
    return {"class": f"`{name}`", **known, "weights": f"{parameter_count(folder) / 1e6:.2f} M"}


def _text_rows(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """Rows about the text encoder of a pipeline or its tokenizer, which are classes of `transformers`."""
    longest = read_config(folder / "tokenizer_config.json").get("model_max_length")
    tokenizer = {"longest text": f"{longest:,} tokens"} if isinstance(longest, int) and longest < NO_LIMIT else {}
    classes = config.get("architectures")
    if not isinstance(classes, list) or not classes:
        return tokenizer
    labels = {"hidden states": ("hidden_size", "dim", "d_model"), "vocabulary": ("vocab_size",)}
    known = {label: next((config[key] for key in keys if key in config), None) for label, keys in labels.items()}
    sizes = {label: f"{value:,}" for label, value in known.items() if isinstance(value, int)}
    return {"class": f"`{classes[0]}`", **sizes, "weights": f"{parameter_count(folder) / 1e6:.2f} M", **tokenizer}


def _metrics(figures: Mapping[str, float], training: Mapping[str, Any]) -> str:
    if not figures:
        return "Nothing was measured yet."
    rows = {name.replace("_", " "): _with_unit(name, value) for name, value in figures.items() if name != "step"}
    images = training.get("num_validation_images")
    side = training.get("validation_resolution") or training.get("resolution")
    where = f"{images} held-out crops of {side}×{side}" if images else "held-out images"
    step = f", after step {figures['step']:,.0f}" if "step" in figures else ""
    weights = ", averaged weights" if training.get("use_ema") else ""
    return f"On {where}, seed {training.get('seed', 0)}{step}{weights}.\n\n{_table(rows)}"


def _with_unit(name: str, value: float) -> str:
    unit = next((unit for part, unit in _UNITS.items() if part in name), "")
    return f"{value:.4g} {unit}".strip()


def _training_text(facts: ModelFacts | None, training: Mapping[str, Any]) -> str:
    if not training:
        return "The training is not recorded."
    command = facts.training_command if facts else None
    if command and "teacher_inference_steps" in training:  # a distilled decoder
        command = command.replace(" autoencoder ", " distill ")
    text = yaml.safe_dump(dict(training), sort_keys=False, allow_unicode=True)
    shell = f"```sh\n{command}\n```\n\n" if command else ""
    return f"{shell}<details><summary>config.yaml</summary>\n\n```yaml\n{text}```\n\n</details>"


def _table(rows: Mapping[str, Any]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {key} | {_cell(value)} |" for key, value in rows.items())])


def _cell(value: Any) -> str:
    return "–" if value is None else str(value).replace("|", "\\|").replace("\n", " ")
