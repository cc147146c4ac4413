"""THE VOCABULARY: Node and Graph. One graph, two readings.

The quantised network and the spiking network are the same object. Read densely, a spike node is
S = staircase(A); read in time, it is a bipolar integrate-and-fire neuron whose unique quiescent
state is that S. Every value between two nodes is an integer. The ops are in `snnkit.ops.TABLE`.

Time. A *step graph* runs once per step t = 0..T-1. `Graph.sweeps` cuts its nodes, in order, into
sweeps (number of nodes, direction): +1 takes the steps from first to last, -1 from last to first,
0 happens once, after the sweeps before it. A node reads

* nodes of its own sweep: their value at the same step;
* nodes of earlier sweeps with a direction: the value at the same step index, or, from a sweep of
  direction 0, the value at the last step that their sweep took;
* nodes of earlier sweeps of direction 0: their one value, at every step.

So static work (an image presented at every step, an initial state) is a leading sweep of
direction 0, done once; stacked or bidirectional recurrence is several sweeps; a head is a last
sweep of direction 0. One step of a sweep is a *window*, an acyclic one-shot graph. From step to
step only `latch` (the value of `Graph.latches[name]` at the step before) and `lif` (its membrane
potential) remember. `Graph.steps` is T, or 0 where T is the length of the inputs' time axis.
Inputs with a time axis lie in sweeps with a direction, inputs without in sweeps of direction 0.
No sweeps: a one-shot graph, which is one sweep of direction 0.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from snnkit.canonical import all_arrays, describe
from snnkit.errors import BadShape, FloatArray, InvalidGraph, RangeOverflow, TooLarge, UnknownOp
from snnkit.ops import TABLE
from snnkit.sweeps import check_sweeps, parts, window

_SURROGATE = re.compile("[\ud800-\udfff]")
INT32_BOUND = 2**31 - 1
BOUNDARY_TYPES = ("float32", "float16", "float64", "uint8", "int8", "int32", "int64")
"""Types that a tensor at the boundary may have."""
MAX_UNITS = 2**28
"""Most units of one node: a size is checked before anything of that size is allocated."""
MAX_NODES, MAX_RANK = 100_000, 16
OWN_META = ("bounds", "digest", "format", "graph")
"""Metadata keys that the file itself uses."""
ARRAY, TENSOR = "%", "@"
"""First letters of the file's inner names, so that they meet none of the model's own."""


def frozen(array: npt.ArrayLike, dtype: npt.DTypeLike | None = None) -> npt.NDArray[Any]:
    """A read-only copy in C order."""
    copy = np.array(array, dtype=dtype, order="C", copy=True)
    copy.flags.writeable = False
    return copy


@dataclass(frozen=True, eq=False)
class Node:
    """One node: name, op, names of its inputs, shape (no batch axis), arrays, attributes.

    lo, hi : proved bounds of the value. peak : proved bound of |every partial sum|.
    Make nodes with `make_node`, which derives shape and bounds from the op's row in the table.
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    shape: tuple[int, ...]
    params: Mapping[str, npt.NDArray[Any]]
    attrs: Mapping[str, Any]
    lo: int
    hi: int
    peak: int

    @property
    def units(self) -> int:
        return math.prod(self.shape)


