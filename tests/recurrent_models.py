"""Small recurrent ONNX models, drawn at random or by hand."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = npt.NDArray[Any]
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
FLOAT, INT32 = TensorProto.FLOAT, TensorProto.INT32


@dataclass
class Sequences:
    """A model under construction; `given` holds inputs in the model's own layout."""

    rng: np.random.Generator
    features: int = 3
    samples: int = 12
    steps: int = 4
    batch_first: bool = False
    free: bool = False
    batch_size: int | str = "batch"
    nodes: list[Any] = field(default_factory=list)
    arrays: list[Any] = field(default_factory=list)
    ports: list[Any] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    given: dict[str, Array] = field(default_factory=dict)
    batch: dict[str, int] = field(default_factory=dict)

    def input(
        self, name: str, shape: list[Any], value: Array, batch: int, kind: int = FLOAT
    ) -> str:
        self.ports.append(helper.make_tensor_value_info(name, kind, shape))
        self.given[name], self.batch[name] = value, batch
        return name

    def sequence(self, name: str = "x", *units: int) -> str:
        """An input [T, N, ...], or [N, T, ...]."""
        units = units or (self.features,)
        lead: list[Any] = [self.batch_size, "time" if self.free else self.steps]
        shape = [self.samples, self.steps, *units]
        value = self.rng.normal(size=shape).astype(np.float32)
        if not self.batch_first:
            lead, value = lead[::-1], value.swapaxes(0, 1)
        return self.input(name, [*lead, *units], value, 0 if self.batch_first else 1)

    def constant(self, value: Array, name: str = "") -> str:
        label = name or f"c{len(self.arrays)}"
        self.arrays.append(numpy_helper.from_array(value, label))
        return label

    def weights(self, *shape: int, scale: float = 0.8) -> str:
        return self.constant(self.rng.normal(0, scale, shape).astype(np.float32))

    def op(self, kind: str, inputs: list[str], outputs: int = 1, **attrs: Any) -> list[str]:
        names = [f"{kind.lower()}{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, inputs, names, name=names[0], **attrs))
        return names

    def recurrent(
        self,
        kind: str,
        x: str,
        features: int,
        hidden: int,
        directions: int = 1,
        lengths: str = "",
        states: list[str] | None = None,
        peepholes: bool = False,
        **attrs: Any,
    ) -> list[str]:
        """Y, Y_h and, for an LSTM, Y_c."""
        many = GATES[kind] * hidden
        inputs = [x, self.weights(directions, many, features)]
        inputs.append(self.weights(directions, many, hidden))
        inputs += [self.weights(directions, 2 * many, scale=0.5), lengths, *(states or [])]
        if peepholes:
            inputs += [""] * (7 - len(inputs)) + [self.weights(directions, 3 * hidden)]
        if directions == 2:
            attrs["direction"] = "bidirectional"
        while not inputs[-1]:
            inputs.pop()
        outputs = 3 if kind == "LSTM" else 2
        return self.op(kind, inputs, outputs, hidden_size=hidden, **attrs)

    def model(self, *outputs: str, opset: int = 18) -> onnx.ModelProto:
        body = helper.make_graph(
            self.nodes,
            "sequences",
            self.ports,
            [onnx.ValueInfoProto(name=o) for o in outputs or self.outputs],
            self.arrays,
        )
        for value in body.output:
            value.type.tensor_type.elem_type = FLOAT
        return helper.make_model(body, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)

    def some(self, count: int) -> dict[str, Array]:
        """The first samples."""
        return {
            name: np.take(value, np.arange(count), self.batch[name])
            for name, value in self.given.items()
        }


def drawn(seed: int) -> tuple[onnx.ModelProto, Sequences]:
    """A random stack of one or two recurrent operators of random kinds and options."""
    rng = np.random.default_rng(seed)

    def maybe(chance: float = 0.5) -> bool:
        return bool(rng.random() < chance)

    lengths = maybe(0.25)
    layout = int(maybe(0.3))
    s = Sequences(
        rng,
        samples=12,
        steps=int(rng.integers(3, 6)),
        batch_first=maybe() or bool(layout),
        free=maybe() or lengths,
    )
    x = s.sequence()
    if s.batch_first and not layout:
        x = s.op("Transpose", [x], perm=[1, 0, 2])[0]
    count = ""
    if lengths:
        value = rng.integers(1, s.steps + 1, s.samples).astype(np.int32)
        value[0] = s.steps
        count = s.input("lengths", ["batch"], value, 0, INT32)
    features, found = s.features, []
    for layer in range(int(rng.integers(1, 3))):
        kind = str(rng.choice(["RNN", "GRU", "LSTM"]))
        hidden, directions = int(rng.integers(2, 5)), int(rng.integers(1, 3))
        found = _layer(s, kind, x, features, hidden, directions, count, layout, layer, maybe)
        features = hidden * directions
        x = found[0]
        if layout:
            x = s.op("Reshape", [x, s.constant(np.array([0, 0, features]))])[0]
        else:
            x = s.op("Transpose", [x], perm=[0, 2, 1, 3])[0]
            x = s.op("Reshape", [x, s.constant(np.array([0, 0, features]))])[0]
    s.outputs = [x, *found[1:]]
    if not count and maybe():
        axis = 1 if layout else 0
        last = s.op("Gather", [x, s.constant(np.array(-1))], axis=axis)[0]
        y = s.op("Gemm", [last, s.weights(features, 3), s.weights(3)])[0]
        s.outputs.append(y)
    elif not count and maybe():
        s.outputs[0] = s.op("MatMul", [x, s.weights(features, 3)])[0]
    return s.model(), s


def _layer(
    s: Sequences,
    kind: str,
    x: str,
    features: int,
    hidden: int,
    directions: int,
    count: str,
    layout: int,
    layer: int,
    maybe: Any,
) -> list[str]:
    attrs: dict[str, Any] = {"layout": layout} if layout else {}
    if kind == "GRU":
        attrs["linear_before_reset"] = int(maybe())
    if kind == "RNN" and maybe():
        attrs["activations"] = [str(s.rng.choice(["Relu", "Sigmoid", "Softsign"]))] * directions
    if maybe(0.2):
        attrs["clip"] = 1.5
    if directions == 1 and maybe(0.3):
        attrs["direction"] = "reverse"
    states = []
    for i in range(2 if kind == "LSTM" else 1):
        shape = [s.samples, directions, hidden] if layout else [directions, s.samples, hidden]
        value = s.rng.normal(0, 0.5, shape).astype(np.float32)
        dims = ["batch" if n == s.samples else n for n in shape]
        how = int(s.rng.integers(0, 2))
        name = f"state{layer}{i}"
        states.append(s.input(name, dims, value, 1 - layout) if how else "")
    peepholes = kind == "LSTM" and maybe(0.3)
    return s.recurrent(kind, x, features, hidden, directions, count, states, peepholes, **attrs)
