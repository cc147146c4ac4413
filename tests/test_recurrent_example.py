"""The script that trains sequence networks, and the networks of it that are shipped."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import snnkit
from snnkit.reference import dense, input_counts
from tests import shared_data

pytest.importorskip("sklearn", reason="scikit-learn is not installed; pip install scikit-learn")
pytest.importorskip("torch", reason="torch is not installed; pip install torch")

ROOT = Path(__file__).parents[1]
SHIPPED = sorted((ROOT / "examples").glob("sequence_*.onnx"))
LONG = [p for p in SHIPPED if p.stem.endswith("784")]


def run(*arguments: str) -> str:
    """What an example prints."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=environment, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_script_trains_converts_and_compares(tmp_path: Path) -> None:
    run("examples/train_sequences.py", "--task", "digits", "--output", str(tmp_path))
    found = json.loads((tmp_path / "result.json").read_text())
    network = found["network"]
    assert found["test samples"] == 397 and network["neurons"] == 397 * 8 * 5 * 32
    assert network["active"] > network["neurons"] / 10
    assert not network["differ"] and not network["outputs differ"]
    assert not network["onnxruntime outputs differ"]
    right = network["accuracy"]
    assert right["quantised"] == right["spiking"] > 0.9
    graph = snnkit.load(tmp_path / "net.onnx")
    assert graph.steps == 8 and len(graph.of("latch")) == 1


def test_a_crnn_is_trained_exported_and_converted(tmp_path: Path) -> None:
    printed = run("examples/convert_crnn.py", "--compare", "20", "--output", str(tmp_path))
    right = [float(word) for word in re.findall(r"(?:float:|spiking) (0\.\d+)", printed)]
    assert len(right) == 4 and min(right) > 0.95
    assert re.findall(r"neurons compared, (\d+) differ", printed) == ["0", "0", "0"]
    graph = snnkit.load(tmp_path / "net.onnx")
    assert graph.of("unstack") and graph.of("stack") and graph.steps == 4


@pytest.mark.parametrize("path", [p for p in SHIPPED if p not in LONG], ids=lambda p: p.stem)
def test_shipped_networks_are_exact(path: Path) -> None:
    """On made-up sequences: every neuron in every execution, all layers firing over time."""
    graph = snnkit.load(path)
    b, rng = graph.inputs[0], np.random.default_rng(0)
    shape = (2, *b.dims[1:])
    x = (rng.integers(0, 256, shape) * (rng.random(shape) < 0.5) * b.scale).astype(np.float32)
    values = dense(graph, input_counts(graph, x))
    for n in graph.of("spike"):
        assert (values[n.name] != 0).any(axis=(0, *range(2, values[n.name].ndim))).sum() > 1
    assert snnkit.verify(graph, x, modes=("settle", "events")).passed


@shared_data.needed
@pytest.mark.skipif(not SHIPPED, reason="no networks are shipped")
def test_shipped_mnist_networks_are_as_accurate_as_stated() -> None:
    images, labels = shared_data.mnist("t10k")
    x = images[:500].reshape(500, 784).astype(np.float32) / np.float32(255)
    order = np.random.default_rng(0).permutation(784)
    for name, least in (("rows", 0.97), ("smnist", 0.985), ("psmnist", 0.94)):
        graph = snnkit.load(ROOT / "examples" / f"sequence_{name}.onnx")
        given = (x[:, order] if name == "psmnist" else x).reshape(500, 28, 28)
        (y,) = snnkit.compile(graph).run(given).outputs.values()
        assert (y.argmax(1) == labels[:500]).mean() > least, name


@shared_data.needed
@pytest.mark.parametrize("path", LONG, ids=lambda p: p.stem)
def test_shipped_networks_read_mnist_pixel_by_pixel(path: Path) -> None:
    """784 elements of one pixel: the engine is the reference on every neuron, and right."""
    images, labels = shared_data.mnist("t10k")
    x = images[:20].reshape(20, 784, 1).astype(np.float32) / np.float32(255)
    order = np.random.default_rng(0).permutation(784)
    given = x[:, order] if path.stem == "sequence_psmnist784" else x
    graph = snnkit.load(path)
    assert graph.steps == 784 and graph.node["x"].units == 1
    names = [n.name for n in graph.of("spike")]
    result = snnkit.compile(graph).run(given, record=names)
    assert (result.outputs["y"].argmax(1) == labels[:20]).sum() >= 18
    values = dense(graph, input_counts(graph, given[:2]))
    for name in names:
        counts = result.counts[name]
        assert (counts != counts[:1, :1]).any(), f"{name} is constant"
        assert np.array_equal(counts[:2], values[name]), name


def test_both_networks_of_784_pixels_are_shipped() -> None:
    assert [p.stem for p in LONG] == ["sequence_psmnist784", "sequence_smnist784"]
