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
from snnkit.converters.float_model import Op
from snnkit.converters.frames import Refusal
from snnkit.sweeps import order

GATES = {"RNN": ("state",), "GRU": ("keep", "reset", "new"), "LSTM": ("in", "out", "forget", "new")}
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
            "use Sigmoid, Tanh, Relu, HardSigmoid, LeakyRelu, Elu, Softplus or Softsign",
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
    name = op.attrs.get("direction", "forward")
    directions = DIRECTIONS[name]
    gates = GATES[op.op]
    w, r = (np.asarray(a, np.float64) for a in arrays[:2])
    hidden = int(r.shape[2])
    many = len(gates)
    b = np.zeros((len(w), 2 * many * hidden)) if arrays[2] is None else np.float64(arrays[2])
    p = np.zeros((len(w), 3 * hidden)) if arrays[3] is None else np.float64(arrays[3])
    per = len(DEFAULTS[op.op])
    names = [
        a.decode() if isinstance(a, bytes) else str(a) for a in op.attrs.get("activations", [])
    ] or list(DEFAULTS[op.op]) * len(directions)
    canonical = {n.lower(): n for n in ("HardSigmoid", "LeakyRelu", "Softplus", "Softsign")}
    names = [canonical.get(n.lower(), n.capitalize()) for n in names]
    alpha, beta = (list(op.attrs.get(f"activation_{k}", [])) for k in ("alpha", "beta"))
    curves = [_clipped(_curve(n, alpha, beta), float(op.attrs.get("clip", 0.0))) for n in names]
    cells = []
    for d, direction in enumerate(directions):
        own, called = curves[d * per : (d + 1) * per], names[d * per : (d + 1) * per]
        which = {g: 0 for g in gates} | ({"new": 1} if per > 1 else {})
        which |= {"shown": 2} if per > 2 else {}

        def split(a: Floats, at: int = 0, parts: tuple[str, ...] = gates) -> dict[str, Floats]:
            return {
                g: a[(at + i) * hidden : (at + i + 1) * hidden] for i, g in enumerate(parts)
            }

        by_curve = {g: own[i] for g, i in which.items()}
        if "shown" in by_curve:  # clip is for the charges of gates
            by_curve["shown"] = _curve(called[2], [], [])
        cells.append(
            Cell(
                op.op,
                direction,
                hidden,
                split(w[d]),
                split(r[d]),
                split(b[d]),
                split(b[d], many),
                split(p[d], 0, PEEPHOLES),
                by_curve,
                frozenset(g for g, i in which.items() if called[i] in ("Sigmoid", "HardSigmoid")),
                op.op == "GRU" and not op.attrs.get("linear_before_reset", 0),
                bool(op.attrs.get("input_forget", 0)),
            )
        )
    return cells
