"""Where the batch and the elements of a sequence lie in a float tensor."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
FIRST, LAST = "first", "last"


class Refusal(Exception):
    """A node cannot be converted exactly: the reason, and what to do."""

    def __init__(self, reason: str, remedy: str = "rewrite or leave out this node"):
        super().__init__(reason)
        self.reason, self.remedy = reason, remedy


@dataclass(frozen=True)
class Frame:
    """batch, time : axes of the tensor; time None: one value for the whole sequence. The same axis
    for both: samples and elements are merged into it, `samples_outside` says in which order."""

    batch: int = 0
    time: int | None = None
    samples_outside: bool = True

    @property
    def axes(self) -> tuple[int, ...]:
        return (
            (self.batch,) if self.time in (None, self.batch) else (self.batch, int(self.time or 0))
        )

    @property
    def merged(self) -> bool:
        return self.time == self.batch

    def units(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape without batch and time."""
        return tuple(n for i, n in enumerate(shape) if i not in self.axes)

    def unit(self, axis: int, rank: int, op: str) -> int:
        """Which axis of the units the tensor's `axis` is. Raises Refusal for batch and time."""
        axis %= rank
        if axis == self.batch:
            raise Refusal(f"{op} along the batch axis", "keep the batch axis apart")
        if axis == self.time:
            raise Refusal(f"{op} along the elements of a sequence", "keep the elements apart")
        return axis - sum(a < axis for a in self.axes)

    def moved(self, by: int) -> Frame:
        return replace(
            self, batch=self.batch + by, time=None if self.time is None else self.time + by
        )

    def without(self, axes: list[int], rank: int) -> Frame:
        """The frame when the axes have been taken away."""
        gone = {a % rank for a in axes}
        if gone.intersection(self.axes):
            what = "batch axis" if self.batch in gone else "elements of a sequence"
            raise Refusal(f"it reduces the {what}", "keep samples and elements apart")

        def at(axis: int) -> int:
            return axis - sum(a < axis for a in gone)

        return replace(
            self, batch=at(self.batch), time=None if self.time is None else at(self.time)
        )

    def canonical(self, value: Array, batch: int) -> Array:
        """A tensor as [N, *units], or [N, T, *units] where it has elements."""
        if self.time is None:
            return np.moveaxis(value, self.batch, 0)
        if not self.merged:
            return np.moveaxis(value, (self.batch, self.time), (0, 1))
        front = np.moveaxis(value, self.batch, 0)
        steps = len(front) // batch
        if self.samples_outside:
            return front.reshape(batch, steps, *front.shape[1:])
        return front.reshape(steps, batch, *front.shape[1:]).swapaxes(0, 1)

    def restored(self, value: Array) -> Array:
        """The tensor of which `canonical` is this."""
        if self.time is None:
            return np.moveaxis(value, 0, self.batch)
        if not self.merged:
            return np.moveaxis(value, (0, 1), (self.batch, self.time))
        ordered = value if self.samples_outside else value.swapaxes(0, 1)
        return np.moveaxis(ordered.reshape(-1, *ordered.shape[2:]), 0, self.batch)


@dataclass(frozen=True, eq=False)
class Move:
    """One output of a layout operator: for each of its units the unit of the input, -1 for none.

    pick : FIRST or LAST where one element of the sequence is taken. fill : what -1 stands for.
    """

    index: Array
    pick: str = ""
    fill: float = 0.0
