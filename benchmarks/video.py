"""Video: memory of long clips, and encoding beside diffusers' video autoencoders.

    python benchmarks/video.py [--seconds 600] [--preset ul-tiny-f8] [--skip-others]

Peak memory of encoding and decoding 176×144 clips of ten seconds and of --seconds at 25 frames a second, each in a
process of its own, as `encode_stream` and `decode_stream` go through them; frames are made as they are asked for. Then
frames per second of encoding 17 frames of 128×128 with `ul-k600`, as it is and with its frames becoming fewer in the
latents, with the bundled `ul-video`, and with diffusers' `AutoencoderKLWan` and `AutoencoderKLLTXVideo` in their
default configurations; random weights but for `ul-video`. Beside it each one's encoder parameters, the rate divided
and multiplied by them ("as fast per parameter" may mean either), and the operations that a frame needs and that
are done in a second, of convolutions and products of matrices.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import torch
from _measure import machine, median_seconds, peak_memory_bytes, reset_peak_memory
from diffusers import AutoencoderKLLTXVideo, AutoencoderKLWan
from torch import Tensor, nn

from ul_tokenizer import UnifiedLatentsAutoencoder
from ul_tokenizer.evaluation.flops import count_flops
from ul_tokenizer.models.presets import build_autoencoder

RATE, HEIGHT, WIDTH = 25, 144, 176
CLIP = (1, 3, 17, 128, 128)


def in_a_new_process(function: Callable[..., Any], *args: Any) -> Any:
    """Its memory is its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def peaks(preset: str, seconds: int) -> tuple[int, int]:
    """Peak bytes of encoding, and of encoding and decoding, a clip of so many seconds."""
    torch.manual_seed(0)
    changes = {"temporal_compression_ratio": 4}
    model = build_autoencoder(preset, changes).eval()
    count = seconds * RATE

    def frames() -> Iterator[Tensor]:
        picture = torch.rand(1, 3, 1, HEIGHT, WIDTH) * 2 - 1
        for n in range(count):
            yield picture.roll(n, -1)

    reset_peak_memory()
    encoded = sum(latents.shape[2] for latents in model.encode_stream(frames(), count))
    encoding = peak_memory_bytes()
    decoded = sum(part.shape[2] for part in model.decode_stream(model.encode_stream(frames(), count), count))
    assert (encoded, decoded) == (-(-count // 4), count)
    return encoding, peak_memory_bytes()


def encoding_rate(model: nn.Module) -> tuple[float, float, float]:
    """Frames per second, million parameters of the encoder, and GFLOP per frame."""
    x = torch.rand(CLIP) * 2 - 1
    encode: Any = model.encode
    with torch.inference_mode():
        seconds = median_seconds(lambda: encode(x), runs=3, warmup=1)
        flops = count_flops(lambda: encode(x))
    encoder: Any = model.encoder
    parameters = sum(p.numel() for p in encoder.parameters())
    return CLIP[2] / seconds, parameters / 1e6, flops / CLIP[2] / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--preset", default="ul-tiny-f8", help="its memory is measured; larger ones take hours")
    parser.add_argument("--skip-others", action="store_true")
    args = parser.parse_args()
    print(machine())
    few, many = (in_a_new_process(peaks, args.preset, seconds) for seconds in (10, args.seconds))
    for name, short, long in zip(("encoding", "encoding and decoding"), few, many, strict=True):
        figures = f"{short / 2**20:.0f} MiB over 10 s, {long / 2**20:.0f} over {args.seconds} s"
        print(f"peak memory of {name}, {WIDTH}×{HEIGHT}: {figures}: × {long / short:.3f}")
    if args.skip_others:
        return
    print(f"encoding {CLIP[2]} frames of {CLIP[3]}×{CLIP[4]}, fp32:")
    print("model                            frames/s  M params  ÷ M params  × M params  GFLOP/frame  GFLOP/s")
    makers: tuple[tuple[str, Callable[[], nn.Module]], ...] = (
        ("ul-k600 (4×8×8)", lambda: build_autoencoder("ul-k600")),
        ("  frames fewer in the latents", lambda: build_autoencoder("ul-k600", {"temporal_downsample": "latents"})),
        ("ul-video (4×8×8)", lambda: UnifiedLatentsAutoencoder.from_pretrained("ul-video")),
        ("AutoencoderKLWan (4×8×8)", AutoencoderKLWan),
        ("AutoencoderKLLTXVideo (8×32×32)", AutoencoderKLLTXVideo),
    )
    for name, make in makers:
        torch.manual_seed(0)
        rate, millions, work = encoding_rate(make().eval())
        ratios = f"{rate / millions:12.3f}{rate * millions:12.0f}"
        print(f"{name:32}{rate:9.2f}{millions:10.1f}{ratios}{work:13.2f}{rate * work:9.0f}")


if __name__ == "__main__":
    main()
