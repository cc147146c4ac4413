"""The certificate sees planted faults, and says where."""

from __future__ import annotations

import json

import numpy as np
import pytest

import snnkit
from snnkit import machine, reference
from snnkit.certificate import _bits, verify
from snnkit.cli import main
from snnkit.converters import convert
from snnkit.files import save
from snnkit.graph import Graph
from snnkit.machine import Machine, Neurons
from tests.models import cases


@pytest.fixture(scope="module")
def network() -> tuple[Graph, np.ndarray]:
    builder = cases()["norm on a residual trunk"]
    x = builder.samples()
    return convert(builder.model(), x, levels=15), x


class Leaking(Machine):
    """Charge leaks: a sixteenth of it is gone after every delivery."""

    def deliver(self, node, mask=None):
        super().deliver(node, mask)
        if node.op in ("conv", "linear"):
            value = self.value[node.name]
            self.value[node.name] = value - value // 16


class Clamped(Machine):
    """The membrane saturates at the top of its staircase, so overshoot is forgotten."""

    def deliver(self, node, mask=None):
        super().deliver(node, mask)
        if node.op in ("conv", "linear", "add"):
            self.value[node.name] = np.clip(
                self.value[node.name], -node.peak // 40, node.peak // 40
            )


class OnlyUp(Neurons):
    """No -1 spikes."""

    def direction(self, charge):
        return np.maximum(super().direction(charge), 0)


class RoundsDown(Neurons):
    """The half that rounds is forgotten in the initial charge."""

    def __init__(self, node, samples):
        super().__init__(node, samples)
        if self.uniform:
            self.init = self.init - self.theta // 2


class LosesOne(Neurons):
    """One -1 spike of the first neuron that fires one is not sent."""

    def move(self, step):
        spikes = super().move(step)
        spikes[np.unravel_index(spikes.argmin(), spikes.shape)] = 0
        return spikes


FAULTS = {
    "leak": (reference, "Machine", Leaking),
    "clamp": (reference, "Machine", Clamped),
    "no negative spikes": (machine, "Neurons", OnlyUp),
    "half rounding": (machine, "Neurons", RoundsDown),
    "a lost spike": (machine, "Neurons", LosesOne),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_caught(name, network, monkeypatch) -> None:
    graph, x = network
    module, attribute, faulty = FAULTS[name]
    monkeypatch.setattr(module, attribute, faulty)
    certificate = verify(graph, x[:4], backends=["reference"], modes=["steps"])
    assert not certificate.passed and certificate.neurons_different > 0
    assert certificate.executions["onnxruntime, all neurons"]["different"] == 0
    first = certificate.first_difference
    assert first is not None and first.execution == "reference steps"
    assert first.node in graph.node and 0 <= first.sample < 4
    assert len(first.index) == len(graph.node[first.node].shape)


def test_without_a_fault_it_passes(network) -> None:
    graph, x = network
    certificate = verify(graph, x[:4], backends=["reference", "numba"])
    assert certificate.passed and not certificate.silent_layers
    units = sum(n.units for n in graph.of("spike", "readout"))
    assert certificate.neurons_compared == 9 * 4 * units
    content = json.loads(certificate.to_json())
    assert content["passed"] and content["digest"] == graph.digest
    assert all(e["bound"] < 2**31 for e in content["bounds"].values())


def test_half_rounding_is_caught_in_settle_too(network, monkeypatch) -> None:
    graph, x = network
    monkeypatch.setattr(machine, "Neurons", RoundsDown)
    with pytest.raises(snnkit.SnnkitError, match="quiescent value"):
        verify(graph, x[:4], backends=["reference"], modes=["settle"])


def test_the_command_exits_with_4(network, monkeypatch, tmp_path, capsys) -> None:
    graph, x = network
    save(graph, tmp_path / "net.onnx")
    np.save(tmp_path / "x.npy", x[:3])
    monkeypatch.setattr(machine, "Neurons", OnlyUp)
    arguments = ["verify", str(tmp_path / "net.onnx"), "--samples", str(tmp_path / "x.npy")]
    code = main([*arguments, "--backend", "reference", "--mode", "steps"])
    printed = capsys.readouterr().out
    assert code == 4 and "first difference: reference steps: node" in printed


def test_a_missing_backend_is_a_skip_with_the_reason(network, monkeypatch) -> None:
    graph, x = network
    from snnkit import backends

    monkeypatch.setitem(backends.BUILT_IN, "numba", "snnkit.not_installed")
    certificate = verify(graph, x[:2], backends=["numba"])
    assert certificate.passed and "not installed" in certificate.skipped["numba"]


def test_accuracy_and_agreement_are_reported_beside_the_proof() -> None:
    builder = cases()["conv"]
    model, x = builder.model(), builder.samples(40)
    graph = convert(model, x)
    labels = snnkit.compile(graph, "reference").run(x).outputs[graph.outputs[0].name].argmax(1)
    certificate = verify(graph, x, labels=labels, source=model, modes=["settle"])
    found = certificate.quantisation
    assert found["accuracy"] == 1.0 and 0.9 <= found["agreement"] <= 1.0
    assert found["float_accuracy"] == found["agreement"]
    wrong = verify(graph, x[:2], source=cases()["conv dilation"].model(), modes=["settle"])
    assert "not the file" in wrong.quantisation["warning"]


def test_bits_tell_zeros_apart() -> None:
    a = np.array([0.0, 1.0], np.float32)
    assert (_bits(a) != _bits(np.array([-0.0, 1.0], np.float32))).tolist() == [True, False]
