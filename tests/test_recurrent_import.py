"""Float ONNX models with recurrence: zero conversion error at every element, small quantisation
error against the float model."""

from __future__ import annotations

import io
import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

import snnkit
from snnkit.backends import MODES
from snnkit.certificate import Certificate
from snnkit.cli import main
from snnkit.converters import convert
from snnkit.errors import UnsupportedModel
from snnkit.graph import Graph
from snnkit.reference import dense, input_counts
from tests.recurrent_models import Sequences, drawn
from tests.shared_data import HOME, needed

SHARE = 0.05
"""Tolerated quantisation error at 255 levels, as a share of an output's largest value: weights and
states of 8 bits, over a few elements. Found: up to 0.03. A swapped gate or direction is off by
tens of percent."""


def floats(model: onnx.ModelProto, data: dict[str, Any]) -> dict[str, Any]:
    """The float model in onnxruntime (which knows layout 0 only)."""
    from snnkit.converters.float_model import FloatModel

    own = FloatModel(model)
    session = ort.InferenceSession(
        own.model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(names, data), strict=True))


def assert_fires(graph: Graph, data: Any) -> None:
    """Gates, candidates, cells and states are active at more than one element, and not always the
    same; and there are some."""
    values = dense(graph, input_counts(graph, data))
    spiking = [n for n in graph.of("spike") if graph.direction(n.name)]
    assert spiking
    for n in spiking:
        v = values[n.name]
        assert (v != 0).any(axis=(0, *range(2, v.ndim))).sum() > 1, f"{n.name} is silent"
        assert (v != v[:1, :1]).any(), f"{n.name} is constant"


def exact(graph: Graph, data: Any, modes: tuple[str, ...] = MODES) -> Certificate:
    certificate = snnkit.verify(graph, data, modes=modes)
    assert certificate.passed, certificate.first_difference
    return certificate


def assert_close(graph: Graph, data: Any, expected: dict[str, Any], share: float = SHARE) -> None:
    outputs = snnkit.compile(graph, "reference").run(data).outputs
    assert set(outputs) == set(expected)
    for name, y in expected.items():
        found = outputs[name]
        assert found.shape == y.shape and found.dtype == y.dtype
        assert np.abs(found - y).max() <= share * max(np.abs(y).max(), 0.1), name


def pairs(path: Path, x: Any, axis: int) -> dict[str, Any]:
    """The float model's outputs, two samples at a time: the batch of these files."""
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    names = [o.name for o in session.get_outputs()]
    parts = [
        session.run(names, {given.name: x.take(range(i, i + 2), axis)})
        for i in range(0, x.shape[axis], 2)
    ]
    return {
        name: np.concatenate([p[i] for p in parts], {4: 2, 3: 1, 2: 0}[parts[0][i].ndim])
        for i, name in enumerate(names)
    }


SHARED = {
    "burn-onnx/gru": 1,
    "burn-onnx/gru_bidirectional": 2,
    "burn-onnx/lstm": 1,
    "burn-onnx/lstm_reverse": -1,
    "burn-onnx/lstm_bidirectional": 2,
    "burn-onnx/rnn": 1,
    "burn-onnx/rnn_bidirectional": 2,
    "onnx2c/lstm_k1_b1_r1": 1,
}


@needed
@pytest.mark.parametrize("name", SHARED)
def test_models_of_others(name: str, tmp_path: Path) -> None:
    """Trained or made elsewhere: every neuron at every element in every execution."""
    path = HOME / "onnx" / f"{name}.onnx"
    rng = np.random.default_rng(0)
    shape = (24, 5, 5) if "onnx2c" in name else (5, 24, 4)
    x = rng.normal(size=shape).astype(np.float32)
    graph = convert(path, x)
    directions = {d for _, d in graph.sweeps if d}
    assert directions == ({1, -1} if SHARED[name] == 2 else {SHARED[name]})
    assert_fires(graph, x)
    few = x[:2] if "onnx2c" in name else x[:, :2]
    certificate = exact(graph, few)
    titles = list(certificate.executions)
    assert sum("carried" in t for t in titles) == len(MODES)
    assert certificate.steps == 5
    assert_close(graph, x, pairs(path, x, 0 if "onnx2c" in name else 1))
    snnkit.save(graph, tmp_path / "net.onnx")
    assert snnkit.load(tmp_path / "net.onnx").digest == graph.digest
    written = onnx.load(tmp_path / "net.onnx").graph
    for mine, theirs in zip((*written.input, *written.output), _ports(path), strict=True):
        assert mine.name == theirs.name
        assert mine.type.tensor_type.elem_type == theirs.type.tensor_type.elem_type
        assert len(mine.type.tensor_type.shape.dim) == len(theirs.type.tensor_type.shape.dim)


