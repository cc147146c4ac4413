"""Recurrent layers under quantisation-aware training, whose forward pass is the integer network.

A layer takes the float parameters of `nn.RNN`, `nn.GRU` or `nn.LSTM` and computes with integers:
weights W (per output channel, 2 to 8 bits), hidden states and candidates in -N..N (relu: 0..N),
gates in 0..K. Everything that meets in one charge lies on one grid: the real number A / G is

    A = M_x * (W_x X) + M_h * (W_h H) + B,    M = max(1, rint(step_w * scale * G)),  B = rint(b G),

with G the largest power of two for which the bound that `make_node` proves stays below `bound`.
Gates and candidates are ladders over A (`snnkit.nn.ladders`), products of two counts are integers,
and round half up: a spiking neuron with theta and the initial charge theta // 2.

RNN     H' = tanh ladder(A); relu: H' = clip(floor(A / theta + 1/2), 0, N), scale theta / G learned
GRU     Q = clip(floor((M_h (W_hn H) + B_hn) / theta + 1/2)), R and Z sigmoid ladders,
        C = tanh ladder(M_x (W_n X) + B_n + m R Q), H' = floor((K C + Z (H - C)) / K + 1/2)
LSTM    cell state S' = clip(floor(A_c / theta + 1/2)), A_c = m F S + p I C, theta = K m,
        Y = tanh ladder(A_c / (K N p)), H' = floor(O Y / K + 1/2)

The numbers are the same in training and in evaluation; every sum is exact (float32 below 2^24,
float64 above). Gradients go straight through roundings; steps and scales are learned (LSQ).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from snnkit.errors import UsageError
from snnkit.nn.ladders import curved, half_up
from snnkit.nn.quantisers import WeightQuantiser, rounded, scaled_gradient, staircase

FLOAT32_EXACT = 2**24
BOUND = 2**30
FINEST = 2**24
LONG = 128
"""GRUs take sequences of at least this many elements at once (`snnkit.nn.gru_sequence`)."""
CELL_PARTS = 256
"""p: units of an LSTM's cell charge per product of input gate and candidate."""


@dataclass(frozen=True, eq=False)
class Counts:
    """Integers over time: counts [T, N, *shape] float32, value = scale * counts, lo..hi."""

    counts: Tensor
    scale: Tensor
    lo: int
    hi: int

    @property
    def most(self) -> int:
        return max(-self.lo, self.hi)


@dataclass(frozen=True, eq=False)
class Integers:
    """What a layer computes with, every tensor an integer with a gradient; rows as in torch.

    wx [G*H, F], wh [G*H, H]: weights. mx, mh [G*H]: multipliers. bias, bias_h [G*H]: on the grid
    (bias_h is apart from bias for a GRU's candidate only, else 0). theta: of the relu state, of
    Q, or m of an LSTM's cell. grid: G.
    """

    wx: Tensor
    wh: Tensor
    mx: Tensor
    mh: Tensor
    bias: Tensor
    bias_h: Tensor
    theta: Tensor
    grid: int


@dataclass(frozen=True)
class Levels:
    """state: N. gate: K. inner: of a GRU's Q and an LSTM's cell state. bits: of the weights.
    bound: no charge of a gate, candidate, Q or RNN state reaches it; 2^23 fits 24-bit membranes.
    An LSTM's cell charge is on a grid of its own, below about 2 * 256 * K * N * (inner range)."""

    state: int = 15
    gate: int = 15
    inner: int = 15
    bits: int = 8
    bound: int = BOUND

    def __post_init__(self) -> None:
        ends = ((self.state, 127), (self.gate, 255), (self.inner, 127))
        if not all(1 <= n <= most for n, most in ends) or not 2**16 <= self.bound <= BOUND:
            raise UsageError(
                f"{self}; expected states of 1..127 levels, gates of 1..255, a bound of 2^16..2^30"
            )


