"""A graph as flat integer arrays: all that a Lava worker knows of it.

Every sweep is a list of nodes of seven kinds (input, latch, linear, spike, lif, max_pool,
product). What is linear (conv, linear, add, sum_pool, route, readout) is a sparse integer matrix
per input; where units lie, and in which order, is decided here. Values are flat, in C order.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from snnkit.graph import Graph, Node
from snnkit.ops import TABLE
from snnkit.ops.arithmetic import multiplier
from snnkit.ops.op import Ints
from snnkit.ops.spike import ladder_rows
from snnkit.ops.state import membrane_bound
from snnkit.ops.synapses import fan_out, windows
from snnkit.sweeps import DOORS, RESTING, spike_levels

Array = npt.NDArray[Any]

MEMBRANE_BITS = 24
"""Membrane potentials, charges and messages of a chip, with their sign."""
MOST_SYNAPSES = 2**27
"""Of one layer, each weight counted wherever it is used."""
MOST_TIME_STEPS = 2**31 - 1
LINEAR = ("conv", "linear", "add", "sum_pool", "route", "readout")
LEAKY = ("leak", "gain", "bias", "theta", "reset", "initial")
PROCESSES = ("input", "latch", "spike", "lif", "max_pool", "product")
"""Ops that are a Lava process of their own; all others are on the way between two of them."""


def problems(graph: Graph, bits: int = MEMBRANE_BITS) -> list[tuple[str, str]]:
    """(node, reason) for everything that does not fit: width of charges and membrane potentials,
    and the number of synapses."""
    found = []
    limit = 2 ** (bits - 1)
    expected = f"expected below 2^{bits - 1} = {limit}"
    for n in graph.nodes:
        reach = max(n.peak, n.hi, -n.lo)
        if reach >= limit:
            found.append((n.name, f"a charge can reach {reach}; {expected}"))
            continue
        if n.op == "lif":
            bound = membrane_bound(n.attrs, n.params, n.peak)
            theta = int(np.abs(n.params["theta"]).max())
            if max(bound, theta) >= limit:
                text = f"its membrane potential can reach {bound} in {n.attrs['steps']} steps"
                found.append((n.name, f"{text}, theta {theta}; {expected}"))
        count = synapse_count(graph, n)
        if count > MOST_SYNAPSES:
            found.append((n.name, f"{count} synapses; expected at most {MOST_SYNAPSES}"))
    return found


def synapse_count(graph: Graph, node: Node) -> int:
    """Synapses of a node that is a matrix, at most."""
    if node.op == "conv":
        return node.units * int(np.prod(node.params["weight"].shape[1:]))
    if node.op == "linear":
        return node.units * int(node.params["weight"].shape[1])
    if node.op == "sum_pool" and "axes" not in node.attrs:
        return node.units * int(np.prod(node.attrs["kernel"]))
    return sum(graph.node[s].units for s in node.inputs) if node.op in LINEAR else 0


def describe(graph: Graph, name: str) -> tuple[list[dict[str, Any]], dict[str, Array]]:
    """The sweeps as plain JSON, and their arrays by `name.node.array`.

    A node says its number in the graph (`id`) and in its window (`at`), its inputs' numbers in
    the window, and the names of its arrays.
    """
    ids = {n.name: i for i, n in enumerate(graph.nodes)}
    sweeps, arrays = [], {}
    for k, (own, direction) in enumerate(graph.parts):
        window = graph.windows[k]
        at = {n.name: i for i, n in enumerate(window.nodes)}
        levels, rests = spike_levels(window), values_at_rest(window)
        nodes = []
        for n in window.nodes:
            original = graph.node[n.name]
            described = {
                "id": ids[n.name],
                "at": at[n.name],
                "name": n.name,
                "kind": _kind(n),
                "units": n.units,
                "inputs": [at[s] for s in n.inputs],
                "widths": [window.node[s].units for s in n.inputs],
                "direction": graph.direction(n.name),
                "own": graph.sweep_of[n.name] == k,
                "level": levels.get(n.name, 0),
                "readout": n.op == "readout",
            }
            found = _arrays(n, window)
            if original.op == "latch" and original in own:
                described.update(kind="latch", source=at[graph.latches[n.name]])
                if original.inputs:
                    described["initial_of"] = ids[original.inputs[0]]
                else:
                    found["initial"] = _flat(original.params["initial"], n)
            if original.op in DOORS and original in own:
                described["held_by"] = ids[original.inputs[0]]
            if n.op == "spike":
                described.update(lo=n.lo, hi=n.hi)
            if n.op == "lif":
                described.update(shift=n.attrs["shift"], hard=n.attrs["kind"] == "hard")
            if rests[n.name].any():
                found["rest"] = rests[n.name].reshape(-1)
            described["arrays"] = sorted(found)
            arrays.update({f"{name}.{ids[n.name]}.{key}": value for key, value in found.items()})
            nodes.append(described)
        sweeps.append({"direction": direction, "nodes": nodes})
    return sweeps, arrays


def _kind(node: Node) -> str:
    return "linear" if node.op in LINEAR else node.op


def values_at_rest(window: Graph) -> Mapping[str, Ints]:
    """What each node of a window holds before anything is injected."""
    values: dict[str, Ints] = {}
    for n in window.nodes:
        sources = [values[s] for s in n.inputs]
        op = TABLE[n.op]
        # a linear op of zeros is zero, and the dense rule of a large convolution takes long
        if n.op in RESTING or (op.linear and not any(s.any() for s in sources)):
            values[n.name] = np.zeros((1, *n.shape), np.int64)
        else:
            values[n.name] = op.dense(n, sources).astype(np.int64)
    return values


def _arrays(node: Node, window: Graph) -> dict[str, Array]:
    if node.op in LINEAR:
        found = {}
        for i in range(len(node.inputs)):
            for key, value in zip(
                ("data", "indices", "indptr"), matrix(node, window, i), strict=True
            ):
                found[f"{key}{i}"] = value
        if node.op in ("conv", "linear"):
            found["fan_out"] = fan_out(node, window.node[node.inputs[0]]).reshape(-1)
        return found
    if node.op in ("max_pool", "product"):
        return {"reads": (_reads(node, window) - 1).astype(np.int32)}
    if node.op == "lif":
        return {key: _flat(node.params[key], node) for key in LEAKY}
    if node.op != "spike":
        return {}
    init = _flat(node.params["init"], node)
    if node.attrs["kind"] == "uniform":
        return {"init": init, "theta": _flat(node.params["theta"], node)}
    row, thresholds, values = ladder_rows(node)
    narrow = values.astype(np.int16)
    return {"init": init, "row": row.reshape(-1), "thresholds": thresholds, "values": narrow}


def _flat(array: Array, node: Node) -> Array:
    return np.broadcast_to(array, node.shape).reshape(-1)


def _places(node: Node) -> Ints:
    """1 + where each unit lies; 0 means no place, as the zero outside a window does."""
    return np.arange(1, node.units + 1).reshape(node.shape)


def _reads(node: Node, window: Graph) -> Ints:
    """[units, K]: which places each output unit reads, for ops without weights."""
    sources = [_places(window.node[s]) for s in node.inputs]
    if node.op == "product":
        full = [np.broadcast_to(s, node.shape).reshape(-1) for s in sources]
        return np.stack(full, axis=1)
    a = node.attrs
    if "axes" in a:
        reads = np.moveaxis(sources[0], a["axes"], range(-len(a["axes"]), 0))
    else:
        reads = windows(sources[0][None], a["kernel"], a["strides"], a["pads"], a["dilations"])
    return reads.reshape(node.units, -1)


def matrix(node: Node, window: Graph, i: int) -> tuple[Array, Array, Array]:
    """Input i of a linear node as a matrix [units, units of the input], compressed by rows:
    weights, columns, and where each row begins."""
    reads, weights = _weighted_reads(node, window, i)
    present = (reads > 0) & (weights != 0)
    counts = present.sum(axis=1)
    begins = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    data = np.broadcast_to(weights, reads.shape)[present]
    return data, (reads[present] - 1).astype(np.int32), begins


def _weighted_reads(node: Node, window: Graph, i: int) -> tuple[Ints, Array]:
    """[units, K] places and weights of what each output unit sums up."""
    source = window.node[node.inputs[i]]
    places = _places(source)
    if node.op == "conv":
        return _convolution(node, places)
    if node.op == "linear":
        weight = node.params["weight"]
        shape = (source.units // weight.shape[1], *weight.shape)
        reads = np.broadcast_to(places.reshape(-1, 1, weight.shape[1]), shape)
        return reads.reshape(node.units, -1), np.broadcast_to(weight, shape).reshape(node.units, -1)
    if node.op == "add":
        reads = np.broadcast_to(places, node.shape).reshape(-1, 1)
        return reads, _flat(node.params[multiplier(i)], node)[:, None]
    if node.op == "sum_pool":
        return _reads(node, window), np.ones((1, 1), np.int8)
    if node.op == "readout":
        return places.reshape(-1, 1), np.ones((1, 1), np.int8)
    others = [_places(window.node[s]) * (k == i) for k, s in enumerate(node.inputs)]
    routed = TABLE["route"].dense(node, [o[None] for o in others])
    return routed.reshape(-1, 1), np.ones((1, 1), np.int8)


def _convolution(node: Node, places: Ints) -> tuple[Ints, Array]:
    a, weight = node.attrs, node.params["weight"]
    kernel, group = weight.shape[2:], int(a["group"])
    d, width = len(kernel), weight.shape[0] // group
    view = windows(places[None], kernel, a["strides"], a["pads"], a["dilations"])[0]
    positions = int(np.prod(view.shape[1 : 1 + d]))
    taps = np.moveaxis(view.reshape(group, weight.shape[1], positions, -1), 1, 2)
    taps = taps.reshape(group, 1, positions, -1)
    shape = (group, width, positions, taps.shape[-1])
    weights = np.broadcast_to(weight.reshape(group, width, 1, -1), shape)
    return np.broadcast_to(taps, shape).reshape(node.units, -1), weights.reshape(node.units, -1)
