"""Arguments of stage 2. Importing them imports no networks, so that `--help` is quick."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from ul_tokenizer.models.presets import BASE_PRESETS, PRESETS
from ul_tokenizer.training.arguments import BELOW_1, FRACTION, NOT_NEGATIVE, POSITIVE, TrainingArguments, arg

OTHERS_LOGSNR_MAX = 10.0  # for autoencoders of diffusers, whose latents have no noise level of their own


@dataclass
class Stage2Arguments(TrainingArguments):
    """Arguments of `train_base_model`; `ul-tokenizer train base --help` explains each of them.

    Raises:
        ValueError: an argument has an illegal value, or several contradict each other.
    """

    EXCLUSIVE: ClassVar[tuple[tuple[str, str], ...]] = (
        *TrainingArguments.EXCLUSIVE,
        ("pretrained_autoencoder", "pretrained_vae"),
    )
    PATHS: ClassVar[tuple[str, ...]] = (
        *TrainingArguments.PATHS,
        "pretrained_autoencoder",
        "pretrained_vae",
        "latent_dataset",
        "pretrained_model_name_or_path",
        "text_encoder",
        "text_embeddings_dir",
    )
    RENAMED: ClassVar[dict[str, str]] = {"base": "base_config"}
    GROUPS: ClassVar[dict[str, str]] = {
        "pretrained_autoencoder": "latents",
        "train_data_dir": "data",
        "text_encoder": "captions",
        "num_context_latents": "clips",
        "preset": "network",
        "sigmoid_bias": "objective",
        **TrainingArguments.GROUPS,
        "dry_run_latent_frames": "dry run",
        "validation_inference_steps": "validation",
    }
    VALIDATION_METRICS: ClassVar[tuple[str, ...]] = ("kid",)

    # Latents
    pretrained_autoencoder: str | None = arg(None, "The frozen autoencoder (bundled name, folder or hub id).")
    pretrained_vae: str | None = arg(
        None,
        "Train on the latents of any autoencoder of diffusers, for images or clips, instead of those of "
        "--pretrained_autoencoder. Use it to compare latents.",
    )
    autoencoder_preset: str | None = arg(
        None,
        "Configuration of the autoencoder for a dry run, where a trained one is not needed: one of the presets of "
        "`train autoencoder`.",
    )
    vae_subfolder: str | None = arg(None, "Subfolder of --pretrained_vae that contains the autoencoder.")
    revision: str | None = arg(None, "Branch, tag or commit of the autoencoder on the hub.")
    latent_dataset: str | None = arg(
        None, "Train on this latent data set (folder or hub id) instead of images, so that nothing is encoded."
    )
    cache_latents: bool = arg(
        False,
        "Encode every training image once before the first step, into a latent data set in the output folder, which "
        "later runs use again.",
    )
    cached_crops: int | None = arg(
        None,
        "With --cache_latents, encode this number of random crops of every image, as --scale_min, --scaling and "
        "--random_flip say, instead of the only crop.",
        POSITIVE,
    )

    # Captions
    text_encoder: str | None = arg(
        None,
        "Condition the model on captions, through the hidden states of this text encoder of transformers, such as CLIP "
        "or T5 (folder or hub id; needs the `text` extra).",
    )
    text_encoder_subfolder: str | None = arg(
        None,
        "Subfolder of --text_encoder that contains the encoder. The tokenizer of text_encoder_2 is tokenizer_2; "
        "otherwise it lies in the same subfolder.",
    )
    text_encoder_revision: str | None = arg(None, "Branch, tag or commit of the text encoder on the hub.")
    text_encoder_config: dict[str, Any] | None = field(
        default=None,
        metadata={
            "help": "Condition the model on captions through a fresh text encoder instead of --text_encoder: a small "
            "DistilBERT, or another kind with the key model_type. This JSON object has the entries of its transformers "
            "config to change; {} changes none. Its tokenizer is learned from the training captions and has at most "
            "vocab_size (8192) tokens."
        },
    )
    train_text_encoder: bool | None = arg(
        None,
        "Train the text encoder along with the model. Without it, a fresh one is trained, and a loaded one is frozen.",
    )
    token_dropout: float = arg(
        0.05,
        "Probability of replacing a token of a caption by the unknown token while a fresh text encoder is trained. It "
        "prepares the encoder for prompts with unknown words.",
        BELOW_1,
    )
    max_text_tokens: int | None = arg(
        None,
        "Cut off captions after this number of tokens. The default is the encoder's own limit, but at most 256.",
        POSITIVE,
    )
    caption_dropout: float = arg(0.1, "Probability of training without the caption, which guidance needs.", BELOW_1)
    cache_text_embeddings: bool = arg(
        False,
        "Encode every caption once before the first step, and keep the hidden states on the disk in half precision.",
    )
    text_embeddings_dir: str | None = arg(
        None,
        "Folder of the cached hidden states, which several runs may share; without it, they are in the output folder.",
    )

    # Network
    preset: str = arg("ul-base-mini", f"Configuration of the base model: {', '.join(BASE_PRESETS)}.")
    base_config: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "Entries of the base model's config to change, as a JSON object."}
    )
    pretrained_model_name_or_path: str | None = arg(
        None, "Continue to train this base model (folder or hub id) instead of a new one."
    )

    # Objective
    as_prior: bool = arg(
        False,
        "Train a prior of --pretrained_autoencoder instead of a base model: without classes, with the weight 1 of the "
        "bound on its bits at all levels, and written with the autoencoder, as `train autoencoder` does.",
    )
    sigmoid_bias: float = arg(
        2.0, "Bias b of the loss weight sigmoid(b - log-SNR). A higher bias gives fine detail more weight."
    )
    logsnr_max: float | None = arg(
        None,
        f"Highest log-SNR. For --pretrained_vae only, where the default is {OTHERS_LOGSNR_MAX}. Our own autoencoders "
        "define it themselves.",
    )
    logsnr_min: float = arg(-10.0, "Lowest log-SNR.")
    schedule: Literal["linear", "cosine"] = arg("linear", "Noise schedule.")
    class_conditional: bool = arg(True, "Condition the model on the class, if the samples have classes.")
    label_dropout: float = arg(0.1, "Probability of training without the class, which guidance needs.", BELOW_1)

    # Clips
    num_context_latents: int = arg(
        0,
        "Train a model that continues clips: it sees this number of latent frames at the start of each clip and "
        "generates the others.",
        NOT_NEGATIVE,
    )
    context_dropout: float = arg(0.1, "Fraction of the steps that generate all frames, without context.", FRACTION)

    dry_run_latent_frames: int | None = arg(
        None,
        "Latent frames of a clip for a dry run without a latent data set; without them it counts images.",
        POSITIVE,
    )

    # Validation
    validation_metrics: str | None = arg(
        None,
        "Set this to kid to log the kernel distance between features of samples and of the decoded held-out latents "
        "at validation, for clips per frame. There are as many samples as held-out latents. Losses and bits are always "
        "logged; psnr and ssim don't exist here, because samples have no originals.",
    )
    validation_inference_steps: int = arg(16, "Number of sampling steps in validation.", POSITIVE)
    validation_guidance_scale: float = arg(1.0, "Guidance scale of the samples in validation.", NOT_NEGATIVE)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.preset not in BASE_PRESETS:
            raise ValueError(f"--preset must be one of {', '.join(BASE_PRESETS)}, got {self.preset}.")
        if self.autoencoder_preset is not None and self.autoencoder_preset not in PRESETS:
            raise ValueError(
                f"--autoencoder_preset must be one of {', '.join(PRESETS)}, got {self.autoencoder_preset}."
            )
        stands_in = self.dry_run and self.autoencoder_preset
        if not (self.pretrained_autoencoder or self.pretrained_vae or stands_in):
            raise ValueError("one of --pretrained_autoencoder and --pretrained_vae is needed, got neither.")
        if self.vae_subfolder and not self.pretrained_vae:
            raise ValueError("--vae_subfolder needs --pretrained_vae.")
        if self.logsnr_max is not None and not self.pretrained_vae:
            raise ValueError("--logsnr_max needs --pretrained_vae, because our autoencoders define their own level.")
        self._check_data()
        self._check_text()
        if self.as_prior:
            self._check_prior()

    @property
    def has_text(self) -> bool:
        """Whether the model is conditioned on captions."""
        return self.text_encoder is not None or self.text_encoder_config is not None

    @property
    def trains_text_encoder(self) -> bool:
        """Whether the text encoder is trained along with the model."""
        return self.text_encoder_config is not None if self.train_text_encoder is None else self.train_text_encoder

    def _check_text(self) -> None:
        needs = {
            "text_encoder_subfolder": "text_encoder",
            "text_encoder_revision": "text_encoder",
            "text_embeddings_dir": "cache_text_embeddings",
        }
        for name, needed in needs.items():
            if getattr(self, name) and not getattr(self, needed):
                raise ValueError(f"--{name} needs --{needed}.")
        for name in ("max_text_tokens", "cache_text_embeddings", "train_text_encoder"):
            if getattr(self, name) and not self.has_text:
                raise ValueError(f"--{name} needs --text_encoder or --text_encoder_config.")
        if self.text_encoder and self.text_encoder_config is not None:
            raise ValueError("--text_encoder and --text_encoder_config exclude each other, got both.")
        if self.cache_text_embeddings and self.trains_text_encoder:
            raise ValueError("--cache_text_embeddings needs a frozen text encoder: --no-train_text_encoder.")

    def _check_data(self) -> None:
        sources = [bool(self.train_data_dir or self.dataset_name), bool(self.latent_dataset)]
        if sum(sources) != 1 and not (self.dry_run and not any(sources)):
            got = "both" if all(sources) else "neither"
            raise ValueError(
                f"either images (--train_data_dir or --dataset_name) or --latent_dataset are needed, got {got}."
            )
        if self.cached_crops is not None:
            if not self.cache_latents:
                raise ValueError("--cached_crops needs --cache_latents.")
            if self.aspect_ratio_buckets or self.latent_dataset is not None:
                raise ValueError("--cached_crops needs images, cut to squares without --aspect_ratio_buckets.")
        elif self.cache_latents and not self._crops_are_fixed():
            raise ValueError(
                "--cache_latents needs crops that never change: --center_crop, --no-random_flip, --scale_min 1; or a "
                "number of random crops of every image, --cached_crops."
            )

    def _check_prior(self) -> None:
        for name in ("pretrained_vae", "text_encoder", "num_context_latents"):
            if getattr(self, name):
                raise ValueError(f"--as_prior trains a prior of an autoencoder of ours alone, without --{name}.")
        if self.text_encoder_config is not None:
            raise ValueError(
                "--as_prior trains a prior of an autoencoder of ours alone, without --text_encoder_config."
            )
        self.class_conditional = False

    def _crops_are_fixed(self) -> bool:
        return self.latent_dataset is None and self.center_crop and not self.random_flip and self.scale_min == 1
