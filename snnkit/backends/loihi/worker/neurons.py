"""The arithmetic of the spiking network, in plain numpy: what the Lava processes compute with.

A *node* is a dict: `at` (its number in the window), `name`, `kind`, `inputs` (numbers), and its
arrays. Values are columns [units, samples] of int64.

Python 3.10; the standard library and numpy only.
"""

import json
import os
import traceback

import numpy as np

ROW = 1 << 34
"""Between the thresholds of two rows of a ladder; charges have at most 32 bits."""
MOST_TEXT = 1500
"""Characters of a report: with its traceback it has to fit one atomic write to a pipe."""


class Overflow(Exception):
    """A membrane potential left its width."""


def report(kind, error):
    """Tell the watchdog what went wrong; Lava itself never would."""
    text = traceback.format_exc()[-MOST_TEXT:]
    message = f"{type(error).__name__}: {error}"[:MOST_TEXT]
    found = {"error": {"kind": kind, "message": message, "traceback": text}}
    os.write(int(os.environ["SNNKIT_REPORT"]), json.dumps(found).encode() + b"\n")


def check_membrane(name, v, bits):
    """A membrane potential has so many bits with its sign."""
    most = 1 << (bits - 1)
    if v.size and (int(v.max()) >= most or int(v.min()) < -most):
        worst = max(int(v.max()), -int(v.min()))
        raise Overflow(f"layer '{name}': a membrane potential of {worst} left {bits} bits")


