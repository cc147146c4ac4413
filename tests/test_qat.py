"""Quantisation-aware training: what is evaluated in torch is what is exported, on every neuron."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import snnkit
from snnkit.errors import BadCalibration, UnsupportedModel, UsageError
from snnkit.reference import dense, input_counts

torch = pytest.importorskip("torch", reason="torch is not installed; pip install torch")
nn, F = torch.nn, torch.nn.functional

from qat_nets import network  # noqa: E402

from snnkit.converters.from_qat import as_uniform  # noqa: E402
from snnkit.nn import LSQ, QCFS, InputGrid, WeightQuantiser, prepare  # noqa: E402
from snnkit.nn.curves import IDENTITY  # noqa: E402
from snnkit.nn.gathering import Sum  # noqa: E402
from snnkit.nn.quantised import Spike, Synapses  # noqa: E402
from snnkit.nn.reading import Reading  # noqa: E402

torch.set_num_threads(1)
GRIDS = [(1, 2), (3, 4), (7, 8), (15, 2), (255, 8), (3, 8), (15, 4), (1, 8)]


def trained(model: nn.Module, x: torch.Tensor, steps: int = 3) -> nn.Module:
    """A few steps towards random targets, so that nothing is where it was initialised."""
    torch.manual_seed(1)
    optimiser = torch.optim.Adam(model.train().parameters(), 1e-3)
    for _ in range(steps):
        y = model(x)
        loss = (y - torch.randn_like(y)).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model.eval()


def compare(prepared: nn.Module, x: np.ndarray, path: Path) -> snnkit.Graph:
    """torch's integers == the dense reading == numba == onnxruntime on the file; all fire."""
    graph = snnkit.convert(prepared, x)
    counts = prepared.counts(torch.from_numpy(x))
    assert set(counts) == {n.name for n in graph.of("spike")}
    expected = dense(graph, input_counts(graph, x))
    program = snnkit.compile(graph, backend="numba")
    result = program.run(x, mode="settle", record=list(counts))
    for name, found in counts.items():
        assert np.array_equal(found, expected[name]), name
        assert np.array_equal(result.counts[name], expected[name]), name
        assert found.any(), f"{name} is silent"
    with torch.no_grad():
        y = prepared(torch.from_numpy(x)).numpy()
    (name,) = result.outputs
    assert y.dtype == np.float32 and np.array_equal(result.outputs[name], y)
    assert (y != y[0]).any()
    snnkit.save(graph, path)
    (from_file,) = ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(
        None, {graph.inputs[0].name: x}
    )
    assert from_file.tobytes() == y.tobytes()
    return graph


SILENT = {7, 8}
"""Networks of binary neurons that random steps have silenced: they would prove nothing."""


