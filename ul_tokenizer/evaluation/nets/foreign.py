"""Networks of other libraries: how they compute, and what happens where a package or its weights are missing.

A user without a network still wants all the other figures, so whatever goes wrong while one is loaded becomes one
sentence in a `MissingFeatureNetError`: what is missing, where to get it and what works without it.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

STILL_WORKS = "efficientnet-lite0 works without it, and PSNR, SSIM and MS-SSIM need no network"


class MissingFeatureNetError(ValueError):
    """A network can't be loaded; the message says in one sentence what is missing and where to get it."""


# ---------------------------------------------------------------- computing


@contextmanager
def reproducible(device: torch.device) -> Iterator[None]:
    """Computes without gradients, in true fp32: no autocast, no TF32, no bf16 inside products."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.no_grad(), torch.autocast(device.type, enabled=False), _convolutions_in_fp32(device):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)


@contextmanager
def _convolutions_in_fp32(device: torch.device) -> Iterator[None]:
    if device.type != "cuda":
        yield
        return
    cudnn = torch.backends.cudnn
    with cudnn.flags(enabled=cudnn.enabled, deterministic=True, allow_tf32=False):
        yield


def check_images(images: Tensor, name: str = "images") -> None:
    """Refuses anything but (B, 3, H, W), uint8.

    Raises:
        ValueError: it is something else.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3 or images.numel() == 0:
        raise ValueError(
            f"{name} must be uint8 with the shape (B, 3, height, width), got {images.dtype} with {tuple(images.shape)}."
        )


def in_blocks(network: Callable[[Tensor], Tensor], images: Tensor, block: int, device: torch.device) -> Tensor:
    """Features (B, D) of images (B, …), computed `block` at a time; fp32, on the CPU."""
    with reproducible(device):
        return torch.cat([network(part.to(device)).float().cpu() for part in images.split(block)])


def versions(*packages: str) -> dict[str, str]:
    """Name → version of installed packages."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # imported from a folder
            found[package] = "unknown"
    return found


# ---------------------------------------------------------------- optional packages and downloads


def optional_module(module: str, package: str, extra: str, user: str, otherwise: str = STILL_WORKS) -> ModuleType:
    """Imports a library that not everyone has.

    Args:
        module: what to import.
        package: its name on PyPI.
        extra: the extra of ours that installs it.
        user: what needs it, the subject of the message.
        otherwise: what still works.

    Raises:
        MissingFeatureNetError: it isn't installed, or something that it imports is missing or broken.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return import_module(module)
    except ModuleNotFoundError as error:
        missing = package if (error.name or module).split(".")[0] == module.split(".")[0] else str(error.name)
        reason = f"{user} needs {missing}, which is not installed: pip install 'ul_tokenizer[{extra}]'"
        raise MissingFeatureNetError(f"{reason} ({otherwise}).") from error
    except (ImportError, RuntimeError, OSError) as error:
        # torchvision of a CUDA build beside torch of a CPU build: "operator torchvision::nms does not exist".
        reason = f"{user} needs {package}, which does not import beside torch {torch.__version__}"
        remedy = "install torch and torchvision builds that belong together"
        raise MissingFeatureNetError(f"{reason} ({first_line(error)}): {remedy} ({otherwise}).") from error


def hub_checkpoint(url: str) -> Path:
    """Where torch.hub keeps the file of a URL."""
    return Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]


def check_download(files: list[Path], user: str, remedy: str, otherwise: str = STILL_WORKS) -> None:
    """Refuses a download where HF_HUB_OFFLINE forbids it.

    Args:
        files: what torch.hub keeps once it is downloaded.
        user: what needs them, the subject of the message.
        remedy: where else to get them.
        otherwise: what still works.

    Raises:
        MissingFeatureNetError: one of the files is missing and we are offline.
    """
    from huggingface_hub import constants

    missing = [str(file) for file in files if not file.exists()]
    if missing and constants.HF_HUB_OFFLINE:
        raise MissingFeatureNetError(
            f"{user} needs {' and '.join(missing)}, and HF_HUB_OFFLINE forbids the download: {remedy} ({otherwise})."
        )


@contextmanager
def quiet_loading() -> Iterator[None]:
    """While a library loads weights, silences warnings and stdout, and lets torch unpickle nothing but tensors.

    torch-fidelity and torchvision ask torch for unrestricted unpickling, which could run code from a weights file.
    stderr stays, for the progress of downloads.
    """
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before


def download_failed(user: str, error: Exception, remedy: str, otherwise: str = STILL_WORKS) -> MissingFeatureNetError:
    """The error for weights that another library could not download."""
    return MissingFeatureNetError(
        f"{user} needs weights that could not be downloaded ({first_line(error)}): {remedy} ({otherwise})."
    )


def first_line(error: Exception) -> str:
    """What an error says, short enough for the middle of a sentence."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
