"""Directly trained spiking networks as integers: spike for spike, at every layer and step."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="torch is not installed; pip install torch")

import snnkit  # noqa: E402
from snnkit import nn as snn  # noqa: E402
from snnkit.converters.from_snn import from_snn  # noqa: E402
from snnkit.errors import BadCalibration, UnsupportedModel, UsageError  # noqa: E402
from snnkit.files import from_bytes, to_bytes  # noqa: E402
from snnkit.models import create  # noqa: E402
from snnkit.models.iir_snn import Block, _Form, thresholds_by_percentile  # noqa: E402
from snnkit.nn.integer_network import IntegerNetwork  # noqa: E402

# Networks without rounding: every number is dyadic and each output channel's largest weight is
# 127/128, so that 8-bit weights are the weights, and float64 computes without error. Then the
# float network in PyTorch and the exported integers must fire the same spikes, ties included.


def weights(rng: np.random.Generator, *shape: int) -> torch.Tensor:
    w = rng.integers(-60, 90, (shape[0], int(np.prod(shape[1:]))))
    w[np.arange(len(w)), rng.integers(0, w.shape[1], len(w))] = 127
    return torch.tensor(w.reshape(shape) / 128, dtype=torch.float64)


def neuron(rng: np.random.Generator) -> snn.Neuron:
    soft = [None, None, 0.0, -0.25][rng.integers(0, 4)]
    strict = bool(rng.integers(0, 2))
    decay = bool(rng.integers(0, 2))
    tau = float(rng.choice([2.0, 4.0]))
    made = [
        lambda: snn.IF(v_reset=soft, strict=strict),
        lambda: snn.LIF(tau, decay, v_reset=soft, strict=strict),
        lambda: snn.PLIF(2.0, decay, v_reset=soft, strict=strict),
        lambda: snn.IIRNeuron(leak=float(rng.choice([1.0, 0.75, 0.5, 0.0]))),
    ]
    return made[rng.integers(0, 4)]()


def synapse(rng: np.random.Generator, layer: torch.nn.Module, norm: bool) -> torch.nn.Module:
    layer.weight.data = weights(rng, *layer.weight.shape)
    if layer.bias is not None:
        drawn = rng.integers(-200, 200, layer.bias.shape) / 1024
        layer.bias.data = torch.tensor(drawn, dtype=torch.float64)
    if not norm:
        return snn.Folded(layer)
    batch_norm = torch.nn.BatchNorm2d(layer.out_channels, eps=0.0).double()
    sign = rng.choice([-1.0, 1.0, 0.5], layer.out_channels)
    batch_norm.weight.data = torch.tensor(sign)
    batch_norm.bias.data = torch.tensor(rng.integers(-50, 50, layer.out_channels) / 256)
    batch_norm.running_var = torch.full((layer.out_channels,), 4.0, dtype=torch.float64)
    return snn.Folded(layer, batch_norm)


def exact_network(rng: np.random.Generator, steps: int, timed: bool) -> torch.nn.Sequential:
    pool = [torch.nn.AvgPool2d(2), torch.nn.MaxPool2d(3, 2, 1), torch.nn.AvgPool2d((2, 1))]
    group = int(rng.choice([1, 2]))
    conv = torch.nn.Conv2d
    features = [
        synapse(rng, conv(2, 4, 3, padding=1, bias=bool(rng.integers(0, 2))), rng.random() < 0.3),
        neuron(rng),
        snn.Folded(pool[rng.integers(0, 3)]),
        synapse(rng, conv(4, 6, 3, (2, 1), (1, 0), groups=group), rng.random() < 0.3),
        neuron(rng),
        torch.nn.Dropout(),
        snn.Folded(torch.nn.Flatten()),
    ]
    model = torch.nn.Sequential(*([] if timed else [snn.Direct(steps)]), *features)
    model = model.double().eval()
    with torch.no_grad():
        x = torch.zeros((steps, 1, 2, 6, 7) if timed else (1, 2, 6, 7), dtype=torch.float64)
        size = model(x).shape[-1]
    readout = [snn.TimeSum(), snn.TimeMean()][rng.integers(0, 2)]
    last = synapse(rng, torch.nn.Linear(12, 5), False)
    # biases that are whole steps of the last weights
    last[0].bias.data = torch.tensor(rng.integers(-90, 90, 5) / 128, dtype=torch.float64)
    tail = [
        synapse(rng, torch.nn.Linear(size, 12), False),
        neuron(rng),
        snn.TimeDropout(0.3),
        last,
        readout,
    ]
    model = torch.nn.Sequential(*model, *tail).double().eval()
    if steps in (1, 2, 4) and rng.random() < 0.3:  # spikes are averaged, then read
        model = torch.nn.Sequential(*model[:-2], snn.TimeMean(), last[0])
    return model.double().eval()


def pixels(rng: np.random.Generator, n: int, steps: int = 0) -> np.ndarray:
    shape = (steps, n, 2, 6, 7) if steps else (n, 2, 6, 7)
    x = rng.integers(0, 256, shape) * (rng.random(shape) < 0.6) / 256 + rng.choice([0, 0.5])
    x.reshape(-1, 2, 6, 7)[:2, :, 0, 0] = x.min(), x.min() + 1 / 256
    x.reshape(-1, 2, 6, 7)[:2, :, 0, 1] = x.min() + 255 / 256
    return x.astype(np.float32)


def neurons(model: torch.nn.Module) -> dict[str, snn.Neuron]:
    return {k: m for k, m in model.named_modules() if isinstance(m, snn.Neuron)}


def set_thresholds(rng: np.random.Generator, model: torch.nn.Module, x: torch.Tensor) -> None:
    """Thresholds on potentials that occur (ties), layer by layer."""
    for module in neurons(model).values():
        seen: list[torch.Tensor] = []
        hook = module.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0]))
        snn.reset_net(model)
        with torch.no_grad():
            model(x)
        hook.remove()
        rest = module.v_reset or 0.0
        gain = 1.0
        if isinstance(module, snn.LIF) and module.decay_input:
            gain = 0.5 if isinstance(module, snn.PLIF) else 1 / module.tau
        first = (seen[0][0] * gain).flatten()
        levels = first[first > 2**-12].unique()
        assert len(levels) > 0
        # below the largest, so that strict neurons fire too
        at = float(levels[rng.integers(0, len(levels) - 1)] if len(levels) > 1 else levels[0] / 2)
        at += rest
        if isinstance(module, snn.IIRNeuron):
            module.threshold.data.fill_(at)
        else:
            module.threshold = at


def record(model: torch.nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, dict]:
    spikes: dict[str, torch.Tensor] = {}
    hooks = [
        m.register_forward_hook(lambda _, __, s, k=k: spikes.__setitem__(k, s))
        for k, m in neurons(model).items()
    ]
    snn.reset_net(model)
    with torch.no_grad():
        y = model(x)
    for hook in hooks:
        hook.remove()
    return y, spikes


def exact_case(seed: int, steps: int, timed: bool):
    rng = np.random.default_rng(seed)
    model = exact_network(rng, steps, timed)
    x = pixels(rng, 6, steps if timed else 0)
    set_thresholds(rng, model, torch.from_numpy(x).double())
    return model, x


def compare(seed: int, steps: int, timed: bool):
    """Export, and compare the float network's spikes with the integers in torch."""
    model, x = exact_case(seed, steps, timed)
    graph = snnkit.convert(model, x)
    y, spikes = record(model, torch.from_numpy(x).double())
    given = x[0] if timed and steps == 1 else x
    output, integers = IntegerNetwork(graph)(torch.from_numpy(given))
    assert len(spikes) == 3
    for name, train in spikes.items():
        found = integers[name]
        found = found[:, None] if steps == 1 else found
        assert torch.equal(found.movedim(1, 0), train.long()), name
    assert torch.allclose(output.double(), y, rtol=1e-6, atol=1e-6)
    return graph, given, output, integers, spikes


