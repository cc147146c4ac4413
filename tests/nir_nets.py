"""Random NIR graphs whose numbers are dyadic, so that nothing is rounded on either side."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.nir_oracle import simulate

nir = pytest.importorskip("nir", reason="nir is not installed; pip install 'nir>=1.0.6'")
DT = 2.0**-13
"""About 1e-4 s, and dyadic."""


class NirBuilder:
    """A chain of layers with a branch; example values are carried along to place thresholds."""

    def __init__(self, rng: np.random.Generator, shape: tuple[int, ...], steps: int):
        self.rng, self.steps = rng, steps
        self.nodes: dict[str, Any] = {"input": nir.Input(np.array(shape))}
        self.edges: list[tuple[str, str]] = []
        self.last, self.other, self.shape = "input", "", shape
        x = rng.integers(0, 4, (4, steps, *shape)) * (rng.random((4, steps, *shape)) < 0.6)
        self.x = x.astype(np.float32)

    def put(self, node: Any, source: str = "") -> str:
        name = f"{len(self.nodes)}"
        self.nodes[name] = node
        self.edges += [(s, name) for s in (source or self.last, self.other) if s]
        self.other = ""
        self.last = name
        return name

    def weights(self, *shape: int) -> np.ndarray:
        """On the grid of 1/64, with a smallest step in every row."""
        w = self.rng.integers(-40, 90, (shape[0], int(np.prod(shape[1:]))))
        w[np.arange(len(w)), self.rng.integers(0, w.shape[1], len(w))] = 1
        return (w.reshape(shape) / 64).astype(np.float32)

    def biases(self, n: int, parts: int = 256) -> np.ndarray:
        return (self.rng.integers(-64, 65, n) / parts).astype(np.float32)

    def conv(self, out: int, groups: int = 1) -> None:
        rng, d = self.rng, len(self.shape) - 1
        kernel = tuple(int(min(k, n)) for k, n in zip(rng.integers(1, 4, d), self.shape[1:]))
        stride = rng.integers(1, 3, d)
        room = np.minimum(2, (np.array(self.shape[1:]) - 1) // np.maximum(np.array(kernel) - 1, 1))
        dilation = rng.integers(1, np.maximum(room, 1) + 1)
        padding: Any = rng.integers(0, 2, d)
        if rng.random() < 0.3:
            padding, stride = ("same", np.ones(d, int)) if rng.random() < 0.5 else ("valid", stride)
        scalar = d == 1
        size = lambda v: int(v[0]) if scalar and not isinstance(v, str) else v  # noqa: E731
        made = (nir.Conv1d if scalar else nir.Conv2d)(
            int(self.shape[1]) if scalar else np.array(self.shape[1:]),
            self.weights(out, self.shape[0] // groups, *kernel),
            size(stride),
            size(padding),
            size(dilation),
            groups,
            self.biases(out) if rng.random() < 0.6 else np.zeros(out, np.float32),
        )
        self.put(made)

    def linear(self, out: int, parts: int = 256) -> None:
        weight = self.weights(out, self.shape[0])
        affine = self.rng.random() < 0.6
        self.put(nir.Affine(weight, self.biases(out, parts)) if affine else nir.Linear(weight))

    def full(self, value: Any) -> np.ndarray:
        return np.array(np.broadcast_to(np.asarray(value, np.float32), self.shape))

    def charge(self) -> np.ndarray:
        """What the last node gives for the examples; it sets the shape."""
        values, _ = simulate(self.graph(), self.x, DT)
        self.shape = values["output"].shape[2:]
        return values["output"]

    def branch(self) -> None:
        """Two layers that read the same, summed by the edges of the next; one of them scaled."""
        source = self.last
        self.conv(4)
        first = self.last
        self.charge()
        again = self.nodes[first]
        weight = self.weights(*again.weight.shape)
        arguments = (again.stride, again.padding, again.dilation, 1, 0 * again.bias)
        self.put(type(again)(again.input_shape, weight, *arguments), source)
        self.put(nir.Scale(self.full(0.5)))
        self.other = first

    def neuron(self, kinds: tuple[str, ...]) -> None:
        """Neurons with thresholds on potentials that occur at the first step: ties."""
        rng, charge = self.rng, self.charge()
        kind = kinds[rng.integers(0, len(kinds))]
        share = 2.0 ** -rng.integers(0, 4, self.shape)
        r = 2.0 ** rng.integers(-1, 2, self.shape) * rng.choice([1, 1, -1], self.shape)
        # a negative resistance for charges below zero, so that most can fire
        r = np.abs(r) * np.where((charge > 0).mean((0, 1)) < 0.2, -1, np.sign(r))
        rest = rng.integers(-8, 9, self.shape) / 16
        if kind == "Threshold":
            self.put(nir.Threshold(self.full(self.level(charge))))
            return
        first = charge * (share * r if kind != "IF" else r)
        low = self.full(rng.integers(-8, 1, self.shape) / 32)
        potential = self.level(first) + (low if kind == "IF" else rest)
        if kind == "IF":
            self.put(nir.IF(self.full(r / DT), self.full(potential), low))
            return
        below = np.minimum(low, rest - np.abs(low))
        common = {
            "r": self.full(r),
            "v_leak": self.full(rest),
            "v_threshold": self.full(potential),
            "v_reset": self.full(below),
        }
        if kind == "LIF":
            self.put(nir.LIF(tau=self.full(DT / share), **common))
            return
        common["r"] = self.full(r / 2)
        taus = {"tau_mem": self.full(DT / share), "tau_syn": self.full(DT)}
        self.put(nir.CubaLIF(**taus, **common, w_in=self.full(2.0)))

    def level(self, charge: np.ndarray) -> np.ndarray:
        """Per unit a charge that occurs, about the middle of those above zero, else near zero."""
        flat = charge.reshape(-1, *charge.shape[2:])
        ordered = np.sort(np.where(flat > 0, flat, np.inf), axis=0)
        count = np.isfinite(ordered).sum(0)
        at = np.take_along_axis(ordered, np.maximum(count // 2 - 1, 0)[None], 0)[0]
        return np.where(count > 0, at, 1 / 64)

    def graph(self, **metadata: Any) -> Any:
        nodes = {**self.nodes, "output": nir.Output(np.array(self.shape))}
        edges = [*self.edges, *((s, "output") for s in (self.last, self.other) if s)]
        return nir.NIRGraph(nodes, edges, metadata, type_check=False)


def random_graph(
    rng: np.random.Generator, kinds: tuple[str, ...] = ("IF", "LIF", "CubaLIF", "Threshold")
) -> tuple[Any, np.ndarray]:
    """(graph, inputs [4, T, *shape]); its neurons fire."""
    steps = int(rng.integers(2, 7))
    flat = rng.random() < 0.4
    b = NirBuilder(rng, (2, 12) if flat else (2, 11, 10), steps)
    b.conv(4, int(rng.choice([1, 2])))
    b.neuron(kinds)
    if not flat:
        pool = (nir.SumPool2d, nir.AvgPool2d)[rng.integers(0, 2)]
        sizes = (np.array([2, 2]), np.array([1, 2]), rng.integers(0, 2, 2))
        b.put(pool(*sizes))
        b.charge()
    b.branch()
    b.neuron(kinds)
    b.put(nir.Flatten({"input": np.array(b.shape)}, 0, -1))
    b.charge()
    b.linear(7)
    b.neuron(kinds)
    if rng.random() < 0.5:
        b.linear(3, 64)  # a readout's biases are whole steps of its weights
    if rng.random() < 0.3 and isinstance(b.nodes[b.last], nir.Linear):
        b.put(nir.I(np.full(b.charge().shape[2:], 1 / DT)))
    b.charge()
    return b.graph(), b.x
