"""Augmentations as small functions of a batch and of what was drawn for each of its samples.

`Augment.draw` draws for a whole batch from one generator; `Augment.apply` acts on any rows of it.
So what happens to a sample does not depend on how a batch is shared among processes.
All act on the last two axes (rows, columns) and keep shape and dtype; holes are filled with 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

Tensor = Any
Drawn = dict[str, Tensor]


def shift(x: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """y[n, ..., i, j] = x[n, ..., i - down[n], j - right[n]], 0 outside: pad and crop.

    x : (N, ..., H, W). down, right : (N,) int64.
    """
    height, width = x.shape[-2:]
    rows = torch.arange(height) - down[:, None]
    columns = torch.arange(width) - right[:, None]
    inside_rows, inside_columns = (rows >= 0) & (rows < height), (columns >= 0) & (columns < width)
    flat = x.reshape(len(x), -1, height, width)
    n = torch.arange(len(x))[:, None, None, None]
    c = torch.arange(flat.shape[1])[None, :, None, None]
    rows, columns = rows.clamp(0, height - 1), columns.clamp(0, width - 1)
    moved = flat[n, c, rows[:, None, :, None], columns[:, None, None, :]]
    inside = (inside_rows[:, :, None] & inside_columns[:, None, :])[:, None]
    return torch.where(inside, moved, torch.zeros((), dtype=x.dtype)).reshape(x.shape)


def flip(x: Tensor, which: Tensor) -> Tensor:
    """The samples where `which` (N,) is true, mirrored left to right."""
    return torch.where(which.reshape(-1, *[1] * (x.ndim - 1)), x.flip(-1), x)


def cutout(x: Tensor, row: Tensor, column: Tensor, side: int) -> Tensor:
    """A square of `side` pixels around (row[n], column[n]) is 0, cut off at the border.

    It covers rows row - side // 2 .. row - side // 2 + side - 1 (DeVries and Taylor, arXiv
    1708.04552).
    """
    height, width = x.shape[-2:]
    down = torch.arange(height) - row[:, None] + side // 2
    right = torch.arange(width) - column[:, None] + side // 2
    hole = ((down >= 0) & (down < side))[:, :, None] & ((right >= 0) & (right < side))[:, None, :]
    hole = hole.reshape(len(x), *[1] * (x.ndim - 3), height, width)
    return torch.where(hole, torch.zeros((), dtype=x.dtype), x)


def mixup(x: Tensor, partner: Tensor, share: float) -> Tensor:
    """share * x + (1 - share) * partner (Zhang et al., arXiv 1710.09412). Floats only."""
    return share * x + (1 - share) * partner


@dataclass(frozen=True)
class Augment:
    """Which augmentations, and how strong. Zero and false are off."""

    shift: int = 0  # pixels, up to this many in each direction
    flip: bool = False  # left to right, half of the samples
    cutout: int = 0  # side of the square in pixels
    mixup: float = 0.0  # alpha of the Beta distribution of the share
    mixup_probability: float = 1.0  # of a batch being mixed

    def draw(self, generator: Any, count: int, height: int, width: int) -> Drawn:
        """What happens to each of `count` samples: tensors of shape (count,)."""

        def integers(low: int, high: int) -> Tensor:
            return torch.randint(low, high, (count,), generator=generator)

        drawn: Drawn = {}
        if self.shift:
            drawn["down"] = integers(-self.shift, self.shift + 1)
            drawn["right"] = integers(-self.shift, self.shift + 1)
        if self.flip:
            drawn["mirrored"] = integers(0, 2).bool()
        if self.cutout:
            drawn["row"], drawn["column"] = integers(0, height), integers(0, width)
        return drawn

    def apply(self, x: Tensor, drawn: Drawn, rows: Tensor) -> Tensor:
        """The samples `x`, which are the rows `rows` (int64) of the batch that was drawn for."""
        own = {name: values[rows] for name, values in drawn.items()}
        if self.shift:
            x = shift(x, own["down"], own["right"])
        if self.flip:
            x = flip(x, own["mirrored"])
        if self.cutout:
            x = cutout(x, own["row"], own["column"], self.cutout)
        return x
