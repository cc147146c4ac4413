"""How time and memory grow with the width and the resolution of a network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import snnkit
from benchmarks.tables import Scope, Table
from benchmarks.variants import variant
from snnkit.backends.numba_cpu import backend
from snnkit.bench import bench
from snnkit.bench.rivals import INT8
from snnkit.bench.table import spread
from snnkit.files import to_bytes

NAMES = ("nmnist", "cifar")
GROWS = ("width", "resolution")
MEASURED = ("macs", "synops", "snnkit", "int8", "in flight", "file")


def exponent(factors: Sequence[int], values: Sequence[float]) -> float:
    """k of the least-squares fit value = a * factor^k, in logarithms."""
    return float(np.polyfit(np.log(factors), np.log(values), 1)[0])


def _point(name: str, grows: str, factor: int, rounds: int) -> tuple[list[str], dict[str, Any]]:
    """(cells, figures) of one network."""
    source, x = variant(name, **{grows: factor})
    graph = snnkit.convert(source, x, levels=15)
    report = bench(graph, source=source, samples=x, batch=[1], rounds=rounds)
    row, fast = report.rows[0], backend().compile(graph).fast
    ours, rival = row.time("snnkit"), row.time(INT8)
    figures: dict[str, Any] = {
        "macs": row.dense_macs,
        "synops": row.synops,
        "snnkit": ours["median_us"],
        "int8": rival["median_us"],
        "in flight": fast.work_bytes if fast else 0,
        "file": len(to_bytes(graph)),
        "report": report.json(),
    }
    cells = [f"{figures['macs']:,}", f"{row.synops:,.0f}", spread(ours), spread(rival)]
    cells += [f"{row.ratios[INT8]['medians']:.2f}"]
    cells += [f"{figures[k]:,}" for k in ("in flight", "file")]
    return cells, figures


def growth(scope: Scope, say: Callable[[str], None]) -> list[Table]:
    header = ["workload", "grows", "factor", "MACs", "synops", "us snnkit", "us ort int8", "ratio"]
    header += ["bytes in flight", "bytes of net.onnx"]
    lines, figures = [], []
    for name in (n for n in NAMES if n in scope.names):
        for grows in GROWS:
            points = []
            for factor in scope.factors:
                say(f"growth: {name}, {grows} x{factor}")
                cells, point = _point(name, grows, factor, scope.rounds)
                lines.append([name, grows, f"x{factor}", *cells])
                points.append(point)
            fits = {k: exponent(scope.factors, [p[k] for p in points]) for k in MEASURED}
            fitted = [f"{fits[k]:.2f}" for k in MEASURED]
            lines.append([name, grows, "exponent", *fitted[:4], "", *fitted[4:]])
            figures.append({"workload": name, "grows": grows, "points": points, "exponents": fits})
    notes = [
        "The workload's network wider, or on a larger sensor; random weights, each layer as active "
        "as in the trained network, generated inputs. Batch 1, one thread. exponent: fit "
        "value = a * factor^k.",
        "bytes in flight: memory of one sample while it runs, weights not included.",
    ]
    return [Table("Cost against size", notes, header, lines, figures)]
