"""Networks that `speed.py` measures: ours and diffusers', each with the calls that are timed.

An entrant makes its network anew for each setting, with random weights, and lets go of it afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, DiTTransformer2DModel
from torch import Tensor, nn

from ul_tokenizer.diffusion.objective import (
    SigmoidWeighting,
    bits_per_pixel_divisor,
    diffuse,
    eps_squared_error,
)
from ul_tokenizer.diffusion.schedule import LogSNRSchedule
from ul_tokenizer.models.presets import build_autoencoder, build_prior
from ul_tokenizer.models.transformer import UnifiedLatentsTransformer
from ul_tokenizer.pipelines.generation import UnifiedLatentsPipeline
from ul_tokenizer.schedulers.log_snr import LogSNRScheduler
from ul_tokenizer.training.algorithm1 import Stage1Model, Stage1Noise

NUM_CLASSES = 1000
LOGSNR_MAX, LOGSNR_MIN = 5.0, -10.0


@dataclass(frozen=True)
class Size:
    """What goes into one call: pictures, or clips if there are frames; pixels, or latents for base models."""

    batch: int
    side: int
    frames: int | None = None

    def __str__(self) -> str:
        return "×".join(str(n) for n in (self.batch, self.frames, f"{self.side}²") if n is not None)

    @property
    def pixels(self) -> tuple[int, ...]:
        """The shape of the pixels, (B, 3, [T,] H, W)."""
        frames = () if self.frames is None else (self.frames,)
        return (self.batch, 3, *frames, self.side, self.side)


@dataclass(frozen=True)
class Setting:
    """Where and how everything in a contest is computed."""

    device: torch.device
    dtype: torch.dtype
    compiled: bool

    def placed(self, network: Any) -> Any:
        """The network on the device, in the layout that suits it there; weights stay fp32."""
        network = network.to(self.device)
        for weight in network.parameters():
            if weight.ndim == 4:
                weight.data = weight.data.contiguous(memory_format=torch.channels_last)
            elif weight.ndim == 5 and self.device.type == "cuda":  # on CPUs it is slower
                weight.data = weight.data.contiguous(memory_format=torch.channels_last_3d)
        return network

    def for_inference(self, network: Any) -> Any:
        """The same in the dtype, except for what `from_pretrained` keeps in fp32."""
        network = self.placed(network.eval())
        kept = network._keep_in_fp32_modules or ()
        for name, tensor in (*network.named_parameters(), *network.named_buffers()):
            if tensor.is_floating_point() and not any(part in name for part in kept):
                tensor.data = tensor.data.to(self.dtype)
        return network

    def finished(self, *parts: nn.Module) -> None:
        """Compiles what is timed, for just these shapes."""
        for part in parts if self.compiled else ():
            part.compile(dynamic=False)

    def random(self, *shape: int) -> Tensor:
        """Uniform on [−1, 1], in the dtype."""
        x = (torch.rand(shape, device=self.device) * 2 - 1).to(self.dtype)
        return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x

    def autocast(self) -> Any:
        """For training."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16)


@dataclass(frozen=True)
class Job:
    """A call that is timed."""

    name: str
    parameters: int  # of the part that works
    call: Callable[[], Any]
    steps: int | None = None


@dataclass(frozen=True)
class Network:
    """An autoencoder, made anew at each call, under the name that results give it."""

    name: str
    make: Callable[[], Any]


@dataclass(frozen=True)
class Entrant:
    """A network with what it does in a contest."""

    network: str
    is_ours: bool
    jobs: Callable[[Setting, Size], Iterator[Job]]


def parameters(*parts: nn.Module) -> int:
    """Weights of modules."""
    return sum(weight.numel() for part in parts for weight in part.parameters())


def without_gradients(call: Callable[[], Any]) -> Callable[[], Any]:
    """The same call in inference mode."""

    def inference() -> Any:
        with torch.inference_mode():
            return call()

    return inference


# ---------------------------------------------------------------- encoding and decoding


def latents_of(model: Any, x: Tensor) -> Tensor:
    """What any autoencoder's encoder gives, without noise."""
    output = model.encode(x)
    latents: Tensor = output.latent_dist.mode() if hasattr(output, "latent_dist") else output[0]
    return latents


def encoder(network: Network, is_ours: bool = False) -> Entrant:
    """Encoding with any autoencoder."""

    def jobs(setting: Setting, size: Size) -> Iterator[Job]:
        model, x = setting.for_inference(network.make()), setting.random(*size.pixels)
        setting.finished(model.encoder)
        yield Job("encode", parameters(model.encoder), without_gradients(lambda: latents_of(model, x)))

    return Entrant(network.name, is_ours, jobs)


