"""Rules about the source itself."""

from __future__ import annotations

import ast
from pathlib import Path

import snnkit
from snnkit.ops import TABLE

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "snnkit").rglob("*.py"))
LONG = {"kernels.py": 685}
"""Numba's disk cache looks at the date of the entry function's own file only: what it calls has
to lie in that file, or an edit would run stale code."""
FORBIDDEN = {"utils", "helpers", "common", "base", "manager", "io", "types", "numba", "onnx"}


def test_files_and_functions_stay_small() -> None:
    assert len(SOURCES) > 20
    for path in SOURCES:
        text = path.read_text()
        assert text.count("\n") <= LONG.get(path.name, 400), path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert (node.end_lineno or 0) - node.lineno <= 60, (path, node.name)


def test_names_of_modules() -> None:
    assert not FORBIDDEN.intersection(p.stem for p in SOURCES)


def test_public_names_exist() -> None:
    for name in snnkit.__all__:
        assert getattr(snnkit, name) is not None


def test_every_op_says_what_it_obeys() -> None:
    assert len(TABLE) >= 9
    for op in TABLE.values():
        assert op.__doc__ and len(op.__doc__) > 60


def test_ops_never_import_onnx_or_backends() -> None:
    """The vocabulary and the definition depend on numpy only."""
    for path in [*(ROOT / "snnkit/ops").glob("*.py"), ROOT / "snnkit/graph.py"]:
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [a.name for a in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            for name in names:
                assert not name.startswith(("onnx", "numba", "torch", "snnkit.backends")), path
