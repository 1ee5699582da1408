"""What `--validation_metrics` names beyond PSNR: metrics of images in 8 bits, and the networks that they need."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor

from ul_tokenizer.evaluation.measures.kernel_distance import kernel_distance
from ul_tokenizer.evaluation.measures.metrics import ms_ssim, ssim
from ul_tokenizer.evaluation.nets.feature_nets import FeatureNet, load_feature_net
from ul_tokenizer.evaluation.nets.perceptual import load_lpips
from ul_tokenizer.media.pixels import to_uint8
from ul_tokenizer.training.arguments import TrainingArguments

PairMetric = Callable[[Tensor, Tensor], Tensor]  # originals and reconstructions, uint8 (B, 3, H, W) → (B,)
SUBSETS, SUBSET_SIZE = 100, 1000  # of the kernel distance


class FeatureDistance:
    """Kernel distance (KID) of images or frames from fixed originals, between features of a network.

    Args:
        net: the network.
        originals: batches of pixels (B, 3, [T,] H, W) in [−1, 1].
    """

    def __init__(self, net: FeatureNet, originals: Iterable[Tensor]) -> None:
        self._net, self._originals = net, _features(net, originals)

    def __call__(self, images: Iterable[Tensor]) -> float:
        """The distance of batches of pixels (B, 3, [T,] H, W) in [−1, 1]; NaN if one of them is not finite."""
        features = _features(self._net, images)
        if not features.isfinite().all():
            return math.nan
        is_whole = len(features) == len(self._originals) <= SUBSET_SIZE
        subsets = 1 if is_whole else SUBSETS  # where a subset is the whole set, all are the same
        return kernel_distance(self._originals, features, subsets=subsets, subset_size=SUBSET_SIZE).mean


class ValidationMetrics:
    """The metrics that a run asks for, with their networks loaded.

    Every process makes them, although only the main process validates: what is missing then ends all in the same way.

    Args:
        args: the arguments of the run.
        device: where the networks compute.

    Raises:
        MissingFeatureNetError: a network's package or weights are missing.
        ValueError: there is no such network.
    """

    def __init__(self, args: TrainingArguments, device: torch.device) -> None:
        self.names = args.metric_names
        self.net = _load_net(args, device) if "kid" in self.names else None
        self._pairs: dict[str, PairMetric] = {}
        for name, load in _PAIR_METRICS.items():
            if name in self.names:
                self._pairs[name] = load(device)
        self._distance: FeatureDistance | None = None

    def check_size(self, side: int) -> None:
        """Measures an empty picture, so that a size that a metric can't measure shows before the training.

        Args:
            side: height and width of the images, in pixels.

        Raises:
            ValueError: a metric needs larger images.
        """
        picture = torch.zeros(1, 3, side, side, dtype=torch.uint8)
        for name, metric in self._pairs.items():
            _check(f"--validation_metrics {name}", side, partial(metric, picture, picture))
        if self.net is not None:
            _check(f"--validation_features {self.net.name}", side, partial(self.net, picture))

    def distance_from(self, originals: Callable[[], Iterable[Tensor]]) -> FeatureDistance | None:
        """The distance from originals; None if no distance is asked for.

        Args:
            originals: makes batches of pixels (B, 3, [T,] H, W) in [−1, 1]. It is called only once.
        """
        if self._distance is None and self.net is not None:
            self._distance = FeatureDistance(self.net, originals())
        return self._distance

    def of_reconstructions(self, originals: Tensor, reconstructions: Tensor, batch_size: int) -> dict[str, float]:
        """Name → value, for every metric but PSNR; NaN where a reconstruction is not finite.

        Args:
            originals: (B, 3, [T,] H, W) in [−1, 1], the same in every call.
            reconstructions: the same shape, about the same range.
            batch_size: images or clips that are measured at once; the values don't depend on it.
        """
        pairs = list(zip(originals.split(batch_size), reconstructions.split(batch_size), strict=True))
        values = {name: _mean(metric, pairs) for name, metric in self._pairs.items()}
        distance = self.distance_from(lambda: originals.split(batch_size))
        if distance is not None:
            values["kid"] = distance(reconstructions.split(batch_size))
        return values


def _load_net(args: TrainingArguments, device: torch.device) -> FeatureNet:
    try:
        return load_feature_net(args.validation_features, args.validation_feature_weights, device)
    except ValueError as error:
        message = str(error).replace("--feature-weights", "--validation_feature_weights")  # evaluate's name of the flag
        raise type(error)(f"--validation_features {args.validation_features}: {message}") from error


def _check(what: str, side: int, measure: Callable[[], Tensor]) -> None:
    try:
        measure()
    except ValueError as error:
        raise ValueError(f"{what} can't measure {side}×{side} pixels: {error}") from error


_PAIR_METRICS: dict[str, Callable[[torch.device], PairMetric]] = {
    "ssim": lambda _: ssim,
    "ms_ssim": lambda _: ms_ssim,
    "lpips": lambda device: load_lpips(device=device),
}


def _mean(metric: PairMetric, pairs: Iterable[tuple[Tensor, Tensor]]) -> float:
    values = []
    for original, reconstruction in pairs:
        value = metric(to_uint8(_frames(original)), to_uint8(_frames(reconstruction))).double().cpu()
        values.append(value if reconstruction.isfinite().all() else torch.full_like(value, math.nan))
    return float(torch.cat(values).mean())


def _features(net: FeatureNet, batches: Iterable[Tensor]) -> Tensor:
    """(N, D) of every image and frame; NaN in the rows of a batch that is not finite."""
    parts = []
    for batch in batches:
        features = net(to_uint8(_frames(batch)))
        parts.append(features if batch.isfinite().all() else torch.full_like(features, math.nan))
    return torch.cat(parts)


def _frames(x: Tensor) -> Tensor:
    """Images unchanged; clips (B, 3, T, H, W) → (B·T, 3, H, W)."""
    return x if x.ndim == 4 else x.transpose(1, 2).flatten(0, 1)
