"""Layers of a prepared model without thresholds of their own: sums, pools, layout, dropout."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snnkit.nn.quantisers import rounded
from snnkit.nn.reading import Reading, spread

FINER = 2.0**11
"""Parts of the finest term's scale in a common grid: multipliers are within 2^-12."""
GRID_BOUND = 2.0**28


class Sum(nn.Module):
    """Sum of branches on one integer grid per channel: A = sum of m_i * A_i.

    signs : +1 or -1 of each branch. Training and evaluation use the same integer multipliers.
    """

    def __init__(self, signs: Sequence[int]):
        super().__init__()
        self.signs = tuple(signs)

    def multipliers(self, *terms: Reading) -> tuple[list[Tensor], Tensor]:
        """(integer m_i, unit): m_i = rint(scale_i / unit). Exact where scales are equal."""
        scales = [t.scale.double() * s for t, s in zip(terms, self.signs, strict=True)]
        size = torch.stack(torch.broadcast_tensors(*[s.detach().abs() for s in scales]))
        finest = torch.where(size > 0, size, torch.inf).amin(0)
        reach = torch.tensor([float(max(1, t.reach)) for t in terms]).to(size)
        largest = (size * reach.reshape(-1, *(1,) * (size.ndim - 1))).amax(0)
        unit = torch.maximum(finest / FINER, largest / GRID_BOUND)
        unit = torch.where(torch.isfinite(unit), unit, 1.0)
        whole = [rounded(s / unit) for s in scales]
        divisor = torch.zeros_like(unit, dtype=torch.int64)
        for m in whole:
            divisor = torch.gcd(divisor, m.detach().to(torch.int64).expand_as(divisor))
        common = divisor.clamp_min(1).to(unit)
        return [m / common for m in whole], unit * common

    def forward(self, *terms: Reading) -> Reading:
        multipliers, unit = self.multipliers(*terms)
        kind = terms[0].counts.dtype
        counts, offset, reach = None, 0.0, 0
        for t, m, sign in zip(terms, multipliers, self.signs, strict=True):
            part = t.counts * m.to(kind)
            counts = part if counts is None else counts + part
            offset = offset + t.offset * sign
            reach += t.reach * int(m.detach().abs().max())
        assert counts is not None
        return Reading(counts, unit.to(kind), torch.as_tensor(offset), reach)


class Concat(nn.Module):
    """Branches side by side, each with its own scale."""

    def __init__(self, axis: int):
        super().__init__()
        self.axis = axis

    def _joined(self, parts: list[Tensor], terms: Sequence[Reading]) -> Tensor:
        if all(p.numel() == 1 for p in parts) and all(p is parts[0] for p in parts):
            return parts[0]
        rank = terms[0].counts.ndim
        parts = [p.reshape((1,) * (rank - p.ndim) + tuple(p.shape)) for p in parts]
        shape = list(torch.broadcast_shapes(*[_without(p, self.axis) for p in parts]))
        wide = []
        for p, t in zip(parts, terms, strict=True):
            shape[self.axis] = t.counts.shape[self.axis]
            wide.append(p.expand(shape))
        return torch.cat(wide, self.axis)

    def forward(self, *terms: Reading) -> Reading:
        counts = torch.cat([t.counts for t in terms], self.axis)
        scale = self._joined([t.scale for t in terms], terms)
        offsets = [t.offset for t in terms]
        plain = not any(o.requires_grad or bool(o.any()) for o in offsets)
        offset = torch.zeros_like(scale.reshape(-1)[0]) if plain else self._joined(offsets, terms)
        return Reading(counts, scale, offset, max(t.reach for t in terms))


def _without(a: Tensor, axis: int) -> tuple[int, ...]:
    return tuple(1 if i == axis else n for i, n in enumerate(a.shape))


