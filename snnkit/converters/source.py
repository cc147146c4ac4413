"""A float ONNX model as it lies in a file: read whole, external data from its own folder only."""

from __future__ import annotations

import os
from hashlib import sha256
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper

from snnkit.converters.axes import RECURRENT
from snnkit.errors import ExternalData, Problem, UnsupportedModel
from snnkit.files import is_ours, parse_model, read_bytes


def read_source(source: Any) -> tuple[onnx.ModelProto, str]:
    """(model, sha256 of the source) from a path, bytes or a ModelProto."""
    if isinstance(source, onnx.ModelProto):
        content, model, folder = (
            source.SerializeToString(deterministic=True),
            onnx.ModelProto(),
            None,
        )
        model.CopyFrom(source)
        where = "the model"
    elif isinstance(source, (bytes, bytearray)):
        content, folder, where = bytes(source), None, "the model"
        model = parse_model(content, where)
    else:
        content, folder, where = read_bytes(source), Path(os.fspath(source)).parent, str(source)
        model = parse_model(content, where)
    if is_ours(model):
        raise UnsupportedModel(
            [Problem(where, "file", "is a converted network already", "run or verify it instead")]
        )
    digest = sha256(content)
    for tensor in _external(model):
        digest.update(_load_external(tensor, folder, where))
    return model, digest.hexdigest()


def _external(model: onnx.ModelProto) -> list[TensorProto]:
    found = [t for t in model.graph.initializer if t.data_location == TensorProto.EXTERNAL]
    for node in (*model.graph.node, *(n for f in model.functions for n in f.node)):
        for a in node.attribute:
            if a.HasField("t") and a.t.data_location == TensorProto.EXTERNAL:
                found.append(a.t)
    return found


def _load_external(tensor: TensorProto, folder: Path | None, where: str) -> bytes:
    """Bring the tensor's data in; only from inside the model's own folder."""
    info = {e.key: e.value for e in tensor.external_data}
    location = info.get("location", "")
    if folder is None:
        raise ExternalData(f"{where}: tensor '{tensor.name}' lies in '{location}'; give a path")
    try:
        target = (folder / location).resolve()
    except (OSError, ValueError) as error:
        raise ExternalData(f"{where}: tensor '{tensor.name}': {location!r}: {error}") from error
    if not location or not target.is_relative_to(folder.resolve()):
        raise ExternalData(
            f"{where}: tensor '{tensor.name}' points to '{location}', outside the model's folder"
        )
    try:
        offset, length = int(info.get("offset", 0)), int(info.get("length", -1))
        with open(target, "rb") as file:
            file.seek(offset)
            # never more than there is: `read` allocates what it is asked for
            room = max(0, target.stat().st_size - offset)
            data = file.read(room if length < 0 else min(length, room))
    except (OSError, ValueError, OverflowError) as error:
        raise ExternalData(f"{where}: tensor '{tensor.name}': '{location}': {error}") from error
    if length >= 0 and len(data) != length:
        raise ExternalData(f"{where}: '{location}' ends before tensor '{tensor.name}' does")
    tensor.raw_data = data
    del tensor.external_data[:]
    tensor.data_location = TensorProto.DEFAULT
    return data


def with_time_first(graph: onnx.GraphProto) -> None:
    """Write recurrent operators of layout 1 as what they mean: layout 0 between transpositions
    (onnxruntime computes layout 0 only)."""
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        layouts = [a for a in node.attribute if a.name == "layout"]
        if node.op_type not in RECURRENT or node.domain not in ("", "ai.onnx"):
            nodes.append(node)
            continue
        turned = [a for a in layouts if a.i == 1]
        for a in layouts:
            node.attribute.remove(a)
        if not turned:
            nodes.append(node)
            continue
        label = node.name or node.output[0]

        def turn(source: str, target: str, perm: list[int]) -> onnx.NodeProto:
            return helper.make_node("Transpose", [source], [target], f"{target}/turned", perm=perm)

        for i in (0, 5, 6):
            if len(node.input) > i and node.input[i]:
                inner = f"{label}/in{i}"
                nodes.append(turn(node.input[i], inner, [1, 0, 2]))
                node.input[i] = inner
        behind = []
        for i, perm in enumerate([[2, 0, 1, 3], [1, 0, 2], [1, 0, 2]]):
            if len(node.output) > i and node.output[i]:
                inner = f"{label}/out{i}"
                behind.append(turn(inner, node.output[i], perm))
                node.output[i] = inner
        nodes += [node, *behind]
    kept = [onnx.NodeProto.FromString(n.SerializeToString()) for n in nodes]
    del graph.node[:]
    graph.node.extend(kept)
