"""Recurrent networks under quantisation-aware training: torch's integers are the graph's, on every
node, at every element, in every execution."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits

import snnkit
from snnkit.errors import BadCalibration, UsageError
from snnkit.reference import dense, input_counts

torch = pytest.importorskip("torch", reason="torch is not installed; pip install torch")
nn, F = torch.nn, torch.nn.functional

from snnkit.converters.from_recurrent import convert_recurrent  # noqa: E402
from snnkit.models.crnn import CRNN, Front, QuantisedCRNN  # noqa: E402
from snnkit.nn import InputGrid  # noqa: E402
from snnkit.nn.ladders import CURVES, ladder, lowest  # noqa: E402
from snnkit.nn.recurrent import CELL_PARTS, Levels, recurrent  # noqa: E402

torch.set_num_threads(1)
MODES = ("settle", "events", "steps", "fuzz")
FRONT = (Front(4, 2, 3, 1, 1), Front(3, 3, 2, 2))
LAYOUTS: list[dict[str, object]] = [
    {"shape": (6,)},
    {"shape": (6,), "front": FRONT, "hidden": (6, 4), "bidirectional": True},
    {"shape": (2, 5), "front": FRONT[:1], "readout": "each"},
    {"shape": (6,), "front": FRONT[1:], "readout": "mean", "bidirectional": True},
    {"shape": (5,), "hidden": (5, 5), "readout": "mean"},
]
CELLS = ("rnn", "gru", "lstm")


def grid(scale: float = 1 / 255, lo: int = 0) -> InputGrid:
    return InputGrid(torch.tensor(scale), torch.tensor(0.0), lo)


def lively(
    cell: str, levels: Levels, seed: int, elements: int = 6, **options: object
) -> tuple[QuantisedCRNN, torch.Tensor]:
    """A small network after a few training steps, and 24 sequences, some of them sparse."""
    torch.manual_seed(seed)
    options = {"shape": (6,), "hidden": (7,), **options}
    shape = options.pop("shape")
    x = torch.randint(0, 256, (24, elements, *shape)).float() / 255
    x = x * (torch.rand(24, elements, *(1,) * len(shape)) < 0.8)
    model = CRNN(shape, 3, cell=cell, **options)
    for p in model.layers.parameters():
        p.data *= 2.5
    model.train()(x)
    quantised = QuantisedCRNN(model, x, grid(), levels, levels.state)
    optimiser = torch.optim.Adam(quantised.parameters(), 3e-3)
    for _ in range(3):
        y = quantised(x)
        optimiser.zero_grad()
        (y - torch.randn_like(y)).square().mean().backward()
        optimiser.step()
    return quantised, x


def assert_fires(counts: dict[str, np.ndarray]) -> None:
    """Every spiking layer is active at more than one element, and not always the same."""
    for name, c in counts.items():
        assert (c != 0).any(axis=(0, *range(2, c.ndim))).sum() > 1, f"{name} is silent"
        assert (c != c[:1, :1]).any(), f"{name} is constant"


@pytest.mark.parametrize("levels", [3, 7, 15])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("layout", range(len(LAYOUTS)))
def test_torch_is_the_graph_at_every_element(
    cell: str, levels: int, layout: int, tmp_path: Path
) -> None:
    many = Levels(levels, levels, 2 * levels, bits=(8, 4)[layout % 2])
    model, x = lively(cell, many, layout, **LAYOUTS[layout])
    graph = convert_recurrent(model)
    counts = model.counts(x)
    assert set(counts) == {n.name for n in graph.of("spike")}
    assert_fires(counts)
    expected = dense(graph, input_counts(graph, x.numpy()))
    for name, found in counts.items():
        assert np.array_equal(found, expected[name]), name
    some = slice(0, 5)
    reference = snnkit.compile(graph, "reference")
    for i, mode in enumerate(MODES):
        for program in (reference, snnkit.compile(graph)):
            result = program.run(
                x[some].numpy(),
                mode=mode,
                record=list(counts),
                seed=i,
                carry=bool((i + layout) % 2),
            )
            for name, found in counts.items():
                assert np.array_equal(result.counts[name], found[some]), (mode, name)
    # numba in all modes, at rest and carried on, and every neuron in onnxruntime
    certificate = snnkit.verify(graph, x.numpy())
    assert certificate.passed and certificate.neurons_different == 0
    assert any("carr" in title for title in certificate.executions)
    path = tmp_path / "net.onnx"
    snnkit.save(graph, path)
    assert snnkit.load(path).digest == graph.digest
    with torch.no_grad():
        y = model.eval()(x).numpy()
    outputs = snnkit.compile(graph).run(x.numpy()).outputs["y"]
    assert outputs.dtype == y.dtype and outputs.tobytes() == y.tobytes()
    assert (y != y[:1]).any()


def test_relu_states(tmp_path: Path) -> None:
    model, x = lively("rnn", Levels(7, 7, 7), 0, nonlinearity="relu", front=FRONT)
    graph, counts = convert_recurrent(model), model.counts(x)
    assert_fires(counts)
    expected = dense(graph, input_counts(graph, x.numpy()))
    assert all(np.array_equal(c, expected[name]) for name, c in counts.items())
    assert snnkit.verify(graph, x.numpy()).passed


@pytest.mark.parametrize("cell", CELLS)
def test_training_computes_the_same_numbers_as_evaluation(cell: str) -> None:
    model, x = lively(cell, Levels(7, 7, 7), 5, front=FRONT)
    y = model.train()(x)
    assert y.requires_grad
    assert torch.equal(y.detach(), model.eval()(x).detach())


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
@pytest.mark.parametrize("cell", CELLS)
def test_every_parameter_has_a_gradient(cell: str, nonlinearity: str) -> None:
    options = {"nonlinearity": nonlinearity} if cell == "rnn" else {}
    model, x = lively(cell, Levels(15, 15, 15), 2, front=FRONT, hidden=(6, 5), **options)
    model.zero_grad()
    model.train()(x).square().sum().backward()
    learned = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert len(learned) > 15
    silent = [n for n, p in learned.items() if p.grad is None or not bool(p.grad.any())]
    assert not silent
    assert all(bool(torch.isfinite(p.grad).all()) for p in learned.values())


def sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


def settled(v: np.ndarray) -> np.ndarray:
    return np.floor(v + 0.5)


def layer_by_hand(cell: str, model: QuantisedCRNN, x: np.ndarray) -> np.ndarray:
    """Hidden states [N, T, H] by the formulas of `snnkit.nn.recurrent`'s docstring, in float64
    numpy with tanh and exp themselves; nothing of the module's forward pass."""
    layer = model.layers[0][0]
    with torch.no_grad():
        n = layer.integers(model.inputs(torch.from_numpy(x)))
    wx, wh, mx, mh, b, bh = (a.double().numpy() for a in (n.wx, n.wh, n.mx, n.mh, n.bias, n.bias_h))
    q, size, g = np.rint(x.astype(np.float64) * 255), layer.hidden, n.grid
    top, k, inner = layer.levels.state, layer.levels.gate, layer.levels.inner
    h, c, found = np.zeros((len(x), size)), np.zeros((len(x), size)), []
    theta = float(n.theta)
    for t in range(x.shape[1]):
        ax, ah = mx * (q[:, t] @ wx.T) + b, mh * (h @ wh.T)
        a = [ax[:, i * size : (i + 1) * size] for i in range(len(layer.gates))]
        r = [ah[:, i * size : (i + 1) * size] for i in range(len(layer.gates))]
        if cell == "rnn":
            h = settled(top * np.tanh((a[0] + r[0]) / g))
        elif cell == "gru":
            reset, keep = (settled(k * sigmoid((a[i] + r[i]) / g)) for i in (0, 1))
            aside = np.clip(settled((r[2] + bh[2 * size :]) / theta), -inner, inner)
            new = settled(top * np.tanh((a[2] + np.rint(theta / k) * reset * aside) / g))
            h = settled((k * new + keep * (h - new)) / k)
        else:
            enter, forget, out = (settled(k * sigmoid((a[i] + r[i]) / g)) for i in (0, 1, 3))
            new = settled(top * np.tanh((a[2] + r[2]) / g))
            charge = theta * forget * c + CELL_PARTS * enter * new
            c = np.clip(settled(charge / (theta * k)), -inner, inner)
            h = settled(out * settled(top * np.tanh(charge / (k * top * CELL_PARTS))) / k)
        found.append(h)
    return np.stack(found, 1)


