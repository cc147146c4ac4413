"""NIR's nodes in the integer vocabulary, by the name of their type."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np

from snnkit.converters.activations import Floats
from snnkit.converters.frames import Refusal
from snnkit.converters.network import Affine, varies_only
from snnkit.converters.nir_time import Clock, equation, neuron
from snnkit.converters.snn_layers import Neuron, reshaped
from snnkit.converters.stepwise import DURING, Value, Walk, binary, lif
from snnkit.errors import RangeOverflow
from snnkit.ops.state import LIF_ARRAYS

FINE = 20
"""Bits below one unit of charge that membrane potentials keep, where 64 bits have room."""
ARRAYS = (
    *("weight", "bias", "scale", "threshold", "r", "tau", "tau_mem", "tau_syn", "w_in"),
    *("v_leak", "v_threshold", "v_reset"),
)


class NirWalk(Walk):
    """Nodes made so far from a NIR graph that steps by `clock`."""

    def __init__(self, weight_bits: int, steps: int, clock: Clock):
        super().__init__(weight_bits, steps, on_grid=True)
        self.clock = clock


def arrays_of(node: Any) -> dict[str, Floats]:
    """The node's float arrays by name; refuses what is not finite."""
    found = {}
    for key in ARRAYS:
        if getattr(node, key, None) is not None:
            found[key] = np.asarray(getattr(node, key), np.float64)
            if not found[key].size or not np.isfinite(found[key]).all():
                raise Refusal(f"'{key}' {found[key].shape} is empty, NaN or infinite")
    return found


def _over(x: Affine, name: str, array: Floats) -> Floats:
    """An array with one number per unit of x, or one for all, as one that broadcasts over x."""
    if array.size == 1:
        return array.reshape(())
    if array.shape != x.shape:
        raise Refusal(f"'{name}' of shape {array.shape} for an input of shape {x.shape}")
    return array


def _sizes(value: Any, d: int, name: str) -> tuple[int, ...]:
    """d integers from one or d numbers."""
    found = np.asarray(value).reshape(-1) if np.ndim(value) < 2 else np.zeros(0)
    if found.size not in (1, d) or found.dtype.kind not in "iu":
        raise Refusal(f"{name} {value!r}; expected 1 or {d} integers")
    return tuple(int(v) for v in np.broadcast_to(found, (d,)))


