"""A float model made ready to be read: one input form, static shapes, constants evaluated.

Instead of simplifying the graph, every intermediate tensor is exposed and onnxruntime runs the
model once: that gives the shape of every tensor and the value of everything that does not depend
on the data, whatever operators the exporter used for it (ARCHITECTURE.md, "Normalising").
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import onnxruntime as ort
from onnx import numpy_helper

from snnkit.boundary import DTYPES, check_samples
from snnkit.converters.axes import RECURRENT, find_axes, lengths_names
from snnkit.converters.doors import with_doors
from snnkit.converters.frames import Frame
from snnkit.converters.operators import Array, Op, Port, Probe, read_op, read_ports
from snnkit.converters.scans import write_out_scans
from snnkit.converters.source import read_source, with_time_first
from snnkit.converters.tracing import Trace, trace
from snnkit.errors import BadCalibration, Problem, UnreadableFile, UnsupportedModel

DEFAULT_STEPS = 4
"""Elements of a sequence where neither the model nor data say how many."""
RUN_BYTES = 512 * 2**20
"""Bytes of intermediate tensors held at once while calibrating."""


def _shapes_of(samples: Any, model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    named = samples if isinstance(samples, Mapping) else {}
    if samples is not None and not named and model.graph.input:
        named = {model.graph.input[0].name: samples}
    # what is no array is refused later, by name
    return {name: tuple(getattr(value, "shape", ())) for name, value in named.items()}


class FloatModel:
    """A float ONNX model: its nodes, its ports, shapes and constants, and a way to run it."""

    def __init__(self, source: Any, samples: Any = None):
        """samples : data of the model, by input or of the first one; only shapes are looked at."""
        model, self.source_digest = read_source(source)
        self.model = self._own(model)
        self.fixed = write_out_scans(self.model, _shapes_of(samples, self.model))
        del self.model.graph.value_info[:]
        self.opset = next(
            (o.version for o in self.model.opset_import if o.domain in ("", "ai.onnx")), 1
        )
        with_time_first(self.model.graph)
        self.ops = tuple(read_op(n) for n in self._alive(self.model.graph))
        self.inputs = read_ports(self.model.graph.input)
        self.outputs = read_ports(self.model.graph.output)
        self.probes: tuple[Probe, ...] = (Probe(1, 1),)
        self.batch_is_free = False
        self.lengths = ""
        self.trace = Trace()
        self.static = self._independent_of_data()

    @staticmethod
    def _own(model: onnx.ModelProto) -> onnx.ModelProto:
        """Inlined, initialisers no longer among the inputs."""
        try:
            model = onnx.inliner.inline_local_functions(model)
        except Exception as error:  # the inliner raises bare RuntimeErrors on damaged models
            raise UnreadableFile(f"the model's functions cannot be inlined: {error}") from error
        named = {t.name for t in model.graph.initializer}
        inputs = [v for v in model.graph.input if v.name not in named]
        del model.graph.input[:]
        model.graph.input.extend(inputs)
        # before version 4 an initialiser had to be an input too
        model.ir_version = max(model.ir_version, 4)
        return model

    @staticmethod
    def _alive(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
        needed = {v.name for v in graph.output}
        alive = []
        for node in reversed(graph.node):
            if needed.intersection(node.output):
                alive.append(node)
                needed.update(node.input)
        return alive[::-1]

    def _independent_of_data(self) -> frozenset[str]:
        known = {t.name for t in self.model.graph.initializer} | {""}
        for op in self.ops:
            shape_only = op.op in ("Shape", "Size")
            subgraphs = any(isinstance(v, onnx.GraphProto) for v in op.attrs.values())
            if (shape_only or all(i in known for i in op.inputs)) and not subgraphs:
                known.update(op.outputs)
        return frozenset(known)

    @property
    def data_ops(self) -> tuple[Op, ...]:
        """The nodes whose outputs depend on the data."""
        lengths = lengths_names(self)
        return tuple(
            op
            for op in self.ops
            if not (set(op.outputs) <= self.static or set(op.outputs) <= lengths)
        )

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return self.probes[0].shapes

    @property
    def dtypes(self) -> dict[str, np.dtype[Any]]:
        return self.probes[0].dtypes

    @property
    def constants(self) -> dict[str, Array]:
        return self.probes[0].constants

    @property
    def batch(self) -> int:
        return self.probes[0].batch

    @property
    def steps(self) -> int:
        """Elements of a sequence, in the data at hand."""
        return self.probes[0].steps

    @property
    def frames(self) -> dict[str, Frame]:
        """Where the batch and the elements lie, for the tensors for which it can be told."""
        return self.trace.frames

    @property
    def data_inputs(self) -> tuple[Port, ...]:
        """The inputs that hold numbers to calculate with, not lengths of sequences."""
        return tuple(p for p in self.inputs if p.name != self.lengths)

    @property
    def free_steps(self) -> str:
        """The name of the number of elements if the model leaves it open, or ""."""
        timed = [p.dims[p.time] for p in self.inputs if p.time is not None]
        return next((d for d in timed if isinstance(d, str)), "")

    def fix_shapes(self, samples: Mapping[str, Array] | None) -> None:
        """Find the axes of the inputs, run the model once (twice where the number of elements is
        open); fills probes, frames and ports. Raises UnsupportedModel."""
        flat = [p.name for p in self.inputs if not p.dims]
        if flat or not self.inputs:
            what = f"inputs {flat} without a batch axis" if flat else "no inputs"
            self.refuse(what, "give every input a leading batch axis")
        for port in self.inputs:
            if port.dtype not in DTYPES:
                self.refuse(
                    f"input '{port.name}' of type {port.dtype}", f"use one of {sorted(DTYPES)}"
                )
        ports, self.lengths = find_axes(self, samples)
        self.inputs = tuple(self._resolved(p, samples) for p in ports)
        sizes = {p.name: p.dims[p.batch] for p in self.inputs}
        fixed = [d for d in sizes.values() if isinstance(d, int)]
        if len(set(fixed)) > 1:
            self.refuse(f"inputs with different batch sizes {sizes}", "use one batch size")
        if samples is not None:
            self.check(samples)
        steps = self._count_steps(samples)
        # two tells a batch axis from an axis of size one; a large fixed batch is tried free first
        tries = [2, 1] if not fixed else [fixed[0]] if fixed[0] <= 64 else [2, fixed[0]]
        message = ""
        for batch in tries:
            try:
                self.probes = self._run_once_or_twice(batch, steps)
            except Exception as error:  # onnxruntime raises many kinds
                message = str(error).splitlines()[0]
                continue
            self.batch_is_free = batch != (fixed or [0])[0]
            self._refuse_empty()
            self._count_elements()
            self.trace = trace(self)
            if self.trace.whole:
                self.probes = self.probes[:1]
                self._fix_elements(steps, f"'{self.trace.whole[0]}' reads whole sequences")
                self.trace = trace(self)
            self._put_up_doors()
            return
        self.refuse(f"onnxruntime cannot run it: {message}", "repair the model first")

    def _count_steps(self, samples: Mapping[str, Array] | None) -> int:
        found = {}
        for p in self.inputs:
            if p.time is not None:
                size = p.dims[p.time]
                if isinstance(size, str):
                    given = (samples or {}).get(p.name)
                    size = DEFAULT_STEPS if given is None else np.shape(given)[p.time]
                found[p.name] = size
        if len(set(found.values())) > 1:
            self.refuse(f"sequences of different lengths {found}", "use one number of elements")
        return next(iter(found.values()), 1)

    def _count_elements(self) -> None:
        """Where no input comes by elements, the recurrent operators say how many there are."""
        found = [self.shapes[op.inputs[0]][0] for op in self.data_ops if op.op in RECURRENT]
        if found and all(p.time is None for p in self.inputs):
            self.probes = tuple(replace(p, steps=found[0]) for p in self.probes)

    def _run_once_or_twice(self, batch: int, steps: int) -> tuple[Probe, ...]:
        """Twice where the number of elements is open; some models only say that it is."""
        if self.free_steps:
            try:
                return self._probe(batch, steps), self._probe(batch, steps + 1)
            except Exception:  # onnxruntime raises many kinds
                only = self._probe(batch, steps)
                self._fix_elements(steps, "it runs for no other number")
                return (only,)
        return (self._probe(batch, steps),)

    def _fix_elements(self, steps: int, reason: str) -> None:
        """There are as many elements as in the data, since something reads whole sequences."""
        self.fixed = f"{steps}, as in the data: {reason}"
        named = [(p, {p.time: steps}) for p in self.inputs]
        self.inputs = tuple(
            replace(p, dims=tuple(at.get(i, d) for i, d in enumerate(p.dims))) for p, at in named
        )

    def _put_up_doors(self) -> None:
        doors = self.trace.doors
        self.ops = with_doors(self.ops, doors, self.model.graph)
        for probe in self.probes:
            for name, (tensor, _) in doors.made.items():
                probe.shapes[name] = probe.shapes[tensor]
                probe.dtypes[name] = probe.dtypes[tensor]

    def _refuse_empty(self) -> None:
        empty = [op for op in self.data_ops if any(o and 0 in self.shapes[o] for o in op.outputs)]
        if empty:
            remedy = "leave out tensors without elements"
            raise UnsupportedModel(
                [Problem(op.name, op.op, "its result has no elements", remedy) for op in empty]
            )

    def refuse(self, reason: str, remedy: str) -> None:
        raise UnsupportedModel([Problem(self.model.graph.name or "model", "model", reason, remedy)])

    def _resolved(self, port: Port, samples: Mapping[str, Array] | None) -> Port:
        dims = list(port.dims)
        given = None if samples is None else np.shape(samples.get(port.name, ()))
        for i, d in enumerate(dims):
            if isinstance(d, str) and i not in (port.batch, port.time):
                if not given or len(given) != len(dims):
                    self.refuse(
                        f"input '{port.name}' has the symbolic dimension '{d}'",
                        "give calibration data, whose shape fixes it",
                    )
                assert given is not None
                dims[i] = int(given[i])
        if 0 in dims:
            self.refuse(f"input '{port.name}' of shape {tuple(dims)}", "give it some elements")
        return replace(port, dims=tuple(dims))

    def _sizes(self, port: Port, batch: int, steps: int) -> tuple[int, ...]:
        """The shape of an input for so many samples and elements."""
        named = {port.batch: batch, **({} if port.time is None else {port.time: steps})}
        return tuple(named.get(i, 0) or int(d) for i, d in enumerate(port.dims))

    def _probe(self, batch: int, steps: int) -> Probe:
        probe = Probe(batch, steps)
        feeds = {
            port.name: np.full(
                self._sizes(port, batch, steps),
                steps if port.name == self.lengths else 1,
                DTYPES[port.dtype],
            )
            for port in self.inputs
        }
        names = [o for op in self.ops for o in op.outputs if o]
        values = self.session(names).run(names, feeds)
        tensors = dict(zip(names, values, strict=True)) | feeds
        for name, value in tensors.items():
            array = np.asarray(value)
            probe.shapes[name], probe.dtypes[name] = array.shape, array.dtype
            if name in self.static:
                probe.constants[name] = array
        for tensor in self.model.graph.initializer:
            probe.constants[tensor.name] = numpy_helper.to_array(tensor)
            probe.shapes[tensor.name] = probe.constants[tensor.name].shape
        return probe

    def session(self, names: Sequence[str], free: bool = False) -> ort.InferenceSession:
        """A session that gives the named tensors; batch and time axes of its inputs are free, or
        all axes."""
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        del model.graph.output[:]
        model.graph.output.extend(onnx.ValueInfoProto(name=n) for n in dict.fromkeys(names))
        axes = {p.name: (p.batch, p.time) for p in self.inputs}
        for value in model.graph.input:
            for i, d in enumerate(value.type.tensor_type.shape.dim):
                if free or i in axes[value.name]:
                    d.Clear()
                    named = "batch" if i == axes[value.name][0] else "time"
                    # with all axes free nothing is known about which sizes agree
                    d.dim_param = f"free {value.name} {i}" if free else named
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        # threads that wait by spinning cost more than small models do
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        content = model.SerializeToString()
        return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def check(self, x: Any, what: str = "calibration data") -> dict[str, Array]:
        """Samples by input name, checked against the ports. Raises BadCalibration."""
        named = dict(x) if isinstance(x, Mapping) else {self.inputs[0].name: x}
        wanted = [p.name for p in self.inputs]
        if sorted(named) != sorted(wanted):
            raise BadCalibration(f"{what} for inputs {sorted(named)}; expected {wanted}")
        arrays = {
            p.name: check_samples(p.name, p.dtype, p.dims, named[p.name], p.batch)
            for p in self.inputs
        }
        if len({arrays[p.name].shape[p.batch] for p in self.inputs}) != 1:
            raise BadCalibration(f"{what}: the inputs have different numbers of samples")
        return arrays

    def count(self, samples: Mapping[str, Array]) -> int:
        """Number of samples in checked data."""
        first = self.inputs[0]
        return int(samples[first.name].shape[first.batch])

    def take(self, samples: Mapping[str, Array], chosen: Array) -> dict[str, Array]:
        """The chosen samples of checked data."""
        return {p.name: np.take(samples[p.name], chosen, p.batch) for p in self.inputs}

    def made_up(self) -> dict[str, Array]:
        """Data of the right shapes and types, for a conversion that only looks at the layers."""
        rng = np.random.default_rng(0)
        made = {}
        for p in self.inputs:
            shape = self._sizes(p, max(2, self.batch), self.steps)
            made[p.name] = rng.integers(0, 2, shape).astype(DTYPES[p.dtype])
            if p.name == self.lengths:
                made[p.name] = np.full(shape, self.steps, DTYPES[p.dtype])
        return made

    def run(self, samples: Mapping[str, Array], names: Sequence[str]) -> Iterable[dict[str, Array]]:
        """Values of the named tensors, chunk by chunk, without padding samples: each [n, *units],
        or [n, T, *units] for tensors with elements of a sequence."""
        count = self.count(samples)
        size = sum(int(np.prod(self.shapes[n])) for n in names) * 8 // self.batch
        chunk = self.batch
        if self.batch_is_free:
            chunk = int(np.clip(RUN_BYTES // max(size, 1), 1, 256))
        session = self.session(names)
        for start in range(0, count, chunk):
            real = min(chunk, count - start)
            index = np.minimum(
                np.arange(start, start + (chunk if not self.batch_is_free else real)), count - 1
            )
            try:
                values = session.run(list(names), self.take(samples, index))
            except Exception as error:  # onnxruntime raises many kinds
                message = str(error).splitlines()[0]
                raise BadCalibration(f"onnxruntime cannot run the data: {message}") from error
            yield {
                n: self.frames.get(n, Frame()).canonical(np.asarray(v), len(index))[:real]
                for n, v in zip(names, values, strict=True)
            }
