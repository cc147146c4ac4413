"""Read and write net.onnx: one file that onnxruntime runs and in which snnkit sees neurons.

The ONNX nodes are a function of the graph (`snnkit.onnx_writer`); the graph's structure lies in
the metadata, its arrays are the initialisers. `load` rebuilds the graph, checks it, writes it
again in memory and compares the bytes: what onnxruntime computes and what snnkit computes can
never come from different files.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, numpy_helper

from snnkit.errors import (
    AlteredFile,
    ExternalData,
    FileTooLarge,
    FloatArray,
    ForeignFile,
    FormatMismatch,
    InvalidGraph,
    MalformedGraph,
    SnnkitError,
    UnreadableFile,
)
from snnkit.graph import ARRAY, MAX_NODES, Boundary, Graph, Node, frozen, make_node
from snnkit.onnx_writer import FORMAT, PREFIX, emit
from snnkit.ops import TABLE

MAX_BYTES = 2**31 - 1
"""protobuf cannot hold more in one message."""

_DAMAGED = (
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)
"""What Python raises where JSON has another type, size or depth than was written."""
_INTEGERS = {TensorProto.UINT8, TensorProto.INT8, TensorProto.INT32, TensorProto.INT64}


def to_bytes(graph: Graph) -> bytes:
    """The bytes of net.onnx. The same graph always gives the same bytes."""
    graph.check()
    return bytes(emit(graph).SerializeToString(deterministic=True))


def save(graph: Graph, path: str | os.PathLike[str]) -> None:
    """Write net.onnx. Written beside the target and renamed: a file is whole or not there."""
    write_beside(path, to_bytes(graph))


def write_beside(path: str | os.PathLike[str], content: bytes) -> None:
    """Replace the file at `path` by `content` in one step, which outlasts a loss of power.

    A process killed on the way leaves the old file, and at most one `.NAME.*` beside it.
    """
    target = Path(path)
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    except OSError as error:
        raise UnreadableFile(f"{target}: cannot be written: {error.strerror}") from error
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, target)
        _sync_folder(target.parent)
    except OSError as error:
        raise UnreadableFile(f"{target}: cannot be written: {error.strerror}") from error
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)


def _sync_folder(folder: Path) -> None:
    """Make a rename in it last; not every system lets a folder be opened."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def load(path: str | os.PathLike[str]) -> Graph:
    """The graph in net.onnx, checked. Raises InvalidFile or InvalidGraph, by kind of fault."""
    return from_bytes(read_bytes(path), str(path))


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """The bytes of an ONNX file within the size limit."""
    source = Path(path)
    try:
        found = source.stat()
        if not stat.S_ISREG(found.st_mode):
            raise UnreadableFile(f"{source}: not a file; expected an ONNX model")
        if found.st_size > MAX_BYTES:
            raise FileTooLarge(f"{source}: {found.st_size} bytes; the limit is {MAX_BYTES}")
        content = source.read_bytes()
    except OSError as error:
        raise UnreadableFile(f"{source}: cannot be read: {error.strerror}") from error
    if not content:
        raise UnreadableFile(f"{source}: the file is empty; expected an ONNX model")
    return content


def parse_model(content: bytes, where: str) -> onnx.ModelProto:
    """The protobuf message; raises UnreadableFile for anything that is not an ONNX model."""
    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
    except DecodeError as error:
        raise UnreadableFile(
            f"{where}: not an ONNX file, or truncated; expected a model written by an exporter"
        ) from error
    if not model.graph.node:
        raise UnreadableFile(f"{where}: no nodes in it; not an ONNX file, or truncated")
    return model


def is_ours(model: onnx.ModelProto) -> bool:
    """Whether snnkit wrote the model, going by its metadata."""
    return any(p.key == f"{PREFIX}graph" for p in model.metadata_props)


def from_bytes(content: bytes, where: str = "the file") -> Graph:
    """As `load`, from memory; `where` names the source in error messages."""
    model = parse_model(content, where)
    properties = {p.key: p.value for p in model.metadata_props}
    if not is_ours(model):
        raise ForeignFile(f"{where}: snnkit did not write it; run `snnkit convert` on it first")
    if properties.get(f"{PREFIX}format") != FORMAT:
        raise FormatMismatch(
            f"{where}: format {properties.get(f'{PREFIX}format')!r}; this snnkit reads {FORMAT!r}; "
            "convert the source model again"
        )
    tensors = _tensors(model, where)
    graph = _rebuild(properties[f"{PREFIX}graph"], tensors, where)
    graph.check()
    if properties.get(f"{PREFIX}digest") != graph.digest:
        raise AlteredFile(f"{where}: its content does not match its digest; convert it again")
    if bytes(emit(graph).SerializeToString(deterministic=True)) != content:
        raise AlteredFile(
            f"{where}: its nodes are not the ones that its graph is written as, so onnxruntime "
            "and snnkit would compute different things; convert it again"
        )
    return graph


