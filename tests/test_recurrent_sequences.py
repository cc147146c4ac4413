"""Networks for long sequences: dilated causal fronts, and GRUs that take a sequence at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import snnkit
from snnkit.reference import dense, input_counts

torch = pytest.importorskip("torch", reason="torch is not installed; pip install torch")
nn, F = torch.nn, torch.nn.functional

from snnkit.converters.from_recurrent import convert_recurrent  # noqa: E402
from snnkit.models.crnn import CRNN, CausalConv, Front, QuantisedCRNN  # noqa: E402
from snnkit.nn import InputGrid, gru_sequence  # noqa: E402
from snnkit.nn import recurrent as steps  # noqa: E402
from snnkit.nn.causal import causal_conv, fired  # noqa: E402
from snnkit.nn.gru_sequence import torch_gru  # noqa: E402
from snnkit.nn.ladders import ladder, lowest  # noqa: E402
from snnkit.nn.quantisers import staircase  # noqa: E402
from snnkit.nn.recurrent import Counts, Levels, recurrent  # noqa: E402

torch.set_num_threads(1)


def by_definition(x: np.ndarray, weight: np.ndarray, dilation: int) -> np.ndarray:
    """sum over k of W_k x[t - (K - 1 - k) d], element by element, in float64."""
    context = weight.shape[2]
    y = np.zeros((*x.shape[:2], len(weight)))
    for t in range(len(x)):
        for k in range(context):
            at = t - (context - 1 - k) * dilation
            if at >= 0:
                y[t] += x[at].astype(np.float64) @ weight[:, :, k].T.astype(np.float64)
    return y


@pytest.mark.parametrize(
    ("channels", "context", "dilation"), [(1, 5, 1), (3, 1, 4), (2, 4, 3), (3, 3, 20)]
)
def test_causal_convolutions_are_the_stated_sum(channels: int, context: int, dilation: int) -> None:
    g = torch.Generator().manual_seed(context)
    x = torch.randint(-99, 100, (17, 3, channels), generator=g).float()
    weight = torch.randint(-127, 128, (4, channels, context), generator=g).float()
    x.requires_grad_(), weight.requires_grad_()
    y = causal_conv(x, weight, dilation)
    expected = by_definition(x.detach().numpy(), weight.detach().numpy(), dilation)
    assert np.array_equal(y.detach().numpy(), expected) and (expected != 0).mean() > 0.9
    towards = torch.randint(-9, 10, y.shape, generator=g).float()
    found = torch.autograd.grad(y, (x, weight), towards)
    padded = F.pad(x.permute(1, 2, 0), ((context - 1) * dilation, 0))
    again = F.conv1d(padded, weight, dilation=dilation).permute(2, 0, 1)
    # integers below 2^24: gradients are exact, too
    for ours, theirs in zip(found, torch.autograd.grad(again, (x, weight), towards), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_neurons_of_one_place_fire_as_the_staircase(kind: torch.dtype) -> None:
    g = torch.Generator().manual_seed(0)
    theta = torch.tensor([1.0, 2.0, 7.0, 64.0], dtype=torch.float64, requires_grad=True)
    bias = torch.tensor([0.0, 3.0, -11.0, 500.0], dtype=torch.float64, requires_grad=True)
    charge = torch.randint(-200, 400, (400, 5, 4), generator=g).to(kind).requires_grad_()
    ours = fired(charge, bias, theta, 15)
    theirs = staircase((charge + bias) / theta, 0, 15).float()
    assert torch.equal(ours, theirs) and len(theirs.unique()) == 16
    towards = torch.randn(ours.shape, generator=g)
    wanted = (charge, bias, theta)
    both = (torch.autograd.grad(y, wanted, towards) for y in (ours, theirs))
    for a, b in zip(*both, strict=True):
        assert a.dtype == b.dtype and torch.allclose(a, b, rtol=1e-4, atol=1e-5)


def test_a_front_of_one_place_is_torchs_convolution() -> None:
    torch.manual_seed(0)
    layer = CausalConv(2, Front(3, 4, dilation=5))
    x = torch.randn(6, 30, 2)
    for mode in (True, False):
        layer.train(mode)
        ours = layer.along(x.transpose(0, 1)).permute(1, 2, 0)
        theirs = layer(x.transpose(1, 2).unsqueeze(3)).squeeze(3)
        assert torch.allclose(ours, theirs, atol=1e-5) and (ours > 0).float().mean() > 0.2


def test_a_float_gru_at_once_is_torchs() -> None:
    torch.manual_seed(1)
    layer = nn.GRU(5, 9)
    for p in layer.parameters():
        p.data *= 3
    x = (4 * torch.randn(60, 4, 5)).requires_grad_()
    wanted = (x, *layer.parameters())
    ours, theirs = torch_gru(layer, x), layer(x)[0]
    assert torch.allclose(ours, theirs, atol=1e-5) and theirs.abs().max() > 0.9
    towards = torch.randn_like(ours)
    both = (torch.autograd.grad(y, wanted, towards) for y in (ours, theirs))
    for a, b in zip(*both, strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-3 * float(b.abs().max()))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(
    "levels",
    [Levels(127, 127, 127), Levels(3, 255, 5), Levels(15, 1, 127, bound=2**16), Levels(31, 30, 9)],
    ids=["fine", "many gates", "coarse grid", "even"],
)
def test_a_quantised_gru_at_once_is_its_steps(
    levels: Levels, reverse: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit; the gradient is that of the single operations."""
    torch.manual_seed(2)
    source = nn.GRU(4, 11, bidirectional=reverse)
    for p in source.parameters():
        p.data *= 2.5
    layer = recurrent(source, levels, reverse)
    given = torch.randint(0, 256, (140, 8, 4)).float() * (torch.rand(140, 8, 4) < 0.4)
    towards, found = torch.randn(140, 8, 11), []
    for long in (1, 10**9):
        monkeypatch.setattr(steps, "LONG", long)
        x = given.clone().requires_grad_()
        scale = torch.tensor(1 / 255, dtype=torch.float64, requires_grad=True)
        states = layer(Counts(x, scale, 0, 255)).counts
        wanted = [x, scale, *layer.parameters()]
        found.append((states, *torch.autograd.grad(states, wanted, towards)))
    (ours, *by_hand), (theirs, *automatic) = found
    assert ours.grad_fn.name() != theirs.grad_fn.name(), "the same code twice"
    assert torch.equal(ours, theirs)
    assert (theirs != 0).float().mean() > 0.3 and len(theirs.unique()) > levels.state
    # on the coarse grid all multipliers are 1, and their scale has no gradient
    assert sum(bool(b.any()) for b in automatic) >= len(automatic) - 1
    for a, b in zip(by_hand, automatic, strict=True):
        assert a.dtype == b.dtype
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-4 * float(b.abs().max()))


