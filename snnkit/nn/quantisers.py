"""Fake quantisers whose forward pass is the integer network's own rule.

The forward values are integers, exactly; only the gradients are estimates (straight through the
rounding). Two quantisers differ in what they learn and where the gradient passes:

- LSQ (arXiv 1902.08153): the step s, with the gradient scaled by 1 / sqrt(features * max level).
- QCFS (arXiv 2303.04347): the top of the range, lambda = s * levels, with the shift 1/2.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from snnkit.errors import UsageError

TINY = 1e-12
"""Least step: a learned step may shrink or change its sign, what is used stays above zero."""


class _Staircase(torch.autograd.Function):
    """clip(floor(v + 1/2), lo, hi); derivative 1 where lo - shift < v < hi - shift, else 0."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, lo: int, hi: int, shift: float) -> Tensor:
        ctx.save_for_backward((v > lo - shift) & (v < hi - shift))
        return torch.floor(v + 0.5).clamp(lo, hi)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (inside,) = ctx.saved_tensors
        return grad * inside, None, None, None


class _Round(torch.autograd.Function):
    """Round half to even; derivative 1."""

    @staticmethod
    def forward(ctx: Any, v: Tensor) -> Tensor:
        return torch.round(v)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


class _ScaledGradient(torch.autograd.Function):
    """The value itself; its gradient times a factor."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return v.view_as(v)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.factor, None


def rounded(v: Tensor) -> Tensor:
    """v rounded half to even, with the gradient straight through."""
    return torch.as_tensor(_Round.apply(v))


def scaled_gradient(v: Tensor, factor: float) -> Tensor:
    """v, its gradient times `factor`."""
    return torch.as_tensor(_ScaledGradient.apply(v, factor))


def staircase(v: Tensor, lo: int, hi: int, shift: float = 0.0) -> Tensor:
    """clip(floor(v + 1/2), lo, hi) with the gradient straight through inside the range.

    The half rounds up, as a spiking neuron with the initial charge theta / 2 does.
    """
    return torch.as_tensor(_Staircase.apply(v, lo, hi, shift))


class LevelQuantiser(nn.Module):
    """y = s * S, S = clip(floor(x / s + 1/2), lo, hi). Base of LSQ and QCFS, which say what s is.

    Parameters
    ----------
    step : first value of s, above zero. lo, hi : lo <= 0 <= hi, at most 255 steps between them.
    """

    def __init__(self, step: float, lo: int, hi: int):
        super().__init__()
        if not (lo <= 0 <= hi and 1 <= hi - lo <= 255 and step > 0):
            raise UsageError(f"step {step}, range {lo}..{hi}; expected lo <= 0 <= hi, 1..255 steps")
        self.lo, self.hi = lo, hi

    def step(self) -> Tensor:
        """s, a scalar above zero."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(S, s) for x [N, ...], both with gradients."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        return f"{self.lo}..{self.hi}, step {float(self.step().detach()):.4g}"


class LSQ(LevelQuantiser):
    """Learned step size (arXiv 1902.08153).

    dy/ds = S - x/s where lo < x/s < hi, lo or hi outside; dy/dx = 1 inside, 0 outside. The gradient
    of s is scaled by 1 / sqrt(F * max(hi, -lo)), F the features of one sample.
    """

    def __init__(self, step: float, lo: int, hi: int):
        super().__init__(step, lo, hi)
        self.raw = nn.Parameter(torch.tensor(float(step)))

    def step(self) -> Tensor:
        return self.raw.abs().clamp_min(TINY)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = max(1, x[0].numel())
        s = scaled_gradient(self.step(), (features * max(self.hi, -self.lo)) ** -0.5)
        return staircase(x / s, self.lo, self.hi), s


class QCFS(LevelQuantiser):
    """Quantisation clip-floor-shift (arXiv 2303.04347), learnable lambda, shift 1/2.

    y = lambda * clip(floor(x * L / lambda + 1/2) / L, 0, 1) with L = hi levels; the same with lo
    below zero. dy/dx = 1 where -lambda / 2L < x < lambda - lambda / 2L, else 0; dy/dlambda =
    (y - x) / lambda there, 1 above, 0 below.
    """

    def __init__(self, step: float, lo: int, hi: int):
        super().__init__(step, lo, hi)
        self.levels = max(hi, -lo)
        self.threshold = nn.Parameter(torch.tensor(float(step) * self.levels))

    def step(self) -> Tensor:
        return (self.threshold / self.levels).abs().clamp_min(TINY)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        s = self.step()
        return staircase(x / s, self.lo, self.hi, shift=0.5), s


QUANTISERS: dict[str, type[LevelQuantiser]] = {"lsq": LSQ, "qcfs": QCFS}


class WeightQuantiser(nn.Module):
    """Symmetric integers per output channel, W = clip(rint(w / s), -n, n), n = 2^(bits-1) - 1.

    Half rounds to even. s [O] is learned as in LSQ, its gradient scaled by 1 / sqrt(weights of
    the channel * n). The integers are computed in the weights' own type in training and
    evaluation alike: what was trained is what is exported.
    """

    def __init__(self, weight: Tensor, bits: int):
        super().__init__()
        from snnkit.converters.network import weight_step

        if not 2 <= bits <= 8:
            raise UsageError(f"weight_bits {bits}; expected 2..8")
        self.bits, self.limit = bits, 2 ** (bits - 1) - 1
        rows = weight.detach().reshape(len(weight), -1).cpu().numpy().astype(np.float64)
        self.raw = nn.Parameter(torch.from_numpy(weight_step(rows, self.limit)).to(weight))

    def step(self) -> Tensor:
        """s [O], above zero."""
        return self.raw.abs().clamp_min(TINY)

    def forward(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """(W, s): integers of the shape of `weight` [O, ...], and [O]."""
        share = (weight[0].numel() * self.limit) ** -0.5
        s = scaled_gradient(self.step(), share)
        v = weight / s.reshape(-1, *(1,) * (weight.ndim - 1))
        # clamped before rounding: the gradient stops at the ends, as LSQ has it
        return rounded(v.clamp(-self.limit, self.limit)), s

    def extra_repr(self) -> str:
        return f"{self.bits} bits"
