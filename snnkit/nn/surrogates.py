"""Surrogate gradients: the forward pass fires, the backward pass pretends it was smooth.

Every surrogate is a rule g: the derivative of a spike with respect to x, where x is how far the
membrane potential lies above the threshold. The spike itself is [x >= 0], or [x > 0] if strict,
whatever g is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Fire(torch.autograd.Function):
    """Forward: s = [x >= 0], or [x > 0] if strict. Backward: dL/dx = dL/ds * g(x)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, strict: bool, derivative: Callable[[Tensor], Tensor]) -> Any:
        ctx.save_for_backward(x)
        ctx.derivative = derivative
        return (x > 0 if strict else x >= 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        (x,) = ctx.saved_tensors
        return grad * ctx.derivative(x), None, None


class Surrogate:
    """A firing rule with a derivative of one's own.

    derivative : takes x = v - threshold (any shape), returns g(x) of the same shape.

    Calling it with (x, strict) returns spikes of x's shape and dtype, 0 or 1.
    """

    def __init__(self, derivative: Callable[[Tensor], Tensor]):
        self.derivative = derivative

    def __call__(self, x: Tensor, strict: bool = False) -> Tensor:
        return Fire.apply(x, strict, self.derivative)


class Sigmoid(Surrogate):
    """g(x) = alpha * sig(alpha x) * (1 - sig(alpha x)).

    The default of spikingjelly's clock-driven neurons (alpha 4), and so of Spikformer and
    Meta-SpikeFormer. The logistic surrogate is discussed by Neftci, Mostafa and Zenke,
    "Surrogate Gradient Learning in Spiking Neural Networks", arXiv 1901.09948.
    """

    def __init__(self, alpha: float = 4.0):
        self.alpha = alpha

    def derivative(self, x: Tensor) -> Tensor:
        sig = torch.sigmoid(self.alpha * x)
        return self.alpha * sig * (1 - sig)


class ATan(Surrogate):
    """g(x) = (alpha / 2) / (1 + (pi/2 * alpha * x)^2).

    Fang et al., "Incorporating Learnable Membrane Time Constant to Enhance Learning of Spiking
    Neural Networks", arXiv 2007.05785.
    """

    def __init__(self, alpha: float = 2.0):
        self.alpha = alpha

    def derivative(self, x: Tensor) -> Tensor:
        return self.alpha / 2 / (1 + (math.pi / 2 * self.alpha * x).square())


class Triangle(Surrogate):
    """g(x) = gamma * max(0, 1 - |x| / width).

    Bellec et al., "Long short-term memory and learning-to-learn in networks of spiking neurons",
    arXiv 1803.09574; with gamma 0.3 and width 1 at x = v/threshold - 1 also IIR-SNN's.
    """

    def __init__(self, gamma: float = 0.3, width: float = 1.0):
        self.gamma, self.width = gamma, width

    def derivative(self, x: Tensor) -> Tensor:
        return self.gamma * torch.clamp(1 - x.abs() / self.width, min=0)


class Rectangle(Surrogate):
    """g(x) = [|x| < half_width] / (2 * half_width).

    Wu et al., "Spatio-Temporal Backpropagation for Training High-performance Spiking Neural
    Networks", arXiv 1706.02609.
    """

    def __init__(self, half_width: float = 0.5):
        self.half_width = half_width

    def derivative(self, x: Tensor) -> Tensor:
        return (x.abs() < self.half_width).to(x.dtype) / (2 * self.half_width)


class FastSigmoid(Surrogate):
    """g(x) = 1 / (1 + slope * |x|)^2.

    Zenke and Ganguli, "SuperSpike: Supervised learning in multi-layer spiking neural networks",
    arXiv 1705.11146.
    """

    def __init__(self, slope: float = 25.0):
        self.slope = slope

    def derivative(self, x: Tensor) -> Tensor:
        return 1 / (1 + self.slope * x.abs()).square()
