"""Reconstructions, measured and written down."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.evaluation.autoencoders import save
from tests.evaluation.conftest import moved
from ul_tokenizer import UnifiedLatentsAutoencoder, load_prior
from ul_tokenizer.evaluation.autoencoders import AnyAutoencoder
from ul_tokenizer.evaluation.job import evaluate_reconstruction
from ul_tokenizer.evaluation.measures.frechet import Gaussian, frechet_distance
from ul_tokenizer.evaluation.parts import BATCHES_PER_PART
from ul_tokenizer.evaluation.results import check_result, read_result
from ul_tokenizer.evaluation.samples import Crops
from ul_tokenizer.evaluation.subjects import AutoencoderSubject
from ul_tokenizer.media.videos import VideoWriter
from ul_tokenizer.models.presets import build_autoencoder, build_prior

ROOT = Path(__file__).resolve().parents[2]
NUM = 21


class Means:
    """Features of an image: its mean colours, twice scaled."""

    name, dim, metric = "means", 4, "FD-means"

    def facts(self) -> dict[str, Any]:
        return {"name": self.name, "weights_sha256": "0"}

    def __call__(self, images: Tensor) -> Tensor:
        means = images.float().mean((2, 3)) / 255
        return torch.cat([means, means[:, :1] ** 2], 1)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setattr("ul_tokenizer.evaluation.reference_features.CACHE", folder)
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """21 crops of the demo's photographs, 24×24."""
    folder = tmp_path_factory.mktemp("photos")
    whole = [Image.open(path).convert("RGB") for path in sorted((ROOT / "examples" / "images").glob("*.jpg"))]
    random = np.random.default_rng(0)
    for number in range(NUM):
        left, top = (int(n) for n in random.integers(0, 300, 2))
        whole[number % 3].crop((left, top, left + 72, top + 72)).resize((24, 24)).save(folder / f"{number:02d}.png")
    return folder


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ours")
    moved(build_autoencoder("ul-tiny-f8")).save_pretrained(folder)
    moved(build_prior("ul-tiny-f8")).save_pretrained(folder / "prior")
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ours without a prior: bits take most of the time."""
    folder = tmp_path_factory.mktemp("plain")
    moved(build_autoencoder("ul-tiny-f8")).save_pretrained(folder)
    return folder


def measure(data: Path, *models: Any, **options: Any) -> list[dict[str, Any]]:
    return evaluate_reconstruction(
        data, models, **{"features": [Means()], "lpips": None, "batch_size": 4, "device": "cpu", **options}
    )


def figures(result: dict[str, Any]) -> dict[str, Any]:
    """What may not depend on machines and times."""
    return {name: result[name] for name in ("subject", "protocol", "metrics", "distances", "missing", "key")}


def test_figures_are_those_of_the_pixels(photos: Path, ours: Path) -> None:
    result, codec = measure(photos, str(ours), "jpeg:30", steps=[2])
    check_result(result)
    originals = torch.stack(
        [torch.from_numpy(np.array(Image.open(p))).permute(2, 0, 1) for p in sorted(photos.iterdir())]
    )
    subject = AutoencoderSubject(AnyAutoencoder("x", *_loaded(ours)), 2)
    parts = [subject.reconstruct(batch, range(4 * n, 4 * n + len(batch))) for n, batch in enumerate(originals.split(4))]
    again = torch.cat([part.pixels for part in parts])
    mse = (again.double() - originals.double()).square().flatten(1).mean(1)
    metrics = result["metrics"]
    assert metrics["psnr_of_mean_mse"]["value"] == pytest.approx(float(10 * torch.log10(255**2 / mse.mean())))
    assert metrics["mean_psnr"]["value"] == pytest.approx(float((10 * torch.log10(255**2 / mse)).mean()))
    assert metrics["mean_psnr"]["low"] < metrics["mean_psnr"]["value"] < metrics["mean_psnr"]["high"]
    energies = [sum(x.double().diff(dim=dim).square().mean() for dim in (2, 3)) for x in (again, originals)]
    assert metrics["sharpness"]["value"] == pytest.approx(float(energies[0] / energies[1]))
    bits = torch.cat([part.bits for part in parts]) / 24**2
    assert metrics["bits_per_pixel"]["value"] == pytest.approx(float(bits.mean()))
    assert metrics["bits_per_pixel"]["kind"] == "bound by the prior"
    assert "ms_ssim" not in metrics  # the images are too small for five scales
    net = Means()
    expected = frechet_distance(Gaussian.of(net(again)), Gaussian.of(net(originals)))
    assert result["distances"]["means"]["frechet"]["value"] == pytest.approx(expected, rel=1e-6)
    assert result["distances"]["means"]["floor_nums"] == [10, 10]
    assert codec["metrics"]["bits_per_pixel"]["kind"] == "file bytes"
    assert codec["subject"]["quality"] == 30
    assert codec["metrics"]["mean_psnr"]["value"] > metrics["mean_psnr"]["value"]  # random weights


def _loaded(folder: Path) -> Any:
    return UnifiedLatentsAutoencoder.from_pretrained(folder).eval(), load_prior(str(folder)).eval()


def test_a_result_states_its_protocol_and_where_it_was_measured(photos: Path, plain: Path, tmp_path: Path) -> None:
    (result,) = measure(photos, str(plain), crops=Crops(16, "random", 8, 30, seed=3), output=tmp_path / "out")
    protocol = result["protocol"]
    expected = {
        "num_samples": 30,
        "num_images": NUM,
        "resolution": 16,
        "crop": "random",
        "crop_size": 8,
        "seed": 3,
        "rounding": "uint8",
    }
    assert {name: protocol[name] for name in expected} == expected
    assert len(protocol["pixels_sha256"]) == len(protocol["source_sha256"]) == 64
    assert result["environment"]["torch"] == torch.__version__
    assert result["cost"]["flops"]["encode"]["convolutions"] > 0
    assert result["cost"]["seconds_per_image"] > 0
    (path,) = (tmp_path / "out").glob("*.json")
    assert read_result(path) == result
    assert not (tmp_path / "out" / ".parts").exists()
    pictures = sorted(p.name for p in path.with_suffix(".pictures").iterdir())
    assert pictures == sorted(f"{kind}-{n:03d}.png" for kind in ("original", "reconstruction") for n in range(8))


def test_a_second_run_measures_nothing_and_other_weights_are_measured(
    photos: Path, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = measure(photos, str(plain), output=tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(AutoencoderSubject, "reconstruct", None)
        assert measure(photos, str(plain), output=tmp_path) == first
    other = UnifiedLatentsAutoencoder.from_pretrained(plain).eval()
    other.decoder.conv_out.bias.data.add_(0.1)
    (second,) = measure(photos, AnyAutoencoder(str(plain), other), output=tmp_path)
    assert second["key"] != first[0]["key"]
    assert len(list(tmp_path.glob("*.json"))) == 2


@pytest.mark.parametrize("name", ["AutoencoderKL", "AutoencoderTiny", "AutoencoderDC", "AutoencoderRAE"])
def test_any_diffusers_autoencoder_is_measured_like_ours(name: str, photos: Path, tmp_path: Path) -> None:
    (result,) = measure(photos, str(save(name, tmp_path)), crops=Crops(32, "center"), steps=[1, 2])
    assert result["subject"]["type"] == name
    assert result["metrics"]["bits_per_pixel"]["kind"] == "nominal, 16 bits per latent value"
    assert 0 < result["metrics"]["mean_psnr"]["value"] < 30


def test_what_is_missing_is_named_and_the_rest_is_measured(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    monkeypatch.setitem(sys.modules, "lpips", None)
    (result,) = measure(photos, "jpeg:30", features=["inception", Means()], lpips="alex")
    assert len(result["missing"]) == 2
    assert all("ul_tokenizer[eval]" in sentence and sentence.endswith(".") for sentence in result["missing"])
    assert result["distances"].keys() == {"means"}
    assert "lpips" not in result["metrics"]


def test_a_frechet_distance_of_few_images_is_refused_unless_forced(photos: Path, tmp_path: Path) -> None:
    few = tmp_path / "few"
    few.mkdir()
    for path in sorted(photos.iterdir())[:3]:
        (few / path.name).write_bytes(path.read_bytes())
    (refused,), (forced,) = (measure(few, "jpeg:30", force_fd=force, output=tmp_path) for force in (False, True))
    entry = refused["distances"]["means"]
    assert entry["frechet"]["value"] is None
    assert "needs more images than features; use the KID" in entry["frechet"]["refused"]
    assert "KID needs at least 10 images, got 3" in entry["kid"]["refused"]
    assert forced["distances"]["means"]["frechet"]["value"] >= 0


def test_reconstructions_that_are_not_finite_are_named_and_never_averaged_away(photos: Path, plain: Path) -> None:
    vae = UnifiedLatentsAutoencoder.from_pretrained(plain).eval()
    decode = vae.decode

    def with_one_nan(z: Tensor, **options: Any) -> Any:
        output = decode(z, **options)
        output.sample[0, 0, 3, 3] = torch.nan
        return output

    vae.decode = with_one_nan
    (result,) = measure(photos, AnyAutoencoder("broken", vae))
    assert result["nonfinite"] == ["00.png", "04.png", "08.png", "12.png", "16.png", "20.png"]
    assert result["metrics"]["mean_psnr"]["value"] is None
    assert result["distances"]["means"]["frechet"]["value"] is None
    assert "not finite" in result["distances"]["means"]["kid"]["refused"]
    assert result["metrics"]["bits_per_pixel"]["value"] > 0


def test_files_that_cant_be_read_are_named(photos: Path, tmp_path: Path) -> None:
    for path in [*photos.iterdir()]:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "07.png").write_bytes(b"no image")
    Image.new("L", (24, 24), 90).save(tmp_path / "grey.png")
    Image.fromarray(np.full((24, 24), 30_000, np.uint16)).save(tmp_path / "sixteen.png")
    (result,) = measure(tmp_path, "jpeg:30")
    assert [skip["id"] for skip in result["skipped"]] == ["07.png"]
    assert result["distances"]["means"]["num"] == NUM + 1
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "x.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match="data must hold images that can be read, got none among 1"):
        measure(tmp_path / "only", "jpeg:30", features=[])


# ---------------------------------------------------------------- references


def test_reference_features_are_computed_once_and_refused_for_other_data(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "reference.safetensors"
    (first,) = measure(photos, "jpeg:30", references={"means": path})
    stamp = path.stat().st_mtime_ns
    (second,) = measure(photos, "jpeg:30", references={"means": path})
    assert path.stat().st_mtime_ns == stamp
    assert figures(first) == figures(second)
    with pytest.raises(ValueError, match=r"holds features of another protocol\.num_samples: 21, not 9\."):
        measure(photos, "jpeg:30", references={"means": path}, crops=Crops(num_samples=9))
    with pytest.raises(ValueError, match=r"holds features of another protocol\.resolution: None, not 16\."):
        measure(photos, "jpeg:30", references={"means": path}, crops=Crops(16))
    monkeypatch.setattr(Means, "facts", lambda _: {"name": "means", "weights_sha256": "1"})
    with pytest.raises(ValueError, match=r"holds features of another net\.weights_sha256: '0', not '1'\."):
        measure(photos, "jpeg:30", references={"means": path})


def test_a_reference_of_pixels_that_have_changed_is_refused(photos: Path, tmp_path: Path) -> None:
    """The same names and sizes of files, so that only the pixels tell."""
    data, path = tmp_path / "data", tmp_path / "reference.safetensors"
    data.mkdir()
    for number in range(12):
        Image.fromarray(np.full((8, 8, 3), 10 * number, np.uint8)).save(data / f"{number:02d}.bmp")
    measure(data, "jpeg:30", references={"means": path})
    Image.fromarray(np.full((8, 8, 3), 77, np.uint8)).save(data / "03.bmp")
    with pytest.raises(ValueError, match="holds features of images that have changed since"):
        measure(data, "jpeg:30", references={"means": path})


# ---------------------------------------------------------------- clips


def test_clips_have_figures_per_frame_flicker_and_a_distance_over_clips(plain: Path, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for number in range(3):
        picture = random.integers(0, 256, (4, 4, 3)).astype(np.uint8).repeat(8, 0).repeat(8, 1)
        with VideoWriter(tmp_path / f"{number}.mp4", 10.0) as writer:
            for shift in range(24):
                writer.write(np.roll(picture, shift, 1))
    (result, codec) = measure(tmp_path, str(plain), "jpeg:30", clip_frames=6)
    assert result["protocol"]["num_samples"] == 12
    metrics = result["metrics"]
    assert len(metrics["psnr_per_frame"]["value"]) == 6
    assert metrics["source_change"]["value"] > 0.01
    assert metrics["flicker"]["value"] > codec["metrics"]["flicker"]["value"] > 0
    assert result["distances"]["means-clips"]["frechet"]["name"] == "FD-means over clips"
    assert result["distances"]["means-clips"]["frechet"]["value"] > 0


# ---------------------------------------------------------------- several processes, kills

SCRIPT = """
import os, signal, sys
from pathlib import Path
from tests.evaluation import test_reconstruction as t
from ul_tokenizer.evaluation import reference_features, subjects
reference_features.CACHE = Path(sys.argv[3])
if len(sys.argv) > 4:
    whole = subjects.AutoencoderSubject.reconstruct
    def killed(self, pixels, numbers):
        if numbers[0] >= int(sys.argv[4]):
            os.kill(os.getpid(), signal.SIGKILL)
        return whole(self, pixels, numbers)
    subjects.AutoencoderSubject.reconstruct = killed