def weighted(counts: Tensor, weight: Tensor, most: int) -> Tensor:
    """counts @ weight.T, exact, for counts of at most `most`."""
    if int(weight.detach().abs().sum(1).max()) * most < FLOAT32_EXACT:
        return functional.linear(counts.float(), weight)
    return functional.linear(counts.double(), weight.double())


class Recurrent(nn.Module):
    """Base of the three layers: one direction of one layer.

    layer : nn.RNN, nn.GRU or nn.LSTM whose parameters to take (copied). reverse : its backward
    direction, which takes the steps from last to first.
    """

    kind = ""
    first_step = 1.0
    gates: tuple[str, ...] = ()
    """Blocks of rows of torch's weights, in order."""

    def __init__(self, layer: nn.Module, levels: Levels, reverse: bool = False):
        super().__init__()
        self.levels, self.reverse = levels, reverse
        self.hidden, self.inputs = int(layer.hidden_size), int(layer.input_size)
        end = "_l0_reverse" if reverse else "_l0"
        given = {n: getattr(layer, f"{n}{end}").detach() for n in ("weight_ih", "weight_hh")}
        self.weight_ih, self.weight_hh = (nn.Parameter(w.clone()) for w in given.values())
        rows = len(self.weight_ih)
        zero = torch.zeros(rows)
        biases = [getattr(layer, f"bias_{n}{end}") if layer.bias else zero for n in ("ih", "hh")]
        self.bias_ih, self.bias_hh = (nn.Parameter(b.detach().clone()) for b in biases)
        self.steps_ih = WeightQuantiser(self.weight_ih, levels.bits)
        self.steps_hh = WeightQuantiser(self.weight_hh, levels.bits)
        self.raw = nn.Parameter(torch.tensor(self.first_step / levels.inner))

    @property
    def lo(self) -> int:
        """Least hidden state; the highest is levels.state."""
        return -self.levels.state

    def step_size(self) -> Tensor:
        """The learned step of Q, the cell state or the relu state; above zero."""
        share = (self.hidden * self.levels.inner) ** -0.5
        return scaled_gradient(self.raw, share).abs().clamp_min(1e-6).double()

    def state_scale(self) -> Tensor:
        """Real value of one unit of hidden state, before it is put on the grid."""
        return torch.tensor(1 / self.levels.state, dtype=torch.float64)

    def integers(self, x: Counts) -> Integers:
        """The integers for inputs of x's scale and range."""
        wx, step_x = self.steps_ih(self.weight_ih)
        wh, step_h = self.steps_hh(self.weight_hh)
        unit_x, scale = step_x.double() * x.scale.double(), self.state_scale()
        with torch.no_grad():
            grid = self._grid(x, wx, unit_x, wh, step_h.double() * scale)
        theta = self.on_grid(grid)
        if self.kind == "relu":
            scale = theta / grid
        units = (unit_x, step_h.double() * scale)
        mx, mh = (rounded(u * grid).clamp_min(1.0) for u in units)
        bias, bias_h = self.bias_ih.double(), self.bias_hh.double()
        apart = self._apart(bias_h)
        bias = rounded((bias + bias_h - apart) * grid)
        return Integers(wx, wh, mx, mh, bias, rounded(apart * grid), theta, grid)

    def _apart(self, bias_h: Tensor) -> Tensor:
        return torch.zeros_like(bias_h)

    def _grid(self, x: Counts, wx: Tensor, ux: Tensor, wh: Tensor, uh: Tensor) -> int:
        """G: as `make_node` has it, the bound of a sum is the largest multiplier of a source times
        its largest charge, added up over the sources, biases and thresholds."""
        sides = ((wx, ux, x.most), (wh, uh, self.levels.state))
        reach = sum(float(u.max()) * float(w.abs().sum(1).max()) * n for w, u, n in sides)
        reach += float(self.bias_ih.abs().max()) + float(self.bias_hh.abs().max())
        reach += 2 * float(self.step_size()) * (max(self.levels.inner, self.levels.state) + 1)
        # a factor of two for what rounding adds to multipliers and biases
        grid = 2 ** math.floor(math.log2(self.levels.bound / (2 * reach)))
        return max(1, min(int(grid), FINEST))

    def on_grid(self, grid: int) -> Tensor:
        """theta of the learned step: a whole number of charge units, at least 1."""
        return rounded(self.step_size() * grid).clamp_min(1.0)

    def forward(self, x: Counts, record: dict[str, list[Tensor]] | None = None) -> Counts:
        """Hidden states [T, N, H]; `record` gets each step's spiking nodes, in the layer's order
        of steps."""
        n = self.integers(x)
        given = weighted(x.counts, n.wx, x.most)
        states = self.at_once(given, n) if record is None else None
        if states is None:
            states = self.one_by_one(given, n, record)
        scale = n.theta / n.grid if self.kind == "relu" else self.state_scale()
        return Counts(states, scale, self.lo, self.levels.state)

    def at_once(self, given: Tensor, n: Integers) -> Tensor | None:
        """What `one_by_one` returns, by one function of the whole sequence, if there is one."""
        return None

    def one_by_one(
        self, given: Tensor, n: Integers, record: dict[str, list[Tensor]] | None
    ) -> Tensor:
        """Hidden states [T, N, H] of given = W_x X, step by step."""
        kind = torch.float64 if self.levels.bound > FLOAT32_EXACT else torch.float32
        # unbound, not indexed: the gradient of an index is as large as the whole sequence
        driven = (n.mx * given + n.bias).to(kind).unbind(0)
        rest = torch.zeros(given.shape[1], self.hidden)
        state: tuple[Tensor, ...] = (rest, rest)
        mh, bias_h, theta = n.mh.to(kind), n.bias_h.to(kind), n.theta.to(kind)
        found = []
        order = range(len(driven) - 1, -1, -1) if self.reverse else range(len(driven))
        for t in order:
            back = mh * weighted(state[0], n.wh, self.levels.state)
            state, seen = self.step(driven[t], back, state, bias_h, theta, n.grid)
            found.append(state[0])
            if record is not None:
                for name, counts in seen.items():
                    record.setdefault(name, []).append(counts)
        if self.reverse:
            found.reverse()
            for train in (record or {}).values():
                train.reverse()
        return torch.stack(found)

    def step(
        self,
        driven: Tensor,
        back: Tensor,
        state: tuple[Tensor, ...],
        bias_h: Tensor,
        theta: Tensor,
        grid: int,
    ) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        """(state, spiking nodes by name) after one step. driven [N, G*H]: x's charge with bias;
        back [N, G*H]: the hidden state's."""
        raise NotImplementedError

    def counts_of(self) -> tuple[int, int, int]:
        """N, K and the levels of the inner state."""
        return self.levels.state, self.levels.gate, self.levels.inner

    def extra_repr(self) -> str:
        return f"{self.inputs} -> {self.hidden}, {self.levels}"


