"""The spiking nodes as ONNX functions, with bodies of standard integer operators."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

DOMAIN = "snnkit"
OPSET = 20


def function(name: str) -> onnx.FunctionProto:
    """The body of a spiking node, in standard integer operators."""
    if name == "BIF":
        return _bif()
    if name in ("LIF", "HardLIF"):
        return _lif(name)
    valued = name.startswith("Valued")
    return _staircase(name, int(name.removeprefix("Valued").removeprefix("Staircase")), valued)


def _function(
    name: str,
    inputs: list[str],
    body: Callable[[list[onnx.NodeProto]], None],
    outputs: Sequence[str] = ("count",),
) -> onnx.FunctionProto:
    nodes: list[onnx.NodeProto] = []
    body(nodes)
    opsets = [helper.make_opsetid("", OPSET)]
    return helper.make_function(DOMAIN, name, inputs, outputs, nodes, opset_imports=opsets)


def _node(nodes: list[onnx.NodeProto], op: str, inputs: list[str], out: str, **attrs: Any) -> None:
    nodes.append(helper.make_node(op, inputs, [out], **attrs))


def _constant(nodes: list[onnx.NodeProto], name: str, value: int) -> None:
    tensor = numpy_helper.from_array(np.int32(value))
    nodes.append(helper.make_node("Constant", [], [name], value=tensor))


def _bif() -> onnx.FunctionProto:
    """clip(floor((charge + init) / theta), lo, hi) - lo. Integer Div truncates towards zero, so
    the charge is shifted by lo * theta first: below zero both roundings are clipped to lo."""

    def body(nodes: list[onnx.NodeProto]) -> None:
        _constant(nodes, "none", 0)
        _node(nodes, "Add", ["charge", "init"], "total")
        _node(nodes, "Mul", ["theta", "lo"], "floor")
        _node(nodes, "Sub", ["total", "floor"], "above")
        _node(nodes, "Div", ["above", "theta"], "quotient")
        _node(nodes, "Max", ["quotient", "none"], "bounded")
        _node(nodes, "Sub", ["hi", "lo"], "span")
        _node(nodes, "Min", ["bounded", "span"], "clipped")
        _node(nodes, "Cast", ["clipped"], "count", to=TensorProto.UINT8)

    return _function("BIF", ["charge", "init", "theta", "lo", "hi"], body)


def _staircase(name: str, depth: int, valued: bool) -> onnx.FunctionProto:
    """The number of thresholds at or below charge + init: a binary search in a sorted ladder of
    2^depth - 1 steps that starts at `first` in `thresholds`. `valued` looks the count up."""

    def body(nodes: list[onnx.NodeProto]) -> None:
        _node(nodes, "Add", ["charge", "init"], "total")
        _constant(nodes, "one", 1)
        previous = ""
        for level in reversed(range(depth)):
            _constant(nodes, f"step{level}", 2**level)
            _constant(nodes, f"probe_step{level}", 2**level - 1)
            _node(nodes, "Add", ["first", f"probe_step{level}"], f"base{level}")
            probe = f"base{level}"
            if previous:
                _node(nodes, "Add", [probe, previous], f"probe{level}")
                probe = f"probe{level}"
            _node(nodes, "Gather", ["thresholds", probe], f"threshold{level}")
            _node(nodes, "GreaterOrEqual", ["total", f"threshold{level}"], f"passed{level}")
            _node(nodes, "Cast", [f"passed{level}"], f"bit{level}", to=TensorProto.INT32)
            _node(nodes, "Mul", [f"bit{level}", f"step{level}"], f"part{level}")
            if previous:
                _node(nodes, "Add", [previous, f"part{level}"], f"count{level}")
            previous = f"count{level}" if previous else f"part{level}"
        if valued:
            _node(nodes, "Add", ["row", previous], "cell")
            _node(nodes, "Gather", ["values", "cell"], "count")
        else:
            _node(nodes, "Cast", [previous], "count", to=TensorProto.UINT8)

    inputs = ["charge", "init", "first", "thresholds"] + (["row", "values"] if valued else [])
    return _function(name, inputs, body)


def _lif(name: str) -> onnx.FunctionProto:
    """u = floor(before * leak / one) + gain * charge + bias, its spike, and u after the reset:
    lowered by `reset` (LIF), or `reset` itself (HardLIF). Mod has the sign of its divisor, so
    that what it leaves is a multiple, which Div does not round."""

    def body(nodes: list[onnx.NodeProto]) -> None:
        _node(nodes, "Mul", ["before", "leak"], "product")
        _node(nodes, "Mod", ["product", "one"], "rest")
        _node(nodes, "Sub", ["product", "rest"], "whole")
        _node(nodes, "Div", ["whole", "one"], "leaked")
        _node(nodes, "Cast", ["charge"], "wide", to=TensorProto.INT64)
        _node(nodes, "Mul", ["wide", "gain"], "drive")
        _node(nodes, "Add", ["leaked", "drive"], "sum")
        _node(nodes, "Add", ["sum", "bias"], "u")
        _node(nodes, "GreaterOrEqual", ["u", "theta"], "fired")
        _node(nodes, "Cast", ["fired"], "count", to=TensorProto.UINT8)
        if name == "HardLIF":
            _node(nodes, "Where", ["fired", "reset", "u"], "after")
        else:
            _node(nodes, "Cast", ["fired"], "spike", to=TensorProto.INT64)
            _node(nodes, "Mul", ["spike", "reset"], "taken")
            _node(nodes, "Sub", ["u", "taken"], "after")

    inputs = ["charge", "before", "leak", "gain", "bias", "theta", "reset", "one"]
    return _function(name, inputs, body, ("count", "after"))
