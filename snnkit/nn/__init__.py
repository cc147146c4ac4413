"""Spiking networks in PyTorch: neurons, surrogate gradients, encodings, layers over time.

Tensors over time are [T, N, ...]: steps, batch, features. Neurons keep their state until
`reset_net(model)`.
"""

from __future__ import annotations

from snnkit.nn.encodings import delta, direct, latency, rate, s_analog
from snnkit.nn.layers import Direct, Folded, TimeDropout, TimeMean, TimeSum
from snnkit.nn.neurons import IF, LIF, PLIF, AdaptiveLIF, CubaLIF, IIRNeuron, Neuron, clamp_leaks
from snnkit.nn.state import Stateful, reset_net, set_multi_step
from snnkit.nn.surrogates import ATan, FastSigmoid, Rectangle, Sigmoid, Surrogate, Triangle

__all__ = [
    "IF",
    "LIF",
    "PLIF",
    "ATan",
    "AdaptiveLIF",
    "CubaLIF",
    "Direct",
    "FastSigmoid",
    "Folded",
    "IIRNeuron",
    "Neuron",
    "Rectangle",
    "Sigmoid",
    "Stateful",
    "Surrogate",
    "TimeDropout",
    "TimeMean",
    "TimeSum",
    "Triangle",
    "clamp_leaks",
    "delta",
    "direct",
    "latency",
    "rate",
    "reset_net",
    "s_analog",
    "set_multi_step",
]
