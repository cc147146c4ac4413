"""A job folder: networks and inputs of any number of runs, and their results.

Starting Lava takes seconds, so one job holds many runs: `Task`s, each a graph with its inputs and
the way to execute it.
"""

from __future__ import annotations

import io
import json
import shutil
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from snnkit.backends.loihi.description import MEMBRANE_BITS, MOST_TIME_STEPS, PROCESSES, describe
from snnkit.backends.loihi.environment import Environment
from snnkit.backends.loihi.supervise import WorkerFailed, read_results, run_job
from snnkit.boundary import LENGTHS, count_steps
from snnkit.errors import SnnkitError, UsageError
from snnkit.graph import Graph

Array = npt.NDArray[Any]

FORMAT = 1
HERE = Path(__file__).parent
WORKER, PROCESS = HERE / "worker", HERE / "process"
BATCH_UNITS = 2**21
"""Integers that a fused window holds at once."""
REMEDIES = {
    "timeout": "give it more time (`limits`), or fewer samples",
    "died": "the machine may be out of memory: give fewer samples",
    "disk": "free space in the folder for temporary files (TMPDIR)",
}


class LavaFailed(SnnkitError, RuntimeError):
    """A run on Lava that came to nothing. kind : as `supervise.WorkerFailed`."""

    def __init__(self, kind: str, message: str):
        self.kind = kind
        super().__init__(message)


@dataclass(frozen=True)
class Task:
    """One run. how : "fused", "unit" or "graded"; counts : values of the input nodes; record :
    names of nodes whose values to keep; raster : spikes of every time step, one-shot graphs;
    period : time steps of a window to begin with ("unit"; where they are too few, the worker takes
    more), or 0; bits : width of membrane potentials."""

    graph: Graph
    counts: Mapping[str, Array]
    how: str = "fused"
    record: Sequence[str] = ()
    delay: int = 1
    phase: int = 0
    carry: bool = False
    raster: bool = False
    period: int = 0
    bits: int = MEMBRANE_BITS


@dataclass(frozen=True)
class Done:
    """What a task gave. values : [N, T, units] by node (T 1 where a node has no steps); tally :
    [N, 3] by node: spikes up, spikes down, synaptic operations; steps : [N]; raster : [N, time
    steps, units] by node."""

    values: Mapping[str, Array]
    tally: Mapping[str, Array]
    steps: Array
    raster: Mapping[str, Array] = field(default_factory=dict)


def run_tasks(
    tasks: Sequence[Task],
    environment: Environment,
    limits: Mapping[str, float] | None = None,
    process: Path = PROCESS,
) -> tuple[list[Done], dict[str, float]]:
    """Run the tasks one after the other in one worker; their results, and seconds spent.

    process : the folder of bif_process.py. limits : as `supervise.run_job`. Raises LavaFailed.
    """
    folder = Path(tempfile.mkdtemp(prefix="snnkit-lava-"))
    try:
        try:
            write_job(folder, tasks)
            seconds = run_job(environment.executable, folder, WORKER, process, **limits or {})
            found = read_results(folder)
            return [read_task(found, i, task) for i, task in enumerate(tasks)], seconds
        except WorkerFailed as error:
            remedy = REMEDIES.get(error.kind)
            text = f"Lava ({error.kind}): {error}" + (f"; {remedy}" if remedy else "")
            raise LavaFailed(error.kind, text) from error
        except OSError as error:
            text = f"Lava (disk): {folder}: {error}; {REMEDIES['disk']}"
            raise LavaFailed("disk", text) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_job(folder: Path, tasks: Sequence[Task]) -> None:
    """job.json, net.npz and in.npz of the tasks, each graph once."""
    networks: list[Any] = []
    arrays: dict[str, Array] = {}
    given: dict[str, Array] = {}
    described = []
    known: dict[int, int] = {}
    for i, task in enumerate(tasks):
        if id(task.graph) not in known:
            known[id(task.graph)] = len(known)
            sweeps, found = describe(task.graph, str(known[id(task.graph)]))
            networks.append(sweeps)
            arrays.update(found)
        described.append(describe_task(task, i, known[id(task.graph)]))
        given.update(inputs(task, i))
    (folder / "net.npz").write_bytes(npz(arrays))
    (folder / "in.npz").write_bytes(npz(given))
    description = {"format": FORMAT, "networks": networks, "tasks": described}
    (folder / "job.json").write_text(json.dumps(description))


