"""Where the values of a node lie: its geometry, its map of bytes, its row of integers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from snnkit.backends.numba_cpu.fast import fields as f
from snnkit.backends.numba_cpu.fast.pack import LINE, padded
from snnkit.graph import Node
from snnkit.ops.op import Ints

Array = npt.NDArray[Any]

BEHIND = 16
"""Entries of a prefix and of a list, and sites of a map, that a full vector may write past the
end."""


class Unfit(Exception):
    """A node has no fast kernel; the text is the reason."""


@dataclass(frozen=True)
class Geometry:
    """A node's units as [height, width, channels]: `units[y, x, c]` is the unit's number."""

    height: int
    width: int
    channels: int
    units: Ints

    def full(self, array: Array, node: Node) -> Ints:
        """An array that broadcasts against the node, as [height, width, channels]."""
        flat = np.broadcast_to(array, node.shape).reshape(-1)
        return flat[self.units].astype(np.int64)

    def charge_places(self) -> Array:
        """Where each unit's charge lies, in the order of the units."""
        y, x, c = np.indices(self.units.shape)
        places = (y * self.width + x) * padded(self.channels) + c
        return self.by_unit(places)

    def by_unit(self, places: Any) -> Array:
        ordered = np.empty(self.units.size, np.int32)
        ordered[self.units.reshape(-1)] = places.reshape(-1)
        return ordered


def geometry(node: Node, last: bool) -> Geometry:
    """`last`: channels are the last axis, as behind a linear node; else the first."""
    units = np.arange(node.units).reshape(node.shape or 1)
    if not last and units.ndim > 1:
        units = np.moveaxis(units, 0, -1)
    if units.ndim > 3:
        units = units.reshape(-1, *units.shape[-2:])
    units = units.reshape((1,) * (3 - units.ndim) + units.shape)
    height, width, channels = units.shape
    return Geometry(height, width, channels, units)


@dataclass
class Map:
    """The bytes of a node: value - lo of each unit, in padded rows.

    pitch : bytes from site to site. top, left, bottom, right : padding, holding the value zero.
    """

    index: int
    shape: Geometry
    zero: int
    pitch: int
    pads: tuple[int, int, int, int]
    addresses: list[int] = field(default_factory=list)

    @property
    def words(self) -> int:
        """Words of a site; 0 where words do not start with sites."""
        return self.pitch // 4

    @property
    def rows(self) -> int:
        return self.pads[0] + self.shape.height + self.pads[2]

    @property
    def columns(self) -> int:
        return self.pads[1] + self.shape.width + self.pads[3]

    @property
    def strides(self) -> tuple[int, int, int]:
        """Bytes of a row of the map, of the lists and of the prefixes."""
        row = _lines(self.columns * self.pitch + LINE)
        listed = _lines(4 * (self.columns * self.words + 2 * BEHIND))
        return row, listed, _lines(4 * (self.columns + 1 + 3 * BEHIND))

    def place(self, start: int) -> int:
        """Give the map its addresses, relative to a work area; returns the first free one."""
        row, listed, prefix = self.strides
        sizes = (self.rows * row + BEHIND * self.pitch, self.rows * listed, self.rows * prefix)
        self.addresses = [start]
        for size in (*sizes, 4 * self.rows):
            self.addresses.append(self.addresses[-1] + _lines(size + LINE))
        return self.addresses.pop()

    def row(self) -> list[int]:
        """The row of integers that compiled code reads."""
        values = np.zeros(f.MAP, np.int64)
        values[:4] = self.addresses
        values[[f.M_ROW_BYTES, f.M_LIST_BYTES, f.M_PREFIX_BYTES]] = self.strides
        values[[f.M_PITCH, f.M_WORDS, f.M_ZERO]] = self.pitch, self.words, self.zero
        g = self.shape
        values[[f.M_HEIGHT, f.M_WIDTH, f.M_CHANNELS]] = g.height, g.width, g.channels
        values[[f.M_TOP, f.M_LEFT]] = self.pads[:2]
        values[[f.M_ROWS, f.M_COLUMNS]] = self.rows, self.columns
        return [int(v) for v in values]

    def byte_places(self) -> Array:
        """Where each unit's byte lies in the map, in the order of the units."""
        y, x, c = np.indices(self.shape.units.shape)
        places = (y + self.pads[0]) * self.strides[0] + (x + self.pads[1]) * self.pitch + c
        if places.max() >= 2**31:
            raise Unfit("more than 2^31 bytes")
        return self.shape.by_unit(places)

    def rest(self, area: Array) -> None:
        """Fill the map's part of a new work area with the value zero, listed where it is a word
        that is not zero."""
        if not self.zero:
            return
        row, listed, prefix = self.strides
        base, lists, prefixes, counts = self.addresses
        block = area[base : base + self.rows * row].reshape(self.rows, row)
        sites = block[:, : self.columns * self.pitch].reshape(self.rows, self.columns, self.pitch)
        sites[..., : self.shape.channels] = self.zero
        words = sites.reshape(self.rows, -1).view(np.int32)
        for y in range(self.rows):
            (keys,) = words[y].nonzero()
            area[lists + y * listed :][: 4 * len(keys)].view(np.int32)[:] = keys
            steps = np.searchsorted(keys, np.arange(self.columns + 1) * self.words)
            area[prefixes + y * prefix :][: 4 * len(steps)].view(np.int32)[:] = steps
            area[counts + 4 * y :][:4].view(np.int32)[:] = len(keys)


def _lines(size: int) -> int:
    return -(-size // LINE) * LINE
