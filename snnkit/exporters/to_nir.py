"""A graph as a NIR file (Pedersen et al., Nature Communications 15, 8122, 2024).

What NIR can say is written as such: synapses with integer weights, pooling, and

* lif nodes as LIF or IF with a hard reset, by the equations of `snnkit.converters.nir_time`;
* spike nodes of one level without a memory as Threshold;
* accumulators as I.

What it cannot say is marked in the metadata and told to whoever exports (`write` returns the
lines): a soft reset, potentials that round, neurons that start elsewhere than at rest, and bipolar
neurons of several levels, which become IF with their staircase in the metadata. The file's input
are the integers behind the input's quantiser, its output the integers of the readout.
"""

from __future__ import annotations

import io
import os
from typing import Any

import numpy as np

import snnkit
from snnkit.converters.activations import Floats
from snnkit.converters.frames import Refusal
from snnkit.converters.from_nir import require_nir
from snnkit.converters.nir_time import DT
from snnkit.errors import Problem, UnsupportedModel
from snnkit.exporters.nir_nodes import (
    flattened,
    integrator,
    lif,
    pooled,
    spike,
    synapses,
)
from snnkit.files import write_beside
from snnkit.graph import Boundary, Graph, Node
from snnkit.ops.arithmetic import multiplier

SYNAPSES = ("conv", "linear")


def write(graph: Graph, path: str | os.PathLike[str]) -> list[str]:
    """Write `graph` to the NIR file `path`. Returns what the file cannot say, a line each.

    Raises UnsupportedModel with every node that NIR has no word for, and BackendMissing.
    """
    nir = require_nir()
    writer = _Writer(graph, nir)
    found = writer.network()
    buffer = io.BytesIO()
    nir.write(buffer, found)
    write_beside(path, buffer.getvalue())
    return writer.lines


def step_of(graph: Graph) -> float:
    """Seconds per step: what the graph says, else 1e-4, or 1 where nothing leaks."""
    if "dt" in graph.meta:
        return float(graph.meta["dt"])
    leaks = [n for n in graph.of("lif") if (n.params["leak"] < 2 ** n.attrs["shift"]).any()]
    return DT if leaks else 1.0


