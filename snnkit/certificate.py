"""The certificate: every neuron, every sample, every execution, by integer equality.

Compared with the plain definition (`snnkit.reference.dense`) are
(a) onnxruntime on the file itself, outputs bit for bit;
(b) onnxruntime on the same nodes with every spiking neuron exposed;
(c) every backend in every mode; a step graph both with windows that start at rest and with
    windows that carry on from the last. Of a step graph every neuron is compared at every step.
The step float -> integer is not part of it: `quantisation` reports it beside the certificate.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from snnkit.backends import BUILT_IN, MODES, available, compile, get
from snnkit.boundary import LENGTHS, as_inputs, counts_of, read_out, take_samples
from snnkit.errors import BackendMissing, UsageError
from snnkit.files import to_bytes
from snnkit.graph import Boundary, Graph, Node
from snnkit.onnx_writer import emit_recording
from snnkit.ops.op import Ints
from snnkit.ops.state import membrane_bound
from snnkit.ops.synapses import fan_out
from snnkit.reference import dense
from snnkit.sweeps import DOORS

Array = npt.NDArray[Any]
CHUNK_UNITS = 2**24
"""Recorded integers held at once."""


@dataclass(frozen=True)
class Difference:
    """The first place where two executions disagree."""

    execution: str
    node: str
    sample: int
    index: tuple[int, ...]
    found: float
    expected: float


@dataclass
class Certificate:
    """What was compared, what differed, and what the network did meanwhile.

    neurons_compared counts (neuron, sample, execution) triples, in a step graph once per step;
    neurons_different those that differ; outputs_different the output values whose bits differ.
    `layers` has one entry per spiking layer, `executions` one per onnxruntime run, backend and
    mode. steps : T of a step graph, else 0; synaptic operations, spikes and MACs are sums over T.
    """

    digest: str
    samples: int
    samples_sha256: str
    steps: int = 0
    neurons_per_sample: int = 0
    neurons_compared: int = 0
    neurons_different: int = 0
    outputs_compared: int = 0
    outputs_different: int = 0
    first_difference: Difference | None = None
    silent_layers: list[str] = field(default_factory=list)
    minimum_spikes: int = 0
    dense_macs: int = 0
    executions: dict[str, dict[str, Any]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    layers: dict[str, dict[str, Any]] = field(default_factory=dict)
    bounds: dict[str, dict[str, Any]] = field(default_factory=dict)
    quantisation: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    meta: dict[str, str] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        return self.neurons_compared > 0 and not (self.neurons_different or self.outputs_different)

    def to_json(self) -> str:
        return json.dumps({"passed": self.passed, **asdict(self)}, indent=2) + "\n"


def verify(
    graph: Graph,
    samples: Any,
    *,
    labels: npt.ArrayLike | None = None,
    source: Any = None,
    backends: Sequence[str] = ("numba",),
    modes: Sequence[str] = MODES,
    seed: int = 0,
) -> Certificate:
    """Compare every spiking neuron of every sample in every execution, as integers.

    Parameters
    ----------
    samples : [N, *shape] array or a mapping by input name, as for `convert`.
    labels : [N] class of each sample; with it accuracies are reported.
    source : the float model, to report agreement and accuracy beside the certificate.
    backends, modes : what to run besides onnxruntime. A backend that is not installed is listed
        under `skipped` with the reason.

    Returns a Certificate; `passed` says whether nothing differs. Raises BadCalibration.
    """
    x = as_inputs(graph, samples)
    first = graph.inputs[0]
    count = x[first.name].shape[first.batch]
    if labels is not None and np.shape(labels) != (count,):
        raise UsageError(f"labels of shape {np.shape(labels)}; expected ({count},)")
    unknown = [m for m in modes if m not in MODES]
    # to list what other distributions bring takes longer than to verify a small network
    unknown += [b for b in backends if b not in BUILT_IN and b not in available()]
    if unknown:
        raise UsageError(f"'{unknown[0]}' is neither a mode nor a backend")
    session = _Session(graph, x, backends, modes, seed)
    units = sum(n.units * session.times(n) for n in graph.nodes)
    size = int(np.clip(CHUNK_UNITS // max(1, units), 1, 256))
    outputs: dict[str, list[Array]] = {b.name: [] for b in graph.outputs}
    for start in range(0, count, size):
        for name, value in session.compare(start, min(start + size, count)).items():
            outputs[name].append(value)
    certificate = session.finish()
    joined = {b.name: np.concatenate(outputs[b.name], axis=b.batch) for b in graph.outputs}
    certificate.quantisation = quantisation_error(graph, x, joined, labels, source)
    return certificate


class _Session:
    """One verification under way."""

    def __init__(
        self,
        graph: Graph,
        x: dict[str, Array],
        backends: Sequence[str],
        modes: Sequence[str],
        seed: int,
    ):
        self.graph, self.x, self.seed = graph, x, seed
        self.watched = graph.of("spike", "lif", "readout")
        digest = hashlib.sha256()
        for name in sorted(x):
            digest.update(name.encode() + np.ascontiguousarray(x[name]).tobytes())
        first = graph.inputs[0]
        count = x[first.name].shape[first.batch]
        timed = [x[b.name].shape[b.time] for b in graph.inputs if b.time is not None]
        steps = int(graph.steps or (timed[0] if timed else 0))
        self.report = Certificate(graph.digest, count, digest.hexdigest(), steps)
        self.report.neurons_per_sample = sum(n.units for n in self.watched)
        self.fired = {n.name: np.zeros(2, np.int64) for n in graph.of("spike", "lif")}
        self.programs: dict[str, tuple[Any, dict[str, Any]]] = {}
        carries = {"": False, ", carried": True} if graph.sweeps else {"": False}
        for name in backends:
            try:
                get(name)
            except BackendMissing as error:
                self.report.skipped[name] = str(error)
                continue
            program = compile(graph, name)
            offered = getattr(program, "modes", MODES)
            for mode in modes:
                if mode not in offered:
                    self.report.skipped[f"{name} {mode}"] = "the backend does not offer this mode"
                    continue
                for suffix, carry in carries.items():
                    how = {"mode": mode, "carry": carry} if carry else {"mode": mode}
                    self.programs[f"{name} {mode}{suffix}"] = (program, how)
        self._open_onnxruntime()

    def times(self, node: Node) -> int:
        """How often the node is evaluated for one sample."""
        return self.report.steps if self.graph.direction(node.name) else 1

    def _open_onnxruntime(self) -> None:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        # threads that spin between two operators take the CPU from whatever else computes
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        names = [n.name for n in self.watched]
        recording, self.tensors = emit_recording(self.graph, names)
        first = self.graph.inputs[0]
        size = first.dims[first.batch]
        # a large fixed batch would have to be filled up: then the batch axis is left free
        self.batch = size if isinstance(size, int) else 0
        plain = to_bytes(self.graph)
        if self.batch > 64:
            plain, self.batch = emit_recording(self.graph, [])[0].SerializeToString(), 0
        cpu = ["CPUExecutionProvider"]
        self.recorder = ort.InferenceSession(recording.SerializeToString(), options, providers=cpu)
        self.file = ort.InferenceSession(plain, options, providers=cpu)

    def compare(self, start: int, stop: int) -> dict[str, Array]:
        """Compare samples start..stop; returns the outputs of the definition."""
        graph = self.graph
        x = self._take(self.x, slice(start, stop))
        counts = counts_of(graph, x)
        values = dense(graph, counts)
        outputs = {
            b.name: read_out(graph, b, values[b.node], counts.get(LENGTHS)) for b in graph.outputs
        }
        for n in graph.of("spike", "lif"):
            v = values[n.name]
            self.fired[n.name] += [int((v > 0).sum()), int((v < 0).sum())]
            self.report.minimum_spikes += int(np.abs(v).sum())
        recorded = dict(zip(self.tensors, self.recorder.run(self.tensors, x), strict=True))
        for n, tensor in zip(self.watched, self.tensors, strict=True):
            raw = recorded[tensor].astype(np.int64)
            raw = raw + n.lo if recorded[tensor].dtype == np.uint8 else raw
            self._check("onnxruntime, all neurons", n.name, raw, values[n.name], start)
        self._check_outputs("onnxruntime, the file", self._run_file(x), outputs, start)
        names = [n.name for n in self.watched]
        for title, (program, how) in self.programs.items():
            result = program.run(x, record=names, seed=self.seed, **how)
            for name in names:
                self._check(title, name, result.counts[name], values[name], start)
            self._check_outputs(title, result.outputs, outputs, start)
            self._note(title, how["mode"], result)
        return outputs

    def _take(self, x: Mapping[str, Array], chosen: Any) -> dict[str, Array]:
        taken = {b.name: take_samples(b, x[b.name], chosen) for b in self.graph.inputs}
        if self.graph.lengths:
            taken[self.graph.lengths] = x[self.graph.lengths][chosen]
        return taken

    def _run_file(self, x: dict[str, Array]) -> dict[str, Array]:
        names = [b.name for b in self.graph.outputs]
        if not self.batch:
            return dict(zip(names, self.file.run(names, x), strict=True))
        first = self.graph.inputs[0]
        count, parts = x[first.name].shape[first.batch], []
        for at in range(0, count, self.batch):
            index = np.minimum(np.arange(at, at + self.batch), count - 1)
            values = self.file.run(names, self._take(x, index))
            real = slice(0, min(self.batch, count - at))
            found = zip(self.graph.outputs, values, strict=True)
            parts.append([take_samples(b, v, real) for b, v in found])
        return {
            b.name: np.concatenate([p[i] for p in parts], axis=b.batch)
            for i, b in enumerate(self.graph.outputs)
        }

    def _check(self, title: str, node: str, found: Ints, expected: Ints, start: int) -> None:
        entry = self.report.executions.setdefault(title, {"compared": 0, "different": 0})
        wrong = found != expected
        bad = int(wrong.sum())
        entry["compared"] += int(expected.size)
        entry["different"] += bad
        self.report.neurons_compared += int(expected.size)
        self.report.neurons_different += bad
        if bad and self.report.first_difference is None:
            at = np.argwhere(wrong)[0]
            self.report.first_difference = _difference(title, node, at, start, found, expected)

    def _check_outputs(
        self, title: str, found: Mapping[str, Array], expected: Mapping[str, Array], start: int
    ) -> None:
        for b in self.graph.outputs:
            if any(step["op"] != "ArgMax" for step in b.post):
                continue  # float arithmetic behind the last integer; that integer is compared
            left, right = (np.moveaxis(y[b.name], b.batch, 0) for y in (found, expected))
            wrong = _bits(left) != _bits(right)
            self.report.outputs_compared += int(wrong.size)
            self.report.outputs_different += int(wrong.sum())
            if wrong.any() and self.report.first_difference is None:
                at = np.argwhere(wrong)[0]
                self.report.first_difference = _difference(title, b.name, at, start, left, right)

    def _note(self, title: str, mode: str, result: Any) -> None:
        entry = self.report.executions[title]
        spikes = {k: v.sum(axis=0) for k, v in result.spikes.items()}
        total = entry.setdefault("spikes", {k: [0, 0] for k in spikes})
        for name, pair in spikes.items():
            total[name] = [int(total[name][0] + pair[0]), int(total[name][1] + pair[1])]
        synops = sum(int(v.sum()) for v in result.synops.values())
        entry["synops"] = entry.get("synops", 0) + synops
        entry["seconds"] = entry.get("seconds", 0.0) + result.seconds
        if mode == "steps":
            entry["most_steps"] = max(entry.get("most_steps", 0), int(result.steps.max()))
            entry["all_steps"] = entry.get("all_steps", 0) + int(result.steps.sum())

    def finish(self) -> Certificate:
        report, graph = self.report, self.graph
        for name, fired in self.fired.items():
            n = graph.node[name]
            total = n.units * report.samples * self.times(n)
            report.layers[name] = {
                "neurons": n.units,
                "staircase": n.attrs["kind"] if n.op == "spike" else f"{n.op} {n.attrs['kind']}",
                "range": [n.lo, n.hi],
                "share_positive": float(fired[0] / total),
                "share_negative": float(fired[1] / total),
            }
            if not fired.any():
                report.silent_layers.append(name)
        for n in graph.nodes:
            if n.op not in ("input", "route", "max_pool", *DOORS):
                fits = {"below_2_23": n.peak < 2**23, "below_2_24": n.peak < 2**24}
                report.bounds[n.name] = {"bound": n.peak, **fits}
            if n.op == "lif":
                report.bounds[n.name]["membrane"] = membrane_bound(n.attrs, n.params, n.peak)
        for n in graph.of("conv", "linear"):
            report.dense_macs += dense_macs(graph, n.name) * self.times(n)
        for entry in report.executions.values():
            if "all_steps" in entry:
                entry["mean_steps"] = entry.pop("all_steps") / report.samples
        report.versions = versions()
        report.meta = dict(graph.meta)
        return report


def dense_macs(graph: Graph, name: str) -> int:
    """Multiply-accumulates of a conv or linear node for one sample (and step), without padding."""
    node = graph.node[name]
    return int(fan_out(node, graph.node[node.inputs[0]]).sum())


def _difference(
    title: str, node: str, at: Array, start: int, found: Array, expected: Array
) -> Difference:
    place = tuple(int(i) for i in at)
    f, e = float(found[place]), float(expected[place])
    return Difference(title, node, start + place[0], place[1:], f, e)


def _bits(a: Array) -> Array:
    """Bit patterns, so that -0.0 and 0.0 are different and NaN equals itself."""
    contiguous = np.ascontiguousarray(a)
    return contiguous.view(f"u{contiguous.dtype.itemsize}").reshape(contiguous.shape)


def quantisation_error(
    graph: Graph,
    x: Mapping[str, Array],
    outputs: Mapping[str, Array],
    labels: npt.ArrayLike | None,
    source: Any,
) -> dict[str, Any]:
    """How the integer network differs from the float model: measured, never called zero."""
    found: dict[str, Any] = {}
    name = graph.outputs[0].name
    classes = _classes(graph.outputs[0], outputs[name])
    if labels is not None and classes is not None:
        found["accuracy"] = float((classes == np.asarray(labels)).mean())
    if source is None:
        return found
    from snnkit.converters.float_model import FloatModel
    from snnkit.converters.frames import Frame

    model = FloatModel(source, x)
    if model.source_digest != graph.meta.get("source"):
        found["warning"] = "the source given is not the file that the network was converted from"
    model.fix_shapes(x)
    parts = [chunk[name] for chunk in model.run(model.check(x), [name])]
    frame = model.frames.get(name, Frame())
    floats = frame.restored(np.concatenate(parts))
    gap = np.abs(floats.astype(np.float64) - outputs[name].astype(np.float64))
    found["largest_output_gap"] = float(gap.max())
    found["mean_output_gap"] = float(gap.mean())
    predicted = _classes(graph.outputs[0], floats)
    if predicted is not None and classes is not None:
        found["agreement"] = float((predicted == classes).mean())
        if labels is not None:
            found["float_accuracy"] = float((predicted == np.asarray(labels)).mean())
    return found


def _classes(b: Boundary, y: Array) -> Array | None:
    if b.time is not None:
        return None
    flat = np.moveaxis(y, b.batch, 0).reshape(y.shape[b.batch], -1)
    if y.dtype.kind == "i":
        return flat[:, 0] if flat.shape[1] == 1 else None
    return flat.argmax(axis=1) if flat.shape[1] > 1 else None


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("snnkit", "numpy", "numba", "onnx", "onnxruntime"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
