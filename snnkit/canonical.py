"""The canonical form of a graph: its structure as plain JSON, and its arrays in order.

The digest is taken of it, and the file keeps it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

if TYPE_CHECKING:
    from snnkit.graph import Boundary, Graph


def describe(graph: Graph) -> dict[str, Any]:
    """The structure without arrays' content, as plain JSON. The file keeps it; the digest too."""
    # one-shot graphs are described as they were before there were steps: same bytes, same digests
    time: dict[str, Any] = {}
    if graph.sweeps:
        time["sweeps"] = [list(pair) for pair in graph.sweeps]
        time["steps"], time["latches"] = graph.steps, dict(sorted(graph.latches.items()))
        time.update({"lengths": graph.lengths} if graph.lengths else {})
        if graph.lengths_dtype != "int32":
            time["lengths_dtype"] = graph.lengths_dtype
    return {
        "nodes": [
            {
                "name": n.name,
                "op": n.op,
                "inputs": list(n.inputs),
                "attrs": dict(n.attrs),
                "params": {k: list(n.params[k].shape) for k in sorted(n.params)},
            }
            for n in graph.nodes
        ],
        "inputs": [_describe_boundary(b) for b in graph.inputs],
        "outputs": [_describe_boundary(b) for b in graph.outputs],
        "meta": dict(sorted(graph.meta.items())),
        **time,
    }


def _describe_boundary(b: Boundary) -> dict[str, Any]:
    return {
        "name": b.name,
        "node": b.node,
        "dtype": b.dtype,
        "dims": list(b.dims),
        "scale": list(b.scale.shape),
        "offset": list(b.offset.shape),
        "post": [dict(sorted(step.items())) for step in b.post],
        **({"batch": b.batch} if b.batch else {}),
        **({"time": b.time} if b.time is not None else {}),
    }


def all_arrays(graph: Graph) -> Iterable[npt.NDArray[Any]]:
    """Every array of the graph, in an order that its structure fixes."""
    for n in graph.nodes:
        yield from (n.params[k] for k in sorted(n.params))
    for b in (*graph.inputs, *graph.outputs):
        yield from (b.scale, b.offset)
