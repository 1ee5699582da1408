"""Exports the encoder and a single decoder step to ONNX, for any image size, and checks both graphs.

    python conversion/export_onnx.py ul-photo-f8 -o onnx/ [--aot]

Written are `encoder.onnx` (x → z_clean), `decoder.onnx` (x_t, log-SNR, z_0 → v) and `decoding.json`: the noise of z_0
and, for each number of steps, the levels and coefficients of the loop around the decoder. `decode` below is that loop,
in NumPy. Both graphs are compared with torch at two sizes before the folder gets its name. --aot also compiles the
encoder with torch.export and AOTInductor (`encoder.pt2`, for one size, this machine and this torch).

Needs the extra: pip install ul_tokenizer[onnx]
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ul_tokenizer.diffusion.schedule import alpha_sigma
from ul_tokenizer.models.autoencoder import UnifiedLatentsAutoencoder
from ul_tokenizer.models.repository import load_autoencoder

STEPS = (1, 2, 4, 8, 16)
TOLERANCE = 2e-4
Array = np.ndarray[Any, Any]


class EncoderGraph(nn.Module):
    """x (B, C, H, W) in [−1, 1] → z_clean (B, c, h, w)."""

    def __init__(self, autoencoder: UnifiedLatentsAutoencoder) -> None:
        super().__init__()
        self.encoder = autoencoder.encoder

    def forward(self, x: Tensor) -> Tensor:
        """Encodes single frames."""
        return self.encoder(x.unsqueeze(2))[0].squeeze(2)


class DecoderGraph(nn.Module):
    """x_t (B, C, H, W), λ (B,), z_0 (B, c, h, w) → v (B, C, H, W)."""

    def __init__(self, autoencoder: UnifiedLatentsAutoencoder) -> None:
        super().__init__()
        self.decoder = autoencoder.decoder

    def forward(self, x_t: Tensor, logsnr: Tensor, z_0: Tensor) -> Tensor:
        """Calls the denoiser once."""
        features = self.decoder.embed_latents(z_0.unsqueeze(2))
        return self.decoder(x_t.unsqueeze(2), logsnr, features).squeeze(2)


# ---------------------------------------------------------------- writing


def export(autoencoder: UnifiedLatentsAutoencoder, folder: Path) -> None:
    """Writes both graphs and the description of the loop into an existing folder."""
    if autoencoder.config.learned_variance:
        raise ValueError("only deterministic encoders can be exported, got one with learned_variance.")
    if autoencoder.config.latent_logsnr_min is not None:
        raise ValueError("only decoders of one latent level can be exported, got one with a latent_logsnr_min.")
    autoencoder = autoencoder.eval()
    ratio, channels = autoencoder.spatial_compression_ratio, autoencoder.config.latent_channels
    rows, columns = (torch.export.Dim(name, min=2, max=4096) for name in ("rows", "columns"))
    batch = torch.export.Dim("batch", min=1, max=4096)
    pixels = {0: batch, 2: ratio * rows, 3: ratio * columns}
    x, z = torch.rand(2, 3, 4 * ratio, 6 * ratio) * 2 - 1, torch.randn(2, channels, 4, 6)
    _export(EncoderGraph(autoencoder), (x,), folder / "encoder.onnx", ["x"], "z_clean", (pixels,))
    _export(
        DecoderGraph(autoencoder),
        (x, torch.zeros(2), z),
        folder / "decoder.onnx",
        ["x_t", "logsnr", "z_0"],
        "v",
        (pixels, {0: batch}, {0: batch, 2: rows, 3: columns}),
    )
    text = json.dumps(describe_decoding(autoencoder), indent=1)
    (folder / "decoding.json").write_text(text + "\n", encoding="utf-8")


def _export(
    graph: nn.Module, example: tuple[Tensor, ...], path: Path, inputs: list[str], output: str, sizes: Any
) -> None:
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, about itself
        program = torch.onnx.export(
            graph.eval(),
            example,
            input_names=inputs,
            output_names=[output],
            dynamic_shapes=sizes,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    assert program is not None
    program.save(path)


def describe_decoding(autoencoder: UnifiedLatentsAutoencoder) -> dict[str, Any]:
    """Numbers of the loop: x ← keep·x + clean·x̂, with x̂ = α x − σ v; the last step's x̂ is the picture."""
    alpha, sigma = (float(value) for value in alpha_sigma(torch.tensor(autoencoder.config.latent_logsnr)))
    scheduler = autoencoder.make_decoder_scheduler()
    if scheduler.config.algorithm_type != "ddim":
        raise ValueError(f"the decoder's algorithm must be ddim, got {scheduler.config.algorithm_type}.")
    steps = {}
    for count in STEPS:
        scheduler.set_timesteps(count)
        levels = [float(level) for level in scheduler.timesteps] + [autoencoder.config.decoder_logsnr_max]
        pairs = [[float(value) for value in alpha_sigma(torch.tensor(level))] for level in levels]
        steps[str(count)] = [
            {"logsnr": level, "alpha": a, "sigma": s, "keep": s_next / s, "clean": a_next - a * s_next / s}
            for level, (a, s), (a_next, s_next) in zip(levels, pairs, pairs[1:], strict=False)
        ]
    return {
        "z_0": {"alpha": alpha, "sigma": sigma, "of": "alpha * z_clean + sigma * noise"},
        "x_hat": "alpha * x - sigma * v, v = decoder(x, logsnr, z_0)",
        "x": "keep * x + clean * x_hat, from standard normal noise; the picture is the last x_hat",
        "compression_ratio": autoencoder.spatial_compression_ratio,
        "default_steps": autoencoder.config.num_inference_steps,
        "steps": steps,
    }


