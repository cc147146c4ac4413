"""What a node of a traced torch model does, whichever way it was written: module, function, method.

Every row maps to a `Step`. A function's row has the function's own parameters, so that Python
binds the arguments.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from snnkit.converters.frames import Refusal
from snnkit.nn import curves

SUPPORTED = (
    "supported are Conv1d/2d, Linear, BatchNorm1d/2d, ReLU, ReLU6, LeakyReLU, Hardtanh, Sigmoid, "
    "Tanh, GELU, SiLU, Hardswish, max and average pooling, flatten, reshape, concat, add, sub, "
    "arithmetic with numbers, dropout, and softmax at the output"
)


@dataclass(frozen=True)
class Step:
    """kind : what is done. sources : the nodes it reads. options : by kind, see `prepare`."""

    kind: str
    sources: tuple[Any, ...]
    options: dict[str, Any] = field(default_factory=dict)


def _sizes(value: Any, dims: int) -> tuple[int, ...]:
    return (int(value),) * dims if isinstance(value, int) else tuple(int(v) for v in value)


def _curve(curve: curves.Curve) -> Callable[..., Step]:
    def row(input: Any, inplace: bool = False) -> Step:
        return Step("curve", (input,), {"curve": curve})

    return row


def _leaky(input: Any, negative_slope: float = 0.01, inplace: bool = False) -> Step:
    return Step("curve", (input,), {"curve": curves.leaky(negative_slope)})


def _gelu(input: Any, approximate: str = "none") -> Step:
    return Step("curve", (input,), {"curve": curves.gelu(approximate)})


def _hardtanh(
    input: Any, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False
) -> Step:
    return Step("curve", (input,), {"curve": curves.hardtanh(min_val, max_val)})


def _clamp(input: Any, min: float = -float("inf"), max: float = float("inf")) -> Step:
    return _hardtanh(input, min, max)


def _max_pool(dims: int) -> Callable[..., Step]:
    def row(
        input: Any,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
        return_indices: bool = False,
    ) -> Step:
        if ceil_mode or return_indices:
            raise Refusal("max pooling with ceil_mode or indices", "pad or slice the input instead")
        sizes = [kernel_size, stride or kernel_size, padding, dilation]
        return Step("max_pool", (input,), {"geometry": [_sizes(s, dims) for s in sizes]})

    return row


def _avg_pool(dims: int) -> Callable[..., Step]:
    def row(
        input: Any,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: Any = None,
    ) -> Step:
        geometry = [_sizes(s, dims) for s in (kernel_size, stride or kernel_size, padding)]
        if ceil_mode or divisor_override is not None:
            raise Refusal("average pooling with ceil_mode or its own divisor", "leave these out")
        if any(geometry[2]) and not count_include_pad:
            raise Refusal("average pooling that leaves padding out", "use count_include_pad=True")
        return Step("avg_pool", (input,), {"geometry": geometry})

    return row


def _adaptive(kind: str, dims: int) -> Callable[..., Step]:
    def row(input: Any, output_size: Any, return_indices: bool = False) -> Step:
        if set(_sizes(output_size, dims)) != {1} or return_indices:
            raise Refusal(f"adaptive pooling to {output_size}", "pool to 1, or use a fixed window")
        return Step(kind, (input,), {"axes": tuple(range(-dims, 0)), "keep": True})

    return row


def _mean(input: Any, dim: Any = None, keepdim: bool = False) -> Step:
    if dim is None:
        raise Refusal("a mean over everything, the batch too", "name the axes")
    axes = (dim,) if isinstance(dim, int) else tuple(dim)
    return Step("global_average", (input,), {"axes": axes, "keep": keepdim})


def _reshape(input: Any, *shape: Any, **named: Any) -> Step:
    return Step("reshape", (input,))


def _dropout(module: type[nn.Module]) -> Callable[..., Step]:
    def row(input: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> Step:
        # traced as it was: what counts from here on is the prepared model's own mode
        return Step("dropout", (input,), {"module": module(p)})

    return row


def _same(input: Any, *rest: Any, **named: Any) -> Step:
    return Step("same", (input,))


def _add(sign: int) -> Callable[..., Step]:
    def row(input: Any, other: Any, *, alpha: Any = 1) -> Step:
        if alpha != 1:
            raise Refusal(f"an addition with alpha {alpha}", "scale the branch itself")
        if isinstance(input, fx.Node) and isinstance(other, fx.Node):
            return Step("add", (input, other), {"signs": (1, sign)})
        if isinstance(input, fx.Node):
            return Step("affine", (input,), {"factor": 1.0, "shift": sign * float(other)})
        return Step("affine", (other,), {"factor": float(sign), "shift": float(input)})

    return row


def _mul(input: Any, other: Any) -> Step:
    if isinstance(input, fx.Node) and isinstance(other, fx.Node):
        raise Refusal("a product of two values that depend on the data", "make one a number")
    x, number = (input, other) if isinstance(input, fx.Node) else (other, input)
    return Step("affine", (x,), {"factor": float(number), "shift": 0.0})


def _div(input: Any, other: Any) -> Step:
    if isinstance(other, fx.Node) or other == 0:
        raise Refusal("a division by the data or by zero", "divide by a number")
    return Step("affine", (input,), {"factor": 1.0 / float(other), "shift": 0.0})


def _neg(input: Any) -> Step:
    return Step("affine", (input,), {"factor": -1.0, "shift": 0.0})


def _cat(tensors: Sequence[Any], dim: int = 0) -> Step:
    return Step("concat", tuple(tensors), {"axis": dim})


def _post(op: str) -> Callable[..., Step]:
    def row(input: Any, dim: Any = None, _stacklevel: int = 3, dtype: Any = None) -> Step:
        if dim is None:
            raise Refusal(f"{op} without an axis", "give dim")
        return Step("post", (input,), {"op": op, "axis": dim})

    return row


ROWS: dict[Any, Callable[..., Step]] = {
    **dict.fromkeys(
        (F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_"), _curve(curves.RELU)
    ),
    F.relu6: _curve(curves.RELU6),
    **dict.fromkeys((F.leaky_relu, F.leaky_relu_), _leaky),
    **dict.fromkeys((F.hardtanh, F.hardtanh_), _hardtanh),
    **dict.fromkeys((torch.clamp, torch.clip, "clamp", "clip"), _clamp),
    **dict.fromkeys((F.sigmoid, torch.sigmoid, "sigmoid"), _curve(curves.SIGMOID)),
    **dict.fromkeys((F.tanh, torch.tanh, "tanh"), _curve(curves.TANH)),
    F.gelu: _gelu,
    F.silu: _curve(curves.SILU),
    F.hardswish: _curve(curves.HARDSWISH),
    **dict.fromkeys((F.max_pool1d, torch.max_pool1d), _max_pool(1)),
    **dict.fromkeys((F.max_pool2d, torch.max_pool2d), _max_pool(2)),
    F.avg_pool1d: _avg_pool(1),
    F.avg_pool2d: _avg_pool(2),
    **dict.fromkeys(
        (F.adaptive_avg_pool1d, torch.adaptive_avg_pool1d), _adaptive("global_average", 1)
    ),
    F.adaptive_avg_pool2d: _adaptive("global_average", 2),
    F.adaptive_max_pool1d: _adaptive("global_max", 1),
    F.adaptive_max_pool2d: _adaptive("global_max", 2),
    **dict.fromkeys((torch.mean, "mean"), _mean),
    **dict.fromkeys((torch.flatten, "flatten", torch.reshape, "reshape", "view"), _reshape),
    **dict.fromkeys((torch.squeeze, "squeeze", torch.unsqueeze, "unsqueeze"), _reshape),
    F.dropout: _dropout(nn.Dropout),
    F.dropout1d: _dropout(nn.Dropout1d),
    F.dropout2d: _dropout(nn.Dropout2d),
    **dict.fromkeys(("contiguous", "clone", "float"), _same),
    **dict.fromkeys((operator.add, operator.iadd, torch.add, "add", "add_"), _add(1)),
    **dict.fromkeys((operator.sub, operator.isub, torch.sub, "sub", "sub_"), _add(-1)),
    **dict.fromkeys((operator.mul, operator.imul, torch.mul, "mul", "mul_"), _mul),
    **dict.fromkeys((operator.truediv, operator.itruediv, torch.div, "div", "div_"), _div),
    **dict.fromkeys((operator.neg, torch.neg, "neg"), _neg),
    **dict.fromkeys((torch.cat, torch.concat, torch.concatenate), _cat),
    **dict.fromkeys((F.softmax, torch.softmax, "softmax"), _post("softmax")),
    **dict.fromkeys((F.log_softmax, torch.log_softmax, "log_softmax"), _post("log_softmax")),
}
"""By function, or by name of a method."""


def _of_module(m: nn.Module, x: Any) -> Step:
    kind = type(m)
    if kind in curves.OF_MODULE:
        return Step("curve", (x,), {"curve": curves.OF_MODULE[kind](m)})
    if kind in (nn.Conv1d, nn.Conv2d, nn.Linear):
        return Step("synapses", (x,), {"module": m})
    if kind in (nn.BatchNorm1d, nn.BatchNorm2d):
        return Step("norm", (x,), {"module": m})
    if kind in (nn.Dropout, nn.Dropout1d, nn.Dropout2d):
        return Step("dropout", (x,), {"module": m})
    if kind is nn.Identity:
        return _same(x)
    if kind in (nn.Flatten, nn.Unflatten):
        return _reshape(x)
    if kind in (nn.MaxPool1d, nn.MaxPool2d):
        row = _max_pool(1 if kind is nn.MaxPool1d else 2)
        return row(x, m.kernel_size, m.stride, m.padding, m.dilation, m.ceil_mode, m.return_indices)
    if kind is nn.AvgPool1d:
        pool = _avg_pool(1)
        return pool(x, m.kernel_size, m.stride, m.padding, m.ceil_mode, m.count_include_pad)
    if kind is nn.AvgPool2d:
        sizes = (m.kernel_size, m.stride, m.padding)
        return _avg_pool(2)(x, *sizes, m.ceil_mode, m.count_include_pad, m.divisor_override)
    adaptive = {
        nn.AdaptiveAvgPool1d: ("global_average", 1),
        nn.AdaptiveAvgPool2d: ("global_average", 2),
        nn.AdaptiveMaxPool1d: ("global_max", 1),
        nn.AdaptiveMaxPool2d: ("global_max", 2),
    }
    if kind in adaptive:
        return _adaptive(*adaptive[kind])(x, m.output_size)
    if kind in (nn.Softmax, nn.LogSoftmax):
        return _post("softmax" if kind is nn.Softmax else "log_softmax")(x, m.dim)
    raise Refusal(f"{kind.__name__} is not supported", SUPPORTED)


def recognise(node: fx.Node, model: nn.Module) -> Step:
    """The step of a node of a traced model. Raises Refusal."""
    if node.op == "call_module":
        return _of_module(model.get_submodule(str(node.target)), node.args[0])
    row = ROWS.get(node.target)
    if row is None:
        name = getattr(node.target, "__name__", str(node.target))
        raise Refusal(f"'{name}' is not supported", SUPPORTED)
    try:
        return row(*node.args, **node.kwargs)
    except (TypeError, ValueError) as error:
        raise Refusal(f"its arguments cannot be read: {error}", SUPPORTED) from error
