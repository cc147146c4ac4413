"""A recipe: everything a training run depends on, read from a TOML file.

    seed = 0
    output = "runs/digits"
    [data]         name, folder, and the options of that data set (`snnkit.datasets`)
    [model]        name, and the options of its factory
    [training]     epochs, batch, ...

The tables and their keys are the dataclasses below; a default is what an absent key means. Keys of
[data.options], [model.options] and [quantise] belong to what they are given to.
"""

from __future__ import annotations

import difflib
import json
import math
import operator
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from snnkit.errors import BadRecipe

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

T = TypeVar("T")


def _key(default: Any = MISSING, **limits: Any) -> Any:
    """A key with its limits: `least`, `most`, `above`, or `choices`."""
    if default is MISSING:
        return field(metadata=limits)
    return field(default=default, metadata=limits)


@dataclass(frozen=True)
class Data:
    """What to learn. Numbers become inputs as (x / divide - mean) / std, per channel."""

    name: str = _key()
    folder: str = ""  # relative to the recipe's own folder
    divide: float = _key(1.0, above=0)
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = _key((), above=0)
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Model:
    """name : of `snnkit.models.create`, or "module:function" (beside the recipe, or installed).
    weights : checkpoint of another run to start from, or a torch state dict, relative to the
    recipe's own folder; with [quantise], of the model before it is prepared."""

    name: str = _key()
    weights: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Training:
    """batch : samples per step, over all processes. interval : steps between evaluations and
    checkpoints, 0: one epoch. precision : of autocast."""

    epochs: int = _key(least=1)
    batch: int = _key(least=1)
    interval: int = _key(0, least=0)
    test_batch: int = _key(256, least=1)
    label_smoothing: float = _key(0.0, least=0, most=1)
    precision: str = _key("float32", choices=("float32", "bfloat16", "float16"))
    compile: bool = False
    deterministic: bool = True
    device: str = "cpu"
    threads: int = _key(0, least=0)  # 0: as torch chooses


@dataclass(frozen=True)
class Optimiser:
    """clip : largest norm of the gradient, 0: any. decay_vectors : weight decay for parameters of
    one axis too (biases, norms, thresholds)."""

    name: str = _key("adamw", choices=("sgd", "adamw"))
    lr: float = _key(1e-3, above=0)
    weight_decay: float = _key(0.0, least=0)
    decay_vectors: bool = False
    clip: float = _key(0.0, least=0)
    momentum: float = _key(0.9, least=0, most=1)  # sgd
    nesterov: bool = False  # sgd
    betas: tuple[float, ...] = _key((0.9, 0.999), least=0, most=1)  # adamw
    amsgrad: bool = False  # adamw


@dataclass(frozen=True)
class Schedule:
    """Learning rate: linear warm-up, then half a cosine (see `snnkit.training.schedule`)."""

    warmup: float = _key(0.0, least=0)  # epochs
    start: float = _key(0.0, least=0)  # learning rate at the first step of the warm-up
    end: float = _key(0.0, least=0)  # learning rate at the end


@dataclass(frozen=True)
class Augmentation:
    """The fields of `snnkit.datasets.augment.Augment`, which says what they do."""

    shift: int = _key(0, least=0)
    flip: bool = False
    cutout: int = _key(0, least=0)
    mixup: float = _key(0.0, least=0)
    mixup_probability: float = _key(1.0, least=0, most=1)


@dataclass(frozen=True)
class Average:
    """decay : of the moving average of the weights, 0: none. The average is what is evaluated."""

    decay: float = _key(0.0, least=0, most=1)


@dataclass(frozen=True)
class Recipe:
    """A whole run. `home` is the folder that relative paths start from."""

    data: Data
    model: Model
    training: Training
    optimiser: Optimiser = Optimiser()
    schedule: Schedule = Schedule()
    augment: Augmentation = Augmentation()
    average: Average = Average()
    quantise: Mapping[str, Any] = field(default_factory=dict)
    seed: int = _key(0, least=0)
    output: str = "run"
    home: str = field(default=".", metadata={"hidden": True})

    def path(self, name: str) -> Path:
        """A path of the recipe; absolute paths stay as they are."""
        return Path(self.home) / name

    def identity(self) -> str:
        """What a checkpoint must agree in to be gone on with, as canonical JSON."""
        tables = asdict(self)
        for key in ("home", "output"):
            del tables[key]
        for table, key in (("data", "folder"), ("model", "weights")):
            del tables[table][key]
        return json.dumps(tables, sort_keys=True)


FREE = ("data.options", "model.options", "quantise")
"""Tables whose keys are not ours."""


