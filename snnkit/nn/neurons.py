"""Spiking neurons. One step is: charge, fire, reset.

In every formula v is the membrane potential, x the input current of the step, th the threshold,
s the spike (0 or 1). State starts at the reset potential (0 with a soft reset).
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from snnkit.nn.state import Stateful
from snnkit.nn.surrogates import Sigmoid, Surrogate, Triangle


class Neuron(Stateful):
    """What all neurons share: fire s = [v - th >= 0] (strict: > 0), then reset.

    Reset: hard, v <- (1 - s) v + s v_reset; soft if v_reset is None, v <- v - th s.

    Parameters
    ----------
    threshold : th, in the unit of x.
    v_reset : reset potential of a hard reset; None for a soft reset.
    surrogate : derivative of the spike, by default Sigmoid(4).
    detach_reset : the spike in the reset carries no gradient (the fire path keeps its own).
    strict : a potential equal to the threshold does not fire.
    multi_step : see `Stateful`.
    """

    memory: ClassVar[tuple[str, ...]] = ("v",)
    v: Tensor

    def __init__(
        self,
        threshold: float = 1.0,
        v_reset: float | None = 0.0,
        surrogate: Surrogate | None = None,
        detach_reset: bool = False,
        strict: bool = False,
        multi_step: bool = True,
    ):
        super().__init__(multi_step)
        self.threshold, self.v_reset, self.strict = threshold, v_reset, strict
        self.detach_reset = detach_reset
        self.surrogate = surrogate or Sigmoid()

    def charge(self, x: Tensor) -> Tensor:
        """The membrane potential after input x, before firing."""
        raise NotImplementedError

    def barrier(self) -> Tensor | float:
        """The threshold of this step."""
        return self.threshold

    def step(self, x: Tensor) -> Tensor:
        """One step, x [N, ...] to spikes [N, ...]. Raises StateMismatch without a reset."""
        self.begin(x, 0.0 if self.v_reset is None else self.v_reset)
        v = self.charge(x)
        s = self.surrogate(v - self.barrier(), self.strict)
        self.v = self.after(v, s.detach() if self.detach_reset else s)
        return s

    def after(self, v: Tensor, s: Tensor) -> Tensor:
        """The membrane potential after the reset."""
        if self.v_reset is None:
            return v - self.threshold * s
        return (1 - s) * v + s * self.v_reset

    def extra_repr(self) -> str:
        reset = "soft" if self.v_reset is None else f"hard to {self.v_reset}"
        return f"threshold={self.threshold}, reset={reset}, strict={self.strict}"


class IF(Neuron):
    """Integrate and fire: v <- v + x."""

    def charge(self, x: Tensor) -> Tensor:
        return self.v + x


class LIF(Neuron):
    """Leaky integrate and fire, with rest r = v_reset (0 with a soft reset).

    decay_input: v <- v + (x - (v - r)) / tau; without: v <- v - (v - r) / tau + x.
    As spikingjelly's LIFNode (Fang et al., arXiv 2310.16620). tau > 1, in steps.
    """

    def __init__(
        self,
        tau: float = 2.0,
        decay_input: bool = True,
        threshold: float = 1.0,
        v_reset: float | None = 0.0,
        surrogate: Surrogate | None = None,
        detach_reset: bool = False,
        strict: bool = False,
        multi_step: bool = True,
    ):
        super().__init__(threshold, v_reset, surrogate, detach_reset, strict, multi_step)
        self.tau, self.decay_input = tau, decay_input

    def charge(self, x: Tensor) -> Tensor:
        above = self.v - self.v_reset if self.v_reset else self.v
        if self.decay_input:
            return self.v + self.part(x - above)
        return self.v - self.part(above) + x

    def part(self, x: Tensor) -> Tensor:
        """x / tau."""
        return x / self.tau

    def extra_repr(self) -> str:
        return f"tau={self.tau}, decay_input={self.decay_input}, {super().extra_repr()}"


class PLIF(LIF):
    """LIF whose tau is learnt, one per layer: 1/tau = sigmoid(w), w starting at -ln(tau - 1).

    Fang et al., arXiv 2007.05785. tau : the initial value, above 1.
    """

    def __init__(
        self,
        tau: float = 2.0,
        decay_input: bool = True,
        threshold: float = 1.0,
        v_reset: float | None = 0.0,
        surrogate: Surrogate | None = None,
        detach_reset: bool = False,
        strict: bool = False,
        multi_step: bool = True,
    ):
        super().__init__(
            tau, decay_input, threshold, v_reset, surrogate, detach_reset, strict, multi_step
        )
        del self.tau
        self.w = nn.Parameter(torch.tensor(-math.log(tau - 1)))

    @property
    def rate(self) -> Tensor:
        """1 / tau."""
        return torch.sigmoid(self.w)

    def part(self, x: Tensor) -> Tensor:
        return x * self.rate

    def extra_repr(self) -> str:
        tau = 1 / float(self.rate.detach())
        return f"tau={tau:.4g}, decay_input={self.decay_input}, {Neuron.extra_repr(self)}"


class AdaptiveLIF(LIF):
    """LIF with an adaptive threshold: th_t = th + beta a_t, a_{t+1} = rho a_t + s_t, a_0 = 0.

    Bellec et al., arXiv 1803.09574 (LSNN). A soft reset subtracts th, not th_t. The membrane
    itself charges as `LIF` does. rho : decay of the adaptation per step, in 0..1.
    """

    memory = ("v", "a")
    a: Tensor

    def __init__(
        self,
        tau: float = 2.0,
        decay_input: bool = True,
        threshold: float = 1.0,
        v_reset: float | None = None,
        surrogate: Surrogate | None = None,
        detach_reset: bool = False,
        strict: bool = False,
        multi_step: bool = True,
        beta: float = 1.8,
        rho: float = 0.9,
    ):
        super().__init__(
            tau, decay_input, threshold, v_reset, surrogate, detach_reset, strict, multi_step
        )
        self.beta, self.rho = beta, rho

    def begin(self, x: Tensor, initial: float = 0.0) -> None:
        fresh = self.a is None
        super().begin(x, initial)
        if fresh:
            self.a = torch.zeros_like(x)

    def barrier(self) -> Tensor:
        return self.threshold + self.beta * self.a

    def after(self, v: Tensor, s: Tensor) -> Tensor:
        self.a = self.rho * self.a + s
        return super().after(v, s)


class CubaLIF(Neuron):
    """Current-based LIF: i <- (1 - decay_current) i + x; v <- (1 - decay_voltage) v + i.

    Davies et al., "Loihi: a neuromorphic manycore processor with on-chip learning", IEEE Micro
    2018; the chip fires strictly above the threshold and resets to 0.
    """

    memory = ("v", "i")
    i: Tensor

    def __init__(
        self,
        decay_current: float = 0.5,
        decay_voltage: float = 0.5,
        threshold: float = 1.0,
        v_reset: float | None = 0.0,
        surrogate: Surrogate | None = None,
        detach_reset: bool = False,
        strict: bool = True,
        multi_step: bool = True,
    ):
        super().__init__(threshold, v_reset, surrogate, detach_reset, strict, multi_step)
        self.decay_current, self.decay_voltage = decay_current, decay_voltage

    def begin(self, x: Tensor, initial: float = 0.0) -> None:
        fresh = self.i is None
        super().begin(x, initial)
        if fresh:
            self.i = torch.zeros_like(x)

    def charge(self, x: Tensor) -> Tensor:
        self.i = (1 - self.decay_current) * self.i + x
        return (1 - self.decay_voltage) * self.v + self.i


class IIRNeuron(Neuron):
    """v <- leak v + x; z = v/th - 1; s = [z > 0] strictly; v <- v - th s at once.

    One threshold and one leak per layer, both learnt (`IIR` is what the update is as a filter).
    ds/dz = 0.3 max(0, 1 - |z|). The reset th [z > 0] passes a gradient to th, none to [z > 0].
    `clamp` keeps leak <= 1; call it (or `clamp_leaks`) after every optimiser step.
    Chowdhury, Rathi and Roy, "One Timestep is All You Need", arXiv 2110.05929.
    """

    threshold: nn.Parameter

    def __init__(
        self,
        threshold: float = 1.0,
        leak: float = 1.0,
        surrogate: Surrogate | None = None,
        multi_step: bool = True,
    ):
        super().__init__(threshold, None, surrogate or Triangle(0.3), True, True, multi_step)
        del self.threshold
        self.threshold = nn.Parameter(torch.tensor(float(threshold)))
        self.leak = nn.Parameter(torch.tensor(float(leak)))

    def charge(self, x: Tensor) -> Tensor:
        return self.leak * self.v + x

    def step(self, x: Tensor) -> Tensor:
        self.begin(x)
        v = self.charge(x)
        s = self.surrogate(v / self.threshold - 1, self.strict)
        self.v = self.after(v, s.detach())
        return s

    def clamp(self) -> None:
        """leak <- min(leak, 1)."""
        with torch.no_grad():
            self.leak.clamp_(max=1.0)

    def extra_repr(self) -> str:
        return f"threshold={self.threshold.item():.4g}, leak={self.leak.item():.4g}"


def clamp_leaks(model: nn.Module) -> None:
    """leak <- min(leak, 1) in every IIR neuron of `model`."""
    for module in model.modules():
        if isinstance(module, IIRNeuron):
            module.clamp()