def make_node(
    name: str,
    op: str,
    inputs: Sequence[Node] = (),
    params: Mapping[str, npt.ArrayLike] | None = None,
    attrs: Mapping[str, Any] | None = None,
) -> Node:
    """A node whose shape and bounds follow from its op. Raises InvalidGraph and its subclasses."""
    if not name or not _is_text(name):
        raise InvalidGraph(f"node {name!r}: expected a name in UTF-8")
    row = TABLE.get(op)
    if row is None:
        raise UnknownOp(f"node '{name}': op '{op}'; expected one of {', '.join(TABLE)}")
    if row.arity is not None and len(inputs) != row.arity:
        raise BadShape(f"node '{name}' ({op}): {len(inputs)} inputs; expected {row.arity}")
    arrays = {}
    for key, value in (params or {}).items():
        dtype = row.dtype(key)
        if dtype is None:
            raise InvalidGraph(f"node '{name}' ({op}): array '{key}' is not one of this op's")
        arrays[key] = _integers(name, key, np.asarray(value), dtype)
    attributes = _plain(attrs or {})
    try:
        shapes = [n.shape for n in inputs]
        shape = tuple(int(n) for n in row.shape(attributes, arrays, shapes))
        bounds = [(n.lo, n.hi) for n in inputs]
        if any(n < 1 for n in shape) or len(shape) > MAX_RANK:
            raise BadShape(f"shape {shape}; expected at most {MAX_RANK} axes of at least one unit")
        if math.prod(shape) > MAX_UNITS:
            raise TooLarge(f"{shape} units; the limit is {MAX_UNITS}")
        lo, hi, peak = row.bounds(attributes, arrays, bounds, shapes)
    except InvalidGraph as error:
        raise type(error)(f"node '{name}' ({op}): {error}") from error
    except (KeyError, TypeError, IndexError, ValueError, ArithmeticError) as error:
        raise InvalidGraph(f"node '{name}' ({op}): bad attributes {dict(attributes)}") from error
    if max(peak, hi, -lo) >= INT32_BOUND:
        raise RangeOverflow(
            f"node '{name}' ({op}): a charge can reach {max(peak, hi, -lo)}; expected below 2^31; "
            "use fewer weight bits or fewer levels"
        )
    names = tuple(n.name for n in inputs)
    return Node(name, op, names, shape, MappingProxyType(arrays), attributes, lo, hi, peak)


def _integers(node: str, key: str, value: npt.NDArray[Any], dtype: str) -> npt.NDArray[Any]:
    if value.dtype.kind not in "iu":
        raise FloatArray(
            f"node '{node}': array '{key}' is {value.dtype}; expected integers only right of the "
            "quantiser"
        )
    limits = np.iinfo(dtype)
    if value.size and (value.min() < limits.min or value.max() > limits.max):
        raise RangeOverflow(f"node '{node}': array '{key}' leaves {dtype}")
    return frozen(value, dtype)


def _is_text(value: Any) -> bool:
    """Whether protobuf and C take it: a str that UTF-8 can express, without NUL."""
    return isinstance(value, str) and "\0" not in value and not _SURROGATE.search(value)