def read_recipe(path: str | Path, settings: Sequence[str] = ()) -> Recipe:
    """The recipe in a TOML file, with `settings` like "training.epochs=3" put over it.

    Raises BadRecipe; on Python 3.10, ModuleNotFoundError where tomli is not installed.
    """
    source = Path(path)
    try:
        tables = tomllib.loads(source.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadRecipe(f"{source}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadRecipe(f"{source}: not TOML: {error}") from error
    for setting in settings:
        _set(tables, setting)
    return replace(recipe_of(tables, str(source)), home=str(source.parent))


def recipe_of(tables: Mapping[str, Any], where: str = "recipe") -> Recipe:
    """The recipe that nested tables describe. Raises BadRecipe."""
    return _build(Recipe, tables, where, "")


def _set(tables: dict[str, Any], setting: str) -> None:
    name, sign, text = setting.partition("=")
    if not sign or not name.strip():
        raise BadRecipe(f"--set {setting}: expected key=value, for example training.epochs=3")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text  # a string needs no quotes here
    *parents, last = name.strip().split(".")
    table: Any = tables
    for parent in parents:
        table = table.setdefault(parent, {})
        if not isinstance(table, dict):
            raise BadRecipe(f"--set {setting}: '{parent}' is a value, not a table")
    table[last] = value


def _build(kind: type[T], tables: Any, where: str, prefix: str) -> T:
    if not isinstance(tables, Mapping):
        raise BadRecipe(f"{where}: '{prefix[:-1]}' is {tables!r}; expected a table")
    hints = get_type_hints(kind)
    known = {f.name: f for f in fields(kind) if not f.metadata.get("hidden")}  # type: ignore[arg-type]
    for key in tables:
        if key not in known:
            raise BadRecipe(f"{where}: unknown key '{prefix}{key}'; {nearest(prefix + key)}")
    values: dict[str, Any] = {}
    for key, f in known.items():
        name = prefix + key
        if key in tables:
            values[key] = _value(hints[key], tables[key], where, name, f.metadata)
        elif f.default is MISSING and f.default_factory is MISSING:
            raise BadRecipe(f"{where}: no key '{name}'; it has no default")
    return kind(**values)


def _value(hint: Any, value: Any, where: str, name: str, limits: Mapping[str, Any]) -> Any:
    if is_dataclass(hint):
        return _build(hint, value, where, f"{name}.")  # type: ignore[arg-type]
    origin = get_origin(hint)
    if origin is tuple:
        if not isinstance(value, list):
            raise BadRecipe(f"{where}: '{name}' is {value!r}; expected a list of numbers")
        inner = get_args(hint)[0]
        return tuple(_value(inner, v, where, name, limits) for v in value)
    if origin is not None:  # a free table
        if not isinstance(value, Mapping):
            raise BadRecipe(f"{where}: '{name}' is {value!r}; expected a table")
        return dict(value)
    if hint is float and type(value) is int:
        value = float(value)
    if type(value) is not hint:
        raise BadRecipe(f"{where}: '{name}' is {value!r}; expected {_NAMES[hint]}")
    _limited(value, where, name, limits)
    return value


_NAMES = {int: "an integer", float: "a number", str: "a text", bool: "true or false"}


def _limited(value: Any, where: str, name: str, limits: Mapping[str, Any]) -> None:
    if "choices" in limits and value not in limits["choices"]:
        raise BadRecipe(
            f"{where}: '{name}' is {value!r}; expected one of {', '.join(limits['choices'])}"
        )
    if isinstance(value, float) and not math.isfinite(value):
        raise BadRecipe(f"{where}: '{name}' is {value}; expected a finite number")
    for limit, fits, words in _LIMITS:
        if limit in limits and not fits(value, limits[limit]):
            raise BadRecipe(f"{where}: '{name}' is {value}; expected {words} {limits[limit]}")


_LIMITS: tuple[tuple[str, Callable[[Any, Any], bool], str], ...] = (
    ("least", operator.ge, "at least"),
    ("most", operator.le, "at most"),
    ("above", operator.gt, "above"),
)


def known_keys(kind: type[Any] = Recipe, prefix: str = "") -> Iterable[str]:
    """Every key of a recipe, dotted."""
    hints = get_type_hints(kind)
    for f in fields(kind):
        if f.metadata.get("hidden"):
            continue
        yield prefix + f.name
        if is_dataclass(hints[f.name]):
            yield from known_keys(hints[f.name], f"{prefix}{f.name}.")


def nearest(name: str, known: Iterable[str] | None = None) -> str:
    """ "did you mean ...": the known key whose last word, then whose whole name, is most alike."""

    def alike(key: str) -> tuple[float, float]:
        ends = key.rpartition(".")[2], name.rpartition(".")[2]
        return (
            difflib.SequenceMatcher(None, *ends).ratio(),
            difflib.SequenceMatcher(None, key, name).ratio(),
        )

    return f"did you mean '{max(known_keys() if known is None else known, key=alike)}'?"
