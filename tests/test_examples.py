"""The examples run, and the shipped network is what its script makes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("sklearn", reason="scikit-learn is not installed; pip install scikit-learn")
pytest.importorskip("matplotlib", reason="matplotlib is not installed; pip install matplotlib")

ROOT = Path(__file__).parents[1]


def run(*arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=environment, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_demo(tmp_path) -> None:
    printed = run("examples/demo.py", "--output", str(tmp_path))
    assert "neurons that differ" in printed and "event-driven" in printed
    certificate = json.loads((tmp_path / "certificate.json").read_text())
    assert certificate["passed"] and certificate["neurons_different"] == 0
    assert certificate["neurons_compared"] == 5_782_500 and not certificate["silent_layers"]
    assert certificate["quantisation"]["accuracy"] >= 0.98
    assert (tmp_path / "net.onnx").stat().st_size > 10_000
    assert (tmp_path / "activity.png").read_bytes()[:4] == b"\x89PNG"


def test_shipped_files_are_small_and_clean() -> None:
    for path in (ROOT / "examples").glob("*.onnx"):
        content = path.read_bytes()
        assert len(content) < 1_000_000
        assert b"site-packages" not in content and b"stack_trace" not in content
