"""The trained networks that are shipped tell digits apart, spike for spike on every engine."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="scikit-learn is not installed; pip install scikit-learn")

import snnkit

EXAMPLES = Path(__file__).parents[1] / "examples"


def held_out() -> tuple[np.ndarray, np.ndarray]:
    sys.path.insert(0, str(EXAMPLES))
    try:
        from digits import split
    finally:
        sys.path.remove(str(EXAMPLES))
    _, _, x, y = split()
    return x / np.float32(16), y


@pytest.mark.parametrize("steps", [1, 5])
def test_a_shipped_network(steps: int) -> None:
    graph = snnkit.load(EXAMPLES / f"iir_digits_t{steps}.onnx")
    x, y = held_out()
    # one step needs no state: a one-shot graph
    assert (graph.steps, len(graph.of("lif"))) == ((5, 4) if steps == 5 else (0, 0))
    program = snnkit.compile(graph)
    if steps == 1 and program.path == "generic":
        assert not program.why_generic
    assert (program.run(x).outputs["output"].argmax(1) == y).mean() > 0.95
    certificate = snnkit.verify(graph, x[:24], labels=y[:24])
    assert certificate.passed, certificate.first_difference
    assert not certificate.skipped and not certificate.silent_layers


@pytest.mark.parametrize("steps", [1, 5])
def test_torch_fires_the_same_spikes(steps: int) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed; pip install torch")
    from snnkit.nn.integer_network import IntegerNetwork

    graph = snnkit.load(EXAMPLES / f"iir_digits_t{steps}.onnx")
    x = held_out()[0][:60]
    output, record = IntegerNetwork(graph)(torch.from_numpy(x))
    result = snnkit.compile(graph).run(x, record=("spike",))
    assert len(result.counts) >= 4
    for name, counts in result.counts.items():
        assert counts.any() and np.array_equal(counts, record[name].numpy()), name
    assert np.array_equal(result.outputs["output"], output.numpy())
