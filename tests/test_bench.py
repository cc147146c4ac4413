"""snnkit bench: statistics, rivals that compute what they should, and no time without a proof."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

pytest.importorskip("numba")

import snnkit
from snnkit.backends.numba_cpu import NumbaProgram
from snnkit.backends.numba_cpu.fast.isa import ISAS, host_features, missing
from snnkit.bench import bench, timing
from snnkit.bench.inputs import batches, input_density, random_inputs
from snnkit.bench.peak import CHANNELS, STEPS, SUMS, peak_macs, register_loop
from snnkit.bench.qdq import qdq_model, staircase_line
from snnkit.bench.rivals import (
    FP32,
    INT8,
    NET,
    free_batch,
    int8_kernels,
    onnxruntime_rivals,
    operators,
    quantised,
    session,
)
from snnkit.bench.table import cells, conditions, markdown
from snnkit.bench.timing import Spread, interleaved
from snnkit.bench.torch_rivals import INSTALL, torch_rivals
from snnkit.boundary import as_inputs, quantise
from snnkit.cli import main
from snnkit.errors import UnsupportedModel, UsageError, VerificationFailed
from snnkit.graph import Graph, make_node
from tests.models import Builder, cases

DIGITS = Path(__file__).parents[1] / "examples" / "digits_cnn.onnx"
HERE = [name for name, isa in ISAS.items() if not missing(isa, host_features())]


def small() -> Builder:
    """conv - ReLU - conv - ReLU - linear, without anything that a chain cannot hold."""
    b = Builder((3, 9, 7))
    b.conv(8, 3, strides=[2, 2], pads=[1, 1, 1, 1])
    b.op("Relu")
    b.conv(6, 8, pads=[1, 1, 1, 1])
    b.op("Relu")
    b.op("Flatten")
    b.linear(10, 6 * 5 * 4)
    return b


@pytest.fixture(scope="module")
def net() -> tuple[Graph, onnx.ModelProto, np.ndarray]:
    b = small()
    x, model = b.samples(64), b.model()
    return snnkit.convert(model, x, levels=15), model, x


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """(folder with net.onnx and x.npy, images): the shipped example, converted."""
    datasets = pytest.importorskip(
        "sklearn.datasets", reason="scikit-learn is not installed; pip install scikit-learn"
    )
    folder = tmp_path_factory.mktemp("digits")
    x = datasets.load_digits().images[:, None].astype(np.float32)
    snnkit.save(snnkit.convert(str(DIGITS), x[:512], levels=15), folder / "net.onnx")
    np.save(folder / "x.npy", x[512:612])
    return folder, x[512:]


# statistics


def test_spread_and_ratios() -> None:
    ours, rival = Spread.of([3.0, 1.0, 2.0]), Spread.of([8.0, 5.0, 4.0, 7.0])
    assert (ours.median, ours.least, ours.most) == (2.0, 1.0, 3.0)
    assert rival.median == 6.0
    assert ours.ratios(rival) == (3.0, 4.0)
    assert ours.json() == {"median_us": 2e6, "min_us": 1e6, "max_us": 3e6}


class Clock:
    """Time that passes only where a candidate says so."""

    def __init__(self) -> None:
        self.wall = self.cpu = 0.0
        self.ran: list[str] = []

    def perf_counter(self) -> float:
        return self.wall

    def thread_time(self) -> float:
        return self.cpu

    def sleep(self, seconds: float) -> None:
        self.wall += seconds
        self.ran.clear()  # what ran before was warming up

    def candidate(self, name: str, cpu: float, idle: float):
        def call(samples: int) -> None:
            self.ran.append(name)
            self.cpu += cpu * samples
            self.wall += (cpu + idle) * samples

        return call


def test_times_are_per_sample_in_turns_and_on_the_right_clock(monkeypatch) -> None:
    clock = Clock()
    monkeypatch.setattr(timing, "time", clock)
    costs = {"a": (2e-3, 0.0), "b": (6e-3, 1e-3), "c": (1.0, 0.0)}
    candidates = {name: clock.candidate(name, *cost) for name, cost in costs.items()}
    inputs = [4, 2, 4]  # the fake candidates take their number of samples as input
    found = interleaved(candidates, inputs, inputs, rounds=6)
    for name, (cpu, idle) in costs.items():
        for spread, expected in ((found[name].cpu, cpu), (found[name].wall, cpu + idle)):
            for value in (spread.median, spread.least, spread.most):
                assert value == pytest.approx(expected)
    turns = [n for i, n in enumerate(clock.ran) if i == 0 or clock.ran[i - 1] != n]
    assert "".join(turns) == "abc" + "bca" + "cab" + "abc" + "bca" + "cab"
    # quick candidates run whole passes, so that each sees the same inputs
    assert clock.ran.count("a") % (6 * len(inputs)) == 0


def test_batches_hold_whole_batches_in_order() -> None:
    x = {"x": np.arange(70).reshape(10, 7)}
    some = batches(x, 4)
    assert [len(p["x"]) for p in some] == [4, 4]
    assert np.array_equal(np.concatenate([p["x"] for p in some]), x["x"][:8])


# inputs


@pytest.mark.parametrize("density", (0.0, 0.03, 0.5, 1.0))
def test_random_inputs_have_the_density_and_lie_on_the_grid(net, density) -> None:
    graph, _, x = net
    made = random_inputs(graph, density, 200, seed=1)
    units, words = input_density(graph, made)
    count = 200 * graph.node[graph.inputs[0].node].units
    assert abs(units - density) <= 4 * (density * (1 - density) / count) ** 0.5
    # three channels make one word
    expected = 1 - (1 - density) ** 3
    assert abs(words - expected) <= 4 * (expected * (1 - expected) * 3 / count) ** 0.5
    b = graph.inputs[0]
    levels = quantise(b, graph.node[b.node], made["x"])
    assert np.array_equal((levels * b.scale + b.offset).astype(np.float32), made["x"])
    assert np.array_equal(random_inputs(graph, density, 200, seed=1)["x"], made["x"])
    real = random_inputs(graph, density, 200, seed=1, real={"x": x})
    assert set(np.unique(real["x"])) <= {
        *np.unique(quantise(b, graph.node[b.node], x) * b.scale + b.offset).astype(np.float32),
        *np.unique(b.offset),
    }


def test_a_density_outside_its_range_is_refused(net) -> None:
    with pytest.raises(UsageError, match=r"density 1\.5"):
        random_inputs(net[0], 1.5, 4, seed=0)


# rivals


def test_the_int8_rival_of_the_source_computes_the_source(digits) -> None:
    folder, x = digits
    source = onnx.load(DIGITS)
    name = snnkit.load(folder / "net.onnx").inputs[0].name
    int8 = quantised(source, {name: x})
    arrays = {t.name: onnx.numpy_helper.to_array(t) for t in int8.graph.initializer}
    weights = {name: a for name, a in arrays.items() if a.dtype == np.int8 and a.ndim == 4}
    assert len(weights) >= 2
    for weight in weights.values():  # per channel, over the full range
        assert (np.abs(weight.reshape(len(weight), -1)).max(1) >= 126).all()
    runs = operators(int8)
    assert runs.get("QLinearConv", 0) >= 2 and "Conv" not in runs and "FusedConv" not in runs
    expected = session(free_batch(source), 1).run(None, {name: x})[0]
    found = session(int8, 1).run(None, {name: x})[0]
    assert (found.argmax(1) == expected.argmax(1)).mean() >= 0.99
    # quantised at 8 bits: not the same, and not far
    gap = np.abs(found - expected).mean() / np.abs(expected).mean()
    assert 0 < gap < 0.05


CURVED = {
    *("Clip away from zero", "Elu", "HardSwish", "LeakyRelu", "LeakyRelu falling", "PRelu"),
    *("Selu", "Sigmoid", "Softplus", "Tanh", "concat", "tokens"),
}
"""Cases with an activation that is no straight staircase."""


@pytest.mark.parametrize("name", sorted(cases()))
def test_the_int8_rival_of_a_graph_is_the_graph(name) -> None:
    """Bit for bit, for every operator whose staircases are straight; others are refused."""
    b = cases()[name]
    x = b.samples(40)
    graph = snnkit.convert(b.model(), x, levels=15, staircase="uniform")
    if name in CURVED:
        with pytest.raises(UnsupportedModel, match="straight line"):
            qdq_model(graph)
        return
    model = qdq_model(graph)
    result = snnkit.compile(graph, "reference").run(x, record=("spike",))
    assert all(np.any(v) for v in result.counts.values())
    outputs = [o.name for o in graph.outputs]
    found = session(model, 1).run(outputs, as_inputs(graph, x))
    for port, value in zip(graph.outputs, found, strict=True):
        if any(step["op"] != "ArgMax" for step in port.post):
            np.testing.assert_allclose(value, result.outputs[port.name], atol=1e-5)
        else:
            assert np.array_equal(value, result.outputs[port.name])


def test_a_straight_ladder_is_taken(net) -> None:
    """255 levels are ladders with steps that differ by one charge: off by a level at most there."""
    _, model, x = net
    graph = snnkit.convert(model, x, levels=255)
    assert {n.attrs["kind"] for n in graph.of("spike")} == {"ladder"}
    expected = snnkit.compile(graph, "reference").run(x).outputs
    for name, value in zip(
        expected, session(qdq_model(graph), 1).run(list(expected), {"x": x}), strict=True
    ):
        gap = np.abs(value - expected[name]).max()
        assert gap < 0.02 * np.abs(expected[name]).max()


@pytest.mark.parametrize("seed", range(8))
def test_a_staircase_as_a_line_is_the_staircase(seed) -> None:
    """rint((A + bias) * rate) in float32 is floor((A + init) / theta) around every threshold."""
    rng = np.random.default_rng(seed)
    levels = int(rng.choice([1, 3, 15, 255]))
    theta = rng.integers(1, 2**20 // (levels + 1), 64)
    init = rng.integers(-(2**18), 2**18, 64)
    source = make_node("x", "input", (), {}, {"shape": (64, 4, 4), "lo": 0, "hi": 255})
    params = {"theta": theta.reshape(64, 1, 1), "init": init.reshape(64, 1, 1)}
    node = make_node("s", "spike", (source,), params, {"kind": "uniform", "lo": 0, "hi": levels})
    bias, rate = (np.asarray(a).reshape(64, 1) for a in staircase_line(node))
    k = np.arange(-1, levels + 2)
    charge = (k * theta[:, None])[..., None] - init[:, None, None] + np.array([-2, -1, 0, 1])
    charge = charge.reshape(64, -1)
    line = np.rint((charge + bias).astype(np.float32) * rate.astype(np.float32))
    expected = (charge + init[:, None]) // theta[:, None]
    assert np.array_equal(line.clip(0, levels), expected.clip(0, levels))


def test_onnxruntime_rivals(net) -> None:
    graph, model, x = net
    found = onnxruntime_rivals(graph, model, {"x": x}, 1)
    assert sorted(found.candidates) == sorted([FP32, INT8, NET]) and not found.left_out
    outputs = {name: call({"x": x[:5]})[0] for name, call in found.candidates.items()}
    assert np.array_equal(outputs[NET], next(iter(snnkit.compile(graph).infer(x[:5]).values())))
    assert all(np.array_equal(y.argmax(1), outputs[FP32].argmax(1)) for y in outputs.values())
    alone = onnxruntime_rivals(graph, None, {"x": x}, 1)
    assert sorted(alone.candidates) == sorted([INT8, NET])
    assert "--source" in alone.left_out[FP32]


def test_a_source_with_a_batch_of_its_own_is_left_out_of_other_batches() -> None:
    b = Builder((3, 9, 7))
    b.conv(8, 3)
    b.op("Relu")
    b.op("Reshape", b.array([1, 8 * 7 * 5], np.int64))
    b.linear(4, 8 * 7 * 5)
    x, model = b.samples(64), b.model()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    report = bench(snnkit.convert(model, x), source=model, samples=x, batch=[1, 4], rounds=1)
    alone, four = report.rows
    assert FP32 in alone.times and FP32 not in four.times and NET in four.times
    assert "does not run" in report.left_out[f"{FP32}, batch 4"]


@pytest.mark.parametrize("package", sorted(INSTALL))
def test_missing_rivals_are_named_with_the_line_that_installs_them(net, monkeypatch, package):
    graph, model, x = net
    for name in [m for m in sys.modules if m.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    if package != "torch":
        pytest.importorskip("torch", reason="torch is not installed; see constraints.txt")
    report = bench(graph, source=model, samples=x, batch=[2], rounds=1, against=[package])
    assert "not installed" in report.left_out[package]
    assert "pip install" in report.left_out[package] and package in report.left_out[package]
    assert "left out: " + package in "\n".join(conditions(report))
    assert list(report.rows[0].times) == ["snnkit"]


def test_the_torch_rival_computes_the_source(net) -> None:
    pytest.importorskip("torch", reason="torch is not installed; see constraints.txt")
    _, model, x = net
    found = torch_rivals(model, {"x": x}, 1, ["torch"])
    expected = session(free_batch(model), 1).run(None, {"x": x})[0]
    np.testing.assert_allclose(found.candidates["torch eager"]({"x": x})[0], expected, atol=1e-4)


def test_a_torch_rival_that_cannot_take_the_model_is_left_out_with_the_node(digits) -> None:
    pytest.importorskip("torch", reason="torch is not installed; see constraints.txt")
    _, x = digits
    left = torch_rivals(onnx.load(DIGITS), {"input": x}, 1, ["torch"]).left_out["torch"]
    assert "not part of a chain" in left and "(Add)" in left


def test_int8_kernels_say_whether_they_saturate() -> None:
    found = int8_kernels()
    if host_features().get("avx512vnni"):
        assert found["exact"]
    assert set(found) == {"exact", "int8_macs_per_second", "fp32_macs_per_second"}


@pytest.mark.parametrize("path", HERE)
def test_the_peak_loop_does_all_of_its_multiplications(path) -> None:
    run, memory = register_loop(path)
    isa = ISAS[path]
    before = memory.copy()
    run(memory.ctypes.data)
    total = SUMS * isa.lanes
    behind = total * isa.word_bytes // 16
    sums = before[behind : behind + 4 * total].view(np.int32).astype(np.int64)
    k = np.arange(STEPS, dtype=np.int64)
    words = [(k >> 8 * c & 255).sum() for c in range(CHANNELS)]
    if isa.word_bytes == 64:
        weight = before[:behind].view(np.int8).reshape(total, CHANNELS).astype(np.int64)
        sums += (weight * words).sum(1)
    else:
        # two vectors of 16-bit pairs for each vector of sums: channels 0 and 1, then 2 and 3
        weight = before[:behind].view(np.int16).reshape(SUMS, 2, isa.lanes, 2).astype(np.int64)
        pairs = np.array(words).reshape(2, 1, 2)
        sums += (weight * pairs).sum(axis=(1, 3)).reshape(-1)
    expected = (sums & 0xFFFFFFFF).astype(np.uint32).view(np.int32)
    assert np.array_equal(memory[behind : behind + 4 * total].view(np.int32), expected)
    assert np.any(expected != before[behind : behind + 4 * total].view(np.int32))


def test_no_peak_without_vectors() -> None:
    assert peak_macs("generic") is None


# the command


def test_the_command_on_the_shipped_example(digits, capsys) -> None:
    folder, _ = digits
    given = ["bench", str(folder / "net.onnx"), "--source", str(DIGITS), "--rounds", "2"]
    given += ["--input", str(folder / "x.npy"), "--density", "0.05", "0.5", "--batch", "1", "8"]
    assert main([*given, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    rows = found["rows"]
    assert [(r["input"], r["batch"]) for r in rows] == [
        (name, size) for name in ("real", "0.5", "0.05") for size in (1, 8)
    ]
    graph = snnkit.load(folder / "net.onnx")
    result = snnkit.compile(graph).run(np.load(folder / "x.npy"))
    for row in rows:
        assert row["neurons_different"] == 0 and row["neurons_compared"] >= 64 * 1000
        assert set(row["ratios"]) == {FP32, INT8, NET}
        assert all(r["medians"] > 0 and r["minima"] > 0 for r in row["ratios"].values())
        assert set(row["hidden"]) == {n.name for n in graph.of("spike")}
        assert all(0 < d <= 1 for d in row["hidden"].values())
        assert row["spikes"] > 0 and row["ns_per_synop"] > 0
    real = rows[0]
    assert real["agreement"][NET] == 1.0 and real["agreement"][INT8] >= 0.9
    # 64 of the 100 samples: activity as of all of them, not of another input
    whole = sum(v.sum() for v in result.synops.values()) / 100
    assert abs(real["synops"] / whole - 1) < 0.1
    assert abs(rows[2]["density"] - 0.5) < 0.05 and abs(rows[4]["density"] - 0.05) < 0.02
    assert found["digest"] == graph.digest and not found["left_out"]


def test_the_table_for_people(digits, capsys) -> None:
    folder, _ = digits
    given = ["bench", str(folder / "net.onnx"), "--rounds", "1", "--batch", "2"]
    assert main([*given, "--density", "0.2"]) == 0
    printed = capsys.readouterr()
    assert "0 of" in printed.out and "ns/synop" in printed.out and "load average" in printed.out
    assert "left out: onnxruntime fp32" in printed.out
    assert "comparing every neuron" in printed.err


def test_the_row_says_zero_of_all_neurons_and_markdown_has_every_cell(net) -> None:
    graph, model, x = net
    report = bench(graph, source=model, samples=x, batch=[4], rounds=1)
    header, lines = cells(report.rows)
    text = markdown(header, lines).splitlines()
    assert len(text) == 3 and all(row.count("|") == len(header) + 1 for row in text)
    assert lines[0][header.index("differ")].startswith("0 of ")


@pytest.mark.parametrize("where", ("infer", "neuron"))
def test_a_planted_difference_is_code_4_and_nothing_is_timed(
    digits, capsys, monkeypatch, where
) -> None:
    folder, _ = digits
    if where == "infer":
        right = NumbaProgram.infer

        def wrong(self, x, threads=1):
            outputs = {k: v.copy() for k, v in right(self, x, threads).items()}
            value = next(iter(outputs.values()))
            value[-1, -1] = np.nextafter(value[-1, -1], np.float32(np.inf))
            return outputs

        monkeypatch.setattr(NumbaProgram, "infer", wrong)
    else:
        from dataclasses import replace

        settled = NumbaProgram.run

        def wrong(self, x, **options):
            result = settled(self, x, **options)
            counts = {k: v.copy() for k, v in result.counts.items()}
            if counts:
                next(iter(counts.values())).reshape(-1)[-1] += 1
            return replace(result, counts=counts)

        monkeypatch.setattr(NumbaProgram, "run", wrong)
    monkeypatch.setattr(timing, "interleaved", None)
    given = ["bench", str(folder / "net.onnx"), "--rounds", "1", "--density", "0.2", "--json"]
    assert main(given) == 4
    found = json.loads(capsys.readouterr().out)
    assert found["error"] == "VerificationFailed" and "nothing was timed" in found["message"]


def test_without_anything_to_time(net) -> None:
    with pytest.raises(UsageError, match="nothing to time"):
        bench(net[0])
    with pytest.raises(UsageError, match="against 'gpu'"):
        bench(net[0], densities=[0.1], against=["gpu"])
    with pytest.raises(UsageError, match="at least 1"):
        bench(net[0], densities=[0.1], rounds=0)
    assert issubclass(VerificationFailed, Exception)


def test_two_threads_are_timed_by_the_wall(net) -> None:
    graph, model, x = net
    report = bench(graph, source=model, samples=x, batch=[8], rounds=1, threads=2)
    row = report.rows[0]
    assert row.threads == 2 and row.time("snnkit") == row.times["snnkit"]["wall"]
    assert row.share_of_peak is None


def test_help_of_bench_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom snnkit.cli import main\n"
        "try:\n    main(['bench', '--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'numpy', 'numba', 'onnx', 'onnxruntime', 'torch'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr
    assert "--density" in done.stdout