def _pads(node: Any, kernel: tuple[int, ...], dilations: tuple[int, ...]) -> tuple[int, ...]:
    d = len(kernel)
    if not isinstance(node.padding, str):
        return _sizes(node.padding, d, "padding") * 2
    if node.padding == "valid":
        return (0,) * (2 * d)
    if node.padding != "same" or any(s != 1 for s in _sizes(node.stride, d, "stride")):
        raise Refusal(f"padding {node.padding!r} with stride {node.stride}", "give it in numbers")
    span = [(k - 1) * e for k, e in zip(kernel, dilations, strict=True)]
    return (*(n // 2 for n in span), *(n - n // 2 for n in span))


def _conv(walk: NirWalk, name: str, node: Any, p: dict[str, Floats], value: Value) -> Affine:
    x, weight = value.affine, p["weight"]
    d = 1 if type(node).__name__ == "Conv1d" else 2
    if weight.ndim != d + 2 or len(x.shape) != d + 1:
        raise Refusal(f"weight {weight.shape} for an input of shape {x.shape}")
    if node.input_shape is not None and _sizes(node.input_shape, d, "input_shape") != x.shape[1:]:
        raise Refusal(f"input_shape {node.input_shape} for an input of shape {x.shape}")
    if not varies_only(x.scale, 0):
        raise Refusal("its input has a scale per position", "put neurons in front of it")
    dilations = _sizes(node.dilation, d, "dilation")
    group = int(node.groups)
    attrs = {
        "strides": _sizes(node.stride, d, "stride"),
        "pads": _pads(node, weight.shape[2:], dilations),
        "dilations": dilations,
        "group": group,
    }
    if group < 1 or weight.shape[1] * group != x.shape[0] or len(weight) % group:
        raise Refusal(f"weight {weight.shape}, {node.groups} groups, for {x.shape[0]} channels")
    y = walk.weighted(name, "conv", value, weight, attrs)
    return _biased(walk, y, p, (-1, *(1,) * d))


def _linear(walk: NirWalk, name: str, node: Any, p: dict[str, Floats], value: Value) -> Affine:
    x, weight = value.affine, p["weight"]
    if weight.ndim != 2 or x.shape != weight.shape[1:]:
        raise Refusal(f"weight {weight.shape} for an input of shape {x.shape}", "flatten it first")
    y = walk.weighted(name, "linear", value, weight, {})
    return _biased(walk, y, p, (-1,))


def _biased(walk: NirWalk, y: Affine, p: dict[str, Floats], along: tuple[int, ...]) -> Affine:
    bias = p.get("bias", np.zeros(1)).reshape(-1)
    if bias.size not in (1, y.shape[0]):
        raise Refusal(f"{bias.size} biases for {y.shape[0]} channels")
    return walk.net.affine(y.node, y.scale, y.offset + bias.reshape(along))


def _scale(walk: NirWalk, name: str, node: Any, p: dict[str, Floats], value: Value) -> Affine:
    x = value.affine
    factor = _over(x, "scale", p["scale"])
    return walk.net.affine(x.node, x.scale * factor, x.offset * factor)


def _pool(walk: NirWalk, name: str, node: Any, p: dict[str, Floats], value: Value) -> Affine:
    x = value.affine
    kernel = _sizes(node.kernel_size, 2, "kernel_size")
    pads = _sizes(node.padding, 2, "padding")
    if len(x.shape) != 3 or x.node.hi - x.node.lo > 255:
        raise Refusal(f"an input {x.shape} in {x.node.lo}..{x.node.hi}", "pool spikes (C, H, W)")
    flat = not any(pads) or not x.offset.any()
    if not flat or not varies_only(x.offset, 0) or not varies_only(x.scale, 0):
        raise Refusal("padding of an input with an offset, or a scale per position")
    strides = _sizes(node.stride, 2, "stride")
    attrs = {"kernel": kernel, "strides": strides, "pads": pads * 2, "dilations": (1, 1)}
    made = walk.add(name, "sum_pool", [x.node], {}, attrs, value.when)
    count = kernel[0] * kernel[1]
    divisor = count if type(node).__name__ == "AvgPool2d" else 1
    return walk.net.affine(made, x.scale / divisor, x.offset * (count / divisor))


def _flatten(walk: NirWalk, name: str, node: Any, p: dict[str, Floats], value: Value) -> Affine:
    x = value.affine
    rank = len(x.shape)
    ends = int(node.start_dim), int(node.end_dim)
    first, last = (i + rank if i < 0 else i for i in ends)
    if not 0 <= first <= last < rank:
        raise Refusal(f"start_dim {ends[0]}, end_dim {ends[1]} of an input of shape {x.shape}")
    middle = int(np.prod(x.shape[first : last + 1]))
    shape = (*x.shape[:first], middle, *x.shape[last + 1 :])
    return reshaped(walk, name, value, shape)


def _identity(walk: NirWalk, name: str, node: Any, p: dict[str, Floats], value: Value) -> Affine:
    return value.affine


def _threshold(walk: NirWalk, name: str, node: Any, p: dict[str, Floats], value: Value) -> Affine:
    x = walk.positive(value)
    at = Neuron(0.0, 1.0, _over(x, "threshold", p["threshold"]), False, True)
    return walk.net.affine(walk.add(name, "spike", [x.node], *binary(at, x), DURING), 1.0, 0.0)


def _neuron(walk: NirWalk, name: str, node: Any, p: dict[str, Floats], value: Value) -> Affine:
    x, at = value.affine, walk.clock
    p = {k: _over(x, k, v) for k, v in p.items()}
    cell, gain = neuron(type(node).__name__, p, at, dict(node.metadata))
    held = _held(node, p, x, at)
    if held is not None:
        params, attrs = held
        attrs["steps"] = walk.steps
        # its integers may have no room for so many steps
        with suppress(RangeOverflow):
            made = walk.add(name, "lif", [x.node], params, attrs, DURING)
            return walk.net.affine(made, 1.0, 0.0)
    x = walk.net.affine(x.node, x.scale * gain, x.offset * gain)
    x = walk.positive(Value(x, DURING))
    params, attrs = lif(cell, x, walk.steps, FINE)
    return walk.net.affine(walk.add(name, "lif", [x.node], params, attrs, DURING), 1.0, 0.0)


def _held(
    node: Any, p: dict[str, Floats], x: Affine, at: Clock
) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Arrays and attributes of the lif node that snnkit wrote the NIR node from, out of its
    metadata, where they say what the NIR node says: they fix how its numbers are rounded."""
    held = node.metadata.get("snnkit")
    if not isinstance(held, dict) or set(held) != {*LIF_ARRAYS, "kind", "shift", "steps"}:
        return None
    params = {k: np.asarray(held[k]) for k in LIF_ARRAYS}
    attrs = {"kind": str(held["kind"]), "shift": int(held["shift"])}
    same = not at.exact and at.reset in (None, attrs["kind"]) and (x.scale == 1).all()
    same = same and all(v.dtype.kind == "i" for v in params.values()) and params["gain"].all()
    if not same or not np.allclose(params["bias"] / params["gain"], x.offset, rtol=1e-6):
        return None
    said = equation(params, attrs, at.dt)
    same = set(said) == set(p) and all(bool((said[k] == p[k]).all()) for k in p)
    return (params, attrs) if same else None


def _integrator(walk: NirWalk, name: str, node: Any, p: dict[str, Floats], value: Value) -> Affine:
    x = value.affine
    if x.offset.any():
        raise Refusal("a bias that adds up", "leave the bias out")
    scale = x.scale * _over(x, "r", p["r"]) * walk.clock.dt
    return walk.net.affine(walk.accumulated(name, x), scale, 0.0)


LAYERS: dict[str, Callable[[NirWalk, str, Any, dict[str, Floats], Value], Affine]] = {
    "Affine": _linear,
    "AvgPool2d": _pool,
    "Conv1d": _conv,
    "Conv2d": _conv,
    "CubaLIF": _neuron,
    "Flatten": _flatten,
    "I": _integrator,
    "IF": _neuron,
    "LIF": _neuron,
    "Linear": _linear,
    "Output": _identity,
    "Scale": _scale,
    "SumPool2d": _pool,
    "Threshold": _threshold,
}