def npz(arrays: Mapping[str, Array]) -> bytes:
    """Arrays by name, without a clock: the same arrays give the same bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for name, array in arrays.items():
            entry = zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0))
            with archive.open(entry, "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.asarray(array), allow_pickle=False)
    return buffer.getvalue()


def describe_task(task: Task, number: int, network: int) -> dict[str, Any]:
    """What the worker has to know of a task beside its arrays."""
    graph = task.graph
    steps = count_steps(graph, task.counts) if graph.sweeps else 1
    samples = len(next(iter(task.counts.values())))
    if samples * steps * 64 > MOST_TIME_STEPS:
        raise UsageError(f"{samples} samples of {steps} steps; expected fewer at once")
    units = sum(n.units for n in graph.nodes)
    return {
        "name": str(number),
        "network": network,
        "samples": samples,
        "steps": steps,
        "how": task.how,
        "delay": task.delay,
        "phase": task.phase,
        "carry": task.carry,
        "raster": task.raster,
        "period": task.period,
        "bits": task.bits,
        "batch": max(1, min(64, BATCH_UNITS // units)),
        "keep": kept_nodes(task),
    }


def kept_nodes(task: Task) -> list[int]:
    """Numbers of the nodes whose values are kept: asked for, outputs, or read by a later sweep."""
    graph = task.graph
    names = {*task.record, *(b.node for b in graph.outputs)}
    for n in graph.nodes:
        names.update(s for s in n.inputs if graph.sweep_of[s] != graph.sweep_of[n.name])
    return [i for i, n in enumerate(graph.nodes) if n.name in names and n.op != "input"]


def inputs(task: Task, number: int) -> dict[str, Array]:
    """Values of the input nodes, [N, T or 1, units] int16, and the samples' lengths."""
    graph = task.graph
    found = {}
    for i, n in enumerate(graph.nodes):
        if n.op == "input":
            value = task.counts[n.name]
            steps = value.shape[1] if graph.direction(n.name) else 1
            found[f"{number}.{i}"] = value.reshape(len(value), steps, n.units).astype(np.int16)
    if graph.lengths:
        found[f"{number}.lengths"] = task.counts[LENGTHS]
    return found


def counted(graph: Graph, how: str) -> dict[str, bool]:
    """The nodes whose spikes or synaptic operations a run counts. In a network of layers those of
    synapses that read a layer itself: what lies between two linear nodes is not there."""
    found = {n.name: True for n in graph.of("spike", "lif")}
    for n in graph.of("conv", "linear"):
        source = graph.node[n.inputs[0]]
        inside = graph.sweep_of[source.name] == graph.sweep_of[n.name]
        found[n.name] = how == "fused" or source.op in PROCESSES or not inside
    return found


def read_task(found: Mapping[str, Array], number: int, task: Task) -> Done:
    """The results of a task among those of its job."""
    graph = task.graph

    def load(what: str) -> Array:
        return found[f"{number}.{what}"]

    kept = set(kept_nodes(task))
    values = {n.name: load(f"value.{i}") for i, n in enumerate(graph.nodes) if i in kept}
    some = counted(graph, task.how)
    tallied = [(i, n) for i, n in enumerate(graph.nodes) if some.get(n.name)]
    raster = {}
    if task.raster:
        neurons = [(i, n) for i, n in enumerate(graph.nodes) if n.op in ("spike", "lif")]
        raster = {n.name: load(f"raster.{i}") for i, n in neurons}
    return Done(values, {n.name: load(f"tally.{i}") for i, n in tallied}, load("steps"), raster)