class Staircase:
    """A charge's spike count, and the way there by unit spikes."""

    def __init__(self, node):
        self.name, self.lo, self.hi, self.bits = (node[k] for k in ("name", "lo", "hi", "bits"))
        self.init = node["init"][:, None].astype(np.int64)
        self.uniform = "theta" in node
        if self.uniform:
            self.theta = node["theta"][:, None].astype(np.int64)
            return
        self.row, self.values = node["row"][:, None], node["values"].astype(np.int64)
        self.thresholds = node["thresholds"].astype(np.int64)
        self.flat = (self.thresholds + np.arange(len(self.thresholds))[:, None] * ROW).ravel()

    def rest(self):
        """Cells in which the tracer is zero."""
        if self.uniform:
            return np.zeros(self.init.shape, np.int64)
        return (self.values == 0).argmax(axis=1)[self.row]

    def value(self, cell):
        return cell if self.uniform else self.values[self.row, cell]

    def settled(self, charge):
        """The one cell that is able to rest at this charge."""
        total = charge + self.init
        check_membrane(self.name, total, self.bits)
        if self.uniform:
            return np.clip(total // self.theta, self.lo, self.hi)
        passed = np.searchsorted(self.flat, total + self.row * ROW, side="right")
        return passed - self.row * self.thresholds.shape[1]

    def direction(self, charge, cell):
        """+1 where a neuron is able to move up, -1 where down, else 0."""
        total = charge + self.init
        if self.uniform:
            v = total - self.theta * cell
            check_membrane(self.name, v, self.bits)
            up, down = (v >= self.theta) & (cell < self.hi), (v < 0) & (cell > self.lo)
        else:
            check_membrane(self.name, total, self.bits)
            steps = self.thresholds.shape[1]
            above = self.thresholds[self.row, np.minimum(cell, steps - 1)]
            below = self.thresholds[self.row, np.maximum(cell - 1, 0)]
            up, down = (cell < steps) & (total >= above), (cell > 0) & (total < below)
        return up.astype(np.int64) - down


class Leak:
    """u = floor(v * leak / 2^shift) + gain * A + bias, S = [u >= theta], then the reset."""

    def __init__(self, node):
        keys = ("leak", "gain", "bias", "theta", "reset", "initial")
        self.p = {k: node[k][:, None].astype(np.int64) for k in keys}
        self.name, self.bits = node["name"], node["bits"]
        self.shift, self.hard = node["shift"], node["hard"]

    def integrated(self, v, charge):
        p = self.p
        u = (v * p["leak"] >> self.shift) + p["gain"] * charge + p["bias"]
        check_membrane(self.name, u, self.bits)
        return u

    def spike(self, v, charge):
        return (self.integrated(v, charge) >= self.p["theta"]).astype(np.int64)

    def barrier(self, v, charge, spike):
        """The membrane potential after the step."""
        u = self.integrated(v, charge)
        if self.hard:
            return np.where(spike == 1, self.p["reset"], u)
        return u - self.p["reset"] * spike


def recomputed(node, sources):
    """A maximum over the units in `reads` (-1: none), or the product of two units."""
    reads = node["reads"]
    if node["kind"] == "product":
        return sources[0][reads[:, 0]] * sources[1][reads[:, 1]]
    lowest = np.full((1, sources[0].shape[1]), np.iinfo(np.int64).min)
    padded = np.concatenate([sources[0], lowest])
    found = padded[reads[:, 0]]
    for k in range(1, reads.shape[1]):
        np.maximum(found, padded[reads[:, k]], out=found)
    return found


def given(node, samples, t):
    """Values of an input node at steps t, [samples, units]: of the same step, of the last one of an
    earlier sweep, or the same at every step."""
    if node["last"] is not None:
        t = node["last"][samples]
    return node["given"][samples, t if node["given"].shape[1] > 1 else 0]


def tally(node, samples, delta):
    """Count the unit spikes in `delta` [units, samples]: a graded spike of size k is k of them."""
    if node["tally"] is not None:
        node["tally"][samples, 0] += np.maximum(delta, 0).sum(axis=0)
        node["tally"][samples, 1] += np.maximum(-delta, 0).sum(axis=0)
    for fan_out, target in node["crossings"]:
        # one message crosses the synapses of its neuron, however large it is
        target[samples, 2] += fan_out @ (delta != 0)


class Windows:
    """All nodes of a window, for a batch of samples: topological order, graded spikes, one message
    per neuron. Between two windows membrane potentials move and latches take up their sources."""

    def __init__(self, spec):
        self.spec, self.nodes = spec, spec["nodes"]
        self.stairs = {n["at"]: Staircase(n) for n in self.nodes if n["kind"] == "spike"}
        self.leaks = {n["at"]: (Leak(n), n["inputs"][0]) for n in self.nodes if n["kind"] == "lif"}

    def run(self, window):
        """Window `window` of all: part of the samples, step i of their sweep."""
        spec = self.spec
        part, i = divmod(window, spec["steps"])
        first = part * spec["batch"]
        clock = spec["clock"][first : first + spec["batch"]]
        self.columns = np.arange(first, first + len(clock))
        self.t = np.full(len(clock), i) if spec["direction"] >= 0 else np.maximum(clock - 1 - i, 0)
        # later steps of shorter samples do not exist
        self.active = np.flatnonzero(i < clock)
        if i == 0:
            self.v = {at: self.spread(leak.p["initial"]) for at, (leak, _) in self.leaks.items()}
            self.held = {n["at"]: n["first"][self.columns].T for n in self.nodes if "first" in n}
        if i == 0 or not spec["carry"]:
            self.values = {n["at"]: self.spread(n["rest"][:, None]) for n in self.nodes}
        self.deltas = {}
        for n in self.nodes:
            self.update(n)
        for at, (leak, source) in self.leaks.items():
            self.v[at] = leak.barrier(self.v[at], self.values[source], self.values[at])
        self.held = {n["at"]: self.values[n["source"]] for n in self.nodes if "source" in n}

    def spread(self, column):
        return np.broadcast_to(column, (len(column), len(self.columns))).astype(np.int64)

    def update(self, n):
        at = n["at"]
        new = self.evaluate(n)
        delta = self.deltas[at] = new - self.values[at]
        self.values[at] = new
        samples = self.columns[self.active]
        tally(n, samples, delta[:, self.active])
        if n["record"] is not None:
            t = self.t[self.active] if self.spec["direction"] else 0
            n["record"][samples, t] = new[:, self.active].T

    def evaluate(self, n):
        kind, at = n["kind"], n["at"]
        if kind == "input":
            return given(n, self.columns, self.t).T.astype(np.int64)
        if kind == "latch":
            return self.held[at].astype(np.int64)
        sources = [self.values[s] for s in n["inputs"]]
        if kind == "spike":
            stairs = self.stairs[at]
            return stairs.value(stairs.settled(sources[0]))
        if kind == "lif":
            return self.leaks[at][0].spike(self.v[at], sources[0])
        if kind != "linear":
            return recomputed(n, sources)
        new = self.values[at]
        for s, matrix in zip(n["inputs"], n["matrices"], strict=True):
            if self.deltas[s].any():
                new = new + matrix @ self.deltas[s]
        return new
