"""Encodings and layers over a time axis."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="torch is not installed; pip install torch")

from snnkit import nn as snn  # noqa: E402


def images(seed: int = 0, n: int = 6) -> torch.Tensor:
    return torch.rand((n, 2, 5, 4), generator=torch.Generator().manual_seed(seed))


def test_importing_the_neurons_imports_no_engine() -> None:
    code = (
        "import sys, snnkit.nn, snnkit.models; "
        "print([m for m in ('numba', 'onnx', 'onnxruntime') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_direct_repeats() -> None:
    x = images()
    out = snn.direct(x, 4)
    assert out.shape == (4, *x.shape) and all(torch.equal(step, x) for step in out)
    assert torch.equal(snn.Direct(4)(x), out)


def test_rate_is_seeded_and_has_the_rate() -> None:
    x = torch.tensor([0.0, 0.1, 0.5, 0.9, 1.0, 1.5, -0.3]).repeat(50, 1)
    first = snn.rate(x, 200, torch.Generator().manual_seed(7))
    again = snn.rate(x, 200, torch.Generator().manual_seed(7))
    assert torch.equal(first, again) and set(first.unique().tolist()) == {0.0, 1.0}
    found = first.mean((0, 1))
    expected = x[0].clamp(0, 1)
    # 10,000 draws: five standard deviations
    bound = 5 * (expected * (1 - expected) / 10_000).sqrt() + 1e-12
    assert ((found - expected).abs() <= bound).all()
    assert not torch.equal(snn.rate(x, 200, torch.Generator().manual_seed(8)), first)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.integers(1, 12), st.lists(st.floats(-0.5, 1.5, width=32), min_size=1, max_size=9))
def test_latency_fires_once_and_earlier_for_more(steps: int, values: list[float]) -> None:
    x = torch.tensor(sorted(values))
    out = snn.latency(x, steps)
    assert torch.equal(out.sum(0), (x > 0).to(x.dtype))
    when = out.argmax(0)[x > 0]
    assert (when.diff() <= 0).all()
    assert (when[x[x > 0] >= 1] == 0).all()


def test_s_analog_gives_the_charge_at_once() -> None:
    x = images()
    out = snn.s_analog(x, 5)
    assert torch.equal(out[0], x) and not out[1:].any()


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.integers(0, 2**31 - 1), st.floats(0.05, 0.5))
def test_delta_follows_a_slow_signal(seed: int, threshold: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    moves = (torch.rand((40, 7), generator=generator, dtype=torch.float64) * 2 - 1) * threshold
    x = moves.cumsum(0)
    s = snn.delta(x, threshold)
    assert set(s.unique().tolist()) <= {-1.0, 0.0, 1.0} and s.any()
    assert ((threshold * s.cumsum(0) - x).abs() < threshold * (1 + 1e-9)).all()


def test_folding_equals_step_by_step_and_joins_statistics() -> None:
    torch.manual_seed(0)
    conv, norm = torch.nn.Conv2d(2, 3, 3), torch.nn.BatchNorm2d(3)
    x = torch.randn(4, 6, 2, 5, 4) * torch.arange(1, 5).reshape(4, 1, 1, 1, 1)
    folded = snn.Folded(conv, norm)
    y = folded(x)
    charge = torch.stack([conv(step) for step in x])
    mean = charge.mean((0, 1, 3, 4), keepdim=True)
    variance = charge.var((0, 1, 3, 4), keepdim=True, unbiased=False)
    assert torch.allclose(y, (charge - mean) / (variance + norm.eps).sqrt(), atol=1e-5)
    assert torch.allclose(norm.running_mean, 0.1 * mean.flatten(), atol=1e-6)
    folded.eval()
    assert torch.allclose(folded(x), torch.stack([norm(conv(step)) for step in x]), atol=1e-6)


def test_readouts() -> None:
    x = torch.arange(24.0).reshape(4, 2, 3)
    assert torch.equal(snn.TimeSum()(x), x[0] + x[1] + x[2] + x[3])
    assert torch.equal(snn.TimeMean()(x), (x[0] + x[1] + x[2] + x[3]) / 4)


def test_dropout_has_one_mask_per_presentation() -> None:
    torch.manual_seed(0)
    dropout = snn.TimeDropout(0.25)
    x = torch.ones(5, 40, 50)
    y = dropout(x)
    assert all(torch.equal(step, y[0]) for step in y)
    assert y.unique().tolist() == [0.0, pytest.approx(1 / 0.75)]
    assert 0.7 < (y > 0).float().mean() < 0.8
    assert torch.equal(dropout(x), y)
    snn.reset_net(dropout)
    assert not torch.equal(dropout(x), y)
    snn.reset_net(dropout)
    assert dropout.eval()(x) is x and dropout.mask is None
