"""CRNN: causal convolutions, recurrent layers and a dense head, in float and as integers.

The layout is ours; arXiv 2408.09403 (RNN -> QRNN -> recurrent BIF network), of which only the
abstract is available, is where the pipeline comes from. A sequence is [N, T, F] or [N, T, C, W]:
T elements of C channels and W places (bands, pixels of a frame). A front layer convolves over
time and place at once, causally in time: element t sees the elements t - k * dilation, k = 0 ..
context - 1, so it runs element by element with a delay line as its memory. A front layer of width
one is a 1d convolution over time.

`CRNN` is the float network, with torch's own layers. `QuantisedCRNN` holds the same network under
quantisation-aware training, BatchNorm folded; its forward pass is the spiking network's,
integer by integer, in training and in evaluation. `snnkit.converters.from_recurrent` writes it
down as a graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from snnkit.errors import UsageError
from snnkit.nn.causal import causal_conv, fired
from snnkit.nn.quantised import InputGrid
from snnkit.nn.quantisers import LSQ, WeightQuantiser, rounded, scaled_gradient, staircase
from snnkit.nn.recurrent import FLOAT32_EXACT, LONG, Counts, Levels, recurrent, weighted

READOUTS = ("last", "mean", "each")
CELLS = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}


@dataclass(frozen=True)
class Front:
    """One convolution of the front: output channels, elements it sees, kernel, stride and padding
    along the place axis, distance in time between the elements it sees."""

    channels: int
    context: int = 1
    kernel: int = 1
    stride: int = 1
    padding: int = 0
    dilation: int = 1

    @property
    def span(self) -> int:
        """How far back in time it looks."""
        return (self.context - 1) * self.dilation


class CausalConv(nn.Sequential):
    """Convolution over time and place, BatchNorm, ReLU; [N, C, T, W] to [N, O, T, W']."""

    def __init__(self, inputs: int, front: Front):
        kernel, stride = (front.context, front.kernel), (1, front.stride)
        padding, dilation = (0, front.padding), (front.dilation, 1)
        conv = nn.Conv2d(inputs, front.channels, kernel, stride, padding, dilation, bias=False)
        super().__init__(conv, nn.BatchNorm2d(front.channels), nn.ReLU())
        self.front = front

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(functional.pad(x, (0, 0, self.front.span, 0)))

    def along(self, x: Tensor) -> Tensor:
        """The same for elements of one place: [T, N, C] to [T, N, O]."""
        y = causal_conv(x, self[0].weight.squeeze(3), self.front.dilation)
        norm = self[1]
        terms = (norm.running_mean, norm.running_var, norm.weight, norm.bias)
        flat = y.flatten(0, 1)
        flat = functional.batch_norm(flat, *terms, norm.training, norm.momentum, norm.eps)
        return torch.relu(flat).view_as(y)


class CRNN(nn.Module):
    """The float network: [N, T, *shape] to [N, classes], or [N, T, classes] for readout "each".

    Parameters
    ----------
    shape : (F,) or (C, W), of one element. classes : outputs.
    front : convolutions, first to last; none: the recurrent layers read the elements themselves.
    cell : "rnn", "gru", "lstm". hidden : units of each recurrent layer.
    nonlinearity : "tanh" or "relu", of cell "rnn".
    bidirectional : every recurrent layer also has a backward direction.
    readout : "last" (the dense head reads the last hidden state of each direction), "mean" (its
    mean over time), "each" (every element has an output).
    dropout : between the recurrent layers and in front of the head.
    """

    def __init__(
        self,
        shape: Sequence[int],
        classes: int,
        *,
        front: Sequence[Front] = (),
        cell: str = "gru",
        hidden: Sequence[int] = (64,),
        nonlinearity: str = "tanh",
        bidirectional: bool = False,
        readout: str = "last",
        dropout: float = 0.0,
    ):
        super().__init__()
        if cell not in CELLS or readout not in READOUTS or len(shape) not in (1, 2) or not hidden:
            raise UsageError(
                f"shape {tuple(shape)}, cell {cell!r}, hidden {tuple(hidden)}, readout "
                f"{readout!r}; expected (F,) or (C, W), one of {sorted(CELLS)}, one of {READOUTS}"
            )
        self.shape, self.readout, self.bidirectional = tuple(shape), readout, bidirectional
        channels, width = (1, *shape) if len(shape) == 1 else shape
        self.front = nn.ModuleList()
        self.one_place = one_place(self.shape, front)
        for f in front:
            self.front.append(CausalConv(channels, f))
            channels, width = f.channels, (width + 2 * f.padding - f.kernel) // f.stride + 1
        options = {"nonlinearity": nonlinearity} if cell == "rnn" else {}
        features, self.layers = channels * width, nn.ModuleList()
        for size in hidden:
            layer = CELLS[cell](features, size, bidirectional=bidirectional, **options)
            self.layers.append(layer)
            features = size * (1 + bidirectional)
        self.drop, self.head = nn.Dropout(dropout), nn.Linear(features, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.through_front(x)[-1]
        for layer in self.layers:
            long = isinstance(layer, nn.GRU) and len(x) >= LONG and not self.bidirectional
            x = self.drop(_torch_gru(layer, x) if long else layer(x)[0])
        return self.head(read(x, self.readout, self.bidirectional))

    def through_front(self, x: Tensor) -> list[Tensor]:
        """What each front layer gives, and last what the recurrent layers read, [T, N, F]."""
        found = []
        if self.one_place:
            x = x.transpose(0, 1).flatten(2)
            for layer in self.front:
                x = layer.along(x)
                found.append(x)
            return [*found, x]
        x = x.unsqueeze(2) if len(self.shape) == 1 else x
        x = x.transpose(1, 2)
        for layer in self.front:
            x = layer(x)
            found.append(x)
        return [*found, x.permute(2, 0, 1, 3).flatten(2)]


def one_place(shape: Sequence[int], front: Sequence[Front]) -> bool:
    """Whether every element of the front has one place: then it is a convolution over time only."""
    return bool(front) and shape[-1] == 1 and all((f.kernel, f.padding) == (1, 0) for f in front)


def _torch_gru(layer: nn.GRU, x: Tensor) -> Tensor:
    from snnkit.nn.gru_sequence import torch_gru

    return torch_gru(layer, x)


def read(x: Tensor, readout: str, bidirectional: bool) -> Tensor:
    """What the head reads of hidden states [T, N, H]: [N, H], or [N, T, H] for "each"."""
    if readout == "each":
        return x.transpose(0, 1)
    if readout == "mean":
        return x.mean(0)
    if not bidirectional:
        return x[-1]
    half = x.shape[2] // 2
    return torch.cat([x[-1, :, :half], x[0, :, half:]], 1)


class QuantisedFront(nn.Module):
    """A CausalConv as integers: S = clip(floor((A + B) / theta + 1/2), 0, L), one theta and B per
    channel. BatchNorm is folded into weights and bias; the step of S is learned."""

    def __init__(self, source: CausalConv, levels: int, bits: int, step: float):
        super().__init__()
        conv, norm = source[0], source[1]
        gain = (norm.weight / torch.sqrt(norm.running_var + norm.eps)).detach()
        self.front = source.front
        self.weight = nn.Parameter(conv.weight.detach() * gain.reshape(-1, 1, 1, 1))
        self.bias = nn.Parameter((norm.bias - norm.running_mean * gain).detach())
        self.steps = WeightQuantiser(self.weight, bits)
        self.level = LSQ(step, 0, levels)

    def integers(self, x: Counts) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(W [O, C, context, kernel], B [O], theta [O], scale of S)."""
        whole, step = self.steps(self.weight)
        unit = step.double() * x.scale.double()
        features = int(np.prod(x.counts.shape[2:]))
        scale = scaled_gradient(self.level.step(), (features * self.level.hi) ** -0.5).double()
        theta = rounded(scale / unit).clamp_min(1.0)
        return whole, rounded(self.bias.double() / unit), theta, scale

    def forward(self, x: Counts) -> Counts:
        """[T, N, C, W] to [T, N, O, W']."""
        whole, bias, theta, scale = self.integers(x)
        reach = int(whole.detach().abs().flatten(1).sum(1).max()) * x.most
        kind = torch.float32 if reach < FLOAT32_EXACT else torch.float64
        f, top, counts, whole = self.front, self.level.hi, x.counts.to(kind), whole.to(kind)
        if one_place(counts.shape[3:], (f,)):
            charge = causal_conv(counts.squeeze(3), whole.squeeze(3), f.dilation)
            return Counts(fired(charge, bias, theta, top).unsqueeze(3), scale, 0, top)
        counts = functional.pad(counts.permute(1, 2, 0, 3), (0, 0, f.span, 0))
        options = {"stride": (1, f.stride), "padding": (0, f.padding), "dilation": (f.dilation, 1)}
        with torch.backends.nnpack.flags(enabled=False):
            charge = functional.conv2d(counts, whole, **options).permute(2, 0, 1, 3)
        v = (charge + bias[:, None]) / theta[:, None]
        return Counts(staircase(v, 0, top).float(), scale, 0, top)


class QuantisedHead(nn.Module):
    """Dense readout: one weight step for all classes, so that the integers' argmax is the class."""

    def __init__(self, source: nn.Linear, bits: int):
        super().__init__()
        self.weight = nn.Parameter(source.weight.detach().clone())
        self.bias = nn.Parameter(source.bias.detach().clone())
        self.steps = WeightQuantiser(self.weight.reshape(1, -1), bits)

    def integers(self, scale: Tensor, times: int = 1) -> tuple[Tensor, Tensor, Tensor]:
        """(W [O, H], B [O], real value of one unit of W x) for inputs of that scale; B belongs to
        the sum over `times` elements."""
        whole, step = self.steps(self.weight.reshape(1, -1))
        unit = step.double()[0] * scale.double()
        return whole.reshape(self.weight.shape), rounded(self.bias.double() * times / unit), unit


class QuantisedCRNN(nn.Module):
    """A CRNN under quantisation-aware training; its numbers are the spiking network's.

    Parameters
    ----------
    model : a trained (or fresh) CRNN, which stays as it is.
    example : [N, T, *shape] float, from which first step sizes are taken.
    grid : the input's quantiser, with one scale and the offset 0.
    levels : of states, gates and inner states (`snnkit.nn.recurrent.Levels`).
    front_levels : 1..255, levels of the front's activations.

    The output is float32, the same bits as the exported file's, in training too (but for dropout).
    """

    def __init__(
        self,
        model: CRNN,
        example: Tensor,
        grid: InputGrid,
        levels: Levels | None = None,
        front_levels: int = 15,
    ):
        super().__init__()
        if grid.scale.ndim or bool(grid.offset.any()):
            raise UsageError(f"input grid {grid}; expected one scale and the offset 0")
        if model.bidirectional and getattr(model.layers[0], "nonlinearity", "") == "relu":
            raise UsageError("bidirectional relu states have two scales; expected tanh")
        levels = levels or Levels()
        self.grid, self.shape, self.readout = grid, model.shape, model.readout
        self.bidirectional, self.levels = model.bidirectional, levels
        self.steps, self.drop = int(example.shape[1]), nn.Dropout(model.drop.p)
        self.front = nn.ModuleList()
        tops = _tops(model, example)
        for source, top in zip(model.front, tops, strict=True):
            step = top / front_levels
            self.front.append(QuantisedFront(source, front_levels, levels.bits, step))
        directions = (False, True) if model.bidirectional else (False,)
        self.layers = nn.ModuleList(
            nn.ModuleList(recurrent(layer, levels, back) for back in directions)
            for layer in model.layers
        )
        self.head = QuantisedHead(model.head, levels.bits)

    def inputs(self, x: Tensor) -> Counts:
        """The quantised input [T, N, *shape]."""
        q = torch.round(x.float() / self.grid.scale).clamp(self.grid.lo, self.grid.hi)
        return Counts(q.transpose(0, 1), self.grid.scale, self.grid.lo, self.grid.hi)

    def forward(self, x: Tensor, record: dict[str, Tensor] | None = None) -> Tensor:
        now, seen = self.inputs(x), record if record is not None else {}
        now = self.through_front(now, seen)
        for i, directions in enumerate(self.layers):
            found = []
            for layer in directions:
                steps: dict[str, list[Tensor]] | None = None if record is None else {}
                found.append(layer(now, steps))
                label = f"{'back' if layer.reverse else 'layer'}{i}"
                seen.update({f"{label}.{k}": torch.stack(v) for k, v in (steps or {}).items()})
            counts = torch.cat([f.counts for f in found], 2)
            # one scale for both directions: the states of one layer share their grid
            now = Counts(self.drop(counts), found[0].scale, found[0].lo, found[0].hi)
        return self._read_out(now)

    def through_front(self, now: Counts, seen: dict[str, Tensor]) -> Counts:
        """The front's last counts, flat; each layer's are noted in `seen`."""
        if self.front:
            if now.counts.ndim == 3:
                now = Counts(now.counts.unsqueeze(2), now.scale, now.lo, now.hi)
            for i, layer in enumerate(self.front):
                now = layer(now)
                seen[f"front{i}"] = now.counts
        return Counts(now.counts.flatten(2), now.scale, now.lo, now.hi)

    def _read_out(self, h: Counts) -> Tensor:
        times = len(h.counts) if self.readout == "mean" else 1
        whole, bias, unit = self.head.integers(h.scale, times)
        states = read(h.counts, self.readout, self.bidirectional)
        if self.readout == "mean":
            states = h.counts.double().sum(0)
        charge = weighted(states, whole, h.most * times) + bias
        # the two float32 operands of DequantizeLinear
        return charge.float() * (unit / times).float()

    def counts(self, x: Tensor) -> dict[str, npt.NDArray[np.int64]]:
        """The integers [N, T, *shape] of every spiking layer by the name of its node."""
        record: dict[str, Tensor] = {}
        training = self.training
        self.eval()
        with torch.no_grad():
            self(x, record)
        self.train(training)
        return {k: v.transpose(0, 1).numpy().astype(np.int64) for k, v in record.items()}


def _tops(model: CRNN, example: Tensor) -> list[float]:
    """Where the range of each front layer's activations ends, from the example."""
    modes = {m: m.training for m in model.modules()}
    model.eval()
    found = []
    with torch.no_grad():
        for x in model.through_front(example)[:-1]:
            flat = x.flatten()[:: max(1, x.numel() // 2**20)]
            found.append(max(float(torch.quantile(flat, 0.998)), 1e-3))
    for m, mode in modes.items():
        m.training = mode
    return found
