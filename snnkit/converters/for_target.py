"""Grids that fit a chip: the conversion is tried with smaller and smaller bounds on charges.

Theta is uniform for neurons with one theta (`bif`); a thermometer takes any ladder. Every charge
stays within a share of what the target holds; the share is halved until thresholds, biases and
potentials fit too. What no share makes fit is refused, with the layer and the number.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from snnkit.converters.network import Policy
from snnkit.errors import Problem, UnsupportedModel, UsageError
from snnkit.fit import Fit, fit
from snnkit.graph import Graph
from snnkit.targets import Target, target

LEVELS = {"bif": 15, "thermometer": 3}
"""Default of `levels` for each expression: a message stays small, copies stay few."""
CONVERT = "convert it"
"""How a remedy begins that is this conversion."""
SHARES = (2, 4, 8, 16, 32)


def chosen(name: str, expression: str | None) -> tuple[Target, str]:
    """The target, and the expression of its neurons. Raises UsageError."""
    chip = target(name)
    expression = expression or chip.expressions[0]
    if expression not in chip.expressions:
        raise UsageError(
            f"expression {expression!r} on {name}; expected one of {', '.join(chip.expressions)}"
        )
    return chip, expression


def fitted(
    build: Callable[[Policy], Graph], policy: Policy, chip: Target, expression: str
) -> Graph:
    """The first graph that fits. Raises UnsupportedModel with what does not, from the best try."""
    bif = expression == "bif"
    limit = chip.value("potential" if bif else "lif_charge")
    if limit is None:
        raise UsageError(f"target {chip.name} holds no neurons of kind {expression}")
    if bif and policy.staircase == "auto":
        policy = replace(policy, staircase="uniform")
    best: Fit | None = None
    for share in SHARES if bif else (1, *SHARES):
        tried = replace(policy, charge=limit // share)
        graph = build(replace(tried, potential=limit) if bif else tried)
        found = fit(graph, chip, expression)
        if found.fits:
            return graph
        if not all(v.remedy.startswith(CONVERT) for v in found.violations):
            raise refusal(found)  # no bound mends what is not a number of the conversion
        if best is None or len(found.violations) < len(best.violations):
            best = found
    assert best is not None
    raise refusal(best)


def refusal(found: Fit) -> UnsupportedModel:
    """Everything that does not fit, as one error."""
    return UnsupportedModel(
        [
            Problem(
                v.layer,
                f"on {found.target.name}",
                f"{v.quantity} {v.found}; expected {v.limit}" if v.limit else v.quantity,
                v.remedy,
            )
            for v in found.violations
        ]
    )


def require(graph: Graph, chip: Target, expression: str) -> Graph:
    """The graph, if it fits as it is: what trained its own integers is not changed."""
    found = fit(graph, chip, expression)
    if not found.fits:
        raise refusal(found)
    return graph
