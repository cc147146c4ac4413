"""A chain of layers in an ONNX file as a torch module, for the rivals that are written in torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from snnkit.bench.rivals import folded
from snnkit.errors import Problem, UnsupportedModel

Arrays = dict[str, Any]
REMEDY = "torch rivals need a plain chain of Conv, Relu, pooling, Flatten and Gemm"


def torch_chain(source: onnx.ModelProto) -> Any:
    """The model as a torch.nn.Sequential in eval mode.

    Raises UnsupportedModel where it is no chain of the layers that torch rivals can take.
    """
    import torch

    model = folded(source)
    arrays = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    data = [v.name for v in model.graph.input if v.name not in arrays]
    problems, layers = [], []
    value = data[0]
    for node in model.graph.node:
        make = LAYERS.get(node.op_type)
        if make is None or node.input[0] != value or len(data) != 1:
            problems.append(Problem(node.name, node.op_type, "not part of a chain", REMEDY))
            continue
        attrs = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        rest = [arrays[name] for name in node.input[1:] if name in arrays]
        layers.append(make(attrs, rest))
        value = node.output[0]
    if problems:
        raise UnsupportedModel(problems)
    return torch.nn.Sequential(*layers).eval()


def _tensor(array: Any) -> Any:
    import torch

    return torch.nn.Parameter(torch.from_numpy(np.array(array, np.float32)), requires_grad=False)


def _conv(attrs: Arrays, given: list[Any]) -> Any:
    from torch import nn

    weight = given[0]
    if weight.ndim != 4:
        raise UnsupportedModel([Problem("", "Conv", f"a kernel {weight.shape}", REMEDY)])
    group = attrs.get("group", 1)
    layer = nn.Conv2d(
        weight.shape[1] * group,
        weight.shape[0],
        weight.shape[2:],
        tuple(attrs.get("strides", (1, 1))),
        padding=_padding(attrs),
        dilation=tuple(attrs.get("dilations", (1, 1))),
        groups=group,
        bias=len(given) > 1,
    )
    layer.weight = _tensor(weight)
    if len(given) > 1:
        layer.bias = _tensor(given[1])
    return layer


def _padding(attrs: Arrays) -> tuple[int, int]:
    pads = list(attrs.get("pads", (0, 0, 0, 0)))
    if attrs.get("auto_pad", b"NOTSET") != b"NOTSET" or pads[:2] != pads[2:]:
        raise UnsupportedModel([Problem("", "Conv", f"padding {pads} on unlike sides", REMEDY)])
    return pads[0], pads[1]


def _pool(name: str) -> Callable[[Arrays, list[Any]], Any]:
    def make(attrs: Arrays, given: list[Any]) -> Any:
        from torch import nn

        kernel, strides = tuple(attrs["kernel_shape"]), tuple(attrs.get("strides", (1, 1)))
        options = {"ceil_mode": bool(attrs.get("ceil_mode", 0))}
        if name == "AvgPool2d":
            options["count_include_pad"] = bool(attrs.get("count_include_pad", 0))
        return getattr(nn, name)(kernel, strides, _padding(attrs), **options)

    return make


def _gemm(attrs: Arrays, given: list[Any]) -> Any:
    from torch import nn

    weight = given[0] if attrs.get("transB", 0) else given[0].T
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=len(given) > 1)
    layer.weight = _tensor(weight * attrs.get("alpha", 1.0))
    if len(given) > 1:
        layer.bias = _tensor(given[1] * attrs.get("beta", 1.0))
    return layer


def _plain(name: str, *arguments: Any) -> Callable[[Arrays, list[Any]], Any]:
    def make(attrs: Arrays, given: list[Any]) -> Any:
        from torch import nn

        return getattr(nn, name)(*arguments)

    return make


LAYERS: dict[str, Callable[[Arrays, list[Any]], Any]] = {
    "Conv": _conv,
    "Relu": _plain("ReLU"),
    "MaxPool": _pool("MaxPool2d"),
    "AveragePool": _pool("AvgPool2d"),
    "GlobalAveragePool": _plain("AdaptiveAvgPool2d", 1),
    "Flatten": _plain("Flatten"),
    "Reshape": _plain("Flatten"),
    "Gemm": _gemm,
    "MatMul": _gemm,
}
