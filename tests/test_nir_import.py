"""NIR networks as integers: by the equations, tie for tie; recorded traces of other programs."""

from __future__ import annotations

import itertools
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

nir = pytest.importorskip("nir", reason="nir is not installed; pip install 'nir>=1.0.6'")

import snnkit  # noqa: E402
from snnkit.cli import main  # noqa: E402
from snnkit.converters import Timing  # noqa: E402
from snnkit.datasets.event_folders import bin_events, count  # noqa: E402
from snnkit.errors import (  # noqa: E402
    BackendMissing,
    BadCalibration,
    UnreadableFile,
    UnsupportedModel,
    UsageError,
)
from snnkit.ops import TABLE  # noqa: E402
from tests.nir_nets import DT, random_graph  # noqa: E402
from tests.nir_oracle import NEURONS, simulate  # noqa: E402
from tests.shared_data import HOME  # noqa: E402

SPIKING = (*NEURONS, "Threshold")
shared = pytest.mark.skipif(
    not (HOME / "nir").is_dir(), reason=f"no nir/ at {HOME}; set SNNKIT_DATA"
)


def agree(graph: Any, x: np.ndarray, timing: Timing, **options: bool) -> float:
    """The converted graph fires the oracle's spikes; returns the share of neurons that fire."""
    values, _ = simulate(graph, x, timing.dt, **options)
    net = snnkit.convert(graph, x, timing=timing)
    result = snnkit.compile(net, "reference").run(x, record=("all",))
    spiking = [n for n, node in graph.nodes.items() if type(node).__name__ in SPIKING]
    assert len(spiking) >= 3
    for name in spiking:
        assert np.array_equal(result.counts[name], values[name]), name
    y = values["output"]
    assert np.abs(result.outputs["output"] - y).max() <= 1e-5 * max(1, np.abs(y).max())
    return min(float(values[n].any(1).mean()) for n in spiking)


@settings(max_examples=14, deadline=None, derandomize=True)
@given(st.integers(0, 2**31 - 1))
def test_dyadic_networks_are_the_equations(seed: int) -> None:
    """No number is rounded, thresholds lie on potentials that occur: equal, ties included."""
    graph, x = random_graph(np.random.default_rng(seed))
    agree(graph, x, Timing(dt=DT))


@settings(max_examples=6, deadline=None, derandomize=True)
@given(st.integers(0, 2**31 - 1))
def test_subtracting_resets(seed: int) -> None:
    graph, x = random_graph(np.random.default_rng(seed), ("IF", "LIF"))
    agree(graph, x, Timing(dt=DT, reset="soft"), soft=True)


@settings(max_examples=6, deadline=None, derandomize=True)
@given(st.integers(0, 2**31 - 1))
def test_exact_solutions(seed: int) -> None:
    """Leaks that are no fractions: 24 bits of them, and thresholds off the potentials."""
    rng = np.random.default_rng(seed)
    graph, x = random_graph(rng, ("IF", "LIF"))
    for node in graph.nodes.values():
        if type(node).__name__ in NEURONS:
            node.v_threshold = (node.v_threshold - rng.uniform(0.001, 0.01)).astype(np.float32)
    agree(graph, x, Timing(dt=DT, discretisation="exact"), exact=True)


def test_the_laws_are_not_empty() -> None:
    kinds, ties, least, most = set(), 0, 1.0, 0.0
    for seed in range(8):
        graph, x = random_graph(np.random.default_rng(seed))
        fired = agree(graph, x, Timing(dt=DT))
        least, most = min(least, fired), max(most, fired)
        kinds |= {type(n).__name__ for n in graph.nodes.values()}
        strict, _ = simulate(graph, x, DT)
        for node in graph.nodes.values():  # at or above instead of above
            if hasattr(node, "v_threshold"):
                node.v_threshold = np.nextafter(node.v_threshold, np.float32(-np.inf))
        loose, _ = simulate(graph, x, DT)
        ties += any(not np.array_equal(strict[k], loose[k]) for k in strict)
    assert least > 0 and most > 0.5 and ties >= 4
    wanted = {"Affine", "AvgPool2d", "Conv1d", "Conv2d", "CubaLIF", "Flatten", "I", "IF"}
    wanted |= {"LIF", "Linear", "Scale", "SumPool2d", "Threshold"}
    assert wanted <= kinds


