"""The tables of benchmarks/: their own arithmetic, and that one command makes them."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("numba")
pytest.importorskip("sklearn", reason="scikit-learn is not installed; pip install scikit-learn")

from benchmarks import prepared, run
from benchmarks.growth import exponent
from benchmarks.recordings import EVENT
from benchmarks.streaming import BLOCK, WINDOW, packets, row
from benchmarks.tables import Scope
from snnkit.backends.numba_cpu import NumbaProgram
from snnkit.errors import VerificationFailed


@pytest.mark.parametrize("width", (0, 100, 1_000, 10_000))
def test_the_window_is_full_before_packets_count(width) -> None:
    """After the filling packets the window is one whole WINDOW, and each later packet moves it."""
    rng = np.random.default_rng(width)
    events = np.zeros(3000, EVENT)
    events["t"] = np.sort(rng.integers(500, 200_000, 3000))
    filling, counted = packets(events, width, 10)
    held = sum(len(p.events) - len(p.leaving) for p in filling)
    first = events["t"][0]
    whole = int(np.searchsorted(events["t"], first + WINDOW)) if width else 3000 * WINDOW / 199_500
    assert abs(held - whole) <= (0 if width else 2) and held > 100
    assert len(counted) == 10
    assert width or all(len(p.events) == len(p.leaving) == 1 for p in counted)
    assert sum(len(p.leaving) for p in counted) > 0


def test_the_exponent_of_a_power_is_its_exponent() -> None:
    assert exponent((1, 2, 4), [3.0, 12.0, 48.0]) == pytest.approx(2)
    assert exponent((1, 2, 4), [5.0, 5.0, 5.0]) == pytest.approx(0)


@pytest.fixture
def generated(tmp_path, monkeypatch):
    """No real data, whatever is beside the checkout."""
    cached = (prepared.test, prepared.train, prepared.graph)
    monkeypatch.setenv("SNNKIT_DATA", str(tmp_path / "absent"))
    monkeypatch.setattr(prepared, "CALIBRATION", 64)
    for function in cached:
        function.cache_clear()
    yield
    for function in cached:
        function.cache_clear()


def test_a_stream_is_compared_before_its_time_counts(generated, monkeypatch) -> None:
    scope = Scope(("nmnist",), (), (1,), 1, packets=2 * BLOCK)
    line, figures = row("nmnist", "1 ms", 1_000, scope)
    assert line[4].startswith("0 of ") and figures["packets"] == 2 * BLOCK
    assert all(len(figures[k]) == 2 for k in ("stream", "anew", "int8"))
    right = NumbaProgram.run

    def wrong(self, x, **options):
        result = right(self, x, **options)
        counts = {k: v.copy() for k, v in result.counts.items()}
        next(iter(counts.values())).reshape(-1)[-1] += 1
        return replace(result, counts=counts)

    monkeypatch.setattr(NumbaProgram, "run", wrong)
    with pytest.raises(VerificationFailed, match="neurons of node"):
        row("nmnist", "1 ms", 1_000, scope)


def test_one_command_writes_the_table(tmp_path, generated) -> None:
    scope = Scope(("mnist",), (0.1,), (1, 4), 1)
    run.run(["workloads", "levels"], scope, tmp_path / "out")
    text = (tmp_path / "out" / "benchmarks.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| mnist")]
    # ratios by batch, cells, levels
    assert len(rows) == 2 + 4 + 4 and "GENERATED inputs" in text and "load average" in text
    assert all(" 0 of " in row for row in rows[2:6])
    figures = json.loads((tmp_path / "out" / "benchmarks.json").read_text())
    (report,) = figures["workloads"]
    assert [(r["input"], r["batch"]) for r in report["rows"]] == [
        ("real", 1),
        ("real", 4),
        ("0.1", 1),
        ("0.1", 4),
    ]
    assert all(r["neurons_different"] == 0 and r["spikes"] > 0 for r in report["rows"])
    accuracies = [f["accuracy"]["snnkit"] for f in figures["levels"]]
    # few levels lose accuracy, 255 do not
    assert accuracies[0] < accuracies[2] and accuracies[2] > 0.6
