"""ANN -> QCNN = BIF-SNN: a float model becomes a graph of integers."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

import snnkit
from snnkit.converters.boundaries import read_input, read_output
from snnkit.converters.calibration import CALIBRATORS, Statistics
from snnkit.converters.float_model import FloatModel
from snnkit.converters.from_qat import convert_prepared, is_prepared
from snnkit.converters.from_recurrent import convert_recurrent, is_recurrent
from snnkit.converters.handlers import HANDLERS
from snnkit.converters.network import Network, Policy
from snnkit.converters.nir_time import Timing, is_nir
from snnkit.converters.operators import Array
from snnkit.converters.packing import pack_by
from snnkit.converters.reader import Reader, unsupported_ops
from snnkit.converters.staircases import FORMS
from snnkit.errors import BadCalibration, UnsupportedModel, UsageError
from snnkit.graph import Graph

__all__ = ["Timing", "convert", "examine"]


def convert(
    model: Any,
    calibration: Any = None,
    *,
    levels: int | None = None,
    weight_bits: int = 8,
    calibrator: str = "mse",
    staircase: str = "auto",
    bias_correction: bool = True,
    pack: bool = True,
    timing: Timing | None = None,
    target: str | None = None,
    expression: str | None = None,
) -> Graph:
    """A float model as a graph of integers; from there on the conversion error is zero.

    The step from float to integer has a quantisation error, which `verify` measures.

    Parameters
    ----------
    model : path, bytes, onnx.ModelProto, or torch.nn.Module (exported to ONNX first). A model
        from `snnkit.nn.prepare`, or a `snnkit.models.crnn.QuantisedCRNN`, gives the integers that
        training used; options and calibration are its own then. A network of `snnkit.nn` neurons
        becomes `lif` nodes, or binary spikes at one time step (`converters.from_snn`). So does
        a NIR file, PATH.nir, or nir.NIRGraph (`converters.from_nir`), with calibration optional.
        RNN, GRU and LSTM operators make a step graph (`converters.recurrent`).
    calibration : array in the layout that the model expects ([N, *shape]; sequences may be
        [T, N, F]), or a mapping by input name. Real inputs in the model's own scaling: ranges
        and the input's scale come from them, nothing is guessed.
    levels : 1..255, steps of each activation's staircase; default 255, for a target fewer.
    weight_bits : 2..8, symmetric, per output channel.
    calibrator : "mse" (least squared error), "percentile" (99.9), "minmax".
    staircase : "auto" (one theta per channel where that moves no level noticeably, else a
        ladder), "uniform" (one theta wherever the activation allows it), "ladder".
    bias_correction : move each bias so that mean charges equal the float model's.
    pack : renumber the channels of hidden layers so that channels that fire together lie together
        (`snnkit.converters.packing`): exact, and less work. False keeps the model's own order,
        as a prepared model always does.
    timing : of a NIR network only: `snnkit.converters.Timing`, how its equations step.
    target, expression : a chip (`snnkit.targets`) and the kind of its neurons (`snnkit.fit`):
        grids are chosen so that every charge, threshold and bias fits there.

    Raises
    ------
    UnsupportedModel : with every node that cannot be converted, or does not fit the target, by
        name.
    BadCalibration : wrong shape or type, empty, NaN.
    """
    steps = 255 if levels is None else levels
    policy = Policy(steps, weight_bits, calibrator, staircase, bias_correction, pack)
    if target is None:
        if expression is not None:
            raise UsageError(f"expression {expression!r} without a target; expected both")
        return _convert(model, calibration, policy, timing)
    return _for_target(model, calibration, policy, timing, target, expression, levels is None)


def _for_target(
    model: Any,
    calibration: Any,
    policy: Policy,
    timing: Timing | None,
    target: str,
    expression: str | None,
    free_levels: bool,
) -> Graph:
    """A graph that fits the target. free_levels : the target chooses the number of levels."""
    from snnkit.converters.for_target import LEVELS, chosen, fitted, require

    chip, kind = chosen(target, expression)
    if is_prepared(model) or is_recurrent(model) or is_nir(model) or _is_spiking(model):
        return require(_convert(model, calibration, policy, timing), chip, kind)
    if free_levels:
        policy = replace(policy, levels=LEVELS[kind])
    return fitted(lambda p: _convert(model, calibration, p, timing), policy, chip, kind)


def _convert(model: Any, calibration: Any, policy: Policy, timing: Timing | None) -> Graph:
    _check(policy)
    if timing is not None and not is_nir(model):
        raise UsageError(f"{timing} for a model without differential equations; expected a NIR one")
    if is_prepared(model) or is_recurrent(model) or is_nir(model) or _is_spiking(model):
        return _as_it_is(model, calibration, policy, timing)
    if calibration is None:
        raise BadCalibration("no calibration data; expected real inputs [N, *shape] of the model")
    source = _loaded(model, calibration)
    return _build(source, _named(source, calibration), policy)


def _as_it_is(model: Any, calibration: Any, policy: Policy, timing: Timing | None) -> Graph:
    """A network that is spiking, or has integers, already: most options do not apply."""
    if is_prepared(model) or is_recurrent(model):
        if policy != Policy(pack=policy.pack):
            raise UsageError(
                f"{policy} for a prepared model; expected none: set levels and weight bits in "
                "snnkit.nn.prepare or QuantisedCRNN"
            )
        if is_recurrent(model):
            return convert_recurrent(model, calibration)
        return convert_prepared(model, calibration)
    if policy != Policy(weight_bits=policy.weight_bits, pack=policy.pack):
        raise UsageError(f"{policy} for a spiking network; expected weight_bits only")
    if is_nir(model):
        from snnkit.converters.from_nir import from_nir

        return from_nir(model, calibration, timing=timing, weight_bits=policy.weight_bits)
    from snnkit.converters.from_snn import from_snn

    return from_snn(model, calibration, weight_bits=policy.weight_bits)


def _check(policy: Policy) -> None:
    """Raise UsageError for options that do not exist."""
    if not 1 <= policy.levels <= 255 or not 2 <= policy.weight_bits <= 8:
        raise UsageError(
            f"levels {policy.levels}, weight_bits {policy.weight_bits}; expected 1..255 and 2..8"
        )
    if policy.calibrator not in CALIBRATORS or policy.staircase not in FORMS:
        raise UsageError(
            f"calibrator {policy.calibrator!r}, staircase {policy.staircase!r}; expected one of "
            f"{CALIBRATORS} and {FORMS}"
        )


def _is_spiking(model: Any) -> bool:
    """Whether `model` is a torch module with neurons of `snnkit.nn`. Imports no torch."""
    state = sys.modules.get("snnkit.nn.state")
    modules = getattr(model, "modules", None)
    if state is None or not callable(modules):
        return False
    return any(isinstance(m, state.Stateful) for m in modules())


def examine(model: Any, samples: Any = None) -> Graph:
    """A dry conversion, with made-up data if there is none: the layers, or UnsupportedModel with
    every reason. `samples` fixes dimensions that the model leaves open."""
    if is_prepared(model):
        return convert_prepared(model, samples)
    if is_nir(model):
        return convert(model, samples)
    source = _loaded(model, samples)
    named = None if samples is None else _named(source, samples)
    return _build(source, named, Policy(calibrator="minmax", bias_correction=False, pack=False))


def _named(source: FloatModel, samples: Any) -> dict[str, Array]:
    if isinstance(samples, Mapping):
        return dict(samples)
    return {port.name: np.asarray(samples) for port in source.inputs[:1]}


def _loaded(model: Any, calibration: Any) -> FloatModel:
    if type(model).__module__.split(".")[0] not in ("onnx", "builtins", "pathlib"):
        from snnkit.converters.from_torch import export, is_module

        if is_module(model):
            return FloatModel(export(model, calibration))
    return FloatModel(model, calibration)


def _build(source: FloatModel, given: dict[str, Array] | None, policy: Policy) -> Graph:
    problems = unsupported_ops(source, HANDLERS)
    try:
        source.fix_shapes(given)
        samples = source.check(source.made_up() if given is None else given)
        statistics = Statistics(source, samples)
    except UnsupportedModel:
        if problems:  # most likely why onnxruntime could not run it
            raise UnsupportedModel(problems) from None
        raise
    network = Network(policy, statistics)
    reader = Reader(source, network, HANDLERS)
    inputs = [read_input(reader, port, statistics) for port in source.data_inputs]
    reader.read()
    outputs = [read_output(reader, port) for port in source.outputs]
    if reader.problems:
        raise UnsupportedModel(reader.problems)
    nodes, sweeps = network.plan.sweeps([b.node for b in (*inputs, *outputs)])
    graph = Graph(
        nodes,
        tuple(inputs),
        tuple(outputs),
        _meta(source, statistics, policy, policy.pack and not sweeps),
        sweeps,
        source.steps if sweeps and not source.free_steps else 0,
        {n.name: network.plan.latches[n.name] for n in nodes if n.op == "latch"},
        source.lengths,
        next((p.dtype for p in source.inputs if p.name == source.lengths), "int32"),
    )
    if policy.pack and not sweeps:
        graph = pack_by(graph, network.value).graph
    graph.check()
    return graph


def _meta(
    source: FloatModel, statistics: Statistics, policy: Policy, packed: bool
) -> dict[str, str]:
    count = statistics.count
    correction = "yes" if policy.bias_correction else "no"
    return {
        "version": snnkit.__version__,
        "source": source.source_digest,
        "calibration": f"{count} samples, {policy.calibrator}, bias correction {correction}",
        "quantisation": f"levels {policy.levels}, weight bits {policy.weight_bits}, "
        f"staircase {policy.staircase}",
        "channels": "by activity" if packed else "as in the source",
        **({"elements": source.fixed} if source.fixed else {}),
    }