class _Writer:
    """NIR nodes and edges made so far, and what has to be told."""

    def __init__(self, graph: Graph, nir: Any):
        self.graph, self.nir, self.dt = graph, nir, step_of(graph)
        self.nodes: dict[str, Any] = {}
        self.edges: dict[tuple[str, str], None] = {}
        self.names: dict[str, str] = {}
        self.told: dict[str, list[str]] = {}
        self.exact = True
        self.lines: list[str] = []
        self.problems: list[Problem] = []
        self.latches = {source: latch for latch, source in graph.latches.items()}

    def network(self) -> Any:
        for node in self.graph.nodes:
            if self.graph.direction(node.name) < 0:
                self.refuse(node, "it runs backwards in time", "export forward sweeps")
                continue
            try:
                self._write(node)
            except Refusal as refusal:
                self.refuse(node, refusal.reason, refusal.remedy)
        if self.problems:
            raise UnsupportedModel(self.problems)
        if self.graph.lengths:
            self.tell("its samples have lengths of their own", self.graph.lengths, False)
        self.lines = [f"{what}: {', '.join(where)}" for what, where in self.told.items()]
        meta = {"snnkit": snnkit.__version__, "dt": self.dt, "steps": self.graph.steps}
        meta |= {"digest": self.graph.digest, "exact": int(self.exact)}
        meta |= {"notes": "\n".join(self.lines)} if self.lines else {}
        arguments = (self.nodes, list(self.edges), meta)
        try:
            return self.nir.NIRGraph(*arguments)
        except ValueError as error:  # its check takes kernels for square and groups for one
            self.lines.append(f"nir.read takes the file with type_check=False only ({error})")
            return self.nir.NIRGraph(*arguments, type_check=False)

    def refuse(self, node: Node, reason: str, remedy: str) -> None:
        problem = Problem(node.name, node.op, reason, remedy)
        self.problems += [problem] if problem not in self.problems else []

    def tell(self, what: str, node: str, exact: bool = True) -> None:
        """Something to know about `node`; not `exact`: what runs elsewhere is not the same."""
        self.exact &= exact
        self.told.setdefault(what, []).append(node)

    def place(self, name: str, node: Any) -> str:
        """Put a NIR node under a name that HDF5 can hold; the graph's own is in its metadata."""
        plain = name.replace("/", "_") or "_"
        unique, i = plain, 1
        while unique in self.nodes or set(unique) == {"."}:
            i += 1
            unique = f"{plain}_{i}"
        if unique != name:
            node.metadata["node"] = name
        self.nodes[unique] = node
        return unique

    def _write(self, node: Node) -> None:
        graph, op = self.graph, node.op
        if op in (*SYNAPSES, "latch") or (op == "add" and node.name not in self.latches):
            if op == "latch" and not self._accumulates(graph.latches[node.name]):
                raise Refusal("recurrence through a latch", "export feed-forward networks")
            return  # written where they are read
        if op == "input":
            made = self.nir.Input(np.array(node.shape))
            self._input(next(b for b in graph.inputs if b.node == node.name), node, made)
        elif op == "readout":
            self._readout(next(b for b in graph.outputs if b.node == node.name), node)
        elif op == "add":
            self._neuron(node, integrator(self.nir, node, self.dt), None)
        elif op == "sum_pool":
            self._neuron(node, pooled(self.nir, node, self._shape(node)), None)
        elif op == "route":
            self._neuron(node, flattened(self.nir, node, self._shape(node)), None)
        elif op == "lif":
            made, bias, notes = lif(self.nir, node, self.dt)
            self._neuron(node, made, bias, notes)
        elif op == "spike":
            made, notes = spike(self.nir, node)
            self._neuron(node, made, None, notes)
        else:
            raise Refusal("NIR has no node for it", "export networks without it")

    def _shape(self, node: Node) -> tuple[int, ...]:
        return self.graph.node[node.inputs[0]].shape

    def _accumulates(self, name: str) -> bool:
        """Whether the add node `name` is itself at the step before plus something else."""
        node, latch = self.graph.node[name], self.graph.node[self.latches[name]]
        return (
            node.op == "add"
            and len(node.inputs) == 2
            and latch.name in node.inputs
            and self.graph.consumers[latch.name] == (name,)
            and all((m == 1).all() for m in node.params.values())
            and not latch.inputs
            and not latch.params["initial"].any()
        )

    def _input(self, b: Boundary, node: Node, made: Any) -> None:
        if (b.scale != 1).any() or b.offset.any():
            made.metadata |= {"scale": np.atleast_1d(b.scale), "offset": np.atleast_1d(b.offset)}
            self.tell("integers (x - offset) / scale go in, both are in the metadata", b.name)
        if self.graph.sweeps and b.time is None:
            self.tell("a value that does not change goes in at every step", b.name)
        self.names[node.name] = self.place(b.name, made)

    def _readout(self, b: Boundary, node: Node) -> None:
        made = self.nir.Output(np.array(node.shape))
        if (b.scale != 1).any():
            made.metadata["scale"] = np.atleast_1d(b.scale)
            self.tell("integers y / scale come out, the scale is in the metadata", b.name)
        if b.post:
            self.tell(f"{b.post[0]['op']} behind the output is left out", b.name, False)
        if self.graph.sweeps and b.time is None:
            self.tell("what counts is the output of the last step", b.name)
        name = self.names[node.name] = self.place(b.name, made)
        rest = self.connect(node, name, np.asarray(node.params["bias"], np.float64))
        if rest is not None:
            made.metadata["bias"] = np.atleast_1d(rest)
            self.tell("a bias is left out, it is in the metadata", b.name, False)

    def _neuron(
        self, node: Node, made: Any, bias: Floats | None, notes: tuple[str, ...] = ()
    ) -> None:
        name = self.names[node.name] = self.place(node.name, made)
        for note in notes:
            self.tell(note, node.name, False)
        rest = self.connect(node, name, bias)
        if rest is not None:
            raise Refusal("a bias where no synapse lies in front", "fold it into a layer")

    def connect(self, node: Node, target: str, bias: Floats | None) -> Floats | None:
        """Lead what `node` reads to the NIR node `target`; a bias goes into the first synapses on
        the way. Returns the bias if there are none."""
        rest = None if bias is None or not bias.any() else bias
        sources = [s for s in node.inputs if s != self.latches.get(node.name)]
        for source, factor in self._terms(sources, np.ones((1,) * len(node.shape))):
            layer = self.graph.node[source]
            if layer.op in SYNAPSES:
                try:
                    made = synapses(self.nir, layer, self._shape(layer), factor, rest)
                except Refusal as refusal:
                    self.refuse(layer, refusal.reason, refusal.remedy)
                    return None
                rest = None
                alone = len(self.graph.consumers[source]) == 1
                name = self.place(source if alone else f"{source}.{node.name}", made)
                left = self.connect(layer, name, None)
                assert left is None
            elif source not in self.names:
                continue  # it has been refused
            elif (factor == 1).all():
                name = self.names[source]
            else:
                scale = np.array(np.broadcast_to(factor, layer.shape), np.float32)
                name = self.place(f"{source}.scale", self.nir.Scale(scale))
                self.edges[self.names[source], name] = None
            self.edges[name, target] = None
        return rest

    def _terms(self, sources: list[str], factor: Floats) -> list[tuple[str, Floats]]:
        """(node, multiplier) of what is summed, through add nodes; one entry per node."""
        found: dict[str, Floats] = {}
        for source in sources:
            node = self.graph.node[source]
            terms = [(source, factor)]
            if node.op == "add" and source not in self.latches:
                terms = []
                for i, s in enumerate(node.inputs):
                    if self.graph.node[s].shape != node.shape:
                        raise Refusal(f"'{source}' adds unequal shapes", "add equal shapes")
                    m = node.params[multiplier(i)].astype(np.float64)
                    terms += self._terms([s], factor * m)
            for name, m in terms:
                found[name] = found[name] + m if name in found else m
        return list(found.items())
