"""How a backend presents itself, and how it is found.

A backend says what it cannot run, with a reason, before it compiles; it compiles a graph into a
program; a program runs samples. It never imports what the graph does not need, and a backend
that is not installed is an error with the install line, not a silent other choice.

Third parties add a backend with an entry point in the group `snnkit.backends` that names a
function without arguments which returns a `Backend`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from snnkit.encodings import ENCODINGS, MOST_LEVELS, arrivals
from snnkit.errors import BackendMissing, UnsupportedByBackend, UsageError
from snnkit.graph import Graph

MODES = ("settle", "events", "steps", "fuzz")

BUILT_IN = {
    "numba": "snnkit.backends.numba_cpu",
    "loihi": "snnkit.backends.loihi",
    "lava": "snnkit.backends.loihi.simulation",
    "reference": "snnkit.reference",
}
INSTALL = {
    "numba": "pip install numba",
    "loihi": "snnkit lava-env create",
    "lava": "snnkit lava-env create",
}


@dataclass(frozen=True)
class Schedule:
    """In which order the events of one presentation happen. The final state never depends on it.

    mode :
    - settle : topological order, graded spikes, every neuron evaluated once: sum |S| is minimal.
    - events : unit spikes; the first layer (in topological order) that has a neuron able to fire
      goes next, one spike per such neuron.
    - steps : synchronous; in a step every neuron able to fire does so once. Ends by itself.
    - fuzz : random order, random subsets, delayed deliveries; drawn from `seed`.
    delay : steps only. 1: a spike arrives one step later (as on chips); 0: in the same step.
    phase : steps only. Layer l (counted from 0) may fire from step phase * l on.
    encoding, over : steps and events only. How the model's inputs arrive within a window
      (`snnkit.encodings`): s-analog, rate (over so many steps) or bit-serial. In mode events the
      network settles after each part. What latches and other sweeps hand on arrives at once.
    """

    mode: str = "settle"
    seed: int = 0
    delay: int = 1
    phase: int = 0
    encoding: str = ENCODINGS[0]
    over: int = MOST_LEVELS

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise UsageError(f"mode {self.mode!r}; expected one of {', '.join(MODES)}")
        if self.delay not in (0, 1) or self.phase < 0 or self.seed < 0:
            raise UsageError(f"{self}; expected delay 0 or 1, phase >= 0, seed >= 0")
        if self.encoding not in ENCODINGS or not 1 <= self.over <= MOST_LEVELS:
            raise UsageError(
                f"encoding {self.encoding!r} over {self.over} steps; expected one of "
                f"{', '.join(ENCODINGS)}, over 1 to {MOST_LEVELS}"
            )
        if self.encoding != ENCODINGS[0] and self.mode not in ("events", "steps"):
            raise UsageError(
                f"encoding {self.encoding!r} in mode {self.mode}, in which all input is there "
                "from the start; expected mode events or steps"
            )

    @property
    def arrivals(self) -> int:
        """In how many steps of a window its input arrives."""
        return arrivals(self.encoding, self.over)


@dataclass(frozen=True, eq=False)
class Result:
    """What one run gave.

    outputs : by output name, [N, ...] float, the same bits as onnxruntime on the file, except
    behind Softmax and LogSoftmax, whose float arithmetic differs (compare `counts` there).
    counts : by node name, [N, *shape] int64, for every node that was asked for; in a step graph
    [N, T, *shape] for the nodes of sweeps with a direction.
    spikes : by spike and lif node, [N, 2] int64: unit spikes fired, +1 and -1 (a graded spike of
    size k counts k). synops : by conv and linear node, [N] int64: messages times synapses they
    crossed. Both are sums over the steps of a step graph.
    steps : [N] int64, the last step in which a neuron moved (mode steps), else 0. In a step graph,
    the sum over its windows: these are the steps in which a window settles, not its T.
    seconds : wall time, quantisation of the input included, compilation not.
    """

    outputs: Mapping[str, npt.NDArray[Any]]
    counts: Mapping[str, npt.NDArray[np.int64]]
    spikes: Mapping[str, npt.NDArray[np.int64]]
    synops: Mapping[str, npt.NDArray[np.int64]]
    steps: npt.NDArray[np.int64]
    seconds: float
    backend: str
    digest: str


class Stream(Protocol):
    """One sample whose input changes by packets, with state.

    Law: after every packet `readout()` equals, bit for bit, the outputs of `Program.run` on the
    accumulated input, and every node's count equals its dense reading, however the stream gets
    there (by differences, or by computing the window anew).

    A step graph's packet is one element of a sequence, one step; its state stays. Law: after
    element t `readout()` equals, bit for bit, the outputs of `Program.run` on the first t + 1
    elements, of those with a time axis the last element, [1, 1, ...] in the model's layout; the
    counts equal that run's at step t. Nodes behind the sequence (sweeps of direction 0) are
    computed on the element pushed last.

    path : how it updates incrementally: "avx512", "avx2", "generic" or "reference" (step graphs),
    or "recompute" where it cannot.
    why_recompute : (node, reason) for every node that keeps it from incremental updates.
    packets, recomputed : packets pushed since the last reset, and how many of them were computed
    anew: of a step graph, whose windows started at rest, as the first one's does.
    """

    path: str
    why_recompute: tuple[tuple[str, str], ...]
    packets: int
    recomputed: int

    def push(self, events: Any = None, leaving: Any = None, *, frame: Any = None) -> None:
        """Change the input by one packet, and update the network.

        events, leaving : structured arrays with the integer fields t (us), x, y, p (0 or 1), each
        sorted by t: the count of each one's unit goes up, or down. The input has the shape
        (1 or 2, height, width): a channel per polarity, or one for both. Counts are as wide as
        needed; the input's own type and range saturate.
        frame : instead of events, a whole new float input [*shape] (or a mapping by input name),
        quantised as `Program.run` does; only what differs from the last one is injected.

        A step graph takes one element: events (none leave) or a frame for the inputs with a time
        axis; with the first element also, by name, what the inputs without one are for the whole
        sequence. A network without timed inputs takes a step by `push()`. Lengths are not given:
        the sequence is as long as what was pushed.

        Raises BadEvents, UsageError or BadCalibration (more elements than the network's bounds are
        proved for); the state is then as before.
        """

    def readout(self) -> Mapping[str, npt.NDArray[Any]]:
        """Outputs by name, [1, ...], as in `Result.outputs`. Of a step graph, raises UsageError
        before the first element; so does `counts`."""

    def counts(self, names: Sequence[str] = ("spike",)) -> Mapping[str, npt.NDArray[np.int64]]:
        """Values of nodes, [1, *shape]; `names` as `record` of `Program.run`."""

    def reset(self) -> None:
        """Back to the zero input; a step graph begins a new sequence."""


class Program(Protocol):
    """A graph made ready to run.

    A program that does not offer every mode has an attribute `modes` that names those it does.
    """

    graph: Graph

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
    ) -> Result:
        """Present samples x, [N, *shape] or a mapping by input name. `record` names nodes whose
        values to keep, or is ("spike",) / ("all",) for all spiking nodes / all nodes.

        In a step graph every window settles in the given mode. carry False: each window starts at
        rest. True: tracers and charges are kept from step to step, and only the differences of
        inputs and latches are injected. encoding, over : as in `Schedule`. The integers are the
        same, the work differs."""

    def stream(self, update: str = "auto") -> Stream:
        """A new stream at the zero input. `update`: "auto" chooses packet by packet between
        incremental updates and computing the window anew, by what costs less; "incremental" and
        "recompute" force one of them: in a step graph windows that carry on, as with `carry` of
        `run`, or start at rest. Raises UsageError where that is not possible, and, with every node
        and reason, for a network in which an element needs later ones."""


class Backend(Protocol):
    """Turns graphs into programs."""

    name: str

    def unsupported(self, graph: Graph) -> list[tuple[str, str]]:
        """(node, reason) for everything that this backend cannot run."""

    def compile(self, graph: Graph) -> Program:
        """A program for a graph without unsupported nodes."""


def available() -> dict[str, str]:
    """Names of the backends known here and where they come from."""
    found = {p.name: p.value for p in entry_points(group="snnkit.backends")}
    return {**found, **BUILT_IN}


def get(name: str) -> Backend:
    """The backend of that name. Raises UsageError if unknown, BackendMissing if not installed."""
    if name in BUILT_IN:
        try:
            backend: Backend = import_module(BUILT_IN[name]).backend()
        except ImportError as error:
            raise BackendMissing(
                f"backend '{name}' is not installed ({error}); run: "
                f"{INSTALL.get(name, 'pip install snnkit')}"
            ) from error
        return backend
    for point in entry_points(group="snnkit.backends"):
        if point.name == name:
            plugin: Backend = point.load()()
            return plugin
    raise UsageError(f"backend '{name}'; expected one of {', '.join(sorted(available()))}")


def compile(graph: Graph, backend: str = "numba") -> Program:
    """A program that runs `graph` on the named backend.

    Raises UnsupportedByBackend, with every node and reason, if the backend cannot run it.
    """
    chosen = get(backend)
    problems = chosen.unsupported(graph)
    if problems:
        lines = "\n".join(f"  node '{node}': {reason}" for node, reason in problems)
        raise UnsupportedByBackend(f"backend '{backend}' cannot run this graph:\n{lines}")
    return chosen.compile(graph)


def recorded(graph: Graph, record: Sequence[str]) -> tuple[str, ...]:
    """The node names meant by `record`. Raises UsageError for a name that is not there."""
    if tuple(record) == ("all",):
        return tuple(n.name for n in graph.nodes)
    if tuple(record) == ("spike",):
        return tuple(n.name for n in graph.of("spike", "lif"))
    unknown = [name for name in record if name not in graph.node]
    if unknown:
        raise UsageError(f"record: no node '{unknown[0]}'; expected names of nodes, spike or all")
    return tuple(record)


def finish(
    graph: Graph,
    readouts: Mapping[str, npt.NDArray[np.int64]],
    lengths: npt.NDArray[np.int64] | None = None,
) -> Mapping[str, npt.NDArray[Any]]:
    """Float outputs by name from the integer values of the readout nodes."""
    from snnkit.boundary import read_out

    return MappingProxyType(
        {b.name: read_out(graph, b, readouts[b.node], lengths) for b in graph.outputs}
    )
