"""The tables of benchmarks/: their own arithmetic, and that one command makes them."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest

pytest.importorskip("numba")
pytest.importorskip("sklearn", reason="scikit-learn is not installed; pip install scikit-learn")

from benchmarks.recordings import EVENT

from benchmarks import run
from benchmarks.growth import exponent
from benchmarks.streaming import WINDOW, packets
from benchmarks.tables import Scope


def recording(seed: int, count: int = 3000) -> np.ndarray:
    """Random events; many at the same microsecond."""
    rng = np.random.default_rng(seed)
    made = np.zeros(count, EVENT)
    made["t"] = np.sort(rng.integers(500, 60_000, count)) // 7 * 7
    made["x"], made["y"] = rng.integers(0, 5, count), rng.integers(0, 4, count)
    made["p"] = rng.integers(0, 2, count)
    return made


def units(events: np.ndarray) -> Counter:
    return Counter(zip(events["x"].tolist(), events["y"].tolist(), events["p"].tolist()))


@pytest.mark.parametrize("width", (100, 1_000, 10_000, 25_000))
def test_packets_leave_the_last_window_inside(width) -> None:
    events = recording(width)
    t, held = events["t"], Counter()
    end = int(t[0]) + WINDOW
    for number, (entering, leaving) in enumerate(packets(events, width, 40)):
        held.update(units(entering))
        held.subtract(units(leaving))
        now = end + number * width
        inside = events[(t >= now - WINDOW) & (t < now)]
        assert +held == units(inside) and min(held.values(), default=0) >= 0
    assert number == 40


def test_packets_of_one_event_move_one_event_each() -> None:
    events = recording(1)
    made = list(packets(events, 0, 500))
    assert len(made) == 501 and all(len(entering) == 1 for entering, _ in made[1:])
    held = Counter()
    for entering, leaving in made:
        held.update(units(entering))
        held.subtract(units(leaving))
    last = int(np.searchsorted(events["t"], events["t"][0] + WINDOW)) + 500
    newest = events["t"][last - 1]
    kept = events[:last]
    assert +held == units(kept[kept["t"] > newest - WINDOW])
    assert sum(len(leaving) for _, leaving in made) > 100


def test_the_exponent_of_a_power_is_its_exponent() -> None:
    assert exponent((1, 2, 4), [3.0, 12.0, 48.0]) == pytest.approx(2)
    assert exponent((1, 2, 4), [5.0, 5.0, 5.0]) == pytest.approx(0)


def test_one_command_writes_the_table(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("SNNKIT_DATA", str(tmp_path / "absent"))
    for cached in (run.tables.prepared.test, run.tables.prepared.train, run.tables.prepared.graph):
        cached.cache_clear()
    scope = Scope(("mnist",), (0.1,), (1, 4), 1)
    run.run(["workloads", "levels"], scope, tmp_path / "out")
    text = (tmp_path / "out" / "benchmarks.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| mnist")]
    # ratios by batch, cells, levels
    assert len(rows) == 2 + 4 + 3 and "GENERATED inputs" in text and "load average" in text
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
    for cached in (run.tables.prepared.test, run.tables.prepared.train, run.tables.prepared.graph):
        cached.cache_clear()
