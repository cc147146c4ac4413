"""Energy by convention and by count."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed; pip install torch")

import snnkit  # noqa: E402
from snnkit import nn as snn  # noqa: E402
from snnkit.converters.from_snn import from_snn  # noqa: E402
from snnkit.nn.energy import counted_energy, paper_energy  # noqa: E402


def network(steps: int) -> torch.nn.Module:
    torch.manual_seed(1)
    model = torch.nn.Sequential(
        snn.Direct(steps),
        snn.Folded(torch.nn.Conv2d(2, 4, 3, padding=1)),
        snn.IF(0.2),
        snn.Folded(torch.nn.AvgPool2d(2)),
        snn.Folded(torch.nn.Conv2d(4, 6, 3)),
        snn.IF(0.2),
        snn.Folded(torch.nn.Flatten(), torch.nn.Linear(24, 10, bias=False)),
        snn.IF(0.1),
        snn.Folded(torch.nn.Linear(10, 3, bias=False)),
        snn.TimeSum(),
    )
    return model.eval()


def images() -> np.ndarray:
    return (np.random.default_rng(0).integers(0, 256, (9, 2, 8, 8)) / 255).astype(np.float32)


@pytest.mark.parametrize("steps", [1, 3])
def test_the_convention(steps: int) -> None:
    model, x = network(steps), torch.from_numpy(images())
    spikes: list[torch.Tensor] = []
    for module in model:
        if isinstance(module, snn.IF):
            module.register_forward_hook(lambda _, __, s: spikes.append(s))
    plain, graded = paper_energy(model, x), paper_energy(model, x, graded=True)
    dense = [64 * 4 * 2 * 9, 4 * 6 * 4 * 9, 24 * 10, 30]
    assert [r.dense for r in plain] == [d * steps for d in dense] == [r.dense for r in graded]
    assert [r.kind for r in plain] == ["MAC", "MAC", "AC", "AC"]
    assert [r.kind for r in graded] == ["MAC", "AC", "AC", "AC"]
    assert [r.rate for r in plain[:2]] == [1.0, 1.0]
    # an average of four spikes is a count of 0..4 quarters
    assert graded[1].rate == pytest.approx(4 * float(spikes[0].mean()), rel=1e-5)
    for row, s in zip(plain[2:], spikes[1:3], strict=True):
        assert row.rate == pytest.approx(float(s.mean()), rel=1e-5) and 0 < row.rate < 1
        assert row.picojoules == pytest.approx(0.9 * row.rate * row.dense)
    assert plain[0].picojoules == pytest.approx(4.6 * dense[0] * steps)


def test_counted_operations_equal_the_convention_where_nothing_is_cut() -> None:
    """A linear layer has no border: events times fan-out is rate times dense."""
    model, x = network(1), images()
    graph = from_snn(model, x)
    result = snnkit.compile(graph).run(x, record=("spike",))
    rows = counted_energy(graph, result)
    assert [r.kind for r in rows] == ["MAC", "AC", "AC", "AC"]
    assert [r.dense for r in rows] == [64 * 4 * 2 * 9, 4 * 6 * 4 * 9, 24 * 10, 30]
    for row, name in zip(rows[2:], ("5", "7"), strict=True):
        fired = result.counts[name].reshape(len(x), -1).sum(1).mean()
        assert row.operations == pytest.approx(fired * row.dense / np.prod(graph.node[name].shape))
        assert row.operations > 0
    # inputs of value 0 send nothing, and padding taps are no synapses
    assert 0 < rows[0].operations < rows[0].dense


def test_energy_leaves_the_model_as_it_was() -> None:
    model, x = network(2).train(), torch.from_numpy(images())
    paper_energy(model, x)
    assert model.training and all(not m._forward_hooks for m in model.modules())
    assert all(m.v is None for m in model if isinstance(m, snn.IF))