@pytest.mark.parametrize("seed", sorted(set(range(32)) - SILENT))
def test_torch_evaluation_is_the_converted_network(seed: int, tmp_path: Path) -> None:
    model, x = network(seed)
    levels, bits = GRIDS[seed % len(GRIDS)]
    quantiser = ("lsq", "qcfs")[seed // 2 % 2]
    example = torch.from_numpy(x)
    options = {"levels": levels, "weight_bits": bits, "quantiser": quantiser}
    prepared = prepare(model, example=example, **options)
    compare(trained(prepared, example), x, tmp_path / "net.onnx")


def test_every_order_of_events_ends_in_torchs_integers() -> None:
    model, x = network(3)
    prepared = trained(prepare(model, levels=3, example=torch.from_numpy(x)), torch.from_numpy(x))
    graph = snnkit.convert(prepared)
    certificate = snnkit.verify(graph, x[:4])
    assert certificate.passed and not certificate.silent_layers
    assert any(e.get("spikes") for e in certificate.executions.values())


class Twin(nn.Module):
    """y = s * clip(floor(f(x) / s + 1/2), lo, hi) in float64, written with nothing of ours."""

    def __init__(self, spike: Spike, f: nn.Module):
        super().__init__()
        q = spike.quantiser
        self.s, self.lo, self.hi, self.f = float(q.step().detach()), q.lo, q.hi, f
        self.seen = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen = torch.floor(self.f(x) / self.s + 0.5).clamp(self.lo, self.hi)
        return self.seen * self.s


@pytest.mark.parametrize("act", [nn.ReLU, nn.Sigmoid, nn.Tanh, nn.GELU, nn.SiLU, nn.Hardswish])
@pytest.mark.parametrize("quantiser", ["lsq", "qcfs"])
def test_the_rule_is_the_stated_one(act: type[nn.Module], quantiser: str) -> None:
    """Against a float64 network with dequantised weights and quantisers in plain torch."""
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(2, 5, 3, padding=1),
        nn.BatchNorm2d(5, momentum=0.9),
        act(),
        nn.MaxPool2d(2),
    ]
    layers += [
        nn.Conv2d(5, 6, 3),
        nn.BatchNorm2d(6, momentum=0.9),
        act(),
        nn.AvgPool2d(2),
        nn.Flatten(),
    ]
    model = nn.Sequential(*layers, nn.Linear(6, 3))
    x = torch.randint(0, 256, (32, 2, 10, 10)).float() / 255
    prepared = trained(prepare(model, example=x, levels=7, quantiser=quantiser), x)
    twin = copy.deepcopy(model).double().eval()
    body = prepared.body
    for i in (0, 4, 9):
        ours = body.get_submodule(f"_{i}")
        whole, step = ours.quantiser(ours.weight)
        assert whole.abs().max() == 7 and bool((whole == whole.round()).all())
        twin[i].weight.data = whole.double() * step.double().reshape(-1, *(1,) * (whole.ndim - 1))
        twin[i].bias.data = ours.bias.double()
    for i in (1, 5):
        twin[i].load_state_dict(body.get_submodule(f"_{i}").norm.state_dict())
    for i in (2, 6):
        twin[i] = Twin(body.get_submodule(f"_{i}"), act())
    with torch.no_grad():
        y = twin(x.double())
    counts = prepared.counts(x)
    for i in (2, 6):
        assert np.array_equal(counts[f"_{i}"], twin[i].seen.numpy().astype(np.int64))
        assert (counts[f"_{i}"] != 0).mean() > 0.1
    # the readout's bias is a whole number of charge units
    assert (prepared(x).double() - y).abs().max() < 1e-2 * y.abs().max()


def lsq_gradients(v: np.ndarray, s: float, lo: int, hi: int) -> np.ndarray:
    """dy/ds as equation 3 of arXiv 1902.08153 has it, with the half rounded up."""
    r = v / s
    inside = np.floor(r + 0.5) - r
    return np.where(r <= lo, lo, np.where(r >= hi, hi, inside))


@given(st.integers(0, 2**32 - 1), st.sampled_from([(0, 1), (0, 7), (-3, 4), (-128, 127), (0, 255)]))
@settings(max_examples=40, deadline=None)
def test_gradients_of_lsq_follow_the_paper(seed: int, bounds: tuple[int, int]) -> None:
    lo, hi = bounds
    rng = np.random.default_rng(seed)
    s = float(rng.uniform(0.01, 2))
    x = rng.normal(0, s * hi, (5, 3, 4))
    weight = rng.normal(0, 1, x.shape)
    quantiser = LSQ(s, lo, hi).double()
    s = float(quantiser.raw.detach())
    z = torch.tensor(x, requires_grad=True)
    counts, step = quantiser(z)
    (counts * step * torch.tensor(weight)).sum().backward()
    scale = 1 / np.sqrt(12 * max(hi, -lo))
    expected = (lsq_gradients(x, s, lo, hi) * weight).sum() * scale
    assert np.isclose(float(quantiser.raw.grad), expected, rtol=1e-9, atol=1e-12)
    inside = (x / s > lo) & (x / s < hi)
    assert np.allclose(z.grad.numpy(), weight * inside, rtol=1e-12)
    assert np.array_equal(counts.detach().numpy(), np.clip(np.floor(x / s + 0.5), lo, hi))


