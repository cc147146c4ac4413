"""Causal dilated convolution over time, and its spiking neurons, for elements of one place.

    A[t] = sum over k of W_k x[t - (K - 1 - k) d],   x[t] = 0 for t < 0
    S[t] = clip(floor((A[t] + B) / theta + 1/2), 0, L)

as matrix products and one pass over the charges. For long sequences of few channels torch's own
convolutions take several times as long, and so do its elementwise operations one by one.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]


class _Causal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, dilation: int) -> Tensor:
        steps, many, channels = x.shape
        outputs, _, context = weight.shape
        seen = x.new_empty(steps, many, context, channels)
        for k in range(context):
            back = min((context - 1 - k) * dilation, steps)
            seen[:back, :, k] = 0
            seen[back:, :, k] = x[: steps - back]
        flat = weight.transpose(1, 2).reshape(outputs, -1)
        seen = seen.view(steps * many, -1)
        ctx.save_for_backward(seen, flat)
        ctx.sizes = (steps, many, channels, context, dilation)
        return (seen @ flat.T).view(steps, many, outputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, None]:
        seen, flat = ctx.saved_tensors
        steps, many, channels, context, dilation = ctx.sizes
        grad = grad.reshape(steps * many, -1)
        weight = (grad.T @ seen).view(-1, context, channels).transpose(1, 2)
        if not ctx.needs_input_grad[0]:
            return None, weight, None
        parts = (grad @ flat).view(steps, many, context, channels)
        x = parts[:, :, -1].clone(memory_format=torch.contiguous_format)
        for k in range(context - 1):
            back = (context - 1 - k) * dilation
            if back < steps:
                x[: steps - back] += parts[back:, :, k]
        return x, weight, None


def causal_conv(x: Tensor, weight: Tensor, dilation: int) -> Tensor:
    """[T, N, O] of x [T, N, C] and weight [O, C, K], the oldest element first.

    Exact for integers whose sums stay below 2^24 in float32 (2^53 in float64).
    """
    return torch.as_tensor(_Causal.apply(x, weight, dilation))


@numba.njit(error_model="numpy")  # type: ignore[untyped-decorator]
def _fire(charge: Floats, bias: Doubles, theta: Doubles, top: float, counts: Floats) -> None:
    for i in range(len(charge)):
        for j in range(len(bias)):
            v = (charge[i, j] + bias[j]) / theta[j]
            counts[i, j] = min(max(np.floor(v + 0.5), 0.0), top)


@numba.njit(error_model="numpy")  # type: ignore[untyped-decorator]
def _fire_backward(
    grad: Floats,
    charge: Floats,
    bias: Doubles,
    theta: Doubles,
    top: float,
    of_charge: Floats,
    of_theta: Doubles,
) -> None:
    """of_theta: the sum of the gradient of (A + B) / theta times minus that quotient."""
    for i in range(len(charge)):
        for j in range(len(bias)):
            v = (charge[i, j] + bias[j]) / theta[j]
            g = float(grad[i, j]) if (v > 0) & (v < top) else 0.0
            of_charge[i, j] = g / theta[j]
            of_theta[j] -= g * v


class _Fired(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, charge: Tensor, bias: Tensor, theta: Tensor, top: int) -> Tensor:
        counts = torch.empty(charge.shape)
        arrays = [a.numpy() for a in (charge.flatten(0, 1), bias, theta)]
        _fire(*arrays, float(top), counts.flatten(0, 1).numpy())
        ctx.save_for_backward(charge, bias, theta)
        ctx.top = float(top)
        return counts

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        charge, bias, theta = ctx.saved_tensors
        of_charge, of_theta = torch.empty_like(charge), torch.zeros_like(theta)
        arrays = [a.contiguous().flatten(0, 1).numpy() for a in (grad, charge)]
        made = (of_charge.flatten(0, 1).numpy(), of_theta.numpy())
        _fire_backward(*arrays, bias.numpy(), theta.numpy(), ctx.top, *made)
        return of_charge, of_charge.sum((0, 1)).to(bias.dtype), of_theta / theta, None


def fired(charge: Tensor, bias: Tensor, theta: Tensor, top: int) -> Tensor:
    """S of charges [T, N, O] in float32 or float64; bias and theta [O] in float64.

    The gradient is that of `snnkit.nn.quantisers.staircase`, straight through inside the range.
    """
    return torch.as_tensor(_Fired.apply(charge, bias, theta, top))
