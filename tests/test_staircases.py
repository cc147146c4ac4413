"""Thresholds: exact against rational arithmetic, for every charge that can occur."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snnkit.converters import activations as act
from snnkit.converters.calibration import CALIBRATORS, Staircase, choose
from snnkit.converters.staircases import ALWAYS, build
from snnkit.graph import Node, make_node
from snnkit.ops import TABLE
from snnkit.ops.spike import NEVER

REACH = 400


def charge(channels: int = 1) -> Node:
    """A node whose value is any integer in -REACH..REACH."""
    x = make_node("x", "input", attrs={"shape": (channels, 1), "lo": -128, "hi": 127})
    return make_node("a", "add", [x], {"m0": np.array(REACH // 127)})


def read(params: dict, attrs: dict, a: np.ndarray, channels: int = 1) -> np.ndarray:
    """The staircase of a spike node at charges a, [N] or [N, channels]."""
    node = make_node("s", "spike", [charge(channels)], params, attrs)
    value = np.broadcast_to(a.reshape(len(a), -1, 1), (len(a), channels, 1))
    return TABLE["spike"].dense(node, [value])[:, :, 0]


CHARGES = np.arange(charge().lo, charge().hi + 1)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    scale=st.floats(1e-4, 2.0),
    offset=st.floats(-30, 30),
    step=st.floats(1e-3, 3.0),
    lo=st.integers(-20, 0),
    steps=st.integers(1, 60),
)
def test_a_ladder_is_the_rounding_of_the_real_numbers(scale, offset, step, lo, steps) -> None:
    """level = clip(floor((scale A + offset) / step + 1/2)), with rational numbers as oracle."""
    lo = max(lo, -steps)
    stairs = Staircase(step, lo, lo + steps)
    params, attrs = build(
        charge(), np.array([[scale]]), np.array([[offset]]), act.IDENTITY, stairs, "ladder"
    )
    found = read(params, attrs, CHARGES)[:, 0]
    for a, s in zip(CHARGES, found, strict=True):
        z = (Fraction(scale) * int(a) + Fraction(offset)) / Fraction(step) + Fraction(1, 2)
        exact = min(max(math.floor(z), stairs.lo), stairs.hi)
        tie = abs(z - round(z)) < Fraction(1, 10**9)  # float64 may fall on either side of a tie
        assert s == exact or tie


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    theta=st.integers(1, 60),
    bias=st.integers(-900, 900),
    lo=st.integers(-7, 0),
    steps=st.integers(1, 15),
)
def test_a_uniform_staircase_is_clip_floor(theta, bias, lo, steps) -> None:
    """Odd theta, theta 1, one level, a bias beyond any charge: the membrane's own definition."""
    lo = max(lo, -steps)
    hi = lo + steps
    params = {"init": np.array(bias + theta // 2), "theta": np.array(theta)}
    found = read(params, {"kind": "uniform", "lo": lo, "hi": hi}, CHARGES)[:, 0]
    expected = [min(max((int(a) + bias + theta // 2) // theta, lo), hi) for a in CHARGES]
    assert found.tolist() == expected
    # and the same steps as a ladder of evenly spaced thresholds
    k = np.arange(lo + 1, hi + 1)
    ladder = {"init": np.array(0), "thresholds": k * theta - theta // 2 - bias}
    assert read(ladder, {"kind": "ladder", "lo": lo, "hi": hi}, CHARGES)[:, 0].tolist() == expected


@pytest.mark.parametrize(
    "function",
    [
        act.RELU,
        act.clip(0.3, 2.0),
        act.leaky(np.array([[0.1]])),
        act.leaky(np.array([[-0.4]])),
        act.sigmoid(),
        act.tanh(),
        act.hard_sigmoid(0.2, 0.5),
        act.hard_sigmoid(-0.2, 0.5),
        act.elu(1.0),
        act.elu(-0.5),
        act.softplus(),
        act.hard_swish(),
    ],
)
@pytest.mark.parametrize("levels", [1, 5, 255])
def test_every_activation_at_every_charge(function, levels) -> None:
    """The staircase equals the rounded activation itself at each integer charge."""
    scale, offset = np.array([[0.021], [0.017]]), np.array([[-0.3], [0.9]])
    z = scale[:, 0] * CHARGES[:, None] + offset[:, 0]
    y = function.f(z.T[:, None, :] if function.pattern else z.T)
    y = np.asarray(y).reshape(2, -1).T
    stairs = choose(y.reshape(-1), levels, "minmax")
    params, attrs = build(charge(2), scale, offset, function, stairs, "ladder")
    expected = np.clip(np.floor(y / stairs.step + 0.5), stairs.lo, stairs.hi)
    assert np.array_equal(read(params, attrs, CHARGES, 2), expected)


def test_constant_and_dead_channels() -> None:
    stairs = Staircase(1.0, 0, 7)
    params, attrs = build(
        charge(2), np.full((2, 1), 1e-9), np.array([[3.0], [-2.0]]), act.RELU, stairs, "auto"
    )
    assert attrs["kind"] == "ladder"
    assert set(np.unique(params["thresholds"])) == {ALWAYS, NEVER}
    assert (read(params, attrs, CHARGES, 2) == [3, 0]).all()


def test_auto_takes_a_ladder_where_theta_would_be_coarse() -> None:
    stairs = Staircase(1.0, 0, 15)
    coarse = build(charge(), np.array([[0.3]]), np.zeros((1, 1)), act.RELU, stairs, "auto")
    fine = build(charge(), np.array([[0.001]]), np.zeros((1, 1)), act.RELU, stairs, "auto")
    assert (coarse[1]["kind"], fine[1]["kind"]) == ("ladder", "uniform")
    assert int(fine[0]["theta"].reshape(-1)[0]) == 1000


@pytest.mark.parametrize("calibrator", CALIBRATORS)
@pytest.mark.parametrize("levels", [1, 3, 15, 255])
def test_step_sizes(calibrator, levels) -> None:
    rng = np.random.default_rng(0)
    positive = np.maximum(rng.normal(0, 1, 20000), 0)
    stairs = choose(positive, levels, calibrator)
    assert (stairs.lo, stairs.hi) == (0, levels)
    assert 0 < stairs.step <= positive.max() / levels * (1 + 1e-12)
    signed = choose(rng.normal(0, 1, 20000), levels, calibrator)
    assert signed.lo <= 0 <= signed.hi and signed.hi - signed.lo == levels
    if calibrator == "mse":

        def error(s: Staircase) -> float:
            level = np.clip(np.floor(positive / s.step + 0.5), s.lo, s.hi)
            return float(np.square(positive - level * s.step).mean())

        assert error(stairs) <= error(choose(positive, levels, "minmax")) * (1 + 1e-12)
    assert choose(np.zeros(5), levels, calibrator).step == 1.0
