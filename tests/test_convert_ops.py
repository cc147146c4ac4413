"""Every supported operator: converted, every neuron proven, close to the float model."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import snnkit
from snnkit.backends import MODES
from snnkit.converters import convert
from snnkit.errors import BadCalibration, UnsupportedModel
from snnkit.files import from_bytes, to_bytes
from tests.models import Builder, cases, random_model

CASES = cases()
CLOSE = 0.05
"""Largest output gap at 255 levels, as a share of the output's range. Quantisation moves each
value by half a step of 1/255; a few layers of random weights add up to well below this."""


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("levels", [255, 7])
def test_every_neuron_of_every_execution_agrees(name: str, levels: int) -> None:
    builder = CASES[name]
    model, x = builder.model(), builder.samples()
    graph = convert(model, x, levels=levels)
    assert from_bytes(to_bytes(graph)).digest == graph.digest
    certificate = snnkit.verify(graph, x[:12], source=model, backends=("numba",))
    assert certificate.passed, certificate.first_difference
    assert not certificate.skipped and not certificate.silent_layers
    assert certificate.neurons_compared >= 5 * 12 * certificate.neurons_per_sample
    if levels == 255 and "ArgMax" not in name:
        y = snnkit.compile(graph, "reference").run(x).outputs[graph.outputs[0].name]
        span = float(y.max() - y.min())
        assert certificate.quantisation["largest_output_gap"] <= CLOSE * span


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 2**31 - 1), st.sampled_from([1, 3, 15, 255]), st.sampled_from([3, 8]))
def test_random_models(seed: int, levels: int, weight_bits: int) -> None:
    """Random layers, joins and activations: exact in every execution, whatever the accuracy.

    The reference fires one spike after another in plain numpy, so at 255 levels only the engine
    runs all modes; that each order ends alike for any number of levels is the law of test_readings.
    """
    rng = np.random.default_rng(seed)
    builder = random_model(rng)
    model, x = builder.model(), builder.samples(24)
    graph = convert(model, x, levels=levels, weight_bits=weight_bits)
    certificate = snnkit.verify(graph, x[:4], backends=("numba",))
    assert certificate.passed, certificate.first_difference
    assert certificate.minimum_spikes > 0 or not graph.of("spike")
    modes = ("settle",) if levels == 255 else MODES
    definition = snnkit.verify(graph, x[:4], backends=("reference",), modes=modes)
    assert definition.passed, definition.first_difference
    assert {f"reference {mode}" for mode in modes} < set(definition.executions)


@pytest.mark.parametrize("weight_bits", [2, 4, 8])
@pytest.mark.parametrize("staircase", ["uniform", "ladder"])
@pytest.mark.parametrize("levels", [1, 2, 3, 255])
def test_options(weight_bits: int, staircase: str, levels: int) -> None:
    builder = CASES["norm on a residual trunk"]
    model, x = builder.model(), builder.samples()
    graph = convert(model, x, levels=levels, weight_bits=weight_bits, staircase=staircase)
    for node in graph.of("conv", "linear"):
        assert np.abs(node.params["weight"]).max() <= 2 ** (weight_bits - 1) - 1
    kinds = {n.attrs["kind"] for n in graph.of("spike")}
    assert staircase == "uniform" or kinds == {"ladder"}
    assert snnkit.verify(graph, x[:6]).passed


def test_integer_models_lose_nothing() -> None:
    """Weights and inputs that are integers already: the network *is* the float model."""
    b = Builder((2, 8, 8))
    weight = b.rng.integers(-127, 128, (4, 2, 3, 3))
    weight[:, 0, 0, 0] = 127  # the largest weight of each channel decides its step
    b.op("Conv", b.array(weight), b.array(b.rng.integers(-900, 900, 4)), pads=[1, 0, 1, 2])
    b.op("Transpose", perm=[0, 2, 1, 3])
    b.op("ReduceSum", b.array([3], np.int64), keepdims=0)
    model = b.model()
    x = b.rng.integers(0, 256, (20, 2, 8, 8)).astype(np.float32)
    x[0, 0, 0, :2] = 0, 255
    graph = convert(model, x, bias_correction=False)
    source = snnkit.verify(graph, x, source=model, modes=("settle",))
    assert source.passed
    assert not graph.of("spike")
    assert source.quantisation["largest_output_gap"] == 0


@pytest.mark.parametrize("factor", [1e-12, 0.0])
@pytest.mark.parametrize("alive", [0, 2])
def test_a_dead_output_channel_keeps_its_bias(factor: float, alive: int) -> None:
    """Weights that are nothing beside the bias: the output is the bias, not a clipped one."""
    b = Builder((6,))
    weight = b.rng.normal(0, 1, (6, 4))
    weight[:, alive:] *= factor
    bias = np.array([0.3, -0.2, -0.78, 0.51])
    b.op("Gemm", b.array(weight), b.array(bias))
    x = b.samples()
    graph = convert(b.model(), x)
    y = next(iter(snnkit.compile(graph, "reference").run(x).outputs.values()))
    assert np.abs(y[:, alive:] - bias[alive:]).max() < 0.02
    assert snnkit.verify(graph, x[:4]).passed


def test_an_offset_in_front_of_padding_becomes_a_bias_map() -> None:
    """Integers all the way: the float model and the network are equal at the border too."""
    b = Builder((2, 7, 6))
    weight = b.rng.integers(-127, 128, (3, 2, 3, 3))
    weight[:, 0, 0, 0] = 127
    b.op("Sub", b.array([[[[3.0]], [[-5.0]]]]))
    b.op("Conv", b.array(weight), pads=[1, 2, 0, 1])
    x = b.rng.integers(0, 256, (20, 2, 7, 6)).astype(np.float32)
    x[0, :, 0, :2] = 0, 255
    model = b.model()
    graph = convert(model, x, bias_correction=False)
    bias = graph.of("readout")[0].params["bias"]
    assert bias.shape == (3, 6, 7), "the bias differs at the border"
    found = snnkit.verify(graph, x, source=model, modes=("settle",))
    assert found.passed and found.quantisation["largest_output_gap"] == 0


@pytest.mark.parametrize("scaling", ["raw", "unit", "normalised"])
def test_eight_bit_images_are_read_exactly(scaling: str) -> None:
    """Whatever the scaling, pixel k becomes the integer k - background."""
    b = Builder((3, 5, 4))
    b.conv(4, 3)
    pixels = b.rng.integers(0, 256, (30, 3, 5, 4))
    pixels[:, :, 0, 0], pixels[:, :, 0, 1] = 0, 255
    x = pixels.astype(np.float32)
    if scaling != "raw":
        x = x / np.float32(255)
    if scaling == "normalised":
        mean = np.array([0.485, 0.456, 0.406], np.float32)[:, None, None]
        std = np.array([0.229, 0.224, 0.225], np.float32)[:, None, None]
        x = (x - mean) / std
    graph = convert(b.model(), x)
    counts = snnkit.compile(graph, "reference").run(x, record=["x"]).counts["x"]
    assert np.array_equal(counts, pixels)


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (np.zeros((0, 3, 9, 7), np.float32), "no samples"),
        (np.zeros((4, 3, 9, 8), np.float32), "shape"),
        (np.zeros((4, 3, 9), np.float32), "shape"),
        (np.full((4, 3, 9, 7), np.nan, np.float32), "NaN"),
        (np.full((4, 3, 9, 7), "a"), "type"),
        ({"y": np.zeros((4, 3, 9, 7), np.float32)}, "expected"),
    ],
)
def test_bad_calibration_is_refused_with_the_reason(data: object, word: str) -> None:
    with pytest.raises(BadCalibration, match=word):
        convert(CASES["conv"].model(), data)


def test_all_offending_nodes_are_named_at_once() -> None:
    b = Builder((3, 9, 7))
    b.conv(4, 3)
    first = b.op("Sin")
    b.op("Mul", first)
    b.op("Cos")
    with pytest.raises(UnsupportedModel) as caught:
        convert(b.model(), b.samples())
    assert [p.op for p in caught.value.problems] == ["Sin", "Cos"]
    assert all(p.node and p.remedy for p in caught.value.problems)
    product = Builder((3, 9, 7))
    left = product.conv(4, 3)
    product.op("Relu")
    product.op("Div", left)
    product.op("Softmax", axis=0)
    with pytest.raises(UnsupportedModel, match="depends on the data"):
        convert(product.model(), product.samples())


def test_softmax_in_the_middle_is_refused() -> None:
    b = CASES["Softmax"]
    again = Builder(b.shape)
    again.nodes, again.arrays, again.at = list(b.nodes), dict(b.arrays), b.at
    again.linear(3, 5)
    with pytest.raises(UnsupportedModel, match="at the output only"):
        convert(again.model(), again.samples())


def test_nothing_mutates_the_model_or_the_data() -> None:
    b = CASES["concat"]
    model, x = b.model(), b.samples()
    before, data = model.SerializeToString(), x.copy()
    convert(model, x)
    assert model.SerializeToString() == before and np.array_equal(x, data)


def test_fixed_batch_keeps_the_shapes_of_the_source() -> None:
    b = Builder((3, 9, 7), batch=4)
    b.conv(4, 3)
    b.op("Relu")
    _ = b.op("Flatten")
    x = b.samples(10)
    graph = convert(b.model(), x)
    assert graph.inputs[0].dims == (4, 3, 9, 7) and graph.outputs[0].dims == (4, 140)
    assert snnkit.verify(graph, x).passed