def agree_with_reference(graph, x, output, integers) -> None:
    result = snnkit.compile(graph, "reference").run(x, record=("all",))
    for node in graph.nodes:
        assert np.array_equal(result.counts[node.name], integers[node.name].numpy()), node.name
    assert np.array_equal(result.outputs["output"], output.numpy())


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 2**31 - 1), st.booleans())
def test_one_step_is_exact_in_every_execution(seed: int, timed: bool) -> None:
    graph, x, output, integers, _ = compare(seed, 1, timed)
    assert not graph.of("lif") and not graph.sweeps
    agree_with_reference(graph, x, output, integers)


@pytest.mark.parametrize("seed", range(6))
def test_one_step_passes_the_certificate(seed: int) -> None:
    """onnxruntime on the file, numba in every mode."""
    graph, x, _, _, _ = compare(seed, 1, False)
    assert from_bytes(to_bytes(graph)).digest == graph.digest
    certificate = snnkit.verify(graph, x)
    assert certificate.passed, certificate.first_difference
    assert not certificate.skipped and not certificate.silent_layers
    program = snnkit.compile(graph)
    assert program.path == "generic" or not program.why_generic


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.integers(0, 2**31 - 1), st.integers(2, 6), st.booleans())
def test_many_steps_are_exact(seed: int, steps: int, timed: bool) -> None:
    graph, x, output, integers, spikes = compare(seed, steps, timed)
    assert len(graph.of("lif")) == 3 and graph.steps == steps
    assert sum(bool(s.any()) for s in spikes.values()) >= 2
    agree_with_reference(graph, x, output, integers)


