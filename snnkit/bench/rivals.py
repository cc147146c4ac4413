"""What the engine is compared with, on the same float arrays: onnxruntime in three forms."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from snnkit.bench.qdq import qdq_model
from snnkit.errors import SnnkitError
from snnkit.graph import Graph
from snnkit.onnx_writer import emit_recording

Array = npt.NDArray[Any]
Inputs = Mapping[str, Array]
Call = Callable[[Inputs], Sequence[Any]]

FP32, INT8, NET = "onnxruntime fp32", "onnxruntime int8", "onnxruntime net.onnx"
LONGEST_CALIBRATION = 128
"""Samples that the ranges of the int8 rival are taken from."""


@dataclass
class Rivals:
    """candidates : by name, a call from inputs by name to all outputs. left_out : why another is
    missing. notes : what was done to make one."""

    candidates: dict[str, Call] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)


def session(model: onnx.ModelProto, threads: int, dump: Path | None = None) -> Any:
    """An onnxruntime session on `threads` threads that do not spin while they wait.

    On CPUs without VNNI its products of uint8 and int8 saturate in 16 bits unless asked for
    precision: then it takes products of uint8 and uint8, which are exact. VNNI has no such choice.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    options.add_session_config_entry("session.x64quantprecision", "1")
    if dump is not None:
        options.optimized_model_filepath = str(dump)
    return ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def caller(opened: Any, names: Sequence[str]) -> Call:
    def call(x: Inputs) -> Sequence[Any]:
        values: Sequence[Any] = opened.run(names, x)
        return values

    return call


def free_batch(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with the first axis of every input and output left free, arrays no inputs."""
    freed = onnx.ModelProto()
    freed.CopyFrom(model)
    stored = {t.name for t in freed.graph.initializer}
    inputs = [value for value in freed.graph.input if value.name not in stored]
    del freed.graph.input[:]
    freed.graph.input.extend(inputs)
    # before version 4 an initialiser had to be an input too
    freed.ir_version = max(freed.ir_version, 4)
    for value in (*freed.graph.input, *freed.graph.output):
        dims = value.type.tensor_type.shape.dim
        if dims:
            dims[0].Clear()
            dims[0].dim_param = "N"
    del freed.graph.value_info[:]
    return freed


def folded(source: onnx.ModelProto) -> onnx.ModelProto:
    """The model with constants computed and BatchNorm inside the convolutions, by onnxruntime."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "folded.onnx")
        options.optimized_model_filepath = str(path)
        ort.InferenceSession(
            source.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        model: onnx.ModelProto = onnx.load(str(path))
        return model


class _Calibration:
    """Feeds the quantiser of onnxruntime one sample at a time."""

    def __init__(self, x: Inputs):
        count = min(len(next(iter(x.values()))), LONGEST_CALIBRATION)
        self.rows = iter([{k: v[i : i + 1] for k, v in x.items()} for i in range(count)])

    def get_next(self) -> dict[str, Array] | None:
        return next(self.rows, None)


def quantised(source: onnx.ModelProto, x: Inputs) -> onnx.ModelProto:
    """The float model as onnxruntime's own static quantisation makes it.

    QDQ; activations uint8, weights int8 per channel, full range (reduce_range off), ranges from
    the least and largest values on up to 128 samples of `x`.
    """
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    with tempfile.TemporaryDirectory() as folder:
        plain, made = Path(folder, "plain.onnx"), Path(folder, "int8.onnx")
        model = onnx.shape_inference.infer_shapes(folded(source))
        helper.set_model_props(model, {"onnx.quant.pre_process": "onnxruntime.quant"})
        onnx.save(model, plain)
        quantize_static(
            str(plain),
            str(made),
            _Calibration(x),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=False,
        )
        int8: onnx.ModelProto = onnx.load(made)
        return int8


def operators(model: onnx.ModelProto) -> dict[str, int]:
    """How often onnxruntime runs each operator once it has fused what it can."""
    with tempfile.TemporaryDirectory() as folder:
        dump = Path(folder, "optimised.onnx")
        session(model, 1, dump)
        counts: dict[str, int] = {}
        for node in onnx.load(str(dump), load_external_data=False).graph.node:
            counts[node.op_type] = counts.get(node.op_type, 0) + 1
    return counts


def onnxruntime_rivals(
    graph: Graph, source: onnx.ModelProto | None, x: Inputs, threads: int
) -> Rivals:
    """fp32 on the source, int8 made from the source (without one: from the graph), and net.onnx.

    x : samples by input name; the int8 model is calibrated on them.
    """
    found = Rivals()
    names = [b.name for b in graph.outputs]
    found.candidates[NET] = caller(session(emit_recording(graph, [])[0], threads), names)
    if source is None:
        found.left_out[FP32] = "no source model was given (--source model.onnx)"
        make = "this graph as a QDQ model"
    else:
        source = free_batch(source)
        found.candidates[FP32] = caller(session(source, threads), names)
        make = "quantize_static on the source"
    try:
        int8 = qdq_model(graph) if source is None else quantised(source, x)
        found.candidates[INT8] = caller(session(int8, threads), names)
        found.notes[INT8] = {"made": make, "operators": operators(int8)}
    except SnnkitError as error:
        found.left_out[INT8] = str(error)
    except Exception as error:  # onnxruntime's quantiser raises many kinds
        reason = str(error).strip().splitlines() or [type(error).__name__]
        found.left_out[INT8] = f"onnxruntime could not quantise the source: {reason[0]}"
    return found


@cache
def int8_kernels() -> dict[str, Any]:
    """Whether onnxruntime's int8 product runs on VNNI instructions here, seen from outside.

    exact : 255 * 127 + 255 * 127 does not saturate, as it would in 16 bits without VNNI.
    int8_macs_per_second, fp32_macs_per_second : of a 512 x 512 x 512 product on one thread.
    """
    size = 512
    rng = np.random.default_rng(0)
    weight = rng.integers(-127, 128, (size, size)).astype(np.int8)
    data = rng.integers(0, 256, (size, size)).astype(np.uint8)
    full = np.full((size, size), 127, np.int8)
    product = _product("MatMulInteger", TensorProto.UINT8, TensorProto.INT32, full)
    top = product.run(None, {"a": np.full((2, size), 255, np.uint8)})[0]
    fast = _product("MatMulInteger", TensorProto.UINT8, TensorProto.INT32, weight)
    slow = _product("MatMul", TensorProto.FLOAT, TensorProto.FLOAT, weight.astype(np.float32))
    return {
        "exact": bool((top == 255 * 127 * size).all()),
        "int8_macs_per_second": size**3 / _best(fast, data),
        "fp32_macs_per_second": size**3 / _best(slow, data.astype(np.float32)),
    }


def _product(op: str, kind: int, result: int, weight: Array) -> Any:
    size = len(weight)
    body = helper.make_graph(
        [helper.make_node(op, ["a", "w"], ["c"])],
        "product",
        [helper.make_tensor_value_info("a", kind, ["N", size])],
        [helper.make_tensor_value_info("c", result, ["N", size])],
        [numpy_helper.from_array(weight, "w")],
    )
    opset = [helper.make_opsetid("", 17)]
    return session(helper.make_model(body, opset_imports=opset, ir_version=8), 1)


def _best(opened: Any, data: Array) -> float:
    best = float("inf")
    for _ in range(12):
        start = time.thread_time()
        opened.run(None, {"a": data})
        best = min(best, time.thread_time() - start)
    return best
