"""Networks of papers, by name: `create("iir-vgg16", num_classes=10)`."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from snnkit.errors import UsageError

FAMILIES = {"iir": "snnkit.models.iir_snn"}
"""First part of a name, and the module whose `NETWORKS` maps names to builders."""


def names() -> list[str]:
    """All names that `create` knows."""
    return sorted(name for home in FAMILIES.values() for name in import_module(home).NETWORKS)


def create(name: str, **options: Any) -> Any:
    """A new torch module by name; `options` are those of its builder. Raises UsageError."""
    home = FAMILIES.get(name.split("-")[0])
    networks: dict[str, Callable[..., Any]] = import_module(home).NETWORKS if home else {}
    if name not in networks:
        raise UsageError(f"model '{name}'; expected one of {', '.join(names())}")
    return networks[name](**options)