@pytest.mark.parametrize("seed", range(4))
def test_a_dozen_steps_lose_nothing(seed: int) -> None:
    """tau 4 over 12 steps moves a charge by 22 bits: the membrane keeps them all."""
    graph, *_ = compare(seed, 12, True)
    for node in graph.of("lif"):
        exact = 2 ** (node.attrs["shift"] * 11)
        assert (node.params["gain"] % exact == 0).all() and (node.params["bias"] % exact == 0).all()
    assert max(n.attrs["shift"] for n in graph.of("lif")) > 0


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_leaks_that_round_round_down_in_torch_too(kind: str) -> None:
    """Coarse integers below zero: the floor of the definition, not a cut towards zero."""
    rng = np.random.default_rng(5)
    node = snnkit.make_node("x", "input", [], {}, {"shape": (6,), "lo": -128, "hi": 127})
    weight = {"weight": rng.integers(-9, 9, (30, 6))}
    charge = snnkit.make_node("charge", "linear", [node], weight)
    arrays = {"leak": 3, "gain": 1, "bias": rng.integers(-400, 300, 30), "theta": 150}
    arrays |= {"reset": 150 if kind == "soft" else -37, "initial": -11}
    params = {k: np.atleast_1d(v) for k, v in arrays.items()}
    attrs = {"kind": kind, "shift": 2, "steps": 9}
    lif = snnkit.make_node("lif", "lif", [charge], params, attrs)
    out = snnkit.make_node("out", "readout", [lif], {"bias": [0]})
    one, none = np.float32(1), np.float32(0)
    ends = [
        snnkit.Boundary(name, name, "float32", dims, np.asarray(one), np.asarray(none), (), 0, time)
        for name, dims, time in (("x", ("n", 9, 6), 1), ("out", ("n", 30), None))
    ]
    nodes = (node, charge, lif, out)
    graph = snnkit.Graph(nodes, (ends[0],), (ends[1],), {}, ((4, 1),), 9)
    graph.check()
    x = rng.integers(-128, 128, (20, 9, 6)).astype(np.float32)
    result = snnkit.compile(graph, "reference").run(x, record=("all",))
    output, integers = IntegerNetwork(graph)(torch.from_numpy(x))
    assert 0.05 < result.counts["lif"].mean() < 0.95
    assert np.array_equal(result.counts["lif"], integers["lif"].numpy())
    assert np.array_equal(result.outputs["out"], output.numpy())


