"""The stock processes of lava-nc 0.10.0 in numpy, stated from their published arithmetic.

An oracle of its own: nothing of snnkit is used, arrays lie in Lava's order (W, H, C), and
convolutions are true ones (the kernel turned round).
"""

from __future__ import annotations

import numpy as np

Ints = np.ndarray


def wrap24(x: Ints) -> Ints:
    """Two's complement in 24 bits."""
    return (x + 2**23) % 2**24 - 2**23


def dense(
    weights: Ints, spikes: Ints, weight_exp: int = 0, mode: str = "mixed", message_bits: int = 8
) -> Ints:
    """Dense and Sparse with num_weight_bits 8; message_bits 0 casts a spike to bool."""
    low, high = {"mixed": (-256, 255), "excitatory": (0, 255), "inhibitory": (-255, 0)}[mode]
    w = np.clip(weights.astype(np.int64), low, high)
    if mode == "mixed":
        w = w >> 1 << 1
    s = spikes.astype(np.int64) if message_bits else (spikes != 0).astype(np.int64)
    a = w @ s
    return a << weight_exp if weight_exp >= 0 else a >> -weight_exp


def conv(weight: Ints, spikes: Ints, stride: Ints, padding: Ints, dilation: Ints) -> Ints:
    """Conv: weight (O, KW, KH, C), spikes (W, H, C) -> (W', H', O)."""
    turned = weight[:, ::-1, ::-1].astype(np.int64)
    px, py = padding
    x = np.pad(spikes.astype(np.int64), ((px, px), (py, py), (0, 0)))
    kx, ky = weight.shape[1:3]
    ox = (x.shape[0] - (kx - 1) * dilation[0] - 1) // stride[0] + 1
    oy = (x.shape[1] - (ky - 1) * dilation[1] - 1) // stride[1] + 1
    out = np.zeros((ox, oy, weight.shape[0]), np.int64)
    for i in range(ox):
        for j in range(oy):
            xs = i * stride[0] + dilation[0] * np.arange(kx)
            ys = j * stride[1] + dilation[1] * np.arange(ky)
            out[i, j] = np.tensordot(turned, x[np.ix_(xs, ys)], axes=([1, 2, 3], [0, 1, 2]))
    return wrap24(out)


class Lif:
    """LIF, bit accurate: du and vth integers, bias an array; state u, v starts at zero."""

    def __init__(self, shape, vth: int, bias: Ints, du: int = 4095, dv: int = 4096, bias_exp=6):
        # the widths that the process names but does not check
        assert 0 <= vth < 2**17 and 0 <= du < 2**12 and 0 <= dv <= 2**12
        assert np.min(bias) >= -(2**12) and np.max(bias) < 2**12
        self.vth, self.du, self.dv = vth << 6, du, dv
        self.bias = np.asarray(bias, np.int64) << bias_exp
        self.u = np.zeros(shape, np.int64)
        self.v = np.zeros(shape, np.int64)

    def step(self, a: Ints) -> Ints:
        self.u = wrap24(_decayed(self.u, self.du + 1) + (np.asarray(a, np.int64) << 6))
        v = _decayed(self.v, self.dv) + self.u + self.bias
        self.v = np.clip(v, -(2**23) + 1, 2**23 - 1)
        fired = self.v > self.vth
        self.before = self.v
        self.v = np.where(fired, 0, self.v)
        return fired.astype(np.int64)


def _decayed(x: Ints, decay: int) -> Ints:
    """x * (4096 - decay) / 4096, rounded towards zero."""
    return np.sign(x) * (np.abs(x) * (4096 - decay) >> 12)