def _ports(path: Path) -> list[Any]:
    graph = onnx.load(path).graph
    constants = {t.name for t in graph.initializer}
    return [v for v in (*graph.input, *graph.output) if v.name not in constants]


@settings(max_examples=10, deadline=None, derandomize=True)
@given(st.integers(0, 2**32 - 1))
def test_random_recurrent_models(seed: int) -> None:
    """Whatever kinds, layers, directions, layouts, lengths, first states and options: no neuron
    differs at any element, and outputs are the float model's but for the quantisation error."""
    model, s = drawn(seed)
    data = s.given
    graph = convert(model, data)
    mode = MODES[seed % len(MODES)]
    exact(graph, s.some(2), (mode,))
    assert_close(graph, data, floats(model, data), 2 * SHARE)


def recurrent(kind: str, **options: Any) -> tuple[onnx.ModelProto, Sequences]:
    """One operator with all its outputs."""
    s = Sequences(np.random.default_rng(5))
    lengths = options.pop("lengths", "")
    if lengths:
        s.free = True
    x = s.sequence()
    if lengths:
        count = np.array([4, 1, 2, 3] * 3, lengths)
        kind_of = {"int32": onnx.TensorProto.INT32, "int64": onnx.TensorProto.INT64}[lengths]
        lengths = s.input("lengths", ["batch"], count, 0, kind_of)
        if kind_of == onnx.TensorProto.INT64:
            lengths = s.op("Cast", [lengths], to=onnx.TensorProto.INT32)[0]
    return s.model(*s.recurrent(kind, x, s.features, 4, lengths=lengths, **options)), s


OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "peepholes": ("LSTM", {"peepholes": True}),
    "coupled": ("LSTM", {"input_forget": 1}),
    "clip": ("LSTM", {"clip": 0.7, "directions": 2}),
    "reset before": ("GRU", {"linear_before_reset": 0}),
    "reset after": ("GRU", {"linear_before_reset": 1}),
    "relu": ("RNN", {"activations": ["Relu"]}),
    "own gates": ("GRU", {"activations": ["HardSigmoid", "Softsign"]}),
    "elu": ("RNN", {"activations": ["Elu", "LeakyRelu"], "directions": 2}),
    "lengths": ("LSTM", {"lengths": "int32", "directions": 2}),
    "long lengths": ("GRU", {"lengths": "int64", "direction": "reverse"}),
    "batch first": ("LSTM", {"layout": 1}),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options(name: str, tmp_path: Path) -> None:
    """Each option of the operators by itself, so that one that is ignored cannot hide."""
    kind, options = OPTIONS[name]
    model, s = recurrent(kind, **options)
    graph = convert(model, s.given)
    assert_fires(graph, s.given)
    exact(graph, s.some(3), ("settle",))
    assert_close(graph, s.given, floats(model, s.given))
    snnkit.save(graph, tmp_path / "net.onnx")
    saved = snnkit.load(tmp_path / "net.onnx")
    assert saved.digest == graph.digest
    written = {v.name: v for v in onnx.load(tmp_path / "net.onnx").graph.input}
    for v in model.graph.input:
        assert written[v.name].type.tensor_type.elem_type == v.type.tensor_type.elem_type


@pytest.mark.parametrize("kind", ["GRU", "LSTM"])
def test_first_states_from_the_data(kind: str) -> None:
    """An encoder's last states start a decoder; a constant starts the encoder."""
    s = Sequences(np.random.default_rng(2), batch_size=12)
    x, z = s.sequence("x"), s.sequence("z")
    count = 2 if kind == "LSTM" else 1
    first = [
        s.constant(np.full((1, s.samples, 4), 0.3 - 0.5 * i, np.float32)) for i in range(count)
    ]
    encoded = s.recurrent(kind, x, s.features, 4, states=first)
    decoded = s.recurrent(kind, z, s.features, 4, states=encoded[1 : 1 + count])
    model = s.model(*decoded)
    graph = convert(model, s.given)
    assert_fires(graph, s.given)
    assert all(n.inputs for n in graph.of("latch") if n.name.startswith(decoded[0]))
    assert all(n.params["initial"].any() for n in graph.of("latch") if not n.inputs)
    exact(graph, s.some(3), ("settle", "events"))
    assert_close(graph, s.given, floats(model, s.given))


@pytest.mark.parametrize("free", [False, True])
def test_elements_that_are_taken(free: bool) -> None:
    """First and last elements of a forward and a backward sweep are four different reads."""
    s = Sequences(np.random.default_rng(3), free=free)
    y = s.recurrent("GRU", s.sequence(), s.features, 4, 2)[0]
    taken = [s.op("Gather", [y, s.constant(np.array(at))], axis=0)[0] for at in (0, -1)]
    model = s.model(*taken)
    graph = convert(model, s.given)
    assert all(b.time is None for b in graph.outputs)
    exact(graph, s.some(3), ("settle",))
    assert_close(graph, s.given, floats(model, s.given))


