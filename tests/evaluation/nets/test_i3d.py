"""I3D: the names and the paddings of its network, and what is made of clips."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ul_tokenizer.evaluation.nets.feature_nets import MissingFeatureNetError
from ul_tokenizer.evaluation.nets.i3d import I3D, I3DFeatures, SamePool, Unit3D, load_i3d, resize_frames
from ul_tokenizer.files import sha256_of


def clips(batch: int, frames: int, height: int = 24, width: int = 32) -> Tensor:
    generator = torch.Generator().manual_seed(frames)
    return torch.randint(0, 256, (batch, 3, frames, height, width), dtype=torch.uint8, generator=generator)


@pytest.fixture(scope="module")
def network() -> I3D:
    """Random weights that keep the activations' size."""
    torch.manual_seed(0)
    network = I3D().eval().requires_grad_(False)
    for module in network.modules():
        if isinstance(module, nn.Conv3d):
            nn.init.kaiming_normal_(module.weight)
        elif isinstance(module, nn.BatchNorm3d):
            nn.init.normal_(module.bias, std=0.1)
            assert module.running_mean is not None and module.running_var is not None
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return network


@pytest.fixture(scope="module")
def file(network: I3D, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("i3d") / "i3d.safetensors"
    save_file(network.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def features(file: Path) -> I3DFeatures:
    return load_i3d(file)


# ---------------------------------------------------------------- the network


def test_the_state_dict_has_the_names_of_pytorch_i3d(network: I3D) -> None:
    mixed = [f"Mixed_{name}" for name in ("3b", "3c", "4b", "4c", "4d", "4e", "4f", "5b", "5c")]
    units = [
        *("Conv3d_1a_7x7", "Conv3d_2b_1x1", "Conv3d_2c_3x3"),
        *(f"{name}.{branch}" for name in mixed for branch in ("b0", "b1a", "b1b", "b2a", "b2b", "b3b")),
    ]
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    names = {f"{unit}.conv3d.weight" for unit in units} | {f"{unit}.bn.{name}" for unit in units for name in norm}
    state = network.state_dict()
    assert set(state) == names | {"logits.conv3d.weight", "logits.conv3d.bias"}
    assert state["Conv3d_1a_7x7.conv3d.weight"].shape == (64, 3, 7, 7, 7)
    assert state["Mixed_4e.b1b.conv3d.weight"].shape == (288, 144, 3, 3, 3)
    assert state["logits.conv3d.weight"].shape == (400, 1024, 1, 1, 1)
    assert sum(tensor.numel() for name, tensor in state.items() if "running" not in name) == 12_697_264 + 57


def taps(size: int, kernel: int, stride: int) -> list[int]:
    """Of each output of TensorFlow's SAME, how many taps lie on the input; by the formula of TensorFlow's guide."""
    padding = max(kernel - stride, 0) if size % stride == 0 else max(kernel - size % stride, 0)
    starts = range(-(padding // 2), size + padding - padding // 2 - kernel + 1, stride)
    return [sum(0 <= start + tap < size for tap in range(kernel)) for start in starts]


@pytest.mark.parametrize("size", [9, 10, 11, 12])
@pytest.mark.parametrize(("kernel", "stride"), [(7, 2), (3, 1), (1, 1), (2, 2), (3, 2)])
def test_convolutions_pad_as_tensorflow_does(size: int, kernel: int, stride: int) -> None:
    unit = Unit3D(1, 1, kernel, stride).eval()
    nn.init.ones_(unit.conv3d.weight)
    shape = (size, size + 1, size + 2)
    with torch.no_grad():
        counted = unit(torch.ones(1, 1, *shape))[0, 0] * np.sqrt(1 + 1e-3)  # undoes the batch norm
    t, h, w = (torch.tensor(taps(s, kernel, stride), dtype=torch.float32) for s in shape)
    torch.testing.assert_close(counted, t[:, None, None] * h[:, None] * w, rtol=1e-4, atol=0)


@pytest.mark.parametrize("size", [7, 8])
@pytest.mark.parametrize(("kernel", "stride"), [((1, 3, 3), (1, 2, 2)), ((3, 3, 3), (2, 2, 2)), ((2, 2, 2), (2, 2, 2))])
def test_poolings_see_what_tensorflow_sees(
    size: int, kernel: tuple[int, int, int], stride: tuple[int, int, int]
) -> None:
    x = torch.arange(float(size)).expand(1, 1, size, size, size)  # grows to the right: the maximum is the last tap
    row = SamePool(kernel, stride)(x)[0, 0, 0, 0]
    padding = max(kernel[2] - stride[2], 0) if size % stride[2] == 0 else max(kernel[2] - size % stride[2], 0)
    last = [start - padding // 2 + kernel[2] - 1 for start in range(0, size, stride[2])]
    assert row.tolist() == [min(tap, size - 1) for tap in last]


@pytest.mark.parametrize(("frames", "steps"), [(9, 1), (16, 1), (17, 2)])
def test_sizes_follow_the_paper(network: I3D, frames: int, steps: int) -> None:
    shapes = {}
    hooks = [
        module.register_forward_hook(lambda _, __, output, name=name: shapes.update({name: tuple(output.shape[1:])}))
        for name, module in network.named_children()
    ]
    with torch.no_grad():
        logits = network(torch.zeros(1, 3, frames, 224, 224))
    for hook in hooks:
        hook.remove()
    half, quarter, eighth = -(-frames // 2), -(-frames // 4), -(-frames // 8)
    assert shapes["Conv3d_1a_7x7"] == (64, half, 112, 112)
    assert shapes["Conv3d_2c_3x3"] == (192, half, 56, 56)
    assert shapes["Mixed_3c"] == (480, half, 28, 28)
    assert shapes["Mixed_4f"] == (832, quarter, 14, 14)
    assert shapes["Mixed_5c"] == (1024, eighth, 7, 7)
    assert logits.shape == (1, 400, steps)


# ---------------------------------------------------------------- features of clips


def test_features_are_the_mean_logits_of_scaled_frames(network: I3D, features: I3DFeatures) -> None:
    pixels = clips(2, 17)
    frames = pixels.permute(0, 2, 1, 3, 4).reshape(-1, 3, 24, 32).float()
    resized = nn.functional.interpolate(frames, size=(224, 224), mode="bilinear", align_corners=False)
    x = resized.reshape(2, 17, 3, 224, 224).permute(0, 2, 1, 3, 4) / 127.5 - 1
    with torch.no_grad():
        expected = network(x).mean(2)
    found = features(pixels)
    assert found.shape == (2, 400) and found.dtype == torch.float32 and not found.is_inference()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_frames_are_resized_one_by_one() -> None:
    x = torch.zeros(1, 1, 3, 4, 4)
    x[:, :, 1] = 1
    assert resize_frames(x, 6)[0, 0].mean((1, 2)).tolist() == [0, 1, 0]


def test_facts_say_which_kind_of_file_it_is(features: I3DFeatures, file: Path) -> None:
    facts = json.loads(json.dumps(features.facts()))
    assert facts["weights_sha256"] == sha256_of(file)
    assert (facts["metric"], facts["dim"], features.name) == ("FVD", 400, "i3d")
    assert facts["loader"].startswith("safetensors")


def test_weights_of_an_old_torch_need_no_counts(file: Path, tmp_path: Path) -> None:
    state = {name: tensor for name, tensor in load_file(file).items() if not name.endswith("num_batches_tracked")}
    save_file(state, tmp_path / "old.safetensors")
    load_i3d(tmp_path / "old.safetensors")


def test_clips_that_are_too_short_are_refused(features: I3DFeatures) -> None:
    with pytest.raises(ValueError, match="clips must have at least 9 frames for I3D, got 8"):
        features(clips(1, 8))
    assert features(clips(1, 9)).isfinite().all()


@pytest.mark.parametrize("bad", [clips(1, 9).float(), clips(1, 9)[0], clips(1, 9)[:, :1]])
def test_other_clips_are_refused(features: I3DFeatures, bad: Tensor) -> None:
    with pytest.raises(ValueError, match=r"clips must be uint8 with the shape \(B, 3, frames, height, width\), got"):
        features(bad)


def test_files_that_are_no_i3d_are_refused(tmp_path: Path, file: Path) -> None:
    with pytest.raises(MissingFeatureNetError, match=r"FVD needs an I3D network, .* which is not a file"):
        load_i3d(tmp_path / "nowhere.safetensors")
    state = load_file(file)
    save_file({**state, "extra": torch.zeros(1)}, tmp_path / "extra.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"no weights")
    for name in ("extra", "broken"):
        with pytest.raises(ValueError, match=rf"path must be an I3D with pytorch-i3d's names, got .*{name}"):
            load_i3d(tmp_path / f"{name}.safetensors")
    (tmp_path / "broken.pt").write_bytes(b"no program")
    with pytest.raises(ValueError, match="path must be a TorchScript file, got"):
        load_i3d(tmp_path / "broken.pt")


# ---------------------------------------------------------------- TorchScript


class Detector(nn.Module):
    """Has StyleGAN-V's calling convention."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, x: Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False) -> Tensor:
        assert rescale and resize and return_features
        return x.float().mean((1, 2, 3, 4))[:, None].expand(-1, self.outputs)


def scripted(outputs: int, path: Path) -> Path:
    torch.jit.script(Detector(outputs)).save(str(path))
    return path


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_is_called_as_styleganv_does(tmp_path: Path) -> None:
    network = load_i3d(scripted(400, tmp_path / "i3d.pt"))
    pixels = clips(2, 10)
    expected = pixels.float().mean((1, 2, 3, 4))[:, None].expand(-1, 400)
    torch.testing.assert_close(network(pixels), expected)
    assert "rescale=True, resize=True, return_features=True" in network.facts()["loader"]
    with pytest.raises(ValueError, match="at least 10 frames"):
        network(clips(1, 9))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_with_other_features_is_refused(tmp_path: Path) -> None:
    network = load_i3d(scripted(1024, tmp_path / "other.pt"))
    with pytest.raises(ValueError, match=r"path must give 400 features for a clip, got \(1, 1024\) by"):
        network(clips(1, 10))
