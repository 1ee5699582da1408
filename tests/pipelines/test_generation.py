"""The generation pipeline: what follows from what, which forms its results take, and what it refuses."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

from ul_tokenizer.models.checkpoint import NoModelError
from ul_tokenizer.models.presets import build_autoencoder, build_base
from ul_tokenizer.pipelines.generation import UnifiedLatentsPipeline
from ul_tokenizer.schedulers.log_snr import LogSNRScheduler

Make = Callable[..., UnifiedLatentsPipeline]
TEXT = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(5))


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def sample(pipeline: UnifiedLatentsPipeline, **arguments: Any) -> Tensor:
    """Pixels, or z_0 with output_type="latent"."""
    defaults = {"num_inference_steps": 3, "output_type": "pt", "return_dict": False}
    (images,) = pipeline(**{**defaults, **arguments})
    assert isinstance(images, Tensor) and images.isfinite().all()
    return images


def count_rows(pipeline: UnifiedLatentsPipeline) -> tuple[list[int], Any]:
    """The batch size of every call of the transformer, and the hook to remove."""
    rows: list[int] = []
    hook = pipeline.transformer.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    return rows, hook


# ---------------------------------------------------------------- results


def test_images_come_in_every_form_and_are_the_same_in_each(pipeline: UnifiedLatentsPipeline) -> None:
    def run(output_type: Any) -> Any:
        options: Any = {"num_inference_steps": 2, "return_dict": False}
        return pipeline([0, 1], output_type=output_type, generator=generators(0, 1), **options)[0]

    tensor, array, pictures, latents = run("pt"), run("np"), run("pil"), run("latent")
    assert tensor.shape == (2, 3, 16, 16) and array.shape == (2, 16, 16, 3) and latents.shape == (2, 4, 2, 2)
    assert tensor.min() >= 0 and tensor.max() <= 1
    np.testing.assert_allclose(array, tensor.permute(0, 2, 3, 1).numpy(), atol=1e-6)
    assert all(isinstance(picture, Image.Image) and picture.size == (16, 16) for picture in pictures)
    np.testing.assert_allclose(np.asarray(pictures[0]), 255 * array[0], atol=0.51)


def test_the_latents_are_z_0_which_the_autoencoder_decodes_to_the_images(pipeline: UnifiedLatentsPipeline) -> None:
    z = sample(pipeline, class_labels=[0, 1], generator=generators(0, 1), output_type="latent")
    noise = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(9))
    torch.manual_seed(0)
    decoded = pipeline.vae.decode(z, noise=noise).sample
    again = pipeline.vae.decode(z, noise=noise).sample
    torch.testing.assert_close(decoded, again)
    # The generators went on after z_1: images are what the decoder makes of z_0 with their next noise.
    both = generators(0, 1)
    for generator in both:
        torch.randn(1, 4, 2, 2, generator=generator)
    images = sample(pipeline, class_labels=[0, 1], generator=generators(0, 1))
    pixels = pipeline.vae.decode(z, generator=both).sample
    torch.testing.assert_close(images, (pixels / 2 + 0.5).clamp(0, 1))


@pytest.mark.parametrize("algorithm", ["ddim", "dpmsolver++", "ddpm"])
def test_a_batch_is_its_images_one_by_one(algorithm: str, make_pipeline: Make) -> None:
    pipeline = make_pipeline(algorithm)
    options = {"guidance_scale": 2.0, "decoder_num_inference_steps": 2}
    batch = sample(pipeline, class_labels=[0, 2, 1], generator=generators(7, 8, 9), **options)
    for image, label, seed in zip(batch, (0, 2, 1), (7, 8, 9), strict=True):
        alone = sample(pipeline, class_labels=label, generator=generators(seed), **options)
        torch.testing.assert_close(alone[0], image, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_no_step_waits_for_a_number(pipeline: UnifiedLatentsPipeline, scale: float) -> None:
    """On a GPU, Python would have to wait for all steps before, to read a number from a tensor."""

    class Reads(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.count += func is torch.ops.aten._local_scalar_dense.default
            return func(*args, **(kwargs or {}))

    counts = []
    for steps in (4, 8):
        with Reads() as reads:
            pipeline([0], num_inference_steps=steps, guidance_scale=scale, output_type="latent")
        counts.append(reads.count)
    assert counts[0] == counts[1]


def test_a_class_changes_its_image(pipeline: UnifiedLatentsPipeline) -> None:
    one, other = (sample(pipeline, class_labels=label, generator=generators(0)) for label in (0, 1))
    assert not torch.allclose(one, other, atol=1e-3)


def test_without_a_class_the_null_label_is_used(pipeline: UnifiedLatentsPipeline) -> None:
    rows, hook = count_rows(pipeline)
    images = sample(pipeline, num_images_per_prompt=2, generator=generators(0, 1), guidance_scale=3.0)
    hook.remove()
    assert images.shape[0] == 2
    assert rows == [2, 2, 2]  # nothing to guide towards


def test_own_noise_takes_the_place_of_the_generators(pipeline: UnifiedLatentsPipeline) -> None:
    noise = torch.randn(1, 4, 2, 2, generator=torch.Generator().manual_seed(3))
    z = sample(pipeline, class_labels=0, latents=noise, output_type="latent")
    torch.testing.assert_close(z, sample(pipeline, class_labels=0, generator=generators(3), output_type="latent"))


def test_images_of_other_sizes_and_several_of_a_class(pipeline: UnifiedLatentsPipeline) -> None:
    images = sample(pipeline, class_labels=[0, 1], num_images_per_prompt=3, height=24, width=32)
    assert images.shape == (6, 3, 24, 32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_generates(dtype: torch.dtype, make_pipeline: Make) -> None:
    pipeline = make_pipeline().to(dtype)
    exact = sample(make_pipeline(), class_labels=[0, 1], generator=generators(0, 1))
    half = sample(pipeline, class_labels=[0, 1], generator=generators(0, 1))
    assert (half.float() - exact).abs().mean() < 0.05


# ---------------------------------------------------------------- guidance


def test_a_scale_of_1_asks_for_no_second_prediction(pipeline: UnifiedLatentsPipeline) -> None:
    rows, hook = count_rows(pipeline)
    sample(pipeline, class_labels=[0, 1])
    hook.remove()
    assert rows == [2, 2, 2]


def test_guidance_is_the_formula_on_both_predictions(pipeline: UnifiedLatentsPipeline) -> None:
    noise = torch.randn(1, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    z = sample(pipeline, class_labels=1, latents=noise, num_inference_steps=1, guidance_scale=2.5, output_type="latent")
    scheduler = LogSNRScheduler()
    scheduler.set_timesteps(1)
    logsnr = scheduler.timesteps[0]
    with torch.no_grad():
        v_class, v_null = (pipeline.transformer(noise, logsnr, torch.tensor([label])).sample for label in (1, 3))
    expected = scheduler.step(v_null + 2.5 * (v_class - v_null), logsnr, noise).prev_sample
    torch.testing.assert_close(z, expected)


def test_outside_its_interval_guidance_costs_nothing_and_changes_nothing(pipeline: UnifiedLatentsPipeline) -> None:
    scheduler = LogSNRScheduler()
    scheduler.set_timesteps(3)
    middle = float(scheduler.timesteps[1])
    rows, hook = count_rows(pipeline)
    sample(pipeline, class_labels=0, guidance_scale=3.0, guidance_interval=(middle - 0.1, middle + 0.1))
    hook.remove()
    assert rows == [1, 2, 1]
    never = sample(pipeline, class_labels=0, generator=generators(0), guidance_scale=3.0, guidance_interval=(50, 60))
    torch.testing.assert_close(never, sample(pipeline, class_labels=0, generator=generators(0)))


# ---------------------------------------------------------------- text


def test_text_embeddings_steer_and_padding_does_not(make_pipeline: Make) -> None:
    pipeline = make_pipeline(num_class_embeds=None, cross_attention_dim=6)
    mask = torch.tensor([[1, 1, 1, 0, 0]] * 2)
    short = sample(pipeline, prompt_embeds=TEXT[:, :3], generator=generators(0, 1), guidance_scale=2.0)
    padded = sample(
        pipeline, prompt_embeds=TEXT, prompt_attention_mask=mask, generator=generators(0, 1), guidance_scale=2.0
    )
    torch.testing.assert_close(short, padded, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(short, sample(pipeline, prompt_embeds=TEXT, generator=generators(0, 1)), atol=1e-3)


def test_a_prompt_goes_through_the_text_encoder(make_pipeline: Make, tmp_path: Path) -> None:
    pipeline = make_pipeline(num_class_embeds=None, cross_attention_dim=16)
    pipeline.register_modules(text_encoder=tiny_text_encoder(), tokenizer=tiny_tokenizer())
    prompts = ["a red dress", "a bag"]
    images = sample(pipeline, prompt=prompts, generator=generators(0, 1), guidance_scale=2.0)
    hidden, mask = pipeline.encode_prompt(prompts)
    assert mask.tolist() == [[True, True, True], [True, True, False]]
    embeds = {"prompt_embeds": hidden, "prompt_attention_mask": mask}
    by_embeds = sample(pipeline, **embeds, generator=generators(0, 1), guidance_scale=2.0)
    torch.testing.assert_close(images, by_embeds, rtol=0, atol=0)
    pipeline.save_pretrained(tmp_path)
    loaded = UnifiedLatentsPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    again = sample(loaded, prompt=prompts, generator=generators(0, 1), guidance_scale=2.0)
    torch.testing.assert_close(again, images, rtol=0, atol=1e-5)


def tiny_text_encoder() -> CLIPTextModel:
    torch.manual_seed(2)
    config = CLIPTextConfig(
        vocab_size=5,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=8,
        pad_token_id=0,
    )
    return CLIPTextModel(config).eval()


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(WordLevel({"[PAD]": 0, "a": 1, "red": 2, "dress": 3, "bag": 4}, unk_token="[PAD]"))
    words.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", model_max_length=8)


# ---------------------------------------------------------------- diffusers' manners


def test_a_callback_sees_every_step_and_may_change_the_latents(pipeline: UnifiedLatentsPipeline) -> None:
    seen: list[tuple[int, float]] = []

    def callback(pipe: Any, step: int, logsnr: float, given: dict[str, Any]) -> dict[str, Any]:
        assert pipe is pipeline
        seen.append((step, logsnr))
        return {"latents": torch.zeros_like(given["latents"])}

    z = sample(pipeline, class_labels=0, callback_on_step_end=callback, output_type="latent")
    assert [step for step, _ in seen] == [0, 1, 2]
    assert seen[0][1] < seen[1][1] < seen[2][1]
    assert not z.any()


def test_a_progress_bar_counts_the_steps(make_pipeline: Make, capfd: pytest.CaptureFixture[str]) -> None:
    pipeline = make_pipeline()
    pipeline.set_progress_bar_config(disable=False)
    sample(pipeline, class_labels=0)
    assert "3/3" in capfd.readouterr().err


def test_saving_and_loading_gives_the_same_weights_to_the_bit_and_the_same_images(
    pipeline: UnifiedLatentsPipeline, tmp_path: Path
) -> None:
    pipeline.save_pretrained(tmp_path)
    loaded = UnifiedLatentsPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    for part in ("transformer", "vae"):
        ours, theirs = (getattr(p, part).state_dict() for p in (pipeline, loaded))
        assert all(torch.equal(ours[key], theirs[key]) for key in ours | theirs)
    options = {"class_labels": [0, 1], "guidance_scale": 2.0}
    one, other = (sample(p, generator=generators(0, 1), **options) for p in (pipeline, loaded))
    torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_parts_of_a_saved_pipeline_load_by_their_classes(pipeline: UnifiedLatentsPipeline, tmp_path: Path) -> None:
    from ul_tokenizer import UnifiedLatentsAutoencoder, UnifiedLatentsTransformer

    pipeline.save_pretrained(tmp_path)
    assert UnifiedLatentsAutoencoder.from_pretrained(tmp_path).config.latent_channels == 4
    assert UnifiedLatentsTransformer.from_pretrained(tmp_path).config.num_class_embeds == 3


def test_a_folder_without_a_pipeline_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(NoModelError, match=r"holds no pipeline: there is no model_index\.json in it\.$"):
        UnifiedLatentsPipeline.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is neither a bundled name"):
        UnifiedLatentsPipeline.from_pretrained("no such thing")


def tiny_kl() -> AutoencoderKL:
    torch.manual_seed(1)
    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        scaling_factor=0.5,
        shift_factor=0.25,
    )


def test_an_autoencoder_of_diffusers_decodes_denormalised_latents(make_pipeline: Make) -> None:
    pipeline = make_pipeline(vae=tiny_kl(), sample_size=8)
    z = sample(pipeline, class_labels=0, generator=generators(0), output_type="latent")
    images = sample(pipeline, class_labels=0, generator=generators(0))
    assert images.shape == (1, 3, 16, 16)
    with torch.no_grad():
        pixels = pipeline.vae.decode(z / 0.5 + 0.25).sample
    torch.testing.assert_close(images, (pixels / 2 + 0.5).clamp(0, 1))


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"class_labels": 3}, "class_labels must be from 0 to 2, got 3"),
        ({"class_labels": [0, -1]}, "class_labels must be from 0 to 2, got -1"),
        (
            {"class_labels": "a cat"},
            "integers from 0 to 2, got the text 'a cat'; this pipeline has no text conditioning",
        ),
        ({"class_labels": ["a", "b"]}, "integers from 0 to 2, got the text 'a'; this pipeline has no text"),
        ({"class_labels": 0.5}, "class_labels must be integers from 0 to 2, got 0.5"),
        ({"class_labels": []}, r"class_labels must be integers from 0 to 2, got \[\]"),
        ({"prompt": "a dress"}, "prompt must be None for a pipeline without a text encoder, got 'a dress'"),
        ({"prompt": "a", "prompt_embeds": TEXT}, "prompt and prompt_embeds exclude each other"),
        ({"prompt_embeds": TEXT}, "for a model without text conditioning"),
        ({"prompt_attention_mask": TEXT[..., 0]}, "prompt_attention_mask must be None without prompt_embeds"),
        ({"height": 20}, "height must be a positive multiple of 8, got 20"),
        ({"width": 0}, "width must be a positive multiple of 8, got 0"),
        ({"latents": torch.zeros(1, 4, 3, 2)}, r"latents must be floats \(1, 4, 2, 2\), got \(1, 4, 3, 2\)"),
        ({"latents": torch.zeros(1, 4, 2, 2).long()}, r"latents must be floats \(1, 4, 2, 2\), got"),
        ({"num_inference_steps": 0}, "num_inference_steps must be a whole number of at least 1, got 0"),
        ({"num_inference_steps": -3}, "num_inference_steps must be a whole number of at least 1, got -3"),
        ({"decoder_num_inference_steps": 0}, "decoder_num_inference_steps must be a whole number of at least 1"),
        ({"guidance_scale": -1.0}, "guidance_scale must be a finite number of at least 0, got -1.0"),
        ({"guidance_scale": math.nan}, "guidance_scale must be a finite number of at least 0, got nan"),
        ({"guidance_interval": (2.0, 1.0)}, r"guidance_interval must be \(lowest, highest\) log-SNR, rising"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt must be at least 1, got 0"),
        ({"generator": tuple(generators(0))}, "generator must be one or a list of 1, one per image, got a tuple of 1"),
        ({"generator": generators(0, 1)}, "generator must be one or a list of 1, one per image, got a list of 2"),
        ({"output_type": "jpeg"}, "output_type must be pil, np, pt or latent, got 'jpeg'"),
        ({"callback_on_step_end_tensor_inputs": ["z"]}, r"callback_on_step_end_tensor_inputs must be \['latents'\]"),
    ],
)
def test_bad_arguments_are_one_sentence(
    pipeline: UnifiedLatentsPipeline, arguments: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        pipeline(**arguments)
    assert "\n" not in str(caught.value)


def untyped(pipeline: UnifiedLatentsPipeline) -> Any:
    """The pipeline as callers without a type checker see it."""
    return pipeline


def test_the_first_argument_is_labels_for_every_pipeline_and_all_others_are_named(make_pipeline: Make) -> None:
    with pytest.raises(ValueError, match=r"^class_labels must be integers .*got the text 'a cat'"):
        untyped(make_pipeline())("a cat")
    with pytest.raises(ValueError, match=r"class_labels must be None, got the text 'a cat'; pass texts as prompt=\.$"):
        untyped(make_pipeline(num_class_embeds=None, cross_attention_dim=6))("a cat")
    both = untyped(make_pipeline(cross_attention_dim=6))
    with pytest.raises(ValueError, match=r"integers from 0 to 2, got the text 'a cat'; pass texts as prompt="):
        both(["a cat"])
    with pytest.raises(TypeError, match="positional"):
        both(0, "a cat")


def test_classes_and_texts_must_be_equally_many(make_pipeline: Make) -> None:
    pipeline = make_pipeline(cross_attention_dim=6)
    with pytest.raises(ValueError, match=r"class_labels and prompts must have the same number, got \[1, 2\]"):
        pipeline(class_labels=0, prompt_embeds=TEXT)
    with pytest.raises(ValueError, match=r"prompt_embeds must be \(B, L, 6\), got \(2, 5, 5\)"):
        pipeline(prompt_embeds=TEXT[..., :5])


def test_a_model_without_classes_takes_none(make_pipeline: Make) -> None:
    with pytest.raises(ValueError, match="class_labels must be None for a model without classes, got 0"):
        make_pipeline(num_class_embeds=None)(class_labels=0)


def test_an_other_decoder_has_no_steps(make_pipeline: Make) -> None:
    pipeline = make_pipeline(vae=tiny_kl())
    with pytest.raises(ValueError, match="decoder_num_inference_steps must be None for a AutoencoderKL"):
        pipeline(class_labels=0, num_inference_steps=1, decoder_num_inference_steps=2)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"scheduler": DDIMScheduler()}, "scheduler must be a LogSNRScheduler, got a DDIMScheduler"),
        ({"scheduler": LogSNRScheduler(9.0)}, "scheduler must end at the transformer's latent_logsnr, 5.0, .* 9.0"),
        ({"scheduler": LogSNRScheduler(prediction_type="epsilon")}, "prediction_type of the transformer, v_prediction"),
        ({"vae": {"latent_logsnr": 6.0}}, "vae must have the transformer's latent_logsnr, 5.0, got one with 6.0"),
        ({"vae": {"latent_channels": 8}}, "vae must have 4 latent channels, got 8"),
        ({"transformer": torch.nn.Identity()}, "transformer must be a UnifiedLatentsTransformer, got a Identity"),
    ],
)
def test_parts_that_do_not_fit_are_refused(change: dict[str, Any], words: str) -> None:
    parts = {"transformer": build_base("ul-base-tiny"), "scheduler": LogSNRScheduler(), "vae": {}, **change}
    if isinstance(parts["vae"], dict):
        parts["vae"] = build_autoencoder("ul-tiny-f8", parts["vae"])
    with pytest.raises(ValueError, match=words):
        UnifiedLatentsPipeline(**parts)
