"""Time from the start of a process to the first output, with an empty cache and with a full one."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx

import snnkit
from benchmarks import prepared
from benchmarks.tables import Scope, Table

ROOT = Path(__file__).parents[1]
OURS = """
import json, sys, time
start = time.perf_counter()
import numpy, snnkit
from snnkit.backends import compile
from snnkit.files import load
imported = time.perf_counter()
program = compile(load(sys.argv[1]))
made = time.perf_counter()
program.infer(numpy.load(sys.argv[2]))
done = time.perf_counter()
print(json.dumps([imported - start, made - imported, done - made]))
"""
RIVAL = """
import json, sys, time
start = time.perf_counter()
import numpy, onnxruntime
imported = time.perf_counter()
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
made = time.perf_counter()
session.run(None, {session.get_inputs()[0].name: numpy.load(sys.argv[2])})
done = time.perf_counter()
print(json.dumps([imported - start, made - imported, done - made]))
"""
RUNS = 5


def _run(code: str, model: Path, x: Path, cache: Path) -> list[float]:
    """[whole process, import, load and compile, first sample] in seconds."""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(cache), "PYTHONPATH": str(ROOT)}
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code, str(model), str(x)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return [time.perf_counter() - start, *json.loads(done.stdout.splitlines()[-1])]


def startup(scope: Scope, say: Callable[[str], None]) -> list[Table]:
    name = "mnist"
    runs: dict[str, list[list[float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        net, source, x = home / "net.onnx", home / "source.onnx", home / "x.npy"
        snnkit.save(prepared.graph(name), net)
        onnx.save(prepared.source(name), source)
        np.save(x, prepared.test(name).x[:1])
        for i in range(min(RUNS, scope.rounds)):
            say(f"start-up, run {i + 1}")
            cache = home / f"cache{i}"
            todo: list[tuple[str, str, Any]] = [
                ("snnkit, empty cache", OURS, net),
                ("snnkit, full cache", OURS, net),
                ("onnxruntime fp32", RIVAL, source),
            ]
            for title, code, file in todo:
                runs.setdefault(title, []).append(_run(code, file, x, cache))
    header = ["start", "process", "of it: import", "load and compile", "first sample"]
    lines = [
        [title, *(f"{statistics.median(column):.4f}" for column in zip(*some, strict=True))]
        for title, some in runs.items()
    ]
    notes = [f"Seconds (wall), median of {min(RUNS, scope.rounds)} processes, network {name}."]
    return [Table("Start-up", notes, header, lines, runs)]
