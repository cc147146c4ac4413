"""Neurons and surrogates against a plain loop over single numbers, values and gradients."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed; pip install torch")

from snnkit import nn as snn  # noqa: E402
from snnkit.errors import SnnkitError, StateMismatch  # noqa: E402

STEPS, UNITS = 7, 40

# A spike with surrogate derivative g is heaviside + (G - detached G), G an antiderivative of g.
PRIMITIVES: dict[str, tuple[snn.Surrogate, Callable]] = {
    "sigmoid": (snn.Sigmoid(4.0), lambda x: 1 / (1 + torch.exp(-4 * x))),
    "sigmoid 2.5": (snn.Sigmoid(2.5), lambda x: 1 / (1 + torch.exp(-2.5 * x))),
    "atan": (snn.ATan(3.0), lambda x: torch.atan(math.pi / 2 * 3 * x) / math.pi),
    "triangle": (
        snn.Triangle(0.3, 0.8),
        lambda x: 0.3 * (x - x * abs(x) / 1.6) if abs(x) < 0.8 else 0 * x,
    ),
    "rectangle": (snn.Rectangle(0.4), lambda x: x / 0.8 if abs(x) < 0.4 else 0 * x),
    "fast sigmoid": (snn.FastSigmoid(25.0), lambda x: x / (1 + 25 * abs(x))),
    "own": (snn.Surrogate(lambda x: 2 + x), lambda x: 2 * x + x * x / 2),
}


def spike(x, strict, primitive):
    hard = 1.0 if (x > 0 if strict else x >= 0) else 0.0
    smooth = primitive(x)
    return hard + (smooth - smooth.detach())


@pytest.mark.parametrize("name", PRIMITIVES)
@pytest.mark.parametrize("strict", [False, True])
def test_a_surrogate_fires_hard_and_differentiates_soft(name: str, strict: bool) -> None:
    surrogate, primitive = PRIMITIVES[name]
    points = [-3.0, -0.81, -0.5, -0.39, -1e-3, 0.0, 1e-3, 0.2, 0.39, 0.5, 2.0]
    x = torch.tensor(points, dtype=torch.float64, requires_grad=True)
    s = surrogate(x, strict)
    s.sum().backward()
    for at, fired, slope in zip(points, s.tolist(), x.grad.tolist(), strict=True):
        single = torch.tensor(at, dtype=torch.float64, requires_grad=True)
        expected = spike(single, strict, primitive)
        expected.backward()
        assert fired == expected.item() == float(at > 0 or (at == 0 and not strict))
        assert slope == pytest.approx(single.grad.item(), abs=1e-12)


# One neuron, one number per step: the formulas of the papers, written once more.


def loop(kind: str, x, p: dict, primitive):
    """Spikes of one unit; x a list of scalars, p the parameters (numbers or leaf tensors)."""
    hard, strict = p["v_reset"] is not None, p["strict"]
    rest = p["v_reset"] if hard else 0.0
    v, a, i = torch.tensor(rest, dtype=torch.float64), 0.0, 0.0
    out = []
    for now in x:
        th = p["threshold"]
        if kind == "IF":
            v = v + now
        elif kind in ("LIF", "PLIF", "ALIF"):
            inverse = 1 / (1 + torch.exp(-p["w"])) if kind == "PLIF" else 1 / p["tau"]
            drive = now * inverse if p["decay_input"] else now
            v = v - (v - rest) * inverse + drive
        elif kind == "CUBA":
            i = (1 - p["du"]) * i + now
            v = (1 - p["dv"]) * v + i
        bar = th + p["beta"] * a if kind == "ALIF" else th
        s = spike(v - bar, strict, primitive)
        out.append(s)
        sent = s.detach() if p["detach_reset"] else s
        v = (1 - sent) * v + sent * rest if hard else v - th * sent
        if kind == "ALIF":
            a = p["rho"] * a + sent
    return torch.stack(out)


def build(kind: str, **common) -> snn.Neuron:
    if kind == "IF":
        return snn.IF(**{k: v for k, v in common.items() if k != "decay_input"})
    if kind == "CUBA":
        rest = {k: v for k, v in common.items() if k != "decay_input"}
        return snn.CubaLIF(0.3, 0.2, **rest)
    if kind == "ALIF":
        return snn.AdaptiveLIF(2.5, beta=0.7, rho=0.8, **common)
    return {"LIF": snn.LIF, "PLIF": snn.PLIF}[kind](2.5, **common)


def currents(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((STEPS, UNITS), generator=generator, dtype=torch.float64) * 0.9 + 0.5


@pytest.mark.parametrize("kind", ["IF", "LIF", "PLIF", "ALIF", "CUBA"])
@pytest.mark.parametrize("v_reset", [0.0, -0.25, None])
@pytest.mark.parametrize("detach_reset", [False, True])
@pytest.mark.parametrize("decay_input", [False, True])
def test_a_neuron_equals_its_formula(kind, v_reset, detach_reset, decay_input) -> None:
    if kind in ("IF", "CUBA") and decay_input:
        pytest.skip("has no decay_input")
    if kind == "CUBA" and v_reset:
        pytest.skip("rests at 0")
    surrogate, primitive = PRIMITIVES["sigmoid 2.5"]
    common = {
        "threshold": 0.75,
        "v_reset": v_reset,
        "surrogate": surrogate,
        "detach_reset": detach_reset,
        "strict": kind == "CUBA",
        "decay_input": decay_input,
    }
    neuron = build(kind, **common).double()
    w = torch.tensor(-math.log(1.5), dtype=torch.float64, requires_grad=True)
    if kind == "PLIF":  # built in float32
        assert neuron.w.item() == pytest.approx(w.item(), rel=1e-6)
        neuron.w.data.copy_(w)
    x = currents(1).requires_grad_()
    weight = torch.linspace(-1, 2, STEPS * UNITS, dtype=torch.float64).reshape(STEPS, UNITS)
    s = neuron(x)
    (s * weight).sum().backward()
    extra = {"tau": 2.5, "beta": 0.7, "rho": 0.8, "du": 0.3, "dv": 0.2}
    copied = x.detach().clone().requires_grad_()
    columns = [loop(kind, c, {**common, **extra, "w": w}, primitive) for c in copied.unbind(1)]
    expected = torch.stack(columns, 1)
    (expected * weight).sum().backward()
    assert torch.equal(s, expected.round()) and 0 < s.mean() < 1
    assert torch.allclose(x.grad, copied.grad, rtol=1e-9, atol=1e-12)
    if kind == "PLIF":
        assert neuron.w.grad.item() == pytest.approx(w.grad.item(), rel=1e-6)
        assert abs(w.grad.item()) > 1e-3


def test_the_iir_neuron_equals_its_formula() -> None:
    neuron = snn.IIRNeuron(0.8, 0.9).double()
    x = currents(2).requires_grad_()
    weight = torch.linspace(-1, 2, STEPS * UNITS, dtype=torch.float64).reshape(STEPS, UNITS)
    s = neuron(x)
    (s * weight).sum().backward()
    copied = x.detach().clone().requires_grad_()
    th, leak = (p.detach().clone().requires_grad_() for p in (neuron.threshold, neuron.leak))

    def primitive(z):
        return 0.3 * (z - z * abs(z) / 2) if abs(z) < 1 else 0 * z

    columns = []
    for column in copied.unbind(1):
        v, out = torch.zeros((), dtype=torch.float64), []
        for now in column:
            v = leak * v + now
            z = v / th - 1
            out.append(spike(z, True, primitive))
            v = v - th * float(z > 0)
        columns.append(torch.stack(out))
    expected = torch.stack(columns, 1)
    (expected * weight).sum().backward()
    assert torch.equal(s, expected.round()) and 0 < s.mean() < 1
    assert torch.allclose(x.grad, copied.grad, rtol=1e-9, atol=1e-12)
    for mine, theirs in ((neuron.threshold, th), (neuron.leak, leak)):
        assert mine.grad.item() == pytest.approx(theirs.grad.item(), rel=1e-9)
        assert abs(theirs.grad.item()) > 1e-3


def every_neuron() -> list[snn.Neuron]:
    return [
        snn.IF(),
        snn.LIF(v_reset=None),
        snn.PLIF(1.5),
        snn.AdaptiveLIF(),
        snn.CubaLIF(),
        snn.IIRNeuron(0.7, 0.9),
    ]


@pytest.mark.parametrize("neuron", every_neuron(), ids=lambda n: type(n).__name__)
def test_many_steps_are_single_steps(neuron: snn.Neuron) -> None:
    x = currents(3).reshape(STEPS, 8, 5) * 2
    many = neuron.double()(x)
    snn.reset_net(neuron)
    snn.set_multi_step(neuron, False)
    single = torch.stack([neuron(now) for now in x])
    assert torch.equal(many, single) and many.any()
    v = neuron.v.clone()
    snn.reset_net(neuron)
    snn.set_multi_step(neuron, True)
    first, rest = neuron(x[:3]), neuron(x[3:])
    assert torch.equal(torch.cat([first, rest]), many) and torch.equal(neuron.v, v)


@pytest.mark.parametrize("neuron", every_neuron(), ids=lambda n: type(n).__name__)
def test_a_sample_does_not_know_its_batch(neuron: snn.Neuron) -> None:
    x = currents(4).reshape(STEPS, 8, 5) * 2
    together = neuron.double()(x)
    for n in range(8):
        snn.reset_net(neuron)
        assert torch.equal(neuron(x[:, n : n + 1]), together[:, n : n + 1])


def test_a_tie_fires_unless_strict() -> None:
    at = torch.tensor([0.5, 1.0, 1.5])
    assert snn.IF(multi_step=False)(at).tolist() == [0, 1, 1]
    assert snn.IF(multi_step=False, strict=True)(at).tolist() == [0, 0, 1]
    assert snn.LIF(multi_step=False)(2 * at).tolist() == [0, 1, 1]
    assert snn.IIRNeuron(1.0, multi_step=False)(at).tolist() == [0, 0, 1]


def test_the_first_pulse_of_a_tau_two_neuron_must_reach_two() -> None:
    neuron = snn.LIF(2.0, multi_step=False)
    assert neuron(torch.tensor([1.99, 2.0])).tolist() == [0, 1]
    assert neuron.v.tolist() == pytest.approx([0.995, 0.0])


def test_residues_of_soft_and_hard_reset() -> None:
    x = torch.tensor([0.25, 1.0, 1.75, 3.5])
    for neuron, left in (
        (snn.IF(v_reset=None, multi_step=False), [0.25, 0.0, 0.75, 2.5]),
        (snn.IF(multi_step=False), [0.25, 0.0, 0.0, 0.0]),
        (snn.IIRNeuron(multi_step=False), [0.25, 1.0, 0.75, 2.5]),
        (snn.IF(v_reset=-0.5, multi_step=False), [-0.25, 0.5, -0.5, -0.5]),
    ):
        neuron(x)
        assert neuron.v.tolist() == left


def test_the_leak_has_no_gradient_at_one_step_and_one_at_two() -> None:
    for steps, zero in ((1, True), (2, False)):
        neuron = snn.IIRNeuron(0.8, 0.9)
        x = torch.rand((steps, 6), generator=torch.Generator().manual_seed(0))
        neuron(x).sum().backward()
        assert (neuron.leak.grad.item() == 0.0) is zero
        assert abs(neuron.threshold.grad.item()) > 1e-3


def test_clamping_the_leak() -> None:
    model = torch.nn.Sequential(snn.IIRNeuron(leak=1.25), snn.IIRNeuron(leak=-0.5))
    snn.clamp_leaks(model)
    assert [n.leak.item() for n in model] == [1.0, -0.5]


@pytest.mark.parametrize("neuron", every_neuron(), ids=lambda n: type(n).__name__)
def test_another_batch_without_a_reset_is_an_error(neuron: snn.Neuron) -> None:
    model = torch.nn.ModuleDict({"head": torch.nn.Sequential(neuron)})
    snn.reset_net(model)
    neuron(torch.ones(2, 4, 3))
    with pytest.raises(StateMismatch) as caught:
        neuron(torch.ones(2, 8, 3))
    for word in ("head.0", "(4, 3)", "(8, 3)", "reset_net", type(neuron).__name__):
        assert word in str(caught.value)
    assert isinstance(caught.value, SnnkitError) and isinstance(caught.value, RuntimeError)
    with pytest.raises(StateMismatch, match="meta"):
        neuron(torch.ones(2, 4, 3, device="meta"))
    snn.reset_net(model)
    assert neuron(torch.ones(2, 8, 3)).shape == (2, 8, 3)


def test_state_is_no_part_of_a_checkpoint() -> None:
    neuron = snn.PLIF()
    neuron(torch.ones(2, 4, 3))
    assert list(neuron.state_dict()) == ["w"]
    snn.reset_net(neuron)
    assert copy.deepcopy(neuron).v is None
