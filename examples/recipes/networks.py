"""Networks that the recipes in this folder name."""

from __future__ import annotations

from torch import nn


def small_cnn(
    channels: int = 1, side: int = 28, width: int = 16, hidden: int = 0, classes: int = 10
) -> nn.Module:
    """Two convolutions with BatchNorm and ReLU, each with stride 2, then one or two dense layers.

    Only what `snnkit convert` turns into spiking neurons without a loss.
    """

    def block(before: int, after: int) -> list[nn.Module]:
        return [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.BatchNorm2d(after), nn.ReLU()]

    pixels = ((side + 3) // 4) ** 2
    dense: list[nn.Module] = [nn.Linear(2 * width * pixels, hidden or classes)]
    if hidden:
        dense += [nn.ReLU(), nn.Linear(hidden, classes)]
    return nn.Sequential(*block(channels, width), *block(width, 2 * width), nn.Flatten(), *dense)
