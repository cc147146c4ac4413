"""Convolutions over time in front of recurrence, and what reads all elements behind it."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

import snnkit
from snnkit.backends import MODES
from snnkit.cli import main
from snnkit.converters import convert
from snnkit.errors import BadCalibration, UnsupportedModel, UsageError
from tests.recurrent_models import Sequences
from tests.test_recurrent_import import assert_close, assert_fires, exact, floats

NN = torch.nn
CHANNELS, STEPS, HIDDEN = 2, 10, 4


def convolved(s: Sequences, pool: int = 1) -> str:
    """A convolution over the time of an input [N, C, T], as [T, N, F]."""
    value = s.rng.normal(size=(s.samples, CHANNELS, STEPS)).astype(np.float32)
    x = s.input("x", ["batch", CHANNELS, STEPS], value, 0)
    kernel, bias = s.weights(5, CHANNELS, 3, scale=0.5), s.weights(5, scale=0.3)
    # the border sees fewer elements, so its charges have offsets of their own
    y = s.op("Relu", s.op("Conv", [x, kernel, bias], pads=[1, 1]))[0]
    if pool > 1:
        y = s.op("MaxPool", [y], kernel_shape=[pool], strides=[pool])[0]
    return s.op("Transpose", [y], perm=[2, 0, 1])[0]


def axes(s: Sequences, *values: int) -> str:
    return s.constant(np.array(values))


def mean(s: Sequences, y: str, steps: int) -> str:
    return s.op("ReduceMean", [y, axes(s, 0)], keepdims=0)[0]


def largest(s: Sequences, y: str, steps: int) -> str:
    return s.op("ReduceMax", [y, axes(s, 0)], keepdims=0)[0]


def third(s: Sequences, y: str, steps: int) -> str:
    return s.op("Gather", [y, axes(s, 2)], axis=0)[0]


def sixth(s: Sequences, y: str, steps: int) -> str:
    """The last of six, which of any other number it is not."""
    return s.op("Gather", [y, axes(s, 5)], axis=0)[0]


def reversed_order(s: Sequences, y: str, steps: int) -> str:
    return s.op("Slice", [y, axes(s, -1), axes(s, -1000), axes(s, 0), axes(s, -1)])[0]


def differences(s: Sequences, y: str, steps: int) -> str:
    ends = [
        s.op("Slice", [y, axes(s, a), axes(s, b), axes(s, 0)])[0]
        for a, b in ((1, steps), (0, steps - 1))
    ]
    return s.op("Sub", ends)[0]


def positions(s: Sequences, y: str, steps: int) -> str:
    where = s.constant(np.linspace(-1, 1, steps).astype(np.float32).reshape(-1, 1, 1, 1))
    return s.op("Add", [y, where])[0]


def dense_head(s: Sequences, y: str, steps: int) -> str:
    directions = 2 if any(a.s == b"bidirectional" for n in s.nodes for a in n.attribute) else 1
    flat = s.op("Flatten", s.op("Transpose", [y], perm=[2, 0, 1, 3]))[0]
    return s.op("Gemm", [flat, s.weights(3, steps * directions * HIDDEN)], transB=1)[0]


def last_and_mean(s: Sequences, y: str, steps: int) -> str:
    last = s.op("Gather", [y, axes(s, -1)], axis=0)[0]
    return s.op("Add", [last, s.op("ReduceMean", [y, axes(s, 0)], keepdims=1)[0]])[0]


def again(s: Sequences, y: str, steps: int) -> str:
    """A convolution behind the recurrence, and a recurrence behind that."""
    whole = s.op("Squeeze", [*s.op("Transpose", [y], perm=[1, 2, 3, 0]), axes(s, 0)])[0]
    wider = s.op("Relu", s.op("Conv", [whole, s.weights(5, HIDDEN, 3)], pads=[1, 1]))[0]
    return s.recurrent("GRU", s.op("Transpose", [wider], perm=[2, 0, 1])[0], 5, HIDDEN)[0]


HEADS: list[tuple[Callable[[Sequences, str, int], str], str, int, int]] = [
    (mean, "GRU", 1, 1),
    (largest, "LSTM", 1, 2),
    (third, "LSTM", 1, 2),
    (reversed_order, "GRU", 2, 1),
    (differences, "LSTM", 2, 2),
    (positions, "RNN", 1, 2),
    (dense_head, "GRU", 2, 2),
    (last_and_mean, "GRU", 1, 2),
    (again, "GRU", 1, 2),
]


def drawn(case: int) -> tuple[onnx.ModelProto, Sequences]:
    head, kind, directions, pool = HEADS[case]
    s = Sequences(np.random.default_rng(case), samples=24)
    y = s.recurrent(kind, convolved(s, pool), 5, HIDDEN, directions)[0]
    return s.model(head(s, y, STEPS // pool)), s


@pytest.mark.parametrize("case", range(len(HEADS)))
def test_a_convolution_in_front_and_a_head_on_all_elements(case: int) -> None:
    """Every neuron, in every order, at rest or carried; and the float model's meaning: a wrong
    element, direction or border is off by tens of percent."""
    model, s = drawn(case)
    graph = convert(model, s.given)
    assert graph.steps == STEPS // HEADS[case][3] and graph.of("stack", "unstack")
    assert all(b.time is None for b in graph.inputs)
    assert_fires(graph, s.given)
    certificate = exact(graph, s.some(3), MODES)
    assert any("carried" in name for name in certificate.executions)
    assert_close(graph, s.given, floats(model, s.given))


def test_the_border_of_a_convolution_without_neurons() -> None:
    """Behind it a charge means something else at the border, where the input's offset is missing;
    elements have to mean the same at every step."""
    s = Sequences(np.random.default_rng(2), samples=24)
    value = 1 + s.rng.integers(0, 40, (s.samples, CHANNELS, STEPS)).astype(np.float32) / 40
    x = s.input("x", ["batch", CHANNELS, STEPS], value, 0)
    y = s.op("Conv", [x, s.weights(5, CHANNELS, 3, scale=0.5), s.weights(5)], pads=[1, 1])
    turned = s.op("Transpose", y, perm=[2, 0, 1])[0]
    model = s.model(s.recurrent("GRU", turned, 5, HIDDEN)[0])
    graph = convert(model, s.given)
    assert graph.inputs[0].offset.any()
    exact(graph, s.some(3), ("settle",))
    assert_close(graph, s.given, floats(model, s.given))


class Recogniser(NN.Module):
    """Convolution, batch norm, pooling; two recurrent layers; a head on the mean of all elements
    and of what the convolution found."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.pool = NN.Conv1d(3, 8, 5, padding=2), NN.BatchNorm1d(8), None
        self.rnn = NN.GRU(8, 4, 2, batch_first=True, bidirectional=True)
        self.head = NN.Linear(8, 4)
        self.norm.running_mean.normal_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.norm(self.conv(x)))
        y = NN.functional.max_pool1d(y, 2).transpose(1, 2)
        found: torch.Tensor = self.head((self.rnn(y)[0] + y).mean(dim=1))
        return found


