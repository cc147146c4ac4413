"""Work areas: what one thread writes while it runs a planned network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from snnkit.backends.numba_cpu.fast import fields as f
from snnkit.backends.numba_cpu.fast.emit_charges import TOGETHER, UNROLL
from snnkit.backends.numba_cpu.fast.maps import BEHIND, Map
from snnkit.backends.numba_cpu.fast.pack import LINE, aligned

Array = npt.NDArray[Any]


class Net(NamedTuple):
    """What all threads share."""

    steps: Array  # int64 [step, STEP]
    taps: Array  # int64 [output or recorded node, TAP]
    tallies: Array  # int64 [node, TALLY]


class Places(NamedTuple):
    """Where maps lie in a work area of `size` bytes; `charges` are the first bytes of charges."""

    maps: Sequence[Map]
    charges: Array
    size: int


def placed(maps: Sequence[Map], charge_sizes: Sequence[int]) -> Places:
    """Give every map and charge its place."""
    size = 0
    for made in maps:
        size = made.place(size)
    charges = []
    for count in charge_sizes:
        charges.append(size)
        size += -(-4 * count // LINE) * LINE + LINE
    return Places(maps, np.array(charges, np.int64), size)


def address(array: Array) -> int:
    """As `array.ctypes.data`, which takes longer than a small network."""
    return int(array.__array_interface__["data"][0])


class Area:
    """One work area, with the jobs that fill rows of floats prepared in it."""

    def __init__(
        self,
        net: Net,
        places: Places,
        code: Array,
        entry: Callable[[int], int],
        inputs: Sequence[tuple[int, ...]],
        outputs: tuple[Array, Array],
    ):
        """inputs : shapes. outputs : rows of `net.taps` to keep, and the scale of each unit."""
        self.entry = entry
        self.memory = aligned(places.size + LINE)
        base, rows = address(self.memory), []
        for made in places.maps:
            made.rest(self.memory)
            row = np.array(made.row())
            row[: f.MAP_ADDRESSES] += base
            rows.append(row)
        self.arguments = np.zeros(f.ARGUMENTS, np.int64)
        widest = max((made.columns for made in places.maps), default=0)
        self.held: dict[int, Array] = {
            f.A_CODE: code,
            f.A_MAPS: np.array(rows, np.int64).reshape(-1, f.MAP),
            f.A_CHARGES: places.charges + base,
            f.A_STEPS: net.steps,
            f.A_TAPS: net.taps,
            f.A_TALLIES: net.tallies,
        }
        for field, array in self.held.items():
            self.arguments[field] = address(array)
        for field, size in _scratch(net.steps, widest).items():
            self.held[field] = aligned(size + 2 * LINE)
            # what lies before the first site is read where no site is touched
            self.arguments[field] = address(self.held[field]) + LINE
        self.arguments[f.A_STEP_COUNT] = len(net.steps)
        self.arguments[f.A_TALLY_COUNT] = len(net.tallies)
        self._prepare(inputs, *outputs)

    def _prepare(self, inputs: Sequence[tuple[int, ...]], kept: Array, scales: Array) -> None:
        self.kept, self.scales = kept, scales
        self.values = np.zeros(len(scales), np.int32)
        self._ports, self._job = np.zeros((len(inputs), 2), np.int64), np.zeros(f.JOB, np.int64)
        job = self._job
        job[f.J_ARGUMENTS], job[f.J_INPUTS] = address(self.arguments), address(self._ports)
        # the integers of every sample go to the same place
        job[f.J_KEPT], job[f.J_KEPT_COUNT] = address(kept), len(kept)
        job[f.J_VALUES], job[f.J_SCALES] = address(self.values), address(scales)
        job[f.J_UNITS], job[f.J_FLOATS_STEP] = len(scales), 4 * len(scales)
        # setting integers through a view takes half the time
        self._fields, self._rows = job.data, self._ports.reshape(-1).data
        self._at = address(job)
        self._own = [np.zeros((1, *shape), np.float32) for shape in inputs]
        self._own_floats = np.zeros((1, len(scales)), np.float32)
        self._own_ports = np.array([(address(a), 0) for a in self._own], np.int64)
        self._own_job = job.copy()
        self._own_job[f.J_END] = 1
        self._own_job[f.J_INPUTS] = address(self._own_ports)
        self._own_job[f.J_FLOATS] = address(self._own_floats)
        self._own_at = address(self._own_job)

    def single(self, inputs: Sequence[Array]) -> Array:
        """The floats of one sample of inputs [1, *shape], which is copied: asking two arrays for
        their addresses takes longer."""
        for own, given in zip(self._own, inputs, strict=True):
            own[...] = given
        self.entry(self._own_at)
        return self._own_floats.copy()

    def floats(self, inputs: Sequence[tuple[int, int]], to: int, first: int, end: int) -> None:
        """Samples first to end of inputs (address, bytes per sample) to floats at an address."""
        fields = self._fields
        for i, (start, step) in enumerate(inputs):
            self._rows[2 * i], self._rows[2 * i + 1] = start, step
        fields[f.J_FIRST], fields[f.J_END], fields[f.J_FLOATS] = first, end, to
        self.entry(self._at)

    def integers(
        self, inputs: Sequence[Array], kept: Array, values: Array, tallies: Array | None
    ) -> None:
        """values int32 [N, units]: those of the rows `kept` of `net.taps`; tallies int64 [N, nodes,
        2]: what is counted."""
        ports = np.array([(address(a), a.strides[0]) for a in inputs], np.int64)
        job = np.zeros(f.JOB, np.int64)
        job[f.J_ARGUMENTS], job[f.J_INPUTS] = address(self.arguments), address(ports)
        job[f.J_END], job[f.J_KEPT], job[f.J_KEPT_COUNT] = len(values), address(kept), len(kept)
        job[f.J_VALUES], job[f.J_VALUES_STEP] = address(values), values.strides[0]
        if tallies is not None:
            job[f.J_TALLIES], job[f.J_TALLIES_STEP] = address(tallies), tallies.strides[0]
        self.entry(address(job))


def _scratch(steps: Array, widest: int) -> dict[int, int]:
    """Bytes of each place that kernels use on the way."""
    taps = steps[:, f.P_TAP_COUNT].max(initial=0)
    listed = (steps[:, f.P_TAP_COUNT] * steps[:, f.P_WORDS]).max(initial=0) + UNROLL
    listed = TOGETHER * int(listed) + 4 * BEHIND
    wide = (steps[:, f.P_WIDTH] + 8) * steps[:, f.P_CHANNELS]
    gathered = steps[:, f.P_KIND] == f.GATHER
    return {
        f.A_SEGMENTS: 8 * (int(taps) + 1) * f.SEGMENT,
        f.A_SITES: 4 * (widest + 2 * BEHIND),
        f.A_BLOCKS: 4 * listed,
        f.A_PLACES: 4 * listed,
        f.A_ROW: 4 * int(wide[gathered].max(initial=0)),
    }
