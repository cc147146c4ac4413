"""Layers and neurons of a torch module in the integer vocabulary, by the name of their class."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from snnkit.converters.activations import Floats
from snnkit.converters.frames import Refusal
from snnkit.converters.network import Affine, varies_only


@dataclass(frozen=True)
class Neuron:
    """w <- leak w + gain x with w the potential above the reset potential; fires at or (strict)
    above `threshold`, then w <- w - threshold (soft) or w <- 0."""

    leak: float
    gain: float
    threshold: float
    soft: bool
    strict: bool


def kind_of(module: Any) -> str:
    """The name of the module's class if it is one of torch's or ours: another library's LIF may
    mean something else."""
    known = type(module).__module__.startswith(("torch.nn.", "snnkit.nn."))
    return type(module).__name__ if known else ""


def neuron_of(module: Any) -> Neuron | None:
    """The neuron's numbers in float64; None if the module is none. Raises Refusal for a neuron
    without an integer form."""
    kind = kind_of(module)
    if kind not in ("IF", "LIF", "PLIF", "IIRNeuron", "AdaptiveLIF", "CubaLIF"):
        return None
    if kind in ("AdaptiveLIF", "CubaLIF"):
        raise Refusal("a neuron with two states", "use IF, LIF, PLIF or IIRNeuron")
    leak, gain = 1.0, 1.0
    threshold = module.threshold
    if kind == "IIRNeuron":
        leak, threshold = float(module.leak.detach()), threshold.detach()
    elif kind in ("LIF", "PLIF"):
        rate = 1 / module.tau if kind == "LIF" else float(module.rate.detach())
        leak, gain = 1 - rate, rate if module.decay_input else 1.0
    threshold = float(threshold) - (module.v_reset or 0.0)
    if not 0 <= leak <= 1 or threshold <= 0:
        raise Refusal(
            f"leak {leak:.4g}, threshold {threshold:.4g} above the reset potential",
            "train with a leak in 0..1 and a positive threshold",
        )
    return Neuron(leak, gain, threshold, module.v_reset is None, bool(module.strict))


def _array(tensor: Any) -> Floats:
    return np.asarray(tensor.detach().cpu().double().numpy())


def _pair(value: Any, d: int) -> tuple[int, ...]:
    return (int(value),) * d if isinstance(value, int) else tuple(int(v) for v in value)


def _conv(reader: Any, name: str, module: Any, value: Any) -> Affine:
    if isinstance(module.padding, str) or module.padding_mode != "zeros":
        raise Refusal("padding by name or mode", "give the padding in numbers, mode zeros")
    attrs = {
        "strides": module.stride,
        "pads": (*module.padding, *module.padding),
        "dilations": module.dilation,
        "group": module.groups,
    }
    if not varies_only(value.affine.scale, 0):
        raise Refusal("its input has a scale per position", "put neurons in front of it")
    y = reader.weighted(name, "conv", value, _array(module.weight), attrs)
    return _biased(reader, y, module.bias, (-1, *(1,) * len(module.kernel_size)))


def _linear(reader: Any, name: str, module: Any, value: Any) -> Affine:
    if len(value.affine.shape) != 1:
        raise Refusal(f"an input of shape {value.affine.shape}", "flatten it first")
    y = reader.weighted(name, "linear", value, _array(module.weight), {})
    return _biased(reader, y, module.bias, (-1,))


def _biased(reader: Any, y: Affine, bias: Any, along: tuple[int, ...]) -> Affine:
    if bias is None:
        return y
    found: Affine = reader.net.affine(y.node, y.scale, y.offset + _array(bias).reshape(along))
    return found


def _norm(reader: Any, name: str, module: Any, value: Any) -> Affine:
    x = value.affine
    if module.running_mean is None:
        raise Refusal("batch statistics", "use track_running_stats=True")
    along = (-1, *(1,) * (len(x.shape) - 1))
    factor = 1 / np.sqrt(_array(module.running_var) + module.eps)
    shift = -_array(module.running_mean) * factor
    if module.affine:
        weight = _array(module.weight)
        factor, shift = factor * weight, shift * weight + _array(module.bias)
    factor, shift = factor.reshape(along), shift.reshape(along)
    found: Affine = reader.net.affine(x.node, x.scale * factor, x.offset * factor + shift)
    return found


def _window(module: Any, x: Affine) -> dict[str, Any]:
    d = len(x.shape) - 1
    kernel = _pair(module.kernel_size, d)
    strides = kernel if module.stride is None else _pair(module.stride, d)
    pads = _pair(module.padding, d)
    dilations = _pair(getattr(module, "dilation", 1), d)
    if module.ceil_mode or x.node.hi - x.node.lo > 255:
        raise Refusal("ceil_mode, or an input beyond 8 bits", "pool spikes, without ceil_mode")
    return {"kernel": kernel, "strides": strides, "pads": (*pads, *pads), "dilations": dilations}


def _average(reader: Any, name: str, module: Any, value: Any) -> Affine:
    x = value.affine
    attrs = _window(module, x)
    if any(attrs["pads"]) or module.divisor_override or not varies_only(x.scale, 0):
        raise Refusal("padding or a divisor of its own", "average without padding")
    return _pooled(reader, name, value, attrs, int(np.prod(attrs["kernel"])))


def _global_average(reader: Any, name: str, module: Any, value: Any) -> Affine:
    x = value.affine
    axes = tuple(range(1, len(x.shape)))
    if _pair(module.output_size, 1) not in ((1,), (1, 1)) or not varies_only(x.scale, 0):
        raise Refusal(f"output size {module.output_size}", "use 1")
    count = int(np.prod(x.shape[1:]))
    return _pooled(reader, name, value, {"axes": axes, "keepdims": True}, count)


def _pooled(reader: Any, name: str, value: Any, attrs: dict[str, Any], count: int) -> Affine:
    x = value.affine
    if x.offset.size > 1 and not varies_only(x.offset, 0):
        raise Refusal("an offset per position", "put neurons in front of it")
    node = reader.add(name, "sum_pool", [x.node], {}, attrs, value.when)
    found: Affine = reader.net.affine(node, x.scale / count, x.offset)
    return found


def _max(reader: Any, name: str, module: Any, value: Any) -> Affine:
    x = value.affine
    attrs = _window(module, x)
    if not (varies_only(x.scale, 0) and varies_only(x.offset, 0) and (x.scale > 0).all()):
        raise Refusal("a scale per position", "put neurons in front of it")
    node = reader.add(name, "max_pool", [x.node], {}, attrs, value.when)
    found: Affine = reader.net.affine(node, x.scale, x.offset)
    return found


def _flatten(reader: Any, name: str, module: Any, value: Any) -> Affine:
    x = value.affine
    if module.start_dim != 1 or module.end_dim != -1:
        raise Refusal(f"start_dim {module.start_dim}, end_dim {module.end_dim}", "use Flatten()")
    units = x.node.units
    attrs = {"kind": "reshape", "shape": (units,)}
    node = reader.add(name, "route", [x.node], {}, attrs, value.when)
    scale, offset = (a if a.size == 1 else np.broadcast_to(a, x.shape) for a in (x.scale, x.offset))
    found: Affine = reader.net.affine(node, scale.reshape(-1), offset.reshape(-1))
    return found


LAYERS: dict[str, Callable[[Any, str, Any, Any], Affine]] = {
    "Conv1d": _conv,
    "Conv2d": _conv,
    "Linear": _linear,
    "BatchNorm1d": _norm,
    "BatchNorm2d": _norm,
    "AvgPool1d": _average,
    "AvgPool2d": _average,
    "AdaptiveAvgPool1d": _global_average,
    "AdaptiveAvgPool2d": _global_average,
    "MaxPool1d": _max,
    "MaxPool2d": _max,
    "Flatten": _flatten,
}
