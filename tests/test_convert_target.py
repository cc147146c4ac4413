"""Conversion for a chip: what breaks a bound by default fits, and is still proved exact."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest

import snnkit
from snnkit.certificate import quantisation_error, verify
from snnkit.cli import main
from snnkit.converters import convert
from snnkit.errors import UnsupportedModel, UsageError
from snnkit.exporters import to_netx
from snnkit.fit import fit
from snnkit.graph import Graph
from snnkit.reference import dense
from snnkit.thermometer import thermometer
from tests import netx_reader
from tests.models import Builder, cases, random_model
from tests.shared_data import HOME, mnist, needed, scaled
from tests.test_thermometer import stepped


def wide() -> Builder:
    """A dense layer with so many inputs that 8-bit weights and 255 levels leave 24 bits."""
    b = Builder((3000,))
    b.linear(60, 3000)
    b.op("Relu")
    b.linear(30, 60)
    b.op("Relu")
    b.linear(8, 30)
    return b


def residual() -> Builder:
    """Sums of branches whose scales are far apart in some channels."""
    b = Builder((3, 8, 8))
    x = b.conv(6, 3, pads=[1, 1, 1, 1])
    x = b.op("Relu")
    weight = b.array(b.rng.normal(0, 1, (6, 6, 3, 3)) * np.logspace(-5, 0, 6).reshape(6, 1, 1, 1))
    b.op("Conv", weight, pads=[1, 1, 1, 1])
    b.op("Add", x)
    b.op("Relu")
    b.op("AveragePool", kernel_shape=[4, 4], strides=[4, 4])
    b.op("Flatten")
    b.linear(5, 24)
    return b


def chain() -> Builder:
    """What a .net file can hold: convolutions and dense layers in a row."""
    b = Builder((2, 9, 7))
    b.conv(4, 2, strides=[2, 1], pads=[1, 0, 1, 2])
    b.op("Relu")
    b.conv(5, 4)
    b.op("Relu")
    b.op("Flatten")
    b.linear(12, 5 * 3 * 5)
    b.op("Relu")
    b.linear(6, 12)
    return b


def proved(graph: Graph, x: np.ndarray) -> None:
    certificate = verify(graph, x, modes=("settle", "steps"))
    assert certificate.passed and not certificate.silent_layers, certificate.first_difference


@pytest.mark.parametrize("make", [wide, residual])
def test_what_leaves_24_bits_by_default_fits_when_asked(make) -> None:
    b = make()
    source = b.model()
    x = (b.rng.integers(0, 256, (48, *b.shape)) / 255).astype(np.float32)
    plain = fit(convert(source, x), "loihi2")
    beyond = [v for v in plain.violations if "potential" in v.quantity]
    assert beyond and all(int(v.found.replace(",", "")) > 2**23 for v in beyond)
    graph = convert(source, x, levels=255, target="loihi2")
    found = fit(graph, "loihi2")
    assert found.fits and all(n.attrs["kind"] == "uniform" for n in graph.of("spike"))
    assert all(n.peak < 2**23 for n in graph.nodes)
    proved(graph, x[:3])
    # the price, in the float model's terms: hardly any with so many levels
    y = snnkit.compile(graph).run(x).outputs
    error = quantisation_error(graph, {"x": x}, y, None, source)
    assert error["agreement"] >= 0.95, error


def test_a_channel_of_next_to_no_weight_fits_too() -> None:
    """Its theta would leave 24 bits by far; no charge can reach it, so another one does."""
    b = Builder((2, 6, 6))
    weight = b.rng.normal(0, 0.5, (4, 2, 3, 3)) * np.array([1e-8, 1, 1, 1]).reshape(4, 1, 1, 1)
    b.op("Conv", b.array(weight), b.array([1e-4, 0.1, 0, -0.1]))
    b.op("Relu")
    b.op("Flatten")
    b.linear(4, 64)
    source, x = b.model(), b.samples(40)
    graph = convert(source, x, levels=255, target="loihi2")
    first = graph.of("spike")[0]
    assert first.params["theta"].max() < 10_000
    values = dense(graph, snnkit.boundary.input_counts(graph, x))[first.name]
    fires = values.any(axis=(0, 2, 3))
    assert sorted(fires) == [False, True, True, True]
    loose = convert(source, x, levels=255, staircase="ladder")
    assert sorted(
        dense(loose, snnkit.boundary.input_counts(loose, x))["t1_0"].any(axis=(0, 2, 3))
    ) == [False, True, True, True]
    proved(graph, x[:3])


def test_levels_are_few_unless_stated() -> None:
    b = cases()["conv"]
    source, x = b.model(), b.samples()
    tops = {
        options.get("expression", "bif"): {n.hi for n in graph.of("spike")}
        for options in ({}, {"expression": "thermometer"})
        if (graph := convert(source, x, target="loihi2", **options))
    }
    assert tops == {"bif": {15}, "thermometer": {3}}
    assert convert(source, x, target="loihi2", levels=7).of("spike")[0].hi == 7
    assert convert(source, x).of("spike")[0].hi == 255


@pytest.mark.parametrize("seed", range(6))
def test_any_model_fits_exactly_or_is_refused_by_name(seed: int) -> None:
    rng = np.random.default_rng(seed)
    b = random_model(rng)
    source, x = b.model(), b.samples(24)
    try:
        graph = convert(source, x, target="loihi2")
    except UnsupportedModel as error:
        assert error.problems and all(p.node and p.reason for p in error.problems)
        plain = convert(source, x, levels=15, staircase="uniform")
        # what is refused is what no bound on charges mends
        assert {p.node for p in error.problems} <= {n.name for n in plain.nodes}
        return
    assert fit(graph, "loihi2").fits
    assert all(n.attrs["kind"] == "uniform" for n in graph.of("spike"))
    certificate = verify(graph, x[:4])
    assert certificate.passed, certificate.first_difference


@pytest.mark.parametrize("levels", [1, 3, 6])
def test_a_chain_for_stock_neurons(levels: int, tmp_path) -> None:
    """Converted, proved, run by the arithmetic of stock processes and, where thresholds allow,
    written as .net and read back: one set of integers."""
    b = chain()
    x = b.samples(40)
    graph = convert(b.model(), x, target="lava-cpu", expression="thermometer", levels=levels)
    assert fit(graph, "lava-cpu", "thermometer").fits
    proved(graph, x[:3])
    counts = snnkit.boundary.input_counts(graph, x[:6])
    values = dense(graph, counts)
    (first,) = counts.values()
    stock = thermometer(graph)
    for name, value in stepped(stock, first).items():
        assert np.array_equal(value, values[name]), name
    assert all(values[n.name].any() for n in graph.of("spike"))
    if all(len(e.processes) == 1 for e in stock.layers):
        to_netx.write(graph, tmp_path / "net.net")
        assert len(netx_reader.read(tmp_path / "net.net")) == 4
    else:
        with pytest.raises(UnsupportedModel, match="apart"):
            to_netx.write(graph, tmp_path / "net.net")


def test_charges_of_a_wide_layer_fit_stock_neurons() -> None:
    b = wide()
    x = b.samples(40)
    graph = convert(b.model(), x, target="loihi2", expression="thermometer", levels=1)
    charges = graph.of("linear")
    assert all(max(-n.lo, n.hi) <= 131071 for n in charges)
    assert np.abs(charges[0].params["weight"]).max() < 60 < 127
    proved(graph, x[:4])


def test_what_cannot_fit_is_refused_by_name() -> None:
    b = cases()["MaxPool ceil"]
    with pytest.raises(UnsupportedModel) as caught:
        convert(b.model(), b.samples(), target="loihi2", expression="thermometer")
    (problem,) = caught.value.problems
    assert problem.reason == "no stock process computes it" and "loihi2" in problem.op
    b = Builder((3, 5, 5))
    b.conv(4, 3)
    b.op("Tanh")
    b.op("Flatten")
    b.linear(4, 36)
    with pytest.raises(UnsupportedModel, match="one theta"):
        convert(b.model(), b.samples(), target="loihi2")


def test_options_that_do_not_go_together() -> None:
    b = cases()["conv"]
    for options in (
        {"target": "loihi9"},
        {"expression": "bif"},
        {"target": "loihi1", "expression": "bif"},
        {"target": "loihi2", "levels": 0},
    ):
        with pytest.raises(UsageError):
            convert(b.model(), b.samples(), **options)


def test_the_command(tmp_path, capsys) -> None:
    b = residual()
    onnx.save(b.model(), tmp_path / "model.onnx")
    np.save(tmp_path / "x.npy", b.samples(32))
    net = tmp_path / "net.onnx"
    arguments = ["convert", str(tmp_path / "model.onnx"), "-o", str(net), "--calibration"]
    arguments += [str(tmp_path / "x.npy"), "--target", "loihi2"]
    assert main([*arguments, "--expression", "thermometer"]) in (0, 3)
    capsys.readouterr()
    assert main(arguments) == 0
    assert "0 differ" in capsys.readouterr().out
    assert main(["info", str(net), "--target", "loihi2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["fits"] is True


@needed
def test_a_trained_network_keeps_its_accuracy() -> None:
    """784-256-256-10, trained by others: potentials leave 24 bits by default."""
    train, _ = mnist("train")
    images, labels = mnist("t10k")
    source = HOME / "onnx" / "vnncomp2021" / "mnist-net_256x2.onnx"
    calibration, x = (scaled(a, "unit", (784, 1)) for a in (train[:512], images[:1000]))
    accuracy = {}
    for name, options in {
        "bif": {"levels": 255},
        "thermometer": {"levels": 3, "expression": "thermometer"},
    }.items():
        graph = convert(source, calibration, target="loihi2", **options)
        proved(graph, x[:20])
        y = next(iter(snnkit.compile(graph).run(x).outputs.values()))
        accuracy[name] = (y.reshape(len(y), -1).argmax(axis=1) == labels[:1000]).mean()
    assert accuracy["bif"] >= 0.97 and accuracy["thermometer"] >= 0.92, accuracy
