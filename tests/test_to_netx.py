"""Export as .net: read back by the rules of lava-dl's reader, which its own files check."""

from __future__ import annotations

import builtins
from pathlib import Path

import numpy as np
import pytest

h5py = pytest.importorskip("h5py", reason="h5py is not installed; pip install h5py")

import snnkit  # noqa: E402
from snnkit.errors import BackendMissing, UnsupportedModel  # noqa: E402
from snnkit.exporters import to_netx  # noqa: E402
from snnkit.graph import Graph  # noqa: E402
from tests import netx_reader, stock_nets  # noqa: E402
from tests.shared_data import HOME, needed  # noqa: E402


def read_back(graph: Graph, path, seed: int) -> None:
    """Every layer's integers of every sample, streamed one sample per step."""
    lines = to_netx.write(graph, path)
    assert "input_message_bits=9" in lines[1] and str(graph.nodes[0].shape[::-1]) in lines[1]
    counts = stock_nets.samples(graph, seed)
    values, layers = stock_nets.expected(graph, counts), netx_reader.read(path)
    x = (
        counts.transpose(0, 3, 2, 1)
        if layers[0].kind == "conv"
        else counts.reshape(len(counts), -1)
    )
    x = np.concatenate([x, np.repeat(x[-1:], len(layers), axis=0)])
    shown = netx_reader.run(layers, x)
    nodes = graph.of("spike", "readout")
    assert len(layers) == len(nodes)
    for depth, (node, (spikes, v)) in enumerate(zip(nodes, shown, strict=True), 1):
        value = v >> 6 if node.op == "readout" else spikes
        value = value[depth : depth + len(counts)]
        if value.ndim == 4:
            value = value.transpose(0, 3, 2, 1)
        copies = 1 if node.op == "readout" else node.hi
        value = value.reshape(len(counts), copies, *node.shape).sum(1)
        assert np.array_equal(value, values[node.name]), node.name
    assert not shown[-1][0].any()


@pytest.mark.parametrize("seed", range(4))
def test_a_chain_reads_back_as_the_same_integers(seed: int, tmp_path) -> None:
    read_back(stock_nets.chain(seed, levels=1 + seed), tmp_path / "net.net", seed)


