"""`benchmarks/bundled_models.py`: what it says of a network and of a codec, on networks of no size."""

from __future__ import annotations

import argparse

import bundled_models
import pytest
import torch
from bundled_models import Entry, codecs_of, line, measure, network_entry
from diffusers import AutoencoderTiny

from ul_tokenizer.evaluation.codecs import Codec
from ul_tokenizer.evaluation.subjects import CodecSubject
from ul_tokenizer.models.presets import build_autoencoder

PIXELS = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_a_network_has_ratio_channels_size_and_times() -> None:
    entry = network_entry("tiny", build_autoencoder("ul-tiny-f8").eval(), PIXELS, {"is_bundled": True})
    (result,) = measure([entry], 32, runs=2)
    subject = result["subject"]
    assert (subject["ratio"], subject["channels"], subject["steps"], subject["is_bundled"]) == ("8×8", 4, 1, True)
    assert subject["bytes"] == 2 * subject["parameters"] > 0
    assert result["protocol"] == {"side": 32, "frames": 1, "runs": 2, "dtype": "float32"}
    assert min(result["cost"].values()) > 0 and result["environment"]["torch"] == torch.__version__
    assert line(result).startswith("tiny                      8×8        4")


def test_a_video_model_gets_a_clip_and_its_times_are_for_a_frame() -> None:
    entry = network_entry("video", build_autoencoder("ul-small-4x8x8").eval(), PIXELS, {})
    assert entry.frames == bundled_models.CLIP_FRAMES
    assert entry.facts["ratio"] == "4×8×8"
    (result,) = measure([entry], 32, runs=1)
    assert result["protocol"]["frames"] == bundled_models.CLIP_FRAMES


def test_a_network_of_diffusers_has_no_steps() -> None:
    entry = network_entry("taesd", AutoencoderTiny(encoder_block_out_channels=(8, 8, 8, 8)).eval(), PIXELS, {})
    assert (entry.facts["ratio"], entry.facts["channels"], entry.facts["steps"]) == ("8×8", 4, None)


def test_a_codec_has_times_and_no_size() -> None:
    (result,) = measure([Entry(CodecSubject(Codec("jpeg", 30)), PIXELS, {"name": "jpeg:30"})], 32, runs=1)
    assert line(result).split()[:4] == ["jpeg:30", "–", "–", "–"]


def test_the_first_run_only_warms_up() -> None:
    class Slow:
        calls = 0

        def reconstruct(self, pixels: torch.Tensor, numbers: list[int]) -> argparse.Namespace:
            self.calls += 1
            return argparse.Namespace(encode_seconds=100.0 if self.calls == 1 else 1.0, decode_seconds=2.0)

    slow = Slow()
    (result,) = measure([Entry(slow, PIXELS, {"name": "slow"})], 32, runs=3)  # type: ignore[arg-type]
    assert slow.calls == 4
    assert result["cost"] == {"encode_seconds_per_frame": 1.0, "decode_seconds_per_frame": 2.0}


def test_a_word_that_is_no_codec_is_refused() -> None:
    assert codecs_of("jpeg:30,webp:5") == [Codec("jpeg", 30), Codec("webp", 5)]
    with pytest.raises(argparse.ArgumentTypeError, match="must be like jpeg:30, got 'png'"):
        codecs_of("png")