@pytest.mark.parametrize(("curve", "most"), [("sigmoid", 31), ("tanh", 127)])
def test_a_guess_one_off_becomes_the_level(curve: str, most: int) -> None:
    """At each threshold and just below it, whatever float32 made of the curve."""
    thresholds, lo = ladder(curve, most, 2**20), lowest(curve, most)
    charge = np.concatenate([thresholds, thresholds - 1]).astype(np.int32)
    level = lo + (thresholds[None] <= charge[:, None]).sum(1)
    assert sorted(set(level)) == list(range(lo, most + 1))
    for off in (-1, 0, 1):
        found = (level + off).astype(np.float32)
        gru_sequence._levels(charge, found, lo, most, gru_sequence._between_ends(thresholds))
        assert np.array_equal(found, level), off


def random_front(rng: np.random.Generator, width: int) -> tuple[Front, ...]:
    """One to three layers, at least one dilated; over places as well where there are several."""
    layers = []
    for i in range(int(rng.integers(1, 4))):
        kernel = int(rng.integers(1, 4)) if width > 1 else 1
        context, dilation = int(rng.integers(1, 5)), int(rng.integers(1, 6))
        if i == 0:
            context, dilation = max(context, 2), max(dilation, 2)
        layers.append(Front(int(rng.integers(2, 6)), context, kernel, 1, kernel // 2, dilation))
    return tuple(layers)


def trained(shape: tuple[int, ...], elements: int, seed: int, **options: Any) -> Any:
    """A small network after two training steps on sparse sequences, and the sequences."""
    torch.manual_seed(seed)
    x = torch.randint(0, 256, (12, elements, *shape)).float() / 255
    x = x * (torch.rand(12, elements, *(1,) * len(shape)) < 0.6)
    model = CRNN(shape, 3, **{"hidden": (6,), **options})
    for p in model.layers.parameters():
        p.data *= 2.5
    model.train()(x)
    grid = InputGrid(torch.tensor(1 / 255), torch.tensor(0.0), 0)
    quantised = QuantisedCRNN(model, x, grid, Levels(15, 15, 31), 15)
    optimiser = torch.optim.Adam(quantised.parameters(), 3e-3)
    for _ in range(2):
        y = quantised(x)
        optimiser.zero_grad()
        (y - torch.randn_like(y)).square().mean().backward()
        optimiser.step()
    return quantised, x


def same_on_every_neuron(model: QuantisedCRNN, x: torch.Tensor) -> snnkit.Graph:
    """torch's counts, the reference's and the engine's; every spiking layer fires over time."""
    graph, counts = convert_recurrent(model), model.counts(x)
    assert set(counts) == {n.name for n in graph.of("spike")}
    values = dense(graph, input_counts(graph, x.numpy()))
    result = snnkit.compile(graph).run(x.numpy(), record=list(counts))
    for name, c in counts.items():
        assert (c != 0).any(axis=(0, *range(2, c.ndim))).sum() > 1, f"{name} is silent"
        assert np.array_equal(c, values[name]), name
        assert np.array_equal(c, result.counts[name]), name
    with torch.no_grad():
        assert np.array_equal(model.eval()(x).numpy(), result.outputs["y"])
    return graph


@pytest.mark.parametrize("seed", range(8))
def test_dilated_fronts_are_the_graph_at_every_element(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = ((1,), (3, 1), (5,), (2, 4))[seed % 4]
    front = random_front(rng, shape[-1])
    readout = ("last", "mean", "each")[seed % 3]
    model, x = trained(shape, 24, seed, front=front, readout=readout)
    graph = same_on_every_neuron(model, x)
    registers = [n for n in graph.of("latch") if n.name.endswith(".past")]
    dilated = [f for f in front if f.dilation > 1 and f.context > 1]
    assert [n.units % f.span for n, f in zip(registers, dilated, strict=True)] == [0] * len(dilated)
    if seed < 4:
        assert snnkit.verify(graph, x[:3].numpy(), modes=("settle", "fuzz")).passed


def test_long_sequences_of_one_value_are_the_graph(tmp_path: Path) -> None:
    """What training computes at once is what the file computes element by element."""
    front = (Front(4, 3), Front(5, 3, dilation=9))
    model, x = trained((1,), steps.LONG + 9, 0, front=front, cell="gru", readout="mean")
    assert torch.equal(model.train()(x).detach(), model.eval()(x).detach())
    graph = same_on_every_neuron(model, x)
    snnkit.save(graph, tmp_path / "net.onnx")
    assert snnkit.verify(graph, x[:2].numpy(), modes=("settle",)).passed