class QuantisedRNN(Recurrent):
    """H' = tanh(W_x x + W_h h + b), or relu, as integers."""

    first_step = 2.0
    gates = ("state",)

    def __init__(self, layer: nn.Module, levels: Levels, reverse: bool = False):
        super().__init__(layer, levels, reverse)
        self.kind = str(layer.nonlinearity)
        with torch.no_grad():
            self.raw.mul_(levels.inner / levels.state)
        self.raw.requires_grad_(self.kind == "relu")

    @property
    def lo(self) -> int:
        return 0 if self.kind == "relu" else -self.levels.state

    def state_scale(self) -> Tensor:
        return self.step_size() if self.kind == "relu" else super().state_scale()

    def step(self, driven: Any, back: Any, state: Any, bias_h: Any, theta: Any, grid: int) -> Any:
        charge = driven + back
        if self.kind == "relu":
            h = staircase(charge / theta, 0, self.levels.state).float()
        else:
            h = curved(charge, "tanh", self.levels.state, grid)
        return (h,), {"state": h}


class QuantisedGRU(Recurrent):
    """The reset gate acts behind the recurrent product, as in torch (linear_before_reset)."""

    kind = "gru"
    first_step = 2.0
    gates = ("reset", "keep", "new")

    def _apart(self, bias_h: Tensor) -> Tensor:
        return torch.cat([torch.zeros(2 * self.hidden).double(), bias_h[2 * self.hidden :]])

    def step(self, driven: Any, back: Any, state: Any, bias_h: Any, theta: Any, grid: int) -> Any:
        size, n, k, inner = self.hidden, *self.counts_of()
        h, parts = state[0], (2 * self.hidden, self.hidden)
        (gates_x, new_x), (gates_h, new_h) = driven.split(parts, 1), back.split(parts, 1)
        reset, keep = curved(gates_x + gates_h, "sigmoid", k, grid).split(size, 1)
        aside = staircase((new_h + bias_h[2 * size :]) / theta, -inner, inner).float()
        new = curved(new_x + self.product_multiplier(theta) * (reset * aside), "tanh", n, grid)
        h = half_up((k * new + keep * (h - new)) / k)
        return (h,), {"reset": reset, "keep": keep, "aside": aside, "new": new, "state": h}

    def at_once(self, given: Tensor, n: Integers) -> Tensor | None:
        most = int(n.wh.detach().abs().sum(1).max()) * self.levels.state
        long = len(given) >= LONG and given.dtype == torch.float32 and most < FLOAT32_EXACT
        if not long:
            return None
        from snnkit.nn.gru_sequence import quantised_states

        given = given.flip(0) if self.reverse else given
        states = quantised_states(given, n, self.product_multiplier(n.theta), self.counts_of())
        return states.flip(0) if self.reverse else states

    def product_multiplier(self, theta: Tensor) -> Tensor:
        """m: charge of one unit of R * Q, theta / K."""
        return rounded(theta / self.levels.gate).clamp_min(1.0)


