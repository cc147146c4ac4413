"""A GRU over a whole sequence as one differentiable function, for hundreds of elements.

torch takes some forty small operations for an element and as many again for its gradient; here one
compiled loop takes the whole sequence, forwards and, with the gradient written out, backwards.

    R, Z = sigmoid(a),  C = tanh(a_n + m R Q),  H' = C + Z (H - C) / K

`float_states` computes this in float32 with K = m = 1 and Q = W_hn H + b_hn, as `nn.GRU` does.
`quantised_states` computes the integers of `snnkit.nn.recurrent.QuantisedGRU`: every value is the
one that its steps compute, bit for bit. Both have one backward pass, that of `QuantisedGRU.step`:
straight through roundings, sigma' of gates, tanh' of candidates at the charge itself.

Arrays are [T, N, ...] float32. `driven` [T, N, 3H] is what the inputs give to reset, keep and new.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numba
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from snnkit.nn.ladders import ladder

if TYPE_CHECKING:
    from snnkit.nn.recurrent import Integers

Floats = npt.NDArray[np.float32]
_jit = numba.njit(fastmath={"contract", "reassoc", "nsz", "arcp"}, error_model="numpy")
_exact = numba.njit(error_model="numpy")


@_jit  # type: ignore[untyped-decorator]
def _exponentials(x: Floats, bits: npt.NDArray[np.int32], scale: Floats) -> None:
    """exp(-x) of a row, in place, to about 2e-7; `scale` is `bits` read as float32.

    2^i times a polynomial of the rest: unlike a call of exp, LLVM makes vector instructions of it.
    """
    one = np.float32(1)
    for j in range(len(x)):
        v = min(max(x[j] * np.float32(-1.4426950408889634), np.float32(-126)), np.float32(126))
        i = np.floor(v + np.float32(0.5))
        f = (v - i) * np.float32(0.6931471805599453)
        e = np.float32(1 / 120) + f * np.float32(1 / 720)
        e = np.float32(1 / 6) + f * (np.float32(1 / 24) + f * e)
        x[j] = one + f * (one + f * (np.float32(0.5) + f * e))
        bits[j] = (np.int32(i) + np.int32(127)) << np.int32(23)
    for j in range(len(x)):
        x[j] *= scale[j]


@_jit  # type: ignore[untyped-decorator]
def _float_forward(
    driven: Floats, wh: Floats, bias_h: Floats, kept: Floats, slopes: Floats, states: Floats
) -> None:
    steps, many, size = states.shape
    h, back = np.zeros((many, size), np.float32), np.empty((many, 3 * size), np.float32)
    bits = np.empty(2 * size, np.int32)
    scale = bits.view(np.float32)
    gates, new = np.empty(2 * size, np.float32), np.empty(size, np.float32)
    one, two = np.float32(1), np.float32(2)
    for t in range(steps):
        np.dot(h, wh, back)
        for i in range(many):
            given, held, slope = driven[t, i], kept[t, i], slopes[t, i]
            for j in range(2 * size):
                gates[j] = given[j] + back[i, j]
            _exponentials(gates, bits, scale)
            for j in range(2 * size):
                y = one / (one + gates[j])
                held[j], slope[j] = y, y * (one - y)
            for j in range(size):
                aside = back[i, 2 * size + j] + bias_h[2 * size + j]
                new[j] = two * (given[2 * size + j] + held[j] * aside)
                held[3 * size + j] = aside
                held[4 * size + j] = aside
            _exponentials(new, bits, scale)
            for j in range(size):
                c = two / (one + new[j]) - one
                held[2 * size + j], slope[2 * size + j] = c, one - c * c
                h[i, j] = c + held[size + j] * (h[i, j] - c)
                states[t, i, j] = h[i, j]


@_exact  # type: ignore[untyped-decorator]
def _levels(
    charge: npt.NDArray[np.int32], curve: Floats, lo: int, hi: int, steps: npt.NDArray[np.int32]
) -> None:
    """curve, about the level of each charge, becomes that level, which may be one off the guess.

    steps: the ladder between -2^31 and 2^31 - 1, which no charge passes.
    """
    for j in range(len(curve)):
        guess = np.int32(np.floor(curve[j] + np.float32(0.5))) - np.int32(lo)
        guess = min(max(guess, np.int32(0)), np.int32(hi - lo))
        up = np.int32(steps[guess + 1] <= charge[j])
        down = np.int32(steps[guess] > charge[j])
        curve[j] = np.float32(guess + up - down + np.int32(lo))


@_exact  # type: ignore[untyped-decorator]
def _quantised_forward(
    raw: Floats,
    wh: Floats,
    grids: tuple[npt.NDArray[np.int32], ...],
    numbers: tuple[int, ...],
    ladders: tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]],
    kept: Floats,
    slopes: Floats,
    states: Floats,
) -> None:
    """numbers: N, K, inner, theta, m, grid."""
    n, k, inner, theta, m, grid = numbers
    mx, bias, mh, bias_h = grids
    sigmoid, tanh = ladders
    steps, many, size = states.shape
    h, back = np.zeros((many, size), np.float32), np.empty((many, 3 * size), np.float32)
    charge = np.empty(3 * size, np.int32)
    gates, new = np.empty(2 * size, np.float32), np.empty(size, np.float32)
    bits = np.empty(2 * size, np.int32)
    scale = bits.view(np.float32)
    half, half_gate = float(theta // 2), float(k // 2)
    threshold, least = float(theta), float(-inner)
    one, two, unit = np.float32(1), np.float32(2), np.float32(1 / grid)
    top_gate, top_new, share = np.float32(k), np.float32(n), np.int32(m)
    gate_slope, new_slope = top_gate * unit, top_new * unit
    for t in range(steps):
        np.dot(h, wh, back)
        for i in range(many):
            given, held, slope = raw[t, i], kept[t, i], slopes[t, i]
            for j in range(2 * size):
                charge[j] = mx[j] * np.int32(given[j]) + bias[j] + mh[j] * np.int32(back[i, j])
                gates[j] = np.float32(charge[j]) * unit
            _exponentials(gates, bits, scale)
            for j in range(2 * size):
                y = one / (one + gates[j])
                slope[j] = y * (one - y) * gate_slope
                gates[j] = y * top_gate
            _levels(charge[: 2 * size], gates, 0, k, sigmoid)
            for j in range(size):
                at = 2 * size + j
                a = np.float64(mh[at] * np.int32(back[i, at]) + bias_h[at])
                q = min(max(np.floor((a + half) / threshold), least), -least)
                held[j], held[size + j] = gates[j], gates[size + j]
                held[3 * size + j], held[4 * size + j] = q, a / threshold
                product = np.int32(gates[j]) * np.int32(q)
                charge[at] = mx[at] * np.int32(given[at]) + bias[at] + share * product
                new[j] = two * np.float32(charge[at]) * unit
            _exponentials(new, bits, scale)
            for j in range(size):
                y = two / (one + new[j]) - one
                slope[2 * size + j] = (one - y * y) * new_slope
                new[j] = y * top_new
            _levels(charge[2 * size :], new, -n, n, tanh)
            for j in range(size):
                held[2 * size + j] = new[j]
                moved = np.float64(top_gate * new[j] + gates[size + j] * (h[i, j] - new[j]))
                h[i, j] = np.floor((moved + half_gate) / np.float64(k))
                states[t, i, j] = h[i, j]


@_jit  # type: ignore[untyped-decorator]
def _backward(
    grad: Floats,
    wh: Floats,
    mh: Floats,
    numbers: tuple[float, ...],
    kept: Floats,
    slopes: Floats,
    states: Floats,
    driven: Floats,
    aside: Floats,
    of_wh: Floats,
) -> tuple[float, float]:
    """Fills the gradients of `driven`, of the charge of Q, `aside` [T, N, H], and of W_h [3H, H];
    returns those of m and theta. numbers: K, inner, theta, m."""
    top, inner, theta, m = numbers
    steps, many, size = states.shape
    carry = np.zeros((many, size), np.float32)
    back, further = np.empty((many, 3 * size), np.float32), np.empty_like(carry)
    outer = np.empty_like(of_wh)
    of_m = of_theta = 0.0
    one = np.float32(1)
    least, share = one / top, one / theta
    for t in range(steps - 1, -1, -1):
        for i in range(many):
            held, slope, before = kept[t, i], slopes[t, i], states[t - 1 if t else 0, i]
            of_driven, of_back = driven[t, i], back[i]
            there = np.float32(1 if t else 0)
            part_m = part_theta = np.float32(0)
            for j in range(size):
                reset, q, v = held[j], held[3 * size + j], held[4 * size + j]
                dh = grad[t, i, j] + carry[i, j]
                part = held[size + j] * least
                new = dh * (one - part) * slope[2 * size + j]
                gate = dh * (there * before[j] - held[2 * size + j]) * least * slope[size + j]
                product = new * reset
                part_m += product * q
                pre = product * m if abs(v) < inner else np.float32(0)
                part_theta -= pre * v
                pre = pre * share
                first = new * m * q * slope[j]
                of_driven[j], of_driven[size + j], of_driven[2 * size + j] = first, gate, new
                aside[t, i, j] = pre
                of_back[j], of_back[size + j] = first * mh[j], gate * mh[size + j]
                of_back[2 * size + j] = pre * mh[2 * size + j]
                carry[i, j] = dh * part
            of_m += float(part_m)
            of_theta += float(part_theta)
        np.dot(back, wh, further)
        carry += further
        if t:
            np.dot(back.T, states[t - 1], outer)
            of_wh += outer
    return of_m, of_theta / theta


def _room(driven: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Empty states [T, N, H], what the backward pass keeps [T, N, 5H], slopes [T, N, 3H]."""
    steps, many, rows = driven.shape
    return tuple(driven.new_empty(steps, many, rows // 3 * k) for k in (1, 5, 3))


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, float, float]:
    """Of driven, W, M, the bias of Q [H], m and theta."""
    wh, mh, kept, slopes, states = ctx.saved_tensors[:5]
    driven, aside, of_wh = torch.empty_like(slopes), torch.empty_like(states), torch.zeros_like(wh)
    arrays = [a.numpy() for a in (kept, slopes, states, driven, aside, of_wh)]
    grad = grad.contiguous().float()
    of_m, of_theta = _backward(grad.numpy(), wh.numpy(), mh.numpy(), ctx.numbers, *arrays)
    return driven, of_wh, (of_wh * wh).sum(1) / mh, aside.sum((0, 1)), of_m, of_theta


def _between_ends(thresholds: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
    ends = np.iinfo(np.int32)
    return np.concatenate([[ends.min], thresholds, [ends.max]]).astype(np.int32)


class _FloatStates(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, driven: Tensor, wh: Tensor, bias_h: Tensor) -> Tensor:
        states, kept, slopes = _room(driven)
        arrays = [a.contiguous().numpy() for a in (driven, wh.T, bias_h)]
        _float_forward(*arrays, kept.numpy(), slopes.numpy(), states.numpy())
        ctx.save_for_backward(wh.contiguous(), torch.ones(len(wh)), kept, slopes, states)
        one = np.float32(1)
        ctx.numbers = (one, np.float32(np.inf), one, one)
        return states

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        driven, wh, _, aside, _, _ = _gradients(ctx, grad)
        return driven, wh, torch.cat([torch.zeros(2 * len(aside)), aside])


class _QuantisedStates(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, given: Tensor, wh: Tensor, numbers: Any, *grids: Tensor) -> Tensor:
        n, k, inner, grid = numbers
        mx, bias, mh, bias_h = (a.to(torch.int32).numpy() for a in grids[:4])
        theta, m = (int(a) for a in grids[4:])
        states, kept, slopes = _room(given)
        steps = (("sigmoid", k), ("tanh", n))
        _quantised_forward(
            given.contiguous().numpy(),
            wh.T.contiguous().numpy(),
            (mx, bias, mh, bias_h),
            (n, k, inner, theta, m, grid),
            tuple(_between_ends(ladder(curve, top, grid)) for curve, top in steps),
            *(a.numpy() for a in (kept, slopes, states)),
        )
        multipliers = grids[2].float()
        ctx.save_for_backward(wh.contiguous(), multipliers, kept, slopes, states, given, grids[0])
        ctx.numbers = tuple(np.float32(a) for a in (k, inner, theta, m))
        ctx.types = [a.dtype for a in grids]
        return states

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        driven, wh, mh, aside, of_m, of_theta = _gradients(ctx, grad)
        given, mx = ctx.saved_tensors[5:]
        bias = driven.sum((0, 1))
        bias_h = torch.cat([torch.zeros(2 * len(aside)), aside])
        of_mx = (driven * given).sum((0, 1))
        found = (of_mx, bias, mh, bias_h, torch.tensor(of_theta), torch.tensor(of_m))
        cast = (g.to(kind) for g, kind in zip(found, ctx.types, strict=True))
        return driven.mul_(mx.float()), wh, None, *cast


def torch_gru(layer: nn.GRU, x: Tensor) -> Tensor:
    """What `layer(x)[0]` is for x [T, N, F], one layer and one direction, within float32 rounding.

    The gradients are autograd's, within float32 rounding.
    """
    size = layer.hidden_size
    bias_h = layer.bias_hh_l0
    bias = layer.bias_ih_l0 + torch.cat([bias_h[: 2 * size], torch.zeros(size)])
    driven = functional.linear(x, layer.weight_ih_l0, bias)
    return torch.as_tensor(_FloatStates.apply(driven, layer.weight_hh_l0, bias_h))


def quantised_states(given: Tensor, n: Integers, m: Tensor, levels: tuple[int, int, int]) -> Tensor:
    """Hidden states [T, N, H] of a QuantisedGRU, integers in float32.

    given [T, N, 3H]: W_x X, float32 integers below 2^24, as all sums W_h H have to be. n: the
    layer's integers. m: charge of one unit of R Q. levels: N, K, levels of Q.
    """
    grids = (n.mx, n.bias, n.mh, n.bias_h, n.theta, m)
    return torch.as_tensor(_QuantisedStates.apply(given, n.wh, (*levels, n.grid), *grids))
