"""One node of a graph as one node of NIR; raises Refusal for what NIR has no word for."""

from __future__ import annotations

from typing import Any

import numpy as np

from snnkit.converters.activations import Floats
from snnkit.converters.frames import Refusal
from snnkit.converters.network import compress
from snnkit.converters.nir_time import equation
from snnkit.graph import Node

SOFT = "a soft reset, where NIR resets to v_reset (metadata: reset, reset_by)"
ROUNDS = "a membrane potential that is rounded down each step; NIR's is a real number"
STARTS = "a membrane potential that starts at another value (metadata: initial)"
LEVELS = "bipolar neurons, IF in NIR: not the same elsewhere (metadata: staircase)"


def exact(array: Any, shape: tuple[int, ...]) -> Floats:
    """The array for every unit, in float32 where that holds each number, else float64."""
    full = np.array(np.broadcast_to(np.asarray(array, np.float64), shape))
    single = full.astype(np.float32)
    same = bool((single.astype(np.float64) == full).all())
    return np.asarray(single if same else full)


def synapses(
    nir: Any, node: Node, source: tuple[int, ...], factor: Floats, bias: Floats | None
) -> Any:
    """conv or linear with rows multiplied by `factor`, and a bias per row."""
    weight = node.params["weight"].astype(np.float64)
    if node.op == "linear" and len(source) != 1:
        raise Refusal(f"a linear layer on an input of shape {source}", "flatten it first")
    rows = weight.shape[0]
    lead = (rows, *(1,) * (len(node.shape) - 1))
    for array, what in ((factor, "multipliers"), (bias, "biases")):
        if array is not None and np.broadcast_shapes(array.shape, lead) != lead:
            raise Refusal(f"{what} that differ within a channel", "use one per channel")
    weight = weight * np.broadcast_to(factor, lead).reshape(-1, *(1,) * (weight.ndim - 1))
    added = None if bias is None else exact(bias, lead).reshape(-1)
    if node.op == "linear":
        weight = exact(weight, weight.shape)
        return nir.Linear(weight) if added is None else nir.Affine(weight, added)
    d = len(source) - 1
    pads = node.attrs["pads"]
    if pads[:d] != pads[d:]:
        raise Refusal(f"pads {pads} that differ between both sides", "pad both sides alike")
    one = d == 1
    strides, padding, dilations = (
        int(v[0]) if one else np.array(v)
        for v in (node.attrs["strides"], pads[:d], node.attrs["dilations"])
    )
    return (nir.Conv1d if one else nir.Conv2d)(
        input_shape=source[1] if one else np.array(source[1:]),
        weight=exact(weight, weight.shape),
        stride=strides,
        padding=padding,
        dilation=dilations,
        groups=node.attrs["group"],
        bias=np.zeros(rows, np.float32) if added is None else added,
    )


def lif(nir: Any, node: Node, dt: float) -> tuple[Any, Floats, tuple[str, ...]]:
    """(LIF or IF, the current that its bias is, what has to be told)."""
    p, attrs = node.params, node.attrs
    one = 2 ** attrs["shift"]
    if not p["gain"].all():
        raise Refusal("a gain of zero", "leave silent neurons out")
    leaks = p["leak"] < one
    if leaks.any() and not leaks.all():
        raise Refusal("neurons that leak beside neurons that do not", "split the layer")
    arrays = {k: exact(v, node.shape) for k, v in equation(p, attrs, dt).items()}
    made = (nir.LIF if leaks.any() else nir.IF)(**arrays)
    unit = np.abs(p["gain"])
    held = {k: np.atleast_1d(v) for k, v in p.items()}
    made.metadata["snnkit"] = {**held, **{k: attrs[k] for k in ("kind", "shift", "steps")}}
    notes = [ROUNDS] if _rounds(node) else []
    if attrs["kind"] == "soft":
        made.metadata |= {"reset": "subtract", "reset_by": exact(p["reset"] / unit, node.shape)}
        notes.append(SOFT)
    # NIR does not say where a potential starts: readers start at rest, or at v_reset
    if p["initial"].any() or (attrs["kind"] == "hard" and not leaks.any() and p["reset"].any()):
        made.metadata["initial"] = exact(p["initial"] / unit, node.shape)
        notes.append(STARTS)
    return made, compress(p["bias"] / p["gain"], len(node.shape)), tuple(notes)