def test_the_laws_see_ties_and_every_kind_of_spike_train() -> None:
    """The cases above are not empty: layers fire, rest, and change from step to step."""
    changing, ties = 0, 0
    for seed in range(12):
        model, x = exact_case(seed, 3, False)
        _, spikes = record(model, torch.from_numpy(x).double())
        changing += sum(bool((s[0] != s[2]).any()) for s in spikes.values())
        first = next(iter(neurons(model).values()))
        seen = []
        first.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0]))
        snn.reset_net(model)
        model(torch.from_numpy(x).double())
        gain = 1.0
        if isinstance(first, snn.LIF) and first.decay_input:
            gain = 0.5 if isinstance(first, snn.PLIF) else 1 / first.tau
        level = float(torch.as_tensor(first.threshold).detach()) - (first.v_reset or 0.0)
        ties += bool((seen[0][0] * gain == level).any())
    assert changing >= 12 and ties >= 10


@pytest.mark.parametrize("timed", [False, True])
@pytest.mark.parametrize("steps", [2, 5])
def test_many_steps_pass_the_certificate(steps: int, timed: bool) -> None:
    """onnxruntime on the file, numba in every mode, at every step."""
    graph, x, _, integers, _ = compare(7, steps, timed)
    assert from_bytes(to_bytes(graph)).digest == graph.digest
    certificate = snnkit.verify(graph, x)
    assert certificate.passed, certificate.first_difference
    assert not certificate.skipped and not certificate.silent_layers
    result = snnkit.compile(graph, "numba").run(x, record=("spike",))
    for name, counts in result.counts.items():
        assert np.array_equal(counts, integers[name].numpy()), name


def trained_like(steps: int) -> tuple[torch.nn.Module, np.ndarray]:
    """An IIR net with random weights and live thresholds, and images."""
    torch.manual_seed(0)
    model = create("iir-vgg5", steps=steps, input_shape=(1, 8, 8)).eval()
    rng = np.random.default_rng(0)
    x = (rng.integers(0, 17, (40, 1, 8, 8)) / 16).astype(np.float32)
    thresholds_by_percentile(model, torch.from_numpy(x), 85.0)
    for i, m in enumerate(neurons(model).values()):
        m.leak.data.fill_(0.93 - 0.07 * i)
    return model, x


@pytest.mark.parametrize("steps", [1, 4])
def test_rounding_weights_is_the_only_error(steps: int) -> None:
    """Of random nets, whose margins are thin: few spikes move in the first layer, and the finer
    the weights, the fewer move anywhere."""
    model, x = trained_like(steps)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    shares = []
    for bits in (8, 5, 3):
        graph = from_snn(model.train(), x, weight_bits=bits)
        state = model.state_dict()
        assert model.training and all(torch.equal(v, before[k]) for k, v in state.items())
        _, spikes = record(model.eval(), torch.from_numpy(x))
        output, integers = IntegerNetwork(graph)(torch.from_numpy(x))
        moved = []
        for name, train in spikes.items():
            found = integers[name] if steps > 1 else integers[name][:, None]
            assert train.mean() > 0.01 and found.float().mean() > 0.01
            moved.append(float((found.movedim(1, 0) != train).float().mean()))
        shares.append(moved)
        agree_with_reference(graph, x, output, integers)
    assert shares[0][0] < 0.01
    for fine, coarse in itertools.pairwise(np.array(shares)):
        assert (fine < coarse).all()


@pytest.mark.parametrize("steps", [1, 3])
def test_residual_blocks_put_two_synapses_on_one_membrane(steps: int) -> None:
    torch.manual_seed(3)
    form = _Form(steps, False, 0.0)
    model = torch.nn.Sequential(
        snn.Direct(steps),
        form.conv(2, 4),
        form.fire(),
        Block(form, 4, 4, 1),
        Block(form, 4, 8, 2),
        snn.Folded(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(8, 5)),
        snn.TimeSum(),
    ).eval()
    x = pixels(np.random.default_rng(0), 8)
    thresholds_by_percentile(Resetting(model), torch.from_numpy(x), 75.0)
    graph = from_snn(model, x)
    assert sum(len(n.inputs) == 2 and "latch" not in n.inputs[0] for n in graph.of("add")) >= 2
    output, integers = IntegerNetwork(graph)(torch.from_numpy(x))
    for name in neurons(model):
        assert integers[name].any(), name
    agree_with_reference(graph, x, output, integers)
    if steps == 1:
        certificate = snnkit.verify(graph, x)
        assert certificate.passed, certificate.first_difference


