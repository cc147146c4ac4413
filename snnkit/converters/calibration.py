"""What the calibration data says about every tensor, and the step size that follows from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from snnkit.converters.float_model import FloatModel
from snnkit.converters.operators import Array
from snnkit.errors import Problem, UnsupportedModel, UsageError

CALIBRATORS = ("mse", "percentile", "minmax")
PERCENTILE = 99.9
KEPT = 2**16
"""Values kept of a tensor for the search of its step size."""
MOST_SAMPLES = 1024
FEW = 64
"""Samples on which the inner tensors of recurrent operators are looked at."""
MEAN_BYTES = 2**30
"""Bytes of integers held for the bias correction."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Staircase:
    """Step size and range of the integer that stands for a float: value = step * level."""

    step: float
    lo: int
    hi: int


class Statistics:
    """Of every tensor of numbers: a sample of its values, its extremes, its mean over the batch."""

    def __init__(self, model: FloatModel, samples: Mapping[str, Array]):
        count = model.count(samples)
        pick = np.unique(np.linspace(0, count - 1, min(count, MOST_SAMPLES)).astype(int))
        self.model, self.count = model, len(pick)
        self.samples = model.take(samples, pick)
        names = [
            o
            for op in model.data_ops
            for o in op.outputs
            if o in model.frames and model.dtypes[o].kind in "fiu"
        ]
        self.values: dict[str, Floats] = {}
        self.extremes: dict[str, tuple[float, float]] = {}
        self.means: dict[str, Floats] = {}
        units = sum(int(np.prod(model.shapes[n])) for n in names) // model.batch
        self.mean_count = int(np.clip(MEAN_BYTES // max(1, 4 * units), 4, min(256, self.count)))
        if names:
            self._gather(model, names)

    def input(self, name: str) -> Array:
        """An input of the model, [N, *units], or [N, T, *units] with elements of a sequence."""
        return self.model.frames[name].canonical(self.samples[name], self.count)

    def few(self, names: Sequence[str]) -> dict[str, Array]:
        """The named tensors for the first samples, in the layout of `input`."""
        some = self.model.take(self.samples, np.arange(min(self.count, FEW)))
        made = [n for n in names if n not in some]
        parts = list(self.model.run(some, made)) if made else []
        found = {n: np.concatenate([p[n] for p in parts]) for n in made}
        for n in names:
            if n == self.model.lengths:
                found[n] = some[n]
            elif n in some:
                found[n] = self.model.frames[n].canonical(some[n], self.model.count(some))
        return found

    def _gather(self, model: FloatModel, names: list[str]) -> None:
        rng = np.random.default_rng(0)
        parts: dict[str, list[Floats]] = {n: [] for n in names}
        share = max(64, KEPT * 4 // max(1, self.count))
        seen = 0
        for chunk in model.run(self.samples, names):
            rows = max(1, *(len(value) for value in chunk.values()))
            steps = next(
                (len(v[0]) for n, v in chunk.items() if model.frames[n].time is not None), 1
            )
            shifting = [n for n, v in chunk.items() if v.shape != self._expected(n, rows, steps)]
            if shifting:
                reason, remedy = "its shape depends on the data", "use tensors of one shape"
                raise UnsupportedModel([Problem(n, "tensor", reason, remedy) for n in shifting])
            first = chunk if seen == 0 else {}
            for name, value in chunk.items():
                flat = value.reshape(rows, -1).astype(np.float64)
                lo, hi = self.extremes.get(name, (np.inf, -np.inf))
                self.extremes[name] = (min(lo, float(flat.min())), max(hi, float(flat.max())))
                some = flat.reshape(-1)
                if some.size > share * rows:
                    some = some[rng.integers(0, some.size, share * rows)]
                parts[name].append(some)
                take = min(rows, self.mean_count - seen)
                if take > 0:
                    total = value[:take].astype(np.float64).sum(axis=0)
                    if model.frames[name].time is not None:
                        total = total.mean(axis=0)
                    self.means[name] = total if name in first else self.means[name] + total
            seen += rows
        for name in names:
            everything = np.concatenate(parts[name])
            stride = max(1, everything.size // KEPT)
            self.values[name] = np.append(everything[::stride], self.extremes[name])
            self.means[name] = self.means[name] / min(seen, self.mean_count)

    def _expected(self, name: str, rows: int, steps: int) -> tuple[int, ...]:
        """The shape of a tensor's values for so many samples and elements."""
        frame = self.model.frames[name]
        units = frame.units(self.model.shapes[name])
        return (rows, *units) if frame.time is None else (rows, steps, *units)

    def staircase(self, tensor: str, levels: int, calibrator: str) -> Staircase:
        """The staircase with `levels` steps for a tensor; zero is always one of its values."""
        if tensor not in self.values:  # an input of the model: no node makes it
            flat = self.samples[tensor].reshape(-1).astype(np.float64)
            some = flat[:: max(1, flat.size // KEPT)]
            self.values[tensor] = np.append(some, (flat.min(), flat.max()))
        return choose(self.values[tensor], levels, calibrator)


def choose(values: Floats, levels: int, calibrator: str) -> Staircase:
    """Step size by min-max, by percentile, or by the least mean squared error over a grid."""
    if calibrator not in CALIBRATORS:
        raise UsageError(f"calibrator {calibrator!r}; expected one of {', '.join(CALIBRATORS)}")
    low, high = min(0.0, float(values.min())), max(0.0, float(values.max()))
    if calibrator == "percentile":
        low = min(0.0, float(np.percentile(values, 100 - PERCENTILE)))
        high = max(0.0, float(np.percentile(values, PERCENTILE)))
    if high == low:
        return Staircase(1.0, 0, levels)
    if calibrator != "mse":
        return _fit(low, high, levels)
    best, least = _fit(low, high, levels), np.inf
    for share in np.linspace(1.0, 0.1, 91):
        stairs = _fit(low * share, high * share, levels)
        level = np.clip(np.floor(values / stairs.step + 0.5), stairs.lo, stairs.hi)
        error = float(np.square(values - level * stairs.step).mean())
        if error < least:
            best, least = stairs, error
    return best


def _fit(low: float, high: float, levels: int) -> Staircase:
    lo = -int(np.clip(np.rint(levels * -low / (high - low)), 0, levels))
    step = max(high / (levels + lo) if levels + lo else 0.0, low / lo if lo else 0.0)
    return Staircase(float(step), lo, levels + lo)
