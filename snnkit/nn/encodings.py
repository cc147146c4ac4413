"""From values to spikes over time: [N, ...] to [T, N, ...]."""

from __future__ import annotations

import torch
from torch import Tensor


def direct(x: Tensor, steps: int) -> Tensor:
    """The same values in each of `steps` steps: [T, *x.shape], a view."""
    return x.expand(steps, *x.shape)


def rate(x: Tensor, steps: int, generator: torch.Generator | None = None) -> Tensor:
    """Independent spikes with probability x (clamped to 0..1) in each step: [T, *x.shape].

    generator : a seeded torch.Generator on x's device; None draws from torch's global one.
    """
    drawn = torch.rand((steps, *x.shape), generator=generator, device=x.device, dtype=x.dtype)
    return (drawn < x).to(x.dtype)


def latency(x: Tensor, steps: int) -> Tensor:
    """One spike at step round((1 - x) (T - 1)), x clamped to 0..1; none where x <= 0."""
    at = torch.round((1 - x.clamp(0, 1)) * (steps - 1))
    clock = torch.arange(steps, device=x.device).reshape(-1, *(1,) * x.dim())
    return ((clock == at) & (x > 0)).to(x.dtype)


def s_analog(x: Tensor, steps: int) -> Tensor:
    """The whole charge x at step 0 and nothing afterwards: [T, *x.shape]."""
    out = x.new_zeros((steps, *x.shape))
    out[0] = x
    return out


def delta(x: Tensor, threshold: float) -> Tensor:
    """Send on change: x [T, N, ...] to spikes -1, 0, +1 of the same shape.

    A reference r starts at 0. Per step s = +1 if x - r >= threshold, -1 if x - r <= -threshold,
    else 0; then r <- r + threshold * s. So threshold * cumsum(s) follows x, at most one
    threshold per step.
    """
    reference = torch.zeros_like(x[0])
    out = []
    for now in x:
        gap = now - reference
        s = torch.sign(gap) * (gap.abs() >= threshold)
        reference = reference + threshold * s
        out.append(s)
    return torch.stack(out)
