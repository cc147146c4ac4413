"""What a time axis asks of layers: [T, N, ...] through modules that know no time."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from snnkit.nn.encodings import direct
from snnkit.nn.state import Stateful


class Folded(nn.Sequential):
    """Stateless modules over [T, N, ...]: T is folded into the batch and unfolded behind them.

    So BatchNorm inside takes its statistics over T * N jointly.
    """

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(0, 1)).unflatten(0, x.shape[:2])


class Direct(nn.Module):
    """Direct encoding: x [N, ...] in each of T steps, [T, N, ...]."""

    def __init__(self, steps: int):
        super().__init__()
        self.steps = steps

    def forward(self, x: Tensor) -> Tensor:
        return direct(x, self.steps)

    def extra_repr(self) -> str:
        return f"steps={self.steps}"


class TimeSum(nn.Module):
    """Readout: sum over T, [T, N, ...] to [N, ...]."""

    def forward(self, x: Tensor) -> Tensor:
        return x.sum(0)


class TimeMean(nn.Module):
    """Readout: mean over T, [T, N, ...] to [N, ...]."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(0)


class TimeDropout(Stateful):
    """Dropout with one mask per presentation, the same in all time steps.

    In training x is multiplied by a mask of 0 and 1/(1 - p), drawn at the first step after a
    reset; in evaluation it is passed on.
    """

    memory = ("mask",)
    mask: Tensor

    def __init__(self, p: float = 0.2, multi_step: bool = True):
        super().__init__(multi_step)
        self.p = p

    def step(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        fresh = self.mask is None
        self.begin(x)
        if fresh:
            self.mask = nn.functional.dropout(torch.ones_like(x), self.p)
        return x * self.mask

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        return super().forward(x)

    def extra_repr(self) -> str:
        return f"p={self.p}"