def export(net: NN.Module, x: torch.Tensor) -> bytes:
    """A file that says the number of elements is open."""
    buffer, named = io.BytesIO(), {"x": {0: "batch", 2: "time"}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(net, (x,), buffer, dynamo=False, input_names=["x"], dynamic_axes=named)
    return buffer.getvalue()


@pytest.mark.parametrize("exported", [False, True])
def test_a_network_of_torch(exported: bool) -> None:
    """As a module, which the newer exporter exports, and as the older one's file."""
    torch.manual_seed(1)
    net, x = Recogniser().eval(), torch.randn(32, 3, 12)
    graph = convert(export(net, x) if exported else net, x.numpy())
    assert graph.steps == 6 and graph.of("stack") and graph.of("unstack")
    assert_fires(graph, x.numpy())
    exact(graph, x[:2].numpy(), ("settle", "fuzz"))
    with torch.no_grad():
        y = net(x).numpy()
    assert_close(graph, x.numpy(), {graph.outputs[0].name: y})


def open_length(head: Any) -> tuple[onnx.ModelProto, Sequences]:
    s = Sequences(np.random.default_rng(5), steps=6, samples=24, free=True)
    return s.model(head(s, s.recurrent("GRU", s.sequence(), s.features, HIDDEN)[0], 6)), s


@pytest.mark.parametrize("head", [mean, third, sixth, dense_head])
def test_an_open_number_of_elements_is_fixed_by_the_data(head: Any) -> None:
    """... where something reads them all; the file says so, and takes no other number."""
    model, s = open_length(head)
    graph = convert(model, s.given)
    assert graph.steps == 6 and graph.inputs[0].dims == (6, "batch", s.features)
    assert graph.meta["elements"].startswith("6, as in the data")
    exact(graph, s.some(3), ("settle",))
    assert_close(graph, s.given, floats(model, s.given))
    with pytest.raises(BadCalibration, match="6"):
        snnkit.compile(graph, "numba").run(s.given["x"][:5])


def test_the_command_line_says_that_the_data_fixed_the_length(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, s = open_length(mean)
    onnx.save(model, tmp_path / "open.onnx")
    np.save(tmp_path / "x.npy", s.given["x"])
    source, net, x = (str(tmp_path / n) for n in ("open.onnx", "net.onnx", "x.npy"))
    assert main(["convert", source, "-o", net, "--calibration", x, "--verify", "2"]) == 0
    assert "number of elements fixed: 6, as in the data" in capsys.readouterr().err


def two_lengths() -> tuple[onnx.ModelProto, Sequences]:
    s = Sequences(np.random.default_rng(0))
    y = s.op("Squeeze", [s.recurrent("GRU", s.sequence(), s.features, 4)[0], axes(s, 1)])[0]
    shorter = s.op("Slice", [y, axes(s, 0), axes(s, 3), axes(s, 0)])[0]
    return s.model(s.recurrent("GRU", shorter, 4, 4)[0]), s


def mean_behind_lengths() -> tuple[onnx.ModelProto, Sequences]:
    s = Sequences(np.random.default_rng(0), free=True)
    lengths = s.rng.integers(1, 5, s.samples).astype(np.int32)
    named = s.input("lengths", ["batch"], lengths, 0, onnx.TensorProto.INT32)
    y = s.recurrent("GRU", s.sequence(), s.features, 4, lengths=named)[0]
    return s.model(mean(s, y, 4)), s


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (two_lengths, r"a sequence of 3 elements, another operator one of 4"),
        (mean_behind_lengths, "reduces the elements of a sequence"),
    ],
)
def test_what_is_refused(make: Any, reason: str) -> None:
    model, s = make()
    with pytest.raises(UnsupportedModel, match=reason) as caught:
        convert(model, s.given)
    assert all(p.node and p.remedy for p in caught.value.problems)


def test_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, s = drawn(0)
    onnx.save(model, tmp_path / "crnn.onnx")
    np.save(tmp_path / "x.npy", s.given["x"])
    source, net, x = (str(tmp_path / n) for n in ("crnn.onnx", "net.onnx", "x.npy"))
    assert main(["convert", source, "-o", net, "--calibration", x]) == 0
    assert main(["verify", net, "--samples", x, "--source", source, "--mode", "settle"]) == 0
    assert main(["info", net]) == 0
    capsys.readouterr()
    with pytest.raises(UsageError, match="all elements of") as caught:
        snnkit.compile(snnkit.load(net), "numba").stream()
    assert "give whole sequences to `run`" in str(caught.value)