def test_gradients_of_lsq_are_those_of_its_surrogate() -> None:
    """Straight through means: the rounding error stays what it was. Finite differences of that."""
    rng = np.random.default_rng(0)
    x, weight, s, hi, step = rng.normal(0, 3, (6, 10)), rng.normal(0, 1, (6, 10)), 0.7, 5, 1e-6
    v = np.clip(x / s, 0, hi)
    error = np.floor(v + 0.5) - v

    def surrogate(size: float) -> float:
        return float((size * (np.clip(x / size, 0, hi) + error) * weight).sum())

    slope = (surrogate(s + step) - surrogate(s - step)) / (2 * step) / np.sqrt(10 * hi)
    quantiser = LSQ(1.0, 0, hi).double()
    quantiser.raw.data.fill_(s)
    counts, size = quantiser(torch.tensor(x))
    (counts * size * torch.tensor(weight)).sum().backward()
    assert np.isclose(float(quantiser.raw.grad), slope, rtol=1e-6)


@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 2, 4, 8, 16, 255]))
@settings(max_examples=40, deadline=None)
def test_values_and_gradients_of_qcfs_follow_the_paper(seed: int, levels: int) -> None:
    """h = lambda * clip(floor(z L / lambda + phi) / L, 0, 1), phi = 1/2 (arXiv 2303.04347)."""
    rng = np.random.default_rng(seed)
    top = float(rng.uniform(0.1, 8))
    quantiser = QCFS(top / levels, 0, levels).double()
    top = float(quantiser.threshold.detach())
    z = rng.normal(top / 3, top, (4, 9))
    weight = rng.normal(0, 1, z.shape)
    x = torch.tensor(z, requires_grad=True)
    counts, step = quantiser(x)
    h = top * np.clip(np.floor(z * levels / top + 0.5) / levels, 0, 1)
    assert np.allclose((counts * step).detach().numpy(), h, rtol=1e-12)
    (counts * step * torch.tensor(weight)).sum().backward()
    half = top / (2 * levels)
    inside, above = (z > -half) & (z < top - half), z >= top - half
    assert np.allclose(x.grad.numpy(), weight * inside, rtol=1e-12)
    slope = np.where(inside, (h - z) / top, np.where(above, 1.0, 0.0))
    assert np.isclose(float(quantiser.threshold.grad), (slope * weight).sum(), rtol=1e-8, atol=1e-9)


