"""A graph on the vector kernels where they cover it, else on the general engine."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy.typing as npt

from snnkit.backends import Result, Schedule, Stream, recorded
from snnkit.backends.elements import ElementStream
from snnkit.backends.numba_cpu.elements import ElementEngine
from snnkit.backends.numba_cpu.fast import GENERIC, FastEngine, choose
from snnkit.backends.numba_cpu.general import GeneralEngine
from snnkit.backends.numba_cpu.layout import KINDS, state_sizes
from snnkit.backends.numba_cpu.stream import StreamPlan, VectorStream
from snnkit.backends.streaming import RecomputeStream, check_update
from snnkit.boundary import as_inputs
from snnkit.errors import UsageError
from snnkit.graph import Graph
from snnkit.sweeps import by_elements

Array = npt.NDArray[Any]

STATE_LIMIT = 2**31
"""Places in the state are 32-bit indices."""


class NumbaProgram:
    """A graph made ready. Any number of threads may call `run` and `infer`.

    path : what mode settle runs on: "avx512", "avx2", or "generic", the engine of all other modes.
    why_generic : (node, reason) for every node that keeps the graph from the vector kernels.
    """

    def __init__(self, graph: Graph, path: str | None = None):
        """path : as the environment variable SNNKIT_CPU_PATH: auto, avx512, avx2 or generic."""
        self.graph = graph
        self.isa = choose(path)
        self.why_generic = () if self.isa is None else tuple(_without_vector_kernels(graph))
        fast = None
        if self.isa is not None and not self.why_generic:
            fast = FastEngine(graph, self.isa)
        if fast is not None and fast.problems:
            self.why_generic, fast = tuple(fast.problems), None
        self.fast = fast
        self.path = GENERIC if fast is None else fast.isa.name
        if fast is None:
            self.general.compile()

    @cached_property
    def general(self) -> GeneralEngine:
        """The engine of all modes; the vector kernels do without."""
        return GeneralEngine(self.graph)

    @property
    def memory(self) -> Mapping[str, int]:
        """Bytes: `weights`, once per program; `sample`, once per sample in flight, one a thread."""
        engine = self.general if self.fast is None else self.fast
        return {"weights": engine.weight_bytes, "sample": engine.work_bytes}

    def infer(self, x: Any, threads: int = 1) -> Mapping[str, Array]:
        """Outputs by name, nothing else: the least time from floats to floats.

        Mode settle without counts and tallies. Float32 arrays in C order are read where they lie
        and are not looked at for NaN.
        """
        if self.fast is None:
            return self.run(x, threads=threads).outputs
        return self.fast.infer(x, threads)

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
        encoding: str = "s-analog",
        over: int = 255,
        threads: int | None = None,
    ) -> Result:
        """As `snnkit.backends.Program.run`, on `threads` threads (default: one per CPU).

        Result.seconds is the time from checked inputs to integers, quantisation included. Mode
        fuzz draws the same random schedule for every sample, from `seed`.
        """
        schedule = Schedule(mode, seed, delay, phase, encoding, over)
        names = recorded(self.graph, record)
        if threads is not None and threads < 1:
            raise UsageError(f"threads {threads}; expected at least 1")
        inputs = as_inputs(self.graph, x)
        if self.fast is not None and schedule.mode == "settle":
            return self.fast.result(inputs, names, threads or os.cpu_count() or 1)
        return self.general.run(inputs, names, schedule, carry, threads)

    def stream(self, update: str = "auto") -> Stream:
        """As `snnkit.backends.Program.stream`."""
        check_update(self.graph, update)
        if self.graph.sweeps:
            return ElementStream(self.graph, ElementEngine(self.by_elements, update))
        if self.stream_plan is not None and not self.stream_plan.problems:
            return VectorStream(self, self.stream_plan, update)
        why = list(self.why_generic) or [("", "path generic has no incremental kernels")]
        if self.stream_plan is not None:
            why = self.stream_plan.problems
        if update == "incremental":
            text = "; ".join(f"node '{node}': {reason}" for node, reason in why)
            raise UsageError(f"update 'incremental' is not possible: {text}")
        return RecomputeStream(self, why)

    @cached_property
    def by_elements(self) -> GeneralEngine:
        """What all streams of a step graph share."""
        regrouped = by_elements(self.graph)
        same = regrouped.nodes == self.graph.nodes and regrouped.sweeps == self.graph.sweeps
        return self.general if same else GeneralEngine(regrouped)

    @cached_property
    def stream_plan(self) -> StreamPlan | None:
        """What all streams of this program share; None without vector instructions or kernels."""
        if self.isa is None or _without_vector_kernels(self.graph):
            return None
        return StreamPlan(self.graph, self.isa)


def _without_vector_kernels(graph: Graph) -> list[tuple[str, str]]:
    """(node, reason) for what the vector kernels do not know at all."""
    once = "it runs once per step; the vector kernels run once"
    timed = [(n.name, once) for nodes, direction in graph.parts if direction for n in nodes]
    behind = "its batch axis is not the first; the vector kernels read samples one after the other"
    turned = [(b.node, behind) for b in (*graph.inputs, *graph.outputs) if b.batch]
    return timed[:1] + turned + [(n.name, "op 'product'") for n in graph.of("product")]


class NumbaBackend:
    """Event-driven execution on the CPU, in as many threads as there are CPUs."""

    name = "numba"

    def unsupported(self, graph: Graph) -> list[tuple[str, str]]:
        """Ops without a kernel, and a state too large for 32-bit indices."""
        found = [(n.name, f"op '{n.op}'") for n in graph.nodes if n.op not in KINDS]
        size = 0
        for node in graph.nodes:
            size += sum(state_sizes(node, graph))
            if size >= STATE_LIMIT:
                found.append((node.name, f"the state up to here has {size} units; at most 2^31"))
                break
        return found

    def compile(self, graph: Graph, path: str | None = None) -> NumbaProgram:
        graph.check()
        return NumbaProgram(graph, path)


def backend() -> NumbaBackend:
    return NumbaBackend()
