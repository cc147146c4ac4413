"""The file: the same bits back, and one error for every way in which a file can be wrong."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, numpy_helper

from snnkit import errors, files
from snnkit.boundary import dequantise
from snnkit.cli import main
from snnkit.converters import convert
from snnkit.graph import Boundary, Graph, make_node
from snnkit.reference import dense, input_counts
from tests.corpus import random_graph
from tests.small_files import edited, float_model, network, set_property

SECONDS = 2.0
"""No damaged file may take longer than this to refuse."""


@pytest.fixture(scope="module")
def graph() -> Graph:
    return network()


@pytest.fixture(scope="module")
def content(graph: Graph) -> bytes:
    return files.to_bytes(graph)


# --- the same bits back ---------------------------------------------------------------------


def test_load_gives_the_saved_graph(graph: Graph, tmp_path: Path) -> None:
    """load(save(g)) has the digest of g, and saves as the same bytes."""
    files.save(graph, tmp_path / "net.onnx")
    again = files.load(tmp_path / "net.onnx")
    assert again.digest == graph.digest
    files.save(again, tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "net.onnx").read_bytes()


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_random_networks_come_back(seed: int) -> None:
    """The same law for networks of every shape; and onnxruntime opens the file."""
    graph = random_graph(np.random.default_rng(seed))
    content = files.to_bytes(graph)
    again = files.from_bytes(content)
    assert again.digest == graph.digest
    assert files.to_bytes(again) == content
    ort.InferenceSession(content, providers=["CPUExecutionProvider"])


def test_the_file_computes_what_the_graph_defines(graph: Graph, content: bytes) -> None:
    """onnxruntime's output of the file equals the definition, bit for bit."""
    rng = np.random.default_rng(0)
    x = {
        "X": rng.uniform(-3, 30, (7, 2, 4, 3)).astype(np.float32),
        "Z": rng.uniform(-1, 130, (7, 2, 4)).astype(np.float16),
    }
    values = dense(graph, input_counts(graph, x))
    found = ort.InferenceSession(content, providers=["CPUExecutionProvider"]).run(["W"], x)[0]
    expected = dequantise(graph.outputs[1], values[graph.outputs[1].node])
    assert found.dtype == expected.dtype == np.float64
    assert found.tobytes() == expected.tobytes()


def test_conversion_gives_the_same_bytes_twice() -> None:
    """The same model and the same calibration data give the same file."""
    model, data = float_model()
    assert files.to_bytes(convert(model, data)) == files.to_bytes(convert(model, data))


def test_conversion_gives_the_same_bytes_in_every_process() -> None:
    """Neither hash order nor anything else of the process reaches the file."""
    code = (
        "import hashlib; from snnkit import files; from snnkit.converters import convert;"
        "from tests.small_files import float_model, network; m, x = float_model();"
        "both = files.to_bytes(convert(m, x)) + files.to_bytes(network());"
        "print(hashlib.sha256(both).hexdigest())"
    )
    root = str(Path(__file__).parents[1])
    found = []
    for seed in ("0", "1234"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": root}
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, cwd=root, capture_output=True, check=True
        )
        found.append(done.stdout.decode().strip())
    model, data = float_model()
    here = hashlib.sha256(files.to_bytes(convert(model, data)) + files.to_bytes(network()))
    assert found == [here.hexdigest()] * 2


# --- damaged files: no network of ours ------------------------------------------------------


def refused(kind: type[errors.SnnkitError], content: bytes, *places: str) -> None:
    """Assert that from_bytes raises exactly `kind`, with a message that names the places."""
    with pytest.raises(errors.SnnkitError) as caught:
        files.from_bytes(content, "net.onnx")
    assert type(caught.value) is kind, caught.value
    for place in places:
        assert place in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(errors.UnreadableFile, match=r"nowhere\.onnx: cannot be read: No such file"):
        files.load(tmp_path / "nowhere.onnx")


def test_a_folder_or_a_device_is_no_file(tmp_path: Path) -> None:
    for path in (str(tmp_path), "/dev/zero"):
        with pytest.raises(errors.UnreadableFile, match=f"{path}: not a file"):
            files.load(path)