@pytest.mark.parametrize("cell", CELLS)
def test_the_rule_is_the_stated_one(cell: str) -> None:
    model, x = lively(cell, Levels(15, 15, 31), 4, elements=12)
    states = model.counts(x)["layer0.state"]
    assert (states != 0).mean() > 0.3 and len(np.unique(states)) > 10
    assert np.array_equal(states, layer_by_hand(cell, model, x.numpy()))


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("reverse", [False, True])
def test_many_levels_come_close_to_torchs_layer(cell: str, reverse: bool) -> None:
    """The quantised layer is that layer: with the finest grid its states are torch's, nearly."""
    torch.manual_seed(0)
    kind = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}[cell]
    layer = kind(6, 16, bidirectional=True)
    x = torch.randint(0, 256, (9, 20, 6)).float() / 255
    model = QuantisedCRNN(CRNN((6,), 2, cell=cell), x.transpose(0, 1), grid())
    ours = recurrent(layer, Levels(127, 255, 127), reverse)
    with torch.no_grad():
        theirs = layer(x)[0][..., 16:] if reverse else layer(x)[0][..., :16]
        found = ours(model.inputs(x.transpose(0, 1)))
    gap = (found.counts * found.scale - theirs).abs()
    assert theirs.abs().max() > 0.3 and gap.max() < 0.06 and gap.mean() < 0.015