class Resetting(torch.nn.Module):
    def __init__(self, model: torch.nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x):
        snn.reset_net(self)
        return self.model(x)


class Foreign(torch.nn.Module):
    """Named as ours, but another's: it is traced for what it does."""

    def forward(self, x):
        return torch.sign(x)


Foreign.__name__ = "LIF"


def flat(*layers: torch.nn.Module, steps: int = 1) -> torch.nn.Module:
    return torch.nn.Sequential(snn.Direct(steps), *layers)


LINEAR = snn.Folded(torch.nn.Linear(6, 4))
SHARED = snn.IF()
BAD = {
    "activation": (flat(LINEAR, torch.nn.GELU(), snn.TimeSum()), "'2' (GELU)"),
    "two states": (flat(LINEAR, snn.CubaLIF(), snn.TimeSum()), "'2' (CubaLIF): a neuron with two"),
    "leak": (flat(LINEAR, snn.IIRNeuron(leak=-0.1), snn.TimeSum()), "leak -0.1"),
    "threshold": (flat(LINEAR, snn.IF(-1.0), snn.TimeSum()), "threshold -1"),
    "foreign": (flat(LINEAR, Foreign(), snn.TimeSum()), "(call_function): a function call"),
    "twice": (
        flat(LINEAR, SHARED, snn.Folded(torch.nn.Linear(4, 4)), SHARED, snn.TimeSum()),
        "two places",
    ),
    "charge": (
        flat(LINEAR, snn.Folded(torch.nn.Linear(4, 4)), snn.TimeSum()),
        "put neurons in front of it",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_has_no_integer_form_is_refused_by_name(name: str) -> None:
    model, words = BAD[name]
    x = np.random.default_rng(0).random((5, 6)).astype(np.float32)
    with pytest.raises(UnsupportedModel) as caught:
        from_snn(model, x)
    assert words in str(caught.value)


def test_every_offending_layer_is_named_at_once() -> None:
    class Two(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.encode, self.sum = snn.Direct(1), snn.TimeSum()
            self.a, self.b = torch.nn.GELU(), torch.nn.SiLU()

        def forward(self, x):
            x = self.encode(x)
            return self.sum(self.a(x) + self.b(x))

    with pytest.raises(UnsupportedModel) as caught:
        from_snn(Two(), np.ones((5, 6), np.float32))
    assert [p.node for p in caught.value.problems] == ["a", "b"]


def test_branches_on_data_are_refused() -> None:
    class Odd(torch.nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(UnsupportedModel, match="cannot trace"):
        from_snn(Odd(), np.ones((5, 6), np.float32))


def test_what_time_forbids_is_refused() -> None:
    x = np.random.default_rng(0).random((5, 6)).astype(np.float32)
    for layers, words in (
        ([LINEAR, snn.IF()], "one value per step"),
        ([LINEAR, snn.IF(), snn.TimeSum(), snn.IF()], "behind the sum over time"),
    ):
        with pytest.raises(UnsupportedModel, match=words):
            from_snn(flat(*layers, steps=3), x)


def test_bad_arguments() -> None:
    model = flat(LINEAR, snn.IF(), snn.TimeSum())
    with pytest.raises(UsageError, match="weight_bits"):
        from_snn(model, np.ones((5, 6), np.float32), weight_bits=9)
    with pytest.raises(BadCalibration, match="finite"):
        from_snn(model, np.full((5, 6), np.nan, np.float32))
    with pytest.raises(BadCalibration, match="T, N"):
        from_snn(model[1:], np.ones((5, 6), np.float32))