def test_empty_file(tmp_path: Path) -> None:
    (tmp_path / "empty.onnx").touch()
    with pytest.raises(errors.UnreadableFile, match=r"empty\.onnx: the file is empty"):
        files.load(tmp_path / "empty.onnx")


def test_truncated_file(content: bytes) -> None:
    for share in (0.1, 0.5, 0.9, 0.999):
        cut = content[: int(len(content) * share)]
        refused(errors.UnreadableFile, cut, "net.onnx", "truncated")


def test_not_onnx() -> None:
    for text in (b"PK\x03\x04 a zip file", b"\x89PNG\r\n\x1a\n", b"hello world\n" * 99, bytes(999)):
        refused(errors.UnreadableFile, text, "net.onnx: ", "ONNX")


def test_foreign_model() -> None:
    refused(errors.ForeignFile, float_model()[0].SerializeToString(), "net.onnx", "snnkit convert")


def test_wrong_format_version(content: bytes) -> None:
    damaged = edited(content, lambda m: set_property(m, "snnkit.format", "999"))
    refused(errors.FormatMismatch, damaged, "net.onnx", "'999'")


def test_over_the_size_limit(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "large.onnx").write_bytes(content)
    monkeypatch.setattr(files, "MAX_BYTES", len(content) - 1)
    with pytest.raises(errors.FileTooLarge, match=rf"large\.onnx: {len(content)} bytes"):
        files.load(tmp_path / "large.onnx")


def test_external_data_in_a_file_of_ours(content: bytes) -> None:
    def move_out(model: onnx.ModelProto) -> None:
        tensor = initializer(model, "n1.weight")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="weights.bin")
        tensor.ClearField("raw_data")

    refused(errors.ExternalData, edited(content, move_out), "net.onnx", "'%n1.weight'")


# --- wrong graphs in readable files ---------------------------------------------------------


def described(content: bytes, change: Callable[[Any], Any]) -> bytes:
    """The file after `change` of the graph's description in its metadata."""

    def rewrite(model: onnx.ModelProto) -> None:
        entry = next(p for p in model.metadata_props if p.key == "snnkit.graph")
        description = json.loads(entry.value)
        change(description)
        entry.value = json.dumps(description)

    return edited(content, rewrite)


def initializer(model: onnx.ModelProto, name: str) -> TensorProto:
    return next(t for t in model.graph.initializer if t.name == f"%{name}")


def with_array(content: bytes, name: str, change: Callable[[np.ndarray], Any]) -> bytes:
    """The file with another content of one initialiser."""

    def replace(model: onnx.ModelProto) -> None:
        tensor = initializer(model, name)
        value = numpy_helper.to_array(tensor).copy()
        tensor.CopyFrom(numpy_helper.from_array(np.asarray(change(value)), tensor.name))

    return edited(content, replace)


def test_unsorted_thresholds(content: bytes) -> None:
    def swapped(ladder: np.ndarray) -> np.ndarray:
        ladder[0], ladder[1] = ladder[1] + 1, ladder[0]
        return ladder

    damaged = with_array(content, "n6.thresholds", swapped)
    refused(errors.BadThreshold, damaged, "node 'n6' (spike)", "not sorted")


def test_theta_zero(content: bytes) -> None:
    for value in (0, -7):
        damaged = with_array(content, "n2.theta", lambda a, v=value: np.full_like(a, v))
        refused(errors.BadThreshold, damaged, "node 'n2' (spike)", f"theta {value}")


def test_float_array_right_of_the_quantiser(content: bytes) -> None:
    for name in ("n1.weight", "n2.init", "n6.thresholds", "n13.bias"):
        damaged = with_array(content, name, lambda a: a.astype(np.float32))
        node, key = name.split(".")
        refused(errors.FloatArray, damaged, f"node '{node}'", f"'{key}'", "float32")


