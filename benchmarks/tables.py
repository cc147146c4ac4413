"""The tables of time on the four workloads."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from benchmarks import prepared
from benchmarks.workloads import WORKLOADS
from snnkit.backends.numba_cpu import backend
from snnkit.backends.numba_cpu.fast.isa import GENERIC, ISAS, host_features, missing
from snnkit.bench import DENSITIES, Report, bench
from snnkit.bench.inputs import batches
from snnkit.bench.proof import prove
from snnkit.bench.rivals import FP32, INT8, onnxruntime_rivals
from snnkit.bench.table import cells, conditions, load, spread
from snnkit.bench.timing import interleaved

Say = Callable[[str], None]


@dataclass
class Table:
    """Title, what the reader has to know, the cells as text, and all figures."""

    title: str
    notes: list[str]
    header: Sequence[str]
    lines: Sequence[Sequence[str]]
    figures: Any = field(default_factory=dict)


@dataclass(frozen=True)
class Scope:
    """How much is run. quick is for CI: that every table can be made, not what it says."""

    names: tuple[str, ...] = tuple(WORKLOADS)
    densities: tuple[float, ...] = DENSITIES
    batch: tuple[int, ...] = (1, 32)
    rounds: int = 15
    factors: tuple[int, ...] = (1, 2, 4)
    large: int = 256
    packets: int = 400


QUICK = Scope(("mnist", "nmnist"), (0.03,), (1, 8), 2, (1, 2), 16, 20)


def origin(names: Sequence[str]) -> list[str]:
    """Which inputs are not real, in words."""
    made = [name for name in names if not prepared.test(name).real]
    if not made:
        return ["Inputs named real: from the test parts of the data sets."]
    absent = ", ".join(made)
    return [f"GENERATED inputs in place of absent data, also where it says real: {absent}."]


def _report(name: str, scope: Scope, say: Say, **options: Any) -> Report:
    return bench(
        options.pop("graph", None) or prepared.graph(name),
        source=prepared.source(name),
        samples=prepared.test(name).x,
        rounds=scope.rounds,
        workload=name,
        say=say,
        **{"batch": scope.batch, **options},
    )


def _joined(title: str, notes: list[str], reports: Sequence[Report]) -> Table:
    header, lines = cells([row for report in reports for row in report.rows])
    said = dict.fromkeys(line for report in reports for line in conditions(report))
    said[load([row for report in reports for row in report.rows])] = None
    return Table(title, [*notes, *said], header, lines, [r.json() for r in reports])


def workloads(scope: Scope, say: Say) -> list[Table]:
    """Every workload on real inputs and on random ones of every density: ratios, then all."""
    reports = [_report(name, scope, say, densities=scope.densities) for name in scope.names]
    notes = [
        *origin(scope.names),
        "Random inputs: independent units (the worst case for words of 4 channels), values as in "
        "the real ones. Their hidden densities are what the trained network makes of noise.",
        "peak: dense-equivalent multiply-accumulates per second over the peak of one thread; above "
        "100 % where work is skipped.",
    ]
    return [_ratios(reports), _joined("Workloads", notes, reports)]


def _ratios(reports: Sequence[Report]) -> Table:
    """One line per workload and batch: how many times faster than the int8 rival on each input."""
    inputs = list(dict.fromkeys(row.input for report in reports for row in report.rows))
    lines = []
    for report in reports:
        for size in dict.fromkeys(row.batch for row in report.rows):
            found = {r.input: r.ratios[INT8] for r in report.rows if r.batch == size}
            ratios = ["{medians:.2f} ({minima:.2f})".format(**found[name]) for name in inputs]
            lines.append([report.rows[0].workload, str(size), *ratios])
    notes = ["Time of onnxruntime int8 / ours, of medians (of minima); inputs: real, or density."]
    return Table("Times faster than onnxruntime int8", notes, ["workload", "batch", *inputs], lines)


KINDS = ((3, "auto"), (prepared.LEVELS, "auto"), (255, "auto"), (255, "uniform"))
"""Levels and staircases that are compared. uniform: one integer theta per channel."""


def levels(scope: Scope, say: Say) -> list[Table]:
    """Accuracy and time by number of levels: the int8 rival has 255."""
    header = [
        "workload",
        "levels",
        "staircase",
        "float",
        "ort int8",
        "snnkit",
        "us snnkit",
        "us ort int8",
    ]
    header += ["ratio"]
    lines, figures = [], []
    for name in scope.names:
        for count, staircase in KINDS:
            graph = prepared.graph(name, count, staircase)
            report = _report(name, scope, say, graph=graph, batch=(1,))
            row, found = report.rows[0], _accuracy(name, graph)
            line = [name, str(count), staircase]
            line += [f"{found[k]:.4f}" if found else "-" for k in (FP32, INT8, "snnkit")]
            line += [spread(row.time("snnkit")), spread(row.time(INT8))]
            lines.append([*line, f"{row.ratios[INT8]['medians']:.2f}"])
            figures.append(
                {"levels": count, "staircase": staircase, "accuracy": found, **report.json()}
            )
    notes = [*origin(scope.names), "Real inputs, batch 1, one thread. No retraining by level."]
    return [Table("Levels, accuracy and time", notes, header, lines, figures)]


def _accuracy(name: str, graph: Any) -> dict[str, float]:
    port = graph.inputs[0].name
    program = backend().compile(graph)
    rivals = onnxruntime_rivals(
        graph, prepared.source(name), {port: prepared.train(name).x}, 1
    ).candidates
    calls: dict[str, Any] = {k: lambda x, call=rivals[k]: call({port: x})[0] for k in (FP32, INT8)}
    calls["snnkit"] = lambda x: next(iter(program.infer(x).values()))
    return prepared.accuracies(name, calls)


def paths(scope: Scope, say: Say) -> list[Table]:
    """The same network on every set of instructions that this CPU has, and without any."""
    here = [*(n for n, isa in ISAS.items() if not missing(isa, host_features())), GENERIC]
    header = ["workload", "batch", "SNNKIT_CPU_PATH", "us snnkit", "us ort int8", "ratio", "peak"]
    lines, figures = [], []
    for name in scope.names:
        for path in here:
            report = _report(name, scope, say, path=path)
            figures.append(report.json())
            for row in report.rows:
                share = "-" if row.share_of_peak is None else f"{row.share_of_peak:.0%}"
                times = [spread(row.time("snnkit")), spread(row.time(INT8))]
                ratio = f"{row.ratios[INT8]['medians']:.2f}"
                lines.append([name, str(row.batch), report.path, *times, ratio, share])
    notes = [
        *origin(scope.names),
        "Real inputs, one thread. The rival always uses the best instructions of this CPU. peak: "
        "of the path's own instruction.",
    ]
    return [Table("Sets of instructions", notes, header, lines, figures)]


def threads(scope: Scope, say: Say) -> list[Table]:
    """One thread and two, ours and the int8 rival's, in turns: wall time."""
    header = ["workload", "batch", "snnkit 1", "snnkit 2", "gain", "ort int8 1", "ort int8 2"]
    header += ["gain", "ratio at 2"]
    lines, figures, loads = [], [], []
    for name in scope.names:
        say(f"threads: {name}")
        graph, x = prepared.graph(name), prepared.test(name).x
        port, program = graph.inputs[0].name, backend().compile(graph)
        some = {port: x[np.arange(2 * scope.large) % len(x)]}
        parts = batches(some, scope.large)
        candidates: dict[str, Any] = {}
        for count in (1, 2):
            candidates[f"snnkit {count}"] = partial(program.infer, threads=count)
            prove(graph, candidates[f"snnkit {count}"], {port: some[port][:64]}, parts)
            calibration = {port: prepared.train(name).x}
            rivals = onnxruntime_rivals(graph, prepared.source(name), calibration, count)
            candidates[f"ort int8 {count}"] = rivals.candidates[INT8]
        timed = interleaved(candidates, parts, [scope.large] * len(parts), scope.rounds)
        wall = {k: timed[k].wall for k in sorted(timed, reverse=True)}
        line = [name, str(scope.large)]
        for who in ("snnkit", "ort int8"):
            one, two = wall[f"{who} 1"], wall[f"{who} 2"]
            line += [spread(one.json()), spread(two.json())]
            line.append("{:.2f} ({:.2f})".format(*two.ratios(one)))
        line.append("{:.2f} ({:.2f})".format(*wall["snnkit 2"].ratios(wall["ort int8 2"])))
        lines.append(line)
        loads.append(os.getloadavg()[0])
        times = {k: {"wall": t.wall.json(), "cpu": t.cpu.json()} for k, t in timed.items()}
        figures.append({"workload": name, "load_average": loads[-1], "times": times})
    notes = [
        *origin(scope.names),
        f"Wall time, us per sample, real inputs, {os.cpu_count()} CPUs, load average "
        f"{min(loads):.2f} to {max(loads):.2f} (this run included). gain: of medians "
        "(of minima).",
    ]
    return [Table("Two threads against one", notes, header, lines, figures)]
