"""The model that a recipe names."""

from __future__ import annotations

import copy
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from snnkit.errors import BadRecipe, SnnkitError
from snnkit.training import checkpoint
from snnkit.training.recipe import Recipe, nearest


def build(recipe: Recipe, examples: Any) -> Any:
    """The model: made by its factory, given its first weights, prepared for quantisation.

    examples : (n, ...) inputs, which the quantisers' first steps come from. Raises BadRecipe,
    BadCheckpoint, and what `snnkit.nn.prepare` raises.
    """
    name, options = recipe.model.name, dict(recipe.model.options)
    if ":" in name:
        factory = _dotted(name, Path(recipe.home))
        _fits(factory, options, f"model.options of '{name}'")
        model = _made(f"model '{name}'", lambda: factory(**options))
    else:
        from snnkit.models import create  # type: ignore[import-not-found,unused-ignore]

        model = _made(f"model '{name}'", lambda: create(name, **options))
    if not isinstance(model, torch.nn.Module):
        raise BadRecipe(f"model '{name}': made {type(model).__name__}; expected a torch module")
    if recipe.model.weights:
        path = recipe.path(recipe.model.weights)
        checkpoint.load_model(model, checkpoint.weights(path), path)
    if not recipe.quantise:
        return model
    from snnkit.nn import prepare  # type: ignore[import-not-found,unused-ignore]

    _fits(prepare, dict(recipe.quantise), "quantise")
    return _made("quantise", lambda: prepare(model, example=examples, **recipe.quantise))


def try_out(model: Any, sample: Any, classes: int, name: str) -> None:
    """Run one sample through a copy of the model. Raises BadRecipe unless it gives logits."""
    trial = copy.deepcopy(model).eval()
    try:
        with torch.no_grad():
            found = trial(sample)
    except Exception as error:  # whatever a model of somebody else raises
        raise BadRecipe(
            f"model '{name}' fails on an input of shape {tuple(sample.shape)}: {error}"
        ) from error
    shape = tuple(getattr(found, "shape", ()))
    if len(shape) != 2 or shape[0] != len(sample) or shape[1] < classes:
        raise BadRecipe(
            f"model '{name}' gives {shape or type(found).__name__} for {len(sample)} sample; "
            f"expected ({len(sample)}, {classes}): a logit for each class of the data"
        )


def _dotted(name: str, home: Path) -> Callable[..., Any]:
    """ "module:function", where module.py lies beside the recipe or is installed."""
    module_name, _, function = name.partition(":")
    beside = home / f"{module_name}.py"
    try:
        if beside.is_file():
            spec = importlib.util.spec_from_file_location(module_name, beside)
            if spec is None or spec.loader is None:
                raise BadRecipe(f"model '{name}': {beside} cannot be imported")
            module = importlib.util.module_from_spec(spec)
            sys.modules.setdefault(module_name, module)  # dataclasses look their module up there
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name != module_name:
            raise  # something that the module needs
        raise BadRecipe(
            f"model '{name}': no file {beside}, and no installed module '{module_name}'"
        ) from error
    if not callable(getattr(module, function, None)):
        known = [k for k, v in vars(module).items() if callable(v) and not k.startswith("_")]
        hint = nearest(function, known) if known else "it has no functions"
        raise BadRecipe(f"model '{name}': '{module_name}' has no function '{function}'; {hint}")
    found: Callable[..., Any] = getattr(module, function)
    return found


def _fits(function: Callable[..., Any], options: dict[str, Any], where: str) -> None:
    parameters = inspect.signature(function).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    for key in options:
        if key not in parameters:
            hint = nearest(key, list(parameters)) if parameters else "it takes none"
            raise BadRecipe(f"{where}: unknown key '{key}'; {hint}")


def _made(what: str, make: Callable[[], Any]) -> Any:
    try:
        return make()
    except (SnnkitError, ModuleNotFoundError):
        raise
    except Exception as error:  # whatever a factory of somebody else raises
        raise BadRecipe(f"{what}: cannot be made with these options: {error}") from error