def test_a_float_array_in_memory() -> None:
    """The same rule where a graph is made by hand: a float that is whole is a float still."""
    x = make_node("x", "input", attrs={"shape": (2,), "lo": 0, "hi": 255})
    with pytest.raises(errors.FloatArray, match="node 'l': array 'weight' is float64"):
        make_node("l", "linear", [x], {"weight": np.ones((1, 2))})


def test_unknown_op(content: bytes) -> None:
    damaged = described(content, lambda d: d["nodes"][4].update(op="quantum"))
    refused(errors.UnknownOp, damaged, "node 'n4': op 'quantum'")


def test_wrong_number_of_inputs(content: bytes) -> None:
    damaged = described(content, lambda d: d["nodes"][12]["inputs"].append("n0"))
    refused(errors.BadShape, damaged, "node 'n12' (linear): 2 inputs")


def test_wrong_shape_of_an_array(content: bytes) -> None:
    damaged = described(content, lambda d: d["nodes"][12]["params"].update(weight=[4, 4]))
    refused(errors.MalformedGraph, damaged, "net.onnx: node 'n12': array 'weight'", "[4, 4]")


def test_shapes_that_do_not_fit_each_other(content: bytes) -> None:
    damaged = described(content, lambda d: d["nodes"][12]["params"].update(weight=[5, 3]))
    refused(errors.BadShape, damaged, "node 'n12' (linear): linear weight (5, 3)")
    damaged = described(content, lambda d: d["nodes"][1]["attrs"].update(pads=[9]))
    refused(errors.BadShape, damaged, "node 'n1' (conv)")


@pytest.mark.parametrize("shape", [[-2, -18], [0, 36], [1] * 20 + [36]])
def test_a_shape_that_is_none(content: bytes, shape: list[int]) -> None:
    """As many units as before, but no shape: negative, empty, of too many axes."""
    damaged = described(content, lambda d: d["nodes"][10]["attrs"].update(shape=shape))
    refused(errors.BadShape, damaged, "node 'n10' (route)")


@pytest.mark.parametrize("value", ["3", 2**31, 1.5, None, {"a": 1}, [[1]], [2**40]])
def test_an_attribute_that_is_no_integer(content: bytes, value: Any) -> None:
    damaged = described(content, lambda d: d["nodes"][8]["attrs"].update(axis=value))
    refused(errors.InvalidGraph, damaged, "attribute 'axis'")


def test_charge_bound_overflow(content: bytes) -> None:
    damaged = with_array(content, "n2.theta", lambda a: np.full_like(a, 2**31 - 1))
    refused(errors.RangeOverflow, damaged, "node 'n2' (spike)", "2^31")


def test_sizes_over_the_limit_are_refused_before_they_are_allocated(content: bytes) -> None:
    cases = [
        (0, {"shape": [1_000_000_000, 1_000_000_000]}),
        (1, {"pads": [2**30, 2**30, 2**30, 2**30]}),
        (4, {"kernel": [2**30, 2**30], "pads": [2**29] * 4}),
    ]
    for at, attrs in cases:
        start = time.perf_counter()
        damaged = described(content, lambda d, at=at, a=attrs: d["nodes"][at]["attrs"].update(a))
        refused(errors.TooLarge, damaged, f"node 'n{at}'", "limit")
        assert time.perf_counter() - start < SECONDS


def test_too_many_nodes(content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_NODES", 5)
    refused(errors.MalformedGraph, content, "net.onnx: 17 nodes; limit 5")


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf])
def test_boundary_scale(content: bytes, value: float) -> None:
    for node, name in (("n0", "X"), ("n13", "Y")):
        damaged = with_array(content, f"{node}.scale", lambda a: np.full_like(a, value))
        refused(errors.InvalidGraph, damaged, f"boundary '{name}'", "scale")


def test_boundary_of_another_type(content: bytes) -> None:
    damaged = with_array(content, "n0.scale", lambda a: a.astype(np.float64))
    refused(errors.MalformedGraph, damaged, "boundary 'n0': scale is float64")
    damaged = described(content, lambda d: d["inputs"][0].update(dtype="complex64"))
    refused(errors.InvalidGraph, damaged, "boundary 'X'", "complex64")


