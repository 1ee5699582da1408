"""The bundled weights reach the figures that their cards quote.

Each model is measured on a little content that is in the repository, by `tests/bundled_figures.py`. The figures of
exactly this measurement stand in `tests/golden/bundled.json`, and those of the demo's photographs in
`benchmarks/results/demo`. A loss of more than 0.3 dB, 5 % of the bits or 5 points of accuracy fails. New weights need
new JSON files and no change here. `test_damaged_weights_miss_what_was_measured` shows that wrong weights and noise
levels fail.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests import bundled_figures
from tests.bundled_figures import (
    BITS,
    DB,
    IMAGES,
    MEASURES,
    PHOTO_STEPS,
    accuracy,
    autoencoder_of,
    clothes,
    crops,
    decoded,
    differences,
    generated_clothes,
    losses_by_caption,
    noisy_latents,
    pans,
    weights_of,
)
from tests.evaluation.test_prompts import make_text_pipeline
from ul_tokenizer.evaluation.autoencoders import load_any_autoencoder
from ul_tokenizer.evaluation.job import evaluate_reconstruction
from ul_tokenizer.evaluation.measures.metrics import flicker, mean_psnr, psnr_of_mean_mse
from ul_tokenizer.evaluation.results import read_result
from ul_tokenizer.evaluation.samples import Crops
from ul_tokenizer.models.latent_normalization import normalize_latents
from ul_tokenizer.pretrained import bundled_names

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def figures_of(pattern: str) -> dict[str, float]:
    """Figures of the one committed result whose file name matches: name → value."""
    (path,) = RESULTS.glob(pattern)
    return {name: entry["value"] for name, entry in read_result(path)["metrics"].items()}


def card_psnr(steps: int) -> float:
    """What the card of `ul-photo-f8` says of held-out photographs, in dB of the mean MSE."""
    return figures_of(f"photos/ul-photo-f8-{steps}-step*.json")["psnr_of_mean_mse"]


# ---------------------------------------------------------------- measured again


@pytest.mark.parametrize("name", bundled_names())
def test_a_small_part_of_the_figures_is_measured_again_without_a_regression(name: str) -> None:
    """After bundling new weights: python tests/bundled_figures.py --write"""
    committed = bundled_figures.expected()[name]
    assert committed["weights_sha256"] == weights_of(name)
    assert differences(MEASURES[name](name), committed["figures"]) == []


def test_a_regression_is_told_from_what_may_differ() -> None:
    wanted = {"psnr_1_steps": 26.0, "bits_per_pixel": 0.4, "accuracy_of_generated": 0.9}
    assert differences({"psnr_1_steps": 25.75, "bits_per_pixel": 0.415, "accuracy_of_generated": 0.86}, wanted) == []
    worse = {"psnr_1_steps": 25.65, "bits_per_pixel": 0.425, "accuracy_of_generated": 0.84}
    assert [line.partition(":")[0] for line in differences(worse, wanted)] == sorted(wanted)
    assert differences({}, {"psnr_1_steps": 1.0}) == ["psnr_1_steps: it is in one of both only"]


def test_the_evaluation_of_the_demos_photographs_gives_the_committed_figures_again() -> None:
    crop = Crops(crop="random", crop_size=128, num_samples=6)
    models = ["ul-photo-f8", "jpeg:30"]
    results = evaluate_reconstruction(IMAGES, models, crops=crop, features=[], lpips=None, device="cpu")
    for result, pattern in zip(results, ("demo/ul-photo-f8-1-step*.json", "demo/jpeg-30*.json"), strict=True):
        again = {name: entry["value"] for name, entry in result["metrics"].items()}
        committed = figures_of(pattern)
        for name in ("psnr_of_mean_mse", "mean_psnr"):
            assert again[name] == pytest.approx(committed[name], abs=DB)
        assert again["bits_per_pixel"] == pytest.approx(committed["bits_per_pixel"], rel=BITS)
        assert again["ssim"] == pytest.approx(committed["ssim"], abs=0.005)


def test_the_committed_figures_are_those_of_the_bundled_weights() -> None:
    """Whoever bundles new weights has to measure them."""
    for name, pattern in (("ul-photo-f8", "*/ul-photo-f8-[0-9]*.json"), ("ul-video", "*/ul-video-*.json")):
        ours = load_any_autoencoder(name).facts()["weights_sha256"]
        found = {read_result(path)["subject"]["weights_sha256"] for path in RESULTS.glob(pattern)}
        assert found == {ours}


# ---------------------------------------------------------------- ul-photo-f8


@pytest.fixture(scope="module")
def photo_figures() -> dict[str, float]:
    figures: dict[str, float] = bundled_figures.expected()["ul-photo-f8"]["figures"]
    return figures


def test_the_demos_photographs_are_like_those_of_the_card(photo_figures: dict[str, float]) -> None:
    for steps in PHOTO_STEPS:
        assert photo_figures[f"psnr_{steps}_steps"] == pytest.approx(card_psnr(steps), abs=1.0)
    of_card = figures_of("photos/ul-photo-f8-1-step*.json")["bits_per_pixel"]
    assert photo_figures["bits_per_pixel"] == pytest.approx(of_card, rel=0.35)


def test_each_number_of_steps_costs_the_psnr_that_the_card_says(photo_figures: dict[str, float]) -> None:
    for steps in PHOTO_STEPS[1:]:
        lost = photo_figures["psnr_1_steps"] - photo_figures[f"psnr_{steps}_steps"]
        assert lost == pytest.approx(card_psnr(1) - card_psnr(steps), abs=0.7)


def test_the_latent_is_used_another_photographs_gives_the_psnr_of_noise(photo_figures: dict[str, float]) -> None:
    assert photo_figures["psnr_of_another_latent"] < photo_figures["psnr_1_steps"] - 10


@pytest.mark.parametrize("damage", ["encoder × 1.1", "decoder × 1.1", "noise of log-SNR 3"])
def test_damaged_weights_miss_what_was_measured(damage: str, photo_figures: dict[str, float]) -> None:
    vae = autoencoder_of("ul-photo-f8")
    if damage.startswith("noise"):
        vae.register_to_config(latent_logsnr=3.0)
    else:
        for parameter in getattr(vae, damage.split()[0]).parameters():
            parameter.data *= 1.1
    found = psnr_of_mean_mse(crops(), decoded(vae, noisy_latents(vae, crops()), 1))
    assert found < photo_figures["psnr_1_steps"] - DB


def test_latents_are_near_unit_scale_and_the_config_leaves_them_so() -> None:
    vae = autoencoder_of("ul-photo-f8")
    with torch.inference_mode():
        latent = vae.encode(crops()).latent
    assert normalize_latents(vae, latent) is latent
    assert abs(float(latent.mean())) < 0.2
    assert 0.4 < float(latent.std()) < 1.1


def test_whole_photographs_are_tiled_by_default_if_they_lose_without_tiles(photo_figures: dict[str, float]) -> None:
    """Attention that was trained on few tokens gets worse over many."""
    loses = photo_figures["psnr_without_tiles"] < photo_figures["psnr_of_whole_photos"] - DB
    assert autoencoder_of("ul-photo-f8").use_tiling == loses


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_loses_at_most_a_fifth_of_a_decibel(dtype: torch.dtype, photo_figures: dict[str, float]) -> None:
    half = autoencoder_of("ul-photo-f8").to(dtype)
    z = noisy_latents(autoencoder_of("ul-photo-f8"), crops()).to(dtype)
    assert psnr_of_mean_mse(crops(), decoded(half, z, 1)) == pytest.approx(photo_figures["psnr_1_steps"], abs=0.2)


# ---------------------------------------------------------------- ul-video


def test_motion_is_kept_and_each_clip_needs_its_own_latent() -> None:
    """The mean of each four frames is what a model without motion gives."""
    vae, clips = autoencoder_of("ul-video"), pans()
    z = noisy_latents(vae, clips)
    own, other = (decoded(vae, latents, 1) for latents in (z, z.roll(1, 0)))
    still = clips.unflatten(2, (3, 4)).mean(3, keepdim=True).expand(-1, -1, -1, 4, -1, -1).flatten(2, 3)
    assert psnr_of_mean_mse(clips, own) > psnr_of_mean_mse(clips, still) + 4
    assert psnr_of_mean_mse(clips, other) < psnr_of_mean_mse(clips, own) - 10
    assert flicker(clips, own) < 0.7 * clips.diff(dim=2).abs().mean() / 2


# ---------------------------------------------------------------- ul-fashion

SNEAKER, TROUSER = 7, 1


def test_the_classifier_sees_the_class_of_real_clothes_and_of_no_others() -> None:
    pixels, labels = clothes()
    assert accuracy(pixels, labels) >= 0.85
    assert accuracy(pixels, labels.roll(10)) <= 0.1


def test_a_trouser_is_taller_than_wide_and_a_sneaker_wider_than_tall() -> None:
    _, labels = clothes()
    is_lit = generated_clothes().mean(1) > -0.6
    heights, widths = is_lit.any(2).sum(1), is_lit.any(1).sum(1)
    taller, wider = heights >= 2 * widths, widths >= 2 * heights
    assert taller[labels == TROUSER].float().mean() >= 0.9
    assert wider[labels == SNEAKER].float().mean() >= 0.9


def test_generated_clothes_survive_encoding_and_decoding() -> None:
    """They are smoother than real ones, so their PSNR is higher."""
    vae, pixels = bundled_figures.pipeline_of("ul-fashion").vae, generated_clothes()
    found = mean_psnr(pixels, decoded(vae, noisy_latents(vae, pixels)))
    assert found > bundled_figures.expected()["ul-fashion"]["figures"]["psnr"]


# ---------------------------------------------------------------- ul-emoji


def test_the_loss_of_a_caption_depends_on_the_caption(tmp_path: Path) -> None:
    pipeline = make_text_pipeline(tmp_path, None)
    pixels: Tensor = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    losses = losses_by_caption(pipeline, pixels, ["a dark picture", "light", "a dark picture"])
    assert torch.equal(losses[:, 0], losses[:, 2]) and (losses[:, 0] != losses[:, 1]).all()
    cells, rows = bundled_figures.emoji()
    assert cells.shape == (len(rows), 3, 64, 64) and len({row["caption"] for row in rows}) == len(rows) == 16
