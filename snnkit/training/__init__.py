"""Training: one plain loop, driven by a recipe in a TOML file."""

from __future__ import annotations

from snnkit.training.loop import train, trained
from snnkit.training.recipe import Recipe, read_recipe, recipe_of
from snnkit.training.result import Result

__all__ = ["Recipe", "Result", "read_recipe", "recipe_of", "train", "trained"]