def test_an_open_number_of_elements() -> None:
    """The same file runs sequences of other lengths than the calibration's, as the float model."""
    s = Sequences(np.random.default_rng(4), free=True)
    model = s.model(*s.recurrent("GRU", s.sequence(), s.features, 4, 2))
    graph = convert(model, s.given)
    assert graph.steps == 0
    for steps in (1, 7):
        x = {"x": s.rng.normal(size=(steps, 3, s.features)).astype(np.float32)}
        exact(graph, x, ("settle",))
        # beyond the calibrated range of a state there is no accuracy to speak of
        assert_close(graph, x, floats(model, x), 0.3)


def test_every_element_is_compared() -> None:
    """One neuron off by one at the first element only is found."""
    model, s = recurrent("GRU")
    graph = convert(model, s.given)
    certificate = exact(graph, s.some(2), ("settle",))
    spiking = sum(n.units for n in graph.of("spike", "lif") if graph.direction(n.name))
    once = certificate.neurons_per_sample - spiking
    timed = [n for n in graph.of("readout") if graph.direction(n.name)]
    steps = 4 * (spiking + sum(n.units for n in timed))
    per_execution = 2 * (steps + once - sum(n.units for n in timed))
    # onnxruntime, numba, numba carried on
    assert certificate.neurons_compared == 3 * per_execution


REFUSED = {
    "activation": (lambda: recurrent("RNN", activations=["ThresholdedRelu"]), "ThresholdedRelu"),
    "lengths of one layer": (lambda: mixed_lengths(), "does not read the lengths"),
    "dense behind lengths": (lambda: dense_behind_lengths(), "behind the end of a sequence"),
    "loop": (lambda: looped(), "as RNN, GRU or LSTM"),
}


def mixed_lengths() -> tuple[onnx.ModelProto, Sequences]:
    _, s = recurrent("GRU", lengths="int32")
    y = s.op("Squeeze", [s.nodes[-1].output[0], s.constant(np.array([1]))])[0]
    return s.model(*s.recurrent("GRU", y, 4, 4)), s


def dense_behind_lengths() -> tuple[onnx.ModelProto, Sequences]:
    _, s = recurrent("GRU", lengths="int32")
    return s.model(s.op("Add", [s.nodes[-1].output[0], s.weights(4)])[0]), s


