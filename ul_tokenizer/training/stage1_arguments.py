"""Arguments of stage 1. Importing them imports no networks, so that `--help` is quick."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from ul_tokenizer.models.presets import PRESETS
from ul_tokenizer.training.arguments import FRACTION, NOT_NEGATIVE, POSITIVE, TrainingArguments, arg


@dataclass
class Stage1Arguments(TrainingArguments):
    """Arguments of `train_autoencoder`; `ul-tokenizer train autoencoder --help` explains each of them.

    Raises:
        ValueError: an argument has an illegal value, or several contradict each other.
    """

    PATHS: ClassVar[tuple[str, ...]] = (
        *TrainingArguments.PATHS,
        "pretrained_model_name_or_path",
        "train_video_dir",
        "validation_video_dir",
    )
    RENAMED: ClassVar[dict[str, str]] = {"autoencoder": "autoencoder_config", "prior": "prior_config"}
    GROUPS: ClassVar[dict[str, str]] = {
        "train_data_dir": "data",
        "num_frames": "clips",
        "preset": "networks",
        "loss_factor": "objective",
        "prior_warmup": "warm-up of the prior's weight",
        **TrainingArguments.GROUPS,
        "validation_inference_steps": "validation",
    }
    VALIDATION_METRICS: ClassVar[tuple[str, ...]] = ("psnr", "ssim", "ms_ssim", "lpips", "kid")

    # Networks
    preset: str = arg("ul-small-f8", f"Configuration of the networks: {', '.join(PRESETS)}.")
    autoencoder_config: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "Entries of the autoencoder's config to change, as a JSON object."}
    )
    prior_config: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "Entries of the prior's config to change, as a JSON object."}
    )
    pretrained_model_name_or_path: str | None = arg(
        None, "Fine-tune this model (bundled name, folder or hub id) instead of training new networks."
    )
    revision: str | None = arg(None, "Branch, tag or commit of the pretrained model on the hub.")
    fresh_prior: bool = arg(False, "Train a new prior of the preset for the pretrained autoencoder.")
    train_only: Literal["encoder", "decoder", "prior"] | None = arg(
        None, "Train only this network and freeze the other two."
    )

    # Objective
    loss_factor: float = arg(
        1.5, "Weight c_lf of the decoder loss. A higher weight gives more bits and a higher PSNR.", POSITIVE
    )
    decoder_bias: float = arg(
        4.5, "Bias b of the decoder's sigmoid weighting. A higher bias gives more bits and a higher PSNR."
    )
    decoder_boost_below: float | None = arg(
        0.0,
        "Raise the decoder's loss weight at log-SNRs below this value, without changing the encoder's gradient; "
        "null turns this off.",
    )
    prior_logsnr_min: float = arg(-10.0, "Lowest log-SNR λ_z(1) of the prior.")
    prior_schedule: Literal["linear", "cosine"] = arg("linear", "Noise schedule of the prior.")
    latent_cost: Literal["prior", "normal"] = arg(
        "prior",
        "What the latent costs the encoder: the loss of the diffusion prior, or --kl_weight times the divergence of "
        "its noisy latent from a standard normal. With normal, the prior only measures the bits.",
    )
    kl_weight: float = arg(1.0, "Weight of that divergence. 1 treats N(0, I) as the prior.", POSITIVE)
    reconstruction: Literal["diffusion", "mse"] = arg(
        "diffusion",
        "What the decoder learns: to denoise at all levels, or only to decode in one step with a small squared error. "
        "After mse, --train_only decoder trains a diffusion decoder for the same latents.",
    )
    latent_logsnr_bias: float | None = arg(
        None,
        "Train in a single stage: draw the noise level of each latent around this log-SNR, up to the usual one, so "
        "that the prior is a generator as well. The autoencoder's config needs a latent_logsnr_min.",
    )

    # Warm-up of the prior's weight
    prior_warmup: bool | None = arg(
        None,
        "Keep the weight of the prior loss low until the decoder uses the latent, then raise it to 1. "
        "By default this is on for new networks and off for pretrained ones.",
    )
    prior_hold_weight: float = arg(0.01, "Weight of the prior loss while it is kept low.", FRACTION)
    prior_min_hold_steps: int = arg(500, "Keep the weight low for at least this number of steps.", NOT_NEGATIVE)
    prior_max_hold_steps: int | None = arg(
        None,
        "Keep the weight low for at most this number of steps, even if the decoder does not use the latent by then. "
        "Without it, there is no limit, and a warning tells when the hold lasts long.",
        POSITIVE,
    )
    prior_hold_gap_db: float = arg(
        6.0,
        "Keep the weight low until an image's own latent decodes better than another image's, by this number of dB.",
    )
    prior_ramp_steps: int = arg(2000, "Number of steps over which the weight then rises to 1.", NOT_NEGATIVE)

    # Clips
    num_frames: int | None = arg(
        None, "Train a video model on clips of this number of frames. Without it, train on images only.", POSITIVE
    )
    train_video_dir: str | None = arg(
        None,
        "Cut clips out of the videos in this folder. Without it, all clips are pans over images. If there are no "
        "training images, single images are frames of these videos, and there are no pans.",
    )
    validation_video_dir: str | None = arg(
        None,
        "Validate on the videos in this folder. Without it, validation uses pans over held-out images or, without "
        "images, a fraction of the training videos that is held out.",
    )
    video_fps: float | None = arg(
        None, "Frame rate to which videos are resampled. Without it, they keep their own.", POSITIVE
    )
    cache_videos_gb: float = arg(
        4.0,
        "Memory for decoded videos in each process, in GB, which its workers share. If they need more, parts are read "
        "from the files.",
        NOT_NEGATIVE,
    )
    image_batch_fraction: float = arg(0.25, "Fraction of the steps that train on single images.", FRACTION)
    pan_fraction: float = arg(
        0.5, "Fraction of the clips that are pans over images, if there are videos as well.", FRACTION
    )
    pan_motion: Literal["steady", "camera"] = arg(
        "steady",
        "How pans over images move: steadily, or as with a camera that speeds up or slows down, turns and zooms, and "
        "before which something nearer may move faster. Pans in validation are always steady.",
    )
    pan_layer_fraction: float = arg(
        0.5, "Fraction of the pans that have a foreground, with --pan_motion camera.", FRACTION
    )

    # Validation
    validation_metrics: str | None = arg(
        "psnr",
        f"Metrics of reconstructions to log at validation, separated by commas: {', '.join(VALIDATION_METRICS)}, for "
        "clips per frame. kid is the kernel distance between features of reconstructions and originals. Bits, the "
        "latent's gap and, for clips, flicker are always logged.",
    )
    validation_inference_steps: int = arg(4, "Number of decoding steps for the second PSNR.", POSITIVE)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.preset not in PRESETS:
            raise ValueError(f"--preset must be one of {', '.join(PRESETS)}, got {self.preset}.")
        if self.fresh_prior and not self.pretrained_model_name_or_path:
            raise ValueError("--fresh_prior needs --pretrained_model_name_or_path.")
        if self.revision and not self.pretrained_model_name_or_path:
            raise ValueError("--revision needs --pretrained_model_name_or_path.")
        if self.prior_warmup is None:  # the decoder of a trained model uses its latent already
            self.prior_warmup = self.pretrained_model_name_or_path is None
        if self.kl_weight != 1 and self.latent_cost != "normal":
            raise ValueError(f"--kl_weight needs --latent_cost normal, got {self.latent_cost}.")
        if self.latent_logsnr_bias is not None and self.latent_cost != "prior":
            raise ValueError(f"--latent_logsnr_bias needs --latent_cost prior, got {self.latent_cost}.")
        longest = self.prior_max_hold_steps
        if longest is not None and longest < self.prior_min_hold_steps:
            raise ValueError(
                f"--prior_max_hold_steps must be at least --prior_min_hold_steps, {self.prior_min_hold_steps}, "
                f"got {longest}."
            )
        if (self.train_video_dir or self.validation_video_dir) and self.num_frames is None:
            raise ValueError("--train_video_dir and --validation_video_dir need --num_frames.")
        if not (self.has_images or self.train_video_dir or self.dry_run):
            raise ValueError("one of --train_data_dir, --dataset_name and --train_video_dir is needed, got none.")
        if self.train_video_dir and not self.has_images and (self.validation_data_dir or self.validation_split):
            raise ValueError("--validation_data_dir and --validation_split need training images, got videos only.")
        if self.aspect_ratio_buckets and self.num_frames is not None:
            raise ValueError("--aspect_ratio_buckets must not be given with --num_frames: clips are square.")

    @property
    def has_images(self) -> bool:
        """Whether there are training images; else there are videos only."""
        return bool(self.train_data_dir or self.dataset_name)
