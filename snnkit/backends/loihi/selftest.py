"""A network that runs on a new Lava environment before it is called good."""

from __future__ import annotations

from typing import Any

import numpy as np

from snnkit.backends.loihi.environment import Environment
from snnkit.backends.loihi.program import LoihiBackend
from snnkit.errors import VerificationFailed
from snnkit.graph import Boundary, Graph, make_node
from snnkit.reference import ReferenceBackend


def network() -> Graph:
    """A convolution, a maximum and a ladder, with odd and with negative weights."""
    x = make_node("x", "input", attrs={"shape": (1, 4, 3), "lo": 0, "hi": 255})
    weight = np.array([[[[3, -5], [7, 1]]], [[[-4, -6], [-127, 9]]]])
    window = {"strides": (1, 1), "pads": (0, 0, 0, 0), "dilations": (1, 1)}
    a = make_node("a", "conv", [x], {"weight": weight}, {**window, "group": 1})
    params: dict[str, Any] = {"init": np.int32(10), "theta": np.array([[[40]], [[300]]])}
    s = make_node("s", "spike", [a], params, {"kind": "uniform", "lo": -7, "hi": 7})
    m = make_node("m", "max_pool", [s], attrs={**window, "kernel": (2, 1)})
    ladder: dict[str, Any] = {"init": np.int32(0), "thresholds": np.array([-2, 1, 4])}
    t = make_node("t", "spike", [m], ladder, {"kind": "ladder", "lo": -1, "hi": 2})
    y = make_node("y", "readout", [t], {"bias": np.int32(5)})
    one, zero = np.ones((), np.float32), np.zeros((), np.float32)
    ends = [
        Boundary(n.name.upper(), n.name, "float32", ("batch", *n.shape), one, zero) for n in (x, y)
    ]
    return Graph((x, a, s, m, t, y), (ends[0],), (ends[1],))


def selftest(environment: Environment) -> float:
    """Run a network in both ways on Lava and compare every neuron with the reference; seconds of
    the worker. Raises VerificationFailed, LavaFailed."""
    graph = network()
    x = np.arange(48, dtype=np.float32).reshape(4, 1, 4, 3) * 5 % 97
    program = LoihiBackend(environment).compile(graph)
    tasks = [
        program.task(x, mode=mode, record=("spike",), network=network)
        for mode, network in (("settle", "fused"), ("settle", "layers"), ("steps", "layers"))
    ]
    expected = ReferenceBackend().compile(graph).run(x, record=("spike",)).counts
    for result in program.run_many(tasks):
        for name, count in result.counts.items():
            if not count.any() or not np.array_equal(count, expected[name]):
                raise VerificationFailed(
                    f"Lava at {environment.executable} ran layer '{name}' of the self-test wrong"
                )
    return float(program.seconds["total"])