def test_boundary_dimensions(content: bytes) -> None:
    for dims in ([], ["batch", 2, 4, 4], [0, 2, 4, 3], ["batch", 2.0, 4, 3], [None, 2, 4, 3]):
        damaged = described(content, lambda d, v=dims: d["inputs"][0].update(dims=v))
        refused(errors.InvalidGraph, damaged, "boundary 'X': dimensions")


@pytest.mark.parametrize(
    "post", [{"op": "Softmax"}, {"op": "Softmax", "axis": 0}, {"op": "ArgMax", "axis": 1, "x": {}}]
)
def test_steps_behind_a_readout(content: bytes, post: dict[str, Any]) -> None:
    damaged = described(content, lambda d: d["outputs"][0].update(post=[post]))
    refused(errors.InvalidGraph, damaged, "boundary 'Y'")


def test_an_op_that_cannot_follow_a_readout(content: bytes) -> None:
    damaged = described(content, lambda d: d["outputs"][0].update(post=[{"op": "Gelu", "axis": 1}]))
    refused(errors.UnknownOp, damaged, "boundary 'Y': 'Gelu'")


def test_boundaries_without_their_nodes(content: bytes) -> None:
    damaged = described(content, lambda d: d["inputs"].pop())
    refused(errors.InvalidGraph, damaged, "input boundaries")
    damaged = described(content, lambda d: d["outputs"][1].update(d["outputs"][0]))
    refused(errors.InvalidGraph, damaged, "output boundaries")


def test_two_nodes_of_one_name(content: bytes) -> None:
    damaged = described(content, lambda d: d["nodes"].append(copy.deepcopy(d["nodes"][2])))
    refused(errors.InvalidGraph, damaged, "net.onnx: node 'n2': the name is taken twice")


def test_missing_initializer(content: bytes) -> None:
    def remove(model: onnx.ModelProto) -> None:
        model.graph.initializer.remove(initializer(model, "n2.theta"))

    refused(errors.MalformedGraph, edited(content, remove), "net.onnx: array 'n2.theta' is missing")


def test_damaged_initializer(content: bytes) -> None:
    def shorten(model: onnx.ModelProto) -> None:
        tensor = initializer(model, "n1.weight")
        tensor.raw_data = tensor.raw_data[:-1]

    refused(errors.MalformedGraph, edited(content, shorten), "array 'n1.weight' cannot be read")


def test_a_reference_to_nothing(content: bytes) -> None:
    damaged = described(content, lambda d: d["nodes"][2].update(inputs=["nobody"]))
    refused(errors.MalformedGraph, damaged, "net.onnx", "nobody")


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "null", "9" * 5000, "[" * 50_000])
def test_a_description_that_is_none(content: bytes, text: str) -> None:
    damaged = edited(content, lambda m: set_property(m, "snnkit.graph", text))
    refused(errors.MalformedGraph, damaged, "net.onnx: the graph's description")


def test_digest_mismatch(content: bytes) -> None:
    """One weight that differs by one."""

    def flip(weight: np.ndarray) -> np.ndarray:
        weight.flat[3] ^= 1
        return weight

    refused(errors.AlteredFile, with_array(content, "n1.weight", flip), "net.onnx", "digest")


def _other_body(model: onnx.ModelProto) -> None:
    function = next(f for f in model.functions if f.name == "BIF")
    next(n for n in function.node if n.op_type == "Max").op_type = "Min"


def _other_attribute(model: onnx.ModelProto) -> None:
    node = next(n for n in model.graph.node if n.op_type == "ConvInteger")
    next(a for a in node.attribute if a.name == "strides").ints[:] = [2, 1]


def _other_tensor(model: onnx.ModelProto) -> None:
    model.graph.output[1].name = "V"
    for node in model.graph.node:
        node.output[:] = ["V" if o == "W" else o for o in node.output]


def _other_input(model: onnx.ModelProto) -> None:
    adds = [n for n in model.graph.node if n.op_type == "Add"]
    adds[-1].input[0], adds[-1].input[1] = adds[-1].input[1], adds[-1].input[0]


