"""A graph as a netx `.net` file (HDF5), for the reader of lava-dl.

The thermometer expression (`snnkit.thermometer`) written down: one LIF per level, binary spikes,
one sample per step, exact. The format is a row of layers, conv, flatten and dense, each with one
neuron model and one threshold: what does not have that form is refused, layer by layer.

netx takes du = iDecay - 1, dv = vDecay, vth = vThMant, bias_exp = 6; turns conv kernels round and
transposes them; and reads a dense layer behind `flatten` in the order (C, H, W). Its input is
the integer of each unit as a graded spike: `Network(net_config=path, input_message_bits=9)`, for
a convolution with input_shape=(W, H, C). Layer d shows sample n in step n + d (counted from the
first step with its input); the last one never fires, its integers are its v / 64.
"""

from __future__ import annotations

import io
import os
from typing import Any

import numpy as np

from snnkit.errors import BackendMissing, Problem, UnsupportedModel
from snnkit.files import write_beside
from snnkit.graph import Graph
from snnkit.thermometer import Stock, StockLayer, thermometer

LINE = "pip install 'snnkit[netx]'"
INPUT_MESSAGE_BITS = 9
NEURON = {"iDecay": 4096, "vDecay": 4096, "refDelay": 1, "wgtExp": 0}
"""No memory of the current, none of the potential: the copy of a level sees one sample."""


def write(graph: Graph, path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Write `graph` to `path`; whole or not at all, the same bytes for the same graph.

    Returns what whoever runs the file has to know, a line each.

    Raises UnsupportedModel with every layer that the format cannot hold exactly, BackendMissing
    without h5py.
    """
    try:
        import h5py
    except ImportError as error:
        raise BackendMissing(f"a .net file needs h5py; run: {LINE}") from error
    stock = thermometer(graph)
    problems = [p for k in range(len(stock.layers)) for p in _obstacles(stock, k)]
    if problems:
        raise UnsupportedModel(problems)
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file.attrs["snnkit"] = graph.digest
        file.attrs["input_message_bits"] = INPUT_MESSAGE_BITS
        layers, planes = file.create_group("layer"), False
        for e in stock.layers:
            if planes and e.connections[0].kind == "dense":
                _head(layers, "flatten", (e.connections[0].weight.shape[1],))
            planes = e.connections[0].kind == "conv"
            (_conv if planes else _dense)(layers, e)
    write_beside(path, buffer.getvalue())
    shape = stock.graph.nodes[0].shape[::-1]
    return (
        f"{stock.neurons:,} stock LIF neurons, one per level of a staircase: exact",
        f"input: the integers of input '{graph.inputs[0].name}' as graded spikes, read with "
        f"input_message_bits={INPUT_MESSAGE_BITS}, input_shape={shape}",
        "layer d shows sample n in step n + d; the last layer never fires, its integers are v / 64",
    )


def _obstacles(stock: Stock, k: int) -> list[Problem]:
    """Why layer k has no exact form in the file."""
    e = stock.layers[k]
    before = stock.graph.nodes[0].name if k == 0 else stock.layers[k - 1].name
    connections = e.connections
    found: list[tuple[str, str]] = []
    sources = sorted({c.source for c in connections})
    if sources != [before]:
        reason = f"it reads {sources}; a .net file is a row, each layer reads the one before it"
        found.append((reason, "leave out branches and further inputs or outputs"))
    elif len(connections) > 1:
        most = int(np.abs(sum(c.weight * 2**c.exponent for c in connections)).max())
        reason = f"a weight of {most:,}; expected at most 127, there is one synapse per pair"
        found.append((reason, "use pools with fewer taps, or no sums in front of a layer"))
    conv = connections[0].kind == "conv"
    if len(e.processes) > 1:
        levels = np.concatenate([p.vth - p.bias for p in e.processes])
        spread = int(levels.max()) - int(levels.min())
        reason = (
            f"thresholds {spread:,} apart; expected at most 8,190 around the layer's one vThMant"
        )
        found.append((reason, "use fewer levels, smaller weights, or a bound on charges"))
    elif conv and _per_channel(e) is None:
        reason = "a bias that differs between positions; a convolution has one per channel"
        found.append((reason, "use no padding where the input has an offset"))
    if conv and k and stock.layers[k - 1].connections[0].kind != "conv":
        found.append(
            ("a convolution behind a dense layer", "the format flattens, it has no reshape")
        )
    weight = connections[0].weight
    if not conv and not weight.any():
        found.append(("weights that are all zero; the reader divides by the largest", "remove it"))
    least = -int(weight.min())
    if not conv and weight.max() < 0 and least & (least - 1) == 0:
        reason = f"only weights below zero, the least {-least}; the reader clips -2^k to -2^k + 1"
        found.append((reason, "make one weight zero or positive"))
    return [Problem(e.name, connections[0].kind, reason, remedy) for reason, remedy in found]


def _per_channel(e: StockLayer) -> np.ndarray[Any, Any] | None:
    """Bias of each copy of each channel, or None where it is not one number."""
    bias = e.processes[0].bias.reshape(e.copies * e.shape[0], -1)
    return bias[:, 0] if (bias == bias[:, :1]).all() else None


def _head(layers: Any, kind: str, shape: tuple[int, ...]) -> Any:
    group = layers.create_group(str(len(layers)))
    group.create_dataset("type", (1,), "S10", [kind.encode()])
    group.create_dataset("shape", data=np.array(shape, np.int64))
    return group


def _conv(layers: Any, e: StockLayer) -> None:
    c = e.connections[0]
    group = _head(layers, "conv", (e.copies * e.shape[0], *e.shape[1:]))
    out, into, *kernel = c.weight.shape
    numbers = {"inChannels": into, "outChannels": out, "groups": 1}
    pairs = {
        "kernelSize": kernel,
        "stride": c.attrs["strides"],
        "padding": c.attrs["pads"],
        "dilation": c.attrs["dilations"],
    }
    for key, value in {**numbers, **pairs}.items():
        group.create_dataset(key, data=np.array(value, np.int64))
    bias = _per_channel(e)
    assert bias is not None
    _synapses(group, e, bias)


def _dense(layers: Any, e: StockLayer) -> None:
    out, into = e.connections[0].weight.shape
    group = _head(layers, "dense", (out,))
    group.create_dataset("inFeatures", data=np.int64(into))
    group.create_dataset("outFeatures", data=np.int64(out))
    _synapses(group, e, e.processes[0].bias)


def _synapses(group: Any, e: StockLayer, bias: np.ndarray[Any, Any]) -> None:
    group.create_dataset("weight", data=e.connections[0].weight.astype(np.float32))
    group.create_dataset("bias", data=bias.astype(np.float32))
    neuron = group.create_group("neuron")
    neuron.create_dataset("type", data=b"LOIHI")
    for key, value in {**NEURON, "vThMant": e.processes[0].vth}.items():
        neuron.create_dataset(key, data=np.int64(value))
