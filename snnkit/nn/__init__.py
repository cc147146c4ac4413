"""Spiking networks and quantisation-aware training in PyTorch.

Neurons, surrogate gradients, encodings and layers over time for networks trained as spiking ones:
tensors over time are [T, N, ...], steps, batch, features, and neurons keep their state until
`reset_net(model)`. `prepare(model)` turns a plain network into one under quantisation-aware
training, whose forward pass is the integer network's own rule.
"""

from __future__ import annotations

from snnkit.nn.encodings import delta, direct, latency, rate, s_analog
from snnkit.nn.layers import Direct, Folded, TimeDropout, TimeMean, TimeSum
from snnkit.nn.neurons import IF, LIF, PLIF, AdaptiveLIF, CubaLIF, IIRNeuron, Neuron, clamp_leaks
from snnkit.nn.prepare import prepare
from snnkit.nn.prepared import Prepared
from snnkit.nn.quantised import InputGrid
from snnkit.nn.quantisers import LSQ, QCFS, LevelQuantiser, WeightQuantiser
from snnkit.nn.state import Stateful, reset_net, set_multi_step
from snnkit.nn.surrogates import ATan, FastSigmoid, Rectangle, Sigmoid, Surrogate, Triangle

__all__ = [
    "IF",
    "LIF",
    "LSQ",
    "PLIF",
    "QCFS",
    "ATan",
    "AdaptiveLIF",
    "CubaLIF",
    "Direct",
    "FastSigmoid",
    "Folded",
    "IIRNeuron",
    "InputGrid",
    "LevelQuantiser",
    "Neuron",
    "Prepared",
    "Rectangle",
    "Sigmoid",
    "Stateful",
    "Surrogate",
    "TimeDropout",
    "TimeMean",
    "TimeSum",
    "Triangle",
    "WeightQuantiser",
    "clamp_leaks",
    "delta",
    "direct",
    "latency",
    "prepare",
    "rate",
    "reset_net",
    "s_analog",
    "set_multi_step",
]
