"""The rows of a report as text: aligned columns, a rich table on a terminal, or markdown."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from snnkit.bench.measure import OURS, Report, Row
from snnkit.report import table

SHORT = {"onnxruntime fp32": "ort fp32", "onnxruntime int8": "ort int8"}
SHORT["onnxruntime net.onnx"] = "ort net.onnx"


def cells(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """(header, lines). Times in microseconds per sample: median [least..most]; a ratio x of medians
    (of the least) after each rival."""
    rivals = list(dict.fromkeys(name for row in rows for name in row.ratios))
    header = ["workload", "input", "batch", "density", "words", "hidden density", "differ", OURS]
    for name in rivals:
        header += [SHORT.get(name, name), "ratio"]
    header += ["spikes", "synops", "ns/synop", "peak"]
    return header, [_line(row, rivals) for row in rows]


def _line(row: Row, rivals: Sequence[str]) -> list[str]:
    hidden = " ".join(f"{d:.3f}" for d in row.hidden.values())
    line = [row.workload, row.input, str(row.batch), f"{row.density:.4f}", f"{row.words:.4f}"]
    line += [hidden, f"{row.neurons_different} of {row.neurons_compared:,}"]
    line.append(spread(row.time(OURS)))
    for name in rivals:
        if name not in row.ratios:
            line += ["-", "-"]
            continue
        ratio = row.ratios[name]
        line.append(spread(row.time(name)))
        line.append(f"{ratio['medians']:.2f} ({ratio['minima']:.2f})")
    line += [f"{row.spikes:,.0f}", f"{row.synops:,.0f}"]
    line.append("-" if row.ns_per_synop is None else f"{row.ns_per_synop:.4f}")
    line.append("-" if row.share_of_peak is None else f"{row.share_of_peak:.0%}")
    return line


def spread(time: dict[str, float]) -> str:
    median, least, most = (f"{time[k]:.3g}" for k in ("median_us", "min_us", "max_us"))
    if time["median_us"] >= 100:
        median, least, most = (f"{time[k]:.0f}" for k in ("median_us", "min_us", "max_us"))
    return f"{median} [{least}..{most}]"


def markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def conditions(report: Report) -> list[str]:
    """What has to be known to read the table."""
    lines = [f"path {report.path}, {report.rounds} rounds in turns, us per sample"]
    lines += [f"generic because of node '{node}': {why}" for node, why in report.why_generic[:3]]
    if report.peak:
        lines.append(f"peak of one thread: {report.peak / 1e9:.1f} GMAC/s in registers")
    if report.onnxruntime_int8:
        k = report.onnxruntime_int8
        state = "does not saturate" if k["exact"] else "SATURATES: no VNNI kernels"
        lines.append(
            f"onnxruntime's int8 product {state}; {k['int8_macs_per_second'] / 1e9:.0f} GMAC/s "
            f"(fp32 {k['fp32_macs_per_second'] / 1e9:.0f})"
        )
    for rival, note in report.notes.items():
        made = ", ".join(f"{op} x{n}" for op, n in note["operators"].items())
        lines.append(f"{rival}: {note['made']}; runs {made}")
    lines += [f"left out: {name}: {reason}" for name, reason in report.left_out.items()]
    lines.append(", ".join(f"{name} {version}" for name, version in report.versions.items()))
    return lines


def load(rows: Sequence[Row]) -> str:
    """How busy the machine was; one of it is the run itself."""
    loads = [load for row in rows for load in row.load_average]
    return f"load average {min(loads):.2f} to {max(loads):.2f}, this run included"


def print_report(report: Report) -> None:
    """To stdout: a rich table where rich is installed and a person looks, else plain columns."""
    header, lines = cells(report.rows)
    if not (sys.stdout.isatty() and _rich(header, lines)):
        print(table(header, lines))
    print()
    print("\n".join([*conditions(report), load(report.rows)]))


def _rich(header: Sequence[str], lines: Sequence[Sequence[str]]) -> bool:
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        return False
    made: Any = Table(*header)
    for line in lines:
        made.add_row(*line)
    Console().print(made)
    return True
