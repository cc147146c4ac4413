"""ONNX's own operator tests as a corpus: each model converts exactly, or is refused by name.

Every single-operator model that the `onnx` package carries is given to the converter in two
forms: as it is, and with all inputs but the first made constants (weights, axes, shapes), which is
how exporters write them. The models exported from PyTorch that lie beside them are given as they
are.
"""

from __future__ import annotations

import time
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnx.backend.test.loader import load_model_tests

from snnkit.boundary import as_inputs, quantise, read_out
from snnkit.certificate import verify
from snnkit.converters import convert
from snnkit.errors import SnnkitError
from snnkit.graph import Boundary, Graph
from snnkit.reference import dense

SHARE = 0.01
"""Tolerated error as a share of a tensor's range. A single operator rounds at most three times:
its input to 255 steps (off by 1/510 of the range), its weights to 254 (1/254 of the largest), its
result to 255 (1/510); together 0.8 %. The largest found is 0.79 %; a wrong pad, axis or sign is off
by tens of percent."""
MORE = 0.02
"""The same for recurrent operators, which round gates, candidates and states at each element."""
RECURRENT = ("RNN", "GRU", "LSTM")
SECONDS = 20


@dataclass
class Case:
    """One model with one sample batch and the outputs that ONNX expects."""

    name: str
    model: onnx.ModelProto
    inputs: list[Any]
    outputs: list[Any]


@dataclass
class Outcome:
    """What became of a case: refused, converted or crashed; why; and what was compared."""

    case: Case
    kind: str
    message: str = ""
    graph: Graph | None = None
    exact: bool = False
    gaps: tuple[tuple[float, float], ...] = ()
    seconds: float = 0.0


def node_cases() -> Iterator[Case]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy's, while onnx makes its expected outputs
        tests = load_model_tests(kind="node")
    for test in tests:
        inputs, outputs = test.data_sets[0]
        case = Case(test.name, test.model, list(inputs), list(outputs))
        yield case
        if len(inputs) > 1:
            yield with_constants(case)


def with_constants(case: Case) -> Case:
    """The same model in which only the first tensor of numbers is an input."""
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    ports, kept, data = list(model.graph.input), [], []
    for port, value in zip(ports, case.inputs, strict=True):
        plain = isinstance(value, np.ndarray) and value.ndim and value.dtype.kind in "fiu"
        if isinstance(value, onnx.TensorProto):
            tensor = onnx.TensorProto()
            tensor.CopyFrom(value)
            tensor.name = port.name
            model.graph.initializer.append(tensor)
        elif isinstance(value, (np.ndarray, np.generic)) and (kept or not plain):
            model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), port.name))
        else:  # the data; or a sequence, which cannot be a constant
            kept.append(port)
            data.append(value)
    del model.graph.input[:]
    model.graph.input.extend(kept)
    return Case(f"{case.name}, constants", model, data, case.outputs)


def exported_cases() -> Iterator[Case]:
    for kind in ("pytorch-converted", "pytorch-operator"):
        for test in load_model_tests(kind=kind):
            folder = Path(test.model_dir)
            model = onnx.load(folder / "model.onnx")
            found = []
            for name in ("input", "output"):
                paths = sorted(folder.glob(f"test_data_set_0/{name}_*.pb"))
                tensors = [onnx.load_tensor_from_string(p.read_bytes()) for p in paths]
                found.append([numpy_helper.to_array(t) for t in tensors])
            yield Case(f"{kind} {test.name}", model, *found)


def batch_axis(case: Case) -> int:
    """Recurrent operators read [T, N, F] and [D, N, H], or the batch first in layout 1."""
    (node, *_) = case.model.graph.node or [onnx.NodeProto()]
    layouts = [a.i for a in node.attribute if a.name == "layout"] or [0]
    return 1 - layouts[0] if node.op_type in RECURRENT else 0


