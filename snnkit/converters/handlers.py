"""One handler per ONNX operator that computes: layers, activations, arithmetic, pooling, readout.

Layout operators are in `snnkit.converters.layout`. To add an operator, write a function
(reader, op) that gives every output, and name it in HANDLERS.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from snnkit.converters import activations as act
from snnkit.converters.activations import Activation
from snnkit.converters.frames import Refusal
from snnkit.converters.layout import LAYOUT, move
from snnkit.converters.network import WIDE, Affine, padded_response
from snnkit.converters.operators import Array, Op
from snnkit.converters.pooling import POOLING, spatial_pads
from snnkit.converters.reader import Handler, Posted, Reader
from snnkit.converters.recurrent import CELLS


def conv(reader: Reader, op: Op) -> None:
    reader.in_front(op)
    x, weight = reader.data(op), reader.constant(op, 1)
    bias = reader.constant(op, 2)
    assert weight is not None
    d, group = weight.ndim - 2, int(op.attrs.get("group", 1))
    if d not in (1, 2):
        raise Refusal(f"a convolution over {d} axes", "one and two axes are supported")
    kernel = tuple(weight.shape[2:])
    pads = spatial_pads(op, x.shape[1:], kernel)
    if min(pads) < 0:
        raise Refusal(f"negative pads {pads}", "slice the input instead")
    attrs = {
        "strides": tuple(op.attrs.get("strides", [1] * d)),
        "dilations": tuple(op.attrs.get("dilations", [1] * d)),
        "pads": pads,
        "group": group,
    }
    x = reader.net.byte(x, op.inputs[0], axis=0)
    name, floats = op.outputs[0], weight.astype(np.float64)
    into = np.broadcast_to(x.scale, (x.shape[0], *(1,) * d)).reshape(group, 1, -1)
    scaled = floats.reshape(group, weight.shape[0] // group, weight.shape[1], -1) * into[..., None]
    y = reader.net.synapses(name, "conv", x, scaled.reshape(weight.shape), attrs)
    offset = padded_response(x, floats, attrs)
    if bias is not None:
        offset = offset + bias.reshape(-1, *(1,) * d)
    reader.give(name, reader.net.affine(y.node, y.scale, offset))


def _linear(reader: Reader, x: Affine, tensor: str, weight: Array, name: str) -> Affine:
    """x @ weight.T along the last axis, weight (O, F)."""
    if not x.shape or x.shape[-1] != weight.shape[1]:
        raise Refusal(f"weights {weight.shape} for a sample of shape {x.shape}")
    x = reader.net.byte(x, tensor, axis=-1)
    floats = weight.astype(np.float64)
    per_feature = np.broadcast_to(x.scale.reshape(-1), x.shape[-1:])
    y = reader.net.synapses(name, "linear", x, floats * per_feature)
    offset = np.broadcast_to(x.offset, (*x.offset.shape[:-1], x.shape[-1])) @ floats.T
    return reader.net.affine(y.node, y.scale, offset)


def gemm(reader: Reader, op: Op) -> None:
    x, weight = reader.data(op), reader.constant(op, 1)
    assert weight is not None
    reader.in_front(op)
    if op.attrs.get("transA", 0) or len(x.shape) != 1:
        raise Refusal("Gemm with a transposed or non-flat left operand", "flatten it first")
    weight = weight if op.attrs.get("transB", 0) else weight.T
    weight = weight.astype(np.float64) * op.attrs.get("alpha", 1.0)
    y = _linear(reader, x, op.inputs[0], weight, op.outputs[0])
    bias = reader.constant(op, 2)
    offset = y.offset
    if bias is not None:
        offset = offset + reader.per_unit(bias, op.outputs[0]) * op.attrs.get("beta", 1.0)
    reader.give(op.outputs[0], reader.net.affine(y.node, y.scale, offset))


def matmul(reader: Reader, op: Op) -> None:
    name = op.outputs[0]
    if reader.is_data(op, 0) and reader.is_data(op, 1):
        raise Refusal("a product of two values that depend on the data", "make one a constant")
    left = not reader.is_data(op, 0)
    x = reader.data(op, 1 if left else 0)
    weight = reader.constant(op, 0 if left else 1)
    assert weight is not None
    while weight.ndim > 2 and weight.shape[0] == 1:
        weight = weight[0]
    if weight.ndim != 2 or (left and len(x.shape) < 2):
        raise Refusal(f"a constant factor of shape {weight.shape}", "use a matrix")
    last = len(reader.model.shapes[name]) - 1
    summed = {last - 1, last} if left else {last}
    if summed.intersection(reader.frame(name).axes):
        raise Refusal("a product that sums over samples or elements", "keep them apart")
    if not left:
        reader.give(name, _linear(reader, x, op.inputs[0], weight.T, name))
        return
    rank = len(x.shape)
    perm = (*range(rank - 2), rank - 1, rank - 2)
    turned = move(reader, x, "transpose", f"{name}.turned", perm=perm)
    stats = reader.net.statistics
    # the requantiser, if one is needed, must stand in front of the turn to know its tensor
    turned = turned if stats is None else _requantised(reader, x, turned, op.inputs[1], name, perm)
    y = _linear(reader, turned, "", weight, f"{name}.product")
    reader.give(name, move(reader, y, "transpose", name, perm=perm))


def _requantised(
    reader: Reader, x: Affine, turned: Affine, tensor: str, name: str, perm: tuple[int, ...]
) -> Affine:
    small = reader.net.byte(x, tensor)
    if small is x:
        return turned
    return move(reader, small, "transpose", f"{name}.turned", perm=perm)


def batch_norm(reader: Reader, op: Op) -> None:
    x = reader.data(op)
    if op.attrs.get("training_mode", 0) or len([o for o in op.outputs if o]) > 1:
        raise Refusal("BatchNormalization in training mode", "export the model in eval mode")
    gamma, beta, mean, var = (reader.constant(op, i) for i in range(1, 5))
    assert gamma is not None and beta is not None and mean is not None and var is not None
    factor = gamma.astype(np.float64) / np.sqrt(
        var.astype(np.float64) + op.attrs.get("epsilon", 1e-5)
    )
    rank = len(reader.model.shapes[op.outputs[0]])
    at = reader.frame(op.outputs[0]).unit(1, rank, "BatchNormalization")
    along = tuple(-1 if i == at else 1 for i in range(len(x.shape)))
    shift = (beta - mean * factor).reshape(along)
    factor = factor.reshape(along)
    y = reader.net.affine(x.node, x.scale * factor, x.offset * factor + shift)
    reader.give(op.outputs[0], y)


def activation(make: Callable[[Reader, Op, Affine], Activation]) -> Handler:
    def handler(reader: Reader, op: Op) -> None:
        x, out = reader.data(op), op.outputs[0]
        function = make(reader, op, x)
        low = x.scale * x.node.lo + x.offset
        if function is act.RELU and (x.scale >= 0).all() and (low >= 0).all():
            reader.give(out, x)
            return
        # an output is never coarser than 8 bits: `levels` speaks of what neurons tell each other
        last = out in {p.name for p in reader.model.outputs}
        levels = max(reader.net.policy.levels, WIDE) if last else reader.net.policy.levels
        reader.give(out, reader.net.spike(x, function, out, op.inputs[0], levels))

    return handler


def _clip(reader: Reader, op: Op, x: Affine) -> Activation:
    low = reader.setting(op, "min", 1, -np.inf)
    high = reader.setting(op, "max", 2, np.inf)
    return act.clip(float(np.asarray(low)), float(np.asarray(high)))


def _prelu(reader: Reader, op: Op, x: Affine) -> Activation:
    slope = reader.constant(op, 1)
    assert slope is not None
    return act.leaky(reader.per_unit(slope, op.outputs[0]))


def scaled(reader: Reader, op: Op) -> None:
    """Add, Sub, Mul, Div with a constant; Add and Sub of two branches."""
    both = reader.is_data(op, 0) and reader.is_data(op, 1)
    if both:
        _branches(reader, op)
        return
    at = 0 if reader.is_data(op, 0) else 1
    x, constant = reader.operand(op, at), reader.constant(op, 1 - at)
    assert constant is not None
    c = reader.per_unit(constant, op.outputs[0])
    factor, shift = np.ones(()), np.zeros(())
    if op.op == "Add":
        shift = c
    elif op.op == "Sub":
        factor, shift = (np.ones(()), -c) if at == 0 else (-np.ones(()), c)
    elif op.op == "Mul":
        factor = c
    elif at == 0:
        if not np.all(c):
            raise Refusal("a division by zero")
        factor = 1.0 / c
    else:
        raise Refusal("a division by a value that depends on the data")
    if np.broadcast_shapes(x.shape, np.shape(c)) != x.shape:
        raise Refusal(f"a constant of shape {np.shape(c)} enlarges a sample of shape {x.shape}")
    if not np.isfinite(c).all():
        raise Refusal("a constant that is not finite")
    y = reader.net.affine(x.node, x.scale * factor, x.offset * factor + shift)
    reader.give(op.outputs[0], y)


def _branches(reader: Reader, op: Op) -> None:
    if op.op == "Div":
        raise Refusal("a division by a value that depends on the data")
    terms = [reader.operand(op, i) for i in range(len(op.inputs))]
    if op.op == "Mul":
        reader.give(op.outputs[0], _multiplied(reader, op, *terms))
        return
    if op.op == "Sub":
        terms[1] = reader.net.affine(terms[1].node, -terms[1].scale, -terms[1].offset)
    reader.give(op.outputs[0], reader.net.total(op.outputs[0], terms))


def _multiplied(reader: Reader, op: Op, a: Affine, b: Affine) -> Affine:
    """The product of two values, each through a spiking node if it is not one of 8 bits already."""
    out = op.outputs[0]
    a, b = (reader.net.byte(x, n) for x, n in zip((a, b), op.inputs, strict=True))
    return reader.net.product(out, a, b)


def many(reader: Reader, op: Op) -> None:
    """Sum of any number of tensors."""
    if not all(reader.is_data(op, i) for i in range(len(op.inputs))):
        raise Refusal("a Sum with constants among its terms", "use Add for them")
    if len(op.inputs) == 1:
        reader.give(op.outputs[0], reader.data(op))
    else:
        _branches(reader, op)


def negative(reader: Reader, op: Op) -> None:
    x = reader.data(op)
    reader.give(op.outputs[0], reader.net.affine(x.node, -x.scale, -x.offset))


def unchanged(reader: Reader, op: Op) -> None:
    """Identity, Dropout and Cast between float types."""
    value = reader.values[op.inputs[0]]
    if op.op == "Dropout":
        training = reader.constant(op, 2)
        if training is not None and bool(np.asarray(training)):
            raise Refusal("Dropout in training mode", "export the model in eval mode")
        if any(o and o in _read(reader) for o in op.outputs[1:]):
            raise Refusal("the mask of Dropout is used")
    if op.op == "Cast" and reader.model.dtypes[op.outputs[0]].kind != "f":
        raise Refusal(f"a cast to {reader.model.dtypes[op.outputs[0]]}", "keep the data in floats")
    reader.give(op.outputs[0], value)


def _read(reader: Reader) -> set[str]:
    return {i for o in reader.model.ops for i in o.inputs} | {p.name for p in reader.model.outputs}


def posted(reader: Reader, op: Op) -> None:
    """Softmax, LogSoftmax, ArgMax: computed in float behind the readout."""
    x, out = reader.data(op), op.outputs[0]
    rank, frame = len(reader.model.shapes[op.inputs[0]]), reader.frame(op.inputs[0])
    old = reader.model.opset < 13 and op.op != "ArgMax"
    default = 0 if op.op == "ArgMax" else (1 if old else -1)
    axis = int(op.attrs.get("axis", default)) % rank
    unit = frame.unit(axis, rank, op.op)
    if axis < max(frame.axes):
        raise Refusal(
            f"{op.op} along axis {axis}, in front of the batch or the elements of a sequence",
            "transpose it behind them",
        )
    if old and axis != rank - 1 and int(np.prod(x.shape[unit:])) > 1:
        # before operator set 13 everything from `axis` on is one axis
        raise Refusal(f"{op.op} of operator set {reader.model.opset} over several axes")
    step: dict[str, Any] = {"op": op.op, "axis": axis}
    if op.op == "ArgMax":
        if op.attrs.get("select_last_index", 0):
            raise Refusal("ArgMax that takes the last of equal values")
        step["keepdims"] = int(op.attrs.get("keepdims", 1))
    reader.shape(out)
    reader.give(out, Posted(x, (step,)))


def in_floats(handler: Handler) -> Handler:
    """The handler of an operator that may also calculate in integers, which wrap round."""

    def checked(reader: Reader, op: Op) -> None:
        dtype = reader.model.dtypes[op.outputs[0]]
        if dtype.kind != "f":
            raise Refusal(f"it calculates in {dtype}", "cast the data to float in front of it")
        handler(reader, op)

    return checked


HANDLERS: dict[str, Handler] = {
    "Conv": conv,
    "Gemm": gemm,
    "MatMul": matmul,
    "BatchNormalization": batch_norm,
    "Relu": activation(lambda r, o, x: act.RELU),
    "Clip": activation(_clip),
    "LeakyRelu": activation(lambda r, o, x: act.leaky(np.array(o.attrs.get("alpha", 0.01)))),
    "PRelu": activation(_prelu),
    "HardSigmoid": activation(
        lambda r, o, x: act.hard_sigmoid(o.attrs.get("alpha", 0.2), o.attrs.get("beta", 0.5))
    ),
    "Sigmoid": activation(lambda r, o, x: act.sigmoid()),
    "Tanh": activation(lambda r, o, x: act.tanh()),
    "Elu": activation(lambda r, o, x: act.elu(o.attrs.get("alpha", 1.0))),
    "Selu": activation(
        lambda r, o, x: act.elu(
            o.attrs.get("alpha", 1.67326319217681884765625),
            o.attrs.get("gamma", 1.05070102214813232421875),
        )
    ),
    "Softplus": activation(lambda r, o, x: act.softplus()),
    "HardSwish": activation(lambda r, o, x: act.hard_swish()),
    "Add": scaled,
    "Sub": scaled,
    "Mul": scaled,
    "Div": scaled,
    "Sum": many,
    "Neg": negative,
    "Identity": unchanged,
    "Dropout": unchanged,
    "Cast": unchanged,
    "Softmax": posted,
    "LogSoftmax": posted,
    "ArgMax": posted,
    **POOLING,
    **LAYOUT,
    **CELLS,
}
_CALCULATES = ["Add", "Clip", "Div", "Gemm", "MatMul", "Mul", "Neg", "PRelu", "ReduceMean"]
_CALCULATES += ["ReduceSum", "Relu", "Sub", "Sum"]
HANDLERS.update({name: in_floats(HANDLERS[name]) for name in _CALCULATES})
