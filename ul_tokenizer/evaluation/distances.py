"""Distances between the features of two sets of images, each beside the floor that real images have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ul_tokenizer.evaluation.measures.feature_sets import FeatureSet, blocks
from ul_tokenizer.evaluation.measures.frechet import Moments, frechet_distance
from ul_tokenizer.evaluation.measures.kernel_distance import kernel_distance
from ul_tokenizer.evaluation.nets.feature_nets import FeatureNet

LEAST_FOR_KID = 10


def moments_of(features: FeatureSet) -> Moments:
    """Mean and covariance of all rows, accumulated in float64 block by block."""
    moments = Moments(features.shape[1])
    for _, block in blocks(features, 1024):
        moments.add(block)
    return moments


def measure_distances(
    net: FeatureNet,
    features: FeatureSet,
    reference: FeatureSet,
    floor: Sequence[tuple[FeatureSet, FeatureSet]],
    force: bool = False,
) -> dict[str, Any]:
    """Fréchet distance and KID of features to those of real images, as an entry of a result file.

    Args:
        net: the network that made the features.
        features: (N, D), of the images that are judged.
        reference: (M, D), of real images.
        floor: pairs of sets of features of real images; the mean of their distances is what no difference at all
            would look like. KID, which takes longer, is measured on the first pair.
        force: also compute Fréchet distances of fewer images than there are features, which mostly show that number.
    """
    return {
        "net": dict(net.facts()),
        "num": len(features),
        "reference_num": len(reference),
        "floor_nums": [len(part) for part in floor[0]],
        "frechet": _frechet(net, features, reference, floor, force),
        "kid": _kid(features, reference, floor),
    }


def _frechet(
    net: FeatureNet,
    features: FeatureSet,
    reference: FeatureSet,
    floor: Sequence[tuple[FeatureSet, FeatureSet]],
    force: bool,
) -> Mapping[str, Any]:
    refused = _refusal(net, min(len(features), len(reference)), force)
    is_floor_refused = any(_refusal(net, min(map(len, pair)), force) for pair in floor)
    return {
        "name": net.metric,
        "value": None if refused else _distance(features, reference),
        "floor": None if is_floor_refused else sum(_distance(*pair) for pair in floor) / len(floor),
        "refused": refused,
    }


def _refusal(net: FeatureNet, num: int, force: bool) -> str | None:
    """Why a Fréchet distance of so few images is not computed; None if it is."""
    if num < 2:
        return f"{net.metric} needs at least 2 images, got {num}."
    if force or num >= net.dim:
        return None
    return (
        f"{net.metric} of {num:,} images is mostly a matter of their number, since the covariance of {net.dim:,} "
        f"features needs more images than features; use the KID, more images, or --force-fd."
    )


def _distance(first: FeatureSet, second: FeatureSet) -> float:
    return frechet_distance(moments_of(first).gaussian(), moments_of(second).gaussian())


def _kid(
    features: FeatureSet, reference: FeatureSet, floor: Sequence[tuple[FeatureSet, FeatureSet]]
) -> Mapping[str, Any]:
    if (num := min(len(features), len(reference))) < LEAST_FOR_KID:
        return {"value": None, "refused": f"KID needs at least {LEAST_FOR_KID} images, got {num}."}
    kid = kernel_distance(features, reference)
    lowest = kernel_distance(*floor[0]).mean if min(map(len, floor[0])) >= 2 else None
    return {
        "value": kid.mean,
        "std": kid.std,
        "floor": lowest,
        "subsets": kid.subsets,
        "subset_size": kid.subset_size,
        "refused": None,
    }
