"""ANN -> QCNN = BIF-SNN: a float model becomes a graph of integers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

import snnkit
from snnkit.converters.activations import Floats
from snnkit.converters.calibration import CALIBRATORS, Statistics
from snnkit.converters.float_model import Array, FloatModel, Port
from snnkit.converters.handlers import HANDLERS
from snnkit.converters.network import GRID_BOUND, Affine, Network, Policy, varies_only
from snnkit.converters.reader import Posted, Reader, unsupported_ops
from snnkit.converters.staircases import FORMS
from snnkit.errors import Problem, UnsupportedModel, UsageError
from snnkit.graph import Boundary, Graph, Node, frozen

__all__ = ["convert", "examine"]

INPUT_LEVELS = 255


def convert(
    model: Any,
    calibration: Any,
    *,
    levels: int = 255,
    weight_bits: int = 8,
    calibrator: str = "mse",
    staircase: str = "auto",
    bias_correction: bool = True,
) -> Graph:
    """A float model as a graph of integers; from there on the conversion error is zero.

    The step from float to integer has a quantisation error, which `verify` measures.

    Parameters
    ----------
    model : path, bytes, onnx.ModelProto, or torch.nn.Module (exported to ONNX first).
    calibration : [N, *shape] array, or a mapping by input name. Real inputs in the scaling that
        the model expects: ranges and the input's scale come from them, nothing is guessed.
    levels : 1..255, steps of each activation's staircase.
    weight_bits : 2..8, symmetric, per output channel.
    calibrator : "mse" (least squared error), "percentile" (99.9), "minmax".
    staircase : "auto" (one theta per channel where that moves no level noticeably, else a
        ladder), "uniform" (one theta wherever the activation allows it), "ladder".
    bias_correction : move each bias so that mean charges equal the float model's.

    Raises
    ------
    UnsupportedModel : with every node that cannot be converted, by name.
    BadCalibration : wrong shape or type, empty, NaN.
    """
    if not 1 <= levels <= 255 or not 2 <= weight_bits <= 8:
        raise UsageError(f"levels {levels}, weight_bits {weight_bits}; expected 1..255 and 2..8")
    if calibrator not in CALIBRATORS or staircase not in FORMS:
        raise UsageError(f"calibrator {calibrator!r}, staircase {staircase!r}; expected one of "
                         f"{CALIBRATORS} and {FORMS}")
    policy = Policy(levels, weight_bits, calibrator, staircase, bias_correction)
    source = _loaded(model, calibration)
    named = dict(calibration) if isinstance(calibration, Mapping) else None
    if named is None and source.inputs:
        named = {source.inputs[0].name: np.asarray(calibration)}
    return _build(source, named or {}, policy)


def examine(model: Any, samples: Any = None) -> Graph:
    """A dry conversion with made-up data: the layers, or UnsupportedModel with every reason."""
    source = _loaded(model, samples)
    _refuse_ops(source)
    named = None
    if samples is not None:
        named = dict(samples) if isinstance(samples, Mapping) else {source.inputs[0].name: samples}
    source.fix_shapes(named)
    rng = np.random.default_rng(0)
    made = {
        p.name: rng.uniform(0, 1, (max(2, source.batch), *p.dims[1:])).astype(np.float32)
        for p in source.inputs
    }
    return _build(source, named or made, Policy(calibrator="minmax", bias_correction=False))


def _loaded(model: Any, calibration: Any) -> FloatModel:
    if type(model).__module__.split(".")[0] not in ("onnx", "builtins", "pathlib"):
        from snnkit.converters.from_torch import export, is_module

        if is_module(model):
            return FloatModel(export(model, calibration))
    return FloatModel(model)


def _refuse_ops(source: FloatModel) -> None:
    problems = unsupported_ops(source, HANDLERS)
    if problems:
        try:
            source.fix_shapes(None)
            _build_checked(source, {}, Policy())
        except UnsupportedModel as error:
            if {p.node for p in problems} <= {p.node for p in error.problems}:
                raise
        raise UnsupportedModel(problems)


def _build(source: FloatModel, samples: dict[str, Array], policy: Policy) -> Graph:
    problems = unsupported_ops(source, HANDLERS)
    if problems:
        raise UnsupportedModel(problems)
    source.fix_shapes(samples)
    return _build_checked(source, source.check(samples), policy)


def _build_checked(source: FloatModel, samples: dict[str, Array], policy: Policy) -> Graph:
    statistics = Statistics(source, samples)
    network = Network(policy, statistics)
    reader = Reader(source, network, HANDLERS)
    inputs = [_input(reader, port, statistics) for port in source.inputs]
    reader.read()
    outputs = [_output(reader, port) for port in source.outputs]
    if reader.problems:
        raise UnsupportedModel(reader.problems)
    used = _ancestors(network, [b.node for b in (*inputs, *outputs)])
    nodes = tuple(n for n in network.nodes.values() if n.name in used)
    graph = Graph(nodes, tuple(inputs), tuple(outputs), _meta(source, statistics, policy))
    graph.check()
    return graph


def _meta(source: FloatModel, statistics: Statistics, policy: Policy) -> dict[str, str]:
    count = len(next(iter(statistics.samples.values())))
    correction = "yes" if policy.bias_correction else "no"
    return {
        "version": snnkit.__version__,
        "source": source.source_digest,
        "calibration": f"{count} samples, {policy.calibrator}, bias correction {correction}",
        "quantisation": f"levels {policy.levels}, weight bits {policy.weight_bits}, {policy.staircase}",
    }


def _ancestors(network: Network, names: list[str]) -> set[str]:
    used: set[str] = set()
    stack = list(names)
    while stack:
        name = stack.pop()
        if name not in used:
            used.add(name)
            stack.extend(network.nodes[name].inputs)
    return used


def _input(reader: Reader, port: Port, statistics: Statistics) -> Boundary:
    shape = tuple(int(n) for n in port.dims[1:])
    samples = statistics.samples[port.name].astype(np.float32)
    scale, offset, lo = _input_grid(samples, len(shape))
    attrs = {"shape": shape, "lo": lo, "hi": lo + INPUT_LEVELS}
    node = reader.net.add(port.name, "input", (), {}, attrs)
    boundary = Boundary(port.name, node.name, port.dtype, port.dims, scale, offset)
    from snnkit.boundary import quantise

    few = statistics.samples[port.name][: statistics.mean_count]
    reader.net.counts[node.name] = quantise(boundary, node, few)
    affine = reader.net.affine(node, scale.astype(np.float64), offset.astype(np.float64))
    reader.values[port.name] = affine
    return boundary


def _input_grid(x: Array, rank: int) -> tuple[Array, Array, int]:
    """(scale, offset, lo) of the input quantiser.

    Data that lie on a grid of at most 256 values per channel (8-bit images in any scaling,
    normalised or not) are read exactly, and their least value, the background, is no event.
    Other data get 255 equal steps with zero among them.
    """
    channels = x.shape[1] if rank > 1 else 1
    by_channel = np.moveaxis(x.reshape(x.shape[0], channels, -1), 1, 0).reshape(channels, -1)
    grids = [_grid(values) for values in by_channel]
    if all(g is not None for g in grids):
        along = (channels, *(1,) * (rank - 1)) if rank > 1 else (1,) * rank
        scale = np.array([g[0] for g in grids if g], np.float32).reshape(along)
        offset = np.array([g[1] for g in grids if g], np.float32).reshape(along)
        return _shrunk(scale), _shrunk(offset), 0
    low, high = min(0.0, float(x.min())), max(0.0, float(x.max()))
    step = (high - low) / INPUT_LEVELS or 1.0
    lo = int(np.rint(low / step))
    return frozen(np.float32(step)), frozen(np.float32(0.0)), lo


def _shrunk(a: Array) -> Array:
    return frozen(a.reshape(-1)[0] if (a == a.reshape(-1)[0]).all() else a)


def _grid(values: Array) -> tuple[float, float] | None:
    """(step, least value) if all values lie on least + k * step, k = 0..255; else None."""
    levels = np.unique(values)
    if len(levels) > 256:
        return None
    if len(levels) == 1:
        return 1.0, float(levels[0])
    gaps = np.diff(levels.astype(np.float64))
    # float32 noise on equal values of a normalised image is not a step
    step = float(gaps[gaps > 1e-4 * gaps.max()].min())
    span = float(levels[-1]) - float(levels[0])
    count = round(span / step)
    if not 1 <= count <= 255:
        return None
    step = span / count
    k = (levels - np.float64(levels[0])) / step
    return (step, float(levels[0])) if (np.abs(k - np.rint(k)) < 1e-3).all() else None


def _output(reader: Reader, port: Port) -> Boundary:
    value = reader.values.get(port.name)
    if value is None:
        reader.problems.append(
            Problem(port.name, "output", "does not depend on the data", "leave this output out")
        )
        return Boundary(port.name, "", port.dtype, port.dims, np.float32(1.0), np.float32(0.0))
    steps = value.steps if isinstance(value, Posted) else ()
    x = value.value if isinstance(value, Posted) else value
    tensor = _before_steps(reader, port.name) if steps else port.name
    x = reader.net.positive(reader.net.corrected(x, tensor))
    if not any(varies_only(x.scale, axis) for axis in range(max(1, len(x.shape)))):
        x = reader.net.even(x, port.name)
    x = _finer(reader, x, port.name)
    bias = np.rint(x.offset / x.scale)
    bias = np.clip(bias, -GRID_BOUND, GRID_BOUND).astype(np.int64)
    name = f"{port.name}.readout"
    node = reader.net.add(name, "readout", [x.node], {"bias": bias})
    scale = frozen(x.scale.astype(np.float32)) if x.scale.size > 1 else frozen(x.scale.reshape(()).astype(np.float32))
    dims = (reader.model.inputs[0].dims[0], *reader.model.shapes[port.name][1:])
    return Boundary(port.name, node.name, port.dtype, dims, scale, frozen(np.float32(0.0)), steps)


def _before_steps(reader: Reader, name: str) -> str:
    """The tensor that the float steps behind the readout start from."""
    made = {o: op for op in reader.model.ops for o in op.outputs}
    while name in made and isinstance(reader.values.get(name), Posted):
        name = made[name].inputs[0]
    return name


def _finer(reader: Reader, x: Affine, name: str) -> Affine:
    """x on a finer grid if its offset would lose more than a part of 2^-8 of a step."""
    parts = x.offset / x.scale
    if x.node.op in ("conv", "linear") or not np.abs(parts - np.rint(parts)).max() > 2.0**-8:
        return x
    if x.node.peak * 2**8 > GRID_BOUND:
        return x
    node = reader.net.add(f"{name}.fine", "add", [x.node], {"m0": np.int64(2**8)})
    return reader.net.affine(node, x.scale / 2**8, x.offset)
