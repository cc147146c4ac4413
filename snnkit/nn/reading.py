"""A float tensor as an affine reading of integers: value = scale * counts + offset."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from snnkit.nn.quantisers import rounded

MOST_INITIAL = 2.0**29
"""Largest initial charge in units; a larger one saturates every neuron all the same."""


@dataclass(frozen=True, eq=False)
class Reading:
    """What layers of a prepared model hand on to each other.

    counts [N, *shape] : the integers of the spiking network, held in a float type that is exact
    for them: float64 in evaluation, the parameters' type in training.
    scale, offset : broadcast against counts, batch axis included. reach : bound of abs(counts).
    """

    counts: Tensor
    scale: Tensor
    offset: Tensor
    reach: int

    def value(self) -> Tensor:
        """The float tensor [N, *shape], offsets that differ between positions held as charge."""
        if len(varying(self.offset)) < 2:
            return self.scale * self.counts + self.offset
        c = charge(self)
        return c.unit * (self.counts * c.sign + c.initial) + c.rest


@dataclass(frozen=True, eq=False)
class Charge:
    """A reading as a neuron holds it: value = unit * (sign * counts + initial) + rest.

    unit > 0, sign in -1, 0, 1, initial integers; all broadcast against counts.
    """

    sign: Tensor
    unit: Tensor
    rest: Tensor
    initial: Tensor


def varying(a: Tensor) -> list[int]:
    """Axes, the batch aside, along which a tensor that broadcasts against counts may vary."""
    return [i for i, n in enumerate(a.shape) if i > 0 and n > 1]


def charge(x: Reading, whole: bool = False) -> Charge:
    """`x` with a unit above zero. An offset that differs along more than one axis, or any if
    `whole`, becomes an integer initial charge: a ladder per position would be as large as the
    layer, and a readout has no other place for it."""
    sign = torch.sign(x.scale.detach())
    # a channel of scale zero has no charge from here on, so any unit reads it rightly
    idle = x.offset.detach().abs().max() * 2.0**-20
    idle = torch.where(idle > 0, idle, torch.ones_like(idle)).to(x.scale.dtype)
    unit = torch.where(sign == 0, idle, x.scale.abs())
    zero = torch.zeros((), dtype=x.scale.dtype, device=x.scale.device)
    if whole or len(varying(x.offset)) > 1:
        initial = rounded(x.offset / unit).clamp(-MOST_INITIAL, MOST_INITIAL)
        return Charge(sign, unit, zero, initial)
    return Charge(sign, unit, x.offset, zero)


def spread(a: Tensor, shape: torch.Size) -> Tensor:
    """A scale or offset with one entry per unit, [1, *shape[1:]]; [N, ...] where dropout made
    it differ between samples."""
    return a.expand(a.shape[0] if a.ndim == len(shape) else 1, *shape[1:])