# ---------------------------------------------------------------- the loop, without torch


def decode(
    denoise: Callable[[Array, Array, Array], Array], description: dict[str, Any], z_0: Array, noise: Array, steps: int
) -> Array:
    """z_0 (B, c, h, w) and noise (B, C, H, W) → pictures (B, C, H, W), about [−1, 1]."""
    x, picture = noise, noise
    for step in description["steps"][str(steps)]:
        v = denoise(x, np.full(len(x), step["logsnr"], np.float32), z_0)
        picture = step["alpha"] * x - step["sigma"] * v
        x = (step["keep"] * x + step["clean"] * picture).astype(np.float32)
    return picture


# ---------------------------------------------------------------- checking


def check(autoencoder: UnifiedLatentsAutoencoder, folder: Path) -> float:
    """Returns the largest difference between onnxruntime and torch: both graphs and the whole loop, at two sizes.

    Raises:
        ValueError: it is above TOLERANCE.
    """
    import onnxruntime

    sessions = {name: onnxruntime.InferenceSession(str(folder / f"{name}.onnx")) for name in ("encoder", "decoder")}
    description = json.loads((folder / "decoding.json").read_text(encoding="utf-8"))

    def denoise(x: Array, logsnr: Array, z: Array) -> Array:
        return np.asarray(sessions["decoder"].run(None, {"x_t": x, "logsnr": logsnr, "z_0": z})[0])

    ratio, worst = autoencoder.spatial_compression_ratio, 0.0
    autoencoder.use_tiling = False
    for batch, height, width in ((1, 2, 3), (3, 5, 4)):
        x, noise = (torch.rand(batch, 3, height * ratio, width * ratio) * 2 - 1 for _ in range(2))
        with torch.inference_mode():
            distribution = autoencoder.encode(x).latent_dist
            z = distribution.mode()
            pictures = autoencoder.decode(z, num_inference_steps=2, noise=noise).sample
        latent = sessions["encoder"].run(None, {"x": x.numpy()})[0]
        mean = description["z_0"]["alpha"] * np.asarray(latent)
        again = decode(denoise, description, z.numpy(), noise.numpy(), 2)
        worst = max(worst, *(float(np.abs(a - b).max()) for a, b in ((mean, z.numpy()), (again, pictures.numpy()))))
    if worst > TOLERANCE:
        raise ValueError(f"the exported graphs must agree with torch to {TOLERANCE:g}, but they differ by {worst:g}.")
    return worst


def compile_encoder(autoencoder: UnifiedLatentsAutoencoder, path: Path, side: int) -> float:
    """Compiles the encoder for one size with AOTInductor; returns the largest difference to eager mode."""
    graph, x = EncoderGraph(autoencoder.eval()), torch.rand(1, 3, side, side) * 2 - 1
    with torch.inference_mode():
        program = torch.export.export(graph, (x,))
        torch._inductor.aoti_compile_and_package(program, package_path=str(path))
        compiled = torch._inductor.aoti_load_package(str(path))
        return float((compiled(x) - graph(x)).abs().max())


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="An autoencoder as ONNX graphs.")
    parser.add_argument("source", metavar="SRC", help="bundled name, folder or hub id")
    parser.add_argument("--revision", help="branch, tag or commit on the hub")
    parser.add_argument("--output", "-o", type=Path, required=True, help="a new folder")
    parser.add_argument("--aot", action="store_true", help="also compile the encoder with AOTInductor")
    parser.add_argument(
        "--aot-size",
        "--aot_size",
        type=int,
        default=256,
        help="height and width in pixels for --aot (default: %(default)s)",
    )
    args = parser.parse_args(argv)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # else it misses torchvision, which nothing here needs
    try:
        if args.output.exists():
            raise ValueError(f"--output must be a new folder, got {args.output}, which exists.")
        autoencoder = load_autoencoder(args.source, revision=args.revision)
        args.output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=args.output.parent) as temporary:
            folder = Path(temporary, "onnx")
            folder.mkdir()
            export(autoencoder, folder)
            print(f"onnxruntime and torch differ by at most {check(autoencoder, folder):.1e}")
            if args.aot:
                difference = compile_encoder(autoencoder, folder / "encoder.pt2", args.aot_size)
                print(f"AOTInductor and eager differ by at most {difference:.1e}")
            folder.rename(args.output)
    except ImportError as error:
        print(f"error: {error}; pip install ul_tokenizer[onnx]", file=sys.stderr)
        return 1
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for path in sorted(args.output.iterdir()):
        print(f"{path.stat().st_size:>12,}  {path.name}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