def test_dense_layers_only_and_one_sided_weights(tmp_path) -> None:
    """Matrices of one sign take other paths of the reader."""
    n = stock_nets.Net(np.random.default_rng(4), (9,))
    x = n.spike(n.linear(n.x, 12, 25), 3)
    weight = n.rng.integers(1, 128, (10, 12))
    x = n.spike(n.add("linear", (x,), {"weight": weight}), 4)
    weight = -n.rng.integers(1, 120, (8, 10))
    a = n.add("linear", (x,), {"weight": weight})
    middle = int(np.median(-n.values[a.name]))
    params = {"init": np.full(8, 2 * middle), "theta": np.full(8, max(1, middle // 2))}
    x = n.add("spike", (a,), params, kind="uniform", lo=0, hi=3)
    read_back(n.graph(n.linear(x, 4, 90)), tmp_path / "net.net", 2)


def test_pooled_sums_become_dense_layers(tmp_path) -> None:
    n = stock_nets.Net(np.random.default_rng(6), (2, 6, 6))
    x = n.spike(n.conv(n.x, 3, 20), 2)
    x = n.add("sum_pool", (x,), kernel=(2, 2), strides=(2, 2), pads=(0,) * 4, dilations=(1, 1))
    x = n.spike(n.linear(n.flat(x), 7, 100), 2)
    read_back(n.graph(n.linear(x, 3, 90)), tmp_path / "net.net", 1)


def test_the_trained_one_step_network_is_a_net_file(tmp_path) -> None:
    """examples/iir_digits_t1.onnx: binary spikes, so one stock neuron for each of its neurons."""
    graph = snnkit.load(Path(__file__).parents[1] / "examples" / "iir_digits_t1.onnx")
    read_back(graph, tmp_path / "net.net", 5)
    sizes = [int(np.prod(e.shape)) for e in netx_reader.read(tmp_path / "net.net")]
    assert sizes == [n.units for n in graph.of("spike", "readout")]


def test_the_same_graph_gives_the_same_bytes(tmp_path) -> None:
    graph = stock_nets.chain(2)
    for name in ("a.net", "b.net"):
        to_netx.write(graph, tmp_path / name)
    assert (tmp_path / "a.net").read_bytes() == (tmp_path / "b.net").read_bytes()


def refused(graph: Graph, path) -> dict[str, str]:
    with pytest.raises(UnsupportedModel) as caught:
        to_netx.write(graph, path)
    assert not path.exists()
    return {p.node: p.reason for p in caught.value.problems}


def test_what_the_format_cannot_hold_is_refused_by_layer(tmp_path) -> None:
    path = tmp_path / "net.net"
    assert "reads" in refused(stock_nets.branched(1), path)["spike7"]
    n = stock_nets.Net(np.random.default_rng(3), (3, 5, 5))
    a = n.conv(n.x, 4, 14)
    params = {"init": np.int32(0), "theta": np.array([400, 900, 3000, 9000]).reshape(4, 1, 1)}
    x = n.add("spike", (a,), params, kind="uniform", lo=0, hi=3)
    found = refused(n.graph(n.linear(n.flat(x), 4, 50)), path)
    assert "apart; expected at most 8,190" in found["spike2"] and len(found) == 1
    n = stock_nets.Net(np.random.default_rng(3), (4,))
    x = n.spike(n.linear(n.x, 6, 50), 2)
    x = n.spike(n.add("linear", (x,), {"weight": np.full((3, 6), -64)}), 2)
    found = refused(n.graph(n.add("linear", (x,), {"weight": np.zeros((2, 3), np.int64)})), path)
    assert "the least -64" in found["spike4"] and "all zero" in found["readout6"]


def test_without_h5py_the_line_that_installs_it(monkeypatch, tmp_path) -> None:
    real = builtins.__import__

    def importing(name, *rest):
        if name == "h5py":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", importing)
    with pytest.raises(BackendMissing, match="pip install"):
        to_netx.write(stock_nets.chain(1), tmp_path / "net.net")


@needed
def test_the_reader_agrees_with_lava_dl_on_its_own_network() -> None:
    """tiny.net with its recorded input: current and spikes of layer 1, spikes of layer 2.

    In the recording the biases begin one step late in layer 1 and in layer 2; the rest is equal
    to the bit.
    """
    first, second = netx_reader.read(HOME / "lava-dl" / "tiny.net")
    folder = HOME / "lava-dl" / "gts" / "tinynet"
    x, current, layer1, output = (
        np.load(folder / f"{name}.npy", allow_pickle=False)[0].astype(int).transpose(3, 2, 1, 0)
        for name in ("input", "current", "layer1", "output")
    )
    assert layer1.mean() > 0.1 and output.mean() > 0.1
    kernel = np.load(folder / "layer1_kernel.npy", allow_pickle=False)
    assert np.array_equal(kernel, first.weight)
    charges = np.stack([first.charge(frame) for frame in x])
    assert charges.size == 13824 and np.array_equal(charges, current)
    for layer, arriving, expected in (
        (first, charges, layer1),
        (second, np.stack([second.charge(frame) for frame in layer1]), output),
    ):
        unbiased = arriving.copy()
        unbiased[0] -= layer.bias
        found = np.stack([layer.lif.step(a) for a in unbiased])
        assert np.array_equal(found, expected)


def test_a_bias_per_position_is_refused(tmp_path) -> None:
    n = stock_nets.Net(np.random.default_rng(3), (2, 4, 4))
    a = n.conv(n.x, 3, 20)
    params = {"init": n.rng.integers(0, 300, a.shape), "theta": np.int32(900)}
    x = n.add("spike", (a,), params, kind="uniform", lo=0, hi=2)
    graph = n.graph(n.linear(n.flat(x), 4, 50))
    assert "differs between positions" in refused(graph, tmp_path / "net.net")["spike2"]
