"""Named recipes: training configurations that ship with the package, such as `--config ul-photo-f8`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml

RECIPES = Path(__file__).parents[1] / "recipes"


def recipe_names() -> list[str]:
    """Names of all recipes, sorted."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def find_config(name: str) -> Path:
    """The file that `--config` names: a YAML file or, if there is no such file, a recipe.

    Raises:
        ValueError: neither exists.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return path
    if name in recipe_names():
        return RECIPES / f"{name}.yaml"
    raise ValueError(f"--config must be a YAML file or a recipe ({', '.join(recipe_names())}), got {name!r}.")


def describe_recipes() -> str:
    """A line for each recipe: its name, what it trains, and the first line of its comment."""
    return "\n".join(_describe(name) for name in recipe_names())


def stage_of(config: Mapping[str, Any]) -> Literal["autoencoder", "base", "distill"]:
    """The subcommand of `ul-tokenizer train` that a recipe is for."""
    if "pretrained_autoencoder" in config:
        return "base"
    return "distill" if "teacher_inference_steps" in config else "autoencoder"


def _describe(name: str) -> str:
    text = (RECIPES / f"{name}.yaml").read_text(encoding="utf-8")
    stage = stage_of(yaml.safe_load(text))
    return f"{name:28}{stage:13}{text.splitlines()[0].lstrip('# ')}"
