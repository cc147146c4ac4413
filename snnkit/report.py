"""What the command line prints: plain tables, and the one picture of the demo."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from snnkit.certificate import Certificate, dense_macs
from snnkit.graph import Graph


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Columns aligned: text to the left, numbers to the right."""
    cells = [[_cell(v) for v in row] for row in rows]
    widths = [max(len(r[i]) for r in [list(header), *cells]) for i in range(len(header))]
    numeric = [all(isinstance(r[i], (int, float)) for r in rows) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        parts = [
            c.rjust(w) if n else c.ljust(w) for c, w, n in zip(row, widths, numeric, strict=True)
        ]
        return "  ".join(parts).rstrip()

    return "\n".join([line(header), line(["-" * w for w in widths]), *map(line, cells)])


def _cell(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def describe_graph(graph: Graph) -> dict[str, Any]:
    """Layers, neurons, synapses, bounds: what `snnkit info` prints and its --json gives."""
    layers = [
        {
            "node": n.name,
            "op": n.op + (f" ({n.attrs['kind']})" if "kind" in n.attrs else ""),
            "shape": list(n.shape),
            "range": [n.lo, n.hi],
            "bound": n.peak,
            "macs": dense_macs(graph, n.name) if n.op in ("conv", "linear") else 0,
        }
        for n in graph.nodes
    ]
    return {
        "digest": graph.digest,
        "neurons": sum(n.units for n in graph.of("spike", "lif")),
        "synapses": sum(int(np.prod(n.params["weight"].shape)) for n in graph.of("conv", "linear")),
        "macs": sum(dense_macs(graph, n.name) for n in graph.of("conv", "linear")),
        "inputs": [_port(b) for b in graph.inputs],
        "outputs": [_port(b) for b in graph.outputs],
        "meta": dict(graph.meta),
        "layers": layers,
        **({"sweeps": graph.sweeps, "steps": graph.steps} if graph.sweeps else {}),
    }


def _port(b: Any) -> dict[str, Any]:
    return {
        "name": b.name,
        "dims": list(b.dims),
        "dtype": b.dtype,
        "scale": b.scale.reshape(-1).tolist(),
        "offset": b.offset.reshape(-1).tolist(),
        "post": [dict(step) for step in b.post],
        **({} if b.time is None else {"time": b.time}),
    }


_ORDERS = {1: "forwards", -1: "backwards", 0: "once"}


def info_text(info: dict[str, Any]) -> str:
    rows = [
        [
            e["node"],
            e["op"],
            "x".join(map(str, e["shape"])),
            "{}..{}".format(*e["range"]),
            e["bound"],
            e["macs"],
        ]
        for e in info["layers"]
    ]
    lines = [table(["node", "op", "shape", "range", "bound", "MACs"], rows), ""]
    lines.append(
        f"{info['neurons']:,} spiking neurons, {info['synapses']:,} weights, "
        f"{info['macs']:,} MACs dense"
    )
    if "sweeps" in info:
        parts = ", ".join(f"{count} nodes {_ORDERS[at]}" for count, at in info["sweeps"])
        steps = f"{info['steps']} steps" if info["steps"] else "as many steps as the input has"
        lines.append(f"{steps}: {parts}; MACs are those of one step")
    lines += [f"{key}: {value}" for key, value in info["meta"].items()]
    lines.append(f"digest: {info['digest']}")
    return "\n".join(lines)


def certificate_text(c: Certificate) -> str:
    rows = []
    for title, e in c.executions.items():
        spikes = (
            [sum(pair[i] for pair in e["spikes"].values()) for i in (0, 1)]
            if "spikes" in e
            else ["", ""]
        )
        per_sample = e["synops"] / c.samples if "synops" in e else ""
        steps = f"{e['mean_steps']:.1f} / {e['most_steps']}" if "mean_steps" in e else ""
        rows.append([title, e["compared"], e["different"], *spikes, per_sample, steps])
    header = [
        "execution",
        "neurons",
        "differ",
        "spikes +",
        "spikes -",
        "synops/sample",
        "steps mean/max",
    ]
    lines = [table(header, rows), ""]
    lines.append(
        f"{c.neurons_compared:,} neurons compared, {c.neurons_different:,} differ; "
        f"{c.outputs_compared:,} outputs compared, {c.outputs_different:,} differ "
        f"({c.samples:,} samples; dense {c.dense_macs:,} MACs/sample; minimum sum |S| "
        f"{c.minimum_spikes / c.samples:,.1f}/sample)"
    )
    lines += [f"skipped: {name}: {reason}" for name, reason in c.skipped.items()]
    if c.silent_layers:
        lines.append(f"warning: never fired on these samples: {', '.join(c.silent_layers)}")
    if c.first_difference is not None:
        d = c.first_difference
        lines.append(
            f"first difference: {d.execution}: node '{d.node}', sample {d.sample}, "
            f"index {d.index}: {d.found:g} instead of {d.expected:g}"
        )
    if c.quantisation:
        parts = [f"{k.replace('_', ' ')} {_cell(v)}" for k, v in c.quantisation.items()]
        lines.append(
            "quantisation error (float -> integer, not part of the proof): " + ", ".join(parts)
        )
    return "\n".join(lines)


def activity_picture(
    graph: Graph, counts: dict[str, Any], path: str | os.PathLike[str], title: str
) -> None:
    """Raster of spike counts of one sample: a row of neurons per layer, colour by sign and size."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = [n.name for n in graph.nodes if n.name in counts]
    figure, axes = pyplot.subplots(
        len(names), 1, figsize=(9, 1.1 * len(names) + 0.8), squeeze=False, layout="constrained"
    )
    for axis, name in zip(axes[:, 0], names, strict=True):
        flat = np.asarray(counts[name]).reshape(-1)
        axis.vlines(np.nonzero(flat)[0], 0, flat[flat != 0], linewidth=0.6, color="tab:blue")
        axis.set_ylabel(name.split("/")[-1][-18:], rotation=0, ha="right", va="center", fontsize=7)
        axis.set_xlim(-0.5, len(flat) - 0.5)
        axis.tick_params(labelsize=6)
    axes[0, 0].set_title(title, fontsize=9)
    axes[-1, 0].set_xlabel("neuron (spikes fired by each, one presentation)", fontsize=8)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
