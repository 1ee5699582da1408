"""The pages on training: the curve is the bundled weights', flags and recipes exist, the rule is the presets'."""

from __future__ import annotations

import json
import re
from pathlib import Path

from ul_tokenizer.models.presets import PRESETS, noisiest_level
from ul_tokenizer.pretrained import ROOT as PRETRAINED
from ul_tokenizer.training.command import ARGUMENTS
from ul_tokenizer.training.kinds import kinds_of

ROOT = Path(__file__).parents[2]
LAUNCHER = {"multi_gpu", "use_fsdp", "fsdp_sharding_strategy"}  # flags of `accelerate launch`
PAGES = ("train", "latent-collapse", "distill", "memory", "gpus-and-clusters")
GUIDE = "\n".join((ROOT / "docs" / "how-to" / f"{page}.md").read_text(encoding="utf-8") for page in PAGES)


def test_the_curve_of_a_healthy_run_is_that_of_the_bundled_weights() -> None:
    curve = json.loads((PRETRAINED / "ul-photo-f8" / "training_curve.json").read_text(encoding="utf-8"))
    measured = {row["step"]: row for row in curve["validation"]}
    rows = re.findall(r"^\| (\d+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|", GUIDE, re.MULTILINE)
    assert len(rows) == 5
    for step, *shown in rows:
        row = measured[int(step)]
        names = ("psnr_1_step", "psnr_4_steps", "latent_gap_db")
        expected = [f"{row[f'validation/{name}']:.1f}" for name in names]
        assert shown == [*expected, f"{row['validation/bits_per_pixel']:.3f}"]


def test_every_recipe_in_the_guide_exists_and_every_recipe_is_in_it() -> None:
    folder = ROOT / "examples" / "configs" / "paper"
    paths = set(re.findall(r"examples/configs/paper/[\w-]+\.yaml", GUIDE))
    assert paths and all((ROOT / path).is_file() for path in paths)
    families = {re.sub(r"^imagenet256|-(small|medium)$", "", path.stem) for path in folder.glob("*.yaml")}
    assert [name for name in families if name not in GUIDE] == []


def test_every_flag_of_training_in_the_guide_exists() -> None:
    flags = set(re.findall(r"--([a-z]+_[a-z0-9_]+)", re.sub(r"--(nproc|rdzv)_\w+|--num_processes", "", GUIDE)))
    known = {name for arguments in ARGUMENTS.values() for name in kinds_of(arguments)}
    assert flags > LAUNCHER and flags - LAUNCHER <= known, flags - LAUNCHER - known


def test_the_presets_follow_the_guides_rule_for_the_noisiest_level() -> None:
    assert (noisiest_level(64), noisiest_level(512)) == (-5, -9.2)
    levels = {
        config["sample_size"]: config["decoder_logsnr_min"] for config, _ in PRESETS.values() if "sample_size" in config
    }
    assert {128, 256, 512} <= set(levels)
    assert all(level == noisiest_level(size) for size, level in levels.items())
    assert '"decoder_logsnr_min": -7.8' in GUIDE and levels[256] == -7.8
