"""Size and speed of the bundled models, of codecs and of diffusers' autoencoders, all in one run.

    python benchmarks/bundled_models.py [--side 256] [--runs 5] [--codecs avif:40,webp:20,jpeg:20] [--output FOLDER]

Models of images get one picture, models of videos a clip of 8 frames; milliseconds are for one frame. Decoding takes
the number of steps in a model's config. Networks of diffusers have random weights, since only sizes matter for speed.
A time is the median over the runs, in which all subjects take turns. --output writes a JSON file for each subject,
which the README's tables quote.
"""

from __future__ import annotations

import argparse
import re
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from _measure import environment, machine
from _speed_tasks import FULL, of_preset
from diffusers.utils import logging
from PIL import Image
from torch import Tensor

from ul_tokenizer.evaluation.autoencoders import AnyAutoencoder
from ul_tokenizer.evaluation.codecs import Codec
from ul_tokenizer.evaluation.subjects import AutoencoderSubject, CodecSubject, Subject
from ul_tokenizer.files import write_json
from ul_tokenizer.media.pixels import frame_to_uint8
from ul_tokenizer.models.autoencoder import UnifiedLatentsAutoencoder
from ul_tokenizer.models.repository import load_autoencoder
from ul_tokenizer.pretrained import bundled_names
from ul_tokenizer.publish.listing import list_models

FORMAT, VERSION = "ul_tokenizer.bundled_models", 1
PICTURE = Path(__file__).resolve().parent.parent / "examples" / "images" / "moose.jpg"
CLIP_FRAMES = 8
LICENCES = {"apache-2.0": "Apache-2.0"}


@dataclass(frozen=True)
class Entry:
    """A subject, what it is given, and what a table shows of it."""

    subject: Subject
    pixels: Tensor
    facts: dict[str, Any]

    @property
    def frames(self) -> int:
        """Frames in the pixels."""
        return 1 if self.pixels.ndim == 4 else self.pixels.shape[2]

    def seconds(self) -> tuple[float, float]:
        """Of encoding and of decoding one frame, measured once."""
        again = self.subject.reconstruct(self.pixels, [0])
        return again.encode_seconds / self.frames, again.decode_seconds / self.frames


# ---------------------------------------------------------------- what is measured


def entries(side: int, codecs: list[Codec]) -> Iterator[Entry]:
    """Bundled models, codecs, and diffusers' autoencoders."""
    picture = Image.open(PICTURE).convert("RGB").resize((side, side), Image.Resampling.LANCZOS)
    pixels = frame_to_uint8(picture)[None]
    for listed in list_models():
        if listed.name in bundled_names() and listed.origin == "bundled":
            model = load_autoencoder(listed.name).eval()
            weights = sum(path.stat().st_size for path in listed.folder.rglob("*.safetensors"))
            licence = LICENCES.get(str(listed.license), listed.license)
            kind = {"is_bundled": True, "bytes": weights, "license": licence, "card": f"MODEL_CARD.md#{listed.name}"}
            yield network_entry(listed.name, model, pixels, {**kind, "class": listed.kind})
    for codec in codecs:
        yield Entry(CodecSubject(codec), pixels, {"name": str(codec), "is_bundled": False})
    for network in (of_preset("ul-imagenet512"), FULL.kl, *FULL.others):
        yield network_entry(network.name, network.make().eval(), pixels, {"is_bundled": False})


def network_entry(name: str, model: Any, pixels: Tensor, facts: dict[str, Any]) -> Entry:
    """An autoencoder with what its config says."""
    subject = AutoencoderSubject(AnyAutoencoder(name, model), None)
    in_time = int(getattr(model, "temporal_compression_ratio", 1)) if is_ours(model) else 1
    clip = pixels if in_time == 1 else pixels.unsqueeze(2).expand(-1, -1, CLIP_FRAMES, -1, -1)
    ratio = subject.autoencoder.ratio
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Entry(
        subject,
        clip,
        {
            "name": name,
            "ratio": "×".join(str(n) for n in ([in_time] if in_time > 1 else []) + [ratio, ratio]),
            "channels": int(model.config.latent_channels),
            "parameters": parameters,
            "bytes": 2 * parameters,  # in half precision, unless the facts know the files
            "steps": subject.facts()["num_inference_steps"],
            **facts,
        },
    )


def is_ours(model: Any) -> bool:
    return isinstance(model, UnifiedLatentsAutoencoder)


# ---------------------------------------------------------------- the run


def measure(found: list[Entry], side: int, runs: int) -> list[dict[str, Any]]:
    """A result for each entry."""
    times: list[list[tuple[float, float]]] = [[] for _ in found]
    for run in range(runs + 1):
        for entry, own in zip(found, times, strict=True):
            seconds = entry.seconds()
            if run:  # the first warms up
                own.append(seconds)
    return [_result(entry, own, side) for entry, own in zip(found, times, strict=True)]


def _result(entry: Entry, times: list[tuple[float, float]], side: int) -> dict[str, Any]:
    encode, decode = (statistics.median(part) for part in zip(*times, strict=True))
    return {
        "format": FORMAT,
        "version": VERSION,
        "kind": "cost",
        "subject": entry.facts,
        "protocol": {"side": side, "frames": entry.frames, "runs": len(times), "dtype": "float32"},
        "cost": {"encode_seconds_per_frame": encode, "decode_seconds_per_frame": decode},
        "environment": environment(torch.device("cpu")),
    }


def line(result: dict[str, Any]) -> str:
    """What is printed."""
    facts, cost = result["subject"], result["cost"]
    size = f"{facts['bytes'] / 1e6:8.1f}" if "bytes" in facts else f"{'–':>8}"
    times = [1000 * cost[f"{job}_seconds_per_frame"] for job in ("encode", "decode")]
    ratio, channels = facts.get("ratio", "–"), facts.get("channels", "–")
    return f"{facts['name']:20} {ratio:>8} {channels:>8} {size} {times[0]:10.1f} {times[1]:10.1f}"


def codec(text: str) -> Codec:
    found = Codec.parse(text)
    if found is None:
        raise argparse.ArgumentTypeError(f"codecs must be like jpeg:30, got {text!r}.")
    return found


def codecs_of(text: str) -> list[Codec]:
    return [codec(word) for word in text.split(",") if word]


def main(argv: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=256, help="of the picture, in pixels")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--codecs", type=codecs_of, default=codecs_of("avif:40,webp:20,jpeg:20"))
    parser.add_argument("--output", type=Path, help="write a JSON file for each subject into this folder")
    args = parser.parse_args(argv)
    logging.set_verbosity_error()
    print(machine())
    print(f"{'subject':20} {'ratio':>8} {'channels':>8} {'MB':>8} {'encode, ms':>10} {'decode, ms':>10}")
    for result in measure(list(entries(args.side, args.codecs)), args.side, args.runs):
        print(line(result), flush=True)
        if args.output is not None:
            write_json(args.output / f"{re.sub(r'[^A-Za-z0-9]+', '-', result['subject']['name'])}.json", result)


if __name__ == "__main__":
    main()
