"""What lava-dl's netx reader makes of a `.net` file, with stock processes in numpy behind it.

Stated from the reader's rules: shapes reversed to (W, H, C), kernels turned round and transposed,
dense weights scaled up to the most significant bit, LIF(vth=vThMant, du=iDecay - 1, dv=vDecay,
bias_exp=6), flatten in the order (C, H, W).
"""

from __future__ import annotations

import h5py
import numpy as np

from tests import lava_rules


def optimised(weight: np.ndarray) -> tuple[np.ndarray, int, str]:
    """(weights as stored, weight_exp, sign mode) of a dense layer."""
    most, least = int(weight.max()), int(weight.min())
    if most < 0:
        mode, scale, signed = "inhibitory", 256 / -least, 0
    elif least >= 0:
        mode, scale, signed = "excitatory", 255 / most, 0
    else:
        mode, signed = "mixed", 1
        scale = min(127 / most if most else np.inf, 128 / -least)
    bits = int(np.floor(np.log2(scale))) + signed
    return weight << bits, -bits, mode


class Layer:
    """A block: synapses, then LIF. `biased` False leaves the bias out of a step."""

    def __init__(self, group: h5py.Group, kind: str, flattened: bool):
        self.kind, self.flattened = kind, flattened
        neuron = group["neuron"]
        assert neuron["type"][()] in (b"LOIHI", b"CUBA")
        weight = group["weight"][()].astype(int)
        assert np.array_equal(weight, group["weight"][()])
        self.bias = group["bias"][()].astype(int) if "bias" in group else 0
        if kind == "conv":
            self.shape = tuple(group["shape"][()][::-1])
            weight = weight.reshape(weight.shape[:4])
            self.weight = weight[:, :, ::-1, ::-1].transpose(0, 3, 2, 1)
            self.attrs = [group[k][()][::-1] for k in ("stride", "padding", "dilation")]
            assert group["groups"][()] == 1
        else:
            self.shape = (int(np.prod(group["shape"][()])),)
            self.weight, self.exponent, self.mode = optimised(weight)
        numbers = [int(neuron[k][()]) for k in ("vThMant", "iDecay", "vDecay")]
        self.vth, self.du, self.dv = numbers[0], numbers[1] - 1, numbers[2]
        self.lif = self.neurons(np.broadcast_to(self.bias, self.shape))

    def neurons(self, bias: np.ndarray) -> lava_rules.Lif:
        return lava_rules.Lif(self.shape, self.vth, bias, self.du, self.dv)

    def charge(self, spikes: np.ndarray) -> np.ndarray:
        if self.kind == "conv":
            return lava_rules.conv(self.weight, spikes, *self.attrs)
        if self.flattened:
            spikes = spikes.transpose(2, 1, 0).reshape(-1)
        return lava_rules.dense(self.weight, spikes, self.exponent, self.mode)


def read(path: object) -> list[Layer]:
    """The blocks of a file. An `input` layer is left out: its spikes are given."""
    found, flattened = [], False
    with h5py.File(path) as file:
        for i in range(len(file["layer"])):
            group = file["layer"][str(i)]
            kind = group["type"][0].decode()
            assert kind in ("input", "conv", "dense", "flatten"), "NotImplementedError"
            if kind in ("conv", "dense"):
                found.append(Layer(group, kind, flattened))
            flattened = kind == "flatten"
    return found


def run(layers: list[Layer], x: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """(spikes, membrane potential before the reset) of each layer, [steps, *shape]; x [steps,
    W, H, C] or [steps, units]. A connection delivers one step later."""
    sent: list[np.ndarray] = [np.zeros_like(x[0]), *(np.zeros(e.shape, int) for e in layers)]
    shown: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in layers]
    for frame in x:
        fired = [frame]
        for k, e in enumerate(layers):
            fired.append(e.lif.step(e.charge(sent[k])))
            shown[k].append((fired[-1], e.lif.before))
        sent = fired
    return [(np.stack([s for s, _ in e]), np.stack([v for _, v in e])) for e in shown]
