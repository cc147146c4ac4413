"""Graphs on Lava: the programs of the backend `loihi`."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from snnkit.backends import Result, Schedule, Stream, compile, finish, recorded
from snnkit.backends.loihi.description import MEMBRANE_BITS, problems
from snnkit.backends.loihi.environment import Environment, find
from snnkit.backends.loihi.job import Done, Task, counted, run_tasks
from snnkit.boundary import LENGTHS, input_counts
from snnkit.errors import UsageError
from snnkit.graph import Graph

Array = npt.NDArray[Any]

NETWORKS = ("fused", "layers")


class LoihiProgram:
    """A graph on Lava's CPU simulation, in a worker process of its own.

    limits : seconds, as `snnkit.backends.loihi.supervise.run_job`: start, heartbeat, total.
    seconds : what the last run spent on importing Lava, building networks and running them.
    """

    modes = ("settle", "steps")

    def __init__(
        self,
        graph: Graph,
        environment: Environment,
        limits: Mapping[str, float],
        bits: int = MEMBRANE_BITS,
    ):
        self.bits = bits
        self.graph, self.environment, self.limits = graph, environment, dict(limits)
        self.seconds: Mapping[str, float] = {}

    def run(
        self,
        x: Any,
        *,
        mode: str = "settle",
        record: Sequence[str] = (),
        seed: int = 0,
        delay: int = 1,
        phase: int = 0,
        carry: bool = False,
        network: str | None = None,
    ) -> Result:
        """As `snnkit.backends.Program.run`, in mode settle or steps.

        network : "fused", one Lava process that holds the whole window (mode settle only), or
        "layers", one process per layer with a connection between two of them: unit spikes in mode
        steps, graded spikes in mode settle. Default: fused for settle, layers for steps.

        In a network of layers `synops` has the synapses that read a layer directly.
        """
        task = self.task(
            x, mode=mode, record=record, delay=delay, phase=phase, carry=carry, network=network
        )
        return self.run_many([task])[0]

    def task(
        self,
        x: Any,
        *,
        mode: str = "settle",
        record: Sequence[str] = (),
        delay: int = 1,
        phase: int = 0,
        carry: bool = False,
        network: str | None = None,
    ) -> Task:
        """A run to be done later, with others, by `run_many`; arguments as for `run`."""
        schedule = Schedule(mode, 0, delay, phase)
        unit = mode == "steps"
        chosen = network or ("layers" if unit else "fused")
        if mode not in self.modes:
            raise UsageError(
                f"mode '{mode}' on Lava, whose time steps are synchronous; expected settle or steps"
            )
        if chosen not in NETWORKS or (unit and chosen == "fused"):
            raise UsageError(
                f"network {network!r} in mode {mode}; expected layers"
                + ("" if unit else " or fused")
            )
        how = "fused" if chosen == "fused" else "unit" if unit else "graded"
        delay, phase = (schedule.delay, schedule.phase) if unit else (1, 0)
        counts, names = input_counts(self.graph, x), recorded(self.graph, record)
        period = 0
        if unit and not self.graph.sweeps:
            # how long it takes is known beforehand, as it has to be on a chip; Lava checks it
            engine = compile(self.graph, "numba")
            period = 2 + int(engine.run(x, mode=mode, delay=delay, phase=phase).steps.max())
        return Task(
            self.graph, counts, how, names, delay, phase, carry, period=period, bits=self.bits
        )

    def raster(self, x: Any, *, delay: int = 1, phase: int = 0) -> Mapping[str, Array]:
        """Spikes of every neuron in every time step of a network of layers with unit spikes.

        By spike node, [N, time steps, *shape] int64; one-shot graphs. Time step 0 is the one in
        which the input is given, so neurons fire from time step 1 on.
        """
        if self.graph.sweeps:
            raise UsageError("raster: this network has steps of its own; expected a one-shot one")
        task = replace(self.task(x, mode="steps", delay=delay, phase=phase), raster=True)
        (done,), self.seconds = run_tasks([task], self.environment, self.limits)
        return {
            name: found.astype(np.int64).reshape(*found.shape[:2], *self.graph.node[name].shape)
            for name, found in done.raster.items()
        }

    def stream(self, update: str = "auto") -> Stream:
        """Refused: raises UsageError."""
        raise UsageError(
            "stream: each packet would start Lava anew, which takes seconds; expected backend "
            "'numba', whose stream has the same readout bit for bit"
        )

    def run_many(self, tasks: Sequence[Task]) -> list[Result]:
        """Several runs (of any graphs) in one worker, which starts once."""
        start = time.perf_counter()
        found, self.seconds = run_tasks(tasks, self.environment, self.limits)
        seconds = time.perf_counter() - start
        return [result(t, done, seconds) for t, done in zip(tasks, found, strict=True)]


def result(task: Task, done: Done, seconds: float) -> Result:
    """A Result from what the worker gave."""
    graph = task.graph
    values: dict[str, Array] = {}
    for name, found in done.values.items():
        directed = graph.direction(name) != 0
        lead = found.shape[:2] if directed else found.shape[:1]
        values[name] = found.reshape(*lead, *graph.node[name].shape).astype(np.int64)
    values.update({n.name: task.counts[n.name] for n in graph.of("input")})
    some = counted(graph, task.how)
    return Result(
        outputs=finish(graph, values, task.counts.get(LENGTHS)),
        counts={name: values[name] for name in task.record},
        spikes={n.name: done.tally[n.name][:, :2] for n in graph.of("spike", "lif")},
        synops={
            n.name: done.tally[n.name][:, 2] for n in graph.of("conv", "linear") if some[n.name]
        },
        steps=done.steps if task.how == "unit" else np.zeros_like(done.steps),
        seconds=seconds,
        backend="loihi" if task.bits == MEMBRANE_BITS else "lava",
        digest=graph.digest,
    )


class LoihiBackend:
    """Execution on Lava's CPU simulation, within a chip's 24 bits."""

    name = "loihi"
    bits = MEMBRANE_BITS

    def __init__(self, environment: Environment):
        self.environment = environment

    def unsupported(self, graph: Graph) -> list[tuple[str, str]]:
        """What does not fit the width of membrane potentials, and too many synapses."""
        return problems(graph, self.bits)

    def compile(self, graph: Graph, **limits: float) -> LoihiProgram:
        """limits : as `supervise.run_job`."""
        graph.check()
        return LoihiProgram(graph, self.environment, limits, self.bits)


def backend() -> LoihiBackend:
    """Raises BackendMissing where no interpreter with Lava is found."""
    return LoihiBackend(find())