def looped() -> tuple[onnx.ModelProto, Sequences]:
    s = Sequences(np.random.default_rng(0))
    x = s.sequence()
    float32, int64, truth = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64, onnx.TensorProto.BOOL
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["on"]),
            helper.make_node("Tanh", ["h"], ["after"]),
        ],
        "body",
        [value("i", int64, []), value("go", truth, []), value("h", float32, None)],
        [value("on", truth, []), value("after", float32, None)],
    )
    count = s.constant(np.array(3))
    return s.model(s.op("Loop", [count, "", x], body=body)[0]), s


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is not exact is refused with the node, the reason and what to do; exit code 3."""
    make, reason = REFUSED[name]
    model, s = make()
    with pytest.raises(UnsupportedModel, match=reason) as caught:
        convert(model, s.given)
    assert all(p.node and p.reason and p.remedy for p in caught.value.problems)
    onnx.save(model, tmp_path / "model.onnx")
    np.savez(tmp_path / "x.npz", **s.given)
    out = tmp_path / "net.onnx"
    given = ["--calibration", str(tmp_path / "x.npz"), "-o", str(out)]
    assert main(["convert", str(tmp_path / "model.onnx"), *given]) == 3
    assert reason in capsys.readouterr().err and not out.exists()


def test_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, s = recurrent("GRU")
    onnx.save(model, tmp_path / "gru.onnx")
    np.save(tmp_path / "x.npy", s.given["x"])
    source, net, x = (str(tmp_path / n) for n in ("gru.onnx", "net.onnx", "x.npy"))
    assert main(["convert", source, "-o", net, "--calibration", x]) == 0
    assert main(["verify", net, "--samples", x, "--source", source, "--mode", "settle"]) == 0
    assert "differ" in capsys.readouterr().out


torch = pytest.importorskip("torch", reason="torch is not installed; pip install torch")


class Net(torch.nn.Module):
    """A recurrent layer and what is read of it: its last element, each of them, or all it gives."""

    def __init__(self, kind: Any, layers: int, both: bool, first: bool, read: str, **more: Any):
        super().__init__()
        options = {"bidirectional": both, "batch_first": first, **more}
        self.rnn, self.read = kind(4, 5, layers, **options), read
        self.fc = torch.nn.Linear(10 if both else 5, 3)
        for p in self.rnn.parameters():
            p.data *= 1.5

    def forward(self, x: Any) -> Any:
        y, h = self.rnn(x)
        if self.read == "each":
            return self.fc(y)
        if self.read == "last":
            return self.fc(y[:, -1] if self.rnn.batch_first else y[-1])
        return (y, *(h if isinstance(h, tuple) else (h,)))


NN = torch.nn
EXPORTS = [
    (NN.GRU, 1, False, True, "last"),
    (NN.GRU, 2, True, False, "all"),
    (NN.LSTM, 2, False, False, "last"),
    (NN.LSTM, 1, True, True, "each"),
    (NN.RNN, 1, True, False, "each"),
    (NN.RNN, 2, False, True, "all"),
]


def exported(net: Any, x: Any, dynamo: bool) -> bytes:
    at = 0 if net.rnn.batch_first else 1
    some, buffer = x.narrow(at, 0, 2), io.BytesIO()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dynamo:
            shapes = ({at: torch.export.Dim("batch")},)
            torch.onnx.export(
                net, (some,), dynamo=True, dynamic_shapes=shapes, verbose=False, external_data=False
            ).save(buffer)
        else:
            axes = {"x": {at: "batch", 1 - at: "time"}}
            torch.onnx.export(
                net, (some,), buffer, dynamo=False, input_names=["x"], dynamic_axes=axes
            )
    return buffer.getvalue()


@pytest.mark.parametrize("dynamo", [True, False])
@pytest.mark.parametrize("case", range(len(EXPORTS)))
def test_exports_of_torch(case: int, dynamo: bool) -> None:
    """Both exporters; a swapped gate, direction or layer would be off by tens of percent."""
    torch.manual_seed(case)
    net = Net(*EXPORTS[case]).eval()
    x = torch.randn(24, 4, 4) if net.rnn.batch_first else torch.randn(4, 24, 4)
    content = exported(net, x, dynamo)
    ops = {n.op_type for n in onnx.load_from_string(content).graph.node}
    unrolled = dynamo and isinstance(net.rnn, NN.RNN)
    assert unrolled != bool(ops & {"RNN", "GRU", "LSTM"})
    graph = convert(content, x.numpy())
    # what the newer exporter unrolls is a network that runs once
    assert bool(graph.sweeps) != unrolled
    few = x.narrow(0 if net.rnn.batch_first else 1, 0, 2).numpy()
    exact(graph, few, (MODES[case % len(MODES)],))
    with torch.no_grad():
        y = net(x)
    expected = [t.numpy() for t in (y if isinstance(y, tuple) else (y,))]
    names = [b.name for b in graph.outputs]
    assert_close(graph, x.numpy(), dict(zip(names, expected, strict=True)))


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("kind", [NN.GRU, NN.RNN])
def test_torch_modules(kind: Any, first: bool) -> None:
    torch.manual_seed(1)
    net = Net(kind, 1, False, first, "last").train()
    x = torch.randn(24, 4, 4) if first else torch.randn(4, 24, 4)
    graph = snnkit.convert(net, x.numpy())
    assert net.training and graph.inputs[0].batch == (0 if first else 1)
    exact(graph, x.narrow(0 if first else 1, 0, 2).numpy(), ("settle",))
    with torch.no_grad():
        expected = net.eval()(x).numpy()
    assert_close(graph, x.numpy(), {graph.outputs[0].name: expected})


class Frames(NN.Module):
    """A convolution of every frame, then a GRU, then an output per frame."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = NN.Conv2d(1, 3, 3, padding=1), NN.BatchNorm2d(3)
        self.rnn, self.fc = NN.GRU(27, 6, batch_first=True), NN.Linear(6, 3)

    def forward(self, x: Any) -> Any:
        z = NN.functional.max_pool2d(torch.relu(self.norm(self.conv(x.flatten(0, 1)))), 2)
        y, _ = self.rnn(z.reshape(*x.shape[:2], -1))
        return self.fc(y)


def test_convolutions_of_frames() -> None:
    """Samples and elements merged into one axis and taken apart again: one sweep."""
    torch.manual_seed(0)
    net, x = Frames().eval(), torch.randn(16, 4, 1, 6, 6)
    graph = snnkit.convert(net, x.numpy())
    assert [d for _, d in graph.sweeps] == [1]
    assert_fires(graph, x.numpy())
    exact(graph, x[:2].numpy(), ("settle",))
    with torch.no_grad():
        expected = net(x).numpy()
    assert_close(graph, x.numpy(), {graph.outputs[0].name: expected})
