"""What the commands do. Each is thin over one Python function; heavy imports happen inside."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snnkit.errors import BadCalibration, UsageError

if TYPE_CHECKING:
    from snnkit.graph import Graph

MODES = ("settle", "events", "steps", "fuzz")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _print(arguments: argparse.Namespace, data: dict[str, Any], text: str) -> None:
    print(json.dumps(data, indent=2) if arguments.json else text)


def _read_array(path: str, what: str) -> Any:
    """An .npy array or the arrays of an .npz by name; nothing is unpickled."""
    import numpy as np

    try:
        found = np.load(path, allow_pickle=False)
    except OSError as error:
        raise BadCalibration(f"{what} '{path}': cannot be read: {error}") from error
    except Exception as error:  # numpy raises many kinds on a damaged file
        raise BadCalibration(f"{what} '{path}': not a .npy or .npz file of numbers") from error
    if hasattr(found, "files"):
        named = {name: found[name] for name in found.files}
        return next(iter(named.values())) if len(named) == 1 else named
    return found


def _write_arrays(path: str, arrays: Any) -> None:
    """One array as .npy, or a mapping as .npz; whole or not at all."""
    import io

    import numpy as np

    from snnkit.files import write_beside

    buffer = io.BytesIO()
    if isinstance(arrays, dict):
        np.savez(buffer, **arrays)
    else:
        np.save(buffer, arrays)
    write_beside(path, buffer.getvalue())


def _load(path: str) -> Graph:
    from snnkit.files import load

    return load(path)


def convert(a: argparse.Namespace) -> int:
    from snnkit.boundary import first_samples
    from snnkit.certificate import verify
    from snnkit.converters import Timing, convert
    from snnkit.converters.nir_time import is_nir
    from snnkit.files import save
    from snnkit.report import certificate_text, describe_graph

    from_nir = is_nir(a.model)
    if a.calibration is None and not from_nir:
        raise UsageError(f"--calibration missing; expected real inputs of {a.model}")
    calibration = a.calibration and _read_array(a.calibration, "calibration data")
    timing = Timing(a.dt, a.discretisation or "euler", a.reset, a.steps)
    say(f"converting {a.model}")
    graph = convert(
        a.model,
        calibration,
        levels=a.levels,
        weight_bits=a.weight_bits,
        calibrator=a.calibrator,
        staircase=a.staircase,
        bias_correction=not a.no_bias_correction,
        pack=not a.no_pack,
        timing=timing if from_nir or timing != Timing() else None,
        target=a.target,
        expression=a.expression,
    )
    data: dict[str, Any] = {"output": a.output, **describe_graph(graph)}
    text = f"{data['neurons']:,} spiking neurons, {data['macs']:,} MACs dense"
    if from_nir:
        say(f"steps of {graph.meta['dt']} s ({graph.meta['time']})")
    if "elements" in graph.meta:
        say(f"number of elements fixed: {graph.meta['elements']}")
    if a.verify and calibration is None:
        say("not verified: no --calibration to verify on")
    elif a.verify:
        some = first_samples(graph, calibration, a.verify)
        certificate = verify(graph, some, source=None if from_nir else a.model)
        data["certificate"] = json.loads(certificate.to_json())
        text = f"{certificate_text(certificate)}\n{text}"
        if not certificate.passed:
            _print(a, data, text)
            say("the conversion is not exact; nothing was written")
            return 4
    save(graph, a.output)
    _print(a, data, f"{text}\nwrote {a.output}")
    return 0


def verify(a: argparse.Namespace) -> int:
    from snnkit.certificate import verify
    from snnkit.files import write_beside
    from snnkit.report import certificate_text

    samples = _read_array(a.samples, "samples")
    labels = _read_array(a.labels, "labels") if a.labels else None
    modes = tuple(a.mode or MODES)
    graph = _load(a.net)
    certificate = verify(
        graph,
        samples,
        labels=labels,
        source=a.source,
        backends=tuple(a.backend or ("numba",)),
        modes=modes,
        seed=a.seed,
    )
    if a.output:
        write_beside(a.output, certificate.to_json().encode())
    _print(a, json.loads(certificate.to_json()), certificate_text(certificate))
    return 0 if certificate.passed else 4


def export(a: argparse.Namespace) -> int:
    from snnkit.exporters import export

    notes = export(_load(a.net), a.output)
    for note in notes:
        say(note)
    _print(a, {"output": a.output, "notes": list(notes)}, f"wrote {a.output}")
    return 0


def run(a: argparse.Namespace) -> int:
    from snnkit.backends import compile

    graph = _load(a.net)
    samples = _read_array(a.input, "input")
    program = compile(graph, a.backend)
    record = ("spike",) if a.record else ()
    how = {"mode": a.mode, "seed": a.seed, "encoding": a.encoding}
    result = program.run(samples, record=record, **how)
    outputs = dict(result.outputs)
    single = next(iter(outputs.values()))
    if a.output:
        _write_arrays(a.output, single if len(outputs) == 1 else outputs)
    if a.record:
        _write_arrays(a.record, dict(result.counts))
    count = len(result.steps)
    spikes = {k: [int(n) for n in v.sum(axis=0)] for k, v in result.spikes.items()}
    synops = sum(int(v.sum()) for v in result.synops.values())
    data = {
        "samples": count,
        "backend": result.backend,
        "mode": a.mode,
        "encoding": a.encoding,
        "seconds": result.seconds,
        "spikes": spikes,
        "synops": synops,
        "most_steps": int(result.steps.max()),
        "digest": result.digest,
        "outputs": {k: list(v.shape) for k, v in outputs.items()},
    }
    total = sum(sum(pair) for pair in spikes.values())
    text = (
        f"{count} samples on {result.backend} ({a.mode}): {result.seconds / count * 1e6:,.0f} us, "
        f"{total / count:,.1f} spikes, {synops / count:,.0f} synaptic operations per sample"
    )
    _print(a, data, text)
    return 0


def stream(a: argparse.Namespace) -> int:
    from snnkit.backends import compile
    from snnkit.replay import packets_of, replay, replay_text

    graph = _load(a.net)
    given = _read_array(a.events, "events")
    packets = packets_of(graph, given, window=a.window, every=a.every, unit=a.unit)
    found = replay(compile(graph, a.backend).stream(a.update), packets)
    _print(a, found.as_json(), replay_text(found))
    return 0


def train(a: argparse.Namespace) -> int:
    from dataclasses import replace

    from snnkit.training import read_recipe, train

    recipe = read_recipe(a.recipe, a.set)
    recipe = replace(recipe, output=a.output or recipe.output)
    result = train(recipe, resume=a.resume, say=say)
    if result.rank == 0:
        _print(a, result.as_json(), result.text())
    if not result.finished and result.rank == 0:
        say("interrupted; go on with the same command and --resume")
    return 0 if result.finished else 130


def info(a: argparse.Namespace) -> int:
    from snnkit.converters import examine
    from snnkit.converters.nir_time import is_nir
    from snnkit.files import from_bytes, is_ours, parse_model, read_bytes
    from snnkit.report import describe_graph, info_text

    content = read_bytes(a.model)
    ours = not is_nir(a.model) and is_ours(parse_model(content, a.model))
    if a.target:
        if not ours:
            raise UsageError(
                f"'{a.model}' is no converted network; run snnkit convert --target on it first"
            )
        return _fit(a, from_bytes(content, a.model))
    if a.expression or a.picture or a.input:
        raise UsageError("--expression, --picture and --input tell how to fit; expected --target")
    if ours:
        info = describe_graph(from_bytes(content, a.model))
        _print(a, info, info_text(info))
        return 0
    info = describe_graph(examine(a.model))
    info["meta"] = {"source": info["meta"]["source"]}
    info["note"] = "a float model; ranges and bounds are those of a conversion with made-up data"
    _print(a, info, f"{info_text(info)}\nconvertible: {info['note']}")
    return 0


def _fit(a: argparse.Namespace, graph: Graph) -> int:
    """What `info --target` says. A graph that does not fit is an answer, so the code is 0."""
    from snnkit.fit import fit, fit_text

    samples = _read_array(a.input, "input") if a.input else None
    found = fit(graph, a.target, a.expression, samples)
    if a.picture:
        from snnkit.fit.picture import draw

        draw(found, a.picture)
    _print(a, found.as_json(), fit_text(found))
    return 0


def bench(a: argparse.Namespace) -> int:
    from snnkit.bench import DENSITIES, bench
    from snnkit.bench.table import print_report
    from snnkit.files import parse_model, read_bytes

    samples = _read_array(a.input, "input") if a.input else None
    report = bench(
        _load(a.net),
        source=parse_model(read_bytes(a.source), a.source) if a.source else None,
        samples=samples,
        densities=a.density or (() if a.input else DENSITIES),
        batch=a.batch,
        threads=a.threads,
        rounds=a.rounds,
        against=a.against or ("onnxruntime",),
        workload=Path(a.net).stem.removesuffix(".net"),
        say=say,
    )
    if a.json:
        print(json.dumps(report.json(), indent=2))
    else:
        print_report(report)
    return 0


def doctor(a: argparse.Namespace) -> int:
    from snnkit.doctor import diagnose, doctor_text

    found = diagnose()
    _print(a, found, doctor_text(found))
    return 0 if found["ready"] else 5