def _other_constant(model: onnx.ModelProto) -> None:
    tensor = initializer(model, "weight_zero")
    tensor.CopyFrom(numpy_helper.from_array(np.uint8(127), tensor.name))


def _one_more_array(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(3, np.int32), "hidden"))


def _one_more_property(model: onnx.ModelProto) -> None:
    model.metadata_props.add(key="author", value="me")


@pytest.mark.parametrize(
    "change",
    [
        _other_body,
        _other_attribute,
        _other_tensor,
        _other_input,
        _other_constant,
        _one_more_array,
        _one_more_property,
    ],
)
def test_nodes_that_are_not_the_graphs(
    content: bytes, change: Callable[[onnx.ModelProto], None]
) -> None:
    """The metadata is intact, but onnxruntime would compute something else."""
    refused(errors.AlteredFile, edited(content, change), "net.onnx", "onnxruntime")


# --- graphs that cannot be written ----------------------------------------------------------


def chain(*middle: tuple[str, dict[str, Any], dict[str, Any]], **changes: Any) -> Graph:
    """input -> middle -> readout, four units wide."""
    x = make_node("x", "input", attrs={"shape": (4,), "lo": 0, "hi": 255})
    nodes = [x]
    for i, (op, params, attrs) in enumerate(middle):
        nodes.append(make_node(f"m{i}", op, [nodes[-1]], params, attrs))
    nodes.append(make_node("o", "readout", [nodes[-1]], {"bias": np.int32(0)}))
    one, zero = np.ones((), np.float32), np.zeros((), np.float32)
    inputs = (Boundary("X", "x", "float32", ("batch", 4), one, zero),)
    name = changes.pop("output", "Y")
    outputs = (Boundary(name, "o", "float32", ("batch", 4), one, zero),)
    return Graph(tuple(nodes), inputs, outputs, changes)


def test_wide_values_where_bytes_are_read() -> None:
    """A charge that a synapse reads without a neuron between does not fit the file's 8 bits."""
    ones = ("linear", {"weight": np.ones((4, 4), int)}, {})
    with pytest.raises(errors.RangeOverflow, match=r"node 'm0': its values 0\.\.1020"):
        files.to_bytes(chain(ones, ones))


def test_an_output_named_like_an_inner_tensor() -> None:
    """The model's own names never meet those that the file uses inside."""
    weight = np.arange(16).reshape(4, 4)
    for name in ("m0.charge", "o.charge", "x.counts", "m0", "weight_zero"):
        content = files.to_bytes(chain(("linear", {"weight": weight}, {}), output=name))
        session = ort.InferenceSession(content, providers=["CPUExecutionProvider"])
        found = session.run([name], {"X": np.array([[1, 2, 3, 4]], np.float32)})[0]
        assert np.array_equal(found, [[20, 60, 100, 140]])


@pytest.mark.parametrize("key", ["digest", "format", "graph", "bounds"])
def test_meta_that_would_hide_the_files_own(key: str) -> None:
    with pytest.raises(errors.InvalidGraph, match=f"meta '{key}'"):
        files.to_bytes(chain(**{key: "x"}))


def test_names_that_a_file_cannot_hold() -> None:
    for name in ("", "a\0b", "\ud800"):
        with pytest.raises(errors.InvalidGraph, match="name"):
            files.to_bytes(chain(output=name))
        with pytest.raises(errors.InvalidGraph, match="name"):
            make_node(name, "input", attrs={"shape": (4,), "lo": 0, "hi": 255})


# --- writing --------------------------------------------------------------------------------


