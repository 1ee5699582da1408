"""A prior that is trained on the stored latents of random crops, with the frozen autoencoder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ul_tokenizer import LatentDataset
from ul_tokenizer.diffusion.objective import diffuse, prior_loss
from ul_tokenizer.models.presets import build_autoencoder
from ul_tokenizer.models.repository import load_autoencoder, load_prior
from ul_tokenizer.training.latent_cache import FOLDER
from ul_tokenizer.training.stage2 import Stage2

RANDOM_CROPS: dict[str, Any] = {"cache_latents": True, "cached_crops": 3, "center_crop": False, "random_flip": True}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Six pictures, larger than the crops."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for n in range(6):
        cells = np.random.default_rng(n).integers(0, 255, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(cells).resize((64, 48), Image.Resampling.BICUBIC).save(folder / f"{n}.png")
    return folder


def test_several_random_crops_of_every_image_are_encoded_once(
    make_stage: Callable[..., Stage2], photos: Path, tmp_path: Path
) -> None:
    options = {**RANDOM_CROPS, "train_data_dir": photos, "scale_min": 0.5}
    plain = make_stage(prepare=False, **options)
    crops = plain.dataset
    stage = make_stage(**options)
    latents = LatentDataset(tmp_path / FOLDER)
    names = sorted({latents[n]["id"].split("#")[0] for n in range(len(latents))})
    assert len(latents) == 3 * len(names) and len(names) == 4  # two pictures are held out
    by_id = {latents[n]["id"]: latents[n]["latent"] for n in range(len(latents))}
    for n in range(len(crops)):
        expected = stage.autoencoder.encode_clean(crops.crop_of(n)["pixel_values"][None], num_rows=4)[0]
        torch.testing.assert_close(by_id[crops.source.id(n)], expected)
    for name in names:
        one, two, three = (by_id[f"{name}#{k}"] for k in range(3))
        assert not torch.equal(one, two) and not torch.equal(two, three) and not torch.equal(one, three)
    encoded = stage.autoencoder.passes
    assert make_stage(**options).autoencoder.passes == encoded - len(crops) - len(latents)  # what is held out


@pytest.mark.parametrize("change", [{"cached_crops": 2}, {"scale_min": 0.25}, {"seed": 1}, {"random_flip": False}])
def test_other_random_crops_are_not_mixed_in(
    make_stage: Callable[..., Stage2], photos: Path, change: dict[str, Any]
) -> None:
    options = {**RANDOM_CROPS, "train_data_dir": photos, "scale_min": 0.5}
    make_stage(**options)
    with pytest.raises(ValueError, match="--cache_latents would mix latents"):
        make_stage(**{**options, **change})


def test_the_loss_of_a_prior_is_that_of_stage_1(make_stage: Callable[..., Stage2]) -> None:
    stage: Any = make_stage(prepare=False, as_prior=True)
    torch.nn.init.normal_(stage.transformer.conv_out.weight, std=0.1)
    z, noise, t = torch.randn(5, 4, 2, 2), torch.randn(5, 4, 2, 2), torch.linspace(0, 0.99, 5)
    level = stage.schedule.logsnr(t)
    v = stage.transformer(diffuse(z, noise, level), level).sample
    expected = prior_loss(v, z, noise, t, stage.schedule)
    torch.testing.assert_close(stage.model(z, noise, t, None), expected, rtol=1e-6, atol=0)
    assert make_stage(prepare=False).weighting.weight(level).min() < 0.1  # that of a base model


def test_a_trained_prior_is_a_drop_in_for_that_of_stage_1(
    train2: Callable[..., int],
    logged: Callable[[Path], list[dict[str, Any]]],
    weights: Callable[[Path], dict[str, Tensor]],
    autoencoder: Path,
    photos: Path,
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"
    options = {**RANDOM_CROPS, "train_data_dir": photos, "pretrained_model_name_or_path": autoencoder / "prior"}
    options |= {"max_train_steps": 60, "validation_steps": 60, "learning_rate": 3e-3, "as_prior": True}
    assert train2(run, **options) == 0
    before, after = weights(autoencoder), weights(run)
    same = {name: torch.equal(before[name], after[name]) for name in before}
    assert all(is_same for name, is_same in same.items() if name.startswith("./"))
    assert not all(is_same for name, is_same in same.items() if name.startswith("prior/"))

    vae, prior, old = load_autoencoder(str(run)), load_prior(str(run)), load_prior(str(autoencoder))
    x = torch.stack([torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1) for path in photos.glob("*.png")])
    bits, old_bits = (vae.bits(x / 127.5 - 1, one, 32, torch.Generator().manual_seed(0)).mean() for one in (prior, old))
    assert bits < old_bits
    (last,) = [line for line in logged(run) if "validation/bits_per_pixel" in line and line["step"] == 60]
    assert last["validation/bits_per_pixel"] == pytest.approx(last["validation/bits_per_latent_dim"] * 4 / 64)


def test_a_normalised_autoencoder_has_no_prior(make_stage: Callable[..., Stage2], tmp_path: Path) -> None:
    build_autoencoder("ul-tiny-f8", {"scaling_factor": 0.5}).save_pretrained(tmp_path / "scaled")
    with pytest.raises(ValueError, match=r"--as_prior needs an autoencoder without statistics of its latents, .* got"):
        make_stage(prepare=False, as_prior=True, pretrained_autoencoder=tmp_path / "scaled")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cached_crops": 2}, "--cached_crops needs --cache_latents."),
        (
            {"cached_crops": 2, "cache_latents": True, "aspect_ratio_buckets": True, "scaling": "short_side"},
            "--cached_crops needs images, cut to squares without --aspect_ratio_buckets.",
        ),
        ({"as_prior": True, "num_context_latents": 1}, "autoencoder of ours alone, without --num_context_latents."),
        ({"as_prior": True, "text_encoder_config": {}}, "autoencoder of ours alone, without --text_encoder_config."),
        ({"cache_latents": True, "random_flip": True}, "or a number of random crops of every image, --cached_crops."),
    ],
)
def test_what_contradicts_is_refused_in_a_sentence(
    train2: Callable[..., int], tmp_path: Path, capfd: pytest.CaptureFixture[str], changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(SystemExit):
        train2(tmp_path, **changes)
    assert capfd.readouterr().err.rstrip().endswith(words)
