"""Layers of a prepared model: each maps readings of integers to readings of integers.

In training mode the arithmetic is the parameters' (float32) and gradients flow. In evaluation
mode every count is an exact integer and every staircase is evaluated in float64, or through its
ladder: these are the numbers that `snnkit.convert` writes down.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snnkit.errors import UsageError
from snnkit.nn.curves import Curve
from snnkit.nn.quantisers import LevelQuantiser, WeightQuantiser, rounded
from snnkit.nn.reading import Charge, Reading, charge, spread, varying

FLOAT32_EXACT = 2**24
FINEST_OFFSET = 2.0**20
"""Offsets of an input are held in units of scale / 2^20, so that their weighted sums are exact in
float64 and do not depend on the order of summation."""
LADDER_REACH = 2**30
INPUT_LEVELS = 255


def work_type(module: nn.Module, like: Tensor) -> torch.dtype:
    return like.dtype if module.training else torch.float64


class InputGrid(nn.Module):
    """The input's quantiser: q = clip(rint((x - offset) / scale), lo, lo + 255), in float32.

    scale, offset : float32, scalar or varying along one axis of a sample, (C, 1, 1). The same bits
    as QuantizeLinear in the exported file. 8-bit images in 0..1: InputGrid(1 / 255); signed event
    counts: InputGrid(1.0, lo=-128).
    """

    def __init__(self, scale: Any, offset: Any = 0.0, lo: int = 0):
        super().__init__()
        self.register_buffer("scale", torch.as_tensor(scale, dtype=torch.float32))
        self.register_buffer("offset", torch.as_tensor(offset, dtype=torch.float32))
        if not (bool((self.scale > 0).all()) and -INPUT_LEVELS <= lo <= 0):
            raise UsageError(f"input grid: scale {scale}, lo {lo}; expected above 0, -255..0")
        self.lo, self.hi = lo, lo + INPUT_LEVELS

    def forward(self, x: Tensor) -> Reading:
        q = rounded((x.float() - self.offset) / self.scale).clamp(self.lo, self.hi)
        kind = work_type(self, self.scale)
        reach = max(-self.lo, self.hi)
        scale, offset = (a if a.ndim == 0 else a[None] for a in (self.scale, self.offset))
        return Reading(q.to(kind), scale.to(kind), offset.to(kind), reach)

    def extra_repr(self) -> str:
        return f"{self.lo}..{self.hi}"


class Synapses(nn.Module):
    """Convolution or linear layer with integer weights; its bias goes into the offset.

    Where input channels have different scales, the weights carry their ratios.
    """

    def __init__(self, layer: nn.Module, source: Reading, bits: int):
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        self.dims = self.weight.ndim - 2
        self.groups = int(getattr(layer, "groups", 1))
        if self.dims:
            self.stride, self.dilation = tuple(layer.stride), tuple(layer.dilation)
            self.padding = _padding(layer)
        self.quantiser = WeightQuantiser(self._even(source)[0], bits)

    def _even(self, x: Reading) -> tuple[Tensor, Tensor]:
        """Weights with the ratios of the input scales in them, and the scale that is left."""
        if x.scale.numel() == 1:
            return self.weight, x.scale.reshape(())
        base = x.scale.detach().abs().max()
        ratio = (x.scale / base).to(self.weight.dtype).reshape(-1)
        inputs = self.weight.shape[1] * self.groups
        ratio = ratio.expand(inputs).reshape(self.groups, 1, -1, *(1,) * self.dims)
        grouped = self.weight.reshape(self.groups, -1, *self.weight.shape[1:])
        return (grouped * ratio).reshape(self.weight.shape), base

    def integers(self, x: Reading) -> tuple[Tensor, Tensor]:
        """(W [O, I, ...], scale of the charge in the output's shape), both with gradients."""
        weight, base = self._even(x)
        whole, step = self.quantiser(weight)
        return whole, self._by_output(step.to(base.dtype) * base, x)

    def _by_output(self, a: Tensor, x: Reading) -> Tensor:
        """One number per output channel, to broadcast against the charge."""
        if self.dims:
            return a.reshape(1, -1, *(1,) * self.dims)
        return a.reshape(*(1,) * (x.counts.ndim - 1), -1)

    def _weighted(self, counts: Tensor, weight: Tensor) -> Tensor:
        if not self.dims:
            return F.linear(counts, weight)
        conv = F.conv1d if self.dims == 1 else F.conv2d
        return conv(counts, weight, None, self.stride, self.padding, self.dilation, self.groups)

    def forward(self, x: Reading) -> Reading:
        whole, scale = self.integers(x)
        reach = int(whole.detach().abs().flatten(1).sum(1).max()) * x.reach
        kind = x.counts.dtype
        # float32 sums of integers are exact below 2^24 on a CPU; elsewhere a kernel may transform
        exact32 = reach < FLOAT32_EXACT and x.counts.device.type == "cpu"
        narrow = torch.float32 if self.training or exact32 else torch.float64
        mixed = self.training and torch.is_autocast_enabled(x.counts.device.type)
        with (
            torch.backends.nnpack.flags(enabled=False),
            torch.autocast(x.counts.device.type, enabled=mixed),
        ):
            counts = self._weighted(x.counts.to(narrow), whole.to(narrow)).to(kind)
        offset = self._response(x, whole) * scale
        if self.bias is not None:
            offset = offset + self._by_output(self.bias.to(kind), x)
        return Reading(counts, scale, offset, reach)

    def _response(self, x: Reading, whole: Tensor) -> Tensor:
        """What the layer makes of x's offset, in units of the charge; a map where padding cuts."""
        zero = torch.zeros((), dtype=x.counts.dtype, device=x.counts.device)
        if not x.offset.any():
            return zero
        units = torch.round(x.offset / x.scale * FINEST_OFFSET) / FINEST_OFFSET
        shape = list(x.counts.shape)
        if self.dims and not any(self.padding) and not set(varying(units)) - {1}:
            # the same at every position: one position is enough
            kernel = self.weight.shape[2:]
            shape[2:] = [(k - 1) * d + 1 for k, d in zip(kernel, self.dilation, strict=True)]
        return self._weighted(spread(units, torch.Size(shape)), whole.to(units.dtype))

    def extra_repr(self) -> str:
        return f"weight {tuple(self.weight.shape)}"


def _padding(layer: nn.Module) -> tuple[int, ...]:
    if layer.padding == "same":
        spans = zip(layer.kernel_size, layer.dilation, strict=True)
        return tuple((k - 1) * d // 2 for k, d in spans)
    return (0,) * len(layer.kernel_size) if layer.padding == "valid" else tuple(layer.padding)


class Norm(nn.Module):
    """BatchNorm as a change of scale and offset; the counts stay as they are.

    In evaluation (running statistics) it vanishes into the thresholds. `norm` is the model's own
    module: freezing it with `norm.eval()` freezes its statistics as usual.
    """

    def __init__(self, norm: nn.Module):
        super().__init__()
        self.norm = norm

    def forward(self, x: Reading) -> Reading:
        n, kind = self.norm, x.counts.dtype
        batch = n.training or n.running_mean is None
        mean, variance = self._batch(x) if batch else (n.running_mean, n.running_var)
        deviation = torch.sqrt(variance.to(kind) + n.eps)
        gain = 1.0 / deviation if n.weight is None else n.weight.to(kind) / deviation
        along = (1, -1, *(1,) * (x.counts.ndim - 2))
        gain, mean = gain.reshape(along), mean.to(kind).reshape(along)
        offset = (x.offset - mean) * gain
        if n.bias is not None:
            offset = offset + n.bias.to(kind).reshape(along)
        return Reading(x.counts, x.scale * gain, offset, x.reach)

    def _batch(self, x: Reading) -> tuple[Tensor, Tensor]:
        n, value = self.norm, x.value()
        axes = [0, *range(2, value.ndim)]
        mean = value.mean(axes, keepdim=True)
        variance = (value - mean).square().mean(axes)  # on a CPU much faster than var_mean
        mean = mean.reshape(-1)
        if n.training and n.track_running_stats:
            with torch.no_grad():
                n.num_batches_tracked += 1
                m = 1.0 / int(n.num_batches_tracked) if n.momentum is None else n.momentum
                count = value.numel() // value.shape[1]
                n.running_mean.lerp_(mean.to(n.running_mean), m)
                unbiased = variance * (count / max(1, count - 1))
                n.running_var.lerp_(unbiased.to(n.running_var), m)
        return mean, variance


class Spike(nn.Module):
    """An activation and its quantiser: S = clip(floor(f(z) / s + 1/2), lo, hi)."""

    def __init__(self, curve: Curve, quantiser: LevelQuantiser):
        super().__init__()
        self.curve, self.quantiser = curve, quantiser

    @property
    def lo(self) -> int:
        return self.quantiser.lo

    @property
    def hi(self) -> int:
        return self.quantiser.hi

    def forward(self, x: Reading) -> Reading:
        reach = max(-self.lo, self.hi)
        zero = torch.zeros((), dtype=x.counts.dtype, device=x.counts.device)
        if self.training:
            counts, step = self.quantiser(self.curve.f(x.value()))
            return Reading(counts, step, zero, reach)
        c = charge(x)
        a = x.counts * c.sign if bool((c.sign <= 0).any()) else x.counts
        a = a + c.initial if c.initial.ndim else a
        counts = self.level(a, c.unit, c.rest) if self.curve.direct else self._climb(a, c)
        return Reading(counts, self.quantiser.step().to(zero), zero, reach)

    def level(self, a: Tensor, unit: Tensor, rest: Tensor) -> Tensor:
        """The staircase of integer charges a (float64): z = unit * a + rest."""
        step = self.quantiser.step().double()
        y = self.curve.f(unit * a + rest)
        return torch.floor(y / step + 0.5).clamp(self.lo, self.hi)

    def ladder(
        self, unit: Tensor, rest: Tensor, reach: tuple[int, int], rank: int
    ) -> dict[str, npt.NDArray[Any]]:
        """Integer thresholds [*pattern, K] (and values) by bisection over `level`, for charges
        within `reach`. A curve that is not direct always takes the widest reach: then evaluation
        and export bisect the same points and cannot differ. `rank` : axes of a sample."""
        from snnkit.converters.staircases import ladder

        if not self.curve.direct:
            reach = (-LADDER_REACH, LADDER_REACH)
        kind = torch.broadcast_shapes(unit.shape, rest.shape, (1,) * (rank + 1))
        unit, rest = (a.detach().double().expand(kind)[0] for a in (unit, rest))

        def level(a: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
            charges = torch.from_numpy(np.ascontiguousarray(a)).to(unit.device).double()
            with torch.no_grad():
                levels = self.level(charges, unit[..., None], rest[..., None])
            return np.asarray(levels.cpu().numpy()).astype(np.int64)

        turns = [torch.ceil((t - rest) / unit).cpu().numpy() for t in self.curve.turns]
        return ladder(level, tuple(kind[1:]), (self.lo, self.hi), reach, turns)

    def _climb(self, a: Tensor, c: Charge) -> Tensor:
        """The staircase through its ladder: what the exported thresholds say, to the last bit."""
        rank = a.ndim - 1
        found = self.ladder(c.unit, c.rest, (-LADDER_REACH, LADDER_REACH), rank)
        thresholds = torch.from_numpy(found["thresholds"]).to(a)
        pattern = thresholds.shape[:-1]
        axes = [i + 1 for i, n in enumerate(pattern) if n > 1]
        order = [*axes, *(i for i in range(a.ndim) if i not in axes)]
        turned = a.permute(order)
        rows = thresholds.reshape(-1, thresholds.shape[-1]).contiguous()
        flat = turned.reshape(len(rows), -1).contiguous()
        cells = torch.searchsorted(rows, flat, right=True)
        if "values" in found:
            values = torch.from_numpy(found["values"]).to(a).reshape(len(rows), -1)
            counts = values.gather(1, cells)
        else:
            counts = (cells + self.lo).to(a.dtype)
        back = [order.index(i) for i in range(a.ndim)]
        return counts.reshape(turned.shape).permute(back).contiguous()

    def extra_repr(self) -> str:
        return self.curve.name


class Readout(nn.Module):
    """The integers of the last layer as floats: y = (A + bias) * scale, bias an integer.

    post : "softmax" or "log_softmax" along `axis`, in float behind the last integer.
    """

    def __init__(self, post: str | None = None, axis: int = 1):
        super().__init__()
        self.post, self.axis = post, axis

    def forward(self, x: Reading) -> Tensor:
        c = charge(x, whole=True)
        q = x.counts * c.sign + c.initial
        # evaluation: the two float32 operands of DequantizeLinear
        y = c.unit * q if self.training else q.float() * c.unit.float()
        if self.post is None:
            return y
        return F.softmax(y, self.axis) if self.post == "softmax" else F.log_softmax(y, self.axis)