class QuantisedLSTM(Recurrent):
    """Without peepholes. theta of `Integers` is m: the cell state's step is m / (N p)."""

    kind = "lstm"
    first_step = 3.0
    gates = ("in", "forget", "new", "out")

    def on_grid(self, grid: int) -> Tensor:
        return rounded(self.step_size() * self.levels.state * CELL_PARTS).clamp_min(1.0)

    @property
    def cell_grid(self) -> int:
        return self.levels.gate * self.levels.state * CELL_PARTS

    def step(self, driven: Any, back: Any, state: Any, bias_h: Any, theta: Any, grid: int) -> Any:
        size, n, k, inner = self.hidden, *self.counts_of()
        cell, parts = state[1], (2 * self.hidden, self.hidden, self.hidden)
        gates, new, out = (driven + back).split(parts, 1)
        enter, forget = curved(gates, "sigmoid", k, grid).split(size, 1)
        new, out = curved(new, "tanh", n, grid), curved(out, "sigmoid", k, grid)
        inside = theta.double() * (forget * cell) + CELL_PARTS * (enter * new)
        cell = staircase(inside / (theta * k), -inner, inner).float()
        shown = curved(inside, "tanh", n, self.cell_grid)
        h = half_up(out * shown / k)
        seen = {"in": enter, "forget": forget, "new": new, "out": out}
        return (h, cell), {**seen, "cell": cell, "shown": shown, "state": h}


LAYERS: dict[type[nn.Module], type[Recurrent]] = {
    nn.RNN: QuantisedRNN,
    nn.GRU: QuantisedGRU,
    nn.LSTM: QuantisedLSTM,
}


def recurrent(layer: nn.Module, levels: Levels, reverse: bool = False) -> Recurrent:
    """The layer under quantisation-aware training, one direction of it."""
    if type(layer) not in LAYERS or layer.num_layers != 1 or getattr(layer, "proj_size", 0):
        raise UsageError(f"{layer}; expected nn.RNN, nn.GRU or nn.LSTM of one layer, no projection")
    return LAYERS[type(layer)](layer, levels, reverse)
