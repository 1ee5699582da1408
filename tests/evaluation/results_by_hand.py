"""Result files made up for tests: two models of ours, one of others, codecs, and generations. No figure is measured."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ul_tokenizer.evaluation.results import FORMAT, VERSION, Result, pictures_folder, write_result

PROTOCOL: dict[str, Any] = {
    "data": "photos/validation",
    "source_sha256": "5f" * 32,
    "pixels_sha256": "c3" * 32,
    "num_samples": 256,
    "num_images": 21,
    "resolution": 320,
    "crop": "random",
    "crop_size": 128,
    "clip_frames": None,
    "seed": 0,
    "rounding": "uint8",
}
ENVIRONMENT = {
    "machine": "AMD EPYC, 2 threads",
    "device": "cpu",
    "python": "3.12.3",
    "torch": "2.13.0+cpu",
    "diffusers": "0.42.0",
    "pillow": "13.0.0",
    "ul_tokenizer": "0.13.0",
    "git_commit": "ba671b4" + "0" * 33,
    "date": "2026-11-25",
}
NET = {"name": "efficientnet-lite0", "weights_sha256": "ab" * 32, "input_size": 224, "resize": "bicubic, antialiased"}
INCEPTION = {"name": "inception", "weights_sha256": "6a" * 32, "input_size": 299, "resize": "bilinear, as TensorFlow 1"}


SKIPPED = [{"id": "broken|.jpg", "reason": "cannot be read: image file is truncated."}]


def interval(value: float, width: float, unit: str = "") -> dict[str, Any]:
    return {"value": value, "low": value - width, "high": value + width, "unit": unit}


def distance(frechet: float | None, kid: float, num: int = 256, net: dict[str, Any] = NET) -> dict[str, Any]:
    name = {"inception": "FID"}.get(net["name"], "FD-EffLite0")
    refused = None if frechet else f"{name} needs more images than its {1280} features, got {num}; use KID."
    return {
        "net": net,
        "num": num,
        "reference_num": num,
        "frechet": {"name": name, "value": frechet, "floor": frechet and 1.2, "refused": refused},
        "kid": {"value": kid, "std": 0.0007, "floor": 0.00012, "subsets": 100, "subset_size": num},
    }


def result(kind: str, subject: dict[str, Any], metrics: dict[str, Any], **parts: Any) -> Result:
    made: Result = {
        "format": FORMAT,
        "version": VERSION,
        "kind": kind,
        "subject": subject,
        "protocol": copy.deepcopy(PROTOCOL),
        "metrics": metrics,
        "distances": {},
        "cost": {"seconds_per_image": 0.012, "peak_memory_bytes": 460 << 20, "flops": None},
        "missing": ["LPIPS needs the weights of AlexNet: pass --feature-weights."],
        "skipped": list(SKIPPED),
        "nonfinite": [],
        "environment": dict(ENVIRONMENT),
        "key": "00" * 32,
    }
    return made | parts


def codec(name: str, bits: float, psnr: float) -> Result:
    return result(
        "reconstruction",
        {"name": name, "type": "codec", "weights_sha256": None, "num_inference_steps": None, "dtype": "float32"},
        {
            "psnr_of_mean_mse": interval(psnr, 0.3, "dB"),
            "mean_psnr": interval(psnr + 2, 0.3, "dB"),
            "ssim": interval(0.9 - 1 / psnr, 0.01),
            "bits_per_pixel": {**interval(bits, 0.01, "bits/pixel"), "kind": "file bytes"},
        },
        distances={"efficientnet-lite0": distance(400 / psnr, 0.02 / bits / 10)},
    )


def autoencoder(
    name: str,
    steps: int | None,
    bits: float,
    psnr: float,
    frechet: float | None,
    kind: str = "UnifiedLatentsAutoencoder",
) -> Result:
    ours = kind.startswith("Unified")
    return result(
        "reconstruction",
        {
            "name": name,
            "type": kind,
            "weights_sha256": "ef" * 32,
            "num_inference_steps": steps,
            "dtype": "float32",
            "latent": "sample",
            "parameters": {"encoder": 1_190_000, "decoder": 3_380_000, "total": 4_570_000},
            "spatial_compression_ratio": 8,
            "temporal_compression_ratio": 1,
            "latent_channels": 16,
        },
        {
            "psnr_of_mean_mse": interval(psnr, 0.25, "dB"),
            "mean_psnr": interval(psnr + 2.5, 0.3, "dB"),
            "ssim": interval(0.8, 0.01),
            "bits_per_pixel": {
                **interval(bits, 0.012, "bits/pixel"),
                "kind": "bound by the prior" if ours else "nominal, 16 bits per latent value",
            },
        },
        distances={"efficientnet-lite0": distance(frechet, (frechet or 20) / 4000)},
        cost={
            "seconds_per_image": 0.012 * (steps or 1),
            "encode_seconds": 0.4,
            "decode_seconds": 1.2 * (steps or 1),
            "peak_memory_bytes": 460 << 20,
            "flops": {
                "encode": {"linear_and_attention": 3.1e8, "convolutions": 2.2e9},
                "decode": {"linear_and_attention": 1.1e9, "convolutions": 4.0e9},
            },
        },
    )


def generation(name: str, steps: int, decoder_steps: int, frechet: float | None, scale: float = 2.5) -> Result:
    made = result(
        "generation",
        {
            "name": name,
            "type": "UnifiedLatentsPipeline",
            "weights_sha256": "aa" * 32,
            "num_inference_steps": steps,
            "dtype": "float32",
            "solver": "ddim",
            "guidance_scale": scale,
            "guidance_interval": None,
            "decoder_num_inference_steps": decoder_steps,
            "decode": "z0",
            "generator": "base",
            "unconditional": False,
        },
        {"accuracy": {"value": 0.9374}, "precision": {"value": 0.61}, "recall": {"value": 0.44}},
        distances={
            "efficientnet-lite0": distance(frechet, (frechet or 20) / 3000, 1000),
            "inception": distance(frechet and 3 * frechet, (frechet or 20) / 2500, 1000, INCEPTION),
        },
    )
    made["protocol"] |= {"data": "fashion-mnist/test", "num_samples": 1000, "crop": "none", "skipped": []}
    return made


def reconstructions() -> dict[str, Result]:
    """File name → result: the reconstructions of one protocol."""
    found = {
        f"ul-photo-f8-{steps}": autoencoder("ul-photo-f8", steps, 0.382, psnr, frechet)
        for steps, psnr, frechet in ((1, 26.91, 24.0), (2, 26.91, 19.5), (4, 26.42, 15.2), (16, 25.4, 16.1))
    }
    found |= {
        f"my-model-{steps}": autoencoder("runs/my-model", steps, 0.21, psnr, frechet)
        for steps, psnr, frechet in ((1, 25.1, 31.0), (4, 24.6, 21.0))
    }
    found["kl"] = autoencoder("stabilityai/sd-vae-ft-mse", None, 1.0, 26.2, 9.5, "AutoencoderKL")
    found["dc"] = autoencoder("mit-han-lab/dc-ae-f32c32", None, 0.5, 25.2, None, "AutoencoderDC")
    for family, gain in (("jpeg", 0.0), ("webp", 1.3), ("avif", 2.4)):
        for quality, bits, psnr in ((5, 0.27, 22.3), (20, 0.55, 26.1), (50, 0.95, 28.9), (80, 1.6, 31.6)):
            found[f"{family}-{quality}"] = codec(f"{family}:{quality}", bits * (1 - gain / 10), psnr + gain)
    return found


def generations() -> dict[str, Result]:
    """File name → result: generated images of one protocol."""
    return {
        f"fashion-{steps}-{decoding}": generation("ul-fashion", steps, decoding, frechet)
        for steps, decoding, frechet in (
            (4, 4, 22.8),
            (8, 4, 16.2),
            (16, 4, 13.9),
            (32, 4, 12.6),
            (32, 1, 18.2),
            (32, 8, 14.2),
        )
    }


def picture(seed: int, side: int = 40) -> Image.Image:
    """A smooth picture with some noise."""
    random = np.random.default_rng(seed)
    ramp = np.linspace(0, 200, side)[:, None, None] + np.zeros((side, side, 3))
    return Image.fromarray((ramp + random.integers(0, 50, (side, side, 3))).astype(np.uint8))


def compressed(original: Image.Image, quality: int) -> Image.Image:
    """A picture after JPEG."""
    file = io.BytesIO()
    original.save(file, format="JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def add_pictures(path: Path, quality: int = 20, originals: list[Image.Image] | None = None) -> None:
    """Puts originals and reconstructions beside a result file."""
    folder = pictures_folder(path)
    folder.mkdir()
    for number, original in enumerate(originals or [picture(seed) for seed in range(3)]):
        original.save(folder / f"original-{number:03d}.png")
        compressed(original, quality).save(folder / f"reconstruction-{number:03d}.png")


def write_all(folder: Path, results: dict[str, Result]) -> Path:
    """Writes results into a new folder."""
    folder.mkdir(parents=True)
    for name, made in results.items():
        write_result(folder / f"{name}.json", made)
    return folder