@given(st.integers(0, 2**32 - 1), st.integers(2, 8))
@settings(max_examples=30, deadline=None)
def test_weights_are_symmetric_integers_with_lsq_gradients(seed: int, bits: int) -> None:
    rng = np.random.default_rng(seed)
    w = rng.normal(0, 1, (4, 3, 2))
    weight = torch.tensor(w, requires_grad=True)
    quantiser = WeightQuantiser(weight, bits)
    n = 2 ** (bits - 1) - 1
    with torch.no_grad():
        quantiser.raw.mul_(torch.tensor(rng.uniform(0.3, 1.2, 4)))
    s = quantiser.raw.detach().numpy()
    whole, step = quantiser(weight)
    v = w / s[:, None, None]
    assert np.array_equal(whole.detach().numpy(), np.clip(np.rint(v), -n, n))
    (whole * step.reshape(-1, 1, 1)).sum().backward()
    slope = np.where(v <= -n, -n, np.where(v >= n, n, np.rint(v) - v)).sum((1, 2))
    assert np.allclose(quantiser.raw.grad.numpy(), slope / np.sqrt(6 * n), rtol=1e-9)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_sums_use_whole_multipliers_on_one_grid(seed: int) -> None:
    rng = np.random.default_rng(seed)
    counts = [torch.tensor(rng.integers(-300, 300, (3, 4, 2, 2)).astype(np.float64)) for _ in "ab"]
    scales = [torch.tensor(10.0 ** rng.uniform(-5, 0, (1, 4, 1, 1))) for _ in "ab"]
    if seed % 3 == 0:
        scales[1] = scales[0].clone()
    zero = torch.zeros((), dtype=torch.float64)
    terms = [Reading(c, s, zero, 300) for c, s in zip(counts, scales, strict=True)]
    layer = Sum((1, -1)).eval()
    multipliers, _ = layer.multipliers(*terms)
    assert all(bool((m == m.round()).all()) for m in multipliers)
    if seed % 3 == 0:
        assert all(bool((m.abs() == 1).all()) for m in multipliers)
    total = layer(*terms)
    assert total.reach < 2**31 and float(total.counts.abs().max()) <= total.reach
    exact = counts[0] * scales[0] - counts[1] * scales[1]
    size = (counts[0] * scales[0]).abs() + (counts[1] * scales[1]).abs()
    assert bool(((total.value() - exact).abs() <= 2.0**-10 * size + 1e-12).all())


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_a_uniform_form_equals_its_ladder_everywhere(data: st.DataObject) -> None:
    lo = data.draw(st.integers(-3, 0))
    hi = lo + data.draw(st.integers(max(1, -lo), 5))
    reach = (data.draw(st.integers(-60, 0)), data.draw(st.integers(0, 60)))
    k = np.arange(lo + 1, hi + 1)
    if data.draw(st.booleans()):
        theta, init = data.draw(st.integers(1, 40)), data.draw(st.integers(-80, 80))
        thresholds = (k * theta - init)[None]
    else:
        drawn = st.lists(st.integers(-70, 70), min_size=len(k), max_size=len(k))
        thresholds = np.array([sorted(data.draw(drawn))])
    found = as_uniform(thresholds, lo, hi, reach, np.array([9.0]))
    charges = np.arange(reach[0], reach[1] + 1)
    ladder = (thresholds[0] <= charges[:, None]).sum(1) + lo
    inside = (thresholds[0] > reach[0]) & (thresholds[0] <= reach[1])
    if found is None:
        gaps = np.diff(thresholds[0][inside])
        assert inside.any() and not (
            len(k) == 1 or (inside.all() and len(set(gaps)) <= 1 < len(k) and gaps.min() > 0)
        )
        return
    uniform = np.clip((charges + found["init"][0]) // found["theta"][0], lo, hi)
    assert np.array_equal(uniform, ladder)


def digits() -> tuple[torch.Tensor, ...]:
    data = pytest.importorskip("sklearn.datasets", reason="needs scikit-learn").load_digits()
    order = np.random.default_rng(0).permutation(len(data.images))
    x = torch.tensor(data.images[order, None], dtype=torch.float32)
    y = torch.tensor(data.target[order])
    return x[:1300], y[:1300], x[1300:], y[1300:]


def digits_net() -> nn.Module:
    torch.manual_seed(0)
    conv = [nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.MaxPool2d(2)]
    conv += [nn.Conv2d(12, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*conv, nn.Flatten(), nn.Linear(96, 10))


def fit(model: nn.Module, epochs: int, peek: bool = False) -> nn.Module:
    x, y, _, _ = digits()
    torch.manual_seed(0)
    optimiser = torch.optim.Adam(model.train().parameters(), 3e-3)
    for _ in range(epochs):
        for index in torch.randperm(len(x)).split(64):
            loss = F.cross_entropy(model(x[index]), y[index])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            if peek:
                model.eval()(x[:8])
                model.counts(x[:8])
                model.train()
    return model


@pytest.mark.parametrize("quantiser", ["lsq", "qcfs"])
def test_digits_learn_from_scratch_and_convert(quantiser: str, tmp_path: Path) -> None:
    x, _, test_x, test_y = digits()
    prepared = prepare(digits_net(), levels=3, weight_bits=4, quantiser=quantiser, example=x)
    fit(prepared, 8)
    with torch.no_grad():
        predicted = prepared.eval()(test_x).argmax(1)
    accuracy = float((predicted == test_y).float().mean())
    assert accuracy > 0.95
    graph = compare(prepared, test_x.numpy(), tmp_path / "digits.onnx")
    result = snnkit.compile(graph).run(test_x.numpy(), mode="events")
    (outputs,) = result.outputs.values()
    assert float((outputs.argmax(1) == test_y.numpy()).mean()) == pytest.approx(accuracy, abs=1e-6)


def test_evaluating_in_between_does_not_change_training() -> None:
    x = digits()[0]
    plain = fit(prepare(digits_net(), example=x), 1)
    peeked = fit(prepare(digits_net(), example=x), 1, peek=True)
    first, second = plain.state_dict(), peeked.state_dict()
    assert all(torch.equal(first[k], second[k]) for k in first)


def test_without_batch_statistics_training_computes_the_same_integers() -> None:
    """Up to float32 rounding at a tie: the forward pass of training is the network itself."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5))
    x = torch.randint(0, 17, (64, 1, 8, 8)).float()
    prepared = prepare(model, example=x)
    seen: list[torch.Tensor] = []
    spike = next(m for m in prepared.modules() if isinstance(m, Spike))
    spike.register_forward_hook(lambda m, i, o: seen.append(o.counts.detach()))
    prepared.train()(x)
    prepared.eval()(x)
    assert seen[0].dtype == torch.float32 and seen[1].dtype == torch.float64
    assert (seen[0] != seen[1]).double().mean() < 1e-3 and seen[0].any()


def test_a_copy_and_a_saved_state_are_the_same_network(tmp_path: Path) -> None:
    model, x = network(5)
    example = torch.from_numpy(x)
    prepared = trained(prepare(model, example=example), example)
    digest = snnkit.convert(prepared).digest
    assert snnkit.convert(copy.deepcopy(prepared)).digest == digest
    torch.save(prepared.state_dict(), tmp_path / "state.pt")
    again = prepare(model, example=example)
    again.load_state_dict(torch.load(tmp_path / "state.pt"))
    assert snnkit.convert(again).digest == digest
    assert again.training and not prepared.training


class Functional(nn.Module):
    """The same layers as functions and methods, one module used twice, two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3, padding="same")
        self.again = nn.Conv2d(6, 6, 3, padding="valid")
        self.act = nn.ReLU()
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        x = self.act(self.conv((x - 0.5) / 0.25))
        y = F.relu(F.max_pool2d(self.again(x), 2))
        y = y.mean((2, 3)).view(x.size(0), -1)
        y = F.dropout(y, 0.2, self.training)
        y = self.act(torch.add(y, F.adaptive_max_pool2d(x, 1).flatten(1)))
        return F.log_softmax(self.head(y), dim=1), torch.sigmoid(self.head(y) * 2)


def test_functions_methods_and_several_outputs() -> None:
    torch.manual_seed(0)
    x = torch.randint(0, 256, (32, 1, 9, 9)).float() / 255
    prepared = prepare(Functional(), example=x, levels=15, weight_bits=8)
    names = {n.name for n in prepared.body.graph.nodes}
    assert "again_requantised" not in names  # the maximum is taken behind the activation
    prepared.train()
    sum(y.square().mean() for y in prepared(x)).backward()
    assert all(p.grad is not None for p in prepared.parameters())
    prepared.eval()
    graph = snnkit.convert(prepared, x.numpy())
    assert len(graph.outputs) == 2 and graph.node["sigmoid"].hi == 255
    counts = prepared.counts(x)
    found = snnkit.compile(graph).run(x.numpy(), record=list(counts))
    assert all(np.array_equal(found.counts[n], c) and c.any() for n, c in counts.items())
    with torch.no_grad():
        log, sigmoid = (y.numpy() for y in prepared(x))
    outputs = [found.outputs[b.name] for b in graph.outputs]
    assert np.allclose(outputs[0], log, atol=1e-5) and np.array_equal(outputs[1], sigmoid)


def test_binary_spikes_and_overrides() -> None:
    x = digits()[0]
    rules = {"0": {"weight_bits": 8}, "2": {"levels": 15}}
    prepared = prepare(digits_net(), example=x, levels=1, weight_bits=2, overrides=rules)
    graph = snnkit.convert(prepared)
    first, second = graph.of("spike")
    assert (first.lo, first.hi, second.lo, second.hi) == (0, 15, 0, 1)
    assert second.attrs["kind"] == "uniform"
    weights = [int(np.abs(n.params["weight"]).max()) for n in graph.of("conv", "linear")]
    assert weights[0] == 127 and weights[1:] == [1, 1]
    with pytest.raises(UsageError, match=r"expected one of.*_0"):
        prepare(digits_net(), example=x, overrides={"nowhere": {"levels": 3}})
    with pytest.raises(UsageError, match="weight_bits 9"):
        prepare(digits_net(), example=x, overrides={"0": {"weight_bits": 9}})


def test_a_stated_input_grid_is_exported() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(8, 3))
    x = torch.randint(-3, 4, (6, 2, 4)).float()  # signed event counts
    grid = InputGrid(1.0, lo=-128)
    graph = snnkit.convert(prepare(model, example=x, input_grid=grid))
    assert graph.of("input")[0].lo == -128 and float(graph.inputs[0].scale) == 1.0
    counts = input_counts(graph, x.numpy())
    assert np.array_equal(counts[graph.of("input")[0].name], x.numpy().astype(np.int64))


