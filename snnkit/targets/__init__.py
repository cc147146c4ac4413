"""What a chip can hold, as data: one JSON file per target, every number with its source.

A number is *documented* (a limit that its maker, or the code of a public tool, states) or an
*estimate*. What was not found is not there, and nothing is checked against it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from types import MappingProxyType

from snnkit.errors import UsageError

EXPRESSIONS = ("bif", "thermometer")
"""How a spiking node is written: one neuron with its own microcode that keeps potential and
tracer; or one memoryless stock LIF per level (`snnkit.thermometer`)."""


@dataclass(frozen=True)
class Constant:
    """One number: its value and unit, whether it is documented (else an estimate), its source."""

    value: int
    unit: str
    documented: bool
    source: str


@dataclass(frozen=True)
class Target:
    """A chip or a simulator. constants : by name; a name that is absent is not known.

    expressions : which of EXPRESSIONS it can run, the default first. split : how a layer is cut
    into cores: "ceil" (as few equal parts as fit), "halving" (1, 2, 4, ... parts), "none".
    """

    name: str
    title: str
    expressions: tuple[str, ...]
    split: str
    split_source: str
    constants: Mapping[str, Constant]

    def value(self, name: str) -> int | None:
        """A constant's value; None where it is not known."""
        found = self.constants.get(name)
        return None if found is None else found.value


def targets() -> tuple[str, ...]:
    """The names that `target` takes."""
    found = [p.name for p in files("snnkit.targets").iterdir()]
    return tuple(sorted(n.removesuffix(".json") for n in found if n.endswith(".json")))


@cache
def target(name: str) -> Target:
    """The target of that name. Raises UsageError where there is none."""
    if name not in targets():
        raise UsageError(f"target {name!r}; expected one of {', '.join(targets())}")
    data = json.loads(files("snnkit.targets").joinpath(f"{name}.json").read_text("utf-8"))
    constants = {key: Constant(**entry) for key, entry in data.pop("constants").items()}
    expressions = tuple(data.pop("expressions"))
    return Target(name=name, expressions=expressions, constants=MappingProxyType(constants), **data)
