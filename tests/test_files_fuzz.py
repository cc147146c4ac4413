"""Thousands of damaged files: each is refused with an error of ours, and nothing else happens."""

from __future__ import annotations

import copy
import json
import random
import time
from collections import Counter
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from snnkit import errors, files
from snnkit.graph import Graph
from snnkit.onnx_writer import emit_recording
from snnkit.reference import dense, input_counts
from tests.sessions import session
from tests.small_files import edited, network, set_property

SECONDS = 2.0
"""No damaged file may take longer than this to refuse."""


@pytest.fixture(scope="module")
def graph() -> Graph:
    return network()


@pytest.fixture(scope="module")
def content(graph: Graph) -> bytes:
    return files.to_bytes(graph)


def damage_bytes(content: bytes, rng: random.Random) -> bytes:
    """Flipped bytes, a cut, an insertion, swapped blocks, a repeated block."""
    data = bytearray(content)
    kind = rng.randrange(5)
    a, b = sorted(rng.randrange(len(data)) for _ in range(2))
    if kind == 0:
        for _ in range(rng.choice((1, 1, 2, 8, 64))):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == 1:
        del data[a : a + rng.choice((1, 4, len(data)))]
    elif kind == 2:
        data[a:a] = rng.randbytes(rng.choice((1, 2, 16)))
    elif kind == 3:
        size = rng.choice((1, 4, 32))
        data[a : a + size], data[b : b + size] = data[b : b + size], data[a : a + size]
    else:
        data[b:b] = data[a : a + rng.choice((1, 16, 256))]
    return bytes(data)