def our_decoder(network: Network, steps: tuple[int, ...], with_call: bool = False) -> Entrant:
    """Decoding in so many steps; also one call of the denoiser with the latent's features ready, as in later steps."""

    def jobs(setting: Setting, size: Size) -> Iterator[Job]:
        model, x = setting.for_inference(network.make()), setting.random(*size.pixels)
        decoder, frames = model.decoder, size.frames
        with torch.inference_mode():
            z = latents_of(model, x)
            clip, latents = (x, z) if frames is not None else (x.unsqueeze(2), z.unsqueeze(2))
            features = decoder.embed_latents(latents)
        logsnr = torch.zeros(size.batch, device=setting.device)
        setting.finished(decoder)
        if with_call:
            yield Job("decoder call", parameters(decoder), without_gradients(lambda: decoder(clip, logsnr, features)))
        for count in steps:

            def decode(count: int = count) -> Any:
                return model.decode(z, num_inference_steps=count, num_frames=frames)

            yield Job(f"decode, {count} step{'s' * (count > 1)}", parameters(decoder), without_gradients(decode), count)

    return Entrant(network.name, True, jobs)


def peer_decoder(network: Network) -> Entrant:
    """Decoding with any other autoencoder, in one go."""

    def jobs(setting: Setting, size: Size) -> Iterator[Job]:
        model, x = setting.for_inference(network.make()), setting.random(*size.pixels)
        with torch.inference_mode():
            z = latents_of(model, x)
        setting.finished(model.decoder)
        yield Job("decode", parameters(model.decoder), without_gradients(lambda: model.decode(z)))

    return Entrant(network.name, False, jobs)


def consistency_decoder(network: Network) -> Entrant:
    """One call of the denoiser of a ConsistencyDecoderVAE, which decodes in two."""

    def jobs(setting: Setting, size: Size) -> Iterator[Job]:
        unet = setting.for_inference(network.make().decoder_unet)
        x = setting.random(size.batch, unet.config.in_channels, size.side, size.side)
        setting.finished(unet)
        time = torch.zeros((), dtype=torch.long, device=setting.device)
        yield Job("decoder call", parameters(unet), without_gradients(lambda: unet(x, time)))

    return Entrant(network.name, False, jobs)


# ---------------------------------------------------------------- training


class Step:
    """A training step: forward, backward, clipping, AdamW.

    Args:
        networks: what is trained.
        loss: computes the loss, under autocast if the dtype is bf16.
        setting: device and dtype.
    """

    def __init__(self, networks: nn.Module, loss: Callable[[], Tensor], setting: Setting) -> None:
        self.weights = [weight for weight in networks.parameters() if weight.requires_grad]
        self.optimizer = torch.optim.AdamW(self.weights, fused=True)
        self.loss, self.setting = loss, setting

    def __call__(self) -> None:
        """One step."""
        with self.setting.autocast():
            loss = self.loss()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.weights, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def stage1_training(preset: str) -> Entrant:
    """Our stage 1: encoder, prior and decoder on random pixels."""

    def jobs(setting: Setting, size: Size) -> Iterator[Job]:
        autoencoder, prior = build_autoencoder(preset), build_prior(preset)
        schedule = LogSNRSchedule(LOGSNR_MAX, LOGSNR_MIN, "linear")
        model = setting.placed(Stage1Model(autoencoder, prior, schedule, SigmoidWeighting()).train())
        pixels = setting.random(*size.pixels).float()
        side = size.side // autoencoder.spatial_compression_ratio
        noise = _stage1_noise(pixels, (size.batch, autoencoder.config.latent_channels, side, side))
        divisor = bits_per_pixel_divisor(size.side, size.side)
        setting.finished(model.encoder, model.prior, model.decoder)
        step = Step(model, lambda: model(pixels, noise).total(divisor), setting)
        yield Job("stage-1 training step", parameters(model), step)

    return Entrant(preset, True, jobs)


def _stage1_noise(pixels: Tensor, latent: tuple[int, ...]) -> Stage1Noise:
    count, device = len(pixels), pixels.device
    return Stage1Noise(
        t_prior=torch.rand(count, device=device),
        t_decoder=torch.rand(count, device=device),
        prior=torch.randn(latent, device=device),
        latent=torch.randn(latent, device=device),
        decoder=torch.randn_like(pixels),
    )


def peer_training(network: Network) -> Entrant:
    """A KL autoencoder on random pixels: squared error and KL, without the networks that GANs and LPIPS add."""

    def jobs(setting: Setting, size: Size) -> Iterator[Job]:
        model, pixels = setting.placed(network.make().train()), setting.random(*size.pixels).float()
        setting.finished(model.encoder, model.decoder)

        def loss() -> Tensor:
            posterior = model.encode(pixels).latent_dist
            return F.mse_loss(model.decode(posterior.sample()).sample, pixels) + 1e-6 * posterior.kl().mean()

        yield Job("training step", parameters(model), Step(model, loss, setting))

    return Entrant(network.name, False, jobs)


# ---------------------------------------------------------------- base models