if __name__ == "__main__":
    t.measure(Path(sys.argv[1]), *sys.argv[2].split(","), output=Path(sys.argv[3]).parent / "out")
"""


def start(folder: Path, photos: Path, models: str, *more: str, processes: int = 1) -> subprocess.CompletedProcess[str]:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "script.py").write_text(SCRIPT)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    words = [
        *(launcher if processes > 1 else []),
        str(folder / "script.py"),
        str(photos),
        models,
        str(folder / "cache"),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *words, *more], env=environment, capture_output=True, text=True, timeout=250, check=False
    )


@pytest.mark.multiprocess
def test_two_processes_give_the_figures_of_one(photos: Path, plain: Path, tmp_path: Path) -> None:
    for processes in (1, 2):
        done = start(tmp_path / str(processes), photos, f"{plain},jpeg:30", processes=processes)
        assert done.returncode == 0, done.stderr[-8000:]
    one, two = (sorted((tmp_path / str(n) / "out").glob("*.json")) for n in (1, 2))
    assert [path.name for path in one] == [path.name for path in two]
    assert [figures(read_result(path)) for path in one] == [figures(read_result(path)) for path in two]


@pytest.mark.multiprocess
def test_a_killed_evaluation_is_continued(photos: Path, plain: Path, tmp_path: Path) -> None:
    killed = start(tmp_path / "killed", photos, str(plain), str(4 * BATCHES_PER_PART))
    assert killed.returncode == -9
    (part,) = (tmp_path / "killed" / "out" / ".parts").glob("*/part-*.safetensors")
    assert part.stat().st_size and not list((tmp_path / "killed" / "out").glob("*.json"))
    for name in ("killed", "whole"):
        done = start(tmp_path / name, photos, str(plain))
        assert done.returncode == 0, done.stderr[-8000:]
    (continued,), (whole,) = ((tmp_path / name / "out").glob("*.json") for name in ("killed", "whole"))
    assert figures(read_result(continued)) == figures(read_result(whole))
