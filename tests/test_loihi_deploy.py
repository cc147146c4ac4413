"""A bundle verifies where only Lava is installed, and notices one flipped bit in any file."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import snnkit
from snnkit.backends.loihi import environment as env
from snnkit.backends.loihi.job import PROCESS, WORKER
from snnkit.backends.loihi.selftest import network
from snnkit.cli import main
from snnkit.deploy import deploy, random_samples
from snnkit.errors import BackendMissing, UnsupportedByBackend, UsageError
from tests.lava import clean_environment, environment, needed, nothing_left
from tests.models import Builder
from tests.step_corpus import random_step_graph
from tests.test_loihi import wide


@cache
def step_graph() -> snnkit.Graph:
    """Several sweeps, lengths, recurrence and leaks."""
    for seed in range(100):
        graph = random_step_graph(np.random.default_rng(seed), 5, "both", fixed=False)
        if graph.lengths and len(graph.sweeps) > 1 and graph.of("lif") and graph.of("latch"):
            return graph
    raise AssertionError("none found")


@cache
def fitting() -> snnkit.Graph:
    """Converted for the chip: one theta per channel, 24 bits."""
    b = Builder((2, 6, 5))
    b.conv(4, 2)
    b.op("Relu")
    b.op("Flatten")
    b.linear(3, 4 * 4 * 3)
    return snnkit.convert(b.model(), b.samples(64), target="loihi2")


def python_of_lava(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [environment().executable, *arguments]
    return subprocess.run(
        command, cwd=folder, env=clean_environment(), capture_output=True, text=True
    )


@needed
def test_a_bundle_runs_and_verifies_elsewhere(tmp_path: Path) -> None:
    graph = step_graph()
    deploy(graph, "lava-cpu", tmp_path / "made")
    elsewhere = tmp_path / "empty" / "bundle"
    shutil.copytree(tmp_path / "made", elsewhere)
    shutil.rmtree(tmp_path / "made")
    x = random_samples(graph, seed=5)
    np.savez(tmp_path / "x.npz", **x)
    with nothing_left():
        found = python_of_lava(elsewhere, "verify.py")
        assert found.returncode == 0, found.stderr
        assert "verified" in found.stdout and "integers equal" in found.stdout
        found = python_of_lava(elsewhere, "run.py", "../../x.npz", "-o", "../../y.npz")
    assert found.returncode == 0, found.stderr
    expected = snnkit.compile(graph, "reference").run(x).outputs
    stem = "y.npz" if len(expected) > 1 else "y.npz.npy"
    outputs: Any = np.load(tmp_path / stem, allow_pickle=False)
    for name, value in expected.items():
        y = outputs[name] if len(expected) > 1 else outputs
        assert y.dtype == value.dtype and y.tobytes() == value.tobytes()


@needed
def test_a_wrong_golden_integer_is_found_by_name(tmp_path: Path) -> None:
    """Not the hash but Lava itself disagrees: the bundle is sealed anew after the change."""
    place = tmp_path / "bundle"
    deploy(network(), "lava-cpu", place)
    golden = dict(np.load(place / "golden.npz"))
    golden["value.4"][2, 0, 3] += 1
    np.savez(place / "golden.npz", **golden)
    seal(place)
    found = python_of_lava(place, "verify.py")
    assert found.returncode == 1 and "DIFFERENT: layer 't' at (2, 0, 3)" in found.stderr


def seal(place: Path) -> None:
    import hashlib

    manifest = json.loads((place / "manifest.json").read_text())
    for name in manifest["files"]:
        manifest["files"][name] = hashlib.sha256((place / name).read_bytes()).hexdigest()
    content = json.dumps(manifest).encode()
    (place / "manifest.json").write_bytes(content)
    (place / "manifest.sha256").write_text(hashlib.sha256(content).hexdigest() + "\n")


def verify(place: Path) -> subprocess.CompletedProcess[str]:
    """Its checks of files need no Lava: they come first."""
    return subprocess.run(
        [sys.executable, "verify.py"], cwd=place, env=clean_environment(), capture_output=True,
        text=True,
    )  # fmt: skip


def test_one_flipped_bit_in_any_file_is_refused(tmp_path: Path) -> None:
    place = tmp_path / "bundle"
    deploy(fitting(), "loihi2", place)
    files = sorted(p for p in place.rglob("*") if p.is_file())
    assert len(files) > 14
    rng = random.Random(1)
    for path in files:
        content = path.read_bytes()
        at, bit = rng.randrange(len(content)), rng.randrange(8)
        damaged = bytearray(content)
        damaged[at] ^= 1 << bit
        path.write_bytes(damaged)
        found = verify(place)
        assert found.returncode != 0, (path, at, bit)
        path.write_bytes(content)
    (place / "process" / "another.py").write_text("")
    found = verify(place)
    assert found.returncode == 1 and "another.py: not part of the bundle" in found.stderr
    (place / "process" / "another.py").unlink()
    (place / "golden.npz").unlink()
    found = verify(place)
    assert found.returncode == 1 and "golden.npz: missing" in found.stderr


def test_code_of_the_bundle_is_the_code_of_the_backend(tmp_path: Path) -> None:
    deploy(fitting(), "loihi2", tmp_path / "bundle")
    for source, folder in ((WORKER, "worker"), (PROCESS, "process")):
        for path in source.glob("*.py"):
            assert (tmp_path / "bundle" / folder / path.name).read_bytes() == path.read_bytes()
    assert [p.name for p in (tmp_path / "bundle" / "process").iterdir()] == ["bif_process.py"]
    deploy(fitting(), "loihi2", tmp_path / "again")
    for path in (tmp_path / "bundle").rglob("*"):
        if path.is_file() and path.name not in ("README.md", "manifest.json", "manifest.sha256"):
            again = tmp_path / "again" / path.relative_to(tmp_path / "bundle")
            assert again.read_bytes() == path.read_bytes()


def test_what_cannot_be_deployed_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    place = tmp_path / "bundle"
    with pytest.raises(UnsupportedByBackend, match=r"node 'w'.*8420100") as caught:
        deploy(wide(127, 260), "loihi2", place)
    assert str(caught.value).count(" 's'") == 1  # each once, by whoever sees it first
    with pytest.raises(UnsupportedByBackend, match=r"layer 't': a ladder of 3 thresholds"):
        deploy(network(), "loihi2", place)
    with pytest.raises(UsageError, match=r"target 'loihi9'; expected one of lava-cpu, loihi2"):
        deploy(network(), "loihi9", place)
    place.mkdir()
    (place / "mine.txt").write_text("precious")
    with pytest.raises(UsageError, match=r"is no bundle"):
        deploy(fitting(), "loihi2", place)
    assert [p.name for p in tmp_path.rglob("*")] == ["bundle", "mine.txt"]


def test_an_earlier_bundle_is_replaced_as_a_whole(tmp_path: Path) -> None:
    net = tmp_path / "net.onnx"
    snnkit.save(fitting(), net)
    place = tmp_path / "bundle"
    assert main(["deploy", str(net), "--target", "lava-cpu", "-o", str(place)]) == 0
    (place / "stray.txt").write_text("")
    assert main(["deploy", str(net), "--target", "loihi2", "-o", str(place), "--json"]) == 0
    assert json.loads((place / "manifest.json").read_text())["target"] == "loihi2"
    report = json.loads((place / "fit.json").read_text())
    assert report["fits"] and "fits loihi2" in (place / "fit.txt").read_text()
    assert not (place / "stray.txt").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bundle", "net.onnx"]


# --- environments -------------------------------------------------------------------------------


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A user without any Lava."""
    monkeypatch.delenv(env.VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(env, "here", lambda: False)
    return tmp_path


def test_without_lava_the_command_that_makes_it_is_named(
    nowhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(BackendMissing, match=r"SNNKIT_LAVA_PYTHON is not set") as raised:
        snnkit.compile(network(), "loihi")
    assert "run: snnkit lava-env create" in str(raised.value) and raised.value.exit_code == 5
    assert main(["lava-env", "status"]) == 5
    assert "snnkit lava-env create" in capsys.readouterr().out
    assert main(["doctor"]) == 0
    assert "snnkit lava-env create" in capsys.readouterr().out


def test_what_is_named_but_does_not_work_is_an_error(
    nowhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (nowhere / "config" / "snnkit").mkdir(parents=True)
    file = nowhere / "config" / "snnkit" / "config.json"
    file.write_text('{"lava_python": "/nowhere/python"}')
    with pytest.raises(BackendMissing, match=r"config.json: '/nowhere/python' does not run"):
        env.find()
    file.write_text("{")
    with pytest.raises(BackendMissing, match=r"cannot be read as JSON"):
        env.find()
    monkeypatch.setenv(env.VARIABLE, sys.executable)
    with pytest.raises(BackendMissing, match=r"SNNKIT_LAVA_PYTHON.*has no Lava"):
        env.find()
    with pytest.raises(BackendMissing, match=r"expected 3\.10"):
        env.find_python310("/bin/sh")
    with pytest.raises(snnkit.SnnkitError, match=r"no virtual environment"):
        monkeypatch.setattr(env, "find_python310", lambda wanted: sys.executable)
        env.create(folder=nowhere)


@needed
def test_order_of_places(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lava = environment().executable
    (nowhere / "cache" / "snnkit").mkdir(parents=True)
    folder = nowhere / "cache" / "snnkit" / "lava-env" / "bin"
    folder.mkdir(parents=True)
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nexec {lava} "$@"\n')
    python.chmod(0o755)
    found = env.find()
    assert found.origin == "managed environment" and found.lava == "0.10.0"
    (nowhere / "config" / "snnkit").mkdir(parents=True)
    (nowhere / "config" / "snnkit" / "config.json").write_text(json.dumps({"lava_python": lava}))
    assert "config.json" in env.find().origin
    monkeypatch.setenv(env.VARIABLE, lava)
    assert env.VARIABLE in env.find().origin
    assert env.status()["found"]
