"""UnifiedLatentsAutoencoder: deterministic encoder and diffusion decoder, in the shape of diffusers' autoencoders."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Literal, overload

import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.models.attention import AttentionMixin
from diffusers.models.modeling_utils import ModelMixin, get_parameter_dtype
from torch import Tensor

from ul_tokenizer.decorators import apply_forward_hook, register_to_config
from ul_tokenizer.diffusion.objective import nats_to_bits, variance_gain
from ul_tokenizer.diffusion.schedule import LogSNRSchedule
from ul_tokenizer.diffusion.solver import Level, evenly_spaced, levels_at
from ul_tokenizer.models.attention import Rotary
from ul_tokenizer.models.config_checks import check_autoencoder_config, derived_config
from ul_tokenizer.models.decoder import Decoder, DecoderConfig
from ul_tokenizer.models.decoding import DecodingSteps, decoding_steps, denoise
from ul_tokenizer.models.encoder import Encoder, EncoderCache, EncoderConfig
from ul_tokenizer.models.host_autoencoder import AutoencoderMixin, decoder_output
from ul_tokenizer.models.latent_distribution import (
    LatentDistribution,
    UnifiedLatentsEncoderOutput,
    draw_noise,
    split_encoding,
)
from ul_tokenizer.models.layers import FP32_MODULES
from ul_tokenizer.models.limits import check_latents, check_pixels
from ul_tokenizer.models.loading import BundledNamesMixin
from ul_tokenizer.models.rate import latent_bits
from ul_tokenizer.models.streaming import DecodeWindow, decode_in_windows, part_lengths, parts_to_encode
from ul_tokenizer.models.tiling import TileGrid
from ul_tokenizer.publish.facts import ModelFacts
from ul_tokenizer.schedulers.log_snr import Generators, LogSNRScheduler

if TYPE_CHECKING:
    from diffusers.models.autoencoders.vae import DecoderOutput

    from ul_tokenizer.models.transformer import UnifiedLatentsTransformer


class UnifiedLatentsAutoencoder(BundledNamesMixin, ModelMixin, AttentionMixin, AutoencoderMixin, ConfigMixin):
    r"""Latent tokenizer of Unified Latents (arXiv 2602.17270).

    ```
    x (B,3,[T,]H,W) ─ encoder ─ z_clean ─(+ fixed noise, λ = 5)─ z_0 (B,c,[t,]h,w) ─┐
                                                             noise x_1 ─ decoder: λ_min → λ_max ─ x̂ (B,3,[T,]H,W)
    ```

    Latents are the encoder's own output. They are not normalised by `scaling_factor`, `shift_factor` or
    `latents_mean/std`: as diffusers' pipelines expect, that is left to the caller.

    Args:
        in_channels: colour channels of the input.
        out_channels: colour channels of the output.
        latent_channels: channels c of the latents.
        patch_size: pixels per side that encoder and decoder fold into channels.
        encoder_block_out_channels: width of each encoder stage; all but the last halve the grid.
        encoder_layers_per_block: residual blocks of each encoder stage.
        decoder_block_out_channels: width of each convolutional decoder stage; all halve the grid on the way in.
        decoder_layers_per_block: residual blocks of each decoder stage, on the way in and on the way out.
        decoder_hidden_size: width of the decoder's transformer, which works on the grid of z_0.
        decoder_num_layers: blocks of the decoder's transformer.
        decoder_latent_embedding_layers: residual convolutions on z_0 before it enters the decoder.
        attention_head_dim: channels of an attention head.
        attention_train_tokens: positions of z_0 in training, (crop / compression ratio)² for images. Larger pictures
            are then attended to with sharper logits, see `log_length_temperature`. None leaves the logits alone.
        embedding_channels: width of the log-SNR embedding.
        dropout: dropout probability in the decoder.
        latent_logsnr: λ_z(0), the log-SNR of z_0.
        learned_variance: whether the encoder predicts a variance of its own beside the fixed noise. The paper's does
            not, except in one ablation (Table 6 D).
        latent_logsnr_min: lowest level at which the decoder takes latents, for models that were trained in a single
            stage with levels drawn at random; None for decoders that take `latent_logsnr` only.
        decoder_logsnr_max: λ_x(0), the cleanest level of the decoder.
        decoder_logsnr_min: λ_x(1), the level at which decoding starts; the decoder is not trained at noisier ones.
        decoder_schedule: "linear" or "cosine", λ_x(t) between these levels.
        decoder_shift_clean: shift of λ_x at t = 0.
        decoder_shift_noisy: shift of λ_x at t = 1.
        decoder_algorithm: `algorithm_type` of `LogSNRScheduler`, "ddim" or "dpmsolver++".
        num_inference_steps: decoding steps if the caller gives none. One step gives the posterior mean, more steps give
            sample detail. A distilled decoder gives detail in the one or two steps that it was trained for.
        temporal_compression_ratio: frames per latent frame, R; a power of two. A clip of T frames is padded in front
            with copies of its first frame and has ⌈T/R⌉ latent frames; an image has one.
        temporal_downsample: where the number of frames is reduced. In the "features" of the encoder, which is faster;
            or in the "latents", where each frame has c/R channels, so that image weights are a lossless start.
        sample_size: height and width in training; informative.
        tile_sample_size: tile larger pictures from the start, with tiles of this height and width. This suits networks
            trained on small crops, whose attention never saw more tokens. None leaves tiling to `enable_tiling`.
        scaling_factor: factor that pipelines multiply latents by.
        shift_factor: value that pipelines subtract from latents first.
        latents_mean: what generators subtract from latents, per channel; None for zeros.
        latents_std: what generators divide latents by afterwards, per channel; None for ones.
        force_upcast: ignored, since layers that would overflow in half precision always run in fp32.
        block_out_channels: derived; some pipelines read the compression ratio from its length.
        z_dim: derived.
        spatial_compression_ratio: derived.
        scale_factor_spatial: derived.
        scale_factor_temporal: derived.
        timestep_conditioning: derived.

    Raises:
        ValueError: an argument out of range, stages that do not fit together, or levels that do not form a schedule.
    """

    _pipeline_part = "vae"
    _supports_gradient_checkpointing = True
    _no_split_modules = ["EncoderResidualBlock", "DecoderResidualBlock", "TransformerBlock", "LatentEmbedding"]
    # Residual blocks differ in width from stage to stage, and each width would be compiled anew.
    _repeated_blocks = ["TransformerBlock"]
    _keep_in_fp32_modules = FP32_MODULES
    _skip_layerwise_casting_patterns = ["norm", "logsnr_embedding", "conv_out", "latent_fold", "modulation"]
    # latent_embedding is called from outside of the decoder's forward, so it needs a hook of its own.
    _group_offload_block_modules = ["encoder", "decoder", "transformer", "latent_embedding"]
    _skip_keys = ["latent_features"]
    card_facts: ClassVar[ModelFacts] = ModelFacts(
        role="An image tokenizer: encoder and diffusion decoder",
        usage=(
            'vae = UnifiedLatentsAutoencoder.from_pretrained("{repo_id}")\n'
            "z = vae.encode(x).latent_dist.sample()  # x: (B, 3, H, W) in [−1, 1]\n"
            "y = vae.decode(z).sample"
        ),
        pipeline_tag="image-to-image",
        tags=("image-tokenizer",),
        config_facts={
            "spatial_compression_ratio": "pixels per latent, a side",
            "temporal_compression_ratio": "frames per latent",
            "latent_channels": "latent channels",
            "latent_logsnr": "log-SNR of z_0",
            "num_inference_steps": "decoding steps",
        },
        training_stage="autoencoder",
    )

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        latent_channels: int = 32,
        patch_size: int = 2,
        encoder_block_out_channels: tuple[int, ...] = (128, 256, 512, 512),
        encoder_layers_per_block: tuple[int, ...] = (2, 2, 2, 3),
        decoder_block_out_channels: tuple[int, ...] = (128, 256, 512),
        decoder_layers_per_block: tuple[int, ...] = (2, 2, 2),
        decoder_hidden_size: int = 1024,
        decoder_num_layers: int = 8,
        decoder_latent_embedding_layers: int = 0,
        attention_head_dim: int = 64,
        embedding_channels: int = 256,
        dropout: float = 0.1,
        latent_logsnr: float = 5.0,
        learned_variance: bool = False,
        latent_logsnr_min: float | None = None,
        decoder_logsnr_max: float = 9.0,
        decoder_logsnr_min: float = -5.0,
        decoder_schedule: str = "linear",
        decoder_shift_clean: float = 0.0,
        decoder_shift_noisy: float = 0.0,
        decoder_algorithm: str = "ddim",
        num_inference_steps: int = 1,
        temporal_compression_ratio: int = 1,
        temporal_downsample: str = "features",
        sample_size: int | None = None,
        tile_sample_size: int | None = None,
        attention_train_tokens: int | None = None,
        scaling_factor: float = 1.0,
        shift_factor: float = 0.0,
        latents_mean: list[float] | None = None,
        latents_std: list[float] | None = None,
        force_upcast: bool = False,
        block_out_channels: tuple[int, ...] | None = None,
        z_dim: int | None = None,
        spatial_compression_ratio: int | None = None,
        scale_factor_spatial: int | None = None,
        scale_factor_temporal: int | None = None,
        timestep_conditioning: bool | None = None,
    ) -> None:
        super().__init__()
        check_autoencoder_config(self.config)
        _ = self.decoder_noise_schedule  # raises an error if the levels do not form a schedule
        self.encoder = Encoder(EncoderConfig.from_model(self.config))
        self.decoder = Decoder(DecoderConfig.from_model(self.config))
        self.register_to_config(**derived_config(self.config))
        self.spatial_compression_ratio = self.config.spatial_compression_ratio
        self.temporal_compression_ratio = temporal_compression_ratio

        self.use_slicing = False
        self.use_tiling = tile_sample_size is not None
        self.tile_sample_min_height = tile_sample_size or 512
        self.tile_sample_min_width = tile_sample_size or 512
        self.tile_overlap_factor = 0.125
        # Long clips are encoded in parts of this many frames, and decoded in windows of this many latent frames.
        self.encode_chunk_frames = 4 * max(4, temporal_compression_ratio)
        self.decode_window_latents, self.decode_window_overlap = 8, 2

    # ------------------------------------------------------------------------------------------------------------
    # Properties
    # ------------------------------------------------------------------------------------------------------------

    @property
    def decoder_noise_schedule(self) -> LogSNRSchedule:
        """λ_x(t), the noise schedule of the decoder."""
        config = self.config
        return LogSNRSchedule(
            config.decoder_logsnr_max,
            config.decoder_logsnr_min,
            config.decoder_schedule,
            config.decoder_shift_clean,
            config.decoder_shift_noisy,
        )

    @property
    def latents_mean(self) -> Tensor:
        """The mean that generators subtract from latents, per channel, (c,); zeros unless the config has another."""
        return torch.tensor(self.config.latents_mean, device=self.device)

    @property
    def latents_std(self) -> Tensor:
        """The deviation that generators divide latents by, per channel, (c,); ones unless the config has another."""
        return torch.tensor(self.config.latents_std, device=self.device)

    @property
    def temperal_downsample(self) -> list[bool]:
        """For each halving of height and width, whether it halves the number of frames, too.

        Some of diffusers' pipelines compute both compression ratios from this list, which has this spelling there.
        """
        halvings = self.spatial_compression_ratio.bit_length() - 1
        in_time = self.temporal_compression_ratio.bit_length() - 1
        return [False] * (halvings - in_time) + [True] * in_time

    # ------------------------------------------------------------------------------------------------------------
    # Tiling
    # ------------------------------------------------------------------------------------------------------------

    def enable_tiling(
        self,
        tile_sample_min_height: int | None = None,
        tile_sample_min_width: int | None = None,
        tile_overlap_factor: float | None = None,
    ) -> None:
        """Encodes and decodes pictures larger than a tile in overlapping, blended tiles, in the memory of one tile.

        Args:
            tile_sample_min_height: height of a tile in pixels; rounded down to a multiple of the compression ratio.
            tile_sample_min_width: width of a tile in pixels; rounded down likewise.
            tile_overlap_factor: smallest overlap of two tiles as a fraction of a tile, in [0, 0.5).

        Raises:
            ValueError: a tile smaller than the compression ratio, or an overlap outside [0, 0.5).
        """
        height = self.tile_sample_min_height if tile_sample_min_height is None else tile_sample_min_height
        width = self.tile_sample_min_width if tile_sample_min_width is None else tile_sample_min_width
        overlap = self.tile_overlap_factor if tile_overlap_factor is None else tile_overlap_factor
        if min(height, width) < self.spatial_compression_ratio:
            raise ValueError(
                f"tile_sample_min_height and tile_sample_min_width must be at least {self.spatial_compression_ratio}, "
                f"got {height} and {width}."
            )
        if not 0 <= overlap < 0.5:
            raise ValueError(f"tile_overlap_factor must be at least 0 and below 0.5, got {overlap}.")
        self.tile_sample_min_height, self.tile_sample_min_width = height, width
        self.tile_overlap_factor = overlap
        self.use_tiling = True

    def tile_grid(self, height: int, width: int) -> TileGrid:
        """The tiles of an (h, w) latent grid; a single one if tiling is off."""
        if not self.use_tiling:
            return TileGrid.whole(height, width)
        ratio = self.spatial_compression_ratio
        tile = (self.tile_sample_min_height // ratio, self.tile_sample_min_width // ratio)
        return TileGrid.overlapping((height, width), tile, self.tile_overlap_factor)

    # ------------------------------------------------------------------------------------------------------------
    # Encode
    # ------------------------------------------------------------------------------------------------------------

    @overload
    def encode(self, x: Tensor, return_dict: Literal[True] = ...) -> UnifiedLatentsEncoderOutput: ...

    @overload
    def encode(self, x: Tensor, return_dict: Literal[False]) -> tuple[LatentDistribution]: ...

    @overload
    def encode(self, x: Tensor, return_dict: bool) -> UnifiedLatentsEncoderOutput | tuple[LatentDistribution]: ...

    @apply_forward_hook
    def encode(self, x: Tensor, return_dict: bool = True) -> UnifiedLatentsEncoderOutput | tuple[LatentDistribution]:
        """Encodes images or clips.

        Args:
            x: (B, C, H, W) or (B, C, T, H, W), float, [−1, 1]; H and W multiples of `spatial_compression_ratio`.
            return_dict: whether to return an output object or the tuple `(latent_dist,)`.

        Returns:
            `UnifiedLatentsEncoderOutput` with `latent` = z_clean (B, c, [t,] h, w) and `latent_dist` = q(z_0 | x).

        Raises:
            ValueError: wrong rank, channels or dtype, an empty x, or a size that the compression ratio does not divide.
        """
        check_pixels("x", x, self.config.in_channels, self.spatial_compression_ratio)
        clip = (x if x.ndim == 5 else x.unsqueeze(2)).to(get_parameter_dtype(self.encoder.conv_in))
        slices = clip.split(1) if self.use_slicing else [clip]
        encoding = _joined([self._encode_clip(one) for one in slices], dim=0).to(x.dtype)
        distribution = self._distribution(encoding if x.ndim == 5 else encoding.squeeze(2))
        if not return_dict:
            return (distribution,)
        return UnifiedLatentsEncoderOutput(latent=distribution.latent, latent_dist=distribution)

    def _distribution(self, encoding: Tensor) -> LatentDistribution:
        """The encoder's output (B, c or 2c, [t,] h, w) → q(z_0 | x)."""
        latent, logvar = split_encoding(encoding, self.config.latent_channels)
        return LatentDistribution(latent.contiguous(), self.config.latent_logsnr, logvar)

    def _encode_clip(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W) → z_clean (B, c, t, h, w), part by part."""
        if x.shape[2] <= self.encode_chunk_frames:
            return self._encode_part(x)[0]
        latents: list[Tensor] = []
        caches: list[EncoderCache] | None = None
        for part in x.split(part_lengths(x.shape[2], self.encode_chunk_frames), dim=2):
            latent, caches = self._encode_part(part, caches)
            latents.append(latent)
        return _joined(latents, dim=2)

    def _encode_part(self, x: Tensor, caches: list[EncoderCache] | None = None) -> tuple[Tensor, list[EncoderCache]]:
        """A part (B, C, T, H, W) of a clip, tile by tile; takes and returns the encoder's cache of each tile."""
        ratio = self.spatial_compression_ratio
        grid = self.tile_grid(x.shape[-2] // ratio, x.shape[-1] // ratio)
        given = [None] * len(grid.tiles) if caches is None else caches
        outputs = [self.encoder(tile.of(x, ratio), cache) for tile, cache in zip(grid.tiles, given, strict=True)]
        return grid.blend([latent for latent, _ in outputs], scale=1), [cache for _, cache in outputs]

    @torch.no_grad()
    def encode_stream(
        self,
        frames: Iterable[Tensor],
        num_frames: int | None = None,
        sample_posterior: bool = False,
        generator: Generators = None,
        clean: bool = False,
    ) -> Iterator[Tensor]:
        """Encodes a clip of any length in constant memory.

        Args:
            frames: the clip in pieces, (B, C, T', H, W) each as `encode`'s `x`, of any T'.
            num_frames: frames of the whole clip, which has its padding in front. Optional if the temporal ratio
                divides this number.
            sample_posterior: whether to add the noise of z_0 rather than to yield its mean.
            generator: generator of that noise.
            clean: whether to yield z_clean, the encoder's own output, instead of z_0.

        Yields:
            z_0 (B, c, t', h, w) as `decode_stream` takes it; all pieces together equal `encode` of the whole clip.

        Raises:
            ValueError: as in `encode`, or a clip whose number of frames is not `num_frames`.
        """
        dtype = get_parameter_dtype(self.encoder.conv_in)
        caches: list[EncoderCache] | None = None
        for part in parts_to_encode(frames, num_frames, self.encode_chunk_frames, self.temporal_compression_ratio):
            check_pixels("frames", part, self.config.in_channels, self.spatial_compression_ratio)
            latent, caches = self._encode_part(part.to(dtype), caches)
            distribution = self._distribution(latent.to(part.dtype))
            if clean:
                yield distribution.latent
            else:
                yield distribution.sample(generator) if sample_posterior else distribution.mode()

    # ------------------------------------------------------------------------------------------------------------
    # Decode
    # ------------------------------------------------------------------------------------------------------------

    @overload
    def decode(
        self,
        z: Tensor,
        return_dict: Literal[True] = ...,
        generator: Generators = ...,
        num_inference_steps: int | None = ...,
        noise: Tensor | None = ...,
        num_frames: int | None = ...,
        latent_logsnr: float | None = ...,
    ) -> DecoderOutput: ...

    @overload
    def decode(
        self,
        z: Tensor,
        return_dict: Literal[False],
        generator: Generators = ...,
        num_inference_steps: int | None = ...,
        noise: Tensor | None = ...,
        num_frames: int | None = ...,
        latent_logsnr: float | None = ...,
    ) -> tuple[Tensor]: ...

    @overload
    def decode(
        self,
        z: Tensor,
        return_dict: bool,
        generator: Generators = ...,
        num_inference_steps: int | None = ...,
        noise: Tensor | None = ...,
        num_frames: int | None = ...,
        latent_logsnr: float | None = ...,
    ) -> DecoderOutput | tuple[Tensor]: ...

    @apply_forward_hook
    def decode(
        self,
        z: Tensor,
        return_dict: bool = True,
        generator: Generators = None,
        num_inference_steps: int | None = None,
        noise: Tensor | None = None,
        num_frames: int | None = None,
        latent_logsnr: float | None = None,
    ) -> DecoderOutput | tuple[Tensor]:
        """Decodes latents by denoising pixels from noise.

        All frames of a clip start from the same noise, so that still scenes stay still. Long clips are decoded in
        windows of `decode_window_latents` latent frames, which overlap and are blended.

        Args:
            z: z_0 (B, c, h, w) or (B, c, t, h, w), as `latent_dist.sample()` or `.mode()` returns it.
            return_dict: whether to return a `DecoderOutput` or a tuple of its values.
            generator: generator of the noise. With a list of one per sample, no sample depends on its neighbours.
            num_inference_steps: calls of the denoiser; None takes the config's number. One gives the posterior mean,
                unless the decoder was distilled.
            noise: x_1 itself, (B, C, [T,] H, W); the call is then a pure function of its arguments.
            num_frames: frames of the clip; None gives R frames for each latent frame.
            latent_logsnr: the level of z, from the config's `latent_logsnr_min` to its `latent_logsnr`, which is what
                None means. Most decoders take only the latter.

        Returns:
            `sample` (B, C, [T,] H, W), about [−1, 1], in the dtype of `z`.

        Raises:
            ValueError: wrong rank, channels or dtype, an empty z, noise of another shape, fewer than one step, a
                number of frames that does not fit the latents, or a level that the decoder does not take.
        """
        levels = self._decoding_levels(num_inference_steps)
        self._check_latent_level(latent_logsnr)
        check_latents("z", z, self.config.latent_channels)
        clip = (z if z.ndim == 5 else z.unsqueeze(2)).to(get_parameter_dtype(self.decoder.conv_in))
        num_frames = self._num_frames(clip.shape[2], 1 if z.ndim == 4 else num_frames)
        canvas = self._noise_canvas(clip, num_frames, generator, noise)
        slices = list(zip(clip.split(1), canvas.split(1), strict=True)) if self.use_slicing else [(clip, canvas)]
        steps = decoding_steps(levels, clip.device, latent_logsnr)
        sample = _joined([self._decode_clip(latents, x_1, steps) for latents, x_1 in slices], dim=0).to(z.dtype)
        sample = (sample if z.ndim == 5 else sample.squeeze(2)).contiguous()
        return decoder_output(sample) if return_dict else (sample,)

    def _decode_clip(self, z: Tensor, x_1: Tensor, steps: DecodingSteps) -> Tensor:
        """z_0 (B, c, t, h, w) and noise (B, C, T, H, W) → (B, C, T, H, W), fp32, window by window."""
        if z.shape[2] <= self.decode_window_latents:
            return self._decode_window(z, x_1, steps)

        def decode(window: Tensor, first: int, count: int) -> Tensor:
            return self._decode_window(window, x_1[:, :, first : first + count], steps)

        padding = z.shape[2] * self.temporal_compression_ratio - x_1.shape[2]
        return torch.cat(list(self._decode_in_windows([z], decode, padding)), dim=2)

    def _decode_in_windows(self, latents: Iterable[Tensor], decode: DecodeWindow, padding: int) -> Iterator[Tensor]:
        size, overlap = self.decode_window_latents, self.decode_window_overlap
        return decode_in_windows(latents, decode, size, overlap, self.temporal_compression_ratio, padding)

    def _decode_window(self, z: Tensor, x_1: Tensor, steps: DecodingSteps) -> Tensor:
        """A window of `_decode_clip`, tile by tile."""
        ratio, grid = self.spatial_compression_ratio, self.tile_grid(z.shape[-2], z.shape[-1])
        rotary = self.decoder.rotary_table(grid.tiles[0].of(z))  # all tiles have the same size
        outputs = (self._denoise(tile.of(z), tile.of(x_1, ratio), steps, rotary) for tile in grid.tiles)
        return grid.blend(outputs, scale=ratio)

    def _denoise(self, z: Tensor, x_1: Tensor, steps: DecodingSteps, rotary: Rotary) -> Tensor:
        """A tile of `_decode_window`."""
        return denoise(self.decoder, z, x_1, steps, rotary, self.config.decoder_algorithm)

    def _decoding_levels(self, num_inference_steps: int | None) -> list[Level]:
        """The levels of all steps, and the end: evenly spaced in log-SNR, as `make_decoder_scheduler` spaces them."""
        steps: int = self.config.num_inference_steps if num_inference_steps is None else num_inference_steps
        if steps < 1:
            raise ValueError(f"num_inference_steps must be at least 1, got {steps}.")
        return levels_at(evenly_spaced(self.config.decoder_logsnr_min, self.config.decoder_logsnr_max, steps))

    def _check_latent_level(self, latent_logsnr: float | None) -> None:
        low, high = self.config.latent_logsnr_min, self.config.latent_logsnr
        if latent_logsnr is not None and not (high if low is None else low) <= latent_logsnr <= high:
            legal = f"{high}, the only level of this decoder" if low is None else f"from {low} to {high}"
            raise ValueError(f"latent_logsnr must be {legal}, got {latent_logsnr}.")

    def _num_frames(self, latent_frames: int, num_frames: int | None) -> int:
        ratio = self.temporal_compression_ratio
        most = latent_frames * ratio
        if num_frames is None:
            return most
        if not most - ratio < num_frames <= most:
            raise ValueError(
                f"num_frames must be from {most - ratio + 1} to {most} for these latents, got {num_frames}."
            )
        return num_frames

    def _noise_canvas(self, z: Tensor, num_frames: int, generator: Generators, noise: Tensor | None) -> Tensor:
        """x_1 (B, C, T, H, W), fp32; all frames share their noise unless it is given."""
        b, _, _, *grid = z.shape
        height, width = (size * self.spatial_compression_ratio for size in grid)
        channels = self.config.out_channels
        if noise is None:
            canvas = draw_noise((b, channels, 1, height, width), generator, z.device)
            return canvas.expand(-1, -1, num_frames, -1, -1)
        clip = noise.unsqueeze(2) if noise.ndim == 4 and num_frames == 1 else noise
        if tuple(clip.shape) != (b, channels, num_frames, height, width):
            shape = (b, channels, *([num_frames] if noise.ndim == 5 or num_frames > 1 else []), height, width)
            raise ValueError(f"noise must be {shape} for these latents, got {tuple(noise.shape)}.")
        return clip.to(z.device, torch.float32)

    @torch.no_grad()
    def decode_stream(
        self,
        latents: Iterable[Tensor],
        num_frames: int | None = None,
        generator: Generators = None,
        num_inference_steps: int | None = None,
    ) -> Iterator[Tensor]:
        """Decodes a clip of any length in constant memory.

        Args:
            latents: z_0 in pieces, (B, c, t', h, w) each, of any t'.
            num_frames: frames of the whole clip, as it was encoded; None gives R for each latent frame.
            generator: as in `decode`.
            num_inference_steps: as in `decode`.

        Yields:
            (B, C, T', H, W), about [−1, 1]; all pieces together equal `decode` of the whole clip.

        Raises:
            ValueError: as in `decode`.
        """
        levels = self._decoding_levels(num_inference_steps)
        pieces = iter(latents)
        first = next(pieces, None)
        if first is None:
            return
        check_latents("latents", first, self.config.latent_channels)
        still = self._noise_canvas(first, 1, generator, None)
        steps = decoding_steps(levels, first.device)
        network_dtype = get_parameter_dtype(self.decoder.conv_in)

        def decode(window: Tensor, _: int, count: int) -> Tensor:
            check_latents("latents", window, self.config.latent_channels)
            return self._decode_window(window.to(network_dtype), still.expand(-1, -1, count, -1, -1), steps)

        padding = -(num_frames or 0) % self.temporal_compression_ratio
        for frames in self._decode_in_windows(itertools.chain([first], pieces), decode, padding):
            yield frames.to(first.dtype)

    def make_decoder_scheduler(self) -> LogSNRScheduler:
        """A scheduler with the decoder's levels and algorithm, from λ_x(1) to λ_x(0); `decode` takes the same steps."""
        config = self.config
        return LogSNRScheduler(
            logsnr_max=config.decoder_logsnr_max,
            logsnr_min=config.decoder_logsnr_min,
            schedule=config.decoder_schedule,
            shift_clean=config.decoder_shift_clean,
            shift_noisy=config.decoder_shift_noisy,
            algorithm_type=config.decoder_algorithm,
        )

    # ------------------------------------------------------------------------------------------------------------
    # Both
    # ------------------------------------------------------------------------------------------------------------

    def forward(
        self,
        sample: Tensor,
        sample_posterior: bool = False,
        return_dict: bool = True,
        generator: Generators = None,
        num_inference_steps: int | None = None,
        noise: Tensor | None = None,
    ) -> DecoderOutput | tuple[Tensor]:
        """Encodes and decodes images or clips.

        Args:
            sample: as `x` of `encode`.
            sample_posterior: whether to decode a sample of z_0 rather than its mean.
            return_dict: as in `decode`.
            generator: generator of the noise of z_0, if it is sampled, and then of the decoder's noise.
            num_inference_steps: as in `decode`.
            noise: as in `decode`; with `sample_posterior=False` the call is then a pure function of its arguments.

        Returns:
            As `decode`.

        Raises:
            ValueError: as in `encode` and `decode`.
        """
        distribution = self.encode(sample).latent_dist
        z = distribution.sample(generator) if sample_posterior else distribution.mode()
        num_frames = sample.shape[2] if sample.ndim == 5 else None
        return self.decode(z, return_dict, generator, num_inference_steps, noise, num_frames)

    @torch.no_grad()
    def bits(
        self,
        x: Tensor,
        prior: UnifiedLatentsTransformer,
        num_levels: int = 16,
        generator: Generators = None,
        logsnr_min: float = -10.0,
    ) -> Tensor:
        """Upper bound on the information in z_0: the prior's ELBO, in bits per image.

        Args:
            x: as in `encode`.
            prior: the stage-1 prior.
            num_levels: stratified noise levels per sample; the estimate's variance falls with their number.
            generator: generator of levels and noise. With a list of one per sample, no sample depends on its
                neighbours.
            logsnr_min: λ_z(1).

        Returns:
            (B,), fp32, bits.

        Raises:
            ValueError: as in `encode`; no levels; a list of another length; or a prior with another λ_z(0).
        """
        schedule = LogSNRSchedule(self.config.latent_logsnr, logsnr_min, "linear")
        distribution = self.encode(x).latent_dist
        bits = latent_bits(distribution.sample_clean(generator), prior, schedule, num_levels, generator)
        if distribution.latent_logvar is None:
            return bits
        return bits - nats_to_bits(variance_gain(distribution.latent_logvar, self.config.latent_logsnr))

    def num_parameters_by_part(self) -> dict[str, Any]:
        """Number of weights of the encoder and of the decoder."""
        return {name: sum(p.numel() for p in part.parameters()) for name, part in self.named_children()}


def _joined(parts: list[Tensor], dim: int) -> Tensor:
    """`torch.cat` that does not copy a single part."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=dim)