def _tensors(model: onnx.ModelProto, where: str) -> dict[str, TensorProto]:
    tensors = {}
    for tensor in model.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
            raise ExternalData(
                f"{where}: tensor '{tensor.name}' lies in another file; expected all in one"
            )
        tensors[tensor.name] = tensor
    return tensors


def _array(tensors: dict[str, TensorProto], name: str, where: str) -> npt.NDArray[Any]:
    tensor = tensors.get(f"{ARRAY}{name}")
    if tensor is None:
        raise MalformedGraph(f"{where}: array '{name}' is missing")
    try:
        return np.asarray(numpy_helper.to_array(tensor))
    except Exception as error:  # onnx raises many kinds on a damaged tensor
        raise MalformedGraph(f"{where}: array '{name}' cannot be read") from error


def _rebuild(text: str, tensors: dict[str, TensorProto], where: str) -> Graph:
    try:
        content = json.loads(text)
        if len(content["nodes"]) > MAX_NODES:
            raise MalformedGraph(f"{where}: {len(content['nodes'])} nodes; limit {MAX_NODES}")
        nodes: dict[str, Node] = {}
        for entry in content["nodes"]:
            node = _rebuild_node(entry, nodes, tensors, where)
            if node.name in nodes:
                raise InvalidGraph(f"{where}: node '{node.name}': the name is taken twice")
            nodes[node.name] = node
        inputs = tuple(_rebuild_boundary(e, nodes, tensors, where) for e in content["inputs"])
        outputs = tuple(_rebuild_boundary(e, nodes, tensors, where) for e in content["outputs"])
        meta = {str(k): str(v) for k, v in content["meta"].items()}
        # a one-shot graph has no entries about time
        sweeps = tuple(tuple(pair) for pair in content.get("sweeps", ()))
        steps = content.get("steps", 0)
        lengths = str(content.get("lengths", ""))
        latches = {str(k): str(v) for k, v in content.get("latches", {}).items()}
    except SnnkitError:
        raise
    except json.JSONDecodeError as error:
        raise MalformedGraph(f"{where}: the graph's description is not JSON: {error}") from error
    except _DAMAGED as error:
        raise MalformedGraph(
            f"{where}: the graph's description is incomplete: {error!r}"
        ) from error
    kind = str(content.get("lengths_dtype", "int32"))
    return Graph(
        tuple(nodes.values()), inputs, outputs, meta, sweeps, steps, latches, lengths, kind
    )


def _rebuild_node(
    entry: dict[str, Any], nodes: dict[str, Node], tensors: dict[str, TensorProto], where: str
) -> Node:
    name, op, attrs = str(entry["name"]), str(entry["op"]), entry["attrs"]
    params = {}
    for key, shape in entry["params"].items():
        stored = _array(tensors, f"{name}.{key}", where)
        if tensors[f"{ARRAY}{name}.{key}"].data_type not in _INTEGERS:
            raise FloatArray(
                f"{where}: node '{name}': array '{key}' is {stored.dtype}; expected integers only "
                "right of the quantiser"
            )
        if op in TABLE:
            try:
                stored = TABLE[op].restore(key, stored, tuple(shape), attrs)
            except ValueError as error:
                raise MalformedGraph(
                    f"{where}: node '{name}': array '{key}' has shape {stored.shape}; expected to "
                    f"hold {shape}"
                ) from error
        params[key] = stored
    return make_node(name, op, [nodes[s] for s in entry["inputs"]], params, attrs)


def _rebuild_boundary(
    entry: dict[str, Any], nodes: dict[str, Node], tensors: dict[str, TensorProto], where: str
) -> Boundary:
    node = str(entry["node"])
    arrays = {}
    for key in ("scale", "offset"):
        if key == "offset" and f"{ARRAY}{node}.offset" not in tensors:
            # an offset of zero is not written: onnxruntime warns of arrays that nobody reads
            shape = tuple(1 for _ in entry[key])
            arrays[key] = frozen(np.zeros(shape, np.float32))
            continue
        stored = _array(tensors, f"{node}.{key}", where)
        if stored.dtype != np.float32:
            raise MalformedGraph(f"{where}: boundary '{node}': {key} is {stored.dtype}")
        try:
            arrays[key] = frozen(stored.reshape(tuple(entry[key])))
        except ValueError as error:
            raise MalformedGraph(f"{where}: boundary '{node}': {key} does not fit") from error
    return Boundary(
        name=str(entry["name"]),
        node=node,
        dtype=str(entry["dtype"]),
        dims=tuple(entry["dims"]),
        scale=arrays["scale"],
        offset=arrays["offset"],
        post=tuple(dict(step) for step in entry["post"]),
        batch=entry.get("batch", 0),
        time=entry.get("time"),
    )