def _rounds(node: Node) -> bool:
    """Whether floor(v leak / 2^shift) can lose anything within the node's steps."""
    p, shift = node.params, node.attrs["shift"]
    if np.isin(p["leak"], (0, 2**shift)).all():
        return False
    # more bits than this would not fit the arrays themselves
    kept = 2 ** min(shift * (node.attrs["steps"] - 1), 62)
    return any((p[k] % kept).any() for k in ("gain", "bias", "reset", "initial"))


def spike(nir: Any, node: Node) -> tuple[Any, tuple[str, ...]]:
    """Threshold for one level; IF with the staircase in its metadata for several."""
    p, attrs = node.params, node.attrs
    if attrs["kind"] == "uniform" and (attrs["lo"], attrs["hi"]) == (0, 1):
        level = p["theta"].astype(np.float64) - p["init"] - 0.5
        return nir.Threshold(exact(level, node.shape)), ()
    if attrs["kind"] == "uniform":
        theta = p["theta"]
    else:  # the least charge with a positive value
        steps = p["thresholds"].astype(np.float64)
        values = p.get("values", np.arange(node.lo, node.lo + steps.shape[-1] + 1))
        first = np.argmax(np.broadcast_to(values, (*steps.shape[:-1], steps.shape[-1] + 1)) > 0, -1)
        theta = np.take_along_axis(steps, np.maximum(first - 1, 0)[..., None], -1)[..., 0]
        theta = theta - p["init"]
    ones, zero = np.ones(node.shape, np.float32), np.zeros(node.shape, np.float32)
    made = nir.IF(r=ones, v_threshold=exact(theta, node.shape), v_reset=zero)
    held = {k: np.atleast_1d(v) for k, v in p.items()}
    made.metadata |= {"reset": "subtract", "staircase": {**held, **dict(attrs)}}
    return made, (LEVELS,)


def integrator(nir: Any, node: Node, dt: float) -> Any:
    return nir.I(np.full(node.shape, 1 / dt))


def pooled(nir: Any, node: Node, source: tuple[int, ...]) -> Any:
    """SumPool2d over windows, or over all of (C, H, W)'s space."""
    a = node.attrs
    if "axes" in a:
        if len(source) != 3 or a["axes"] != (1, 2) or not a["keepdims"]:
            raise Refusal(f"a sum over axes {a['axes']} of {source}", "keep (C, 1, 1)")
        kernel = np.array(source[1:])
        return nir.SumPool2d(kernel_size=kernel, stride=kernel, padding=np.zeros(2, np.int64))
    d = len(a["kernel"])
    if d != 2 or set(a["dilations"]) != {1} or a["pads"][:d] != a["pads"][d:]:
        raise Refusal(
            f"windows {a['kernel']} with dilations {a['dilations']} and pads {a['pads']}",
            "pool (C, H, W) without dilations and padded alike on both sides",
        )
    sizes = (np.array(a[k]) for k in ("kernel", "strides"))
    return nir.SumPool2d(*sizes, padding=np.array(a["pads"][:d]))


def flattened(nir: Any, node: Node, source: tuple[int, ...]) -> Any:
    """Flatten, for a reshape that merges axes side by side."""
    if node.attrs["kind"] == "reshape":
        for first in range(len(source)):
            for last in range(first, len(source)):
                merged = int(np.prod(source[first : last + 1]))
                if (*source[:first], merged, *source[last + 1 :]) == node.shape:
                    end = last if last < len(source) - 1 else -1
                    return nir.Flatten({"input": np.array(source)}, first, end)
    raise Refusal(f"a {node.attrs['kind']} of {source} to {node.shape}", "flatten axes instead")
