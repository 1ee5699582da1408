"""Our FID, KID, precision and recall beside torch-fidelity's, and our LPIPS beside the package's.

It needs an environment in which torchvision imports, such as this one, which runs on CPUs:

    python3 -m venv fidelity && fidelity/bin/pip install torch==2.14.1 torchvision==0.29.1 torch-fidelity lpips -e .
    fidelity/bin/python benchmarks/fidelity_check.py > docs/evaluation_check.txt

No weights are downloaded: Inception and LPIPS's backbones get random ones with a fixed seed, in the files' own format.
What is compared is therefore the code, from 8-bit pixels to the figure, and not what pretrained networks see. The check
fails where FID, KID, precision, recall or LPIPS differ by more than `TOLERANCE`.
"""

from __future__ import annotations

import copy
import platform
import sys
import tempfile
import time
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from ul_tokenizer.evaluation.measures.frechet import Moments, frechet_distance
from ul_tokenizer.evaluation.measures.kernel_distance import kernel_distance
from ul_tokenizer.evaluation.measures.manifold import manifold_metrics
from ul_tokenizer.evaluation.nets.feature_nets import FeatureNet, load_feature_net, resize_like_tensorflow
from ul_tokenizer.evaluation.nets.perceptual import BACKBONES, LPIPS

TOLERANCE = 1e-3  # relative
SIDE, COUNTS, SUBSET_SIZE = 96, (200, 240), 150
Batches = tuple[Tensor, Tensor]


class Images(Dataset[Tensor]):
    """8-bit images as torch-fidelity takes them."""

    def __init__(self, pixels: Tensor) -> None:
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> Tensor:
        return self.pixels[index]


def pictures(count: int, seed: int, contrast: float) -> Tensor:
    """Coloured clouds (N, 3, SIDE, SIDE), uint8."""
    generator = torch.Generator().manual_seed(seed)
    layers = [
        nn.functional.interpolate(torch.randn(count, 3, side, side, generator=generator), SIDE, mode="bicubic") / scale
        for side, scale in ((3, 1), (12, 2), (SIDE, 8))
    ]
    return (torch.stack(layers).sum(0) * contrast + 128).clamp(0, 255).to(torch.uint8)


def random_inception(path: Path, pixels: Tensor) -> None:
    """Writes random weights as torch-fidelity's file; the batch norms are fitted to some pictures."""
    module = import_module("torch_fidelity.feature_extractor_inceptionv3")
    extractor = module.FeatureExtractorInceptionV3
    with (
        mock.patch.object(module, "load_state_dict_from_url", return_value={}),
        mock.patch.object(extractor, "load_state_dict"),
    ):
        network = extractor("inception-v3-compat", ["2048"])
    torch.manual_seed(0)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
        elif isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None
            layer.train()
    with torch.no_grad():
        network(pixels)
    torch.save(network.state_dict(), path)


def torch_fidelity_figures(sets: Batches, weights: Path) -> dict[str, float]:
    """What torch-fidelity says about two sets of images."""
    found = import_module("torch_fidelity").calculate_metrics(
        input1=Images(sets[0]),
        input2=Images(sets[1]),
        fid=True,
        kid=True,
        prc=True,
        feature_extractor="inception-v3-compat",
        feature_extractor_weights_path=str(weights),
        kid_subset_size=SUBSET_SIZE,
        cuda=False,
        save_cpu_ram=True,
        verbose=False,
        cache=False,
    )
    names = {"FID": "frechet_inception_distance", "KID": "kernel_inception_distance_mean"}
    names |= {"std of KID": "kernel_inception_distance_std", "precision": "precision", "recall": "recall"}
    return {name: found[key] for name, key in names.items()}


def our_figures(sets: Batches, network: FeatureNet) -> dict[str, float]:
    """What we say, with the streaming accumulator of large evaluations."""
    first, second = (torch.cat([network(batch) for batch in torch.split(pixels, 50)]) for pixels in sets)
    moments = Moments(network.dim), Moments(network.dim)
    for accumulator, rows in zip(moments, (first, second), strict=True):
        for batch in torch.split(rows, 50):
            accumulator.add(batch)
    kid = kernel_distance(first, second, subset_size=SUBSET_SIZE)
    manifold = manifold_metrics(first, second)
    return {
        "FID": frechet_distance(moments[0].gaussian(), moments[1].gaussian()),
        "KID": kid.mean,
        "std of KID": kid.std,
        "precision": manifold.precision,
        "recall": manifold.recall,
    }