def test_refusals_name_every_layer_at_once() -> None:
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.ok = nn.LayerNorm(4), nn.Linear(4, 4)
            self.pool = nn.MaxPool1d(2, ceil_mode=True)

        def forward(self, x):
            a = self.norm(x)
            b = self.pool(x)
            return self.ok(x) * x, a, b

    with pytest.raises(UnsupportedModel) as caught:
        prepare(Odd(), example=torch.rand(4, 3, 4))
    text = str(caught.value)
    assert {p.node for p in caught.value.problems} == {"norm", "pool", "mul"}
    assert "LayerNorm" in text and "ceil_mode" in text and "make one a number" in text

    class Branching(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(UnsupportedModel, match="cannot trace"):
        prepare(Branching(), example=torch.rand(4, 3))
    with pytest.raises(UnsupportedModel, match="does not run on the example"):
        prepare(nn.Linear(4, 2), example=torch.rand(4, 3))


def test_options_that_cannot_be_taken() -> None:
    model, x = nn.Sequential(nn.Linear(4, 2)), torch.rand(8, 4)
    for options in ({"levels": 0}, {"weight_bits": 9}, {"quantiser": "dorefa"}):
        with pytest.raises(UsageError):
            prepare(model, example=x, **options)
    prepared = prepare(model, example=x)
    with pytest.raises(UsageError, match="prepared model"):
        snnkit.convert(prepared, levels=15)
    with pytest.raises(BadCalibration, match="samples of shape"):
        snnkit.convert(prepared, np.zeros((2, 5), np.float32))
    with pytest.raises(BadCalibration, match="no calibration data"):
        snnkit.convert(model)


def test_the_model_given_stays_as_it_is() -> None:
    model, x = network(2)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    prepared = prepare(model, example=torch.from_numpy(x))
    trained(prepared, torch.from_numpy(x))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert any(isinstance(m, Synapses) for m in prepared.modules())


def test_a_diverged_model_is_refused_by_name() -> None:
    x = torch.rand(8, 4)
    prepared = prepare(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), example=x)
    next(m for m in prepared.modules() if isinstance(m, Spike)).quantiser.raw.data.fill_(np.nan)
    with pytest.raises(UnsupportedModel, match=r"_1.*not finite; training diverged"):
        snnkit.convert(prepared)


