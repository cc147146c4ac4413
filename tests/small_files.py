"""A network with every op, a float model, and ways to edit what was saved."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from snnkit.graph import Boundary, Graph, Node, make_node


def network() -> Graph:
    """Every op, every kind of spike and of route, two inputs, a Softmax: a file of some KB."""
    rng = np.random.default_rng(5)
    nodes: list[Node] = []

    def node(op: str, *inputs: Node, params: dict[str, Any] | None = None, **attrs: Any) -> Node:
        nodes.append(make_node(f"n{len(nodes)}", op, inputs, params, attrs))
        return nodes[-1]

    window = {"strides": (1, 1), "dilations": (1, 1)}
    x = node("input", shape=(2, 4, 3), lo=-10, hi=245)
    weight = rng.integers(-127, 128, (3, 2, 2, 2))
    charge = node("conv", x, params={"weight": weight}, pads=(0, 1, 1, 0), group=1, **window)
    init, theta = rng.integers(-500, 500, (3, 1, 1)), rng.integers(500, 3000, (3, 1, 1))
    uniform = {"init": init, "theta": theta}
    s = node("spike", charge, params=uniform, kind="uniform", lo=-3, hi=15)
    pool = {"kernel": (2, 2), "pads": (0, 0, 1, 1), **window}
    joined = node(
        "add",
        node("max_pool", s, **pool),
        node("sum_pool", s, **pool),
        params={"m0": rng.integers(-5, 6, (3, 1, 1)), "m1": np.int32(3)},
    )
    ladder = {
        "init": np.int32(1),
        "thresholds": np.sort(rng.integers(-50, 200, (3, 1, 1, 5)), -1),
    }
    rising = node("spike", joined, params=ladder, kind="ladder", lo=-2, hi=3)
    turning = node(
        "spike",
        joined,
        params={**ladder, "values": np.broadcast_to([0, 1, 2, 1, 0, -1], (3, 1, 1, 6))},
        kind="ladder",
        lo=-1,
        hi=2,
    )
    both = node("route", rising, turning, kind="concat", axis=0)
    turned = node("route", both, kind="transpose", perm=(1, 2, 0))
    flat = node("route", turned, kind="reshape", shape=(turned.units,))
    index = rng.integers(-1, flat.units, (2, 5))
    picked = node("route", flat, params={"index": index}, kind="index", shape=(2, 5))
    product = node("linear", picked, params={"weight": rng.integers(-127, 128, (3, 5))})
    out = node("readout", product, params={"bias": np.array([1, -2, 3])})
    other = node("input", shape=(2, 4), lo=0, hi=255)
    means = node("sum_pool", other, axes=(1,), keepdims=False)
    second = node("readout", means, params={"bias": np.int32(0)})
    one, zero = np.ones((), np.float32), np.zeros((), np.float32)
    return Graph(
        tuple(nodes),
        (
            Boundary(
                "X",
                x.name,
                "float32",
                ("batch", 2, 4, 3),
                np.array([[[0.1]], [[0.2]]], np.float32),
                np.array([[[0.5]], [[0.0]]], np.float32),
            ),
            Boundary("Z", other.name, "float16", ("batch", 2, 4), one / 2, zero),
        ),
        (
            Boundary(
                "Y",
                out.name,
                "float32",
                ("batch", 2, 3),
                one / 100,
                zero,
                ({"op": "Softmax", "axis": 2},),
            ),
            Boundary("W", second.name, "float64", ("batch", 2), one / 4, zero),
        ),
        {"source": "by hand"},
    )


def float_model() -> tuple[onnx.ModelProto, np.ndarray]:
    """A float model of two layers with calibration data."""
    rng = np.random.default_rng(3)
    weights = {"w": rng.normal(size=(6, 5)), "v": rng.normal(size=(4, 6)), "b": rng.normal(size=4)}
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["a"], transB=1),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("Gemm", ["r", "v", "b"], ["y"], transB=1),
    ]
    body = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(a.astype(np.float32), k) for k, a in weights.items()],
    )
    imports = [helper.make_opsetid("", 18)]
    model = helper.make_model(body, opset_imports=imports, ir_version=9)
    return model, rng.normal(size=(64, 5)).astype(np.float32)


def edited(content: bytes, change: Callable[[onnx.ModelProto], Any]) -> bytes:
    """The file after `change` of its protobuf message."""
    model = onnx.ModelProto()
    model.ParseFromString(content)
    change(model)
    return bytes(model.SerializeToString(deterministic=True))


def set_property(model: onnx.ModelProto, key: str, value: str) -> None:
    next(p for p in model.metadata_props if p.key == key).value = value
