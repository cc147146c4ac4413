"""A graph under construction. Float tensors are affine readings of integer nodes.

Every float tensor of the source is held as value = scale * node + offset with float64 arrays that
broadcast over the node's shape. Constants, BatchNorm before or after a layer, mean and std
preludes only change scale and offset; they vanish into the next weights or thresholds, and
nothing is rounded until an integer weight or threshold has to be written down.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from snnkit.converters.activations import IDENTITY, Activation, Floats
from snnkit.converters.calibration import Staircase, Statistics
from snnkit.converters.frames import Refusal
from snnkit.converters.plan import Plan, When
from snnkit.converters.staircases import build
from snnkit.graph import INT32_BOUND, Node, make_node
from snnkit.ops.op import Ints
from snnkit.ops.synapses import correlate

WIDE = 255
"""Levels of the staircases that only carry a value on (pooled sums, charges without an activation,
outputs): the user's `levels` speak of activations."""
GRID_ERROR = 2.0**-11
"""Relative error tolerated in the multipliers of a common grid."""
GRID_BOUND = 2**29
GRID_NOISE = 1e-4
"""Part of a step by which float32 noise may move weights that lie on a grid."""


@dataclass(frozen=True)
class Policy:
    """How floats become integers. See `snnkit.converters.convert`.

    charge, potential : no |charge| of synapses and sums, no |membrane potential| beyond it.
    """

    levels: int = 255
    weight_bits: int = 8
    calibrator: str = "mse"
    staircase: str = "auto"
    bias_correction: bool = True
    pack: bool = True
    charge: int = INT32_BOUND
    potential: int = INT32_BOUND

    @property
    def grid(self) -> int:
        """Largest charge of a common grid: room for what is added to it is left."""
        return min(GRID_BOUND, self.charge, self.potential // 4)


@dataclass(frozen=True, eq=False)
class Affine:
    """A float tensor as value = scale * node + offset; arrays broadcast over node.shape."""

    node: Node
    scale: Floats
    offset: Floats

    @property
    def shape(self) -> tuple[int, ...]:
        return self.node.shape


def compress(array: Floats, rank: int) -> Floats:
    """The array with every axis along which it is constant shrunk to one, of the given rank."""
    out = np.asarray(array, np.float64)
    out = out.reshape((1,) * (rank - out.ndim) + out.shape)
    for axis in range(rank):
        if out.shape[axis] > 1 and (out == out.take([0], axis)).all():
            out = out.take([0], axis)
    return out


def varies_only(array: npt.NDArray[Any], axis: int) -> bool:
    """Whether a compressed array is constant along every other axis."""
    axis %= max(array.ndim, 1)
    return all(n == 1 for i, n in enumerate(array.shape) if i != axis)


class Network:
    """Nodes made so far, and the calibration data's way through them."""

    def __init__(self, policy: Policy, statistics: Statistics | None):
        self.policy = policy
        self.statistics = statistics
        self.nodes: dict[str, Node] = {}
        self.counts: dict[str, Ints] = {}
        self.plan = Plan(self.nodes)

    def add(
        self,
        name: str,
        op: str,
        inputs: Sequence[Node] = (),
        params: Mapping[str, Any] | None = None,
        attrs: Mapping[str, Any] | None = None,
        when: When = "as inputs",
    ) -> Node:
        unique, i = name, 1
        while unique in self.nodes:
            i += 1
            unique = f"{name}~{i}"
        node = make_node(unique, op, inputs, params, attrs)
        self.nodes[unique] = node
        self.plan.place(node, when)
        return node

    def timed(self, node: Node) -> bool:
        """Whether the node has a value for each element of a sequence."""
        return self.plan.timed(node)

    def pick(self, x: Affine, name: str, first: bool) -> Affine:
        """The value of x at the first or last element of the sequence, once for the sequence."""
        source = self.plan.ending(x.node, -1 if first else 1)
        if source is None:
            # a copy, in a sweep whose last step is that element
            reshape = {"kind": "reshape", "shape": x.shape}
            when: When = "backward" if first else "forward"
            source = self.add(f"{name}.steps", "route", [x.node], {}, reshape, when)
        node = self.add(name, "route", [source], {}, {"kind": "reshape", "shape": x.shape}, "once")
        return self.affine(node, x.scale, x.offset)

    def stack(self, x: Affine, name: str, axis: int, steps: int) -> Affine:
        """All elements of x, along the given axis of its units."""
        node = self.add(name, "stack", [x.node], {}, {"steps": steps}, "once")
        if axis:
            perm = (*range(1, axis + 1), 0, *range(axis + 1, len(node.shape)))
            turned = {"kind": "transpose", "perm": perm}
            node = self.add(f"{name}.turned", "route", [node], {}, turned)
        return self.affine(node, *(np.expand_dims(a, axis) for a in (x.scale, x.offset)))

    def unstack(self, x: Affine, tensor: str, name: str) -> Affine:
        """The elements of x, which lie along its first axis; `tensor` names x."""
        if any(a.shape[0] > 1 for a in (x.scale, x.offset)):
            # an element's value must mean the same at every step
            x = self.spike(x, IDENTITY, tensor, tensor, WIDE)
        node = self.add(name, "unstack", [x.node], {}, {}, "steps")
        return self.affine(node, x.scale[0], x.offset[0])

    def affine(self, node: Node, scale: Any, offset: Any) -> Affine:
        rank = len(node.shape)
        return Affine(node, compress(np.asarray(scale), rank), compress(np.asarray(offset), rank))

    def value(self, node: Node) -> Ints:
        """The node's integers for the first calibration samples, [N, *shape], or [N, T, *shape]
        for a node with a value per element (bias correction reads them)."""
        if node.name not in self.counts:
            found = self.plan.values(node, self.value)
            for name, value in found.items():
                small = np.int16 if self.nodes[name].hi < 2**15 else np.int32
                self.counts[name] = value.astype(small)
        return self.counts[node.name].astype(np.int64)

    def spike(self, x: Affine, act: Activation, out: str, source: str, levels: int) -> Affine:
        """A spiking node that computes `act` of x. `out` and `source` name the float tensors of
        the activation and of x, from which step size and bias correction are taken."""
        x = self.corrected(x, source)
        if self.statistics is None:
            raise Refusal("no calibration data", "give calibration data")
        stairs = self.statistics.staircase(out, levels, self.policy.calibrator)
        return self.fire(x, act, stairs, out if out not in self.nodes else f"{out}.spike")

    def fire(self, x: Affine, act: Activation, stairs: Staircase, name: str) -> Affine:
        """A spiking node with the given staircase that computes `act` of x."""
        x = self.positive(x)
        form, room = self.policy.staircase, self.policy.potential
        params, attrs = build(x.node, x.scale, x.offset, act, stairs, form, room)
        node = self.add(name, "spike", [x.node], params, attrs)
        return self.affine(node, stairs.step, 0.0)

    def byte(self, x: Affine, tensor: str, axis: int | None = None, flat: bool = False) -> Affine:
        """x as an 8-bit value whose scale varies along `axis` at most, through a spiking node if
        it is not one already. `flat`: the offset too, and the scale is above zero."""
        fits = x.node.hi - x.node.lo <= 255
        uneven = [x.scale] + ([x.offset] if flat else [])
        if axis is None:
            fits = fits and all(a.size == 1 for a in uneven)
        else:
            fits = fits and all(varies_only(a, axis) for a in uneven)
        if fits and (not flat or bool((x.scale > 0).all())):
            return x
        return self.spike(x, IDENTITY, tensor, tensor, WIDE)

    def corrected(self, x: Affine, tensor: str) -> Affine:
        """x with its offset moved so that its mean is the float tensor's mean."""
        stats = self.statistics
        if not self.policy.bias_correction or stats is None or tensor not in stats.means:
            return x
        if stats.model.lengths:
            return x  # sequences end at different elements, and means are over all of them
        timed = self.timed(x.node)
        mean = self.value(x.node).mean(axis=(0, 1) if timed else 0)
        missing = stats.means[tensor].reshape(x.shape) - (x.scale * mean + x.offset)
        # one correction per channel, as a bias has; the channel axis is where the scale varies
        varying = [i for i, n in enumerate(x.scale.shape) if n > 1] or [0]
        rest = tuple(i for i in range(len(x.shape)) if i not in varying)
        return self.affine(x.node, x.scale, x.offset + missing.mean(axis=rest, keepdims=True))

    def positive(self, x: Affine) -> Affine:
        """x with a scale above zero: rows of weights change sign, or a multiplier does."""
        sign = np.sign(x.scale).astype(np.int64)
        if (sign > 0).all():
            return x
        known = np.abs(x.scale[x.scale != 0])
        # a channel of scale zero has charge zero from here on, so any scale reads it rightly
        idle = float(np.median(known)) if known.size else float(np.abs(x.offset).max()) / 2**20
        idle = idle or 1.0
        scale = np.where(sign == 0, idle, np.abs(x.scale))
        node = x.node
        rows_only = {"conv": varies_only(sign, 0), "linear": varies_only(sign, -1)}
        if rows_only.get(node.op, False):
            weight = node.params["weight"].astype(np.int64)
            rows = np.broadcast_to(sign.reshape(-1), weight.shape[:1])
            weight = weight * rows.reshape(-1, *(1,) * (weight.ndim - 1))
            sources = [self.nodes[s] for s in node.inputs]
            flipped = self.add(node.name, node.op, sources, {"weight": weight}, node.attrs)
        else:
            flipped = self.add(f"{node.name}.sign", "add", [node], {"m0": sign})
        return self.affine(flipped, scale, x.offset)

    def synapses(
        self,
        name: str,
        op: str,
        x: Affine,
        weight: Floats,
        attrs: Mapping[str, Any] | None = None,
        on_grid: bool = False,
    ) -> Affine:
        """conv or linear with float weights that already carry x's scale per input channel.
        on_grid : rows that are integers in some step already are kept as they are."""
        limit = 2 ** (self.policy.weight_bits - 1) - 1
        rows = weight.reshape(len(weight), -1)
        step = weight_step(rows, limit)
        if on_grid:
            step = grid_step(rows, limit, step)
        integers = np.clip(np.rint(rows / step[:, None]), -limit, limit).astype(np.int64)
        while (over := _beyond(np.abs(integers).sum(axis=1) * reach_of(x.node), self.policy)).any():
            step = np.where(over, step * over * 1.001, step)
            integers = np.clip(np.rint(rows / step[:, None]), -limit, limit).astype(np.int64)
        node = self.add(name, op, [x.node], {"weight": integers.reshape(weight.shape)}, attrs)
        along = (-1, *(1,) * (len(node.shape) - 1)) if op == "conv" else (-1,)
        return self.affine(node, step.reshape(along), 0.0)

    def total(self, name: str, terms: Sequence[Affine]) -> Affine:
        """Sum of several tensors on one integer grid per channel."""
        rank = max(len(t.shape) for t in terms)
        if any(len(t.shape) != rank for t in terms):
            raise Refusal("the tensors to add have different ranks", "add tensors of one rank")
        scales, nodes = [t.scale for t in terms], [t.node for t in terms]
        unit, multipliers = common_grid(scales, nodes, self.policy)
        params = {f"m{i}": m for i, m in enumerate(multipliers)}
        node = self.add(name, "add", [t.node for t in terms], params)
        offset = terms[0].offset
        for t in terms[1:]:
            offset = offset + t.offset
        return self.affine(node, unit, offset)

    def product(self, name: str, a: Affine, b: Affine) -> Affine:
        """a * b, unit by unit: the product of two nodes, and the nodes themselves where the other
        has an offset."""
        node = self.add(name, "product", [a.node, b.node])
        y = self.affine(node, a.scale * b.scale, np.zeros(()))
        rest = [
            self.affine(x.node, x.scale * other.offset, np.zeros(()))
            for x, other in ((a, b), (b, a))
            if other.offset.any()
        ]
        if rest:
            y = self.total(f"{name}.sum", [y, *rest])
        return self.affine(y.node, y.scale, y.offset + a.offset * b.offset)

    def even(self, x: Affine, name: str) -> Affine:
        """x with one scale for all units, by integer multipliers."""
        if x.scale.size == 1:
            return x
        known = np.abs(x.scale[x.scale != 0])
        smallest = float(known.min()) if known.size else 1.0
        room = self.policy.grid / max(1, x.node.peak) / (np.abs(x.scale).max() / smallest)
        finer = 2.0 ** np.clip(np.floor(np.log2(max(room, 1.0))), 0, 10)
        multiplier = np.rint(x.scale / smallest * finer).astype(np.int64)
        node = self.add(f"{name}.even", "add", [x.node], {"m0": multiplier})
        return self.affine(node, smallest / finer, x.offset)


def weight_step(rows: Floats, limit: int) -> Floats:
    """Step per output channel: max-abs, or for few bits the least squared error below it."""
    peak = np.abs(rows).max(axis=1)
    peak = np.where(peak > 0, peak, 1.0)
    if limit >= 127:
        return peak / limit
    best, least = peak / limit, np.full(len(rows), np.inf)
    for share in np.linspace(1.0, 0.4, 61):
        step = peak * share / limit
        fitted = np.clip(np.rint(rows / step[:, None]), -limit, limit) * step[:, None]
        error = np.square(rows - fitted).sum(axis=1)
        best, least = np.where(error < least, step, best), np.minimum(error, least)
    return best


def grid_step(rows: Floats, limit: int, otherwise: Floats) -> Floats:
    """Step of each row whose values are integers of at most `limit` in it: 1 where that fits, else
    the coarsest; `otherwise` where there is none."""
    step, peak = otherwise.copy(), np.abs(rows).max(axis=1)
    left = np.flatnonzero(peak > 0)
    for q in range(limit + 1):
        tried = peak[left] / q if q else np.ones(len(left))
        parts = rows[left] / tried[:, None]
        fits = (np.abs(parts - np.rint(parts)) < GRID_NOISE).all(axis=1)
        most = np.rint(np.abs(parts).max(axis=1, initial=0))
        fits &= (most >= 1) & (most <= limit)
        step[left[fits]] = tried[fits]
        left = left[~fits]
        if not left.size:
            break
    return step


def common_grid(
    scales: Sequence[Floats], nodes: Sequence[Node], policy: Policy
) -> tuple[Floats, list[Ints]]:
    """One unit per channel and integer multipliers m_i = round(scale_i / unit), as exact as the
    bounds of the policy allow, at most `GRID_ERROR` off where there is room."""
    magnitude = np.stack(np.broadcast_arrays(*[np.abs(s) for s in scales]))
    positive = np.where(magnitude > 0, magnitude, np.inf)
    finest = positive.min(axis=0)
    finest = np.where(np.isfinite(finest), finest, 1.0)
    # what a spiking node tells is smaller than the charge that it holds
    peaks = [float(max(-n.lo, n.hi)) for n in nodes]
    finer = 1.0
    while finer < 2**12:
        unit = finest / finer
        ratios = [s / unit for s in scales]
        worst = max(
            float((np.abs(np.rint(r) - r) / np.where(r == 0, 1.0, np.abs(r))).max()) for r in ratios
        )
        reach = sum(float(np.abs(r).max()) * p * 2 for r, p in zip(ratios, peaks, strict=True))
        if worst <= GRID_ERROR or reach > policy.grid:
            break
        finer *= 2
    unit = finest / finer
    while True:
        multipliers = [np.rint(s / unit).astype(np.int64) for s in scales]
        total = sum(np.abs(m) * reach_of(n) for m, n in zip(multipliers, nodes, strict=True))
        share: Floats = np.asarray(total) / min(policy.charge, 2 * GRID_BOUND)
        if (share <= 1).all():
            return unit, multipliers
        # a term that is nothing beside the others must not make their sum larger than may be
        unit = np.where(share > 1, unit * share * 1.001, unit)


def reach_of(node: Node) -> int:
    """Largest magnitude of a node's value."""
    return max(-node.lo, node.hi)


def _beyond(charge: Ints, policy: Policy) -> Floats:
    """charge / bound where a target's bound is exceeded, else 0. Beyond 32 bits, which are the
    bound without a target, a layer is refused instead (`make_node`)."""
    share: Floats = charge / policy.charge
    return np.where((share > 1) & (policy.charge < INT32_BOUND), share, 0.0)


def padded_response(x: Affine, weight: Floats, attrs: Mapping[str, Any]) -> Floats:
    """What a convolution makes of x's offset: a bias, or a map where padding cuts it."""
    if not x.offset.any():
        return np.zeros((1,) * len(x.shape))
    everywhere = np.broadcast_to(x.offset, x.shape)[None]
    return compress(correlate(everywhere, weight, attrs)[0], len(x.shape))