def test_evaluation_stays_exact_under_autocast() -> None:
    model, x = network(4)
    example = torch.from_numpy(x)
    prepared = trained(prepare(model, example=example, weight_bits=8, levels=255), example)
    expected = prepared.counts(example)
    with torch.autocast("cpu", torch.bfloat16):
        found = prepared.counts(example)
    assert all(np.array_equal(found[n], c) and c.any() for n, c in expected.items())


def test_wide_sums_leave_float32(tmp_path: Path) -> None:
    """1,200 inputs of 255 times weights of 127 pass 2^24: the charge is summed in float64."""
    torch.manual_seed(0)
    layer = nn.Linear(1200, 6)
    layer.weight.data.abs_()
    model = nn.Sequential(layer, nn.ReLU(), nn.Linear(6, 3))
    x = torch.randint(200, 256, (16, 1200)).float()
    x[0, :256] = torch.arange(256)
    prepared = prepare(model, example=x, levels=255, weight_bits=8).eval()
    charges = prepared.readings(x)["_0"].counts.numpy()
    assert charges.max() > 2**24
    graph = compare(prepared, x.numpy(), tmp_path / "wide.onnx")
    weight = graph.node["_0"].params["weight"].astype(np.int64)
    counts = input_counts(graph, x.numpy())[graph.of("input")[0].name]
    assert np.array_equal(charges, (counts @ weight.T).astype(np.float64))