class MaxPool(nn.Module):
    """Maximum over windows; padding takes no part. The unit of every channel is above zero."""

    def __init__(
        self,
        kernel: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
    ):
        super().__init__()
        self.kernel, self.stride = tuple(kernel), tuple(stride)
        self.padding, self.dilation = tuple(padding), tuple(dilation)

    def forward(self, x: Reading) -> Reading:
        pool = F.max_pool1d if len(self.kernel) == 1 else F.max_pool2d
        counts = pool(x.counts, self.kernel, self.stride, self.padding, self.dilation)
        return replace(x, counts=counts)


class GlobalMax(nn.Module):
    """Maximum over whole axes (batch axis included in the numbering)."""

    def __init__(self, axes: Sequence[int], keep: bool):
        super().__init__()
        self.axes, self.keep = tuple(axes), keep

    def forward(self, x: Reading) -> Reading:
        return _reduced(x, x.counts.amax(self.axes, self.keep), self.axes, self.keep)


class AveragePool(nn.Module):
    """Average over windows as an integer sum; the division is in the scale. Padding counts as 0."""

    def __init__(self, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]):
        super().__init__()
        self.kernel, self.stride, self.padding = tuple(kernel), tuple(stride), tuple(padding)

    def _sum(self, a: Tensor) -> Tensor:
        if len(self.kernel) == 2:
            return F.avg_pool2d(a, self.kernel, self.stride, self.padding, divisor_override=1)
        flat, one = a[:, :, None], (1, *self.kernel)
        pads = (0, *self.padding)
        return F.avg_pool2d(flat, one, (1, *self.stride), pads, divisor_override=1)[:, :, 0]

    def forward(self, x: Reading) -> Reading:
        count = math.prod(self.kernel)
        offset = x.offset
        if any(self.padding) and bool(offset.any()):
            offset = self._sum(spread(offset, x.counts.shape)) / count
        return Reading(self._sum(x.counts), x.scale / count, offset, x.reach * count)


class GlobalAverage(nn.Module):
    """Average over whole axes as an integer sum; the division is in the scale."""

    def __init__(self, axes: Sequence[int], keep: bool):
        super().__init__()
        self.axes, self.keep = tuple(axes), keep

    def forward(self, x: Reading) -> Reading:
        count = math.prod(x.counts.shape[a] for a in self.axes)
        y = _reduced(x, x.counts.sum(self.axes, self.keep), self.axes, self.keep)
        return Reading(y.counts, y.scale / count, y.offset, x.reach * count)


def _reduced(x: Reading, counts: Tensor, axes: tuple[int, ...], keep: bool) -> Reading:
    """`x` with other counts; scale and offset do not vary along the axes."""

    def less(a: Tensor) -> Tensor:
        return a if a.ndim < x.counts.ndim else a.mean(axes, keep)

    return Reading(counts, less(x.scale), less(x.offset), x.reach)


class Reshape(nn.Module):
    """Another shape of a sample; the batch stays in front."""

    def __init__(self, shape: Sequence[int]):
        super().__init__()
        self.shape = tuple(shape)

    def forward(self, x: Reading) -> Reading:
        def moved(a: Tensor) -> Tensor:
            if a.numel() == 1:
                return a.reshape(())
            return spread(a, x.counts.shape).reshape(-1, *self.shape)

        counts = x.counts.reshape(len(x.counts), *self.shape)
        return Reading(counts, moved(x.scale), moved(x.offset), x.reach)


class Affine(nn.Module):
    """x * factor + shift with plain numbers."""

    def __init__(self, factor: float, shift: float):
        super().__init__()
        self.factor, self.shift = factor, shift

    def forward(self, x: Reading) -> Reading:
        return replace(x, scale=x.scale * self.factor, offset=x.offset * self.factor + self.shift)


class Dropout(nn.Module):
    """The model's own dropout, in training only."""

    def __init__(self, dropout: nn.Module):
        super().__init__()
        self.dropout = dropout

    def forward(self, x: Reading) -> Reading:
        if not self.dropout.training:
            return x
        if not bool(x.offset.any()):
            return replace(x, counts=self.dropout(x.counts))
        kept = self.dropout(torch.ones_like(x.counts))
        return replace(x, counts=x.counts * kept, offset=x.offset * kept)
