"""A network as a folder that runs where only numpy and lava-nc are installed, and checks itself."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import snnkit
from snnkit.backends.loihi.description import describe, problems
from snnkit.backends.loihi.environment import LAVA
from snnkit.backends.loihi.job import (
    HERE,
    PROCESS,
    WORKER,
    Task,
    describe_task,
    inputs,
    kept_nodes,
    npz,
)
from snnkit.boundary import (
    DTYPES,
    LENGTHS,
    as_inputs,
    counts_of,
    first_samples,
    read_out,
    tensor_axes,
)
from snnkit.errors import SnnkitError, UnsupportedByBackend, UsageError
from snnkit.fit import Fit, fit, fit_text
from snnkit.graph import Boundary, Graph
from snnkit.reference import dense

Array = npt.NDArray[Any]

FORMAT = 1
TARGETS = {"lava-cpu": "fused", "loihi2": "unit"}
"""How verify.py of a bundle runs it: one Lava process, or one per layer with unit spikes."""
GOLDEN = 10
"""Samples whose integers a bundle holds."""
SCRIPTS = HERE / "bundle"
README = """# {name}: a spiking network on Lava

Made by snnkit {version} for {target}. Network {digest}: {neurons:,} spiking neurons, 24-bit
membrane potentials, 8-bit weights.

```
python3.10 -m venv env && env/bin/pip install -r requirements.txt
env/bin/python verify.py            # files and golden integers; exit code 0, or 1
env/bin/python run.py input.npy -o output.npy
```

* `net.npz`, `network.json`: the integers and the structure; `boundary.npz`: scales of floats.
* `process/bif_process.py`: the neurons as Lava processes. Nothing else may lie in that folder:
  Lava executes every Python file it finds there.
* `worker/`, `supervise.py`: Lava in a process of its own, which is stopped when it hangs.
* `golden.npz`: {samples} samples with every spiking neuron's integers. With unit spikes the
  longest of them took {steps} time steps to come to rest.
