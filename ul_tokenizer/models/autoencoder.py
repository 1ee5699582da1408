"""UnifiedLatentsAutoencoder: deterministic encoder and diffusion decoder, in the shape of diffusers' autoencoders."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.attention import AttentionMixin
from diffusers.models.modeling_utils import ModelMixin, get_parameter_dtype
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor

from ul_tokenizer.diffusion.schedule import LogSNRSchedule
from ul_tokenizer.models.config_checks import check_autoencoder_config, derived_config
from ul_tokenizer.models.decoder import Decoder
from ul_tokenizer.models.encoder import Encoder
from ul_tokenizer.models.host_autoencoder import AutoencoderMixin, decoder_output
from ul_tokenizer.models.latent_distribution import LatentDistribution, UnifiedLatentsEncoderOutput, draw_noise
from ul_tokenizer.models.layers import FP32_MODULES
from ul_tokenizer.models.limits import check_latents
from ul_tokenizer.models.loading import BundledNamesMixin
from ul_tokenizer.models.rate import latent_bits
from ul_tokenizer.models.streaming import DecodeWindow, StreamingMixin, TileCaches, decoded_in_windows, part_lengths
from ul_tokenizer.models.tiling import TilingMixin, blend_tiles
from ul_tokenizer.schedulers.log_snr import Generators, LogSNRScheduler

if TYPE_CHECKING:
    from diffusers.models.autoencoders.vae import DecoderOutput

    from ul_tokenizer.models.transformer import UnifiedLatentsTransformer


class UnifiedLatentsAutoencoder(
    StreamingMixin, TilingMixin, BundledNamesMixin, ModelMixin, AttentionMixin, AutoencoderMixin, ConfigMixin
):
    r"""Latent tokenizer of Unified Latents (arXiv 2602.17270).

    ```
    x (B,3,[T,]H,W) ─ encoder ─ z_clean ─(+ fixed noise, λ = 5)─ z_0 (B,c,[t,]h,w) ─┐
                                                             noise x_1 ─ decoder: λ_min → λ_max ─ x̂ (B,3,[T,]H,W)
    ```

    Latents are as the encoder makes them; normalisation by `scaling_factor`, `shift_factor` or `latents_mean/std`
    is left to the caller, as diffusers' pipelines expect.

    Args:
        in_channels: colour channels of the input.
        out_channels: colour channels of the output.
        latent_channels: c.
        patch_size: pixels per side that encoder and decoder fold into channels.
        encoder_block_out_channels: width of each encoder stage; all but the last halve the grid.
        encoder_layers_per_block: residual blocks of each encoder stage.
        decoder_block_out_channels: width of each convolutional decoder stage; all halve the grid on the way in.
        decoder_layers_per_block: residual blocks of each stage, down and up each.
        decoder_hidden_size: width of the decoder's transformer, on the grid of z_0.
        decoder_num_layers: its blocks.
        decoder_latent_embedding_layers: residual convolutions on z_0 before it enters.
        attention_head_dim: channels of an attention head.
        embedding_channels: width of the log-SNR embedding.
        dropout: probability in the decoder.
        latent_logsnr: λ_z(0), the log-SNR of z_0.
        decoder_logsnr_max: λ_x(0), the cleanest level of the decoder.
        decoder_logsnr_min: λ_x(1), the level that decoding starts from; no x̂ is trained at noisier ones.
        decoder_schedule: "linear" or "cosine", λ_x(t) between them.
        decoder_shift_clean: shift of λ_x at t = 0.
        decoder_shift_noisy: shift of λ_x at t = 1.
        decoder_algorithm: `algorithm_type` of `LogSNRScheduler`, "ddim" or "dpmsolver++".
        num_inference_steps: decoding steps where a caller gives none; 1 is the posterior mean, more sample detail.
        temporal_compression_ratio: frames per latent frame, R; a power of two. A clip is padded in front with copies of
            its first frame, so that T frames are ⌈T/R⌉; an image is one.
        temporal_downsample: where frames become fewer: in the "features" of the encoder, which is faster, or in the
            "latents", c/R channels a frame, which is where image weights can start without loss.
        sample_size: height and width in training; informative.
        tile_sample_size: pictures larger than this are tiled from the start, as networks trained on small crops want,
            whose attention never saw more tokens; None leaves tiling to `enable_tiling`.
        scaling_factor: what pipelines multiply latents by.
        shift_factor: what pipelines subtract before.
        latents_mean: per-channel mean of z_clean, once measured.
        latents_std: per-channel standard deviation of z_clean, once measured.
        force_upcast: never needed: what overflows runs in fp32 by itself.
        block_out_channels: derived, for pipelines that take the compression from its length.
        z_dim: derived.
        spatial_compression_ratio: derived.
        scale_factor_spatial: derived.
        scale_factor_temporal: derived.
        timestep_conditioning: derived.
    """

    _pipeline_part = "vae"
    _supports_gradient_checkpointing = True
    _no_split_modules = ["EncoderResidualBlock", "DecoderResidualBlock", "TransformerBlock", "LatentEmbedding"]
    _repeated_blocks = ["EncoderResidualBlock", "DecoderResidualBlock", "TransformerBlock"]
    _keep_in_fp32_modules = FP32_MODULES
    _skip_layerwise_casting_patterns = ["norm", "logsnr_embedding", "conv_out", "latent_fold", "modulation"]
    # latent_embedding is called from outside of its decoder, so it must bring its own weights.
    _group_offload_block_modules = ["encoder", "decoder", "transformer", "latent_embedding"]
    _skip_keys = ["latent_features"]

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
        self.make_decoder_scheduler()  # refuses levels that make no schedule
        self.encoder = Encoder(
            in_channels,
            latent_channels,
            patch_size,
            encoder_block_out_channels,
            encoder_layers_per_block,
            temporal_ratio=temporal_compression_ratio,
            temporal_downsample=temporal_downsample,
        )
        self.decoder = Decoder(
            out_channels,
            latent_channels,
            patch_size,
            decoder_block_out_channels,
            decoder_layers_per_block,
            decoder_hidden_size,
            decoder_num_layers,
            attention_head_dim,
            embedding_channels,
            decoder_latent_embedding_layers,
            dropout,
            temporal_compression_ratio,
            temporal_downsample,
        )
        self.register_to_config(**derived_config(self.config))
        self.spatial_compression_ratio = self.config.spatial_compression_ratio
        self.temporal_compression_ratio = temporal_compression_ratio

        self.use_slicing = False
        self.use_tiling = tile_sample_size is not None
        self.tile_sample_min_height = tile_sample_size or 512
        self.tile_sample_min_width = tile_sample_size or 512
        self.tile_overlap_factor = 0.125
        # Long clips go through in parts of so many frames, and come back in windows of so many latent ones.
        self.encode_chunk_frames = 4 * max(4, temporal_compression_ratio)
        self.decode_window_latents, self.decode_window_overlap = 8, 2

    # ------------------------------------------------------------------------------------------------------------
    # Properties
    # ------------------------------------------------------------------------------------------------------------

    @property
    def decoder_noise_schedule(self) -> LogSNRSchedule:
        """λ_x(t)."""
        config = self.config
        return LogSNRSchedule(
            config.decoder_logsnr_max,
            config.decoder_logsnr_min,
            config.decoder_schedule,
            config.decoder_shift_clean,
            config.decoder_shift_noisy,
        )

    @property
    def latents_mean(self) -> Tensor | None:
        """Per-channel mean of z_clean, (c,), or None where it was not measured."""
        return self._channel_statistic(self.config.latents_mean)

    @property
    def latents_std(self) -> Tensor | None:
        """Per-channel standard deviation of z_clean, (c,), or None where it was not measured."""
        return self._channel_statistic(self.config.latents_std)

    def _channel_statistic(self, values: list[float] | None) -> Tensor | None:
        return None if values is None else torch.tensor(values, device=self.device)

    # ------------------------------------------------------------------------------------------------------------
    # Encode
    # ------------------------------------------------------------------------------------------------------------

    @apply_forward_hook
    def encode(self, x: Tensor, return_dict: bool = True) -> UnifiedLatentsEncoderOutput | tuple[LatentDistribution]:
        """Encodes images or clips.

        Args:
            x: (B, C, H, W) or (B, C, T, H, W), float, [−1, 1]; H and W multiples of `spatial_compression_ratio`.
            return_dict: an output object, or the tuple `(latent_dist,)`.

        Returns:
            `UnifiedLatentsEncoderOutput` with `latent` = z_clean (B, c, [t,] h, w) and `latent_dist` = q(z_0 | x).

        Raises:
            ValueError: wrong rank, channels or dtype, an empty x, or a size that the compression ratio does not divide.
        """
        latent = self._encode(x)
        distribution = LatentDistribution(latent, self.config.latent_logsnr)
        if not return_dict:
            return (distribution,)
        return UnifiedLatentsEncoderOutput(latent=latent, latent_dist=distribution)

    def _encode(self, x: Tensor) -> Tensor:
        """Pixels (B, C, [T,] H, W) → z_clean (B, c, [t,] h, w): checks, slices, and tiles within slices."""
        self._check_pixels(x)
        clip = x.unsqueeze(2) if x.ndim == 4 else x
        slices = clip.split(1) if self.use_slicing else [clip]
        latent = torch.cat([self._encode_slice(s) for s in slices]) if len(slices) > 1 else self._encode_slice(clip)
        latent = latent.to(x.dtype)
        return (latent.squeeze(2) if x.ndim == 4 else latent).contiguous()

    def _encode_slice(self, x: Tensor) -> Tensor:
        x = x.to(get_parameter_dtype(self.encoder.conv_in))
        lengths = part_lengths(x.shape[2], self.encode_chunk_frames)
        if len(lengths) == 1:
            return self._encode_part(x, None)
        caches: TileCaches = {}
        return torch.cat([self._encode_part(part, caches) for part in x.split(lengths, dim=2)], dim=2)

    def _encode_part(self, x: Tensor, caches: TileCaches | None) -> Tensor:
        """A part of a clip, with what the encoder remembers of the parts before for each tile."""
        if not self.use_tiling:
            return self.encoder(x, None if caches is None else caches.setdefault((0, 0), {}))
        ratio = self.spatial_compression_ratio

        def encode_tile(rows: slice, columns: slice) -> Tensor:
            cache = None if caches is None else caches.setdefault((rows.start, columns.start), {})
            return self.encoder(x[..., _times(rows, ratio), _times(columns, ratio)], cache)

        return blend_tiles(encode_tile, *self._axes(x.shape[-2] // ratio, x.shape[-1] // ratio), scale=1)

    def _check_pixels(self, x: Tensor) -> None:
        ratio = self.spatial_compression_ratio
        if x.ndim not in (4, 5) or x.shape[1] != self.config.in_channels:
            raise ValueError(
                f"x must be (B, {self.config.in_channels}, H, W) or (B, {self.config.in_channels}, T, H, W), "
                f"got {tuple(x.shape)}."
            )
        if not x.is_floating_point():
            raise ValueError(f"x must be floating point in [−1, 1], got {x.dtype}.")
        if any(size % ratio or not size for size in x.shape[-2:]):
            raise ValueError(f"height and width must be multiples of {ratio}, got {x.shape[-2]}×{x.shape[-1]}.")
        if 0 in x.shape:
            raise ValueError(f"x must hold at least one sample and frame, got {tuple(x.shape)}.")

    # ------------------------------------------------------------------------------------------------------------
    # Decode
    # ------------------------------------------------------------------------------------------------------------

    @apply_forward_hook
    def decode(
        self,
        z: Tensor,
        return_dict: bool = True,
        generator: Generators = None,
        num_inference_steps: int | None = None,
        noise: Tensor | None = None,
        num_frames: int | None = None,
    ) -> DecoderOutput | tuple[Tensor]:
        """Decodes latents by denoising pixels from noise.

        All frames of a clip start from the same noise, so that what stands still in it does so in the result. Long
        clips are decoded in windows (`decode_window_latents`), which overlap and are blended.

        Args:
            z: z_0 (B, c, h, w) or (B, c, t, h, w), as `latent_dist.sample()` or `.mode()` gives it.
            return_dict: a `DecoderOutput`, or a tuple of its values.
            generator: makes the noise; a list has one per sample, so that no sample depends on its neighbours.
            num_inference_steps: denoiser calls; the config's where None. 1 gives the posterior mean.
            noise: x_1 itself, (B, C, [T,] H, W); the call is then a pure function of its arguments.
            num_frames: of the clip; R frames for each latent one where None.

        Returns:
            `sample` (B, C, [T,] H, W), about [−1, 1], in the dtype of `z`.

        Raises:
            ValueError: wrong rank, channels or dtype, an empty z, noise of another shape, fewer than one step, or a
                number of frames that such latents don't have.
        """
        sample = self._decode(z, generator, num_inference_steps, noise, num_frames)
        return decoder_output(sample) if return_dict else (sample,)

    def _decode(
        self,
        z: Tensor,
        generator: Generators,
        num_inference_steps: int | None,
        noise: Tensor | None,
        num_frames: int | None = None,
    ) -> Tensor:
        """Latents (B, c, [t,] h, w) → pixels (B, C, [T,] H, W): whole noise canvas first, then slices, then tiles."""
        steps = self._steps(num_inference_steps)
        check_latents("z", z, self.config.latent_channels)
        clip = z.unsqueeze(2) if z.ndim == 4 else z
        num_frames = self._num_frames(clip.shape[2], 1 if z.ndim == 4 else num_frames)
        canvas = self._noise_canvas(clip, num_frames, generator, noise)
        pairs = list(zip(clip.split(1), canvas.split(1), strict=True)) if self.use_slicing else [(clip, canvas)]
        parts = [self._decode_slice(latent, x_1, steps, num_frames) for latent, x_1 in pairs]
        sample = (torch.cat(parts) if len(parts) > 1 else parts[0]).to(z.dtype)
        return (sample.squeeze(2) if z.ndim == 4 else sample).contiguous()

    def _steps(self, num_inference_steps: int | None) -> int:
        steps: int = self.config.num_inference_steps if num_inference_steps is None else num_inference_steps
        if steps < 1:
            raise ValueError(f"num_inference_steps must be at least 1, got {steps}.")
        return steps

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
        """x_1 (B, C, T, H, W), the same for all frames unless it is given."""
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

    def _decode_slice(self, z: Tensor, noise: Tensor, steps: int, num_frames: int) -> Tensor:
        def decode(window: Tensor, first: int, count: int) -> Tensor:
            return self._decode_window(window, noise[:, :, first : first + count], steps)

        frames = list(self._windows([z], decode, z.shape[2] * self.temporal_compression_ratio - num_frames))
        return frames[0] if len(frames) == 1 else torch.cat(frames, dim=2)

    def _windows(self, latents: Iterable[Tensor], decode: DecodeWindow, padding: int) -> Iterator[Tensor]:
        size, overlap = self.decode_window_latents, self.decode_window_overlap
        return decoded_in_windows(latents, decode, size, overlap, self.temporal_compression_ratio, padding)

    def _decode_window(self, z: Tensor, noise: Tensor, steps: int) -> Tensor:
        z = z.to(get_parameter_dtype(self.decoder.conv_in))
        if not self.use_tiling:
            return self._denoise(z, noise, steps)
        ratio = self.spatial_compression_ratio

        def decode_tile(rows: slice, columns: slice) -> Tensor:
            return self._denoise(z[..., rows, columns], noise[..., _times(rows, ratio), _times(columns, ratio)], steps)

        return blend_tiles(decode_tile, *self._axes(*z.shape[-2:]), scale=ratio)

    def _denoise(self, z: Tensor, x: Tensor, steps: int) -> Tensor:
        """x_1 → x̂: `steps` calls of the denoiser; returns the x̂ of the last, fp32."""
        scheduler = self.make_decoder_scheduler()
        scheduler.set_timesteps(steps, device=z.device)
        latent_features = self.decoder.embed_latents(z)
        output = None
        for logsnr in scheduler.timesteps:
            prediction = self.decoder(x.to(z.dtype), logsnr.expand(z.shape[0]), latent_features)
            output = scheduler.step(prediction, logsnr, x)
            x = output.prev_sample
        assert output is not None  # steps ≥ 1
        return output.pred_original_sample

    def make_decoder_scheduler(self) -> LogSNRScheduler:
        """The sampler of the decoder, from λ_x(1) to λ_x(0), as the config says."""
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
        """Encodes and decodes.

        Args:
            sample: as `encode`'s `x`.
            sample_posterior: decode a draw of z_0, rather than its mean.
            return_dict: as in `decode`.
            generator: makes the noise of z_0 (if sampled), then that of the decoder.
            num_inference_steps: as in `decode`.
            noise: as in `decode`; with `sample_posterior=False` the call is then a pure function.

        Returns:
            As `decode`.
        """
        distribution = LatentDistribution(self._encode(sample), self.config.latent_logsnr)
        z = distribution.sample(generator) if sample_posterior else distribution.mode()
        num_frames = sample.shape[2] if sample.ndim == 5 else None
        decoded = self._decode(z, generator, num_inference_steps, noise, num_frames)
        return decoder_output(decoded) if return_dict else (decoded,)

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
            num_levels: noise levels per sample, stratified: the estimate's variance falls with it.
            generator: makes levels and noise; a list has one per sample, which then doesn't depend on its neighbours.
            logsnr_min: λ_z(1).

        Returns:
            (B,), fp32, bits.

        Raises:
            ValueError: as in `encode`; no levels; a list of another length; or a prior of another λ_z(0).
        """
        schedule = LogSNRSchedule(self.config.latent_logsnr, logsnr_min, "linear")
        return latent_bits(self._encode(x), prior, schedule, num_levels, generator)

    def num_parameters_by_part(self) -> dict[str, Any]:
        """Weights of encoder and decoder."""
        return {name: sum(p.numel() for p in part.parameters()) for name, part in self.named_children()}


def _times(span: slice, factor: int) -> slice:
    return slice(span.start * factor, span.stop * factor)
