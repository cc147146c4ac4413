"""Small float ONNX models, built by hand: one per operator or trap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.sessions import session


@dataclass
class Builder:
    """Collects nodes in a chain; `at` is the last tensor."""

    shape: tuple[int, ...]
    seed: int = 0
    opset: int = 17
    batch: Any = "N"
    nodes: list[Any] = field(default_factory=list)
    arrays: dict[str, Any] = field(default_factory=dict)
    at: str = "x"

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)

    def array(self, value: Any, dtype: Any = np.float32) -> str:
        name = f"c{len(self.arrays)}"
        self.arrays[name] = np.asarray(value, dtype)
        return name

    def normal(self, *shape: int, scale: float = 1.0) -> str:
        return self.array(self.rng.normal(0, scale, shape))

    def op(self, op: str, *inputs: str, source: str = "", outputs: int = 1, **attrs: Any) -> str:
        names = [f"t{len(self.nodes)}_{i}" for i in range(outputs)]
        feeds = [source or self.at, *inputs]
        name = f"{op.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, feeds, names, name=name, **attrs))
        self.at = names[0]
        return self.at

    def conv(self, out: int, into: int, kernel: Sequence[int] = (3, 3), **attrs: Any) -> str:
        group = attrs.get("group", 1)
        weight = self.normal(out, into // group, *kernel, scale=0.5)
        return self.op("Conv", weight, self.normal(out, scale=0.3), **attrs)

    def linear(self, out: int, into: int) -> str:
        weight = self.normal(into, out, scale=into**-0.5)
        return self.op("Gemm", weight, self.normal(out, scale=0.2))

    def norm(self, channels: int, *, negative: bool = False) -> str:
        gamma = self.rng.uniform(0.4, 1.6, channels)
        if negative:
            gamma = gamma * np.where(np.arange(channels) % 2, -1, 1)
            gamma[0] = 0.0
        parts = [gamma, self.rng.normal(0, 0.3, channels), self.rng.normal(0, 0.5, channels)]
        parts.append(self.rng.uniform(0.5, 2, channels))
        return self.op("BatchNormalization", *(self.array(p) for p in parts))

    def model(self, *outputs: str) -> onnx.ModelProto:
        ends = outputs or (self.at,)
        graph = helper.make_graph(
            self.nodes,
            "test",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [self.batch, *self.shape])],
            [onnx.ValueInfoProto(name=e) for e in ends],
            [numpy_helper.from_array(v, k) for k, v in self.arrays.items()],
        )
        inferred = onnx.shape_inference.infer_shapes(
            helper.make_model(
                graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8
            )
        )
        return inferred

    def samples(self, n: int = 48) -> Any:
        return self.rng.normal(0.3, 1, (n, *self.shape)).astype(np.float32)


def _conv(shape: tuple[int, ...] = (3, 9, 7), **attrs: Any) -> Builder:
    b = Builder(shape)
    b.conv(4 * attrs.get("group", 1), shape[0], attrs.pop("kernel", (3, 3)), **attrs)
    b.op("Relu")
    return _head(b)


def _head(b: Builder) -> Builder:
    """Average over everything behind the channel axis, then classes."""
    b.op("Flatten")
    width = int(np.prod(_static_shape(b)[1:]))
    b.linear(5, width)
    return b


def _static_shape(b: Builder) -> tuple[int, ...]:
    inferred = b.model()
    dims = inferred.graph.output[0].type.tensor_type.shape.dim
    if not dims or any(d.dim_value == 0 for d in dims[1:]):
        return session(inferred).run(None, {"x": np.zeros((1, *b.shape), np.float32)})[0].shape
    return tuple(d.dim_value for d in dims)


def _activation(op: str, *inputs: Any, signed: bool = True, **attrs: Any) -> Builder:
    b = Builder((3, 6, 5))
    b.conv(5, 3, pads=[1, 1, 1, 1])
    b.op(op, *(b.array(v) for v in inputs), **attrs)
    b.conv(4, 5)
    b.op("Relu")
    return _head(b)


def _prelu(slopes: Any) -> Builder:
    b = Builder((3, 6, 5))
    b.conv(5, 3)
    b.op("PRelu", b.array(np.reshape(slopes, (-1, 1, 1))))
    return _head(b)


def _pool(op: str, **attrs: Any) -> Builder:
    b = Builder((3, 9, 7))
    b.conv(4, 3, pads=[1, 1, 1, 1])
    b.op("Relu")
    b.op(op, **attrs)
    b.conv(3, 4, (1, 1))
    b.op("Relu")
    return _head(b)


def _norm_before() -> Builder:
    """BatchNorm in front of a padded convolution: a bias map at the border."""
    b = Builder((3, 6, 5))
    b.norm(3, negative=True)
    b.conv(4, 3, pads=[1, 0, 1, 2])
    b.op("Relu")
    return _head(b)


def _norm_after() -> Builder:
    b = Builder((3, 6, 5))
    b.conv(6, 3)
    b.norm(6, negative=True)
    b.op("Relu")
    return _head(b)


def _norm_on_trunk() -> Builder:
    """Pre-activation residual: negative gamma on a shared trunk, branches of different depth."""
    b = Builder((4, 6, 5))
    b.conv(6, 4, pads=[1, 1, 1, 1])
    trunk = b.op("Relu")
    b.norm(6, negative=True)
    b.op("Relu")
    b.conv(6, 6, pads=[1, 1, 1, 1])
    b.op("Relu")
    b.conv(6, 6, pads=[1, 1, 1, 1])
    b.op("Add", trunk)
    b.op("Relu")
    return _head(b)


def _concat() -> Builder:
    b = Builder((3, 6, 5))
    first = b.conv(4, 3, pads=[1, 1, 1, 1])
    a = b.op("Relu", source=first)
    c = b.op("Sigmoid", source=first)
    b.nodes.append(helper.make_node("Concat", [a, c, "x"], ["joined"], name="concat", axis=1))
    b.at = "joined"
    b.conv(5, 11)
    b.op("Relu")
    return _head(b)


def _split() -> Builder:
    b = Builder((4, 6, 5))
    b.conv(6, 4)
    b.op("Relu")
    left = b.op("Split", b.array([2, 4], np.int64), outputs=2, axis=1)
    right = left[:-1] + "1"
    b.conv(4, 2, (1, 1), **{})
    last = b.at
    b.op("Sub", right, source=last)
    b.op("Relu")
    return _head(b)


def _slice_pad_resize() -> Builder:
    b = Builder((3, 6, 5))
    b.op("Pad", b.array([0, 0, 1, 2, 0, 0, 0, 1], np.int64), b.array(0.5))
    b.conv(4, 3)
    b.op("Relu")
    ends = [np.array(v, np.int64) for v in ([1, -1], [9, -9], [2, 3], [2, -1])]
    b.op("Slice", *(b.array(v, np.int64) for v in ends))
    b.op("Resize", "", b.array([1, 1, 2, 1.5]), mode="nearest")
    b.conv(3, 4, (2, 2))
    b.op("Relu")
    return _head(b)


def _channels_last() -> Builder:
    b = Builder((6, 5, 3))
    b.op("Transpose", perm=[0, 3, 1, 2])
    b.conv(4, 3)
    b.op("Relu")
    b.op("Transpose", perm=[0, 2, 3, 1])
    return _head(b)


def _prelude() -> Builder:
    b = Builder((3, 6, 5))
    b.op("Sub", b.array([[[[0.1]], [[0.2]], [[0.3]]]]))
    b.op("Div", b.array([[[[0.5]], [[1.5]], [[0.9]]]]))
    b.conv(4, 3, pads=[1, 1, 1, 1])
    b.op("Relu")
    return _head(b)


def _tokens() -> Builder:
    """MatMul on a rank-3 tensor, from the right and from the left."""
    b = Builder((4, 6))
    b.op("MatMul", b.normal(6, 8, scale=0.4))
    b.op("Add", b.normal(8))
    b.op("Relu")
    turned = b.normal(3, 4, scale=0.5)
    b.nodes.append(helper.make_node("MatMul", [turned, b.at], ["left"], name="matmul_left"))
    b.at = "left"
    b.op("Tanh")
    b.op("ReduceMean", axes=[1], keepdims=0)
    b.linear(5, 8)
    return b


def _huge_bias() -> Builder:
    b = Builder((3, 6, 5))
    weight = b.normal(4, 3, 3, 3, scale=0.05)
    b.op("Conv", weight, b.array([40.0, -40.0, 7.0, 0.0]))
    b.op("Relu")
    return _head(b)


def _readout(op: str, **attrs: Any) -> Builder:
    b = _conv()
    b.op(op, **attrs)
    return b


def cases() -> dict[str, Builder]:
    """Name -> builder, each a fresh model."""
    made = {
        "conv": _conv(),
        "conv strides, asymmetric pads": _conv(strides=[2, 1], pads=[1, 0, 2, 1]),
        "conv dilation": _conv(dilations=[2, 1], pads=[2, 1, 0, 1]),
        "conv group": _conv((4, 9, 7), group=2),
        "conv depthwise": _conv((4, 9, 7), group=4),
        "conv SAME_UPPER": _conv(auto_pad="SAME_UPPER", strides=[2, 2]),
        "conv SAME_LOWER": _conv(auto_pad="SAME_LOWER", strides=[2, 2]),
        "conv 1d": _conv((3, 17), kernel=(5,), strides=[2], pads=[1, 2]),
        "norm before a padded conv": _norm_before(),
        "norm after, negative and zero gamma": _norm_after(),
        "norm on a residual trunk": _norm_on_trunk(),
        "Clip": _activation("Clip", 0.0, 1.5),
        "Clip away from zero": _activation("Clip", 0.25, 2.0),
        "LeakyRelu": _activation("LeakyRelu", alpha=0.2),
        "LeakyRelu falling": _activation("LeakyRelu", alpha=-0.3),
        "PRelu": _prelu([0.1, 0.5, -0.4, 1.0, 0.0]),
        "HardSigmoid": _activation("HardSigmoid", alpha=0.3, beta=0.4),
        "Sigmoid": _activation("Sigmoid"),
        "Tanh": _activation("Tanh"),
        "Elu": _activation("Elu", alpha=0.7),
        "Selu": _activation("Selu"),
        "Softplus": _activation("Softplus"),
        "HardSwish": _activation("HardSwish"),
        "MaxPool overlapping, padded": _pool(
            "MaxPool", kernel_shape=[3, 3], strides=[2, 1], pads=[1, 1, 1, 0]
        ),
        "MaxPool ceil": _pool("MaxPool", kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1),
        "MaxPool dilation": _pool("MaxPool", kernel_shape=[2, 2], dilations=[2, 2]),
        "AveragePool": _pool("AveragePool", kernel_shape=[2, 2], strides=[2, 2]),
        "AveragePool pads excluded": _pool(
            "AveragePool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]
        ),
        "AveragePool pads counted": _pool(
            "AveragePool", kernel_shape=[3, 3], pads=[1, 0, 1, 2], count_include_pad=1
        ),
        "GlobalAveragePool": _pool("GlobalAveragePool"),
        "GlobalMaxPool": _pool("GlobalMaxPool"),
        "concat": _concat(),
        "split, sub": _split(),
        "slice, pad, resize": _slice_pad_resize(),
        "channels last": _channels_last(),
        "mean and std prelude": _prelude(),
        "tokens": _tokens(),
        "bias larger than any input": _huge_bias(),
        "Softmax": _readout("Softmax", axis=1),
        "LogSoftmax": _readout("LogSoftmax", axis=1),
        "ArgMax": _readout("ArgMax", axis=1, keepdims=0),
    }
    return made


def random_model(rng: np.random.Generator) -> Builder:
    """A chain of random layers with joins: whatever an exporter could write."""
    b = Builder(tuple(int(n) for n in rng.integers((1, 5, 6), (4, 10, 11))))
    b.rng = rng
    trunk: list[tuple[str, tuple[int, ...]]] = []
    for _ in range(int(rng.integers(2, 6))):
        _random_layer(b, rng)
        shape = _static_shape(b)[1:]
        same = [t for t, s in trunk if s == shape]
        if same and rng.random() < 0.7:
            b.op(str(rng.choice(["Add", "Sub"])), same[-1])
            if rng.random() < 0.5:
                b.op("Relu")
        trunk.append((b.at, shape))
    return _head(b)


def _random_layer(b: Builder, rng: np.random.Generator) -> None:
    channels, height, width = _static_shape(b)[1:] if b.nodes else b.shape
    if rng.random() < 0.3:
        b.norm(channels, negative=True)
    kind = rng.integers(0, 6)
    if kind == 0 and min(height, width) >= 4:
        ceil = int(rng.integers(0, 2))
        b.op("MaxPool", kernel_shape=[3, 2], strides=[2, 1], pads=[1, 0, 1, 1], ceil_mode=ceil)
    elif kind == 1 and min(height, width) >= 4:
        count = int(rng.integers(0, 2))
        b.op("AveragePool", kernel_shape=[2, 3], pads=[1, 1, 0, 1], count_include_pad=count)
    else:
        out = channels if rng.random() < 0.4 else int(rng.integers(1, 6))
        group = channels if out == channels and rng.random() < 0.3 else 1
        kernel = [int(k) for k in rng.integers(1, 4, 2)]
        pads = [int(rng.integers(0, k)) for k in (*kernel, *kernel)]
        strides = [int(rng.integers(1, 3)) if n > 6 else 1 for n in (height, width)]
        if min(height, width) < 3:
            kernel, pads = [1, 1], [0, 0, 0, 0]
        b.conv(out, channels, kernel, group=group, pads=pads, strides=strides)
        if rng.random() < 0.5:
            b.norm(out, negative=bool(rng.integers(0, 2)))
    act = rng.choice(["Relu", "LeakyRelu", "Tanh", "Sigmoid", "HardSwish", ""])
    if act:
        b.op(str(act))
