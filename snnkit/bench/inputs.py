"""What is timed: real samples, or random ones of a given density."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from snnkit.boundary import DTYPES, quantise
from snnkit.errors import UsageError
from snnkit.graph import Boundary, Graph

Array = npt.NDArray[Any]
WORD = 4
"""Channels of one site that the engine handles as one event word."""


def random_inputs(
    graph: Graph,
    density: float,
    count: int,
    seed: int,
    real: Mapping[str, Array] | None = None,
) -> dict[str, Array]:
    """Samples by input name whose units are events with probability `density`, each on its own.

    Values lie on the input's grid: offset + scale * q, q drawn from the levels of the events in
    `real` (samples by input name), or, without it, evenly from lo to hi except 0. Independent
    units are the worst case for an engine that handles 4 channels as one word: at density d such a
    word is active with probability 1 - (1 - d)^4.

    Raises UsageError for a density outside 0..1 and for inputs that are not float.
    """
    if not 0 <= density <= 1:
        raise UsageError(f"density {density}; expected 0 to 1")
    rng = np.random.default_rng(seed)
    made = {}
    for b in graph.inputs:
        if not b.dtype.startswith("float"):
            raise UsageError(f"input '{b.name}' is {b.dtype}; random inputs are float, give real")
        node = graph.node[b.node]
        shape = (count, *node.shape)
        pool = np.array([q for q in range(node.lo, node.hi + 1) if q])
        if real is not None:
            pool = quantise(b, node, real[b.name])
            pool = pool[pool != 0] if pool.any() else np.ones(1, np.int64)
        levels = rng.choice(pool, shape)
        levels[rng.random(shape) >= density] = 0
        # float32 steps like quantise's own, so that it finds the same level again
        x = (levels.astype(np.float32) * b.scale + b.offset).astype(DTYPES[b.dtype])
        wrong = quantise(b, node, x) != levels
        x[wrong] = np.broadcast_to(b.offset, shape)[wrong]
        made[b.name] = np.ascontiguousarray(x)
    return made


def input_density(graph: Graph, x: Mapping[str, Array]) -> tuple[float, float]:
    """(share of input units, share of input words) that are events."""
    units = events = words = active = 0
    for b in graph.inputs:
        levels = _levels(graph, b, x)
        units += levels.size
        events += int(np.count_nonzero(levels))
        channels = levels.shape[1]
        padded = np.pad(levels != 0, [(0, 0), (0, -channels % WORD)] + [(0, 0)] * (levels.ndim - 2))
        grouped = padded.reshape(len(levels), -1, WORD, *levels.shape[2:]).any(axis=2)
        words += grouped.size
        active += int(np.count_nonzero(grouped))
    return events / units, active / words


def _levels(graph: Graph, b: Boundary, x: Mapping[str, Array]) -> Array:
    levels = quantise(b, graph.node[b.node], x[b.name])
    return levels if levels.ndim > 1 else levels[:, None]


def batches(x: Mapping[str, Array], size: int) -> list[dict[str, Array]]:
    """Whole batches of `size` samples, each in memory of its own."""
    count = len(next(iter(x.values()))) // size * size
    return [
        {k: np.ascontiguousarray(v[i : i + size]) for k, v in x.items()}
        for i in range(0, count, size)
    ]