def test_a_failing_write_leaves_the_old_file(
    graph: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk, whether it shows at writing or at renaming: old file intact, nothing beside."""
    target = tmp_path / "net.onnx"
    target.write_bytes(b"old")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    for place in ("chmod", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, place, full)
            with pytest.raises(errors.UnreadableFile, match=r"net\.onnx: cannot be written"):
                files.save(graph, target)
        assert target.read_bytes() == b"old"
        assert os.listdir(tmp_path) == ["net.onnx"]


def test_an_invalid_graph_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "net.onnx"
    target.write_bytes(b"old")
    with pytest.raises(errors.InvalidGraph):
        files.save(chain(digest="x"), target)
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["net.onnx"]


def test_an_interrupted_write_leaves_nothing_beside(
    graph: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        files.save(graph, tmp_path / "net.onnx")
    assert os.listdir(tmp_path) == []


def test_saving_into_a_missing_folder(graph: Graph, tmp_path: Path) -> None:
    target = tmp_path / "nowhere" / "net.onnx"
    with pytest.raises(errors.UnreadableFile, match=r"nowhere.*cannot be written: No such"):
        files.save(graph, target)


def test_the_command_line_reports_without_a_traceback(
    content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 3 and one line that names the file, whatever is wrong with it."""
    model, data = float_model()
    np.save(tmp_path / "x.npy", data)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    (tmp_path / "cut.onnx").write_bytes(content[:-100])
    x = ["--calibration", str(tmp_path / "x.npy")]
    target = str(tmp_path / "nowhere" / "net.onnx")
    commands = [
        (["info", str(tmp_path / "cut.onnx")], "cut.onnx"),
        (["info", str(tmp_path / "none.onnx")], "none.onnx"),
        (["verify", str(tmp_path / "model.onnx"), "--samples", x[1]], "model.onnx: snnkit did not"),
        (["convert", str(tmp_path / "model.onnx"), "-o", target, "--verify", "0", *x], "nowhere"),
    ]
    for command, place in commands:
        assert main(command) == 3
        shown = capsys.readouterr()
        assert place in shown.err and "Traceback" not in shown.err
        assert main([*command, "--json"]) == 3
        assert json.loads(capsys.readouterr().out)["exit_code"] == 3


# --- float models with data in other files --------------------------------------------------


def moved_out(location: str, folder: Path, **entries: int) -> Path:
    """The float model in `folder` with the data of its first tensor kept at `location`."""
    model, _ = float_model()
    tensor = model.graph.initializer[0]
    (folder / "w.bin").write_bytes(b"1234" + tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entries = {"offset": 4, "length": 120, **entries}
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=str(value))
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return folder / "model.onnx"


def test_external_data_inside_the_models_folder(tmp_path: Path) -> None:
    """The network is the one of the model in one file."""
    model, data = float_model()
    whole, parted = convert(model, data), convert(moved_out("w.bin", tmp_path), data)
    arrays = [n.params[k].tobytes() for n in whole.nodes for k in sorted(n.params)]
    assert arrays == [n.params[k].tobytes() for n in parted.nodes for k in sorted(n.params)]


@pytest.mark.parametrize("location", ["../w.bin", "/etc/passwd", "link.bin", "sub/../../w.bin", ""])
def test_external_data_outside_the_models_folder(tmp_path: Path, location: str) -> None:
    """By a path that climbs, an absolute path, a symbolic link; even where the file exists."""
    folder = tmp_path / "model"
    folder.mkdir()
    path = moved_out(location, folder)
    (folder / "w.bin").rename(tmp_path / "w.bin")
    (folder / "link.bin").symlink_to(tmp_path / "w.bin")
    with pytest.raises(errors.ExternalData, match=r"tensor 'w'.*outside the model's folder"):
        convert(path, float_model()[1])


def test_external_data_that_is_not_there(tmp_path: Path) -> None:
    """Missing, too short, at an impossible place; a length of terabytes allocates nothing."""
    data = float_model()[1]
    for location in ("none.bin", "a\0b"):
        with pytest.raises(errors.ExternalData, match="tensor 'w'"):
            convert(moved_out(location, tmp_path), data)
    for entries in ({"length": 2**50}, {"offset": -1}, {"offset": 10**30}, {"offset": 99}):
        with pytest.raises(errors.ExternalData, match="tensor 'w'"):
            convert(moved_out("w.bin", tmp_path, **entries), data)


def test_external_data_of_a_model_in_memory(tmp_path: Path) -> None:
    content = moved_out("w.bin", tmp_path).read_bytes()
    with pytest.raises(errors.ExternalData, match=r"tensor 'w' lies in 'w\.bin'; give"):
        convert(content, float_model()[1])
