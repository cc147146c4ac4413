"""What a float model consists of, as read from the file: operators, ports, and what a run says."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

from snnkit.boundary import DTYPES

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Op:
    """One ONNX node, with attributes as Python values."""

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attrs: Mapping[str, Any]
    proto: onnx.NodeProto


@dataclass(frozen=True)
class Port:
    """A graph input or output as declared: name, ONNX type, dimensions (str: symbolic), which of
    them is the batch, and which, if any, the elements of a sequence."""

    name: str
    dtype: str
    dims: tuple[int | str, ...]
    batch: int = 0
    time: int | None = None


@dataclass(frozen=True, eq=False)
class Probe:
    """What one run of the model says: shapes and types of all tensors, values of the constants."""

    batch: int
    steps: int
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    dtypes: dict[str, np.dtype[Any]] = field(default_factory=dict)
    constants: dict[str, Array] = field(default_factory=dict)


def read_ports(values: Iterable[onnx.ValueInfoProto]) -> tuple[Port, ...]:
    """The declared inputs or outputs of a graph."""
    ports = []
    for value in values:
        kind = value.type.tensor_type.elem_type
        names = {helper.np_dtype_to_tensor_dtype(np.dtype(t)): n for n, t in DTYPES.items()}
        dims: list[int | str] = []
        for i, d in enumerate(value.type.tensor_type.shape.dim):
            symbol = d.dim_param or ("batch" if i == 0 else f"dim{i}")
            dims.append(d.dim_value if d.dim_value > 0 else symbol)
        known = kind in TensorProto.DataType.values()
        dtype = names.get(kind, TensorProto.DataType.Name(kind).lower() if known else f"{kind}")
        ports.append(Port(value.name, dtype, tuple(dims)))
    return tuple(ports)


def read_op(node: onnx.NodeProto) -> Op:
    """An ONNX node as it is read here; it is called by its first output where it has no name."""
    attrs = {}
    for a in node.attribute:
        value = helper.get_attribute_value(a)
        attrs[a.name] = value.decode() if isinstance(value, bytes) else value
    name = node.name or (node.output[0] if node.output else node.op_type)
    op = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"
    return Op(name, op, tuple(node.input), tuple(node.output), attrs, node)