@pytest.mark.parametrize("seed", [0, 2])
def test_every_execution_agrees(seed: int, tmp_path, capsys) -> None:
    """The command, through a file: onnxruntime, reference, numba in every mode."""
    graph, x = random_graph(np.random.default_rng(seed))
    nir.write(tmp_path / "model.nir", graph)
    np.save(tmp_path / "x.npy", x)
    net = str(tmp_path / "net.onnx")
    arguments = ["convert", str(tmp_path / "model.nir"), "-o", net, "--dt", str(DT)]
    assert main([*arguments, "--calibration", str(tmp_path / "x.npy")]) == 0
    printed = capsys.readouterr()
    assert ", 0 differ" in printed.out and f"steps of {DT!r} s (euler" in printed.err
    loaded = snnkit.load(net)
    assert loaded.digest == snnkit.convert(tmp_path / "model.nir", x, timing=Timing(DT)).digest
    assert main(arguments) == 0  # integers in 0..255 go in
    assert "not verified" in capsys.readouterr().err
    assert snnkit.load(net).inputs[0].scale == 1


def test_weights_off_the_grid_are_rounded_and_scaled_inputs_are_read() -> None:
    rng = np.random.default_rng(3)
    weight = rng.normal(size=(6, 5)).astype(np.float32)
    cell = nir.IF(np.ones(6), np.full(6, 0.7), np.zeros(6))
    graph = nir.NIRGraph.from_list(nir.Linear(weight), cell)
    x = (rng.integers(0, 2, (8, 12, 5)) * 0.25 + rng.normal(size=5)).astype(np.float32)
    net = snnkit.convert(graph, x)
    found = net.of("linear")[0].params["weight"].astype(np.float64)
    step = np.abs(weight).max(1, keepdims=True) / 127
    assert np.abs(found * step - weight).max() <= 0.501 * step.max()
    assert np.abs(found).max() == 127
    assert snnkit.compile(net, "reference").run(x).outputs["output"].mean() > 0.1
    assert net.meta["dt"] == "1.0"  # nothing leaks: R is what a step adds


# What other programs made of one LIF neuron.


@pytest.fixture(scope="module")
def traces() -> dict[str, np.ndarray]:
    home = HOME / "nir"
    names = ("exact", "norse", "snntorch", "sinabs", "lava_cpu_fixed")
    return {n: np.loadtxt(home / f"lif_{n}.csv", delimiter=",") for n in names}


