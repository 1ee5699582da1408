"""Cards of repositories, made of what their files say; text is in the templates beside this file."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

import yaml
from safetensors import SafetensorError, safe_open

from ul_tokenizer.hub.upload import CARD as CARD
from ul_tokenizer.publish.card_merge import Card, section

PAPER = "https://arxiv.org/abs/2602.17270"
TAGS = ["unified-latents", "latent-diffusion"]
_PIPELINE_TAGS = {
    "UnifiedLatentsAutoencoder": "image-to-image",
    "UnifiedLatentsPipeline": "unconditional-image-generation",
}
_ROLES = {
    "UnifiedLatentsAutoencoder": "An image tokenizer: encoder and diffusion decoder",
    "UnifiedLatentsTransformer": "A diffusion transformer on latents",
    "UnifiedLatentsPipeline": "An image generator: base model, scheduler and autoencoder",
    "LogSNRScheduler": "A scheduler in log-SNR",
}
# Of a training's arguments, those that say what was done, not where.
_LOCAL = {"output_dir", "resume_from_checkpoint", "report_to", "tracker_project_name", "hub_token", "hub_model_id"}
_DATA = ("dataset_name", "dataset_config_name", "latent_dataset", "train_data_dir")
_UNITS = {
    "psnr": "dB",
    "gap_db": "dB",
    "bits_per_pixel": "bits per pixel",
    "bits_per_latent_dim": "bits per latent value",
}


def model_card(folder: Path, repo_id: str, licence: str | None = None, base_model: str | None = None) -> Card:
    """The card of a model's folder, of its configs, weights' headers, training arguments and last validation.

    Args:
        folder: of an autoencoder, a transformer, a scheduler or a pipeline, as `save_pretrained` writes it.
        repo_id: where it will be.
        licence: an identifier of the hub, e.g. "apache-2.0"; None says nothing.
        base_model: the hub id of the model that this one was trained from.
    """
    name = class_name(folder)
    training, figures = _training(folder), _figures(folder)
    data = next((str(training[key]) for key in _DATA[:2] if training.get(key)), None)
    metadata: dict[str, Any] = {
        "license": licence,
        "library_name": "ul_tokenizer",
        "pipeline_tag": _PIPELINE_TAGS.get(name),
        "tags": [*TAGS, "image-tokenizer"] if name == "UnifiedLatentsAutoencoder" else TAGS,
        "base_model": base_model or _base_model(training),
        "datasets": [data] if data and data.count("/") == 1 else None,
        "model-index": _model_index(repo_id, figures, training),
    }
    sections = {
        "use": _snippet(name, repo_id),
        "description": _description(folder, name),
        "metrics": _metrics(figures, training),
        "training": _training_text(training),
    }
    return _filled("model_card.md", repo_id, sections, metadata)


def latents_card(
    header: Mapping[str, Any], repo_id: str, samples: int, shapes: str, licence: str | None = None
) -> Card:
    """The card of a latent data set, of its header."""
    rows = {
        "samples": f"{samples:,}",
        "latents": shapes,
        "stored as": header.get("dtype"),
        "autoencoder": header.get("autoencoder"),
        "its revision": header.get("revision"),
        "sha256 of its weights": header.get("weights_sha256"),
        "log-SNR of z_0": header.get("latent_logsnr"),
        "preprocessing": json.dumps(header.get("preprocessing", {})),
        "written by": f"ul_tokenizer {header.get('library_version')}",
    }
    use = (
        "```python\nfrom ul_tokenizer import LatentDataset\n\n"
        f'latents = LatentDataset("{repo_id}")\n'
        'latents[0]["latent"]  # z_clean; latents.sample_z0(0, seed=0) adds the noise that the decoder expects\n```'
    )
    metadata = {"license": licence, "tags": [*TAGS, "latents"]}
    return _filled("latents_card.md", repo_id, {"use": use, "description": _table(rows)}, metadata)


def class_name(folder: Path) -> str:
    """What a folder's model is; "" if it says nothing."""
    for file in ("model_index.json", "config.json", "scheduler_config.json"):
        if values := _json(folder / file):
            return str(values.get("_class_name", ""))
    return ""


# ---------------------------------------------------------------- sections


def _filled(template: str, repo_id: str, sections: Mapping[str, str], metadata: Mapping[str, Any]) -> Card:
    text = resources.files(__package__).joinpath(template).read_text(encoding="utf-8")
    marked = {name: section(name, content) for name, content in sections.items()}
    body = Template(text).substitute(title=repo_id.rpartition("/")[2], **marked)
    return Card({key: value for key, value in metadata.items() if value is not None}, body)


