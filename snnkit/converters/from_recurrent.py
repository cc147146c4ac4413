"""A `snnkit.models.crnn.QuantisedCRNN` as a graph: the integers that training used.

Every element of a sequence is one acyclic window; states pass from window to window through
latches. The front and the first layer are one sweep, every further layer and every backward
direction a sweep of its own, the dense head the last (direction 0, or inside the last sweep
where each element has an output or outputs are summed).

Nodes of a layer, by their names behind "layer<i>." (backward: "back<i>."): linear nodes
"x.<gate>" and "h.<gate>", an add "<gate>.charge" on the layer's grid, a spike "<gate>";
products, their adds, and the spike "state", which the latch "before" holds.
"""

from __future__ import annotations

import hashlib
import sys
from typing import Any

import numpy as np
import numpy.typing as npt

import snnkit
from snnkit.errors import BadCalibration
from snnkit.graph import Boundary, Graph, Node, frozen, make_node

Array = npt.NDArray[Any]
ONE = np.int32(1)


def is_recurrent(model: Any) -> bool:
    """Whether `model` is a QuantisedCRNN; torch is not imported for the answer."""
    module = sys.modules.get("snnkit.models.crnn")
    return module is not None and isinstance(model, module.QuantisedCRNN)


def convert_recurrent(model: Any, samples: Any = None) -> Graph:
    """The graph of a QuantisedCRNN for sequences of `model.steps` elements.

    Every spiking node has the name that `model.counts` uses. The input is "x" [batch, T, *shape],
    the output "y". `samples`, if given, are only checked against it.

    Raises BadCalibration where the samples have another shape, RangeOverflow where an integer
    leaves 32 bits.
    """
    import torch

    shape = (model.steps, *model.shape)
    if samples is not None and tuple(np.shape(samples))[1:] != shape:
        raise BadCalibration(f"samples of shape {np.shape(samples)}; expected (N, *{shape})")
    with torch.no_grad():
        graph = _Export(model).graph()
    graph.check()
    return graph


def _whole(tensor: Any) -> Array:
    return np.asarray(tensor.detach().numpy()).astype(np.int64)


