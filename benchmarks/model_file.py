"""A stack of convolutions as an ONNX file: float32 input and output, any batch size."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

Floats = npt.NDArray[np.floating]


def model(
    name: str,
    shape: tuple[int, int, int],
    convs: Sequence[tuple[Floats, Floats, int]],
    readout: tuple[Floats, Floats],
) -> onnx.ModelProto:
    """3x3 convolutions (weight [out, in, 3, 3], bias [out], stride; pad 1) with ReLU, then a
    linear readout (weight [out, in], bias [out]).

    Weights lie as float16 and are cast to float32: half the size, and exact for weights that were
    rounded to float16 before.
    """
    nodes, arrays = [], []

    def constant(label: str, value: Floats) -> str:
        arrays.append(numpy_helper.from_array(value.astype(np.float16), f"{label}_half"))
        nodes.append(helper.make_node("Cast", [f"{label}_half"], [label], label, to=1))
        return label

    value = "input"
    for i, (weight, bias, stride) in enumerate(convs, 1):
        given = [value, constant(f"w{i}", weight), constant(f"b{i}", bias)]
        window = {"kernel_shape": [3, 3], "pads": [1] * 4, "strides": [stride] * 2}
        nodes.append(helper.make_node("Conv", given, [f"charge{i}"], f"conv{i}", **window))
        value = f"relu{i}"
        nodes.append(helper.make_node("Relu", [f"charge{i}"], [value], value))
    nodes.append(helper.make_node("Flatten", [value], ["flat"], "flat"))
    given = ["flat", constant("w", readout[0]), constant("b", readout[1])]
    nodes.append(helper.make_node("Gemm", given, ["logits"], "linear", transB=1))
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", *shape])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", len(readout[1])])],
        arrays,
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(made)
    return made
