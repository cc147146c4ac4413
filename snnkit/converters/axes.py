"""Which axes of a model's inputs are samples and elements of a sequence.

A file does not say. Recurrent operators do: they read [T, N, F], and states [D, N, H]. So the
model is run on random numbers, one slice of one axis of an input is changed, and it is looked
where the operator's input changes. An axis of which slice i moves slice i of the operator's batch
axis and nothing else *is* the batch axis, whatever operators lie between; the same for time.
Without recurrent operators the batch is the first axis, as exporters write it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from snnkit.boundary import DTYPES
from snnkit.converters.operators import Op, Port
from snnkit.errors import Problem, UnsupportedModel

if TYPE_CHECKING:
    from snnkit.converters.float_model import FloatModel

Array = npt.NDArray[Any]
RECURRENT = ("RNN", "GRU", "LSTM")
LENGTHS_INPUT = 4
STATE_INPUTS = (5, 6)
FREE_SIZE = 3
"""Elements of an axis whose size the file leaves open."""


@dataclass(frozen=True)
class Target:
    """A tensor that a recurrent operator reads: which of its axes are the batch and the steps."""

    tensor: str
    batch: int
    time: int | None


def find_axes(
    model: FloatModel, samples: Mapping[str, Array] | None
) -> tuple[tuple[Port, ...], str]:
    """The ports with their batch and time axes; the port that holds sequence lengths, or "".

    Raises UnsupportedModel for every input whose axes cannot be told.
    """
    recurrent = [op for op in model.data_ops if op.op in RECURRENT]
    if not recurrent:
        return tuple(_by_symbol(model, p, samples) for p in model.inputs), ""
    lengths = _lengths(model, recurrent)
    ports, problems = [], []
    values: _Values | None = None
    for port in model.inputs:
        targets = _reached(model, port.name)
        if port.name == lengths or not targets:
            ports.append(port)
            continue
        if values is None:
            values = _Values(model, samples, lengths, _all_targets(model))
        batch, time = _agreed(values, port, targets)
        alone = time is None and any(t.time is not None for t in targets)
        if batch is None or (alone and lengths):
            problems.append(_undecided(port, batch, targets))
            continue
        ports.append(replace(port, batch=batch, time=time))
    if problems:
        raise UnsupportedModel(problems)
    return tuple(ports), lengths


def _undecided(port: Port, batch: int | None, targets: list[Target]) -> Problem:
    what = "batch" if batch is None else "time"
    reads = ", ".join(f"'{t.tensor}'" for t in targets)
    return Problem(
        port.name,
        "input",
        f"no axis of {port.dims} can be told to be the {what} axis of {reads}, which a recurrent "
        "operator reads: each element of the sequence has to be computed from that element alone",
        "lead each sample and each element to the recurrent operator by itself, and export with "
        "a batch axis of two or more, or a symbolic one",
    )


def _by_symbol(model: FloatModel, port: Port, samples: Mapping[str, Array] | None) -> Port:
    """The port with the first axis as the batch, or else the only axis that the file leaves open,
    where samples along the first depend on each other."""
    free = [i for i, d in enumerate(port.dims) if isinstance(d, str)]
    if len(free) != 1 or not free[0] or port.dims[0] == 1 or len(model.inputs) > 1:
        return port
    outputs = [Target(p.name, 0, None) for p in model.outputs]
    values = _Values(model, samples, "", [t.tensor for t in outputs])
    if _agreed(values, port, outputs)[0] == 0:
        return port
    # each output may have its samples elsewhere
    places = [range(values.base[t.tensor].ndim) for t in outputs]
    if all(
        any(values.leads(port, free[0], t.tensor, i) for i in axes)
        for t, axes in zip(outputs, places, strict=True)
    ):
        return replace(port, batch=free[0])
    return port


def _lengths(model: FloatModel, recurrent: list[Op]) -> str:
    """The input of the model that recurrent operators read as the lengths of sequences."""
    named = {
        op.inputs[LENGTHS_INPUT]
        for op in recurrent
        if len(op.inputs) > LENGTHS_INPUT and op.inputs[LENGTHS_INPUT]
    }
    for op in reversed(model.ops):
        if op.op in ("Cast", "Identity") and named.intersection(op.outputs):
            named.update(op.inputs)
    found = [p.name for p in model.inputs if p.name in named]
    return found[0] if found else ""


def lengths_names(model: FloatModel) -> frozenset[str]:
    """The input with the lengths of sequences, and what is nothing but a cast of it."""
    found = {model.lengths} - {""}
    for op in model.ops:
        if op.op in ("Cast", "Identity") and found.intersection(op.inputs):
            found.update(op.outputs)
    return frozenset(found)


def _all_targets(model: FloatModel) -> list[str]:
    return sorted({t.tensor for op in model.data_ops for t in targets_of(op)} - model.static)


def targets_of(op: Op) -> list[Target]:
    if op.op not in RECURRENT:
        return []
    found = [Target(op.inputs[0], 1, 0)]
    found += [Target(op.inputs[i], 1, None) for i in STATE_INPUTS if len(op.inputs) > i]
    return [t for t in found if t.tensor]


def _reached(model: FloatModel, name: str) -> list[Target]:
    """What recurrent operators read that depends on the input, with none of them between."""
    reached, targets = {name}, []
    for op in model.data_ops:
        targets += [t for t in targets_of(op) if t.tensor in reached and t not in targets]
        if op.op not in RECURRENT and reached.intersection(op.inputs):
            reached.update(op.outputs)
    return targets


class _Values:
    """The wanted tensors for random inputs, and for inputs of which one slice is another."""

    def __init__(
        self,
        model: FloatModel,
        samples: Mapping[str, Array] | None,
        lengths: str,
        names: list[str],
    ):
        self.model, self.names = model, names
        self.rng = np.random.default_rng(0)
        self.session = model.session(names, free=True)
        message = ""
        for shapes in _shapes(model, samples):
            self.feeds = {p.name: self._random(p, shapes[p.name]) for p in model.inputs}
            if lengths:
                self.feeds[lengths] = np.ones_like(self.feeds[lengths])
            try:
                self.base = self._run(self.feeds)
                return
            except Exception as error:  # onnxruntime raises many kinds
                message = str(error).splitlines()[0]
        model.refuse(f"onnxruntime cannot run it: {message}", "repair the model first")

    def _random(self, port: Port, shape: tuple[int, ...]) -> Array:
        kind = np.dtype(DTYPES[port.dtype])
        if kind.kind == "f":
            return self.rng.normal(size=shape).astype(kind)
        return self.rng.integers(0, 2, shape).astype(kind)

    def _run(self, feeds: dict[str, Array]) -> dict[str, Array]:
        found = self.session.run(self.names, feeds)
        return {n: np.asarray(v) for n, v in zip(self.names, found, strict=True)}

    def leads(self, port: Port, axis: int, tensor: str, at: int) -> bool:
        """Whether slice i of the input's axis moves slice i of the tensor's axis and no other."""
        given, base = self.feeds[port.name], self.base[tensor]
        size = given.shape[axis]
        if base.shape[at] != size:
            return False
        for i in sorted({0, size - 1}):
            changed = given.copy()
            slot = (slice(None),) * axis + (i,)
            changed[slot] = self._random(port, changed[slot].shape)
            if np.array_equal(changed, given):
                changed[slot] = 1 - changed[slot]
            moved = self._run({**self.feeds, port.name: changed})[tensor] != base
            others = tuple(k for k in range(moved.ndim) if k != at)
            if np.flatnonzero(moved.any(axis=others)).tolist() != [i]:
                return False
        return True


def _shapes(
    model: FloatModel, samples: Mapping[str, Array] | None
) -> list[dict[str, tuple[int, ...]]]:
    """Shapes to try: small where the file leaves the size open, two where it says one (one element
    cannot be told from none); then what it says; then what the data have."""

    def shape(port: Port, one: int, data: bool) -> tuple[int, ...]:
        given = np.shape((samples or {}).get(port.name, ()))
        dims = []
        for i, d in enumerate(port.dims):
            if isinstance(d, int):
                dims.append(one if d == 1 else d)
            else:
                dims.append(given[i] if data and len(given) == len(port.dims) else FREE_SIZE)
        return tuple(dims)

    forms = [(2, False), (1, False), (2, True), (1, True)]
    return [{p.name: shape(p, one, data) for p in model.inputs} for one, data in forms]


def _agreed(values: _Values, port: Port, targets: list[Target]) -> tuple[int | None, int | None]:
    """(batch axis, time axis) of the port on which all targets agree; None where there is none."""
    axes = range(len(port.dims))

    def common(places: list[tuple[str, int]]) -> int | None:
        found = [a for a in axes if all(values.leads(port, a, n, k) for n, k in places)]
        return found[0] if len(found) == 1 else None

    batch = common([(t.tensor, t.batch) for t in targets])
    timed = [(t.tensor, t.time) for t in targets if t.time is not None]
    return batch, common(timed) if timed and batch is not None else None
