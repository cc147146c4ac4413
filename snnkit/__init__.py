"""snnkit: any trained network as a spiking network that computes exactly the same thing.

Heavy dependencies are imported by the function that needs them, never here.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from snnkit.backends import Result, compile
    from snnkit.certificate import verify
    from snnkit.converters import convert
    from snnkit.errors import SnnkitError
    from snnkit.files import load, save
    from snnkit.graph import Boundary, Graph, Node, make_node

_HOME = {
    "convert": "snnkit.converters",
    "load": "snnkit.files",
    "save": "snnkit.files",
    "compile": "snnkit.backends",
    "Result": "snnkit.backends",
    "verify": "snnkit.certificate",
    "Graph": "snnkit.graph",
    "Node": "snnkit.graph",
    "Boundary": "snnkit.graph",
    "make_node": "snnkit.graph",
    "SnnkitError": "snnkit.errors",
}

__all__ = [
    "Boundary",
    "Graph",
    "Node",
    "Result",
    "SnnkitError",
    "__version__",
    "compile",
    "convert",
    "load",
    "make_node",
    "save",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name == "nn":  # torch is imported by whoever asks for it
        return import_module("snnkit.nn")
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'snnkit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
