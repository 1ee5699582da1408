"""Frame prediction as a subject of reconstruction: a pipeline continues clips, and what it adds is compared."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ul_tokenizer.evaluation.drawing import prepared, sample_generators
from ul_tokenizer.evaluation.subjects import Reconstruction
from ul_tokenizer.evaluation.weights import weights_sha256
from ul_tokenizer.media.pixels import to_float, to_uint8
from ul_tokenizer.pipelines.generation import UnifiedLatentsPipeline
from ul_tokenizer.randomness import EvaluationStream
from ul_tokenizer.schedulers.log_snr import AlgorithmType


@dataclass(frozen=True)
class PredictionSubject:
    """A pipeline that sees the first frames of a clip and generates the others.

    Args:
        name: what the pipeline is called in results.
        pipeline: a base model of clips that was trained with given frames.
        given_frames: how many frames it sees.
        solver: the scheduler's `algorithm_type`.
        num_inference_steps: steps of the base model.
        decoder_num_inference_steps: steps of the decoder; None for the number in the autoencoder's config.
        seed: seed of all noise. The noise of clip k depends on the seed and k only.
    """

    name: str
    pipeline: UnifiedLatentsPipeline
    given_frames: int
    solver: AlgorithmType = "ddim"
    num_inference_steps: int = 32
    decoder_num_inference_steps: int | None = None
    seed: int = 0

    kind_of_bits = None  # a prediction is no code

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        device: torch.device = self.pipeline.device
        return device

    def facts(self) -> dict[str, Any]:
        """Everything on which its predictions depend."""
        return {
            "name": self.name,
            "type": type(self.pipeline).__name__,
            "weights_sha256": weights_sha256(self.pipeline.transformer, self.pipeline.vae),
            "dtype": str(self.pipeline.transformer.dtype).removeprefix("torch."),
            "given_frames": self.given_frames,
            "solver": self.solver,
            "num_inference_steps": self.num_inference_steps,
            "decoder_num_inference_steps": self.decoder_num_inference_steps
            or self.pipeline.vae.config.get("num_inference_steps"),
            "seed": self.seed,
        }

    @torch.inference_mode()
    def reconstruct(self, pixels: Tensor, numbers: Sequence[int]) -> Reconstruction:
        """Continues clips: uint8 (B, 3, T, H, W), of which the first `given_frames` are seen, to clips of T frames.

        Raises:
            ValueError: images, or clips without frames to predict.
        """
        if pixels.ndim != 5 or pixels.shape[2] <= self.given_frames:
            raise ValueError(
                f"clip_frames must be more than the {self.given_frames} given frames, got samples of the shape "
                f"{tuple(pixels.shape[1:])}."
            )
        given, num_frames = pixels[:, :, : self.given_frames], pixels.shape[2]
        start = time.perf_counter()
        with prepared(self.pipeline, self.solver):
            (clips,) = self.pipeline(
                context_frames=to_float(given),
                num_frames=self._whole_latents(num_frames - self.given_frames),
                num_images_per_prompt=len(pixels),
                num_inference_steps=self.num_inference_steps,
                decoder_num_inference_steps=self.decoder_num_inference_steps,
                generator=sample_generators(self.seed, EvaluationStream.GENERATION, numbers),
                output_type="pt",
                return_dict=False,
            )
        predicted = (2 * clips - 1).transpose(1, 2).float().cpu()[:, :, self.given_frames : num_frames]
        seconds = time.perf_counter() - start
        is_finite = predicted.isfinite().flatten(1).all(1)
        continued = torch.cat([given, to_uint8(predicted.nan_to_num())], dim=2)
        return Reconstruction(continued, is_finite, torch.zeros(len(pixels), dtype=torch.float64), 0.0, seconds)

    def _whole_latents(self, num_frames: int) -> int:
        """At least as many frames as asked for: the pipeline predicts whole latents, of which frames can be cut off."""
        ratio = int(getattr(self.pipeline.vae, "temporal_compression_ratio", 1) or 1)
        return -(-num_frames // ratio) * ratio

    def flops(self, shape: tuple[int, ...]) -> None:
        """Nothing: the operations of sampling aren't counted."""