@pytest.mark.parametrize("kind", [LSQ, QCFS])
def test_the_half_rounds_up(kind: type) -> None:
    quantiser = kind(0.5, -3, 4)
    x = torch.arange(-10, 12).float() / 4
    counts = quantiser(x[None])[0][0].detach().numpy()
    assert np.array_equal(counts, np.clip(np.floor(x.numpy() / 0.5 + 0.5), -3, 4))
    spike = Spike(IDENTITY, quantiser).eval()
    one, zero = torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    reading = Reading(torch.arange(-10, 12, dtype=torch.float64)[None], one / 4, zero, 12)
    assert np.array_equal(spike(reading).counts[0].detach().numpy(), counts)


@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("groups", [1, 2])
def test_a_layer_is_its_convolution_of_the_values_it_reads(padding: int, groups: int) -> None:
    """Scales and offsets that differ between channels, in units of the charge: an offset that
    differs between positions is a whole number of them."""
    torch.manual_seed(groups)
    conv = nn.Conv2d(4, 6, 3, padding=padding, groups=groups)
    scale = torch.rand(1, 4, 1, 1, dtype=torch.float64) + 0.1
    offset = torch.randn(1, 4, 1, 1, dtype=torch.float64) * 3
    counts = torch.randint(-9, 10, (5, 4, 7, 7)).double()
    source = Reading(counts, scale, offset, 9)
    layer = Synapses(conv, source, 8).eval()
    whole, unit = layer.integers(source)
    ratio = scale / scale.max()
    into = ratio.expand(1, 4, 1, 1).reshape(groups, 1, -1, 1, 1)
    step = layer.quantiser.step().double().reshape(groups, -1, 1, 1, 1)
    weight = whole.double().reshape(groups, -1, 4 // groups, 3, 3) * step / into
    exact = F.conv2d(source.value(), weight.reshape(6, -1, 3, 3), None, 1, padding, 1, groups)
    exact = exact + conv.bias.double().reshape(1, -1, 1, 1)
    error = ((layer(source).value() - exact) / unit).abs().max()
    assert float(error) < (0.51 if padding else 1e-2)


def test_padding_of_a_normalised_input_is_a_map_of_charges(tmp_path: Path) -> None:
    """Zero padding is no value of the input's grid: border positions start with other charges,
    and all share one ladder per channel."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 144, 3)]
    x = torch.randint(0, 256, (16, 1, 12, 12)).float()
    x[0].view(-1)[:128], x[1].view(-1)[:128] = torch.arange(128), torch.arange(128, 256)
    x = (x / 255 - 0.4) / 0.3
    prepared = prepare(nn.Sequential(*layers), example=x, levels=7, weight_bits=8)
    graph = compare(trained(prepared, x), x.numpy(), tmp_path / "map.onnx")
    (spike,) = graph.of("spike")
    assert spike.params["init"].shape == (4, 12, 12)
    assert spike.params["thresholds"].shape[:-1] == (4, 1, 1)
    inner = spike.params["init"][:, 1:-1, 1:-1]
    assert (inner == inner[:, :1, :1]).all() and (spike.params["init"] != inner[:, :1, :1]).any()
