"""A small part of the figures in the bundled models' cards, measured on content that is in the repository.

`python tests/bundled_figures.py` measures every bundled model and prints how far the figures are from
`tests/golden/bundled.json`. `python tests/bundled_figures.py --write` measures them and writes that file: do this after
bundling new weights. It takes about a minute. `tests/test_bundled_model.py` measures again and fails on a regression.

The photographs are those of the demo. Clothes, their classifier and emoji are in tests/data.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

from ul_tokenizer import UnifiedLatentsAutoencoder, UnifiedLatentsPipeline  # noqa: E402
from ul_tokenizer.diffusion.objective import SigmoidWeighting, diffuse, sigmoid_loss  # noqa: E402
from ul_tokenizer.diffusion.schedule import LogSNRSchedule  # noqa: E402
from ul_tokenizer.evaluation.autoencoders import load_any_autoencoder  # noqa: E402
from ul_tokenizer.evaluation.measures.metrics import mean_psnr, psnr_of_mean_mse  # noqa: E402
from ul_tokenizer.evaluation.nets.classifier import SmallClassifier, judge  # noqa: E402
from ul_tokenizer.evaluation.nets.labelled_images import grey_of  # noqa: E402
from ul_tokenizer.files import write_json  # noqa: E402
from ul_tokenizer.media.images import read_image  # noqa: E402
from ul_tokenizer.media.pixels import frame_to_float, to_float, to_uint8  # noqa: E402
from ul_tokenizer.models.repository import load_prior  # noqa: E402
from ul_tokenizer.pretrained import bundled_names  # noqa: E402

IMAGES, DATA = ROOT / "examples" / "images", Path(__file__).parent / "data"
VALUES = Path(__file__).parent / "golden" / "bundled.json"
DB, BITS, POINTS = 0.3, 0.05, 0.05  # what may be lost: PSNR in dB, a fraction of the bits, and points of accuracy
PHOTO_STEPS, VIDEO_STEPS = (1, 2, 4, 8), (1, 4)
LEVELS = 8  # log-SNR values at which the base model's loss is measured
Figures = dict[str, float]


# ---------------------------------------------------------------- content


@cache
def photos() -> Tensor:
    """The demo's three photographs, (3, 3, 384, 512)."""
    return torch.stack([frame_to_float(read_image(path)) for path in sorted(IMAGES.glob("*.jpg"))])


def crops() -> Tensor:
    """Two crops of each photograph, (6, 3, 128, 128)."""
    return torch.stack([p[:, y : y + 128, x : x + 128] for p in photos() for y, x in ((64, 96), (192, 288))])


def pans() -> Tensor:
    """Clips of twelve frames that move by two pixels a frame over the photographs, (3, 3, 12, 64, 64)."""
    return torch.stack([photos()[:, :, 100:164, 100 + k : 164 + k] for k in range(0, 24, 2)], dim=2)


def clothes() -> tuple[Tensor, Tensor]:
    """Ten real test images of each class, (100, 3, 32, 32), and their classes."""
    return _cells("fashion-mnist.png", 32), torch.arange(100) // 10


def emoji() -> tuple[Tensor, list[dict[str, Any]]]:
    """Real emoji of the validation set, (16, 3, 64, 64), with their captions and classes."""
    rows: list[dict[str, Any]] = json.loads((DATA / "emoji.json").read_text(encoding="utf-8"))
    return _cells("emoji.png", 64), rows


def _cells(file: str, side: int) -> Tensor:
    """The pictures of a grid, line by line, in [−1, 1]."""
    with Image.open(DATA / file) as picture:
        grid = torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)
    return to_float(grid.unfold(1, side, side).unfold(2, side, side).permute(1, 2, 0, 3, 4).flatten(0, 1))


# ---------------------------------------------------------------- measuring


def generators(seed: int, count: int) -> list[torch.Generator]:
    """One generator for each sample."""
    return [torch.Generator().manual_seed(seed + number) for number in range(count)]


