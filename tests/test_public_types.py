"""The public API has the types that a user's type checker needs.

mypy checks each `assert_type` below (`make lint`), and pytest runs the same calls, so that types and values agree.
Objects come as annotated arguments, the way a user's functions get them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typing_extensions import assert_type

from ul_tokenizer import LatentDataset, LogSNRScheduler, UnifiedLatentsAutoencoder, UnifiedLatentsPipeline
from ul_tokenizer.latents.statistics import ChannelStatistics
from ul_tokenizer.latents.stream import LatentStream
from ul_tokenizer.latents.writer import LatentWriter
from ul_tokenizer.models.latent_distribution import LatentDistribution, UnifiedLatentsEncoderOutput
from ul_tokenizer.models.presets import build_autoencoder, build_base, build_prior
from ul_tokenizer.models.repository import load_autoencoder, load_prior
from ul_tokenizer.models.transformer import UnifiedLatentsTransformer, UnifiedLatentsTransformerOutput
from ul_tokenizer.schedulers.log_snr import LogSNRSchedulerOutput


@pytest.fixture(scope="module")
def vae() -> UnifiedLatentsAutoencoder:
    torch.manual_seed(0)
    return build_autoencoder("ul-tiny-f8").eval()


@pytest.fixture(scope="module")
def pipeline(vae: UnifiedLatentsAutoencoder) -> UnifiedLatentsPipeline:
    base = build_base("ul-base-tiny", {"sample_size": 2, "num_class_embeds": 3})
    pipeline = UnifiedLatentsPipeline(base, LogSNRScheduler(), vae)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


# ---------------------------------------------------------------- autoencoder


def test_the_latent_distribution_gives_tensors() -> None:
    distribution = LatentDistribution(torch.zeros(1, 4, 2, 2), 5.0)
    assert_type(distribution.sample(), Tensor)
    assert_type(distribution.sample([torch.Generator()]), Tensor)
    assert_type(distribution.mode(), Tensor)
    assert distribution.sample().shape == distribution.mode().shape


def test_return_dict_decides_what_encode_and_decode_return(vae: UnifiedLatentsAutoencoder) -> None:
    x = torch.zeros(1, 3, 16, 16)
    output = assert_type(vae.encode(x), UnifiedLatentsEncoderOutput)
    (distribution,) = assert_type(vae.encode(x, return_dict=False), tuple[LatentDistribution])
    assert_type(output.latent_dist, LatentDistribution)
    assert torch.equal(assert_type(output.latent, Tensor), distribution.latent)
    (pixels,) = assert_type(vae.decode(distribution.mode(), return_dict=False), tuple[Tensor])
    assert vae.decode(distribution.mode()).sample.shape == pixels.shape


def test_constructors_and_from_pretrained_give_the_class_itself(tmp_path: Path) -> None:
    assert_type(LogSNRScheduler(), LogSNRScheduler).save_pretrained(tmp_path)
    assert_type(UnifiedLatentsAutoencoder.from_pretrained("ul-photo-f8"), UnifiedLatentsAutoencoder)
    assert_type(UnifiedLatentsTransformer(4, (16,), (1,), attention_head_dim=16), UnifiedLatentsTransformer)


def test_bits_and_streams_of_an_autoencoder_are_typed(vae: UnifiedLatentsAutoencoder) -> None:
    bits = assert_type(vae.bits(torch.zeros(2, 3, 16, 16), build_prior("ul-tiny-f8"), num_levels=1), Tensor)
    assert bits.shape == (2,)
    latents = assert_type(vae.encode_stream([torch.zeros(1, 3, 1, 16, 16)], num_frames=1), Iterator[Tensor])
    pieces = assert_type(vae.decode_stream(list(latents), num_frames=1), Iterator[Tensor])
    assert [piece.shape for piece in pieces] == [(1, 3, 1, 16, 16)]
    assert_type(vae.latents_mean, Tensor)


def test_models_load_as_their_own_class(vae: UnifiedLatentsAutoencoder, tmp_path: Path) -> None:
    vae.save_pretrained(tmp_path)
    build_prior("ul-tiny-f8").save_pretrained(tmp_path / "prior")
    loaded = assert_type(load_autoencoder(str(tmp_path)), UnifiedLatentsAutoencoder)
    prior = assert_type(load_prior(str(tmp_path)), UnifiedLatentsTransformer)
    assert type(loaded) is UnifiedLatentsAutoencoder and type(prior) is UnifiedLatentsTransformer


def test_a_transformers_forward_returns_its_output_or_a_tuple() -> None:
    model: UnifiedLatentsTransformer = build_prior("ul-tiny-f8")
    z, logsnr = torch.zeros(1, 4, 2, 2), torch.zeros(1)
    output = assert_type(model.forward(z, logsnr), UnifiedLatentsTransformerOutput | tuple[Tensor])
    assert isinstance(output, UnifiedLatentsTransformerOutput)
    assert_type(output.sample, Tensor)


# ---------------------------------------------------------------- scheduler and pipeline


def one_step(scheduler: LogSNRScheduler) -> tuple[LogSNRSchedulerOutput, tuple[Tensor, Tensor]]:
    """The same step as an output object and as a tuple."""
    z = torch.zeros(1, 4, 2, 2)
    scheduler.set_timesteps(1)
    first = assert_type(assert_type(scheduler.timesteps, Tensor)[0], Tensor)
    output = assert_type(scheduler.step(z, first, z), LogSNRSchedulerOutput)
    scheduler.set_timesteps(1)
    pair = assert_type(scheduler.step(z, first, z, return_dict=False), tuple[Tensor, Tensor])
    return output, pair


def test_return_dict_decides_what_a_schedulers_step_returns() -> None:
    output, (previous, original) = one_step(LogSNRScheduler())
    assert isinstance(output, LogSNRSchedulerOutput)
    assert torch.equal(assert_type(output.prev_sample, Tensor), previous)
    assert output.pred_original_sample is not None
    assert torch.equal(output.pred_original_sample, original)


def noised(scheduler: LogSNRScheduler, z: Tensor) -> Tensor:
    assert_type(scheduler.get_velocity(z, z, torch.zeros(1)), Tensor)
    return assert_type(scheduler.add_noise(z, z, torch.zeros(1)), Tensor)


def test_a_scheduler_adds_noise_to_tensors() -> None:
    assert noised(LogSNRScheduler(), torch.zeros(1, 4)).shape == (1, 4)


def test_a_pipeline_loads_as_its_own_class(pipeline: UnifiedLatentsPipeline, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path)
    loaded = assert_type(UnifiedLatentsPipeline.from_pretrained(tmp_path), UnifiedLatentsPipeline)
    assert type(loaded) is UnifiedLatentsPipeline
    assert_type(loaded.transformer, UnifiedLatentsTransformer)
    assert_type(loaded.scheduler, LogSNRScheduler)


# ---------------------------------------------------------------- latent data sets


def read(dataset: LatentDataset) -> int:
    """Number of batches in a stream, after a look at everything else that a reader has."""
    assert_type(dataset[0], dict[str, Any])
    assert_type(dataset.sample_z0(0, seed=0), Tensor)
    assert_type(dataset.statistics, ChannelStatistics)
    assert_type(dataset.class_names, tuple[str, ...])
    assert_type(dataset.id(0), str)
    stream = assert_type(dataset.stream(seed=0, batch_size=2), LatentStream)
    return sum(len(assert_type(batch, dict[str, Any])["id"]) for batch in stream)


def test_a_latent_data_sets_items_and_batches_are_typed(tmp_path: Path) -> None:
    header = {"latent_channels": 3, "latent_logsnr": 5.0, "dtype": "float32", "autoencoder": "ul-tiny"}
    with LatentWriter(tmp_path, header) as writer:
        writer.append(["a", "b", "c"], torch.zeros(3, 3, 2, 4))
    assert read(LatentDataset(tmp_path)) == 3
