"""The command `info`. Only running it imports torch."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ul_tokenizer.cli.options import DEFAULT_IMAGE_MODEL, AsJson, Revision
from ul_tokenizer.cli.reporting import print_facts, print_results


def info(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A bundled name, a folder or a hub id, tried in this order.")
    ] = DEFAULT_IMAGE_MODEL,
    revision: Revision = None,
    as_json: AsJson = False,
) -> None:
    """Describe a model: parameters, compression, size in bytes, location, license and the figures in its card."""
    facts = describe(model, revision)
    if as_json:
        print_results([facts], totals={"bytes": facts["bytes"]})
    else:
        print_facts(facts)


def describe(name: str, revision: str | None) -> dict[str, Any]:
    """What is known about a model; errors as `load_model`."""
    import torch

    from ul_tokenizer.cli.codec import load_model
    from ul_tokenizer.models.repository import PRIOR, license_and_metrics

    model = load_model(name, revision, torch.device("cpu"), "float32", None)
    config, prior = model.autoencoder.config, model.prior
    parameters = model.autoencoder.num_parameters_by_part()
    if prior is not None:
        parameters[PRIOR] = sum(p.numel() for p in prior.parameters())
    license, metrics = license_and_metrics(model.files)
    weights = model.files.weights() + model.files.weights(PRIOR)
    return {
        "model": name,
        "from": model.files.origin,
        "folder": str(model.files.folder),
        "revision": model.files.revision,
        "parameters": {**parameters, "total": sum(parameters.values())},
        "compression_per_side": model.ratio,
        "compression_in_time": model.temporal_ratio,
        "latent_channels": config.latent_channels,
        "latent_logsnr": config.latent_logsnr,
        "decoding_steps": config.num_inference_steps,
        "bytes": sum(path.stat().st_size for path in weights),
        "weights_sha256": model.weights_sha256,
        "license": license,
        "metrics": metrics,
    }