@given(
    st.sampled_from(["tanh", "sigmoid"]),
    st.integers(1, 127),
    st.one_of(st.integers(0, 24).map(lambda p: 2**p), st.integers(1, 2**24)),
)
@settings(max_examples=60, deadline=None)
def test_ladders_hold_the_least_charges(curve: str, levels: int, unit: int) -> None:
    thresholds, k = ladder(curve, levels, unit), np.arange(lowest(curve, levels) + 1, levels + 1)
    reach = lambda a: np.floor(levels * CURVES[curve](a / unit) + 0.5)  # noqa: E731
    assert (reach(thresholds) >= k).all() and (reach(thresholds - 1) < k).all()
    share = (k - 0.5) / levels
    closed = np.arctanh(share) if curve == "tanh" else np.log(share / (1 - share))
    assert (np.abs(thresholds - np.ceil(closed * unit)) <= 1).all()


@given(st.integers(0, 2**32 - 1), st.sampled_from(CELLS), st.sampled_from([2**23, 2**26, 2**30]))
@settings(max_examples=15, deadline=None)
def test_the_grid_keeps_charges_below_its_bound(seed: int, cell: str, bound: int) -> None:
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    model = CRNN((6,), 3, cell=cell, hidden=(9, 4))
    for p in model.layers.parameters():
        p.data *= float(10 ** rng.uniform(-2, 1))
    x = torch.rand(2, 4, 6)
    levels = Levels(*(int(n) for n in rng.integers(1, 128, 3)), bound=bound)
    graph = convert_recurrent(QuantisedCRNN(model, x, grid(), levels))
    charges = [n for n in graph.nodes if n.name.endswith(".charge") and n.op == "add"]
    own = [n for n in charges if ".cell." not in n.name and ".state.charge" not in n.name]
    own += [n for n in charges if cell == "rnn"]
    readers = [graph.node[c] for n in own for c in graph.consumers[n.name]]
    assert readers and all(n.peak < bound for n in (*own, *readers))


def test_digits_train_and_convert_with_no_difference() -> None:
    """scikit-learn's digits as sequences of eight rows: 0 differing neurons on all test samples."""
    images, labels = load_digits(return_X_y=True)
    x = torch.from_numpy(images.reshape(-1, 8, 8).astype(np.float32) / 16)
    y = torch.from_numpy(labels)
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(x)))
    x, y = x[order], y[order]
    torch.manual_seed(0)
    model = CRNN((8,), 10, cell="gru", hidden=(32,))

    def fit(network: nn.Module, rounds: int, rate: float) -> None:
        optimiser = torch.optim.Adam(network.train().parameters(), rate)
        for _ in range(rounds):
            for index in torch.randperm(1400).split(64):
                loss = F.cross_entropy(network(x[index]), y[index])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()

    fit(model, 12, 1e-2)
    quantised = QuantisedCRNN(model, x[:100], grid(1 / 16), Levels(15, 15, 15))
    fit(quantised, 3, 2e-3)
    test = x[1400:]
    graph = snnkit.convert(quantised, test)
    program = snnkit.compile(graph)
    names = [n.name for n in graph.of("spike")]
    result = program.run(test.numpy(), record=names)
    counts = quantised.counts(test)
    assert_fires(counts)
    assert sum(int((counts[n] != result.counts[n]).sum()) for n in names) == 0
    assert (result.outputs["y"].argmax(1) == y[1400:].numpy()).mean() > 0.9
    carried = program.run(test.numpy(), carry=True)
    reset = program.run(test.numpy())
    assert np.array_equal(carried.outputs["y"], reset.outputs["y"])
    spikes = [sum(int(v.sum()) for v in r.spikes.values()) for r in (reset, carried)]
    assert spikes[0] > spikes[1] > 0


def test_what_cannot_be_taken_is_said() -> None:
    x = torch.rand(4, 3, 6)
    with pytest.raises(UsageError, match="cell 'elman'"):
        CRNN((6,), 2, cell="elman")
    with pytest.raises(UsageError, match="offset 0"):
        offset = InputGrid(torch.tensor(0.1), torch.tensor(0.5), 0)
        QuantisedCRNN(CRNN((6,), 2), x, offset)
    with pytest.raises(UsageError, match="two scales"):
        both = CRNN((6,), 2, cell="rnn", nonlinearity="relu", bidirectional=True)
        QuantisedCRNN(both, x, grid())
    with pytest.raises(UsageError, match="127 levels"):
        Levels(state=128)
    with pytest.raises(UsageError, match="QuantisedCRNN"):
        snnkit.convert(QuantisedCRNN(CRNN((6,), 2), x, grid()), levels=7)
    with pytest.raises(BadCalibration, match=r"\(3, 6\)"):
        snnkit.convert(QuantisedCRNN(CRNN((6,), 2), x, grid()), x[:, :2])
    with pytest.raises(UsageError, match="one layer"):
        recurrent(nn.GRU(4, 4, num_layers=2), Levels())
