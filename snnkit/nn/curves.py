"""Activations as functions of one float tensor, with the points where they turn round."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GELU_TURN = -0.7517915246935645
GELU_TANH_TURN = -0.7524614220710162
SILU_TURN = -1.2784645427610738


@dataclass(frozen=True)
class Curve:
    """y = f(z).

    turns : where f changes between falling and rising; () for a function that only rises.
    direct : f is made of single IEEE operations that only rise, so its staircase is evaluated as
        it stands. Any other f is evaluated through its ladder of integer thresholds, since
        vector and scalar code may differ in the last bit of a tanh.
    """

    name: str
    f: Callable[[Tensor], Tensor]
    turns: tuple[float, ...] = ()
    direct: bool = False

    @property
    def rises(self) -> bool:
        return not self.turns


def _same(z: Tensor) -> Tensor:
    return z


IDENTITY = Curve("identity", _same, direct=True)
RELU = Curve("relu", torch.relu, direct=True)
RELU6 = Curve("relu6", partial(torch.clamp, min=0.0, max=6.0), direct=True)
SIGMOID = Curve("sigmoid", torch.sigmoid)
TANH = Curve("tanh", torch.tanh)
SILU = Curve("silu", F.silu, (SILU_TURN,))
HARDSWISH = Curve("hardswish", F.hardswish, (-3.0, -1.5))


def hardtanh(low: float = -1.0, high: float = 1.0) -> Curve:
    return Curve("hardtanh", partial(torch.clamp, min=low, max=high), direct=True)


def leaky(slope: float = 0.01) -> Curve:
    """z above zero, slope * z below."""
    turns = (0.0,) if slope < 0 else ()
    return Curve("leaky_relu", partial(F.leaky_relu, negative_slope=slope), turns, slope >= 0)


def gelu(approximate: str = "none") -> Curve:
    turn = GELU_TURN if approximate == "none" else GELU_TANH_TURN
    return Curve("gelu", partial(F.gelu, approximate=approximate), (turn,))


OF_MODULE: dict[type[nn.Module], Callable[[nn.Module], Curve]] = {
    nn.ReLU: lambda m: RELU,
    nn.ReLU6: lambda m: RELU6,
    nn.LeakyReLU: lambda m: leaky(m.negative_slope),
    nn.Hardtanh: lambda m: hardtanh(m.min_val, m.max_val),
    nn.Sigmoid: lambda m: SIGMOID,
    nn.Tanh: lambda m: TANH,
    nn.GELU: lambda m: gelu(m.approximate),
    nn.SiLU: lambda m: SILU,
    nn.Hardswish: lambda m: HARDSWISH,
}
"""The curve of an activation module."""
