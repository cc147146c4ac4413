"""Staircases of recurrent networks: exact in the forward pass, straight through in the backward.

A charge A on the grid G stands for the real number A / G. The staircase of f with n levels is
S = floor(n * f(A / G) + 1/2), and its ladder the least integers A at which S reaches each level,
found by bisection over the float64 function. Training, evaluation and the exported network all
take S from that ladder, so they cannot differ in the last bit of a tanh.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

REACH = 2**30
"""Ladders are looked for among charges of at most this size; the grid keeps charges below it."""


def _sigmoid(z: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    with np.errstate(over="ignore"):
        return np.asarray(1.0 / (1.0 + np.exp(-z)))


CURVES: dict[str, Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]] = {
    "tanh": np.tanh,
    "sigmoid": _sigmoid,
}


def lowest(curve: str, levels: int) -> int:
    """The least level of a curve's staircase: -levels for tanh, 0 for sigmoid."""
    return -levels if curve == "tanh" else 0


@lru_cache(maxsize=256)
def ladder(curve: str, levels: int, grid: int) -> npt.NDArray[np.int64]:
    """T_k = min{A : floor(levels * f(A / grid) + 1/2) >= k}, k = lowest+1 .. levels."""
    f, k = CURVES[curve], np.arange(lowest(curve, levels) + 1, levels + 1)
    below, reached = np.full(len(k), -REACH), np.full(len(k), REACH)
    while (reached - below > 1).any():
        middle = (below + reached) // 2
        there = np.floor(levels * f(middle / grid) + 0.5) >= k
        below, reached = np.where(there, below, middle), np.where(there, middle, reached)
    return reached.astype(np.int64)


class _Curve(torch.autograd.Function):
    """S of a charge through a ladder; the derivative is that of levels * f(A / grid)."""

    @staticmethod
    def forward(ctx: Any, charge: Tensor, curve: str, levels: int, grid: int) -> Tensor:
        steps = torch.from_numpy(ladder(curve, levels, grid)).to(charge)
        counts = torch.bucketize(charge.contiguous(), steps, right=True, out_int32=True).float()
        z = (charge / grid).float()
        ctx.save_for_backward(torch.tanh(z) if curve == "tanh" else torch.sigmoid(z))
        ctx.slope, ctx.curve, ctx.kind = levels / grid, curve, charge.dtype
        return counts + lowest(curve, levels)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (y,) = ctx.saved_tensors
        steep = 1 - y * y if ctx.curve == "tanh" else y * (1 - y)
        return (grad * steep * ctx.slope).to(ctx.kind), None, None, None


class _HalfUp(torch.autograd.Function):
    """floor(v + 1/2); derivative 1."""

    @staticmethod
    def forward(ctx: Any, v: Tensor) -> Tensor:
        return torch.floor(v + 0.5)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


def curved(charge: Tensor, curve: str, levels: int, grid: int) -> Tensor:
    """floor(levels * f(charge / grid) + 1/2), float32 integers, with f's gradient.

    charge : integers in float32 or float64. curve : "tanh" or "sigmoid".
    """
    return torch.as_tensor(_Curve.apply(charge, curve, levels, grid))


def half_up(v: Tensor) -> Tensor:
    """v rounded, halves up, as a neuron with the initial charge theta // 2 does; gradient 1."""
    return torch.as_tensor(_HalfUp.apply(v))
