"""A NIR file or graph as a step graph of integers.

NIR nodes are read as affine readings of integers, value = scale * node + offset, like the layers of
any float model (`snnkit.converters.network`), its neurons as `lif` nodes (`nir_time` has the
equations). Weights get 8 bits per output channel, or stay what they are where they lie on such a
grid. Rounding them is a quantisation error: measure it on data. From there on the spikes of every
backend are equal.

The input is [N, T, *shape], the output [N, T, *shape]: one value per step. Edges that meet add up.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import snnkit
from snnkit.converters.boundaries import finer, input_grid
from snnkit.converters.frames import Refusal
from snnkit.converters.network import Affine, varies_only
from snnkit.converters.nir_layers import LAYERS, NirWalk, arrays_of
from snnkit.converters.nir_time import MOST_STEPS, Timing, clock
from snnkit.converters.plan import ancestors
from snnkit.converters.stepwise import DURING, Value
from snnkit.errors import (
    BackendMissing,
    BadCalibration,
    InvalidGraph,
    Problem,
    UnreadableFile,
    UnsupportedModel,
    UsageError,
)
from snnkit.graph import Boundary, Graph, frozen

REMEDY = "use Conv, Linear, Affine, Scale, pooling, Flatten, Threshold, I, IF, LIF"
TIMED = ("LIF", "CubaLIF", "LI", "CubaLI", "Delay")


def require_nir() -> Any:
    """The package nir; raises BackendMissing with the install line."""
    try:
        import nir
    except ImportError as error:
        raise BackendMissing(
            f"NIR files need the package nir ({error}); run: pip install 'nir>=1.0.6'"
        ) from error
    return nir


def read(path: str | os.PathLike[str]) -> Any:
    """The NIRGraph in a file. nir's own check of types is left out, since it refuses files that
    differ in axes of size one; `from_nir` checks every shape itself."""
    nir = require_nir()
    if not Path(path).is_file():
        raise UnreadableFile(f"{path}: there is no such file")
    try:
        options = {"type_check": False} if "type_check" in signature(nir.read).parameters else {}
        found = nir.read(path, **options)
    except Exception as error:  # h5py and nir raise many kinds on a damaged file
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UnreadableFile(f"{path}: not a NIR file that nir can read: {reason}") from error
    return found


def from_nir(
    model: Any, samples: Any = None, *, timing: Timing | None = None, weight_bits: int = 8
) -> Graph:
    """The spiking network of a NIR file (or nir.NIRGraph) as a graph of integers.

    Parameters
    ----------
    model : path, or NIRGraph without cycles and without subgraphs.
    samples : [N, T, *shape] or a mapping by input name. Integers that span at most 256 values
        (spikes, event counts) are read as they are, others as `snnkit.convert` reads data.
        None: the inputs are integers in 0..255.
    timing : how the differential equations step.
    weight_bits : 2 to 8, symmetric, per output channel.

    Raises
    ------
    UnsupportedModel : with every node that has no integer form, by name. BadCalibration,
    UnreadableFile, BackendMissing.
    """
    if not 2 <= weight_bits <= 8:
        raise UsageError(f"weight_bits {weight_bits}; expected 2 to 8")
    source = "nir"
    if isinstance(model, (str, os.PathLike)):
        graph = read(model)
        source = hashlib.sha256(Path(model).read_bytes()).hexdigest()
    else:
        graph = model
    if not hasattr(graph, "nodes"):
        raise UnreadableFile(f"NIR node {type(graph).__name__}; expected a NIRGraph")
    return _Reader(graph, samples, timing or Timing(), weight_bits).graph(source)


class _Reader:
    """The walk over a NIR graph, inputs first."""

    def __init__(self, graph: Any, samples: Any, timing: Timing, weight_bits: int):
        self.nodes: dict[str, Any] = dict(graph.nodes)
        self.sources: dict[str, list[str]] = {name: [] for name in self.nodes}
        for begin, end in graph.edges:
            if begin not in self.nodes or end not in self.nodes:
                raise UnreadableFile(f"NIR edge {begin!r} to {end!r}: there is no such node")
            self.sources[end].append(begin)
        self.kinds = {name: type(node).__name__ for name, node in self.nodes.items()}
        self.samples = self._samples(samples)
        known = [x.shape[1] for x in self.samples.values()]
        steps = timing.steps or max(known, default=MOST_STEPS)
        at = clock(timing, any(kind in TIMED for kind in self.kinds.values()))
        self.walk = NirWalk(weight_bits, steps, at)
        self.timing, self.values = timing, dict[str, Value]()
        self.inputs: list[Boundary] = []
        self.outputs: list[Boundary] = []

    def graph(self, source: str) -> Graph:
        walk = self.walk
        for name in self._order():
            try:
                self._read(name)
            except (Refusal, InvalidGraph) as error:
                remedy = getattr(error, "remedy", "change the node")
                walk.problems.append(Problem(name, self.kinds[name], str(error), remedy))
        if not walk.problems and not (self.inputs and self.outputs):
            walk.problems.append(Problem("graph", "NIRGraph", "no Input or no Output", "add it"))
        if walk.problems:
            raise UnsupportedModel(walk.problems)
        used = ancestors(walk.net.nodes, walk.latches, [b.node for b in self.outputs])
        used |= {b.node for b in self.inputs}
        nodes = tuple(n for n in walk.net.nodes.values() if n.name in used)
        graph = Graph(
            nodes,
            tuple(self.inputs),
            tuple(self.outputs),
            self._meta(source),
            ((len(nodes), 1),),
            0,
            {k: v for k, v in walk.latches.items() if k in used},
        )
        graph.check()
        return graph

    def _order(self) -> list[str]:
        """Names in topological order; refuses, at once, what has no integer form or no order."""
        for name, kind in self.kinds.items():
            if kind not in LAYERS and kind != "Input":
                reason = "a subgraph" if kind == "NIRGraph" else "no integer form"
                self.walk.problems.append(Problem(name, kind, reason, REMEDY))
            elif not self.sources[name] and kind != "Input":
                self.walk.problems.append(Problem(name, kind, "nothing leads to it", "connect it"))
        order, left = [], dict(self.sources)
        while ready := [n for n, sources in left.items() if not set(sources) & set(left)]:
            order += ready
            for name in ready:
                del left[name]
        while ends := [n for n in left if not any(n in left[m] for m in left)]:
            for name in ends:  # behind a cycle, not on one
                del left[name]
        for name in left:
            reason = "it lies on a cycle of edges"
            self.walk.problems.append(Problem(name, self.kinds[name], reason, "cut the recurrence"))
        return order

    def _read(self, name: str) -> None:
        kind, node = self.kinds[name], self.nodes[name]
        if kind == "Input":
            self.values[name] = Value(self._input(name), DURING)
            return
        found = [self.values[s] for s in self.sources[name] if s in self.values]
        if kind not in LAYERS or not found or len(found) < len(self.sources[name]):
            return  # it, or what it reads, has been refused
        value = found[0]
        if len(found) > 1:
            if len({v.affine.shape for v in found}) > 1:
                raise Refusal(f"it adds {[v.affine.shape for v in found]}", "add equal shapes")
            value = Value(self.walk.net.total(f"{name}.sum", [v.affine for v in found]), DURING)
        made = LAYERS[kind](self.walk, name, node, arrays_of(node), value)
        self.values[name] = Value(made, DURING)
        if kind == "Output":
            self.outputs.append(self._output(name, made))

    def _samples(self, samples: Any) -> dict[str, npt.NDArray[Any]]:
        if samples is None:
            return {}
        names = [name for name, kind in self.kinds.items() if kind == "Input"]
        given = dict(samples) if isinstance(samples, Mapping) else {n: samples for n in names[:1]}
        if sorted(given) != sorted(names):
            raise BadCalibration(f"data for inputs {sorted(given)}; expected {sorted(names)}")
        found = {}
        for name, value in given.items():
            x, shape = np.asarray(value), _shape(self.nodes[name])
            if x.dtype.kind not in "fiub" or x.shape[2:] != shape or x.ndim < 2 or not x.size:
                raise BadCalibration(
                    f"input '{name}': {x.dtype} {x.shape}; expected numbers (N, T, *{shape})"
                )
            if not np.isfinite(x).all():
                raise BadCalibration(f"input '{name}': NaN or infinite; expected finite numbers")
            found[name] = x.astype(np.float32)
        return found

    def _input(self, name: str) -> Affine:
        shape = _shape(self.nodes[name])
        scale, offset, lo = frozen(np.float32(1)), frozen(np.float32(0)), 0
        if name in self.samples:
            x = self.samples[name]
            low, high = int(np.floor(x.min())), int(np.ceil(x.max()))
            lo = min(0, max(-128, low))
            if (x != np.rint(x)).any() or low < lo or high > lo + 255:
                scale, offset, lo = input_grid(x.reshape(-1, *shape), len(shape))
        attrs = {"shape": shape, "lo": lo, "hi": lo + 255}
        node = self.walk.add(name, "input", [], {}, attrs, DURING)
        dims: tuple[int | str, ...] = ("batch", "steps", *shape)
        self.inputs.append(Boundary(name, node.name, "float32", dims, scale, offset, (), 0, 1))
        return self.walk.net.affine(node, scale.astype(np.float64), offset.astype(np.float64))

    def _output(self, name: str, x: Affine) -> Boundary:
        declared = _shape(self.nodes[name])
        if [n for n in declared if n > 1] != [n for n in x.shape if n > 1]:
            raise Refusal(f"shape {declared} for an input of shape {x.shape}")
        net = self.walk.net
        x = net.positive(x)
        if not any(varies_only(x.scale, axis) for axis in range(len(x.shape))):
            x = net.even(x, name)
        x = finer(net, x, name)
        bias = np.clip(np.rint(x.offset / x.scale), -(2**29), 2**29).astype(np.int64)
        node = self.walk.add(f"{name}.readout", "readout", [x.node], {"bias": bias}, {}, DURING)
        scale = frozen(x.scale if x.scale.size > 1 else x.scale.reshape(()), np.float32)
        dims: tuple[int | str, ...] = ("batch", "steps", *x.shape)
        return Boundary(name, node.name, "float32", dims, scale, frozen(np.float32(0)), (), 0, 1)

    def _meta(self, source: str) -> dict[str, str]:
        at = self.walk.clock
        return {
            "version": snnkit.__version__,
            "source": source,
            "quantisation": f"weight bits {self.walk.net.policy.weight_bits}",
            "dt": repr(at.dt),
            "time": f"{self.timing.discretisation}, reset {at.reset or 'as in the file, or hard'}",
        }


def _shape(node: Any) -> tuple[int, ...]:
    """Shape of an Input or Output node."""
    held = node.input_type["input"]
    shape = tuple(int(n) for n in np.asarray([] if held is None else held).reshape(-1))
    if not shape or min(shape) < 1:
        raise UnreadableFile(f"NIR {type(node).__name__} of shape {shape}; expected sizes above 0")
    return shape