def _is_int32(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and abs(int(value)) <= INT32_BOUND


def _plain(attrs: Mapping[str, Any]) -> Mapping[str, Any]:
    """Attributes as bool, 32-bit int, tuples of them and the str `kind`, in sorted order."""
    plain: dict[str, Any] = {}
    for key in sorted(attrs):
        value = attrs[key]
        if isinstance(value, bool) or (isinstance(value, str) and key == "kind"):
            plain[key] = value
        elif _is_int32(value):
            plain[key] = int(value)
        elif isinstance(value, (list, tuple)) and all(_is_int32(v) for v in value):
            plain[key] = tuple(int(v) for v in value)
        else:
            raise InvalidGraph(f"attribute '{key}' = {value!r}; expected 32-bit int or list of int")
    return MappingProxyType(plain)


@dataclass(frozen=True, eq=False)
class Boundary:
    """Where a float tensor of the model becomes integers, or integers become a float tensor.

    name : the tensor's name in the source model. node : the input or readout node.
    dtype : ONNX name of its type, e.g. "float32". dims : the declared dimensions with the batch
    axis; a str is symbolic. scale, offset : float32, scalar or broadcasting against the shape.
    Input: q = clip(rint((x - offset) / scale), lo, hi), rounding half to even.
    Output: y = q * scale, then `post`, a list of (op, axis) among Softmax, LogSoftmax, ArgMax.
    batch, time : which axes of the tensor (of `dims`) are the batch and the steps; the other axes
    are the node's shape, in order. time None: an input of a sweep of direction 0, or an output
    with the value of the last step that its sweep took. An axis in `post` is one of the tensor's.
    """

    name: str
    node: str
    dtype: str
    dims: tuple[int | str, ...]
    scale: npt.NDArray[np.float32]
    offset: npt.NDArray[np.float32]
    post: tuple[Mapping[str, Any], ...] = ()
    batch: int = 0
    time: int | None = None


@dataclass(frozen=True, eq=False)
class Graph:
    """Nodes in topological order, the boundaries, and where they came from (`meta`, strings).

    sweeps : (number of nodes, direction) of each sweep. steps : T, or 0. latches : latch -> source.
    lengths : name of an input [N] (lengths_dtype: int32 or int64) of the model, or "". Then sample
    n takes its first lengths[n] steps only, in either direction; later outputs are zero.
    """

    nodes: tuple[Node, ...]
    inputs: tuple[Boundary, ...]
    outputs: tuple[Boundary, ...]
    meta: Mapping[str, str] = field(default_factory=dict)
    sweeps: tuple[tuple[int, int], ...] = ()
    steps: int = 0
    latches: Mapping[str, str] = field(default_factory=dict)
    lengths: str = ""
    lengths_dtype: str = "int32"

    @cached_property
    def node(self) -> Mapping[str, Node]:
        return MappingProxyType({n.name: n for n in self.nodes})

    @cached_property
    def consumers(self) -> Mapping[str, tuple[str, ...]]:
        found: dict[str, list[str]] = {n.name: [] for n in self.nodes}
        for n in self.nodes:
            for source in n.inputs:
                found[source].append(n.name)
        return MappingProxyType({k: tuple(v) for k, v in found.items()})

    @cached_property
    def parts(self) -> tuple[tuple[tuple[Node, ...], int], ...]:
        """(nodes, direction) of each sweep; a one-shot graph is one sweep of direction 0."""
        return parts(self)

    @cached_property
    def sweep_of(self) -> Mapping[str, int]:
        """Number of the sweep that a node lies in."""
        return MappingProxyType({n.name: k for k, part in enumerate(self.parts) for n in part[0]})

    @cached_property
    def windows(self) -> tuple[Graph, ...]:
        """One step of each sweep as a one-shot graph (`snnkit.sweeps.window`)."""
        return tuple(window(self, k) for k in range(len(self.parts)))

    def direction(self, name: str) -> int:
        """Direction of the sweep that a node lies in."""
        return self.parts[self.sweep_of[name]][1]

    def of(self, *ops: str) -> tuple[Node, ...]:
        """The nodes of the given ops, in topological order."""
        return tuple(n for n in self.nodes if n.op in ops)

    @cached_property
    def digest(self) -> str:
        """sha256 of the canonical form: structure, attributes, arrays, boundaries, meta."""
        state = hashlib.sha256(json.dumps(describe(self), sort_keys=True).encode())
        for array in all_arrays(self):
            state.update(str((array.dtype.str, array.shape)).encode())
            state.update(np.ascontiguousarray(array).tobytes())
        return state.hexdigest()

    def check(self) -> None:
        """Raise InvalidGraph (or a subclass) for the first rule that the graph breaks."""
        if not self.nodes or len(self.nodes) > MAX_NODES:
            raise TooLarge(f"{len(self.nodes)} nodes; expected 1 to {MAX_NODES}")
        known: dict[str, Node] = {}
        for n in self.nodes:
            if n.name in known:
                raise InvalidGraph(f"node '{n.name}': the name is taken twice")
            missing = [s for s in n.inputs if s not in known]
            if missing:
                raise InvalidGraph(f"node '{n.name}': input '{missing[0]}' does not come before it")
            again = make_node(n.name, n.op, [known[s] for s in n.inputs], n.params, n.attrs)
            derived = (again.shape, again.lo, again.hi, again.peak)
            if derived != (n.shape, n.lo, n.hi, n.peak):
                raise InvalidGraph(f"node '{n.name}': shape or bounds do not follow from its op")
            known[n.name] = n
        self._check_boundaries(known)
        check_sweeps(self)

    def _check_boundaries(self, known: Mapping[str, Node]) -> None:
        inputs = [n.name for n in self.nodes if n.op == "input"]
        readouts = [n.name for n in self.nodes if n.op == "readout"]
        if sorted(b.node for b in self.inputs) != sorted(inputs):
            raise InvalidGraph("the input boundaries and the input nodes are not the same")
        if sorted(b.node for b in self.outputs) != sorted(readouts) or not readouts:
            raise InvalidGraph("the output boundaries and the readout nodes are not the same")
        tensors = [b.name for b in (*self.inputs, *self.outputs)]
        if self.lengths:
            _check_name(self.lengths)
            tensors.append(self.lengths)
        if len(set(tensors)) != len(tensors) or "" in tensors:
            raise InvalidGraph(f"boundary names {tensors}; expected distinct names")
        for b in (*self.inputs, *self.outputs):
            _check_boundary(b, known[b.node])
        for key, value in self.meta.items():
            text = _is_text(key) and _is_text(value)
            if not text or key in OWN_META:
                raise InvalidGraph(f"meta {key!r}: {value!r}; expected UTF-8 text, not {OWN_META}")


def _check_boundary(b: Boundary, node: Node) -> None:
    shape = node.shape
    for name, array in (("scale", b.scale), ("offset", b.offset)):
        fits = array.dtype == np.float32 and bool(np.isfinite(array).all())
        try:
            fits = fits and np.broadcast_shapes(shape, array.shape) == shape
        except ValueError:
            fits = False
        if not fits or sum(n > 1 for n in array.shape) > 1:
            raise InvalidGraph(
                f"boundary '{b.name}': {name} {array.dtype} {array.shape}; expected finite float32 "
                f"that varies along at most one axis of {shape}"
            )
    if node.op == "readout" and b.offset.any():
        raise InvalidGraph(f"boundary '{b.name}': offset; an output's offset lies in its bias")
    _check_name(b.name)
    if not (b.scale > 0).all():
        raise InvalidGraph(f"boundary '{b.name}': scale {b.scale.min()}; expected above zero")
    if b.dtype not in BOUNDARY_TYPES:
        raise InvalidGraph(
            f"boundary '{b.name}': type {b.dtype!r}; expected one of {BOUNDARY_TYPES}"
        )
    if not b.dims or not all(_is_dim(d) for d in b.dims):
        raise InvalidGraph(f"boundary '{b.name}': dimensions {b.dims}; expected positive ones")
    axes = (b.batch,) if b.time is None else (b.batch, b.time)
    if not all(type(a) is int and 0 <= a < len(b.dims) for a in axes) or len(set(axes)) < len(axes):
        raise InvalidGraph(
            f"boundary '{b.name}': batch axis {b.batch!r}, time axis {b.time!r}; expected two axes "
            f"of {b.dims}"
        )
    rest = tuple(d for i, d in enumerate(b.dims) if i not in axes)
    if node.op == "input" and rest != shape:
        raise InvalidGraph(f"boundary '{b.name}': dimensions {b.dims} do not match {shape}")
    if len(b.post) > 1:
        raise InvalidGraph(f"boundary '{b.name}': {len(b.post)} float steps; expected one")
    rank = len(axes) + len(shape)
    for step in b.post:
        if step.get("op") not in ("Softmax", "LogSoftmax", "ArgMax"):
            raise UnknownOp(f"boundary '{b.name}': '{step.get('op')}' cannot follow a readout")
        settings = {k: v for k, v in step.items() if k != "op"}
        wanted = {"axis", "keepdims"} if step["op"] == "ArgMax" else {"axis"}
        fits = set(settings) == wanted and all(_is_int32(v) for v in settings.values())
        fits = fits and settings.get("keepdims", 0) in (0, 1)
        # ArgMax may take its axis away: the batch and the steps keep their places in front of it
        if not fits or not max(axes) < settings["axis"] < rank:
            raise InvalidGraph(f"boundary '{b.name}': {dict(step)}; expected {sorted(wanted)}")


def _check_name(name: Any) -> None:
    if not _is_text(name):
        raise InvalidGraph(f"boundary {name!r}: expected a name in UTF-8")
    if name.startswith((ARRAY, TENSOR)):
        raise InvalidGraph(f"boundary '{name}': the name starts with {name[0]}, rename it")


def _is_dim(value: Any) -> bool:
    return _is_text(value) or (type(value) is int and 0 < value <= INT32_BOUND)