def calibration(value: Any, axis: int = 0) -> Any:
    """The test's own input and noisy copies of it, along the batch axis."""
    if not isinstance(value, np.ndarray) or not value.size or not value.ndim:
        return value
    rng = np.random.default_rng(0)
    axis = axis if value.ndim > axis else 0
    rows = max(1, 16 // value.shape[axis])
    parts = [value]
    with np.errstate(all="ignore"):
        for _ in range(rows):
            if value.dtype.kind == "f":
                spread = 0.05 * np.ptp(value.astype(np.float64))
                parts.append(value + rng.normal(0, 1, value.shape) * spread)
            elif value.dtype.kind in "iu":
                parts.append(rng.integers(value.min(), value.max(), value.shape, endpoint=True))
            else:
                parts.append(value)
        return np.concatenate(parts, axis).astype(value.dtype)


def attempt(case: Case) -> Outcome:
    start = time.perf_counter()
    named = {t.name for t in case.model.graph.initializer}
    ports = [p.name for p in case.model.graph.input if p.name not in named]
    data = dict(zip(ports, case.inputs, strict=True))
    try:
        axis = batch_axis(case)
        noisy = {name: calibration(value, axis) for name, value in data.items()}
        graph = convert(case.model.SerializeToString(), noisy, calibrator="minmax")
        found = verify(graph, data, backends=("reference",), modes=("settle",))
        outcome = Outcome(case, "converted", str(found.first_difference), graph, found.passed)
        outcome.gaps = tuple(gaps(case, graph, data))
    except SnnkitError as error:
        outcome = Outcome(case, "refused", f"{type(error).__name__}: {error}")
    except Exception as error:
        outcome = Outcome(case, "crashed", f"{type(error).__name__}: {error}")
    outcome.seconds = time.perf_counter() - start
    return outcome


def gaps(case: Case, graph: Graph, data: dict[str, Any]) -> Iterator[tuple[float, float]]:
    """(largest gap, tolerated gap) between the network's output and ONNX's, for each output."""
    x = as_inputs(graph, data)
    values = dense(
        graph, {b.node: quantise(b, graph.node[b.node], x[b.name]) for b in graph.inputs}
    )
    for b, expected in zip(graph.outputs, case.outputs, strict=True):
        found = read_out(graph, b, values[b.node])
        assert found.shape == expected.shape, (found.shape, expected.shape)
        if b.post:
            yield behind_logits(case, b, found, expected, x[graph.inputs[0].name])
            continue
        floats = np.asarray(expected, np.float64)
        extent = max(0.0, floats.max()) - min(0.0, floats.min())
        share = MORE if case.model.graph.node[0].op_type in RECURRENT else SHARE
        yield float(np.abs(found.astype(np.float64) - floats).max()), share * extent


def behind_logits(
    case: Case, b: Boundary, found: Any, expected: Any, logits: Any
) -> tuple[float, float]:
    """Softmax and ArgMax amplify, so their error follows from the error d of the logits.

    Softmax is off by at most exp(2 d) - 1, LogSoftmax by 2 d; the logit at the index that ArgMax
    gives is at most 2 d below the largest.
    """
    *before, last = [n.op_type for n in case.model.graph.node]
    assert last == b.post[0]["op"] and before in ([], ["Neg"]), "the logits are not the input"
    wide = logits.astype(np.float64) * (-1 if before else 1)
    d = SHARE * (max(0.0, wide.max()) - min(0.0, wide.min()))
    step = b.post[0]
    if step["op"] == "ArgMax":
        axis = step["axis"]
        index = found if step["keepdims"] else np.expand_dims(found, axis)
        chosen = np.take_along_axis(wide, index, axis)
        return float((wide.max(axis=axis, keepdims=True) - chosen).max()), 2 * d
    gap = float(np.abs(found.astype(np.float64) - expected.astype(np.float64)).max())
    return gap, 2 * d if step["op"] == "LogSoftmax" else float(np.expm1(min(2 * d, 100.0)))


@pytest.fixture(scope="module")
def node_outcomes() -> list[Outcome]:
    return [attempt(case) for case in node_cases()]


@pytest.fixture(scope="module")
def exported_outcomes() -> list[Outcome]:
    return [attempt(case) for case in exported_cases()]


@pytest.fixture(scope="module", params=["node", "exported"])
def outcomes(request: pytest.FixtureRequest) -> list[Outcome]:
    found: list[Outcome] = request.getfixturevalue(f"{request.param}_outcomes")
    return found


def listed(bad: list[Outcome]) -> str:
    return "\n".join(f"{o.case.name}: {o.kind} {o.message} {o.gaps}" for o in bad)


def test_nothing_crashes_or_hangs(outcomes: list[Outcome]) -> None:
    """Whatever the operator, the type or the shape: a network, or an error of ours."""
    bad = [o for o in outcomes if o.kind == "crashed" or o.seconds > SECONDS]
    assert not bad, listed(bad)


def test_a_refusal_names_the_operator_or_the_input(outcomes: list[Outcome]) -> None:
    """A user can find the place: by operator, by tensor, or in onnxruntime's own words."""

    def names(o: Outcome) -> bool:
        graph = o.case.model.graph
        operators = [f"({n.op_type})" for n in graph.node]
        operators += [f"({n.op_type})" for f in o.case.model.functions for n in f.node]
        operators += [f"({n.domain}.{n.op_type})" for n in graph.node]
        tensors = [f"'{p.name}'" for p in (*graph.input, *graph.output)]
        own = ["onnxruntime cannot run", "(model): no inputs"]
        return any(text in o.message for text in (*operators, *tensors, *own))

    bad = [o for o in outcomes if o.kind == "refused" and not names(o)]
    assert not bad, listed(bad)


def test_what_converts_is_exact(outcomes: list[Outcome]) -> None:
    """onnxruntime on net.onnx equals the definition on every neuron and every output bit."""
    bad = [o for o in outcomes if o.kind == "converted" and not o.exact]
    assert not bad, listed(bad)


def test_what_converts_is_close_to_what_onnx_expects(outcomes: list[Outcome]) -> None:
    """The operator was read with ONNX's meaning: the rest is quantisation error."""
    done = [o for o in outcomes if o.kind == "converted"]
    assert all(o.gaps for o in done)
    bad = [o for o in done if any(not gap <= most for gap, most in o.gaps)]
    assert not bad, listed(bad)


def test_integer_arithmetic_is_refused(node_outcomes: list[Outcome]) -> None:
    """uint8 sums wrap round and integer quotients are cut; a network of ours does neither."""
    names = [
        f"test_{op}_{kind}" for op in ("add", "sub", "mul", "div") for kind in ("int8", "uint8")
    ]
    found = [o for o in node_outcomes if o.case.name.split(",")[0] in names]
    assert len(found) == 2 * len(names)
    assert not [o.case.name for o in found if o.kind != "refused"]


def test_recurrent_operators_convert_with_constant_weights(node_outcomes: list[Outcome]) -> None:
    """All that onnx carries, each in the form that exporters write."""
    cases = [
        o
        for o in node_outcomes
        if o.case.model.graph.node[0].op_type in RECURRENT and o.case.name.endswith("constants")
    ]
    assert len(cases) >= 10
    bad = [o for o in cases if o.kind != "converted"]
    assert not bad, listed(bad)


def test_the_node_corpus_is_not_empty(node_outcomes: list[Outcome]) -> None:
    """An empty corpus proves nothing. Found with onnx 1.23.2: 3251 cases, 207 convert, 49 ops."""
    count = Counter(o.kind for o in node_outcomes)
    operators = {o.case.model.graph.node[0].op_type for o in node_outcomes if o.kind == "converted"}
    assert count.total() >= 3200, count
    assert count["converted"] >= 200, count
    assert len(operators) >= 47, operators


def test_the_exported_corpus_is_not_empty(exported_outcomes: list[Outcome]) -> None:
    """Found with onnx 1.23.2: 117 cases, 62 convert."""
    count = Counter(o.kind for o in exported_outcomes)
    assert count.total() >= 110, count
    assert count["converted"] >= 60, count


@pytest.mark.parametrize("operator", ["MatMul", "ReduceMax"])
def test_operators_that_read_all_channels_of_an_input(operator: str) -> None:
    """Channels of 8-bit data keep grids of their own, which such an operator cannot read as one."""
    rng = np.random.default_rng(0)
    channels = [rng.integers(0, 256, (20, 4)) * step for step in (1, 3)]
    x = np.stack(channels, axis=1).astype(np.float32)
    constant = np.ones((4, 3), np.float32) if operator == "MatMul" else np.array([1])
    expected = x @ constant if operator == "MatMul" else x.max(axis=1, keepdims=True)
    body = helper.make_graph(
        [helper.make_node(operator, ["x", "c"], ["y"])],
        operator,
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 2, 4])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        [numpy_helper.from_array(constant, "c")],
    )
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    outcome = attempt(Case(operator, model, [x], [expected]))
    assert outcome.exact, outcome.message
    assert all(gap <= most for gap, most in outcome.gaps), outcome.gaps


def test_an_old_model_with_an_array_that_nobody_reads() -> None:
    """IR version 3, as PyTorch wrote BatchNorm's counter: among the inputs, read by no node."""
    x = np.linspace(-1, 1, 40, dtype=np.float32).reshape(10, 4)
    float32, int64 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64
    body = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "old",
        [
            helper.make_tensor_value_info("x", float32, ["batch", 4]),
            helper.make_tensor_value_info("num_batches_tracked", int64, []),
        ],
        [helper.make_tensor_value_info("y", float32, ["batch", 4])],
        [numpy_helper.from_array(np.array(3), "num_batches_tracked")],
    )
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", 9)], ir_version=3)
    outcome = attempt(Case("old", model, [x], [np.maximum(x, 0)]))
    assert outcome.exact, outcome.message
