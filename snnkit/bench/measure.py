"""Cells of (input, batch): equality, then activity, then times in turns."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from snnkit.backends.numba_cpu import backend
from snnkit.backends.numba_cpu.program import NumbaProgram
from snnkit.bench.inputs import batches, input_density, random_inputs
from snnkit.bench.peak import peak_macs
from snnkit.bench.proof import prove
from snnkit.bench.rivals import INT8, Call, Rivals, int8_kernels, onnxruntime_rivals
from snnkit.bench.timing import Timing, interleaved
from snnkit.bench.torch_rivals import torch_rivals
from snnkit.boundary import as_inputs
from snnkit.certificate import dense_macs, versions
from snnkit.errors import UsageError
from snnkit.graph import Graph

Array = npt.NDArray[Any]
Arrays = dict[str, Array]
OURS = "snnkit"
REAL = "real"
AGAINST = ("onnxruntime", "torch", "spikingjelly", "sinabs")
DENSITIES = (0.005, 0.01, 0.03, 0.1, 0.3, 1.0)
SAMPLES = 64
"""Samples that are proved and timed, if nothing else is said."""


@dataclass
class Row:
    """One cell.

    density, words : share of input units, and of words of 4 channels, that are events. hidden :
    share of active neurons by spiking node. spikes, synops : per sample. neurons_different is 0,
    or there would be no row. times : microseconds per sample by candidate, CPU time of the calling
    thread and wall time; median, least and most of the rounds. ratios : rival / ours, of the
    medians and of the least; by CPU time with one thread, by the wall with more. agreement : share
    of the real samples with the same largest output as ours. ns_per_synop and share_of_peak (dense
    multiply-accumulates per second / peak) are of our median.
    """

    workload: str
    input: str
    batch: int
    threads: int
    samples: int
    density: float
    words: float
    hidden: dict[str, float]
    spikes: float
    synops: float
    dense_macs: int
    neurons_compared: int
    neurons_different: int
    times: dict[str, dict[str, dict[str, float]]]
    ratios: dict[str, dict[str, float]]
    agreement: dict[str, float]
    ns_per_synop: float | None
    share_of_peak: float | None
    load_average: tuple[float, float]

    def time(self, candidate: str) -> dict[str, float]:
        """median_us, min_us, max_us by the clock that counts."""
        return self.times[candidate]["cpu" if self.threads == 1 else "wall"]


@dataclass
class Report:
    """Rows, and what they were measured with. peak : multiply-accumulates per second."""

    digest: str
    path: str
    why_generic: list[tuple[str, str]]
    peak: float | None
    onnxruntime_int8: dict[str, Any]
    rounds: int
    rows: list[Row] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    def json(self) -> dict[str, Any]:
        return asdict(self)


def bench(
    graph: Graph,
    *,
    source: onnx.ModelProto | None = None,
    samples: Any = None,
    densities: Sequence[float] = (),
    batch: Sequence[int] = (1, 32),
    threads: int = 1,
    rounds: int = 15,
    against: Sequence[str] = ("onnxruntime",),
    workload: str = "net",
    count: int = SAMPLES,
    seed: int = 0,
    path: str | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Report:
    """Time the graph on the numba backend against rivals; prove equality first.

    Parameters
    ----------
    source : the float model, for the rivals that run it. Without one the int8 rival is this graph
        as a QDQ model, and the float ones are left out.
    samples : real inputs, as for `verify`. densities : random inputs besides (`random_inputs`).
    batch : sizes to time. rounds : times that every candidate runs, in turns.
    count : samples that small batches walk through; larger ones take at least two whole batches.
    against : among onnxruntime, torch, spikingjelly, sinabs. say : takes lines of progress.
    path : as the environment variable SNNKIT_CPU_PATH.

    Raises VerificationFailed where any neuron or output differs, UsageError, BadCalibration.
    """
    _check(samples, densities, batch, min(threads, rounds, count), against)
    program = backend().compile(graph, path)
    sets = _inputs(graph, samples, densities, max(count, 2 * max(batch)), seed)
    say("making rivals")
    rivals = _rivals(graph, source, next(iter(sets.values())), threads, against)
    report = Report(
        digest=graph.digest,
        path=program.path,
        why_generic=list(program.why_generic),
        peak=peak_macs(program.path),
        onnxruntime_int8=int8_kernels() if INT8 in rivals.candidates else {},
        rounds=rounds,
        left_out=rivals.left_out,
        notes=rivals.notes,
        versions=versions(),
    )
    cell = _Cell(program, rivals, threads, rounds, report.peak, workload)
    for name, x in sets.items():
        parts = {size: batches(_some(x, max(count, 2 * size)), size) for size in batch}
        say(f"{workload}, input {name}: comparing every neuron")
        compared = prove(graph, cell.infer, x, [p for some in parts.values() for p in some])
        activity = _activity(program, x)
        for size, some in parts.items():
            say(f"{workload}, input {name}, batch {size}: {rounds} rounds")
            report.rows.append(cell.measure(name, size, some, compared, activity))
    return report


def _check(
    samples: Any,
    densities: Sequence[float],
    batch: Sequence[int],
    least: int,
    against: Sequence[str],
) -> None:
    if samples is None and not densities:
        raise UsageError("nothing to time; give samples, densities, or both")
    if not batch or min(*batch, least) < 1:
        raise UsageError(f"batch {batch}, threads, rounds and samples: expected at least 1")
    unknown = [name for name in against if name not in AGAINST]
    if unknown:
        raise UsageError(f"against '{unknown[0]}'; expected among {', '.join(AGAINST)}")


def _some(x: Mapping[str, Array], count: int) -> Arrays:
    """`count` samples spread evenly over those given; each again where there are fewer."""
    given = len(next(iter(x.values())))
    index = np.arange(count) * given // count
    return {k: v[index] for k, v in x.items()}


def _inputs(
    graph: Graph, samples: Any, densities: Sequence[float], count: int, seed: int
) -> dict[str, Arrays]:
    """Sets of samples by name; the first, real or else the densest, calibrates the int8 rival."""
    sets = {}
    if samples is not None:
        sets[REAL] = _some(as_inputs(graph, samples), count)
    for density in sorted(densities, reverse=True):
        sets[f"{density:g}"] = random_inputs(graph, density, count, seed, sets.get(REAL))
    return sets


def _rivals(
    graph: Graph,
    source: onnx.ModelProto | None,
    x: Arrays,
    threads: int,
    against: Sequence[str],
) -> Rivals:
    found = Rivals()
    if "onnxruntime" in against:
        found = onnxruntime_rivals(graph, source, x, threads)
    others = torch_rivals(source, x, threads, [a for a in against if a != "onnxruntime"])
    found.candidates.update(others.candidates)
    found.left_out.update(others.left_out)
    return found


@dataclass
class _Activity:
    density: float
    words: float
    hidden: dict[str, float]
    spikes: float
    synops: float


def _activity(program: NumbaProgram, x: Arrays) -> _Activity:
    result = program.run(x, record=("spike",), threads=1)
    count = len(next(iter(x.values())))
    return _Activity(
        *input_density(program.graph, x),
        {name: float(np.count_nonzero(v) / v.size) for name, v in result.counts.items()},
        sum(int(v.sum()) for v in result.spikes.values()) / count,
        sum(int(v.sum()) for v in result.synops.values()) / count,
    )


@dataclass
class _Cell:
    """What all cells of a report share."""

    program: NumbaProgram
    rivals: Rivals
    threads: int
    rounds: int
    peak: float | None
    workload: str

    def infer(self, x: Mapping[str, Array]) -> Mapping[str, Array]:
        return self.program.infer(x, threads=self.threads)

    def measure(
        self, name: str, size: int, parts: list[Arrays], compared: int, activity: _Activity
    ) -> Row:
        graph, threads = self.program.graph, self.threads
        before = os.getloadavg()[0]
        rivals = self._able(parts[0], size)
        agreement = self._agreement(parts, rivals) if name == REAL else {}
        candidates: dict[str, Callable[[Any], Any]] = {OURS: self.infer, **rivals}
        timings = interleaved(candidates, parts, [size] * len(parts), self.rounds)
        macs = sum(dense_macs(graph, n.name) for n in graph.of("conv", "linear"))
        ours = _clock(timings[OURS], threads)
        ratios = {
            rival: dict(zip(("medians", "minima"), ours.ratios(_clock(t, threads)), strict=True))
            for rival, t in timings.items()
            if rival != OURS
        }
        alone = threads == 1
        return Row(
            workload=self.workload,
            input=name,
            batch=size,
            threads=threads,
            samples=size * len(parts),
            **asdict(activity),
            dense_macs=macs,
            neurons_compared=compared,
            neurons_different=0,
            times={k: {"cpu": t.cpu.json(), "wall": t.wall.json()} for k, t in timings.items()},
            ratios=ratios,
            agreement=agreement,
            ns_per_synop=ours.median * 1e9 / activity.synops if activity.synops else None,
            share_of_peak=macs / ours.median / self.peak if self.peak and alone else None,
            load_average=(before, os.getloadavg()[0]),
        )

    def _able(self, part: Arrays, size: int) -> dict[str, Call]:
        """The rivals that run a batch of this size; a source may have its own batch built in."""
        able = {}
        for rival, call in self.rivals.candidates.items():
            try:
                call(part)
                able[rival] = call
            except Exception as error:  # onnxruntime and torch raise many kinds
                reason = str(error).strip().splitlines() or [type(error).__name__]
                self.rivals.left_out[f"{rival}, batch {size}"] = f"it does not run: {reason[0]}"
        return able

    def _agreement(self, parts: list[Arrays], rivals: dict[str, Call]) -> dict[str, float]:
        ours = [_largest(next(iter(self.infer(part).values()))) for part in parts]
        found = {}
        for rival, call in rivals.items():
            theirs = [_largest(np.asarray(call(part)[0])) for part in parts]
            found[rival] = float((np.concatenate(theirs) == np.concatenate(ours)).mean())
        return found


def _clock(timing: Timing, threads: int) -> Any:
    """CPU time of the one thread; with more threads, only the wall sees them all."""
    return timing.cpu if threads == 1 else timing.wall


def _largest(y: Array) -> Array:
    return np.asarray(y.reshape(len(y), -1).argmax(axis=1))
