"""A Scan over a fixed number of elements converts, written out; other loops are refused."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper

import snnkit
from snnkit.converters import convert, examine
from snnkit.converters.float_model import FloatModel
from snnkit.errors import UnsupportedModel
from snnkit.reference import dense, input_counts

FLOAT = onnx.TensorProto.FLOAT
STEPS, HIDDEN, FEATURES = 4, 5, 3
SHARE = 0.05
"""Tolerated quantisation error, as a share of an output's range. Found: up to 0.02."""


def scanned(
    gated: bool, way: int = 0, axis: int = 0, opset: int = 17, steps: int | str = STEPS
) -> onnx.ModelProto:
    """tanh(W x + U h + b), or a minimal gated unit, as the body of a Scan over axis 0 or 1; weights
    captured from outside, biases the body's own, the first state computed from the data."""
    rng = np.random.default_rng(3)
    arrays: dict[str, onnx.TensorProto] = {}

    def constant(name: str, *shape: int) -> str:
        value = rng.normal(0, 0.8, shape).astype(np.float32)
        arrays[name] = numpy_helper.from_array(value, name)
        return name

    def charge(name: str) -> list[onnx.NodeProto]:
        w, u = constant(f"w{name}", FEATURES, HIDDEN), constant(f"u{name}", HIDDEN, HIDDEN)
        return [
            helper.make_node("MatMul", ["xt", w], [f"{name}.x"]),
            helper.make_node("MatMul", ["h", u], [f"{name}.h"]),
            helper.make_node("Add", [f"{name}.x", f"{name}.h"], [f"{name}.sum"]),
            helper.make_node("Add", [f"{name}.sum", "bias"], [f"{name}.charge"]),
        ]

    nodes = [*charge("new"), helper.make_node("Tanh", ["new.charge"], ["new"])]
    last = "new"
    if gated:
        nodes += [*charge("keep"), helper.make_node("Sigmoid", ["keep.charge"], ["keep"])]
        nodes += [
            helper.make_node("Sub", ["new", "h"], ["apart"]),
            helper.make_node("Mul", ["keep", "apart"], ["moved"]),
            helper.make_node("Add", ["h", "moved"], ["mixed"]),
        ]
        last = "mixed"
    nodes.append(helper.make_node("Identity", [last], ["yt"]))
    port = helper.make_tensor_value_info
    bias = numpy_helper.from_array(rng.normal(0, 0.3, HIDDEN).astype(np.float32), "bias")
    states = [port("h", FLOAT, None), port("xt", FLOAT, None)]
    results = [port(last, FLOAT, None), port("yt", FLOAT, None)]
    body = helper.make_graph(nodes, "body", states, results, [bias])
    arrays["first"] = numpy_helper.from_array(np.int64(0), "first")
    outer = [
        helper.make_node("Gather", ["x", "first"], ["x0"], axis=axis),
        helper.make_node("MatMul", ["x0", constant("w0", FEATURES, HIDDEN)], ["before"]),
        helper.make_node("Tanh", ["before"], ["h0"]),
        helper.make_node(
            "Scan",
            ["h0", "x"],
            ["hT", "y"],
            name="scan",
            body=body,
            num_scan_inputs=1,
            scan_input_axes=[axis],
            scan_input_directions=[way],
            scan_output_axes=[axis],
            scan_output_directions=[way],
        ),
    ]
    shape = ["batch", steps, FEATURES] if axis else [steps, "batch", FEATURES]
    outputs = [port("y", FLOAT, None), port("hT", FLOAT, None)]
    graph = helper.make_graph(
        outer, "scan", [port("x", FLOAT, shape)], outputs, list(arrays.values())
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def samples(axis: int) -> np.ndarray:
    x = np.random.default_rng(0).normal(size=(40, STEPS, FEATURES)).astype(np.float32)
    return x if axis else np.ascontiguousarray(x.swapaxes(0, 1))


def floats(model: onnx.ModelProto, x: np.ndarray) -> list[np.ndarray]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize(("way", "axis", "opset"), [(0, 0, 17), (1, 0, 11), (0, 1, 17), (1, 1, 17)])
def test_a_scan_converts_exactly(gated: bool, way: int, axis: int, opset: int) -> None:
    model, x = scanned(gated, way, axis, opset), samples(axis)
    expected = floats(model, x)
    # written out, it is the same float model
    for value, other in zip(expected, floats(FloatModel(model).model, x), strict=True):
        np.testing.assert_allclose(value, other, atol=1e-6)
    graph = convert(model, x)
    certificate = snnkit.verify(graph, x)
    assert certificate.passed, certificate.first_difference
    values = dense(graph, input_counts(graph, x))
    spiking = graph.of("spike")
    assert len(spiking) >= STEPS * (2 if gated else 1)
    assert all((values[n.name] != values[n.name][:1]).any() for n in spiking)
    found = snnkit.compile(graph).run(x).outputs
    for port, value in zip(("y", "hT"), expected, strict=True):
        assert found[port].shape == value.shape
        assert np.abs(found[port] - value).max() <= SHARE * np.ptp(value)


@pytest.mark.parametrize("axis", [0, 1])
def test_a_scan_of_open_length_is_as_long_as_the_data(axis: int) -> None:
    model, x = scanned(True, axis=axis, steps="time"), samples(axis)
    graph = convert(model, x)
    assert graph.meta["elements"] == f"{STEPS}, as in the data: 'scan (Scan)' runs over them"
    assert graph.inputs[0].dims[axis] == STEPS
    certificate = snnkit.verify(graph, x, source=model, modes=("settle",))
    assert certificate.passed, certificate.first_difference
    found = snnkit.compile(graph).run(x).outputs
    for port, value in zip(("y", "hT"), floats(model, x), strict=True):
        assert np.abs(found[port] - value).max() <= SHARE * np.ptp(value)
    gap = np.abs(found["y"] - floats(model, x)[0]).max()
    assert certificate.quantisation["largest_output_gap"] == pytest.approx(gap)


@pytest.mark.parametrize("steps", ["", "time"])
def test_a_scan_whose_length_nobody_knows_is_refused_by_name(steps: str) -> None:
    with pytest.raises(UnsupportedModel, match=r"'scan' \(Scan\).*fixed number of elements"):
        if steps:
            examine(scanned(False, steps=steps))
        else:
            convert(scanned(False, steps=steps), samples(0))
