"""NIR in float64, from its equations alone: what the converter and the exporter are compared with.

tau dv/dt = (v_leak - v) + R I and dv/dt = R I, with I constant during a step, solved by forward
Euler or exactly; a spike where v > v_threshold at the end of the step, then v = v_reset, or
v - `reset_by` for nodes whose metadata say so. LIF start at v_leak, IF at v_reset.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np

NEURONS = ("LIF", "IF", "CubaLIF")


def simulate(
    graph: Any, x: np.ndarray, dt: float, exact: bool = False, soft: bool = False
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """x [N, T, *shape] -> values and membrane potentials of every node, [N, T, ...]."""
    order = _order(graph)
    state: dict[str, Any] = {}
    values: dict[str, list[np.ndarray]] = {n: [] for n in order}
    potentials: dict[str, list[np.ndarray]] = {n: [] for n in order}
    for t in range(x.shape[1]):
        now: dict[str, np.ndarray] = {}
        for name in order:
            node, kind = graph.nodes[name], type(graph.nodes[name]).__name__
            if kind == "Input":
                now[name] = x[:, t].astype(np.float64)
            else:
                total = sum(now[a] for a, b in graph.edges if b == name)
                if kind in NEURONS:
                    v, now[name] = _step(node, kind, total, state.get(name), dt, exact, soft)
                    state[name] = v
                    potentials[name].append(v)
                elif kind == "I":
                    state[name] = state.get(name, 0.0) + dt * np.asarray(node.r, float) * total
                    now[name] = state[name]
                else:
                    now[name] = STATELESS[kind](node, total)
            values[name].append(now[name])
    return (
        {k: np.stack(v, 1) for k, v in values.items()},
        {k: np.stack(v, 1) for k, v in potentials.items() if v},
    )


def _order(graph: Any) -> list[str]:
    found: list[str] = []
    while len(found) < len(graph.nodes):
        ready = [
            n
            for n in graph.nodes
            if n not in found and all(a in found for a, b in graph.edges if b == n)
        ]
        assert ready, "a cycle"
        found += ready
    return found


def _step(
    node: Any, kind: str, current: np.ndarray, v: Any, dt: float, exact: bool, soft: bool
) -> tuple[np.ndarray, np.ndarray]:
    get = lambda key: np.asarray(getattr(node, key), np.float64)  # noqa: E731
    if v is None:
        v = get("v_reset") if kind == "IF" else get("v_leak")
    if kind == "CubaLIF":
        assert not exact and np.allclose(get("tau_syn"), dt)  # i does not outlast the step
        current = get("w_in") * current
    if kind == "IF":
        v = v + dt * get("r") * current
    else:
        tau, target = get("tau" if kind == "LIF" else "tau_mem"), get("v_leak") + get("r") * current
        kept = np.exp(-dt / tau) if exact else 1 - dt / tau
        v = target + (v - target) * kept
    fired = v > get("v_threshold")
    lowered = v - node.metadata.get("reset_by", get("v_threshold"))
    soft = soft or node.metadata.get("reset") == "subtract"
    return np.where(fired, lowered if soft else get("v_reset"), v), fired.astype(np.float64)


def _linear(node: Any, x: np.ndarray) -> np.ndarray:
    y = x @ node.weight.astype(np.float64).T
    return y + node.bias.astype(np.float64) if hasattr(node, "bias") else y


def _conv(node: Any, x: np.ndarray) -> np.ndarray:
    weight = node.weight.astype(np.float64)
    d, kernel = weight.ndim - 2, weight.shape[2:]
    stride, dilation = (
        [int(v) for v in np.broadcast_to(v, (d,))] for v in (node.stride, node.dilation)
    )
    if isinstance(node.padding, str) and node.padding == "same":
        total = [(k - 1) * e for k, e in zip(kernel, dilation)]
        margins = [(t // 2, t - t // 2) for t in total]
    elif isinstance(node.padding, str):
        margins = [(0, 0)] * d
    else:
        margins = [(int(p),) * 2 for p in np.broadcast_to(node.padding, (d,))]
    padded = np.pad(x, [(0, 0), (0, 0), *margins])
    sizes = [
        (n - (k - 1) * e - 1) // s + 1
        for n, k, e, s in zip(padded.shape[2:], kernel, dilation, stride)
    ]
    groups = int(node.groups)
    per, out = weight.shape[1], len(weight) // groups
    y = np.zeros((len(x), len(weight), *sizes))
    for taps in itertools.product(*map(range, kernel)):
        at = tuple(
            slice(k * e, k * e + (n - 1) * s + 1, s)
            for k, e, n, s in zip(taps, dilation, sizes, stride)
        )
        seen = padded[(slice(None), slice(None), *at)]
        for g in range(groups):
            rows = slice(g * out, (g + 1) * out)
            part = seen[:, g * per : (g + 1) * per]
            y[:, rows] += np.einsum("nc...,oc->no...", part, weight[(rows, slice(None), *taps)])
    return y + node.bias.astype(np.float64).reshape(-1, *(1,) * d)


def _sum_pool(node: Any, x: np.ndarray) -> np.ndarray:
    kernel, stride, pads = (
        [int(v) for v in np.broadcast_to(v, (2,))]
        for v in (node.kernel_size, node.stride, node.padding)
    )
    padded = np.pad(x, [(0, 0), (0, 0), (pads[0],) * 2, (pads[1],) * 2])
    sizes = [(n - k) // s + 1 for n, k, s in zip(padded.shape[2:], kernel, stride)]
    y = np.zeros((*x.shape[:2], *sizes))
    for i, j in itertools.product(range(sizes[0]), range(sizes[1])):
        a, b = i * stride[0], j * stride[1]
        y[:, :, i, j] = padded[:, :, a : a + kernel[0], b : b + kernel[1]].sum((2, 3))
    return y


def _flatten(node: Any, x: np.ndarray) -> np.ndarray:
    rank = x.ndim - 1
    first, last = (int(i) % rank for i in (node.start_dim, node.end_dim))
    return x.reshape(*x.shape[: first + 1], -1, *x.shape[last + 2 :])


STATELESS: Mapping[str, Any] = {
    "Affine": _linear,
    "AvgPool2d": lambda n, x: _sum_pool(n, x) / np.prod(np.broadcast_to(n.kernel_size, (2,))),
    "Conv1d": _conv,
    "Conv2d": _conv,
    "Flatten": _flatten,
    "Linear": _linear,
    "Output": lambda n, x: x,
    "Scale": lambda n, x: x * n.scale.astype(np.float64),
    "SumPool2d": _sum_pool,
    "Threshold": lambda n, x: (x > n.threshold).astype(np.float64),
}