@torch.inference_mode()
def noisy_latents(autoencoder: Any, pixels: Tensor) -> Tensor:
    """A sample of the latents."""
    z: Tensor = autoencoder.encode(pixels).latent_dist.sample(generators(100, len(pixels)))
    return z


@torch.inference_mode()
def decoded(autoencoder: Any, latents: Tensor, steps: int | None = None) -> Tensor:
    """The decoder's pixels for latents."""
    noise = generators(0, len(latents))
    sample: Tensor = autoencoder.decode(latents, num_inference_steps=steps, generator=noise).sample
    return sample


def bits_per_pixel(name: str, autoencoder: Any, pixels: Tensor) -> float:
    """The prior's bound on the bits."""
    bits = autoencoder.bits(pixels, load_prior(name), generator=generators(7, len(pixels)))
    return float(bits.mean()) / (pixels[0].numel() // 3)


def autoencoder_of(name: str) -> Any:
    """A bundled autoencoder, in evaluation mode."""
    return UnifiedLatentsAutoencoder.from_pretrained(name).eval()


def of_photo(name: str) -> Figures:
    """PSNR of crops by steps, with and without their own latent, of whole photographs, and bits."""
    vae, pixels = autoencoder_of(name), crops()
    z = noisy_latents(vae, pixels)
    figures = {f"psnr_{n}_steps": psnr_of_mean_mse(pixels, decoded(vae, z, n)) for n in PHOTO_STEPS}
    figures["psnr_of_another_latent"] = psnr_of_mean_mse(pixels, decoded(vae, z.roll(2, 0), 1))
    figures["psnr_of_whole_photos"] = psnr_of_mean_mse(photos(), decoded(vae, noisy_latents(vae, photos()), 1))
    vae.disable_tiling()
    untiled = psnr_of_mean_mse(photos(), decoded(vae, noisy_latents(vae, photos()), 1))
    return {**figures, "psnr_without_tiles": untiled, "bits_per_pixel": bits_per_pixel(name, vae, pixels)}


def of_video(name: str) -> Figures:
    """PSNR of pans over the photographs by steps, and bits."""
    vae = autoencoder_of(name)
    z = noisy_latents(vae, pans())
    figures = {f"psnr_{n}_steps": psnr_of_mean_mse(pans(), decoded(vae, z, n)) for n in VIDEO_STEPS}
    return {**figures, "bits_per_pixel": bits_per_pixel(name, vae, pans())}


@cache
def pipeline_of(name: str) -> UnifiedLatentsPipeline:
    """A bundled pipeline."""
    pipeline: UnifiedLatentsPipeline = UnifiedLatentsPipeline.from_pretrained(name)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def of_reconstruction(name: str, pixels: Tensor) -> Figures:
    """Mean PSNR of a pipeline's autoencoder at its own steps, and bits."""
    vae = pipeline_of(name).vae
    found = mean_psnr(pixels, decoded(vae, noisy_latents(vae, pixels)))
    return {"psnr": found, "bits_per_pixel": bits_per_pixel(name, vae, pixels)}


@cache
def classifier() -> SmallClassifier:
    """The classifier of clothes."""
    network = SmallClassifier(1, 10)
    network.load_state_dict(load_file(DATA / "fashion-mnist-classifier.safetensors"))
    return network.eval().requires_grad_(False)


def accuracy(pixels: Tensor, labels: Tensor) -> float:
    """The part of images of clothes (B, 3, 32, 32) in [−1, 1] in which the classifier sees their class."""
    return judge(classifier(), grey_of(to_uint8(pixels))).accuracy(labels)


@cache
def generated_clothes(name: str = "ul-fashion") -> Tensor:
    """Ten guided images of each class, (100, 3, 32, 32) in [−1, 1]."""
    _, labels = clothes()
    options: dict[str, Any] = {"guidance_scale": 2.5, "num_inference_steps": 16, "generator": generators(0, 100)}
    (images,) = pipeline_of(name)(labels.tolist(), **options, output_type="pt", return_dict=False)
    pixels: Tensor = 2 * images - 1
    return pixels


def of_fashion(name: str) -> Figures:
    """Reconstructions of real clothes, and the accuracy of generated, reconstructed and real ones."""
    pixels, labels = clothes()
    vae = pipeline_of(name).vae
    return {
        **of_reconstruction(name, pixels),
        "accuracy_of_generated": accuracy(generated_clothes(name), labels),
        "accuracy_of_reconstructions": accuracy(decoded(vae, noisy_latents(vae, pixels)), labels),
        "accuracy_of_real": accuracy(pixels, labels),
    }


@torch.inference_mode()
def losses_by_caption(pipeline: UnifiedLatentsPipeline, pixels: Tensor, captions: list[str]) -> Tensor:
    """The base model's own loss of each image under each caption, (B, C), with the same noise for all."""
    z = pipeline.vae.encode(pixels).latent
    level = float(pipeline.transformer.config.latent_logsnr)
    schedule, weighting = LogSNRSchedule(level, -10.0), SigmoidWeighting(1.0, 2.5)
    losses = torch.zeros(len(z), len(captions))
    for number in range(LEVELS):
        t = torch.full((len(z),), (number + 0.5) / LEVELS)
        noise, logsnr = torch.randn(z.shape, generator=torch.Generator().manual_seed(number)), schedule.logsnr(t)
        for place, caption in enumerate(captions):
            states, mask = pipeline.encode_prompt([caption] * len(z))
            v = pipeline.transformer(
                diffuse(z, noise, logsnr), logsnr, encoder_hidden_states=states, encoder_attention_mask=mask
            ).sample
            losses[:, place] += sigmoid_loss(v, z, noise, t, schedule, weighting)
    return losses


def of_emoji(name: str) -> Figures:
    """Reconstructions of real emoji, and how often the base model finds the caption of one among sixteen."""
    pixels, rows = emoji()
    losses = losses_by_caption(pipeline_of(name), pixels, [row["caption"] for row in rows])
    right = float((losses.argmin(1) == torch.arange(len(rows))).double().mean())
    return {**of_reconstruction(name, pixels), "accuracy_of_captions": right}


MEASURES: Mapping[str, Callable[[str], Figures]] = {
    "ul-emoji": of_emoji,
    "ul-fashion": of_fashion,
    "ul-photo-f8": of_photo,
    "ul-video": of_video,
}


# ---------------------------------------------------------------- comparing


def weights_of(name: str) -> str:
    """Hash of a bundled model's weights: those of a pipeline's autoencoder, with its prior."""
    return str(load_any_autoencoder(name).facts()["weights_sha256"])


def expected() -> dict[str, dict[str, Any]]:
    """The committed figures of each model."""
    values: dict[str, dict[str, Any]] = json.loads(VALUES.read_text(encoding="utf-8"))
    return values


def differences(found: Mapping[str, float], wanted: Mapping[str, float]) -> list[str]:
    """A line for each figure that is missing or further from what was committed than may be."""
    lines = [f"{name}: it is in one of both only" for name in sorted(set(found) ^ set(wanted))]
    for name in sorted(set(found) & set(wanted)):
        if abs(found[name] - wanted[name]) > tolerance(name, wanted[name]):
            lines.append(f"{name}: {found[name]:.4f} in place of {wanted[name]:.4f}")
    return lines


def tolerance(name: str, value: float) -> float:
    """How far a figure may be from the committed one."""
    if name.startswith("psnr"):
        return DB
    return POINTS if name.startswith("accuracy") else BITS * value


def main() -> int:
    """Measures all bundled models; returns 1 if some figures differ and are not written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help=f"write {VALUES.relative_to(ROOT)}")
    arguments = parser.parse_args()
    found = {name: MEASURES[name](name) for name in bundled_names()}
    if arguments.write:
        write_json(VALUES, {n: {"weights_sha256": weights_of(n), "figures": f} for n, f in found.items()})
        return 0
    lines = [f"{n}: {line}" for n, f in found.items() for line in differences(f, expected()[n]["figures"])]
    print("\n".join(lines) or "all figures are as committed")
    return 1 if lines else 0


if __name__ == "__main__":
    raise SystemExit(main())
