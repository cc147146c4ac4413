"""Widths: weights, charges, potentials, thresholds and messages against what a target holds."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from snnkit.fit.result import Range, Violation
from snnkit.graph import Graph, Node
from snnkit.ops.state import membrane_bound
from snnkit.populations import Population
from snnkit.targets import Target

COARSER = "convert it with --target, with fewer levels, or with fewer weight bits"
REMEDIES = {
    "lif": "its leak needs more bits than a chip keeps; use IF neurons, fewer steps, or one step",
    "latch": "accumulate for fewer steps",
}


def charge_bound(p: Population, graph: Graph) -> int:
    """Bound of |sum of what the synapses bring|."""
    nodes = [graph.node[r] for r in p.roots]
    return max(max(-n.lo, n.hi) for n in nodes)


def potential_bound(node: Node) -> int:
    """Bound of the membrane potential at every instant of every order of events."""
    return membrane_bound(node.attrs, node.params, node.peak) if node.op == "lif" else node.peak


def weight_range(p: Population) -> Range:
    """Least and largest weight as stored; (1, 1) for plain wires."""
    weights = [n.params["weight"] for n in p.path if n.op in ("conv", "linear")]
    if not weights:
        return 1, 1
    return min(int(w.min()) for w in weights), max(int(w.max()) for w in weights)


def message_bits(node: Node) -> int:
    """Bits of a graded spike with its sign: a change from any value to any other."""
    return 0 if node.op == "readout" else (node.hi - node.lo).bit_length() + 1


def thresholds(node: Node) -> tuple[Range, Range]:
    """(least, largest) threshold and bias of a neuron; zeros where it has none.

    A threshold of a ladder that every charge has reached, or none can, counts as just out of reach.
    """
    found = [node.params["theta"]] if "theta" in node.params else []
    if "thresholds" in node.params:
        found.append(node.params["thresholds"].clip(-node.peak - 1, node.peak + 1))
    biases = [node.params[k] for k in ("init", "bias") if k in node.params]
    return _range(found), _range(biases)


def _range(arrays: list[np.ndarray[tuple[int, ...], np.dtype[np.int64]]]) -> Range:
    if not arrays:
        return 0, 0
    return min(int(a.min()) for a in arrays), max(int(a.max()) for a in arrays)


def check_numbers(p: Population, graph: Graph, target: Target) -> Iterable[Violation]:
    """Every width of one population that the target does not have, as neurons of kind `bif`."""
    node, name = p.node, p.node.name
    least, most = weight_range(p)
    limit = target.value("weight")
    if limit is not None and max(-least, most) > limit:
        yield Violation(
            name,
            "weight",
            f"{least if -least > most else most:,}",
            f"-{limit}..{limit}",
            "quantise the weights symmetrically",
        )
    limit = target.value("potential")
    if limit is not None and potential_bound(node) > limit:
        yield Violation(
            name,
            "a membrane potential can reach",
            f"{potential_bound(node):,}",
            f"at most {limit:,}",
            REMEDIES.get(node.op, COARSER),
        )
    limit = target.value("message_bits")
    if limit is not None and message_bits(node) > limit:
        yield Violation(
            name,
            "message bits",
            f"{message_bits(node)}",
            f"at most {limit}",
            "a value of so many levels cannot be one graded spike; use fewer levels",
        )
    # in a simulation the neuron is ours, and holds a table
    if node.op == "spike" and node.attrs["kind"] == "ladder" and target.split != "none":
        count = node.params["thresholds"].shape[-1]
        yield Violation(
            name,
            f"a ladder of {count} thresholds; this neuron has one theta",
            "",
            "",
            "convert it with --target or --staircase uniform, or take the thermometer expression",
        )
