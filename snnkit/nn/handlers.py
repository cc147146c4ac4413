"""One handler per kind of step: what layer of a prepared model it becomes."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, fx

from snnkit.converters.frames import Refusal
from snnkit.graph import BOUNDARY_TYPES
from snnkit.nn import curves, gathering, quantised
from snnkit.nn.prepare import WIDE, Builder, Value
from snnkit.nn.reading import varying
from snnkit.nn.recognise import SUPPORTED, Step, recognise


def handle(b: Builder, node: fx.Node) -> None:
    """Give `node` of the traced model its value, or note the problem."""
    try:
        if node.op == "placeholder":
            b.env[node] = _input(b, node)
        elif node.op == "output":
            _outputs(b, node)
        elif isinstance(b.floats[node.name], Tensor) and node.op != "get_attr":
            step = recognise(node, b.traced)
            _check_sources(b, step)
            b.env[node] = HANDLERS[step.kind](b, node, step)
    except Refusal as refusal:
        b.refuse(node, refusal.reason, refusal.remedy)


def _check_sources(b: Builder, step: Step) -> None:
    for source in step.sources:
        if source not in b.env:
            raise Refusal(f"it reads '{source}', which no layer makes from the data", SUPPORTED)
        if b.env[source].post is not None:
            raise Refusal(f"it reads '{source}', a softmax", "softmax is for the output only")


def _input(b: Builder, node: fx.Node) -> Value:
    from snnkit.converters.boundaries import input_grid

    example = b.examples[node.name]
    dtype = str(example.dtype).split(".")[-1]
    if dtype not in BOUNDARY_TYPES:
        raise Refusal(f"input of type {dtype}", f"use one of {', '.join(BOUNDARY_TYPES)}")
    grid = b.grid.get(node.name) if isinstance(b.grid, dict) else b.grid
    if grid is None:
        scale, offset, lo = input_grid(example.float().numpy(), example.ndim - 1)
        grid = quantised.InputGrid(scale.copy(), offset.copy(), lo)
    with torch.no_grad():
        reading = grid.eval()(example[:2])
    outer = b.graph.placeholder(node.name)
    name = f"{node.name}_counts"
    b.root.add_module(name, grid)
    inner = b.graph.create_node("call_module", name, (outer,), name=name)
    return Value(inner, reading, (grid.lo, grid.hi))


def _synapses(b: Builder, node: fx.Node, step: Step) -> Value:
    layer, old = step.options["module"], step.sources[0]
    if getattr(layer, "padding_mode", "zeros") != "zeros":
        raise Refusal(f"padding mode {layer.padding_mode}", "use padding_mode='zeros'")
    if getattr(layer, "padding", 0) == "same" and any(
        (k - 1) * d % 2 for k, d in zip(layer.kernel_size, layer.dilation, strict=True)
    ):
        raise Refusal("uneven padding 'same'", "use an odd kernel or pad by numbers")
    rank = b.env[old].reading.counts.ndim
    source = b.byte(b.env[old], old, 1 if layer.weight.ndim > 2 else rank - 1)
    bits = b.option(node, "weight_bits")
    return b.place(node.name, quantised.Synapses(layer, source.reading, bits), [source], None)


def _norm(b: Builder, node: fx.Node, step: Step) -> Value:
    norm, source = step.options["module"], b.env[step.sources[0]]
    if norm.running_mean is None:
        raise Refusal("batch statistics in evaluation", "use track_running_stats=True")
    # whatever it reads becomes a charge: its scale differs between channels and may be negative
    return b.place(node.name, quantised.Norm(norm), [source], None)


def _curve(b: Builder, node: fx.Node, step: Step) -> Value:
    source, curve = b.env[step.sources[0]], step.options["curve"]
    if curve is curves.RELU and source.bounds is not None and source.bounds[0] >= 0:
        plain = bool((source.reading.scale > 0).all()) and not bool(source.reading.offset.any())
        if plain:
            return source
    last = all(user.op == "output" for user in node.users)
    levels = b.option(node, "levels", WIDE if last else None)
    return b.spike(node.name, source, curve, b.floats[node.name], levels)


def _max_pool(b: Builder, node: fx.Node, step: Step) -> Value:
    old = step.sources[0]
    source = b.env[old]
    follower = None
    if not source.is_byte(1, positive=True):
        follower = _rising_follower(b, node)
        if follower is not None:
            # both orders give the same, and this one needs no quantiser in front of the maximum
            user, curve = follower
            floats = curve.f(b.floats[old.name])
            source = b.spike(user.name, source, curve, floats, b.option(user, "levels"))
        else:
            source = b.byte(source, old, 1, positive=True)
    module = (
        gathering.MaxPool(*step.options["geometry"])
        if step.kind == "max_pool"
        else gathering.GlobalMax(_axes(b, old, step), step.options["keep"])
    )
    value = b.place(node.name, module, [source], source.bounds)
    if follower is not None:
        b.env[follower[0]] = value
    return value


def _rising_follower(b: Builder, node: fx.Node) -> tuple[fx.Node, curves.Curve] | None:
    """The activation that alone reads `node`, if it only rises."""
    user = next(iter(node.users)) if len(node.users) == 1 else None
    if user is None or user.op == "output":
        return None
    try:
        step = recognise(user, b.traced)
    except Refusal:
        return None  # reported when its turn comes
    curve = step.options.get("curve")
    return (user, curve) if curve is not None and curve.rises else None


def _axes(b: Builder, old: fx.Node, step: Step) -> tuple[int, ...]:
    rank = b.floats[old.name].ndim
    axes = tuple(sorted(a % rank for a in step.options["axes"]))
    if 0 in axes:
        raise Refusal("a reduction over the batch", "name other axes")
    return axes


def _average_pool(b: Builder, node: fx.Node, step: Step) -> Value:
    old = step.sources[0]
    source = b.byte(b.env[old], old, 1, positive=True)
    kernel = step.options["geometry"][0]
    return _averaged(b, node, gathering.AveragePool(*step.options["geometry"]), source, kernel)


def _global_average(b: Builder, node: fx.Node, step: Step) -> Value:
    old = step.sources[0]
    axes = _axes(b, old, step)
    source = b.env[old]
    if set(axes) & set(varying(source.reading.scale)):
        source = b.byte(source, old, None)
    sizes = [source.reading.counts.shape[a] for a in axes]
    module = gathering.GlobalAverage(axes, step.options["keep"])
    return _averaged(b, node, module, source, sizes)


def _averaged(
    b: Builder, node: fx.Node, module: torch.nn.Module, source: Value, sizes: list[int]
) -> Value:
    count, bounds = math.prod(sizes), source.bounds
    wide = None if bounds is None else (bounds[0] * count, bounds[1] * count)
    return b.place(node.name, module, [source], wide)


def _reshape(b: Builder, node: fx.Node, step: Step) -> Value:
    source, shape = b.env[step.sources[0]], b.floats[node.name].shape
    if len(shape) < 2 or shape[0] != b.floats[step.sources[0].name].shape[0]:
        raise Refusal(f"a reshape to {tuple(shape)}", "keep the batch as the first of two axes")
    if shape[1:] == source.reading.counts.shape[1:]:
        return source
    return b.place(node.name, gathering.Reshape(shape[1:]), [source], source.bounds)


def _dropout(b: Builder, node: fx.Node, step: Step) -> Value:
    source = b.env[step.sources[0]]
    return b.place(node.name, gathering.Dropout(step.options["module"]), [source], source.bounds)


def _affine(b: Builder, node: fx.Node, step: Step) -> Value:
    source = b.env[step.sources[0]]
    module = gathering.Affine(step.options["factor"], step.options["shift"])
    return b.place(node.name, module, [source], source.bounds)


def _add(b: Builder, node: fx.Node, step: Step) -> Value:
    terms = [b.env[s] for s in step.sources]
    shapes = {tuple(t.reading.counts.shape) for t in terms}
    if len(shapes) != 1:
        raise Refusal(f"a sum of shapes {sorted(shapes)}", "add tensors of one shape")
    return b.place(node.name, gathering.Sum(step.options["signs"]), terms, None)


def _concat(b: Builder, node: fx.Node, step: Step) -> Value:
    rank = b.floats[node.name].ndim
    axis = step.options["axis"] % rank
    if axis == 0:
        raise Refusal("a concatenation along the batch", "keep the batch axis apart")
    values = [b.env[s] for s in step.sources]
    if any(v.is_byte(1) for v in values):
        # side by side with 8-bit values, a charge would make all of them wide
        pairs = zip(values, step.sources, strict=True)
        values = [b.byte(v, s, 1) for v, s in pairs]
    bounds = None
    if all(v.bounds is not None for v in values):
        known = [v.bounds for v in values if v.bounds is not None]
        bounds = (min(k[0] for k in known), max(k[1] for k in known))
    return b.place(node.name, gathering.Concat(axis), values, bounds)


def _same(b: Builder, node: fx.Node, step: Step) -> Value:
    return b.env[step.sources[0]]


def _post(b: Builder, node: fx.Node, step: Step) -> Value:
    source = b.env[step.sources[0]]
    axis = step.options["axis"] % source.reading.counts.ndim
    if axis == 0 or any(user.op != "output" for user in node.users):
        raise Refusal(f"{step.options['op']} inside the model", "use it at the output only")
    return Value(source.node, source.reading, source.bounds, (step.options["op"], axis))


def _outputs(b: Builder, node: fx.Node) -> None:
    def readout(old: fx.Node) -> fx.Node:
        if old not in b.env:
            raise Refusal(f"the output '{old}' is not made by a layer", SUPPORTED)
        value = b.env[old]
        if len(varying(value.reading.scale)) > 1:
            value = b.byte(value, old, None)
        post, axis = b.env[old].post or (None, 1)
        name = f"{old.name}_readout"
        b.root.add_module(name, quantised.Readout(post, axis).eval())
        return b.graph.create_node("call_module", name, (value.node,), name=name)

    b.graph.output(fx.node.map_arg(node.args[0], readout))


HANDLERS: dict[str, Callable[[Builder, fx.Node, Step], Value]] = {
    "synapses": _synapses,
    "norm": _norm,
    "curve": _curve,
    "max_pool": _max_pool,
    "global_max": _max_pool,
    "avg_pool": _average_pool,
    "global_average": _global_average,
    "reshape": _reshape,
    "dropout": _dropout,
    "affine": _affine,
    "add": _add,
    "concat": _concat,
    "same": _same,
    "post": _post,
}
"""By the kind of a step."""
