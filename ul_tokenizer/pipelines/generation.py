"""UnifiedLatentsPipeline: noise → base model → z_0 → decoder → images (Algorithm 2)."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from diffusers import DiffusionPipeline
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from diffusers.video_processor import VideoProcessor
from torch import Tensor

from ul_tokenizer import _compat
from ul_tokenizer.diffusion.guidance import Guidance
from ul_tokenizer.models.any_autoencoder import decode_any, is_ours, spatial_ratio
from ul_tokenizer.models.latent_normalization import denormalize_latents
from ul_tokenizer.models.transformer import UnifiedLatentsTransformer
from ul_tokenizer.pipelines.checks import (
    check_components,
    check_generators,
    check_initial_latents,
    check_options,
    check_steps,
    grid_size,
)
from ul_tokenizer.pipelines.clips import ClipPlan, plan_clip
from ul_tokenizer.pipelines.conditions import ClassLabels, Conditions, make_conditions
from ul_tokenizer.pipelines.pipeline_files import find_pipeline
from ul_tokenizer.pipelines.text import encode_texts
from ul_tokenizer.publish.facts import ModelFacts
from ul_tokenizer.publish.mixin import PushToHubMixin
from ul_tokenizer.schedulers.log_snr import LogSNRScheduler

if TYPE_CHECKING:
    from typing_extensions import Self

OutputType = Literal["pil", "np", "pt", "latent"]
Generators = torch.Generator | list[torch.Generator] | None
StepCallback = Callable[["UnifiedLatentsPipeline", int, float, dict[str, Any]], dict[str, Any]]


@dataclass(frozen=True)
class StepEnd:
    """What happens after each step: the user's callback, if there is one."""

    pipeline: UnifiedLatentsPipeline
    callback: StepCallback | None
    tensor_inputs: Sequence[str]

    def __call__(self, step: int, logsnr: float, z: Tensor) -> Tensor:
        """Latents (B, c, [t,] h, w) → those from which the next step starts."""
        if self.callback is None:
            return z
        tensors = {"latents": z} if "latents" in self.tensor_inputs else {}
        latents: Tensor = (self.callback(self.pipeline, step, logsnr, tensors) or {}).get("latents", z)
        return latents


@dataclass
class UnifiedLatentsPipelineOutput(BaseOutput):
    """Output of `UnifiedLatentsPipeline`.

    Attributes:
        images: a list of PIL images, an array (B, H, W, 3) or a tensor (B, 3, H, W) in [0, 1]. For clips it is a list
            of PIL images for each, an array (B, T, H, W, 3) or a tensor (B, T, 3, H, W). With output_type="latent" it
            is z_0 (B, c, [t,] h, w), noisy at the level that the decoder expects, normalised as for training.
    """

    images: Any

    @property
    def frames(self) -> Any:
        """The same as `images`, under the name that video pipelines use."""
        return self.images