ODD: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    2**31,
    -(2**63),
    10**400,
    0.5,
    float("nan"),
    float("inf"),
    "",
    "n0",
    "\ud800",
    [],
    {},
    [[]],
    [1_000_000_000, 1_000_000_000],
    [-1],
    [0, 0],
    [1] * 100,
    [2**32, 2**32],
    {"op": "Softmax"},
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path to every value in a JSON document."""
    found = [path] if path else []
    items: Any = enumerate(value) if isinstance(value, list) else ()
    for key, inner in value.items() if isinstance(value, dict) else items:
        found += places(inner, (*path, key))
    return found


def damage_description(description: Any, rng: random.Random) -> Any:
    """One value replaced, removed, repeated, nested, nudged, or exchanged with another one."""
    out = copy.deepcopy(description)
    spots = places(out)
    for _ in range(rng.choice((1, 1, 1, 2))):
        path = rng.choice(spots)
        try:
            holder = out
            for key in path[:-1]:
                holder = holder[key]
            old = holder[path[-1]]
            kind = rng.randrange(6)
            if kind == 0:
                holder[path[-1]] = rng.choice(ODD)
            elif kind == 1:
                del holder[path[-1]]
            elif kind == 2 and isinstance(holder, list):
                holder.insert(rng.randrange(len(holder) + 1), copy.deepcopy(old))
            elif kind == 3 and isinstance(old, int):
                holder[path[-1]] = old + rng.choice((-1, 1, 2, 127, 2**30))
            elif kind == 4:
                holder[path[-1]] = [old]
            else:
                other = out
                for key in rng.choice(spots):
                    other = other[key]
                holder[path[-1]] = copy.deepcopy(other)
        except (KeyError, IndexError, TypeError):
            continue  # the first change removed the place of the second
    return out


def damage_message(content: bytes, rng: random.Random) -> bytes:
    """A change inside the protobuf message: tensors, nodes, properties, the description."""
    kind = rng.randrange(8)

    def change(model: onnx.ModelProto) -> None:
        tensor = rng.choice(model.graph.initializer)
        node = rng.choice(model.graph.node)
        if kind == 0:
            tensor.data_type = rng.randrange(26)
        elif kind == 1:
            tensor.dims[:] = rng.choice(([], [-1], [0], [2**40], [2**62, 4], [1] * 70))
        elif kind == 2:
            tensor.raw_data = damage_bytes(tensor.raw_data, rng)
        elif kind == 3:
            tensor.name = rng.choice(model.graph.initializer).name
        elif kind == 4:
            node.op_type = rng.choice(("Add", "Mul", "BIF", ""))
        elif kind == 5:
            rng.choice(model.metadata_props).key = rng.choice(("", "snnkit.graph", "snnkit.more"))
        elif kind == 6:
            rng.choice(model.metadata_props).value = rng.choice(("", "1", "{}", "[]", "\x7f" * 99))
        else:
            del model.graph.initializer[rng.randrange(len(model.graph.initializer))]

    return edited(content, change)


def damage_array(tensor: TensorProto, rng: random.Random) -> TensorProto:
    """The same array of integers with some values pushed to where sums may overflow."""
    value = numpy_helper.to_array(tensor).copy()
    if value.dtype.kind not in "iu":
        return tensor
    limits = np.iinfo(value.dtype)
    near = (0, 1, -1, 2**24, 2**30, limits.max // 20, limits.max, limits.min, limits.max - 5000)
    chosen = [n for n in near if limits.min <= n <= limits.max]
    for _ in range(rng.choice((1, 3, value.size))):
        value.flat[rng.randrange(value.size)] = rng.choice(chosen)
    if tensor.name.endswith(".thresholds"):
        value = np.sort(value.reshape(3, -1), axis=1).reshape(-1)
    return numpy_helper.from_array(value, tensor.name)


def test_ten_thousand_damaged_files(graph: Graph, content: bytes) -> None:
    """Each is refused with an error of ours, or is still the same graph; none takes long."""
    rng = random.Random(2026)
    description = json.loads(
        next(
            p.value
            for p in onnx.ModelProto.FromString(content).metadata_props
            if p.key == "snnkit.graph"
        )
    )
    seen: Counter[str] = Counter()
    total, slowest = 10_500, 0.0
    for i in range(total):
        if i % 3 == 0:
            damaged = damage_bytes(content, rng)
        elif i % 3 == 1:
            damaged = damage_message(content, rng)
        else:
            text = json.dumps(damage_description(description, rng), sort_keys=True)
            text = text if rng.random() < 0.9 else text[: rng.randrange(len(text))]
            damaged = edited(content, lambda m, t=text: set_property(m, "snnkit.graph", t))
        start = time.perf_counter()
        try:
            found = files.from_bytes(damaged)
        except errors.SnnkitError as error:
            seen[type(error).__name__] += 1
        else:
            seen["accepted"] += 1
            assert found.digest == graph.digest
            assert damaged == content
        slowest = max(slowest, time.perf_counter() - start)
    assert slowest < SECONDS
    assert seen["accepted"] < 0.05 * total, seen
    wanted = {"UnreadableFile", "MalformedGraph", "InvalidGraph", "BadShape", "AlteredFile"}
    wanted |= {"UnknownOp", "FloatArray", "BadThreshold", "ForeignFile", "FormatMismatch"}
    assert wanted <= set(seen), seen


def test_damaged_graphs_that_pass_every_check_work(graph: Graph, content: bytes) -> None:
    """Behind the digest: a changed graph with a digest of its own is refused, or it is a network
    like any other, on which onnxruntime and the definition agree to the last integer."""
    rng = random.Random(7)
    model = onnx.ModelProto.FromString(content)
    description = json.loads(next(p.value for p in model.metadata_props if p.key == "snnkit.graph"))
    tensors = {t.name: t for t in model.graph.initializer}
    seen: Counter[str] = Counter()
    for _ in range(1500):
        text, arrays = json.dumps(description), dict(tensors)
        if rng.random() < 0.5:
            name = rng.choice(sorted(tensors))
            arrays[name] = damage_array(tensors[name], rng)
        else:
            text = json.dumps(damage_description(description, rng))
        start = time.perf_counter()
        try:
            other = files._rebuild(text, arrays, "the file")
            written = files.to_bytes(other)
            again = files.from_bytes(written)
        except errors.SnnkitError:
            seen["refused"] += 1
            assert time.perf_counter() - start < SECONDS
            continue
        assert again.digest == other.digest
        seen["same" if other.digest == graph.digest else "valid"] += 1
        if other.digest != graph.digest and seen["valid"] % 5 == 0:
            agrees(again, written)
            seen["agrees"] += 1
    assert seen["refused"] > 500 and seen["agrees"] >= 20, seen


def agrees(graph: Graph, content: bytes) -> None:
    """onnxruntime runs the file and gives the integers of the definition."""
    rng = np.random.default_rng(0)
    nodes = [n for n in graph.nodes if n.op in ("spike", "readout")]
    session(content)
    model, tensors = emit_recording(graph, [n.name for n in nodes])
    recorder = session(model)
    x = {}
    for b in graph.inputs:
        counts = rng.choice((-10, 0, 3, 100, 245, 255), (6, *graph.node[b.node].shape))
        with np.errstate(over="ignore"):
            x[b.name] = (counts * b.scale + b.offset).astype(b.dtype)
        if not np.isfinite(x[b.name].astype(np.float64)).all():
            return
    values = dense(graph, input_counts(graph, x))
    for node, found in zip(nodes, recorder.run(tensors, x), strict=True):
        counts = found.astype(np.int64) + (node.lo if found.dtype == np.uint8 else 0)
        assert np.array_equal(counts, values[node.name]), node.name
