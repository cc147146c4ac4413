"""The commands as a person types them: exit codes, --json, files, and a quick --help."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from snnkit.cli import main
from tests.models import Builder, cases

HEAVY = ("torch", "numba", "onnx", "onnxruntime", "tonic", "lava", "nir", "h5py", "numpy")


@pytest.fixture
def folder(tmp_path):
    builder = cases()["conv"]
    onnx.save(builder.model(), tmp_path / "model.onnx")
    np.save(tmp_path / "x.npy", builder.samples(20))
    return tmp_path


def convert(folder, *options: str) -> int:
    arguments = ["convert", str(folder / "model.onnx"), "-o", str(folder / "net.onnx")]
    return main([*arguments, "--calibration", str(folder / "x.npy"), *options])


def test_convert_verify_run_info(folder, capsys) -> None:
    assert convert(folder, "--levels", "15") == 0
    text = capsys.readouterr().out
    assert "0 differ" in text and "wrote" in text
    net, x = str(folder / "net.onnx"), str(folder / "x.npy")
    certificate = str(folder / "certificate.json")
    assert main(["verify", net, "--samples", x, "-o", certificate, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["passed"] and printed["neurons_different"] == 0
    assert json.loads(Path(certificate).read_text()) == printed
    y, counts = str(folder / "y.npy"), str(folder / "counts.npz")
    for mode in ("settle", "events", "steps", "fuzz"):
        code = main(
            ["run", net, "--input", x, "-o", y, "--mode", mode, "--record", counts, "--json"]
        )
        assert code == 0 and json.loads(capsys.readouterr().out)["samples"] == 20
        session = ort.InferenceSession(net)
        expected = session.run(None, {"x": np.load(x)})[0]
        assert np.load(y).tobytes() == expected.tobytes()
    assert sum(np.abs(v).sum() for v in np.load(counts).values()) > 0
    for model in (net, str(folder / "model.onnx")):
        assert main(["info", model, "--json"]) == 0
        info = json.loads(capsys.readouterr().out)
        assert info["neurons"] == 140 and info["layers"]
        assert main(["info", model]) == 0
        assert "140 spiking neurons" in capsys.readouterr().out
    assert main(["doctor"]) == 0
    assert "backend numba" in capsys.readouterr().out


def test_the_source_can_be_replaced_by_the_file(folder) -> None:
    """Same names, shapes and types: whoever ran the model can run net.onnx instead."""
    assert convert(folder) == 0
    source = ort.InferenceSession(str(folder / "model.onnx"))
    net = ort.InferenceSession(str(folder / "net.onnx"))
    for a, b in zip(source.get_inputs(), net.get_inputs(), strict=True):
        assert (a.name, a.type, a.shape) == (b.name, b.type, b.shape)
    for a, b in zip(source.get_outputs(), net.get_outputs(), strict=True):
        assert (a.name, a.type, a.shape[1:]) == (b.name, b.type, b.shape[1:])
        assert isinstance(b.shape[0], str)


def test_unsupported_models_exit_with_3_and_name_every_node(folder, capsys) -> None:
    b = Builder((3, 9, 7))
    b.conv(4, 3)
    b.op("Sin")
    b.op("Cos")
    onnx.save(b.model(), folder / "model.onnx")
    assert convert(folder) == 3
    message = capsys.readouterr().err
    assert "sin_1" in message and "cos_2" in message and "Traceback" not in message
    assert not (folder / "net.onnx").exists()
    assert main(["info", str(folder / "model.onnx"), "--json"]) == 3
    assert json.loads(capsys.readouterr().out)["exit_code"] == 3


@pytest.mark.parametrize(("content", "code"), [(b"", 3), (b"not an array", 3), (None, 3)])
def test_bad_data_files(folder, content, code, capsys) -> None:
    path = folder / "x.npy"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    assert convert(folder) == code
    assert "calibration data" in capsys.readouterr().err


def test_usage_errors(folder, capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["convert"])
    assert caught.value.code == 2
    assert convert(folder, "--levels", "999") == 2
    assert convert(folder) == 0
    net, x = str(folder / "net.onnx"), str(folder / "x.npy")
    assert main(["run", net, "--input", x, "--backend", "abacus"]) == 2
    assert main(["run", net, "--input", str(folder / "nothing.npy")]) == 3
    assert "Traceback" not in capsys.readouterr().err


def test_a_failed_write_leaves_the_old_file(folder, capsys) -> None:
    assert convert(folder) == 0
    before = (folder / "net.onnx").read_bytes()
    np.save(folder / "x.npy", np.zeros((4, 2, 2), np.float32))
    assert convert(folder) == 3
    assert (folder / "net.onnx").read_bytes() == before
    assert sorted(p.name for p in folder.iterdir()) == ["model.onnx", "net.onnx", "x.npy"]


def run_python(code: str) -> str:
    """In an interpreter of its own; what it prints."""
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    return done.stdout


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, contextlib, io\n"
        "from snnkit.cli import main\n"
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n"
        "    main(['--help'])\n"
        f"print([m for m in {HEAVY} if m in sys.modules])"
    )
    assert run_python(code).strip() == "[]"
    code = "import sys, snnkit; print([m for m in ('torch','numba','onnx') if m in sys.modules])"
    assert run_python(code).strip() == "[]"


def test_help_is_quick() -> None:
    """Under 0.2 s of CPU beyond the interpreter's own start."""

    def seconds(code: str) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        run_python(code)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    command = (
        "import contextlib\nfrom snnkit.cli import main\n"
        "with contextlib.suppress(SystemExit): main(['--help'])"
    )
    assert min(seconds(command) for _ in range(3)) < 0.2
