"""The commands. Each is thin over one Python function; heavy imports happen inside."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snnkit.errors import BackendMissing, BadCalibration, SnnkitError

if TYPE_CHECKING:
    from snnkit.graph import Graph

MODES = ("settle", "events", "steps", "fuzz")


def _say(text: str) -> None:
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


def _convert(a: argparse.Namespace) -> int:
    from snnkit.certificate import verify
    from snnkit.converters import convert
    from snnkit.files import save
    from snnkit.report import certificate_text, describe_graph

    calibration = _read_array(a.calibration, "calibration data")
    _say(f"converting {a.model}")
    graph = convert(
        a.model,
        calibration,
        levels=a.levels,
        weight_bits=a.weight_bits,
        calibrator=a.calibrator,
        staircase=a.staircase,
        bias_correction=not a.no_bias_correction,
    )
    data: dict[str, Any] = {"output": a.output, **describe_graph(graph)}
    text = f"{data['neurons']:,} spiking neurons, {data['macs']:,} MACs dense"
    if a.verify:
        some = _first(calibration, a.verify)
        certificate = verify(graph, some, source=a.model)
        data["certificate"] = json.loads(certificate.to_json())
        text = f"{certificate_text(certificate)}\n{text}"
        if not certificate.passed:
            _print(a, data, text)
            _say("the conversion is not exact; nothing was written")
            return 4
    save(graph, a.output)
    _print(a, data, f"{text}\nwrote {a.output}")
    return 0


def _first(samples: Any, count: int) -> Any:
    if isinstance(samples, dict):
        return {k: v[:count] for k, v in samples.items()}
    return samples[:count]


def _verify(a: argparse.Namespace) -> int:
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


def _run(a: argparse.Namespace) -> int:
    from snnkit.backends import compile

    graph = _load(a.net)
    samples = _read_array(a.input, "input")
    program = compile(graph, a.backend)
    record = ("spike",) if a.record else ()
    result = program.run(samples, mode=a.mode, record=record, seed=a.seed)
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


def _stream(a: argparse.Namespace) -> int:
    from snnkit.backends import compile
    from snnkit.replay import replay, replay_text
    from snnkit.windows import sliding

    graph = _load(a.net)
    events = _read_array(a.events, "events")
    packets = sliding(events, window=a.window, every=a.every, unit=a.unit)
    found = replay(compile(graph, a.backend).stream(a.update), packets)
    _print(a, found.as_json(), replay_text(found))
    return 0


def _train(a: argparse.Namespace) -> int:
    from dataclasses import replace

    from snnkit.training import read_recipe, train

    recipe = read_recipe(a.recipe, a.set)
    recipe = replace(recipe, output=a.output or recipe.output)
    result = train(recipe, resume=a.resume, say=_say)
    if result.rank == 0:
        _print(a, result.as_json(), result.text())
    if not result.finished and result.rank == 0:
        _say("interrupted; go on with the same command and --resume")
    return 0 if result.finished else 130


def _info(a: argparse.Namespace) -> int:
    from snnkit.converters import examine
    from snnkit.files import from_bytes, is_ours, parse_model, read_bytes
    from snnkit.report import describe_graph, info_text

    content = read_bytes(a.model)
    if is_ours(parse_model(content, a.model)):
        info = describe_graph(from_bytes(content, a.model))
        _print(a, info, info_text(info))
        return 0
    info = describe_graph(examine(a.model))
    info["meta"] = {"source": info["meta"]["source"]}
    info["note"] = "a float model; ranges and bounds are those of a conversion with made-up data"
    _print(a, info, f"{info_text(info)}\nconvertible: {info['note']}")
    return 0


def _bench(a: argparse.Namespace) -> int:
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
        say=_say,
    )
    if a.json:
        print(json.dumps(report.json(), indent=2))
    else:
        print_report(report)
    return 0


def _doctor(a: argparse.Namespace) -> int:
    from snnkit.doctor import diagnose, doctor_text

    found = diagnose()
    _print(a, found, doctor_text(found))
    return 0 if found["ready"] else 5


def parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    main = argparse.ArgumentParser(
        prog="snnkit", description="Trained networks as spiking networks that compute the same."
    )
    commands = main.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run)
        sub.add_argument("--json", action="store_true", help="one JSON document on stdout")
        return sub

    c = command("convert", _convert, "convert a float ONNX model into a network of integers")
    c.add_argument("model", help="float ONNX file")
    c.add_argument("-o", "--output", required=True, help="net.onnx to write")
    c.add_argument("--calibration", required=True, help=".npy, or .npz by input name: real inputs")
    c.add_argument("--levels", type=int, default=255, help="steps of each activation, 1..255")
    c.add_argument("--weight-bits", type=int, default=8, help="2..8")
    c.add_argument("--calibrator", choices=("mse", "percentile", "minmax"), default="mse")
    c.add_argument("--staircase", choices=("auto", "uniform", "ladder"), default="auto")
    c.add_argument("--no-bias-correction", action="store_true")
    c.add_argument(
        "--verify", type=int, default=16, metavar="N", help="samples to prove it on; 0: none"
    )

    v = command("verify", _verify, "compare every neuron of every sample in every execution")
    v.add_argument("net", help="net.onnx")
    v.add_argument("--samples", required=True, help=".npy, or .npz by input name")
    v.add_argument("--labels", help=".npy with the class of each sample")
    v.add_argument("--source", help="the float ONNX model, to report the quantisation error")
    v.add_argument("--backend", action="append", help="numba (default), reference, ...; repeatable")
    v.add_argument("--mode", action="append", choices=MODES, help="repeatable; default all")
    v.add_argument("--seed", type=int, default=0, help="of mode fuzz")
    v.add_argument("-o", "--output", help="certificate to write (JSON)")

    r = command("run", _run, "run samples through a network")
    r.add_argument("net", help="net.onnx")
    r.add_argument("--input", required=True, help=".npy, or .npz by input name")
    r.add_argument("-o", "--output", help=".npy to write (.npz if there are several outputs)")
    r.add_argument("--backend", default="numba")
    r.add_argument("--mode", choices=MODES, default="settle")
    r.add_argument("--seed", type=int, default=0, help="of mode fuzz")
    r.add_argument("--record", help=".npz to write: the spike count of every neuron")

    t = command("stream", _stream, "replay events of a camera through a moving window")
    t.add_argument("net", help="net.onnx")
    t.add_argument("events", help=".npy: structured array with the fields t (us), x, y, p")
    t.add_argument("--window", type=int, required=True, help="length of the window")
    t.add_argument("--every", type=int, required=True, help="step of the window: one packet")
    t.add_argument("--unit", choices=("us", "events"), default="us", help="of window and every")
    t.add_argument("--backend", default="numba")
    t.add_argument("--update", choices=("auto", "incremental", "recompute"), default="auto")
    t = command("train", _train, "train a model as a recipe says")
    t.add_argument("recipe", help="TOML file; snnkit/training/recipe.py lists its keys")
    t.add_argument("--resume", action="store_true", help="go on from the output's last checkpoint")
    t.add_argument("--output", help="folder to write to, instead of the recipe's")
    t.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="over the recipe's, for example training.epochs=3; repeatable",
    )

    i = command("info", _info, "layers, neurons and bounds; or why a model cannot be converted")
    i.add_argument("model", help="float ONNX file or net.onnx")

    b = command("bench", _bench, "time per sample beside rivals, once equality is proved")
    b.add_argument("net", help="net.onnx")
    b.add_argument(
        "--against",
        action="append",
        choices=("onnxruntime", "torch", "spikingjelly", "sinabs"),
        help="repeatable; default onnxruntime: fp32 and int8 of the source, and net.onnx itself",
    )
    b.add_argument("--source", help="the float ONNX model, for the rivals that run it")
    b.add_argument("--input", help=".npy, or .npz by input name: real inputs to time")
    b.add_argument(
        "--density",
        type=float,
        nargs="+",
        help="shares of random input units that are events; default without --input: 0.005 to 1",
    )
    b.add_argument("--batch", type=int, nargs="+", default=[1, 32])
    b.add_argument("--threads", type=int, default=1)
    b.add_argument("--rounds", type=int, default=15, help="runs of each candidate, in turns")
    command("doctor", _doctor, "versions, backends, and what is missing")
    return main


def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes: 0 fine, 1 failed, 2 usage, 3 model or data not supported, 4 verification
    failed, 5 backend or dependency missing, 130 interrupted."""
    arguments = parser().parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except SnnkitError as error:
        return _fail(arguments, type(error).__name__, str(error), error.exit_code)
    except ModuleNotFoundError as error:
        missing = BackendMissing(f"{error}; run: pip install {error.name}")
        return _fail(arguments, "BackendMissing", str(missing), missing.exit_code)
    except KeyboardInterrupt:
        return _fail(arguments, "Interrupted", "interrupted", 130)
    except MemoryError:
        return _fail(arguments, "MemoryError", "out of memory; give fewer samples at once", 1)
    except OSError as error:
        return _fail(arguments, "OSError", str(error), 1)


def _fail(arguments: argparse.Namespace, kind: str, message: str, code: int) -> int:
    if arguments.json:
        print(json.dumps({"error": kind, "message": message, "exit_code": code}, indent=2))
    _say(f"snnkit {arguments.command}: {message}")
    return code


__all__ = ["main", "parser"]

if __name__ == "__main__":
    sys.exit(main())