* `manifest.json`: sha256 of every file.
{chip}"""
CHIP = """
This bundle was checked on Lava's CPU simulation. The public lava-nc has no models for the chip;
Intel's extension for members of INRC does, and there a microcode model of the neuron in
`process/bif_process.py` (state: charge and tracer; message: the tracer's change) has to be added.
No run on a chip has been made.
"""


def deploy(
    graph: Graph, target: str, folder: str | os.PathLike[str], samples: Any = None
) -> dict[str, Any]:
    """Write a bundle; a summary of it.

    Parameters
    ----------
    target : "lava-cpu" or "loihi2".
    folder : must not exist, or be an earlier bundle, which is replaced as a whole.
    samples : as for `Program.run`; the first ten become golden vectors. Default: random integers.

    Raises UsageError, UnsupportedByBackend with every node that does not fit, BadCalibration.
    """
    if target not in TARGETS:
        raise UsageError(f"target '{target}'; expected one of {', '.join(TARGETS)}")
    graph.check()
    report = fit(graph, target)
    found = [str(violation) for violation in report.violations]
    named = {violation.layer for violation in report.violations}
    # what the fit does not look at: sums between two populations, and the worker's own limits
    found += [f"node '{n}': {reason}" for n, reason in problems(graph) if n not in named]
    if found:
        lines = "\n".join(f"  {line}" for line in found)
        raise UnsupportedByBackend(f"target '{target}' cannot hold this graph:\n{lines}")
    place = Path(folder).absolute()
    if place.exists() and not (place / "manifest.json").is_file():
        raise UsageError(f"'{place}' exists and is no bundle; expected a new name")
    files, summary = _contents(graph, report, samples, place.name)
    _write(place, files)
    return {"output": str(folder), "files": len(files) + 2, **summary}


def _contents(
    graph: Graph, report: Fit, samples: Any, name: str
) -> tuple[dict[str, bytes], dict[str, Any]]:
    target = report.target.name
    given = random_samples(graph) if samples is None else first_samples(graph, samples, GOLDEN)
    x = as_inputs(graph, given)
    counts = counts_of(graph, x)
    values = dense(graph, counts)
    layers = graph.of("spike", "lif")
    task = Task(graph, counts, record=tuple(n.name for n in layers))
    summary: dict[str, Any] = {
        "target": target,
        "digest": graph.digest,
        "neurons": sum(n.units for n in layers),
        "samples": len(next(iter(counts.values()))),
        "time_steps": _time_steps(graph, x),
        "silent_layers": [n.name for n in layers if not values[n.name].any()],
    }
    sweeps, arrays = describe(graph, "0")
    files = {
        "network.json": _json(_network(graph, task, sweeps, summary["time_steps"])),
        "net.npz": npz(arrays),
        "boundary.npz": npz(_scales(graph)),
        "golden.npz": npz(_golden(graph, task, x, values)),
        "requirements.txt": f"{LAVA}\nnumpy<2\n".encode(),
        "supervise.py": (HERE / "supervise.py").read_bytes(),
    }
    for source, inside in ((SCRIPTS, ""), (WORKER, "worker/"), (PROCESS, "process/")):
        files.update({inside + p.name: p.read_bytes() for p in sorted(source.glob("*.py"))})
    files["README.md"] = README.format(
        name=name,
        version=snnkit.__version__,
        chip=CHIP if target == "loihi2" else "",
        steps=summary["time_steps"],
        **{key: summary[key] for key in ("target", "digest", "neurons", "samples")},
    ).encode()
    files["fit.json"] = _json(report.as_json())
    files["fit.txt"] = (fit_text(report) + "\n").encode()
    ids = {n.name: i for i, n in enumerate(graph.nodes)}
    manifest = {
        "format": FORMAT,
        "snnkit": snnkit.__version__,
        "network": TARGETS[target],
        "layers": {str(ids[n.name]): n.name for n in layers},
        "source": dict(graph.meta),
        **summary,
        "files": {key: hashlib.sha256(files[key]).hexdigest() for key in sorted(files)},
    }
    files["manifest.json"] = _json(manifest)
    noted = hashlib.sha256(files["manifest.json"]).hexdigest()
    return files, {**summary, "manifest_sha256": noted}


def random_samples(graph: Graph, seed: int = 0) -> dict[str, Array]:
    """Ten samples of random integers over half of the units, as floats in the model's layout."""
    rng = np.random.default_rng(seed)
    steps = graph.steps or 4
    found: dict[str, Array] = {}
    for b in graph.inputs:
        node = graph.node[b.node]
        lead = (GOLDEN,) if b.time is None else (GOLDEN, steps)
        q = rng.integers(node.lo, node.hi + 1, (*lead, *node.shape))
        q = q * (rng.random(q.shape) < 0.5)
        x = (q * b.scale + b.offset).transpose(tensor_axes(b, len(node.shape)))
        kind = np.dtype(DTYPES[b.dtype])
        if kind.kind in "iu":
            x = np.rint(x).clip(np.iinfo(kind).min, np.iinfo(kind).max)
        found[b.name] = x.astype(kind)
    if graph.lengths:
        found[graph.lengths] = rng.integers(1, steps + 1, GOLDEN).astype(np.int32)
    return found


def _time_steps(graph: Graph, x: Mapping[str, Array]) -> int:
    """Most time steps that a sample takes with unit spikes, over all its windows."""
    from snnkit.backends import compile

    return int(compile(graph).run(dict(x), mode="steps").steps.max())


def _network(
    graph: Graph, task: Task, sweeps: list[dict[str, Any]], time_steps: int
) -> dict[str, Any]:
    settings = describe_task(task, 0, 0)
    return {
        "sweeps": sweeps,
        "steps": graph.steps,
        "lengths": graph.lengths,
        "batch": settings["batch"],
        # of several windows only the sum is known
        "period": 0 if graph.sweeps else time_steps + 2,
        "kept": kept_nodes(Task(graph, task.counts)),
        "inputs": [_boundary(graph, b) for b in graph.inputs],
        "outputs": [_boundary(graph, b) for b in graph.outputs],
    }


def _boundary(graph: Graph, b: Boundary) -> dict[str, Any]:
    """axes: of an input, the transposition to [N, T, *shape]; of an output, that back."""
    node = graph.node[b.node]
    axes = tensor_axes(b, len(node.shape))
    taken = axes if node.op == "readout" else tuple(int(i) for i in np.argsort(axes))
    return {
        "name": b.name,
        "id": next(i for i, n in enumerate(graph.nodes) if n.name == b.node),
        "dtype": b.dtype,
        "dims": list(b.dims),
        "batch": b.batch,
        "axes": list(taken),
        "timed": b.time is not None,
        "direction": graph.direction(b.node),
        "shape": list(node.shape),
        "lo": node.lo,
        "hi": node.hi,
        "post": [dict(step) for step in b.post],
    }


def _scales(graph: Graph) -> dict[str, Array]:
    found = {}
    for b in (*graph.inputs, *graph.outputs):
        found[f"{b.name}.scale"], found[f"{b.name}.offset"] = b.scale, b.offset
    return found


def _golden(
    graph: Graph, task: Task, x: Mapping[str, Array], values: Mapping[str, Array]
) -> dict[str, Array]:
    found = {f"input.{name}": array for name, array in x.items()}
    for key, value in inputs(task, 0).items():
        if key != "0.lengths":
            found[f"count.{key[2:]}"] = value
    for i, n in enumerate(graph.nodes):
        if n.op in ("spike", "lif"):
            value = values[n.name].reshape(len(values[n.name]), -1, n.units)
            found[f"value.{i}"] = value.astype(np.int32)
    for b in graph.outputs:
        found[f"output.{b.name}"] = read_out(graph, b, values[b.node], task.counts.get(LENGTHS))
    return found


def _json(content: Any) -> bytes:
    return (json.dumps(content, indent=1, sort_keys=True) + "\n").encode()


def _write(place: Path, files: Mapping[str, bytes]) -> None:
    """All files, beside and then renamed; an earlier bundle goes once the new one is there."""
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{place.name}.", dir=place.parent))
    except OSError as error:
        raise SnnkitError(f"{place}: cannot be written: {error}") from error
    try:
        noted = hashlib.sha256(files["manifest.json"]).hexdigest() + "\n"
        for name, content in {**files, "manifest.sha256": noted.encode()}.items():
            (beside / name).parent.mkdir(exist_ok=True)
            (beside / name).write_bytes(content)
        os.chmod(beside, 0o755)
        old = beside.with_name(beside.name + ".old")
        if place.exists():
            place.rename(old)
        beside.rename(place)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise SnnkitError(f"{place}: cannot be written: {error}") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


__all__ = ["GOLDEN", "TARGETS", "deploy", "random_samples"]
