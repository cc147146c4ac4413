"""ONNX's RNN, GRU and LSTM: what an operator says, and its equations in float64.

The equations give the inner tensors (gates, candidate, cell) that no runtime shows and that step
sizes are taken from. That they are the operator's own is not believed: the converter compares
their Y with onnxruntime's.

Equations and orders of gates: ONNX operator documentation, RNN-14, GRU-14, LSTM-14.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from snnkit.converters import activations as act
from snnkit.converters.activations import Activation, Floats
from snnkit.converters.frames import Refusal
from snnkit.converters.operators import Op
from snnkit.sweeps import order

GATES = {"RNN": ("state",), "GRU": ("keep", "reset", "new"), "LSTM": ("in", "out", "forget", "new")}
CURVES = ("Sigmoid", "Tanh", "Relu", "HardSigmoid", "LeakyRelu", "Elu", "Softplus", "Softsign")
PEEPHOLES = ("in", "out", "forget")
DEFAULTS = {"RNN": ("Tanh",), "GRU": ("Sigmoid", "Tanh"), "LSTM": ("Sigmoid", "Tanh", "Tanh")}
DIRECTIONS = {"forward": (1,), "reverse": (-1,), "bidirectional": (1, -1)}


def _softsign(z: Floats) -> Floats:
    return np.asarray(z / (1.0 + np.abs(z)))


def _curve(name: str, alpha: list[float], beta: list[float]) -> Activation:
    """An activation by its name; those with parameters take the next of the lists, or ONNX's
    default."""

    def take(values: list[float], default: float) -> float:
        return values.pop(0) if values else default

    if name == "HardSigmoid":
        return act.hard_sigmoid(take(alpha, 0.2), take(beta, 0.5))
    if name == "LeakyRelu":
        return act.leaky(np.array(take(alpha, 0.01)))
    if name == "Elu":
        return act.elu(take(alpha, 1.0))
    plain = {
        "Sigmoid": act.sigmoid(),
        "Tanh": act.tanh(),
        "Relu": act.RELU,
        "Softplus": act.softplus(),
        "Softsign": Activation(_softsign),
    }
    if name not in plain:
        raise Refusal(
            f"the activation {name}",
            f"use one of {', '.join(CURVES)}",
        )
    return plain[name]


def _clipped(curve: Activation, limit: float) -> Activation:
    """The activation of a charge that is cut to -limit..limit first."""
    if not limit:
        return curve
    return Activation(lambda z: curve.f(np.clip(z, -limit, limit)), curve.turns)


@dataclass(frozen=True, eq=False)
class Cell:
    """One direction of a recurrent operator, all arrays float64.

    wx, wh, bias_x, bias_h : by gate, [H, I], [H, H], [H], [H]. peep : by gate, [H]. curves : by
    gate, and "shown", the LSTM's view of its cell. after_reset : GRU's linear_before_reset 0.
    coupled : LSTM's input_forget.
    """

    kind: str
    direction: int
    hidden: int
    wx: Mapping[str, Floats]
    wh: Mapping[str, Floats]
    bias_x: Mapping[str, Floats]
    bias_h: Mapping[str, Floats]
    peep: Mapping[str, Floats]
    curves: Mapping[str, Activation]
    sigmoids: frozenset[str]
    after_reset: bool
    coupled: bool

    def run(
        self, x: Floats, h: Floats, c: Floats, lengths: np.ndarray[Any, Any] | None
    ) -> dict[str, Floats]:
        """Values [N, T, H] of "state", the gates and what lies between, for x [N, T, I] and first
        states [N, H]; zero behind the end of a sequence. "h" and "c" are the last states."""
        found: dict[str, Floats] = {}
        for t in order(self.direction, x.shape[1]):
            step = self._step(x[:, t], h, c)
            active = np.ones(len(x), bool) if lengths is None else t < lengths
            h = np.where(active[:, None], step["state"], h)
            c = np.where(active[:, None], step.get("cell", c), c)
            for name, value in step.items():
                full = found.setdefault(name, np.zeros((*x.shape[:2], self.hidden)))
                full[:, t] = value * active[:, None]
        return {**found, "h": h, "c": c}

    def _charge(self, gate: str, x: Floats, h: Floats) -> Floats:
        bias = self.bias_x[gate] + self.bias_h[gate]
        return np.asarray(x @ self.wx[gate].T + h @ self.wh[gate].T + bias)

    def _step(self, x: Floats, h: Floats, c: Floats) -> dict[str, Floats]:
        f = {name: curve.f for name, curve in self.curves.items()}
        if self.kind == "RNN":
            return {"state": f["state"](self._charge("state", x, h))}
        if self.kind == "GRU":
            keep, reset = (f[g](self._charge(g, x, h)) for g in ("keep", "reset"))
            if self.after_reset:
                aside = reset * h
                new = f["new"](self._charge("new", x, aside))
            else:
                aside = h @ self.wh["new"].T + self.bias_h["new"]
                new = f["new"](x @ self.wx["new"].T + self.bias_x["new"] + reset * aside)
            state = (1.0 - keep) * new + keep * h
            return {"keep": keep, "reset": reset, "aside": aside, "new": new, "state": state}
        peep = self.peep
        enter = f["in"](self._charge("in", x, h) + peep["in"] * c)
        forget = f["forget"](self._charge("forget", x, h) + peep["forget"] * c)
        if self.coupled:
            forget = 1.0 - enter
        new = f["new"](self._charge("new", x, h))
        cell = forget * c + enter * new
        out = f["out"](self._charge("out", x, h) + peep["out"] * cell)
        shown = f["shown"](cell)
        parts = {"in": enter, "forget": forget, "new": new, "cell": cell, "out": out}
        return {**parts, "shown": shown, "state": out * shown}


def read_cells(op: Op, arrays: list[Any]) -> list[Cell]:
    """The directions of a recurrent operator. arrays : W, R, B or None, P or None."""
    gates, directions = GATES[op.op], DIRECTIONS[op.attrs.get("direction", "forward")]
    w, r = (np.asarray(a, np.float64) for a in arrays[:2])
    hidden, many = int(r.shape[2]), len(gates)
    sizes = (2 * many * hidden, 3 * hidden)
    b, p = (
        np.zeros((len(w), n)) if a is None else np.asarray(a, np.float64)
        for a, n in zip(arrays[2:], sizes, strict=True)
    )

    def split(a: Floats, at: int = 0, parts: tuple[str, ...] = gates) -> dict[str, Floats]:
        return {g: a[(at + i) * hidden : (at + i + 1) * hidden] for i, g in enumerate(parts)}

    cells = []
    for d, (curves, bounded) in enumerate(_curves(op, len(directions))):
        cells.append(
            Cell(
                kind=op.op,
                direction=directions[d],
                hidden=hidden,
                wx=split(w[d]),
                wh=split(r[d]),
                bias_x=split(b[d]),
                bias_h=split(b[d], many),
                peep=split(p[d], 0, PEEPHOLES),
                curves=curves,
                sigmoids=bounded,
                after_reset=op.op == "GRU" and not op.attrs.get("linear_before_reset", 0),
                coupled=bool(op.attrs.get("input_forget", 0)),
            )
        )
    return cells


def _curves(op: Op, directions: int) -> list[tuple[dict[str, Activation], frozenset[str]]]:
    """For each direction the activations by gate, and which gates have values from 0 to 1."""
    per = len(DEFAULTS[op.op])
    given = [
        a.decode() if isinstance(a, bytes) else str(a) for a in op.attrs.get("activations", [])
    ]
    canonical = {n.lower(): n for n in CURVES}
    names = [canonical.get(n.lower(), n) for n in given] or list(DEFAULTS[op.op]) * directions
    alpha, beta = (list(op.attrs.get(f"activation_{k}", [])) for k in ("alpha", "beta"))
    plain = [_curve(n, alpha, beta) for n in names]
    clip = float(op.attrs.get("clip", 0.0))
    places = dict.fromkeys(GATES[op.op], 0) | {"new": 1, "shown": 2}
    found = []
    for at in range(0, per * directions, per):
        places_here = {g: at + i for g, i in places.items() if i < per}
        # clip cuts the charges of gates, not what an LSTM shows of its cell
        curves = {
            g: plain[i] if g == "shown" else _clipped(plain[i], clip)
            for g, i in places_here.items()
        }
        bounded = {g for g, i in places_here.items() if names[i] in ("Sigmoid", "HardSigmoid")}
        found.append((curves, frozenset(bounded)))
    return found
