"""One of our autoencoders or any of diffusers', with one way to encode, decode and count bits."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from diffusers import AutoModel
from diffusers.utils import logging
from torch import Tensor, nn

from ul_tokenizer.evaluation.measures.flops import split_flops
from ul_tokenizer.evaluation.weights import weights_sha256
from ul_tokenizer.files import read_json_object
from ul_tokenizer.models.autoencoder import UnifiedLatentsAutoencoder
from ul_tokenizer.models.loading import PIPELINE_INDEX
from ul_tokenizer.models.repository import AUTOENCODER, MissingPriorError, load_autoencoder, load_prior, locate
from ul_tokenizer.models.transformer import UnifiedLatentsTransformer

LatentChoice = Literal["sample", "mode"]
OURS = UnifiedLatentsAutoencoder.__name__
BITS_PER_LATENT_VALUE = 16  # of the nominal rate: latents are usually stored in half precision
BITS_SIDE = 512  # pixels a side of the pieces whose bits are added up, since attention grows with their square
_UNIT_RANGE = {"AutoencoderRAE"}  # classes whose pixels are in [0, 1] and not in [−1, 1]
Generators = list[torch.Generator] | None


@dataclass
class AnyAutoencoder:
    """An autoencoder that is measured.

    Args:
        name: what it is called in results.
        model: the autoencoder, in evaluation mode, on its device.
        prior: stage-1 prior of one of ours, which bounds the bits.
        latent: whether to decode a sample of the latent's distribution, or its mode.
    """

    name: str
    model: Any
    prior: UnifiedLatentsTransformer | None = None
    latent: LatentChoice = "sample"

    @property
    def is_ours(self) -> bool:
        """Whether it is a `UnifiedLatentsAutoencoder`."""
        return isinstance(self.model, UnifiedLatentsAutoencoder)

    @cached_property
    def takes_clips(self) -> bool:
        """Whether it is a model of videos."""
        if self.is_ours:
            return int(self.model.temporal_compression_ratio) > 1
        return any(isinstance(module, nn.Conv3d) for module in self.model.modules())

    @cached_property
    def ratio(self) -> int:
        """Pixels per latent along a side."""
        config = self.model.config
        known = getattr(self.model, "spatial_compression_ratio", None) or config.get("spatial_compression_ratio")
        if known is not None:
            return int(known)
        if "encoder_patch_size" in config:
            return int(config["encoder_patch_size"])
        levels = config.get("block_out_channels") or config.get("encoder_block_out_channels") or (1,)
        return int(2 ** (len(levels) - 1))

    @property
    def multiple(self) -> int:
        """The multiple in pixels that both sides need."""
        return self.ratio * (1 if self.prior is None else int(self.prior.size_multiple))

    # ---------------------------------------------------------------- tensors

    def encode(self, pixels: Tensor, generators: Generators) -> Tensor:
        """Pixels (B, 3, [T,] H, W) in [−1, 1] → latents as `decode` takes them; one generator for each sample."""
        x = pixels.to(self.model.device, self.model.dtype)
        output = self.model.encode(x / 2 + 0.5 if type(self.model).__name__ in _UNIT_RANGE else x)
        distribution = getattr(output, "latent_dist", None)
        if distribution is not None:
            z: Tensor = distribution.sample(generators) if self.latent == "sample" else distribution.mode()
            return z
        latents: Tensor = output.latent if hasattr(output, "latent") else output.latents
        return latents

    def decode(self, latents: Tensor, generators: Generators, steps: int | None, num_frames: int | None) -> Tensor:
        """Latents → pixels (B, 3, [T,] H, W), fp32, nominally in [−1, 1], on the CPU."""
        options: dict[str, Any] = {}
        if self.is_ours:
            options = {"generator": generators, "num_inference_steps": steps}
            options |= {} if num_frames is None else {"num_frames": num_frames}
        pixels = self.model.decode(latents, **options).sample.float()
        pixels = pixels if pixels.is_meta else pixels.cpu()
        return 2 * pixels - 1 if type(self.model).__name__ in _UNIT_RANGE else pixels

    def bits(self, pixels: Tensor, latents: Tensor, generators: Generators) -> Tensor:
        """Bits of each sample, (B,) float64: the prior's bound, or else the nominal rate."""
        if self.prior is not None:
            return self._bound(pixels, generators)
        per_sample = float(latents[0].numel() * BITS_PER_LATENT_VALUE)
        if (codes := self.model.config.get("num_vq_embeddings")) is not None:
            per_sample = latents[0, 0].numel() * math.log2(codes)
        return torch.full((len(latents),), per_sample, dtype=torch.float64)

    @property
    def kind_of_bits(self) -> str:
        """What `bits` counts."""
        if self.prior is not None:
            return "bound by the prior"
        if "num_vq_embeddings" in self.model.config:
            return "nominal, all codes equally likely"
        return f"nominal, {BITS_PER_LATENT_VALUE} bits per latent value"

    def _bound(self, pixels: Tensor, generators: Generators) -> Tensor:
        """The sum over pieces; the prior is a measuring instrument, so pixels and networks are in fp32."""
        side = max(BITS_SIDE // self.multiple, 1) * self.multiple
        x = pixels.to(self.model.device, self.model.dtype)
        total = torch.zeros(len(pixels), dtype=torch.float64)
        for strip in torch.split(x, side, -2):
            for piece in torch.split(strip, side, -1):
                total += self.model.bits(piece, self.prior, generator=generators).double().cpu()
        return total

    # ---------------------------------------------------------------- facts

    @torch.inference_mode()
    def flops(self, pixels: Tensor, steps: int | None) -> dict[str, dict[str, int]] | None:
        """FLOPs of encoding and of decoding pixels (B, 3, [T,] H, W) as `encode` takes them.

        They are counted on the meta device, where nothing is computed. None where they cannot be counted.
        """
        try:
            meta = AnyAutoencoder(self.name, copy.deepcopy(self.model).to("meta"), latent="mode")
            x, frames = pixels.to("meta"), pixels.shape[2] if pixels.ndim == 5 else None
            latents: list[Tensor] = []
            encode = split_flops(lambda: latents.append(meta.encode(x, None)))
            decode = split_flops(lambda: meta.decode(latents[0], None, steps, frames))
        except (RuntimeError, NotImplementedError):  # an operator without shapes only
            return None
        return {"encode": encode._asdict(), "decode": decode._asdict()}

    def facts(self) -> dict[str, Any]:
        """What a result file says about the subject, without decoding steps."""
        networks = [self.model] if self.prior is None else [self.model, self.prior]
        return {
            "name": self.name,
            "type": type(self.model).__name__,
            "weights_sha256": weights_sha256(*networks),
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "latent": self.latent,
            "parameters": _parameters(self.model),
            "spatial_compression_ratio": self.ratio,
            "temporal_compression_ratio": self._temporal_ratio,
            "latent_channels": self.model.config.get("latent_channels"),
        }

    @property
    def _temporal_ratio(self) -> int | None:
        config = self.model.config
        known = getattr(self.model, "temporal_compression_ratio", None) or config.get("temporal_compression_ratio")
        return int(known) if known is not None else None if self.takes_clips else 1


def _parameters(model: nn.Module) -> dict[str, int]:
    parts = {name: part for name in ("encoder", "decoder") if isinstance(part := getattr(model, name, None), nn.Module)}
    return {name: sum(p.numel() for p in part.parameters()) for name, part in {**parts, "total": model}.items()}


# ---------------------------------------------------------------- loading


def load_any_autoencoder(
    name: str,
    revision: str | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    latent: LatentChoice = "sample",
) -> AnyAutoencoder:
    """Loads one of our autoencoders, with its prior if it has one, or any of diffusers'.

    Args:
        name: a bundled name, a folder or a hub id; of a pipeline its autoencoder is taken.
        revision: branch, tag or commit on the hub.
        dtype: of the autoencoder's weights; a prior stays in fp32.
        device: where to compute.
        latent: see `AnyAutoencoder`.

    Raises:
        ValueError: there is no such model, or it is not an autoencoder.
    """
    if latent not in ("sample", "mode"):
        raise ValueError(f"latent must be sample or mode, got {latent!r}.")
    kind, subfolder = _class_and_subfolder(name, revision)
    if kind == OURS:
        model: Any = load_autoencoder(name, revision=revision, torch_dtype=dtype)
        prior = _prior_of(name, revision)
    else:
        model, prior = _load_other(name, revision, subfolder, dtype), None
    model.eval().requires_grad_(False).to(device)
    return AnyAutoencoder(name, model, None if prior is None else prior.to(device), latent)


def _class_and_subfolder(name: str, revision: str | None) -> tuple[str, str | None]:
    """The class that a repository's config names, and the subfolder of a pipeline's autoencoder."""
    folder = locate(name, revision=revision).folder
    config, index = folder / "config.json", folder / PIPELINE_INDEX
    if not config.is_file() and index.is_file():
        _, kind = read_json_object(index).get(AUTOENCODER) or (None, None)
        if kind is None:
            raise ValueError(f"model must be an autoencoder, got {name}, a pipeline without one.")
        return str(kind), AUTOENCODER
    if not config.is_file():
        raise ValueError(f"model must be an autoencoder, got {name}, which has no config.json.")
    return str(read_json_object(config).get("_class_name", "model of an unknown class")), None


def _prior_of(name: str, revision: str | None) -> UnifiedLatentsTransformer | None:
    try:
        return load_prior(name, revision=revision).eval().requires_grad_(False)
    except MissingPriorError:
        return None


def _load_other(name: str, revision: str | None, subfolder: str | None, dtype: torch.dtype) -> Any:
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        model = AutoModel.from_pretrained(
            name, subfolder=subfolder, revision=revision, use_safetensors=True, torch_dtype=dtype
        )
    except (OSError, ValueError, AttributeError, RuntimeError, ImportError) as error:
        reason = " ".join(str(error).split()).split(". ")[0].rstrip(".") or type(error).__name__
        raise ValueError(f"model {name} can't be loaded: {reason}.") from error
    if not (hasattr(model, "encode") and hasattr(model, "decode")):
        raise ValueError(f"model must be an autoencoder, got {name}, a {type(model).__name__}.")
    return model
