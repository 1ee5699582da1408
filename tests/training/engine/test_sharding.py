"""FSDP: weights divided among processes give the losses, checkpoints and models of processes that have them all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.training.process_group import Outcome, Run, train_together
from ul_tokenizer.models.autoencoder import UnifiedLatentsAutoencoder

Flags = Callable[..., list[str]]
Logged = Callable[[Path], list[dict[str, Any]]]
Weights = Callable[[Path], dict[str, Tensor]]

pytestmark = [pytest.mark.multiprocess, pytest.mark.slow]
STEPS = 20
# With a large ε, AdamW's step is a smooth function of the gradient: rounding is not blown up where it is near zero.
RUN = {
    "max_train_steps": STEPS,
    "checkpointing_steps": STEPS // 2,
    "validation_steps": STEPS // 2,
    "learning_rate": 1e-3,
    "adam_epsilon": 1e-2,
    "max_grad_norm": 0.5,
    "gradient_accumulation_steps": 2,
    "prior_min_hold_steps": 0,
    "prior_hold_gap_db": -100.0,
    "prior_ramp_steps": 10,
}
FSDP = {"ACCELERATE_USE_FSDP": "true"}
FULL_SHARD = {**FSDP, "FSDP_VERSION": "1", "FSDP_SHARDING_STRATEGY": "FULL_SHARD"}
SHARD_GRAD_OP = {**FSDP, "FSDP_VERSION": "1", "FSDP_SHARDING_STRATEGY": "SHARD_GRAD_OP"}
BY_BLOCK = {"FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP"}
# A process that kept all weights would pass every comparison: it must have about half of them.
COUNTED = """
from ul_tokenizer.training.engine.sharding import part_of
from ul_tokenizer.training.engine.steps import Stepper
from torch.distributed.fsdp import FSDPModule
def init(steps, *arguments):
    kept(steps, *arguments)
    parameters = list(steps.stage.model.parameters())
    here, all = (sum(map(count, parameters)) for count in (lambda p: part_of(p).numel(), lambda p: p.numel()))
    units = sum(isinstance(module, FSDPModule) for module in steps.model.modules())
    steps.say(f"PART {here / all:.2f} UNITS {units}", everywhere=True)
kept = Stepper.__init__ if not hasattr(Stepper, "kept") else Stepper.kept
Stepper.kept, Stepper.__init__ = kept, init
"""


@pytest.fixture(scope="module")
def runs(smallest_flags: Flags, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[Outcome]]]:
    folder = tmp_path_factory.mktemp("fsdp")
    plan = {
        "ddp": Run(smallest_flags(folder / "ddp", **RUN), COUNTED),
        "full": Run(smallest_flags(folder / "full", **RUN), COUNTED, FULL_SHARD | BY_BLOCK),
        "grad": Run(smallest_flags(folder / "grad", **RUN), COUNTED, SHARD_GRAD_OP | BY_BLOCK),
    }
    outcomes = dict(zip(plan, train_together(folder / "group", 2, *plan.values()), strict=True))
    for name, of_run in outcomes.items():
        assert [outcome.status for outcome in of_run] == [0, 0], (name, of_run[0].error[-3000:])
    for name, (source, environment) in {"ddp-then-full": ("ddp", FULL_SHARD), "full-then-ddp": ("full", {})}.items():
        shutil.copytree(folder / source, folder / name)
        shutil.rmtree(folder / name / f"checkpoint-{STEPS}")
        flags = smallest_flags(folder / name, **RUN, resume_from_checkpoint="latest")
        plan[name] = Run(flags, COUNTED, environment)
    resumed = [plan[name] for name in ("ddp-then-full", "full-then-ddp")]
    again = train_together(folder / "again", 2, *resumed)
    return folder, outcomes | dict(zip(("ddp-then-full", "full-then-ddp"), again, strict=True))


def test_every_process_has_a_part_of_every_block(runs: tuple[Path, dict[str, list[Outcome]]]) -> None:
    _, outcomes = runs
    for name, of_run in outcomes.items():
        assert [outcome.status for outcome in of_run] == [0, 0], (name, of_run)
        for outcome in of_run:
            part, units = next(
                (float(words[1]), int(words[3]))
                for words in map(str.split, outcome.error.splitlines())
                if words[0] == "PART"
            )
            assert part == 1.0 if name in ("ddp", "full-then-ddp") else 0.4 < part < 0.6
            assert units == {"full": 13, "grad": 13, "ddp-then-full": 1}.get(name, 0)
    assert "(fsdp)" in outcomes["full"][0].error and "(fsdp)" not in outcomes["ddp"][0].error


@pytest.mark.parametrize("name", ["full", "grad", "ddp-then-full", "full-then-ddp"])
def test_losses_norms_and_validations_are_those_of_ddp(
    runs: tuple[Path, dict[str, list[Outcome]]], logged: Logged, name: str
) -> None:
    folder, _ = runs
    mine, theirs = logged(folder / name), logged(folder / "ddp")
    assert [line["step"] for line in mine] == [line["step"] for line in theirs]
    for line, other in zip(mine, theirs, strict=True):
        assert line == pytest.approx(other, rel=1e-4, abs=1e-5)
    norms = [line["grad_norm"] for line in theirs if "grad_norm" in line]
    assert len(norms) == STEPS and max(norms) > 0.5  # clipping was at work


@pytest.mark.parametrize("name", ["full", "grad", "ddp-then-full", "full-then-ddp"])
def test_checkpoints_hold_whole_weights_averages_and_moments(
    runs: tuple[Path, dict[str, list[Outcome]]], weights: Weights, name: str
) -> None:
    folder, _ = runs
    mine, theirs = (weights(folder / each / f"checkpoint-{STEPS}") for each in (name, "ddp"))
    assert mine.keys() == theirs.keys()
    for key, tensor in mine.items():
        torch.testing.assert_close(tensor, theirs[key], rtol=1e-3, atol=1e-5, msg=key)
    start = weights(folder / "ddp" / f"checkpoint-{STEPS // 2}")
    assert max(float((mine[key] - start[key]).abs().max()) for key in start if "conv_out.weight" in key) > 1e-3
    files = [sorted(path.name for path in (folder / each).rglob("*")) for each in (name, "ddp")]
    assert files[0] == files[1]


def test_the_saved_model_has_the_averaged_weights(
    runs: tuple[Path, dict[str, list[Outcome]]], weights: Weights
) -> None:
    folder, _ = runs
    saved = UnifiedLatentsAutoencoder.from_pretrained(folder / "full").state_dict()
    averaged = weights(folder / "full" / f"checkpoint-{STEPS}" / "autoencoder_ema")
    for name, tensor in saved.items():
        assert torch.equal(tensor, averaged[f"./{name}"])
    config = json.loads((folder / "full" / f"checkpoint-{STEPS}" / "autoencoder_ema" / "config.json").read_text())
    assert config["optimization_step"] == STEPS
