"""The two float boundaries of a graph: the input's quantiser and the readout's scale."""

from __future__ import annotations

import numpy as np

from snnkit.boundary import quantise, take_samples
from snnkit.converters.calibration import Statistics
from snnkit.converters.network import GRID_BOUND, Affine, Network, varies_only
from snnkit.converters.operators import Array, Port
from snnkit.converters.reader import Posted, Reader
from snnkit.errors import Problem
from snnkit.graph import Boundary, frozen

INPUT_LEVELS = 255


def read_input(reader: Reader, port: Port, statistics: Statistics) -> Boundary:
    shape, timed = reader.shape(port.name), port.time is not None
    samples = statistics.input(port.name).astype(np.float32).reshape(-1, *shape)
    scale, offset, lo = input_grid(samples, len(shape))
    attrs = {"shape": shape, "lo": lo, "hi": lo + INPUT_LEVELS}
    node = reader.net.add(port.name, "input", (), {}, attrs, "steps" if timed else "once")
    boundary = Boundary(
        port.name,
        node.name,
        port.dtype,
        port.dims,
        scale,
        offset,
        batch=port.batch,
        time=port.time,
    )
    few = take_samples(boundary, statistics.samples[port.name], slice(0, statistics.mean_count))
    reader.net.counts[node.name] = quantise(boundary, node, few)
    affine = reader.net.affine(node, scale.astype(np.float64), offset.astype(np.float64))
    reader.values[port.name] = affine
    return boundary


def input_grid(x: Array, rank: int) -> tuple[Array, Array, int]:
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


def read_output(reader: Reader, port: Port) -> Boundary:
    value = reader.values.get(port.name)
    if value is None:
        reader.problems.append(
            Problem(port.name, "output", "does not depend on the data", "leave this output out")
        )
        return Boundary(
            port.name, "", port.dtype, port.dims, frozen(np.float32(1)), frozen(np.float32(0))
        )
    if reader.frame(port.name).merged:
        reader.problems.append(
            Problem(
                port.name,
                "output",
                "has samples and elements of a sequence on one axis",
                "reshape it so that each has an axis",
            )
        )
    if reader.model.lengths and reader.frame(port.name).time is not None:
        _check_padding(reader, port)
    steps = value.steps if isinstance(value, Posted) else ()
    x = value.value if isinstance(value, Posted) else value
    tensor = _before_steps(reader, port.name) if steps else port.name
    x = reader.net.corrected(x, tensor)
    # a channel whose charge is nothing beside its bias would need a bias beyond 32 bits
    dead = np.abs(x.offset) > np.abs(x.scale) * (GRID_BOUND / 2)
    if dead.any():
        x = reader.net.affine(x.node, np.where(dead, 0.0, x.scale), x.offset)
    x = reader.net.positive(x)
    if not any(varies_only(x.scale, axis) for axis in range(max(1, len(x.shape)))):
        x = reader.net.even(x, port.name)
    x = finer(reader.net, x, port.name)
    bias = np.rint(x.offset / x.scale)
    bias = np.clip(bias, -GRID_BOUND, GRID_BOUND).astype(np.int64)
    name = f"{port.name}.readout"
    node = reader.net.add(name, "readout", [x.node], {"bias": bias})
    scale = (
        frozen(x.scale.astype(np.float32))
        if x.scale.size > 1
        else frozen(x.scale.reshape(()).astype(np.float32))
    )
    frame, model = reader.frame(port.name), reader.model
    dims: list[int | str] = list(model.shapes[port.name])
    dims[frame.batch] = model.inputs[0].dims[model.inputs[0].batch]
    if frame.time is not None:
        dims[frame.time] = model.free_steps or model.steps
    none, at, when = frozen(np.float32(0.0)), frame.batch, frame.time
    return Boundary(port.name, node.name, port.dtype, tuple(dims), scale, none, steps, at, when)


def _check_padding(reader: Reader, port: Port) -> None:
    """A problem where the model says more than zero behind the end of a sequence."""
    stats, model = reader.net.statistics, reader.model
    assert stats is not None
    some = model.take(stats.samples, np.zeros(model.batch, int))
    some[model.lengths] = np.ones_like(some[model.lengths])
    value = next(iter(model.run(some, [port.name])))[port.name]
    if value[:, 1:].any():
        reader.problems.append(
            Problem(
                port.name,
                "output",
                "is not zero behind the end of a sequence, where a network is silent",
                "make Y itself the output, or states of the last element",
            )
        )


def _before_steps(reader: Reader, name: str) -> str:
    """The tensor that the float steps behind the readout start from."""
    made = {o: op for op in reader.model.ops for o in op.outputs}
    while name in made and isinstance(reader.values.get(name), Posted):
        name = made[name].inputs[0]
    return name


def finer(net: Network, x: Affine, name: str) -> Affine:
    """x on a finer grid if its offset would lose more than a part of 2^-8 of a step."""
    parts = x.offset / x.scale
    if x.node.op in ("conv", "linear") or not np.abs(parts - np.rint(parts)).max() > 2.0**-8:
        return x
    if x.node.peak * 2**8 > net.policy.grid:
        return x
    node = net.add(f"{name}.fine", "add", [x.node], {"m0": np.int64(2**8)})
    return net.affine(node, x.scale / 2**8, x.offset)
