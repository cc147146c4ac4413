"""A torch module goes the same way as an ONNX file."""

from __future__ import annotations

import numpy as np
import pytest

import snnkit
from snnkit.errors import UnsupportedModel

torch = pytest.importorskip("torch", reason="torch is not installed; pip install torch")
pytest.importorskip("onnxscript", reason="onnxscript is not installed; pip install onnxscript")


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    nn = torch.nn
    return nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3, groups=2),
        nn.PReLU(8),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )


def test_a_module_converts_and_stays_as_it_was() -> None:
    module = network().train()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    x = np.random.default_rng(0).normal(0, 1, (64, 2, 10, 8)).astype(np.float32)
    graph = snnkit.convert(module, x)
    assert module.training and all(
        torch.equal(v, before[k]) for k, v in module.state_dict().items()
    )
    assert isinstance(graph.inputs[0].dims[0], str)
    certificate = snnkit.verify(graph, x[:8])
    assert certificate.passed and not certificate.silent_layers
    with torch.no_grad():
        expected = module.eval()(torch.from_numpy(x)).numpy()
    found = next(iter(snnkit.compile(graph).run(x).outputs.values()))
    span = float(expected.max() - expected.min())
    assert np.abs(found - expected).max() < 0.05 * span


def test_what_torch_cannot_export_is_refused_in_one_line() -> None:
    class Odd(torch.nn.Module):
        def forward(self, x):
            raise RuntimeError("this module has its own mind")

    with pytest.raises(UnsupportedModel, match="torch cannot export it"):
        snnkit.convert(Odd(), np.zeros((4, 3), np.float32))


def test_what_a_recurrent_module_cannot_is_refused_by_name() -> None:
    """The GRU itself converts (tests/test_recurrent_import.py)."""

    class Pyramid(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.gru = torch.nn.GRU(3, 4, batch_first=True)
            self.upper = torch.nn.GRU(4, 4, batch_first=True)

        def forward(self, x):
            return self.upper(self.gru(x)[0][:, ::2])[0]

    x = np.random.default_rng(0).normal(size=(8, 5, 3)).astype(np.float32)
    with pytest.raises(
        UnsupportedModel, match=r"\(GRU\).*of 3 elements, another operator one of 5"
    ):
        snnkit.convert(Pyramid(), x)