class UnifiedLatentsPipeline(PushToHubMixin, DiffusionPipeline):
    r"""Generates images: by class, by text, or without either.

    ```
    z_1 ~ N(0, I) ─ transformer, scheduler ─ z_0 at λ = 5, still noisy ─ vae.decode (from x_1 ~ N(0, I)) ─ images
    ```

    Args:
        transformer: the base model; a stage-1 prior also works, but less well.
        scheduler: its last level must be that of the latents on which the transformer was trained.
        vae: the autoencoder of these latents, ours or any of diffusers'.
        text_encoder: a text encoder of `transformers`, for models that are conditioned on text.
        tokenizer: the tokenizer of the text encoder.

    Raises:
        ValueError: the components don't fit each other.
    """

    commit_hash: str | None = None  # commit of the hub repository that it was loaded from
    model_cpu_offload_seq = "text_encoder->transformer->vae"
    _optional_components: ClassVar[list[str]] = ["text_encoder", "tokenizer"]
    _callback_tensor_inputs: ClassVar[list[str]] = ["latents"]
    card_facts: ClassVar[ModelFacts] = ModelFacts(
        role="An image generator: base model, scheduler and autoencoder",
        usage='pipe = UnifiedLatentsPipeline.from_pretrained("{repo_id}")\nimage = pipe().images[0]',
        pipeline_tag="unconditional-image-generation",
        training_stage="base",
    )

    transformer: UnifiedLatentsTransformer
    scheduler: LogSNRScheduler
    vae: Any
    text_encoder: Any
    tokenizer: Any

    def __init__(
        self,
        transformer: UnifiedLatentsTransformer,
        scheduler: LogSNRScheduler,
        vae: Any,
        text_encoder: Any = None,
        tokenizer: Any = None,
    ) -> None:
        super().__init__()
        check_components(transformer, scheduler, vae)
        self.register_modules(
            transformer=transformer, scheduler=scheduler, vae=vae, text_encoder=text_encoder, tokenizer=tokenizer
        )
        self.vae_scale_factor = spatial_ratio(vae)
        self.image_processor = VaeImageProcessor(vae_scale_factor=self.vae_scale_factor)
        self.video_processor = VideoProcessor(vae_scale_factor=self.vae_scale_factor)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any) -> Self:
        """As diffusers' `from_pretrained`, from a bundled name, a local folder or a hub id, in this order.

        Raises:
            NoModelError: the folder or repository holds no pipeline.
            HubError: the hub can't be reached, or refuses.
            ValueError: parts of the pipeline would need code of the repository.
        """
        folder, commit = find_pipeline(os.fspath(pretrained_model_name_or_path), kwargs)
        pipeline: Self = super().from_pretrained(folder, use_safetensors=True, **kwargs)
        pipeline.commit_hash = commit
        return pipeline

    @torch.no_grad()
    def __call__(
        self,
        class_labels: ClassLabels | None = None,
        *,
        prompt: str | list[str] | None = None,
        prompt_embeds: Tensor | None = None,
        prompt_attention_mask: Tensor | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 32,
        decoder_num_inference_steps: int | None = None,
        guidance_scale: float = 1.0,
        guidance_interval: tuple[float, float] | None = None,
        latent_logsnr: float | None = None,
        num_images_per_prompt: int = 1,
        generator: Generators = None,
        latents: Tensor | None = None,
        num_frames: int | None = None,
        context_frames: Tensor | None = None,
        context_latents: Tensor | None = None,
        output_type: OutputType = "pil",
        return_dict: bool = True,
        callback_on_step_end: StepCallback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> UnifiedLatentsPipelineOutput | tuple[Any]:
        """Generates images or clips.

        Args:
            class_labels: one class for each image, from 0 to the number of classes − 1; texts go to `prompt`.
            prompt: texts, for pipelines with a text encoder.
            prompt_embeds: (B, L, D), hidden states of a text encoder, in place of `prompt`.
            prompt_attention_mask: (B, L), true at the tokens of `prompt_embeds`; None if all positions are tokens.
            height: height of the images in pixels; that of the training images if not given.
            width: their width, likewise.
            num_inference_steps: steps of the base model.
            decoder_num_inference_steps: steps of the decoder; the autoencoder's own number if not given.
            guidance_scale: s of v_∅ + s (v_c − v_∅); 1 is no guidance.
            guidance_interval: (lowest, highest) log-SNR at which to guide; None for all.
            latent_logsnr: the level at which the base model hands z_0 to the decoder, for autoencoders that were
                trained in a single stage and take several; None for the cleanest, which is the only one of others.
            num_images_per_prompt: images for each class or text.
            generator: makes all noise. With a list of one for each image, no image depends on the others.
            latents: z_1, (B, c, [t,] h, w), in place of noise.
            num_frames: number of frames to generate; that of the training clips if not given, or a single image for
                models of images. After given frames it must be a multiple of the temporal compression ratio.
            context_frames: (B, 3, T', H, W) in [−1, 1], frames that the clip continues; the result starts with them.
            context_latents: (B, c, t', h, w), the same as clean latents, normalised as for training.
            output_type: "pil", "np", "pt" or "latent".
            return_dict: whether to return a `UnifiedLatentsPipelineOutput`, or a tuple of its values.
            callback_on_step_end: called as (pipeline, step, log-SNR, {"latents": z}) after each step. If it returns
                a dictionary with "latents", the next step starts from these.
            callback_on_step_end_tensor_inputs: names of the tensors for the callback; only "latents" exists.

        Returns:
            The images.

        Raises:
            ValueError: an argument is out of its range, or the model has no place for a condition.
        """
        check_options(output_type, callback_on_step_end_tensor_inputs, self._callback_tensor_inputs)
        check_steps(num_inference_steps=num_inference_steps, decoder_num_inference_steps=decoder_num_inference_steps)
        guidance, scheduler = Guidance(guidance_scale, guidance_interval), self._scheduler_to(latent_logsnr)
        device = _compat.execution_device(self)
        text = self._encode_text(prompt, prompt_embeds, prompt_attention_mask, device)
        conditions = make_conditions(self.transformer, class_labels, text, num_images_per_prompt, device)
        size = conditions.batch_size
        check_generators(generator, size)
        clip = plan_clip(self.vae, self.transformer, num_frames, context_frames, context_latents, size, device)
        z = self._initial_latents(size, height, width, generator, latents, device, clip)
        callback = StepEnd(self, callback_on_step_end, callback_on_step_end_tensor_inputs)
        scheduler.set_timesteps(num_inference_steps, device=device)
        predict = self._predictor(conditions, guidance, clip.context)
        z = self._denoised(z, scheduler, predict, guidance, generator, callback)

        images: Any = clip.completed(z, scheduler.config.logsnr_max, generator)
        if output_type != "latent":
            pixels = self._decode(images, generator, decoder_num_inference_steps, clip.num_frames, latent_logsnr)
            images = self._postprocessed(pixels.float(), output_type)
        self.maybe_free_model_hooks()
        return UnifiedLatentsPipelineOutput(images=images) if return_dict else (images,)

    # ------------------------------------------------------------------------------------------------------------
    # Pieces of Algorithm 2
    # ------------------------------------------------------------------------------------------------------------

    def _scheduler_to(self, latent_logsnr: float | None) -> LogSNRScheduler:
        """The scheduler, or one like it that ends at another level, which the decoder must take."""
        if latent_logsnr is None:
            return self.scheduler
        lowest = self.vae.config.get("latent_logsnr_min") if is_ours(self.vae) else None
        highest = self.scheduler.config.logsnr_max
        if lowest is None:
            raise ValueError(f"latent_logsnr must be None for a model of two stages, got {latent_logsnr}.")
        if not lowest <= latent_logsnr <= highest:
            raise ValueError(f"latent_logsnr must be from {lowest} to {highest}, got {latent_logsnr}.")
        scheduler: LogSNRScheduler = type(self.scheduler).from_config(self.scheduler.config, logsnr_max=latent_logsnr)
        return scheduler

    def _denoised(
        self,
        z: Tensor,
        scheduler: LogSNRScheduler,
        predict: Callable[[Tensor, Tensor, bool], Tensor],
        guidance: Guidance,
        generator: Generators,
        callback: StepEnd,
    ) -> Tensor:
        """z_1 → z_0, through all timesteps of the scheduler."""
        levels: list[float] = scheduler.timesteps.tolist()  # once: reading one at each step waits for the GPU
        for i, logsnr in enumerate(self.progress_bar(scheduler.timesteps)):
            v = predict(z, logsnr, guidance.applies(levels[i]))
            z = scheduler.step(v, logsnr, z, generator=generator, return_dict=False)[0]
            z = callback(i, levels[i], z)
        return z

    def _initial_latents(
        self,
        batch_size: int,
        height: int | None,
        width: int | None,
        generator: Generators,
        latents: Tensor | None,
        device: torch.device,
        clip: ClipPlan,
    ) -> Tensor:
        """z_1, fp32."""
        if clip.context is not None:
            h, w = clip.context.shape[-2:]
        else:
            h, w = grid_size(self.transformer, self.vae, self.vae_scale_factor, height, width)
        shape = (batch_size, self.transformer.config.in_channels, *clip.new_latent_frames, h, w)
        if latents is not None:
            check_initial_latents(latents, shape)
            return latents.to(device, torch.float32)
        noise: Tensor = randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
        return noise * self.scheduler.init_noise_sigma

    def _predictor(
        self, conditions: Conditions, guidance: Guidance, context: Tensor | None
    ) -> Callable[[Tensor, Tensor, bool], Tensor]:
        """A function of z, log-SNR and whether to guide that gives v; both predictions are made in one pass."""

        def predict(z: Tensor, logsnr: Tensor, conditions: Conditions, context: Tensor | None) -> Tensor:
            inputs = conditions.model_inputs()
            v: Tensor = self.transformer(z, logsnr, **inputs, context_latents=context, return_dict=False)[0]
            return v

        if conditions.is_empty:
            return lambda z, logsnr, _: predict(z, logsnr, conditions, context)
        both = conditions.with_null(self.transformer.null_class_label)
        contexts = None if context is None else torch.cat([context, context])

        def guided(z: Tensor, logsnr: Tensor, is_guided: bool) -> Tensor:
            if not is_guided:
                return predict(z, logsnr, conditions, context)
            return guidance.combine(*predict(torch.cat([z, z]), logsnr, both, contexts).chunk(2))

        return guided

    def _decode(
        self,
        z: Tensor,
        generator: Generators,
        num_inference_steps: int | None,
        num_frames: int | None = None,
        latent_logsnr: float | None = None,
    ) -> Tensor:
        """Pixels (B, 3, [T,] H, W), about [−1, 1]."""
        latents = denormalize_latents(self.vae, z)
        if is_ours(self.vae):
            options: dict[str, Any] = {"generator": generator, "num_inference_steps": num_inference_steps}
            options |= {} if num_frames is None else {"num_frames": num_frames}
            options |= {} if latent_logsnr is None else {"latent_logsnr": latent_logsnr}
            return decode_any(self.vae, latents, **options)
        if num_inference_steps is not None:
            raise ValueError(
                f"decoder_num_inference_steps must be None for a {type(self.vae).__name__}, which decodes in one step, "
                f"got {num_inference_steps}."
            )
        pixels = decode_any(self.vae, latents)
        return pixels[:, :, :num_frames] if pixels.ndim == 5 else pixels  # other numbers of frames may not exist

    def _postprocessed(self, pixels: Tensor, output_type: OutputType) -> Any:
        """Pixels (B, 3, [T,] H, W) → what `output_type` asks for."""
        if pixels.ndim == 4:
            return self.image_processor.postprocess(pixels, output_type=output_type)
        return self.video_processor.postprocess_video(pixels, output_type=output_type)

    # ------------------------------------------------------------------------------------------------------------
    # Text
    # ------------------------------------------------------------------------------------------------------------

    def _encode_text(
        self, prompt: Any, embeds: Tensor | None, mask: Tensor | None, device: torch.device
    ) -> tuple[Tensor, Tensor | None] | None:
        if prompt is not None and embeds is not None:
            raise ValueError("prompt and prompt_embeds exclude each other, got both.")
        if embeds is not None:
            return embeds.to(device), None if mask is None else mask.to(device)
        if mask is not None:
            raise ValueError("prompt_attention_mask must be None without prompt_embeds, got a mask.")
        return None if prompt is None else self.encode_prompt(prompt, device)

    def encode_prompt(self, prompt: str | list[str], device: torch.device | None = None) -> tuple[Tensor, Tensor]:
        """Hidden states (B, L, D) of the text encoder and their mask (B, L): `prompt_embeds` for later calls.

        The text "" means no text.

        Raises:
            ValueError: this pipeline has no text encoder.
        """
        if self.text_encoder is None or self.tokenizer is None:
            raise ValueError(f"prompt must be None for a pipeline without a text encoder, got {prompt!r}.")
        device = device or _compat.execution_device(self)
        texts = [prompt] if isinstance(prompt, str) else list(prompt)
        return encode_texts(self.text_encoder, self.tokenizer, texts, device)
