"""NIR's neurons, which are differential equations, as neurons that step.

NIR (Pedersen et al., Nature Communications 15, 8122, 2024) gives tau dv/dt = (v_leak - v) + R I for
LIF and dv/dt = R I for IF; both fire where v > v_threshold and go on from v_reset. It says nothing
about steps, so a reader chooses: here I is constant during a step of length dt (a spike is a
current of 1 for one step), the step is forward Euler or the exact solution, and v is compared and
reset at its end:

    v <- a v + (1 - a) (v_leak + R I),   a = 1 - dt / tau (euler) or exp(-dt / tau) (exact)
    v <- v + dt R I                      for IF and I
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from snnkit.converters.activations import Floats
from snnkit.converters.frames import Refusal
from snnkit.converters.snn_layers import Neuron
from snnkit.errors import UsageError

DT = 1e-4
"""Seconds per step that most programs which read NIR take."""
DISCRETISATIONS = ("euler", "exact")
RESETS = ("hard", "soft")
SNAP = 2.0**-24
"""Leaks this near to a multiple of 2^-8 are taken for it: a tau in float32 is no nearer."""
MOST_STEPS = 1000


@dataclass(frozen=True)
class Timing:
    """How a network of differential equations steps. See `snnkit.converters.convert`.

    dt : seconds per step. None: 1e-4, or 1 where no node has a time constant: then R is what an
        input adds per step, as sinabs and snnTorch mean it (SpikingJelly writes R = 1 / dt).
    discretisation : "euler" or "exact".
    reset : "hard" (to v_reset, which is what NIR says) or "soft" (v - v_threshold, which sinabs and
        snnTorch mean and NIR cannot say). None: as the node's metadata says, else hard.
    steps : most steps that a run may take; bounds are proved for them. None: those of the
        calibration data, else 1000.
    """

    dt: float | None = None
    discretisation: str = "euler"
    reset: str | None = None
    steps: int | None = None

    def __post_init__(self) -> None:
        if self.dt is not None and not 0 < self.dt < np.inf:
            raise UsageError(f"dt {self.dt}; expected seconds above zero")
        if self.discretisation not in DISCRETISATIONS or self.reset not in (None, *RESETS):
            raise UsageError(
                f"discretisation {self.discretisation!r}, reset {self.reset!r}; expected one of "
                f"{DISCRETISATIONS} and {RESETS}"
            )
        if self.steps is not None and not 1 <= self.steps <= 2**24:
            raise UsageError(f"steps {self.steps}; expected 1 to 2^24")


@dataclass(frozen=True)
class Clock:
    """A `Timing` with its dt known."""

    dt: float
    exact: bool
    reset: str | None

    def decay(self, tau: Floats) -> tuple[Floats, Floats]:
        """(a, 1 - a) for a time constant in seconds."""
        if (tau <= 0).any():
            raise Refusal(f"a time constant of {tau.min():g} s", "make it longer than zero")
        if self.exact:
            leak, share = np.exp(-self.dt / tau), -np.expm1(-self.dt / tau)
        else:
            leak, share = 1 - self.dt / tau, self.dt / tau
            if (leak < -SNAP).any():
                raise Refusal(
                    f"dt {self.dt:g} s is longer than its time constant {tau.min():g} s",
                    "take a smaller dt, or discretisation exact",
                )
        near = np.rint(leak * 2**8) / 2**8
        snapped = np.abs(leak - near) <= SNAP
        return np.where(snapped, near, leak), np.where(snapped, 1 - near, share)


def is_nir(model: Any) -> bool:
    """Whether `model` is a path to a NIR file or a graph of the package nir, which stays unread."""
    if isinstance(model, (str, os.PathLike)):
        return os.fspath(model).endswith(".nir")
    return type(model).__module__.split(".")[0] == "nir"


def clock(timing: Timing, has_time_constant: bool) -> Clock:
    dt = timing.dt if timing.dt is not None else (DT if has_time_constant else 1.0)
    return Clock(dt, timing.discretisation == "exact", timing.reset)


def equation(params: Mapping[str, Any], attrs: Mapping[str, Any], dt: float) -> dict[str, Floats]:
    """NIR's arrays, by name, of a lif node that steps by `dt` with forward Euler; no `tau` for IF.

    The potential counts units of charge: u / |gain|. v_threshold lies half an integer below theta,
    so that `>` and `>=` mean the same. What the node's bias adds is the current bias / gain.
    """
    p = {k: np.asarray(v, np.float64) for k, v in params.items()}
    unit = np.abs(p["gain"])
    share = 1 - p["leak"] / 2.0 ** attrs["shift"]
    found = (
        {"r": np.sign(p["gain"]) / dt}
        if not share.any()
        else {
            "tau": dt / share,
            "r": np.sign(p["gain"]) / share,
            "v_leak": np.zeros(1),
        }
    )
    found["v_threshold"] = (p["theta"] - 0.5) / unit
    found["v_reset"] = np.zeros(1) if attrs["kind"] == "soft" else p["reset"] / unit
    return found


def neuron(kind: str, p: dict[str, Floats], at: Clock, metadata: dict[str, Any]) -> Any:
    """(neuron, gain): the `Neuron` behind an input of gain times the node's input.

    kind : LIF, IF or CubaLIF. p : the node's arrays by NIR's names. A LIF neuron starts at v_leak,
    an IF neuron at v_reset; potentials are measured from there.
    """
    if kind == "IF":
        leak, rest, gain = np.ones(1), p["v_reset"], p["r"] * at.dt
    else:
        leak, share = at.decay(p["tau"] if kind == "LIF" else p["tau_mem"])
        rest, gain = p["v_leak"], p["r"] * share
    if kind == "CubaLIF":
        kept, share = at.decay(p["tau_syn"])
        if kept.any():
            raise Refusal(
                "a synaptic current that outlasts the step, a second leaky state",
                "use LIF, or tau_syn = dt with discretisation euler",
            )
        gain = gain * share * p["w_in"]
    own = str(metadata.get("reset", "hard"))
    soft = at.reset == "soft" or (at.reset is None and own in ("soft", "subtract"))
    reset: Floats = p["v_reset"] - rest
    if soft:
        reset = np.asarray(metadata.get("reset_by", p["v_threshold"]), np.float64)
    return Neuron(leak, 1.0, p["v_threshold"] - rest, soft, True, reset), gain