def integers(net: Any, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Spike times and membrane potential (in charges) of the one lif node."""
    node = net.of("lif")[0]
    result = snnkit.compile(net, "reference").run(x, record=("all",))
    charge, v = result.counts[node.inputs[0]][0], node.params["initial"].reshape(1, 1)
    found = []
    for t in range(x.shape[1]):
        v = TABLE["lif"].barrier(node, [charge[t][None], v])
        found.append(int(v[0, 0]))
    return np.flatnonzero(result.outputs["output"]), np.array(found) / node.params["gain"].item()


@shared
def test_euler_is_norse_and_snntorch(traces) -> None:
    x = traces["norse"][None, :, :1]
    net = snnkit.convert(HOME / "nir" / "lif_norse.nir", x)
    fired, v = integers(net, x)
    for name, scale in (("norse", 0.04), ("snntorch", 1.0)):
        assert np.array_equal(fired, np.flatnonzero(traces[name][:, 2]))
        assert np.abs(v * scale - traces[name][:, 1]).max() < 1e-5 * scale / 0.04
    assert list(fired) == [460, 510, 710, 760]
    # Lava's neuron hears of a spike one step later
    assert np.array_equal(fired + 1, np.flatnonzero(traces["lava_cpu_fixed"][:, 2]))


@shared
def test_exact_is_the_exact_simulation_up_to_where_in_a_step_it_fires(traces) -> None:
    x = traces["exact"][None, :, :1]
    timing = Timing(discretisation="exact")
    net = snnkit.convert(HOME / "nir" / "lif_norse.nir", x, timing=timing)
    fired, v = integers(net, x)
    assert np.array_equal(fired, np.flatnonzero(traces["exact"][:, 2]))
    error = np.abs(v * -np.expm1(-0.04) - traces["exact"][:, 1])
    assert error[:460].max() < 5e-6  # until it fires for the first time
    # there, the recorded neuron went on integrating for the rest of the step
    assert 1e-3 < error[460:].max() < 0.0063


@shared
def test_sinabs_decays_exactly_jumps_like_euler_and_subtracts(traces) -> None:
    """Why its spikes come at other steps: float64 of that mixture is its trace."""
    v, found = 0.0, []
    for spike in traces["sinabs"][:, 0]:
        v = v * np.exp(-0.04) + spike
        v -= 0.1 * (v > 0.1)
        found.append(v)
    assert np.abs(np.array(found) - traces["sinabs"][:, 1]).max() < 1e-7


@shared
def test_a_file_that_nir_refuses(traces) -> None:
    """Its Output has two more axes of size one. Its R W is 0.9608, so it fires later."""
    path = HOME / "nir" / "lif_rockpool.nir"
    x = traces["norse"][None, :, :1]
    fired, _ = integers(snnkit.convert(path, x), x)
    values, _ = simulate(nir.read(path, type_check=False), x, 1e-4)
    assert np.array_equal(fired, np.flatnonzero(values["output"]))
    assert list(fired) == [460, 520, 720, 780]


def recordings(n: int, frames: int) -> tuple[np.ndarray, np.ndarray]:
    """(x [n, frames, 2, 34, 34], labels): the first N-MNIST recordings in frames of 1 ms."""
    wanted, labels, found = n, {}, {}
    with tarfile.open(next((HOME / "nmnist").glob("*.tar.xz"))) as archive:
        for member in archive:
            content = archive.extractfile(member).read()
            if member.name.endswith("labels.txt"):
                lines = [line.split() for line in content.decode().splitlines()]
                labels = {int(a): int(b) for a, b in (w for w in lines if w and w[0].isdecimal())}
            elif len(found) < wanted:
                number = int(member.name.split("/")[-1].split(".")[0])
                events = bin_events(content, member.name)
                found[number] = count(events, (34, 34), frames, 1000, Path(member.name))
            if labels and len(found) == wanted:
                break
    return np.stack(list(found.values())).astype(np.float32), np.array([labels[k] for k in found])


@shared
def test_a_trained_network_of_sinabs() -> None:
    """N-MNIST, 13 layers. NIR's hard reset; sinabs trained it with subtraction."""
    x, labels = recordings(8, 310)
    net = snnkit.convert(HOME / "nir" / "cnn_sinabs.nir", x)
    assert all(n.attrs["shift"] == 0 for n in net.of("lif")) and net.meta["dt"] == "1.0"
    outputs = snnkit.compile(net).run(x).outputs["output"]
    assert (outputs.sum(1).argmax(1) == labels).sum() >= 7
    certificate = snnkit.verify(net, x[:1, :60], modes=("settle", "steps"))
    assert certificate.passed and certificate.neurons_compared > 1_000_000
    assert not certificate.skipped and set(certificate.silent_layers) <= {"10", "12"}


# What cannot be taken.


def chain(*nodes: Any) -> Any:
    names = ["input", *(f"n{i}" for i in range(len(nodes))), "output"]
    ends = nir.Input(np.array([3])), nir.Output(np.array([3]))
    found = dict(zip(names, (ends[0], *nodes, ends[1])))
    return nir.NIRGraph(found, list(itertools.pairwise(names)), {}, type_check=False)


def lif(**changed: Any) -> Any:
    values = dict.fromkeys(("r", "v_threshold"), 1.0) | dict.fromkeys(("v_leak", "v_reset"), 0.0)
    values |= {"tau": 0.01}
    return nir.LIF(**{k: np.full(3, v) for k, v in (values | changed).items()})


def cuba(**changed: Any) -> Any:
    values = {"tau_syn": 0.01, "tau_mem": 0.01, "r": 1.0, "v_leak": 0.0, "v_threshold": 1.0}
    return nir.CubaLIF(**{k: np.full(3, v) for k, v in (values | changed).items()})


@pytest.mark.parametrize(
    ("node", "words"),
    [
        (lambda: nir.LI(np.ones(3), np.ones(3), np.ones(3)), "no integer form"),
        (lambda: nir.Delay(np.ones(3)), "no integer form"),
        (lambda: chain(lif()), "a subgraph"),
        (cuba, "a second leaky state"),
        (lambda: lif(tau=1e-5), "dt 0.0001 s is longer than its time constant"),
        (lambda: lif(tau=0.0), "a time constant of 0 s"),
        (lambda: lif(v_threshold=np.nan), "'v_threshold' (3,) is empty, NaN"),
        (lambda: nir.Scale(np.ones(2)), "'scale' of shape (2,) for an input of shape (3,)"),
        (lambda: nir.Linear(np.ones((3, 4))), "weight (3, 4) for an input of shape (3,)"),
        (lambda: nir.Affine(np.ones((3, 3)), np.ones(2)), "2 biases for 3 channels"),
        (lambda: nir.SumPool2d(*(np.array([2, 2]),) * 3), "pool spikes (C, H, W)"),
        (lambda: nir.Flatten({"input": np.array([3])}, 1, -1), "start_dim 1"),
        (lambda: nir.Conv1d(3, np.ones((1, 1, 1)), 1, 0, 1, 1, np.ones(1)), "weight (1, 1, 1)"),
    ],
)
def test_what_has_no_integer_form_is_refused(node, words) -> None:
    with pytest.raises(UnsupportedModel) as caught:
        snnkit.convert(chain(nir.Linear(np.eye(3)), node(), lif()))
    assert [p.node for p in caught.value.problems] == ["n1"] and words in str(caught.value)


def test_synapses_behind_synapses_need_neurons() -> None:
    two = (nir.Linear(np.eye(3) * 3), nir.Linear(np.eye(3)), lif())
    with pytest.raises(UnsupportedModel, match="put neurons in front"):
        snnkit.convert(chain(*two))


def test_every_problem_at_once_and_exit_3(tmp_path, capsys) -> None:
    bad = chain(nir.Delay(np.ones(3)), lif(tau=-1.0), nir.LI(*(np.ones(3),) * 3), lif())
    # a loop, and a node that nothing leads to
    bad.nodes |= {"a": nir.Scale(np.ones(3)), "b": nir.Scale(np.ones(3)), "c": lif()}
    bad.edges += [("a", "b"), ("b", "a"), ("a", "n3"), ("c", "output")]
    nir.write(tmp_path / "bad.nir", bad)
    net = tmp_path / "net.onnx"
    assert main(["convert", str(tmp_path / "bad.nir"), "-o", str(net)]) == 3
    message = capsys.readouterr().err
    for words in ("'n0' (Delay)", "'n2' (LI)", "'a' (Scale): it lies on a cycle", "'b' (Scale)"):
        assert words in message
    assert "'c' (LIF): nothing leads to it" in message and "'n3'" not in message
    assert "Traceback" not in message and not net.exists()


def test_bad_files_options_and_data(tmp_path, capsys, monkeypatch) -> None:
    path = tmp_path / "model.nir"
    with pytest.raises(UnreadableFile, match="no such file"):
        snnkit.convert(path)
    path.write_bytes(b"not hdf5")
    with pytest.raises(UnreadableFile, match="not a NIR file"):
        snnkit.convert(path)
    nir.write(path, chain(nir.Linear(np.eye(3)), lif()))
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(UnreadableFile, match="not a NIR file"):
        snnkit.convert(str(path))
    nir.write(path, chain(nir.Linear(np.eye(3)), lif()))
    for timing in ({"dt": 0.0}, {"dt": np.nan}, {"discretisation": "guess"}, {"reset": "no"}):
        with pytest.raises(UsageError):
            Timing(**timing)
    with pytest.raises(UsageError, match="steps 0"):
        Timing(steps=0)
    for options in ({"levels": 15}, {"weight_bits": 9}):
        with pytest.raises(UsageError):
            snnkit.convert(path, **options)
    with pytest.raises(UsageError, match="without differential equations"):
        snnkit.convert("model.onnx", np.zeros((1, 2)), timing=Timing())
    for x in (np.zeros((2, 3)), np.zeros((2, 4, 5)), np.full((1, 2, 3), np.nan), np.array("a")):
        with pytest.raises(BadCalibration):
            snnkit.convert(path, x)
    with pytest.raises(BadCalibration, match="expected \\['input'\\]"):
        snnkit.convert(path, {"x": np.zeros((1, 2, 3))})
    assert main(["convert", "model.onnx", "-o", str(tmp_path / "n.onnx")]) == 2
    assert "--calibration missing" in capsys.readouterr().err
    monkeypatch.setitem(__import__("sys").modules, "nir", None)
    with pytest.raises(BackendMissing, match="pip install"):
        snnkit.convert(path)
    assert main(["convert", str(path), "-o", str(tmp_path / "n.onnx")]) == 5


def test_info_reads_nir_files(tmp_path, capsys) -> None:
    nir.write(tmp_path / "model.nir", chain(nir.Linear(np.eye(3)), lif()))
    assert main(["info", str(tmp_path / "model.nir")]) == 0
    assert "3 spiking neurons" in capsys.readouterr().out


def test_more_steps_than_proved_are_refused() -> None:
    net = snnkit.convert(chain(nir.Linear(np.eye(3)), lif()), timing=Timing(steps=4))
    with pytest.raises(BadCalibration, match="5 steps"):
        snnkit.compile(net, "reference").run(np.ones((1, 5, 3), np.float32))
