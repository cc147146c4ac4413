"""Energy of a spiking network by the papers' convention; `snnkit.energy` counts operations.

Both readings leave out neurons, pooling and memory: they compare networks, they do not predict a
chip.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from snnkit.energy import PICOJOULES, LayerEnergy, counted_energy
from snnkit.nn.state import reset_net

__all__ = ["PICOJOULES", "LayerEnergy", "counted_energy", "paper_energy"]

MOST_GRADED = 30
"""Largest integer that convention 1 takes for that many spikes."""


def paper_energy(model: nn.Module, x: Tensor, graded: bool = False) -> list[LayerEnergy]:
    """Firing rate times dense operations, of every convolution and linear layer for inputs x.

    A layer is AC if its inputs are all 0 or 1; its rate is their mean over batch, steps and
    units. All others are MAC at full cost. graded: also non-negative multiples of one number up
    to 30 times it (pooled spikes) are AC, and count as so many spikes. dense counts padding taps
    and all T steps, also of the first layer, whose direct input never changes.
    """
    rows: list[LayerEnergy] = []
    hooks = []

    def look(name: str, module: nn.Module, inputs: Any, output: Tensor) -> None:
        fan_in = module.weight[0].numel()
        dense = output.numel() * fan_in / len(x)
        rate = _rate(inputs[0], graded)
        kind = "MAC" if rate is None else "AC"
        share = 1.0 if rate is None else rate
        rows.append(LayerEnergy(name, kind, dense, share, dense * share))

    for name, module in model.named_modules():
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Linear)):
            hooks.append(
                module.register_forward_hook(lambda m, i, o, name=name: look(name, m, i, o))
            )
    training = model.training
    model.eval()
    reset_net(model)
    try:
        with torch.no_grad():
            model(x)
    finally:
        for hook in hooks:
            hook.remove()
        model.train(training)
        reset_net(model)
    return rows


def _rate(x: Tensor, graded: bool) -> float | None:
    """Mean number of unit spikes per unit; None if x is not made of spikes."""
    positive = x[x > 0]
    if not positive.numel():
        return 0.0 if bool((x == 0).all()) else None
    unit = float(positive.min()) if graded else 1.0
    counts = x / unit
    most = MOST_GRADED if graded else 1
    whole = (counts - counts.round()).abs().max() < 1e-4
    if not whole or float(counts.max()) > most + 0.5 or float(counts.min()) < 0:
        return None
    return float(counts.double().mean())
