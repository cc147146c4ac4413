"""Networks in the file formats of other programs."""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path

from snnkit.errors import UsageError
from snnkit.graph import Graph

__all__ = ["FORMATS", "export"]

FORMATS = {".net": "to_netx", ".nir": "to_nir"}
"""Suffix of the file -> module here with `write(graph, path)`, which may return lines that say what
the file cannot express."""


def export(graph: Graph, path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Write `graph` in the format that the suffix of `path` names; whole or not at all.

    Returns what whoever reads the file has to know, a line each. Raises UsageError for a suffix
    without a format, BackendMissing where a package is not installed, UnsupportedModel with every
    node that the format has no word for.
    """
    suffix = Path(path).suffix
    if suffix not in FORMATS:
        raise UsageError(f"{path}: no format '{suffix}'; expected one of {', '.join(FORMATS)}")
    return tuple(import_module(f"snnkit.exporters.{FORMATS[suffix]}").write(graph, path) or ())