@dataclass(frozen=True)
class BaseShape:
    """Width and depth that our base model and its peer share, so that their FLOPs are about equal."""

    channels: int
    layers: int
    latent_channels: int = 16
    head_dim: int = 64

    def ours(self) -> UnifiedLatentsTransformer:
        """Our base model, of one stage, as a DiT is."""
        return UnifiedLatentsTransformer(
            in_channels=self.latent_channels,
            block_out_channels=(self.channels,),
            num_layers=(self.layers,),
            attention_head_dim=self.head_dim,
            num_class_embeds=NUM_CLASSES,
        )

    def peer(self, side: int) -> Any:
        """A DiT of the same width, depth and number of tokens."""
        return DiTTransformer2DModel(
            num_attention_heads=self.channels // self.head_dim,
            attention_head_dim=self.head_dim,
            in_channels=self.latent_channels,
            num_layers=self.layers,
            sample_size=side,
            patch_size=1,
            num_embeds_ada_norm=NUM_CLASSES,
        )


def base_training(shape: BaseShape) -> Entrant:
    """A step of stage 2 on random latents, with classes."""

    def jobs(setting: Setting, size: Size) -> Iterator[Job]:
        network = setting.placed(shape.ours().train())
        setting.finished(network)
        yield _base_step(network, lambda z, logsnr, labels: network(z, logsnr, labels).sample, shape, setting, size)

    return Entrant("UnifiedLatentsTransformer", True, jobs)


def dit_training(shape: BaseShape) -> Entrant:
    """The same step of diffusers' DiT, which knows steps, not levels."""

    def jobs(setting: Setting, size: Size) -> Iterator[Job]:
        network = setting.placed(shape.peer(size.side).train())
        setting.finished(network)

        def predict(z: Tensor, logsnr: Tensor, labels: Tensor) -> Tensor:
            v: Tensor = network(z, (500 - 50 * logsnr).long(), labels).sample
            return v

        yield _base_step(network, predict, shape, setting, size)

    return Entrant("DiTTransformer2DModel", False, jobs)


def _base_step(
    network: nn.Module, predict: Callable[..., Tensor], shape: BaseShape, setting: Setting, size: Size
) -> Job:
    dimensions = (size.batch, shape.latent_channels, size.side, size.side)
    latents, noise = (torch.randn(dimensions, device=setting.device) for _ in range(2))
    logsnr = torch.linspace(LOGSNR_MIN, LOGSNR_MAX, size.batch, device=setting.device)
    labels = _labels(size, setting)

    def loss() -> Tensor:
        v = predict(diffuse(latents, noise, logsnr), logsnr, labels)
        return eps_squared_error(v.float(), latents, noise, logsnr, "v_prediction").mean()

    return Job("base training step", parameters(network), Step(network, loss, setting))


def base_sampling(shape: BaseShape, steps: int) -> Entrant:
    """Latents by our pipeline, without guidance and without decoding."""

    def jobs(setting: Setting, size: Size) -> Iterator[Job]:
        network = setting.for_inference(shape.ours())
        vae = build_autoencoder("ul-tiny-f8", {"latent_channels": shape.latent_channels})  # gives the grid, no more
        pipeline = UnifiedLatentsPipeline(network, LogSNRScheduler(LOGSNR_MAX, LOGSNR_MIN), vae.to(setting.device))
        pipeline.set_progress_bar_config(disable=True)
        pixels, labels = 8 * size.side, _labels(size, setting).tolist()
        setting.finished(network)

        def sample() -> Any:
            options: dict[str, Any] = {"height": pixels, "width": pixels, "output_type": "latent"}
            return pipeline(labels, num_inference_steps=steps, **options)

        yield Job(f"sampling, {steps} steps", parameters(network), without_gradients(sample), steps)

    return Entrant("UnifiedLatentsTransformer", True, jobs)


def dit_sampling(shape: BaseShape, steps: int) -> Entrant:
    """As many steps of DDIM with diffusers' DiT, as its pipeline does without guidance."""

    def jobs(setting: Setting, size: Size) -> Iterator[Job]:
        network, scheduler = setting.for_inference(shape.peer(size.side)), DDIMScheduler()
        labels = _labels(size, setting)
        setting.finished(network)

        def sample() -> Tensor:
            dimensions = (size.batch, shape.latent_channels, size.side, size.side)
            z = torch.randn(dimensions, device=setting.device, dtype=setting.dtype)
            scheduler.set_timesteps(steps, device=setting.device)
            for time in scheduler.timesteps:
                prediction = network(z, time.expand(size.batch), labels).sample
                z = scheduler.step(prediction, time, z).prev_sample
            return z

        yield Job(f"sampling, {steps} steps", parameters(network), without_gradients(sample), steps)

    return Entrant("DiTTransformer2DModel", False, jobs)


def _labels(size: Size, setting: Setting) -> Tensor:
    return torch.arange(size.batch, device=setting.device) % NUM_CLASSES