class _Export:
    """One conversion under way."""

    def __init__(self, model: Any):
        self.model = model
        self.nodes: list[Node] = []
        self.latches: dict[str, str] = {}
        self.sweeps: list[tuple[int, int]] = []
        self.begun = 0

    def add(self, name: str, op: str, inputs: Any = (), params: Any = None, **attrs: Any) -> Node:
        node = make_node(name, op, inputs, params, attrs)
        self.nodes.append(node)
        return node

    def close(self, direction: int) -> None:
        """End the sweep under way."""
        if len(self.nodes) > self.begun:
            self.sweeps.append((len(self.nodes) - self.begun, direction))
            self.begun = len(self.nodes)

    def latch(self, name: str, like: Node, source: str = "", **attrs: Any) -> Node:
        bounds = {"lo": like.lo, "hi": like.hi, **attrs}
        node = self.add(name, "latch", (), {"initial": np.int32(0)}, shape=like.shape, **bounds)
        self.latches[name] = source or like.name
        return node

    def graph(self) -> Graph:
        import torch

        from snnkit.nn.recurrent import Counts

        model = self.model
        x = self.add("x", "input", shape=model.shape, lo=model.grid.lo, hi=model.grid.hi)
        reading = model.inputs(torch.zeros(1, model.steps, *model.shape))
        node, reading = self.front(x, reading)
        for i, directions in enumerate(model.layers):
            found = []
            for layer in directions:
                label = f"{'back' if layer.reverse else 'layer'}{i}"
                found.append(self.layer(label, layer, node, layer.integers(reading)))
                if layer.reverse or len(directions) > 1 or i + 1 < len(model.layers):
                    self.close(-1 if layer.reverse else 1)
            state = directions[0](reading)
            counts = state.counts.repeat(1, 1, len(directions))
            reading = Counts(counts, state.scale, state.lo, state.hi)
            last = i + 1 == len(model.layers)
            if len(found) > 1 and not (last and model.readout == "last"):
                node = self.add(f"layer{i}.both", "route", found, kind="concat", axis=0)
            else:
                node = found[0]
        return self.head(found, node, reading, x)

    def front(self, node: Node, reading: Any) -> tuple[Node, Any]:
        """Delay lines and convolutions, and what the recurrent layers read."""
        model = self.model
        if model.front and len(model.shape) == 1:
            shape = (1, *model.shape)
            node = self.add("x.row", "route", (node,), kind="reshape", shape=shape)
            reading = type(reading)(reading.counts.unsqueeze(2), *_scaling(reading))
        for i, layer in enumerate(model.front):
            whole, bias, theta, _ = (_whole(a) for a in layer.integers(reading))
            f, label = layer.front, f"front{i}"
            node = self.delayed(label, node, f)
            # channels of the oldest element first
            weight = whole.transpose(0, 2, 1, 3).reshape(len(whole), -1, whole.shape[3])
            attrs = {"strides": (f.stride,), "pads": (f.padding,) * 2, "dilations": (1,)}
            node = self.add(f"{label}.conv", "conv", (node,), {"weight": weight}, group=1, **attrs)
            params = {"init": (bias + theta // 2)[:, None], "theta": theta[:, None]}
            bounds = {"kind": "uniform", "lo": 0, "hi": layer.level.hi}
            node = self.add(label, "spike", (node,), params, **bounds)
            reading = layer(reading)
        if len(node.shape) > 1:
            node = self.add("x.flat", "route", (node,), kind="reshape", shape=(node.units,))
        return node, type(reading)(reading.counts.flatten(2), *_scaling(reading))

    def delayed(self, label: str, node: Node, f: Any) -> Node:
        """[context * C, W]: the elements that a front layer sees, the oldest first."""
        if f.context == 1:
            return node
        if f.dilation > 1:
            seen = [self.register(label, node, f), node]
        else:
            seen = [node]
            for back in range(1, f.context):
                seen.insert(0, self.latch(f"{label}.back{back}", node, seen[0].name))
        return self.add(f"{label}.context", "route", seen, kind="concat", axis=0)

    def register(self, label: str, node: Node, f: Any) -> Node:
        """[(context - 1) * C, W]: every f.dilation-th element of a shift register, which is one
        latch for the last f.span elements.

        A chain of latches would have a node for each of them, most of which nothing else reads.
        """
        units, size = node.units, node.units * f.span
        bounds = {"shape": (size,), "lo": node.lo, "hi": node.hi}
        past = self.add(f"{label}.past", "latch", (), {"initial": np.int32(0)}, **bounds)
        flat = self.add(f"{label}.new", "route", (node,), kind="reshape", shape=(units,))
        rest = self.pick(f"{label}.younger", past, np.arange(units, size))
        line = self.add(f"{label}.line", "route", (rest, flat), kind="concat", axis=0)
        self.latches[past.name] = line.name
        places = np.arange(size).reshape(f.span, *node.shape)[:: f.dilation]
        return self.pick(f"{label}.taps", past, places.reshape(-1, *node.shape[1:]))

    def pick(self, name: str, node: Node, places: Array) -> Node:
        index = {"index": places.astype(np.int32)}
        return self.add(name, "route", (node,), index, kind="index", shape=places.shape)

    def layer(self, label: str, layer: Any, x: Node, n: Any) -> Node:
        """The hidden state's spike node."""
        state = (layer.hidden,)
        before = self.add(
            f"{label}.before",
            "latch",
            (),
            {"initial": np.int32(0)},
            shape=state,
            lo=layer.lo,
            hi=layer.levels.state,
        )
        part = _Layer(self, label, layer, x, before, n)
        node = {"gru": part.gru, "lstm": part.lstm}.get(layer.kind, part.rnn)()
        self.latches[before.name] = node.name
        return node

    def head(self, found: list[Node], node: Node, reading: Any, x: Node) -> Graph:
        model = self.model
        times = model.steps if model.readout == "mean" else 1
        whole, bias, unit = model.head.integers(reading.scale, times)
        weight, name = _whole(whole), "head"
        if model.readout == "last":
            self.close(-1 if len(found) > 1 else 1)
            if len(found) > 1:
                node = self.add("last", "route", found, kind="concat", axis=0)
        node = self.add(name, "linear", (node,), {"weight": weight})
        if model.readout == "mean":
            bounds = {"lo": times * node.lo, "hi": times * node.hi, "steps": times}
            before = self.latch("sum.before", node, "sum", **bounds)
            node = self.add("sum", "add", (before, node), {"m0": ONE, "m1": ONE})
        y = self.add("y", "readout", (node,), {"bias": _whole(bias)})
        self.close({"last": 0}.get(model.readout, 1))
        dims: tuple[int | str, ...] = ("batch", model.steps, *model.shape)
        none = frozen(np.float32(0))
        scale = frozen((unit / times).float().numpy())
        scale_x = frozen(model.grid.scale.numpy())
        each = model.readout == "each"
        lead: tuple[int | str, ...] = ("batch", model.steps) if each else ("batch",)
        time = 1 if each else None
        return Graph(
            tuple(self.nodes),
            (Boundary("x", x.name, "float32", dims, scale_x, none, time=1),),
            (Boundary("y", y.name, "float32", (*lead, *y.shape), scale, none, time=time),),
            self.meta(),
            tuple(self.sweeps),
            model.steps,
            self.latches,
        )

    def meta(self) -> dict[str, str]:
        state = hashlib.sha256()
        for name, tensor in self.model.state_dict().items():
            state.update(name.encode() + tensor.detach().numpy().tobytes())
        return {
            "version": snnkit.__version__,
            "source": state.hexdigest(),
            "quantisation": str(self.model.levels),
            "encoding": "s-analog: an element's whole charge at its start",
        }


def _scaling(reading: Any) -> tuple[Any, int, int]:
    return reading.scale, reading.lo, reading.hi


class _Layer:
    """The nodes of one recurrent layer."""

    def __init__(self, export: _Export, label: str, layer: Any, x: Node, before: Node, n: Any):
        self.export, self.label, self.layer = export, label, layer
        self.x, self.before, self.n = x, before, n
        self.levels = layer.levels

    def add(self, name: str, op: str, inputs: Any, params: Any = None, **attrs: Any) -> Node:
        return self.export.add(f"{self.label}.{name}", op, inputs, params, **attrs)

    def rows(self, gate: str) -> slice:
        at = self.layer.gates.index(gate) * self.layer.hidden
        return slice(at, at + self.layer.hidden)

    def linear(self, gate: str, source: str) -> Node:
        weight = _whole(self.n.wx if source == "x" else self.n.wh)[self.rows(gate)]
        node = self.x if source == "x" else self.before
        return self.add(f"{source}.{gate}", "linear", (node,), {"weight": weight})

    def charge(self, gate: str) -> Node:
        """What x and h give to a gate, on the grid."""
        at, n = self.rows(gate), self.n
        params = {"m0": _whole(n.mx)[at], "m1": _whole(n.mh)[at]}
        both = (self.linear(gate, "x"), self.linear(gate, "h"))
        return self.add(f"{gate}.charge", "add", both, params)

    def curve(self, name: str, charge: Node, curve: str, grid: int, init: Any = 0) -> Node:
        from snnkit.nn.ladders import ladder, lowest

        levels = self.levels.gate if curve == "sigmoid" else self.levels.state
        params = {"init": np.asarray(init, np.int64), "thresholds": ladder(curve, levels, grid)}
        bounds = {"kind": "ladder", "lo": lowest(curve, levels), "hi": levels}
        return self.add(name, "spike", (charge,), params, **bounds)

    def uniform(self, name: str, charge: Node, theta: int, lo: int, hi: int, init: Any = 0) -> Node:
        params = {"init": np.asarray(init, np.int64) + theta // 2, "theta": np.int64(theta)}
        return self.add(name, "spike", (charge,), params, kind="uniform", lo=lo, hi=hi)

    def gate(self, gate: str, curve: str = "sigmoid") -> Node:
        bias = _whole(self.n.bias)[self.rows(gate)]
        return self.curve(gate, self.charge(gate), curve, self.n.grid, bias)

    def rnn(self) -> Node:
        if self.layer.kind == "tanh":
            return self.gate("state", "tanh")
        theta, bias = int(self.n.theta), _whole(self.n.bias)
        charge = self.charge("state")
        return self.uniform("state", charge, theta, 0, self.levels.state, bias)

    def gru(self) -> Node:
        n, k, size, at = self.n, self.levels.gate, self.levels.state, self.rows("new")
        reset, keep = self.gate("reset"), self.gate("keep")
        back = self.linear("new", "h")
        back = self.add("aside.charge", "add", (back,), {"m0": _whole(n.mh)[at]})
        inner, theta = self.levels.inner, int(n.theta)
        aside = self.uniform("aside", back, theta, -inner, inner, _whole(n.bias_h)[at])
        gated = self.add("gated", "product", (reset, aside))
        share = np.int64(self.layer.product_multiplier(n.theta))
        params = {"m0": _whole(n.mx)[at], "m1": share}
        charge = self.add("new.charge", "add", (self.linear("new", "x"), gated), params)
        new = self.curve("new", charge, "tanh", n.grid, _whole(n.bias)[at])
        apart = self.add("apart", "add", (self.before, new), {"m0": ONE, "m1": -ONE})
        kept = self.add("kept", "product", (keep, apart))
        charge = self.add("state.charge", "add", (new, kept), {"m0": np.int64(k), "m1": ONE})
        return self.uniform("state", charge, k, -size, size)

    def lstm(self) -> Node:
        from snnkit.nn.recurrent import CELL_PARTS

        n, k, size, inner = self.n, self.levels.gate, self.levels.state, self.levels.inner
        enter, forget = self.gate("in"), self.gate("forget")
        new, out = self.gate("new", "tanh"), self.gate("out")
        shape = (self.layer.hidden,)
        zero, m = {"initial": np.int32(0)}, int(n.theta)
        name = "cell.before"
        before = self.add(name, "latch", (), zero, shape=shape, lo=-inner, hi=inner)
        both = (
            self.add("kept", "product", (forget, before)),
            self.add("entered", "product", (enter, new)),
        )
        parts = {"m0": np.int64(m), "m1": np.int64(CELL_PARTS)}
        charge = self.add("cell.charge", "add", both, parts)
        cell = self.uniform("cell", charge, m * k, -inner, inner)
        self.export.latches[before.name] = cell.name
        shown = self.curve("shown", charge, "tanh", self.layer.cell_grid)
        product = self.add("state.charge", "product", (out, shown))
        return self.uniform("state", product, k, -size, size)
