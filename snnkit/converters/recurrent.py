"""Handlers of RNN, GRU and LSTM: each direction becomes a cell of spiking nodes between latches.

Every element of a sequence is one acyclic window. What x and h give to a gate meets on one integer
grid; sigmoid and tanh are ladders of that charge; gates multiply spiking values (`product`).
Nodes of direction d of an operator with output Y, behind "Y.<d>.": linear nodes "x.<gate>" and
"h.<gate>", an add "<gate>.charge", a spike "<gate>"; products, their adds, and the spike "state",
which the latch "before" holds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from snnkit.converters import activations as act
from snnkit.converters.activations import Activation, Floats
from snnkit.converters.axes import LENGTHS_INPUT, RECURRENT, lengths_names
from snnkit.converters.calibration import Staircase, choose
from snnkit.converters.frames import Refusal
from snnkit.converters.layout import move
from snnkit.converters.network import Affine, Network
from snnkit.converters.operators import Array, Op
from snnkit.converters.reader import Handler, Reader
from snnkit.converters.recurrence import Cell, read_cells
from snnkit.graph import Node
from snnkit.sweeps import LENGTHS_TYPES

MEANT = 1e-3
"""Largest share of its range by which Y of the equations may miss onnxruntime's: float32 against
float64 along a sequence, not another meaning."""


def recurrent(reader: Reader, op: Op) -> None:
    """RNN, GRU, LSTM with constant weights; initial states constant or computed from the data."""
    arrays = [reader.constant(op, i) for i in (1, 2, 3, 7)]
    cells = read_cells(op, arrays)
    _lengths(reader, op)
    x = reader.net.byte(reader.data(op), op.inputs[0], axis=-1)
    label = op.outputs[0] or next(o for o in op.outputs if o)
    ranges = _ranges(reader, op, cells)
    states, memories = [], []
    for d, (cell, inner) in enumerate(zip(cells, ranges, strict=True)):
        builder = _Builder(reader.net, f"{label}.{d}", cell, inner, x)
        builder.start("before", "state", _initial(reader, op, 5, d))
        if cell.kind == "LSTM":
            builder.start("cell.before", "cell", _initial(reader, op, 6, d))
        state, memory = builder.build()
        states.append(state)
        memories.append(memory)
    _give(reader, op, cells, states, memories)


def _lengths(reader: Reader, op: Op) -> None:
    """Refuse lengths of sequences other than an input of the model, read by all alike."""
    name = op.inputs[LENGTHS_INPUT] if len(op.inputs) > LENGTHS_INPUT else ""
    model = reader.model
    if name and name in model.constants:
        if (model.constants[name] != model.steps).any() or model.free_steps:
            raise Refusal(
                "constant sequence_lens that differ from the number of elements",
                "make sequence_lens an input of the model, or leave it out",
            )
        name = ""
    known = lengths_names(model)
    if name and name not in known:
        raise Refusal(f"sequence_lens '{name}' are computed", "make them an input [N] of the model")
    if known and not name:
        raise Refusal(
            f"it does not read the lengths '{model.lengths}' that other operators read",
            "give sequence_lens to all recurrent operators or to none",
        )
    port = next((p for p in model.inputs if p.name in known), None)
    if port is not None and (port.dtype not in LENGTHS_TYPES or len(port.dims) != 1):
        raise Refusal(f"sequence_lens of type {port.dtype}", "make them an int32 input [N]")
    if port is not None and not model.free_steps:
        raise Refusal(
            f"sequence_lens '{name}' beside a fixed number of {model.steps} elements",
            "export the model with a symbolic number of elements",
        )


def _ranges(reader: Reader, op: Op, cells: Sequence[Cell]) -> list[dict[str, Floats]]:
    """Values of the inner tensors of each direction for some samples, from the equations, which
    are compared with what onnxruntime makes of the operator."""
    stats, model = reader.net.statistics, reader.model
    if stats is None:
        raise Refusal("no calibration data", "give calibration data")
    tensors = {i: op.inputs[i] for i in (0, 5, 6) if len(op.inputs) > i and op.inputs[i]}
    outputs = [o for o in op.outputs if o]
    wanted = [n for n in (*tensors.values(), *outputs) if n in model.frames]
    found = stats.few(wanted)
    x = found[tensors[0]].astype(np.float64)
    lengths = stats.few([model.lengths])[model.lengths] if model.lengths else None
    results = []
    for d, cell in enumerate(cells):
        first = {}
        for i, key in ((5, "first state"), (6, "first cell")):
            name = tensors.get(i)
            if name is None:
                first[key] = np.zeros((len(x), cell.hidden))
            elif name in found:
                first[key] = found[name][:, d].astype(np.float64)
            else:
                first[key] = np.tile(_constant_state(reader, op, i)[d], (len(x), 1))
        inner = cell.run(x, first["first state"], first["first cell"], lengths)
        results.append({**inner, **first})
    _compare(op, results, found)
    return results


def _compare(op: Op, results: list[dict[str, Floats]], found: Mapping[str, Array]) -> None:
    for i, name in enumerate(op.outputs):
        if name not in found:
            continue
        key, axis = ("state", 2) if i == 0 else ("hc"[i - 1], 1)
        expected = np.stack([r[key] for r in results], axis=axis)
        gap = np.abs(expected - found[name]).max()
        if not gap <= MEANT * max(1.0, np.abs(expected).max()):
            raise Refusal(
                f"its equations give another '{name}' than onnxruntime, off by {gap:.3g}",
                "report this model; attributes of the operator may be read wrongly",
            )


def _constant_state(reader: Reader, op: Op, index: int) -> Floats:
    """A constant first state [D, H], the same for all samples."""
    value = np.asarray(reader.constant(op, index), np.float64)
    if (value != value[:, :1]).any():
        raise Refusal(
            f"an initial state '{op.inputs[index]}' that differs between samples of a batch",
            "make it an input of the model",
        )
    return value[:, 0]


def _initial(reader: Reader, op: Op, index: int, direction: int) -> Affine | Floats:
    """The first state of a direction: constant [H], or a value that runs once."""
    if len(op.inputs) <= index or not op.inputs[index]:
        return np.zeros(1)
    if not reader.is_data(op, index):
        return np.asarray(_constant_state(reader, op, index)[direction])
    x, name = reader.data(op, index), f"{op.outputs[0] or op.name}.{direction}.first{index}"
    hidden = x.shape[1]
    rows = np.arange(direction * hidden, (direction + 1) * hidden)
    return move(reader, x, "index", name, index=rows, shape=(hidden,))


class _Builder:
    """The nodes of one direction of a recurrent operator."""

    def __init__(
        self, net: Network, label: str, cell: Cell, inner: Mapping[str, Floats], x: Affine
    ):
        self.net, self.label, self.cell, self.x = net, label, cell, x
        self.stairs = self._staircases(inner)
        self.first: dict[str, tuple[str, Node | Array]] = {}

    def _staircases(self, inner: Mapping[str, Floats]) -> dict[str, Staircase]:
        """By node. Sigmoids take their whole range, the rest what the data show; a state and what
        is mixed into it have the same steps."""
        policy, cell = self.net.policy, self.cell
        levels = policy.levels
        found: dict[str, Staircase] = {}
        for name, values in inner.items():
            if name in cell.sigmoids and name != "state":
                found[name] = Staircase(1.0 / levels, 0, levels)
            elif not name.startswith("first") and name not in "hc":
                parts = [values]
                if name in ("state", "cell"):
                    parts.append(inner[f"first {name}"])
                if cell.kind == "GRU" and name in ("state", "new"):
                    parts = [inner[n] for n in ("new", "state", "first state")]
                flat = np.concatenate([p.reshape(-1) for p in parts])
                found[name] = choose(flat, levels, policy.calibrator)
        return found

    def start(self, latch: str, state: str, first: Affine | Floats) -> None:
        """What a latch holds at the first element, on the state's own steps."""
        stairs = self.stairs[state]
        if isinstance(first, Affine):
            node = self.net.fire(first, act.IDENTITY, stairs, f"{self.label}.{latch}.first").node
            self.first[latch] = (state, node)
            return
        level = np.clip(np.rint(first / stairs.step), stairs.lo, stairs.hi)
        self.first[latch] = (state, level.astype(np.int64))

    def build(self) -> tuple[Affine, Affine | None]:
        """(hidden state, LSTM's cell)."""
        with self.net.plan.in_cell(self.cell.direction):
            held = {name: self._latch(name, *given) for name, given in self.first.items()}
            if self.cell.kind == "LSTM":
                state, memory = self._lstm(held["before"], held["cell.before"])
                self.net.plan.latches[held["cell.before"].node.name] = memory.node.name
            else:
                memory = None
                state = (self._gru if self.cell.kind == "GRU" else self._rnn)(held["before"])
            self.net.plan.latches[held["before"].node.name] = state.node.name
        return state, memory

    def _latch(self, name: str, state: str, first: Node | Array) -> Affine:
        stairs = self.stairs[state]
        attrs = {"shape": (self.cell.hidden,), "lo": stairs.lo, "hi": stairs.hi}
        given: dict[str, Any] = {} if isinstance(first, Node) else {"initial": first}
        inputs = [first] if isinstance(first, Node) else []
        node = self.net.add(f"{self.label}.{name}", "latch", inputs, given, attrs)
        return self.net.affine(node, stairs.step, 0.0)

    def _linear(self, gate: str, source: str, x: Affine) -> Affine:
        weight = (self.cell.wx if source == "x" else self.cell.wh)[gate]
        bias = (self.cell.bias_x if source == "x" else self.cell.bias_h)[gate]
        per = np.broadcast_to(x.scale.reshape(-1), x.shape)
        y = self.net.synapses(f"{self.label}.{source}.{gate}", "linear", x, weight * per)
        offset = np.broadcast_to(x.offset.reshape(-1), x.shape) @ weight.T + bias
        return self.net.affine(y.node, y.scale, offset)

    def _total(self, name: str, terms: Sequence[Affine]) -> Affine:
        return self.net.total(f"{self.label}.{name}", terms)

    def _product(self, name: str, a: Affine, b: Affine) -> Affine:
        return self.net.product(f"{self.label}.{name}", a, b)

    def _fire(self, name: str, charge: Affine, curve: Activation | None = None) -> Affine:
        function = curve or self.cell.curves.get(name, act.IDENTITY)
        return self.net.fire(charge, function, self.stairs[name], f"{self.label}.{name}")

    def _gate(self, gate: str, h: Affine, *more: Affine) -> Affine:
        terms = [self._linear(gate, "x", self.x), self._linear(gate, "h", h), *more]
        return self._fire(gate, self._total(f"{gate}.charge", terms))

    def _rnn(self, h: Affine) -> Affine:
        return self._gate("state", h)

    def _gru(self, h: Affine) -> Affine:
        keep, reset = self._gate("keep", h), self._gate("reset", h)
        if self.cell.after_reset:
            aside = self._fire("aside", self._product("aside.charge", reset, h))
            gated = self._linear("new", "h", aside)
        else:
            aside = self._fire("aside", self._linear("new", "h", h))
            gated = self._product("gated", reset, aside)
        charge = self._total("new.charge", [self._linear("new", "x", self.x), gated])
        new = self._fire("new", charge)
        minus = self.net.affine(new.node, -new.scale, 0.0)
        kept = self._product("kept", keep, self._total("apart", [h, minus]))
        return self._fire("state", self._total("state.charge", [new, kept]))

    def _peep(self, gate: str, c: Affine) -> list[Affine]:
        weight = self.cell.peep[gate]
        return [self.net.affine(c.node, c.scale * weight, 0.0)] if weight.any() else []

    def _lstm(self, h: Affine, c: Affine) -> tuple[Affine, Affine]:
        enter = self._gate("in", h, *self._peep("in", c))
        if self.cell.coupled:
            forget = self.net.affine(enter.node, -enter.scale, 1.0)
        else:
            forget = self._gate("forget", h, *self._peep("forget", c))
        new = self._gate("new", h)
        parts = [self._product("kept", forget, c), self._product("entered", enter, new)]
        charge = self._total("cell.charge", parts)
        cell, shown = self._fire("cell", charge), self._fire("shown", charge)
        out = self._gate("out", h, *self._peep("out", cell))
        return self._fire("state", self._product("state.charge", out, shown)), cell


def _give(
    reader: Reader,
    op: Op,
    cells: Sequence[Cell],
    states: Sequence[Affine],
    memories: Sequence[Affine | None],
) -> None:
    """Y [T, D, N, H], Y_h and Y_c [D, N, H]."""
    net = reader.net
    for i, name in enumerate(op.outputs):
        if not name:
            continue
        rows = []
        for d, cell in enumerate(cells):
            value = memories[d] if i == 2 else states[d]
            assert value is not None
            if i:
                value = net.pick(value, f"{name}.{d}.last", cell.direction < 0)
            attrs = {"kind": "reshape", "shape": (1, cell.hidden)}
            rows.append((net.add(f"{name}.{d}", "route", [value.node], {}, attrs), value.scale))
        node = rows[0][0]
        if len(rows) > 1:
            axis = {"kind": "concat", "axis": 0}
            node = net.add(name, "route", [r[0] for r in rows], {}, axis)
        scale = np.stack([np.broadcast_to(r[1], (cells[0].hidden,)) for r in rows])
        reader.give(name, net.affine(node, scale, 0.0))


CELLS: dict[str, Handler] = dict.fromkeys(RECURRENT, recurrent)
