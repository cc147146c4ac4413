"""A run on disk: everything needed to go on as if nothing had happened.

A checkpoint is what `torch.save` writes: a zip archive whose records carry CRC-32 sums. It holds
tensors, numbers and text only and is read with `weights_only=True`: opening one runs no code.
torch itself does not look at the sums; `read` does.
"""

from __future__ import annotations

import io
import json
import pickle
import random
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from snnkit.errors import BadCheckpoint
from snnkit.files import write_beside

FORMAT = "snnkit checkpoint 1"
KEYS = {
    "format": str,
    "recipe": str,  # Recipe.identity()
    "step": int,  # optimiser steps done
    "per_epoch": int,
    "model": dict,
    "average": dict,  # empty without one
    "optimiser": dict,
    "scaler": dict,
    "processes": list,  # of each: its random states and its running loss
    "metrics": list,  # lines so far
    "last": dict,  # of the last evaluation: correct, total
    "best": dict,  # of the best evaluation: step, correct
}
MODELS = ("average", "model")


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Write beside and rename: the file is the old one or the new one, whole."""
    buffer = io.BytesIO()
    torch.save(dict(content), buffer)
    write_beside(path, buffer.getvalue())


def read(path: Path) -> dict[str, Any]:
    """The content of a checkpoint, checked for damage. Raises BadCheckpoint."""
    content = _opened(path)
    _check(content, path)
    return dict(content)


def _opened(path: Path) -> Any:
    """What torch saved, if it is whole and nothing but data."""
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
        if bad is not None:
            raise BadCheckpoint(f"{path}: damaged: record '{bad}' does not match its CRC-32. {_DO}")
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise BadCheckpoint(f"{path}: no such file; expected a checkpoint") from error
    except OSError as error:
        raise BadCheckpoint(f"{path}: cannot be read: {error.strerror or error}") from error
    except pickle.UnpicklingError as error:
        raise BadCheckpoint(
            f"{path}: holds more than tensors, numbers and text; expected a checkpoint of "
            "`snnkit train`. It was not opened, because that could run code"
        ) from error
    except BadCheckpoint:
        raise
    except Exception as error:  # zipfile and torch raise many kinds on damaged archives
        raise BadCheckpoint(
            f"{path}: truncated, damaged, or not a checkpoint of `snnkit train`: {error}. {_DO}"
        ) from error


_DO = "Go on from best.pt by copying it over last.pt, or start again in another folder"


def _check(content: Any, path: Path) -> None:
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT:
        raise BadCheckpoint(
            f"{path}: format {found!r}; expected {FORMAT!r}, as this snnkit's `train` writes"
        )
    for key, kind in KEYS.items():
        if not isinstance(content.get(key), kind):
            raise BadCheckpoint(
                f"{path}: '{key}' is {type(content.get(key)).__name__}; expected {kind.__name__}. "
                f"{_DO}"
            )


def check_same_run(content: Mapping[str, Any], recipe: str, world: int, path: Path) -> None:
    """Refuse to go on with another recipe or number of processes. Raises BadCheckpoint."""
    ours, theirs = json.loads(recipe), json.loads(content["recipe"])
    if ours != theirs:
        listed = "; ".join(_differences(theirs, ours, ""))
        raise BadCheckpoint(
            f"{path}: written with another recipe: {listed}. Undo the change, or start in another "
            "folder (model.weights takes over the weights)"
        )
    if len(content["processes"]) != world:
        raise BadCheckpoint(
            f"{path}: written by {len(content['processes'])} processes; there are {world} now; "
            "start as many as before"
        )


def _differences(theirs: Any, ours: Any, name: str) -> list[str]:
    if isinstance(theirs, dict) and isinstance(ours, dict):
        keys = sorted({*theirs, *ours})
        parts = [_differences(theirs.get(k), ours.get(k), f"{name}.{k}") for k in keys]
        return [line for part in parts for line in part]
    return [] if theirs == ours else [f"'{name[1:]}' was {theirs!r}, now {ours!r}"]


def load_model(model: Any, state: Mapping[str, Any], path: Path) -> None:
    """Put stored tensors into a model of exactly these names and shapes. Raises BadCheckpoint."""
    own = model.state_dict()
    lines = [f"'{name}' is missing" for name in own if name not in state]
    lines += [f"'{name}' is not in this model" for name in state if name not in own]
    for name in own:
        if name in state and getattr(own[name], "shape", 0) != getattr(state[name], "shape", 0):
            lines.append(
                f"'{name}' has shape {tuple(state[name].shape)}, in this model "
                f"{tuple(own[name].shape)}"
            )
    if lines:
        raise BadCheckpoint(
            f"{path}: does not fit the model: {'; '.join(lines[:8])}"
            + (f"; and {len(lines) - 8} more" if len(lines) > 8 else "")
            + ". Give the model the same name and options as when it was written"
        )
    model.load_state_dict(state)


def weights(path: Path) -> dict[str, Any]:
    """The weights in a checkpoint (the moving average if there is one), or in a state dict."""
    content = _opened(path)
    if isinstance(content, dict) and content and "format" not in content:
        return content
    _check(content, path)
    return dict(next(content[key] for key in MODELS if content[key]))


def random_states() -> dict[str, Any]:
    """Python's, numpy's and torch's global generators, as tensors and numbers."""
    version, internal, gauss = random.getstate()
    kind, keys, *rest = np.random.get_state(legacy=True)
    return {
        "python": [version, torch.tensor(internal), gauss],
        "numpy": [str(kind), torch.tensor(np.asarray(keys, np.int64)), *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,
    }


def restore_random_states(states: Mapping[str, Any]) -> None:
    """Set the global generators to what `random_states` gave."""
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal.tolist()), gauss))
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(states["torch"])
    if states["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