def _snippet(name: str, repo_id: str) -> str:
    lines = {
        "UnifiedLatentsAutoencoder": (
            f'vae = UnifiedLatentsAutoencoder.from_pretrained("{repo_id}")\n'
            "z = vae.encode(x).latent_dist.sample()  # x: (B, 3, H, W) in [−1, 1]\n"
            "y = vae.decode(z).sample"
        ),
        "UnifiedLatentsPipeline": (
            f'pipe = UnifiedLatentsPipeline.from_pretrained("{repo_id}")\nimage = pipe().images[0]'
        ),
        "LogSNRScheduler": f'scheduler = LogSNRScheduler.from_pretrained("{repo_id}")',
    }
    code = lines.get(name, f'model = {name}.from_pretrained("{repo_id}")')
    return f"```python\nfrom ul_tokenizer import {name}\n\n{code}\n```"


def _description(folder: Path, name: str) -> str:
    rows: dict[str, Any] = {}
    parts = {"": folder, **{f"{path.name}: ": path for path in sorted(folder.iterdir()) if path.is_dir()}}
    for label, part in parts.items():
        config = _json(part / "config.json")
        if part_class := config.get("_class_name"):
            rows[f"{label}class"] = f"`{part_class}`"
            rows |= {f"{label}{key}": value for key, value in _facts(config).items()}
            rows[f"{label}weights"] = f"{parameter_count(part) / 1e6:.2f} M"
    intro = (
        f"{_ROLES.get(name, 'A model')}, by the method of [Unified Latents]({PAPER}), for the library `ul_tokenizer`."
    )
    return f"{intro}\n\n{_table(rows)}" if rows else intro


def _facts(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a user asks of a config first."""
    facts = {
        "pixels per latent, a side": config.get("spatial_compression_ratio"),
        "frames per latent": config.get("temporal_compression_ratio"),
        "latent channels": config.get("latent_channels"),
        "log-SNR of z_0": config.get("latent_logsnr"),
        "decoding steps": config.get("num_inference_steps"),
        "classes": config.get("num_class_embeds"),
    }
    return {key: value for key, value in facts.items() if value is not None}


def parameter_count(folder: Path) -> int:
    """Numbers in a folder's weights, of their headers alone."""
    total = 0
    for path in folder.glob("*.safetensors"):
        try:
            with safe_open(path, framework="np") as file:
                total += sum(math.prod(file.get_slice(key).get_shape()) for key in file.keys())  # noqa: SIM118
        except (OSError, SafetensorError):
            continue
    return total


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


def _training_text(training: Mapping[str, Any]) -> str:
    if not training:
        return "Nothing is on record."
    stage = "base" if "sigmoid_bias" in training else "autoencoder"
    text = yaml.safe_dump(dict(training), sort_keys=False, allow_unicode=True)
    return (
        f"```sh\nul-tokenizer train {stage} --config config.yaml\n```\n\n"
        f"<details><summary>config.yaml</summary>\n\n```yaml\n{text}```\n\n</details>"
    )


def _table(rows: Mapping[str, Any]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {key} | {_cell(value)} |" for key, value in rows.items())])


def _cell(value: Any) -> str:
    return "–" if value is None else str(value).replace("|", "\\|").replace("\n", " ")


# ---------------------------------------------------------------- what the files say


def _training(folder: Path) -> dict[str, Any]:
    """Arguments of the training, without what is of no use elsewhere; folders' names only."""
    path = folder / "config.yaml"
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None
    except yaml.YAMLError:
        values = None
    if not isinstance(values, dict):
        return {}
    kept = {key: value for key, value in values.items() if key not in _LOCAL and value is not None}
    return {key: Path(value).name if _is_path(value) else value for key, value in kept.items()}


def _is_path(value: Any) -> bool:
    return isinstance(value, str) and (value.startswith(("/", "~", ".")) or value.count("/") > 1)


def _figures(folder: Path) -> dict[str, float]:
    """Of the last validation."""
    path = folder / "metrics.jsonl"
    if not path.is_file():
        return {}
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:  # cut short by a kill
            continue
    last: dict[str, Any] = next(
        (row for row in reversed(rows) if any(key.startswith("validation/") for key in row)), {}
    )
    numbers = {key: value for key, value in last.items() if isinstance(value, int | float) and math.isfinite(value)}
    return {key.removeprefix("validation/"): float(value) for key, value in numbers.items()}


def _model_index(repo_id: str, figures: Mapping[str, float], training: Mapping[str, Any]) -> list[Any] | None:
    """The hub's form of figures."""
    values = [(name, value) for name, value in figures.items() if name != "step"]
    if not values:
        return None
    name = str(next((training[key] for key in _DATA if training.get(key)), "held-out images"))
    result = {
        "task": {"type": "image-to-image"},
        "dataset": {"type": Path(name).name, "name": f"{Path(name).name}, held-out part"},
        "metrics": [{"type": metric, "value": round(value, 6)} for metric, value in values],
    }
    return [{"name": repo_id.rpartition("/")[2], "results": [result]}]


def _base_model(training: Mapping[str, Any]) -> str | None:
    names = (training.get(key) for key in ("pretrained_model_name_or_path", "pretrained_autoencoder"))
    return next((name for name in names if isinstance(name, str) and name.count("/") == 1), None)


def _json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}
