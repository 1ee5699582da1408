"""LPIPS (Zhang et al. 2018, version 0.1) by the package `lpips`, in batches of 8-bit images."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ul_tokenizer.evaluation.nets.foreign import (
    check_download,
    check_images,
    download_failed,
    hub_checkpoint,
    optional_module,
    quiet_loading,
    reproducible,
    versions,
)
from ul_tokenizer.files import sha256_of
from ul_tokenizer.media.pixels import to_float

# Network → its class of weights in torchvision, and the smallest image that its poolings leave anything of.
BACKBONES = {"alex": ("AlexNet_Weights", 31), "vgg": ("VGG16_Weights", 16)}
_OTHERWISE = "PSNR, SSIM and MS-SSIM need no network"
_PIXELS_AT_ONCE = 1 << 19  # eight images of 256², whose activations in VGG take about 1 GB


class LPIPS:
    """Perceptual distances of pairs of images. `load_lpips` makes one.

    Args:
        module: an `lpips.LPIPS`, called with two batches in [−1, 1].
        net: a name in `BACKBONES`.
        device: where it computes.
        facts: what `facts` returns.
    """

    def __init__(self, module: nn.Module, net: str, device: torch.device | str, facts: dict[str, Any]) -> None:
        self._device = torch.device(device)
        self._module = module.eval().requires_grad_(False).to(self._device)
        nn.utils.convert_conv2d_weight_memory_format(self._module, torch.channels_last)
        self._min_side = BACKBONES[net][1]
        self._facts = facts

    def facts(self) -> dict[str, Any]:
        """What a result says about the network, for JSON."""
        return dict(self._facts)

    def __call__(self, reference: Tensor, reconstruction: Tensor) -> Tensor:
        """Distances (B,), float64, on the CPU, of pairs (B, 3, H, W), uint8.

        Raises:
            ValueError: the batches have other dtypes or shapes, differ in shape, or are too small for the network.
        """
        check_images(reference, "reference")
        check_images(reconstruction, "reconstruction")
        if reference.shape != reconstruction.shape:
            raise ValueError(
                f"reconstruction must have the shape of reference, {tuple(reference.shape)}, got "
                f"{tuple(reconstruction.shape)}."
            )
        height, width = reference.shape[2:]
        if min(height, width) < self._min_side:
            raise ValueError(f"reference must have at least {self._min_side} pixels a side, got {width}×{height}.")
        block = max(1, _PIXELS_AT_ONCE // (height * width))
        with reproducible(self._device):
            pairs = zip(reference.split(block), reconstruction.split(block), strict=True)
            return torch.cat([self._module(*map(self._input, pair)).flatten() for pair in pairs]).double().cpu()

    def _input(self, images: Tensor) -> Tensor:
        return to_float(images.to(self._device)).contiguous(memory_format=torch.channels_last)


def load_lpips(net: str = "alex", device: torch.device | str = "cpu") -> LPIPS:
    """Loads LPIPS with the linear layers of its authors and torchvision's ImageNet weights.

    Args:
        net: "alex", which the authors recommend for evaluation, or "vgg".
        device: where it computes.

    Raises:
        MissingFeatureNetError: a package or the weights are missing and can't be downloaded.
        ValueError: an unknown network.
    """
    if net not in BACKBONES:
        raise ValueError(f"net must be one of {', '.join(BACKBONES)}, got {net!r}.")
    user = f"LPIPS ({net})"
    library = optional_module("lpips", "lpips", "eval", user, _OTHERWISE)
    url = getattr(import_module("torchvision.models"), BACKBONES[net][0]).IMAGENET1K_V1.url
    file = hub_checkpoint(url)
    remedy = f"put {url} into {file.parent}"
    check_download([file], user, remedy, _OTHERWISE)
    try:
        with quiet_loading():
            module = library.LPIPS(net=net, verbose=False)
    except Exception as error:  # whatever torch raises while it downloads, or for a file that was cut off
        raise download_failed(user, error, remedy, _OTHERWISE) from error
    return LPIPS(module, net, device, lpips_facts(net, file))


def lpips_facts(net: str, backbone: Path) -> dict[str, Any]:
    """The facts of LPIPS with the weights of its authors and those of a backbone's file."""
    linear = Path(str(import_module("lpips").__file__)).parent / "weights" / "v0.1" / f"{net}.pth"
    return {
        "name": "lpips",
        "net": net,
        "version": "0.1",
        "weights_sha256": sha256_of(linear),
        "backbone_sha256": sha256_of(backbone),
        "resize": "none",
        "packages": versions("lpips", "torchvision"),
    }
