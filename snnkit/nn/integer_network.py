"""An exported network once more in PyTorch: the same integers by a code path of its own.

It reads the nodes of a `snnkit.graph.Graph` (by their attributes; nothing of the graph's own
code is used) and computes with torch's convolutions in float64, which are exact for integers
below 2^53, and int64 membranes. Tests compare its spikes at every layer and step with the
reference, the backends and onnxruntime.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


def each_step(graph: Any) -> frozenset[str]:
    """Names of the nodes that happen in each step; none in a one-shot graph."""
    names: list[str] = []
    at = 0
    for count, direction in graph.sweeps:
        if direction:
            names += [n.name for n in graph.nodes[at : at + count]]
        at += count
    return frozenset(names)


class IntegerNetwork:
    """The network of a graph without latches other than accumulators of a readout.

    Calling it with x, in the layout of the graph's input, returns (output, record): output [N,
    ...] float32; record by node name, int64, [N, T, *shape] for what happens in each step and
    [N, *shape] for the rest.
    """

    def __init__(self, graph: Any):
        self.graph = graph
        self.steps = graph.steps or 1
        self.each_step = each_step(graph)
        self.arrays = {
            n.name: {k: torch.from_numpy(v.astype("int64")) for k, v in n.params.items()}
            for n in graph.nodes
        }

    def __call__(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        b = self.graph.inputs[0]
        node = next(n for n in self.graph.nodes if n.op == "input")
        x = x.float()
        if b.time is not None:
            x = x.movedim((b.batch, b.time), (0, 1))
        scale, offset = torch.tensor(b.scale), torch.tensor(b.offset)
        given = torch.round((x - offset) / scale).clamp(node.lo, node.hi).long()
        record = self._run(node.name, given)
        last = self.graph.outputs[0]
        counts = record[last.node]
        if last.node in self.each_step:
            counts = counts[:, -1]
        return counts.to(torch.int32).float() * torch.tensor(last.scale), record

    def _run(self, source: str, given: Tensor) -> dict[str, Tensor]:
        record: dict[str, Tensor] = {}
        nodes = {n.name: n for n in self.graph.nodes}
        first = [n for n in nodes if n in self.each_step][:1]
        at = list(nodes).index(first[0]) if first else len(nodes)
        before, rest = list(nodes)[:at], list(nodes)[at:]
        values: dict[str, Tensor] = {source: given}
        for name in before:
            if name != source:
                values[name] = self._value(nodes[name], values, values)
        record.update({name: values[name] for name in before})
        trains: dict[str, list[Tensor]] = {name: [] for name in rest if name in self.each_step}
        state = {
            n.name: self.arrays[n.name]["initial"].expand(len(given), *n.shape)
            for n in self.graph.nodes
            if n.op in ("lif", "latch")
        }
        for t in range(self.steps if trains else 0):
            for name in trains:
                timed = name == source
                values[name] = given[:, t] if timed else self._value(nodes[name], values, state)
                trains[name].append(values[name])
            for latch, origin in self.graph.latches.items():
                state[latch] = values[origin]
        record.update({name: torch.stack(train, 1) for name, train in trains.items()})
        for name in rest:
            if name not in trains:
                values[name] = record[name] = self._value(nodes[name], values, state)
        return record

    def _value(self, node: Any, values: dict[str, Tensor], state: dict[str, Tensor]) -> Tensor:
        xs = [values[name] for name in node.inputs]
        p, rule = self.arrays[node.name], getattr(self, f"_{node.op}")
        found: Tensor = rule(node, p, xs, state)
        return found

    def _conv(self, node: Any, p: Any, xs: list[Tensor], state: Any) -> Tensor:
        a, weight = node.attrs, p["weight"].double()
        d = weight.dim() - 2
        sides = [n for i in reversed(range(d)) for n in (a["pads"][i], a["pads"][d + i])]
        convolve = functional.conv1d if d == 1 else functional.conv2d
        x = functional.pad(xs[0].double(), sides)
        y = convolve(x, weight, None, a["strides"], 0, a["dilations"], a["group"])
        return y.round().long()

    def _linear(self, node: Any, p: Any, xs: list[Tensor], state: Any) -> Tensor:
        return functional.linear(xs[0].double(), p["weight"].double()).round().long()

    def _add(self, node: Any, p: Any, xs: list[Tensor], state: Any) -> Tensor:
        return sum((x * p[f"m{i}"] for i, x in enumerate(xs)), torch.zeros(()).long())

    def _pool(self, node: Any, x: Tensor, most: bool) -> Tensor:
        a = node.attrs
        if "axes" in a:
            axes = [axis + 1 for axis in a["axes"]]
            keep = bool(a["keepdims"])
            return x.amax(axes, keep) if most else x.sum(axes, keepdim=keep)
        d = len(a["kernel"])
        sides = [n for i in reversed(range(d)) for n in (a["pads"][i], a["pads"][d + i])]
        fill = torch.iinfo(torch.int64).min if most else 0
        view = functional.pad(x, sides, value=fill) if any(sides) else x
        for i in range(d):
            taps = a["dilations"][i] * (a["kernel"][i] - 1) + 1
            view = view.unfold(2 + i, taps, a["strides"][i])[..., :: a["dilations"][i]]
        axes = list(range(-d, 0))
        return view.amax(axes) if most else view.sum(axes)

    def _sum_pool(self, node: Any, p: Any, xs: list[Tensor], state: Any) -> Tensor:
        return self._pool(node, xs[0], False)

    def _max_pool(self, node: Any, p: Any, xs: list[Tensor], state: Any) -> Tensor:
        return self._pool(node, xs[0], True)

    def _route(self, node: Any, p: Any, xs: list[Tensor], state: Any) -> Tensor:
        return xs[0].reshape(len(xs[0]), *node.shape)

    def _spike(self, node: Any, p: Any, xs: list[Tensor], state: Any) -> Tensor:
        level = torch.div(xs[0] + p["init"], p["theta"], rounding_mode="floor")
        return level.clamp(node.lo, node.hi)

    def _lif(self, node: Any, p: Any, xs: list[Tensor], state: dict[str, Tensor]) -> Tensor:
        leaked = state[node.name] * p["leak"]
        leaked = torch.bitwise_right_shift(leaked, int(node.attrs["shift"]))
        u = leaked + p["gain"] * xs[0] + p["bias"]
        fired = u >= p["theta"]
        soft = node.attrs["kind"] == "soft"
        state[node.name] = u - p["reset"] * fired if soft else torch.where(fired, p["reset"], u)
        return fired.long()

    def _latch(self, node: Any, p: Any, xs: list[Tensor], state: dict[str, Tensor]) -> Tensor:
        return state[node.name]

    def _readout(self, node: Any, p: Any, xs: list[Tensor], state: Any) -> Tensor:
        return xs[0] + p["bias"]
