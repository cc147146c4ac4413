"""What run.py and verify.py of a bundle share: its files, floats and integers, a run on Lava.

Python 3.10; the standard library and numpy only. Lava runs in a process of its own (supervise.py).
"""

import hashlib
import json
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
from supervise import WorkerFailed, read_results, run_job

HERE = Path(__file__).resolve().parent
UNLISTED = {"manifest.json", "manifest.sha256"}


class Damaged(Exception):
    """A bundle that is not as it was made."""


def check_files():
    """Every file of the bundle is as it was made, and there is no other. Returns the manifest."""
    content = (HERE / "manifest.json").read_bytes()
    noted = (HERE / "manifest.sha256").read_bytes()
    if hashlib.sha256(content).hexdigest().encode() + b"\n" != noted:
        raise Damaged("manifest.json is not what manifest.sha256 says")
    manifest = json.loads(content)
    found = {p.relative_to(HERE).as_posix() for p in HERE.rglob("*") if not p.is_dir()}
    for name in sorted(set(manifest["files"]) | found - UNLISTED):
        if name not in manifest["files"]:
            raise Damaged(f"{name}: not part of the bundle; move it away (Lava runs what it finds)")
        if name not in found:
            raise Damaged(f"{name}: missing")
        if hashlib.sha256((HERE / name).read_bytes()).hexdigest() != manifest["files"][name]:
            raise Damaged(f"{name}: not as it was made")
    return manifest


def arrays(name):
    with np.load(HERE / name, allow_pickle=False) as found:
        return {key: found[key] for key in found.files}


def network():
    return json.loads((HERE / "network.json").read_text())


def quantise(x):
    """Integers [N, T or 1, units] by node, and lengths or None, for float inputs by name."""
    description, scales = network(), arrays("boundary.npz")
    found = {}
    for b in description["inputs"]:
        value = np.asarray(x[b["name"]])
        wanted = [d if isinstance(d, int) else "N" for d in b["dims"]]
        wanted[b["batch"]] = "N"
        if value.ndim != len(wanted) or any(
            isinstance(w, int) and w != n for w, n in zip(wanted, value.shape, strict=True)
        ):
            raise ValueError(f"input '{b['name']}': shape {value.shape}; expected {tuple(wanted)}")
        value = value.astype(b["dtype"]).transpose(b["axes"]).astype(np.float32)
        if not np.isfinite(value).all():
            raise ValueError(f"input '{b['name']}': NaN or infinite values")
        shifted = value - scales[f"{b['name']}.offset"]
        q = np.rint(shifted / scales[f"{b['name']}.scale"]).clip(b["lo"], b["hi"])
        steps = q.shape[1] if b["timed"] else 1
        found[b["id"]] = q.astype(np.int16).reshape(len(q), steps, -1)
    lengths = x[description["lengths"]] if description["lengths"] else None
    return found, None if lengths is None else np.asarray(lengths, np.int64)


def run(counts, lengths=None, how="fused", record=(), **limits):
    """Run integer inputs on Lava; values by node number, [N, T or 1, units] int32, and seconds."""
    description = network()
    samples = len(next(iter(counts.values())))
    steps = max(v.shape[1] for v in counts.values())
    task = {
        "name": "0",
        "network": 0,
        "samples": samples,
        "steps": description["steps"] or steps,
        "how": how,
        "delay": 1,
        "phase": 0,
        "carry": False,
        "raster": False,
        "bits": 24,
        "period": description["period"] if how == "unit" else 0,
        "batch": description["batch"],
        "keep": sorted({*record, *description["kept"]}),
    }
    folder = Path(tempfile.mkdtemp(prefix="snnkit-lava-"))
    try:
        shutil.copy(HERE / "net.npz", folder / "net.npz")
        given = {f"0.{key}": value for key, value in counts.items()}
        if lengths is not None:
            given["0.lengths"] = lengths
        np.savez(folder / "in.npz", **given)
        job = {"format": 1, "networks": [description["sweeps"]], "tasks": [task]}
        (folder / "job.json").write_text(json.dumps(job))
        seconds = run_job(sys.executable, folder, HERE / "worker", HERE / "process", **limits)
        found = read_results(folder)
        values = {i: found[f"0.value.{i}"] for i in task["keep"]}
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return values, seconds


def read_out(values, lengths=None):
    """Float outputs by name, from the values of `run`."""
    scales, found = arrays("boundary.npz"), {}
    for b in network()["outputs"]:
        q = values[b["id"]]
        if not b["timed"]:
            # a sweep without an output per step gives the value of the last step that it took
            if b["direction"] < 0 or not b["direction"]:
                q = q[:, 0]
            elif lengths is None:
                q = q[:, -1]
            else:
                q = q[np.arange(len(q)), lengths - 1]
        q = q.reshape(*q.shape[: 1 + b["timed"]], *b["shape"])
        y = (q.astype(np.float32) * scales[f"{b['name']}.scale"]).transpose(b["axes"])
        for step in b["post"]:
            y = after(step, y)
        found[b["name"]] = np.asarray(y, b["dtype"])
    return found


def after(step, y):
    axis = step["axis"]
    if step["op"] == "ArgMax":
        return np.asarray(np.argmax(y, axis=axis, keepdims=bool(step.get("keepdims", False))))
    shifted = y - y.max(axis=axis, keepdims=True)
    total = np.exp(shifted).sum(axis=axis, keepdims=True)
    return np.exp(shifted) / total if step["op"] == "Softmax" else shifted - np.log(total)


__all__ = [
    "Damaged",
    "WorkerFailed",
    "arrays",
    "check_files",
    "network",
    "quantise",
    "read_out",
    "run",
]