def lpips_figures(net: str, sets: Batches) -> tuple[list[float], list[float]]:
    """The package's distances, pair by pair in its own way, and ours, in batches; the backbone is random."""
    library: Any = import_module("lpips")
    torch.manual_seed(0)
    module = library.LPIPS(net=net, pnet_rand=True, verbose=False)
    ours = LPIPS(copy.deepcopy(module), net, "cpu", {})(*sets)
    theirs = []
    with torch.no_grad():
        for pair in zip(*sets, strict=True):
            first, second = (library.im2tensor(np.asarray(pixels.permute(1, 2, 0))) for pixels in pair)
            theirs.append(float(module(first, second)))
    return theirs, ours.tolist()


def line(name: str, theirs: float, ours: float) -> bool:
    """Prints one comparison; returns whether it is within the tolerance."""
    difference = abs(ours - theirs) / max(abs(theirs), 1e-12)
    print(f"{name:<22}{theirs:>18.9g}{ours:>18.9g}{difference:>14.1e}")
    return difference <= TOLERANCE


def header(title: str, theirs: str) -> None:
    print(f"\n{title}\n{'':<22}{theirs:>18}{'ours':>18}{'difference':>14}")


def main() -> None:
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "torchvision", "torch-fidelity", "lpips"))
    print(f"benchmarks/fidelity_check.py, Python {platform.python_version()}, {packages}")
    sets = pictures(COUNTS[0], 1, 60), pictures(COUNTS[1], 2, 45)
    agreed = []
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "inception.pth"
        random_inception(weights, torch.cat([pixels[:24] for pixels in sets]))
        network = load_feature_net("inception", weights)
        start = time.perf_counter()
        ours = our_figures(sets, network)
        print(f"{sum(COUNTS)} images took us {time.perf_counter() - start:.0f} s", file=sys.stderr)
        theirs = torch_fidelity_figures(sets, weights)
    header(
        f"Random Inception, {COUNTS[0]} and {COUNTS[1]} pictures of {SIDE}×{SIDE}, KID on 100 subsets of {SUBSET_SIZE}",
        "torch-fidelity",
    )
    agreed += [line(name, theirs[name], ours[name]) for name in theirs]

    noise = 12 * torch.randn(24, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(3))
    pair = sets[0][:24], (sets[0][:24].float() + noise).clamp(0, 255).to(torch.uint8)
    header("LPIPS on random backbones, 24 pairs, the largest difference and the mean", "lpips")
    for net in BACKBONES:
        theirs_each, ours_each = map(np.array, lpips_figures(net, pair))
        worst = int(np.argmax(np.abs(ours_each - theirs_each) / theirs_each))
        agreed.append(line(f"{net}, pair {worst}", theirs_each[worst], ours_each[worst]))
        agreed.append(line(f"{net}, mean", theirs_each.mean(), ours_each.mean()))

    header(
        "Resizing as in TensorFlow 1 (dinov2 from a folder), the largest difference in grey levels", "torch-fidelity"
    )
    module = import_module("torch_fidelity.interpolate_compat_tensorflow")
    for side in (64, SIDE, 300):
        x = nn.functional.interpolate(sets[0][:4].float(), side)
        resized = module.interpolate_bilinear_2d_like_tensorflow1x(x, size=(224, 224), align_corners=False)
        own = resize_like_tensorflow(x, 224)
        worst = int((own - resized).abs().argmax())
        agreed.append(line(f"{side} → 224", float(resized.flatten()[worst]), float(own.flatten()[worst])))
    print(f"\nAll within {TOLERANCE}: {'yes' if all(agreed) else 'NO'}")
    sys.exit(not all(agreed))


if __name__ == "__main__":
    main()
