"""A fit as plain text."""

from __future__ import annotations

from snnkit.fit.result import Fit, Layer, Range
from snnkit.report import table
from snnkit.targets import Target


def fit_text(f: Fit) -> str:
    """Tables per layer, totals, sources, notes, and every violation."""
    lines = [f"{f.target.title}, expression '{f.expression}'", "", _layers(f), "", _widths(f), ""]
    lines += _totals(f)
    if f.activity is not None:
        a = f.activity
        lines.append(
            f"counted on {a.samples:,} samples: {a.spikes:,.1f} spikes and {a.synops:,.0f} "
            f"synaptic operations per sample, {a.steps} steps at most until nothing can fire"
        )
        lines.append(
            f"energy: {a.picojoules / 1e6:.4g} uJ per sample, ESTIMATE by the papers' 45 nm "
            "convention (4.6 pJ per MAC of an input, 0.9 pJ per addition): it compares networks, "
            "it is not this chip's. Latency: in steps only, no time per step has a source"
        )
    lines += ["", "limits:", *_constants(f.target)]
    lines += [f"note: {n}" for n in f.notes]
    lines += [f"does not fit: {v}" for v in f.violations]
    lines.append(
        f"fits {f.target.name}"
        if f.fits
        else f"{len(f.violations)} number(s) do not fit {f.target.name}"
    )
    return "\n".join(lines)


def _pair(r: Range) -> str:
    return f"{r[0]:,}" if r[0] == r[1] else f"{r[0]:,}..{r[1]:,}"


def _layers(f: Fit) -> str:
    cores = f.target.split != "none"
    header = ["layer", "neurons", "synapses", "KiB", *(["cores"] if cores else [])]
    header += ["fan-in", "fan-out", *(["axons in", "axons out"] if cores else [])]
    rows = []
    for e in f.layers:
        kib = tuple(-(-b // 8192) for b in e.bits)
        row = [_name(e), f"{e.neurons:,}", _pair(e.synapses), _pair((kib[0], kib[1]))]
        row += [_pair(e.cores)] if cores else []
        row += [f"{e.fan_in:,}", f"{e.fan_out:,}"]
        rows.append(row + ([f"{e.axons_in:,}", f"{e.axons_out:,}"] if cores else []))
    return table(header, rows)


def _name(e: Layer) -> str:
    copies = f" x{e.copies}" if e.copies > 1 else ""
    return f"{e.name} ({e.op.split(' ')[0]}{copies})"


def _widths(f: Fit) -> str:
    rows = [
        [
            e.name,
            f"{e.charge:,}",
            "yes" if e.charge < 2**17 else "no",
            f"{e.potential:,}",
            "yes" if e.potential < 2**23 else "no",
            _pair(e.weight),
            f"{e.effective_bits}" + (f" = {e.pieces} x 8" if e.pieces > 1 else ""),
            f"{e.message_bits}",
            _pair(e.threshold),
            _pair(e.bias),
        ]
        for e in f.layers
    ]
    header = ["layer", "|charge|", "<2^17", "|potential|", "<2^23", "weights", "bits"]
    return table([*header, "message", "threshold", "bias"], rows)


def _totals(f: Fit) -> list[str]:
    t = f.totals
    text = f"{_pair(t['neurons'])} neurons, {_pair(t['synapses'])} synapses"
    if "cores" not in t:
        return [text]
    usable, all_cores = (f.target.value(k) for k in ("usable_cores_per_chip", "cores_per_chip"))
    of = f"of {all_cores}" + (f" ({usable} usable)" if usable else "")
    return [
        f"{text}, {_pair(t['cores'])} cores {of}: {_pair(f.chips)} chip(s)",
        "lower figures: a kernel stored once per core; upper: every synapse stored. Axons are "
        "those of the fullest core of the upper figure",
        f"split ({f.target.split}): {f.target.split_source}",
    ]


def _constants(chip: Target) -> list[str]:
    return [
        f"  {key.replace('_', ' ')} {c.value:,} {c.unit}: "
        f"{'documented' if c.documented else 'ESTIMATE'}; {c.source}"
        for key, c in chip.constants.items()
    ]
