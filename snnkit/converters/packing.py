"""Channels that are active together side by side: fewer event words for the same spikes.

Engines that work on event words take four neighbouring channels of a site at once, and a word costs
the same with one active channel as with four. So the channels of hidden layers are renumbered
(`relabel`, exact) to make as many words as possible jointly silent: minimise the number of words
that are not zero, summed over sites and samples. Inputs and outputs keep their order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from snnkit.boundary import input_counts
from snnkit.converters.relabel import Relabelling, Symmetry
from snnkit.errors import UsageError
from snnkit.graph import Graph, Node
from snnkit.ops.op import Ints
from snnkit.reference import dense

Array = npt.NDArray[Any]
Flags = npt.NDArray[np.bool_]

WORD = 4
"""Channels of an event word."""
MOST_ROWS = 2**15
MOST_WORK = 2**31
"""Rows of activity that are looked at, and multiplications of one sweep over them."""
MOST_SWEEPS = 60
MORE_STARTS = 4


@dataclass(frozen=True)
class Packing:
    """graph : the renumbered graph. relabelling : how. words : by layer that synapses read, the
    mean number of event words of a sample, (before, after), on the samples that chose the order.
    """

    graph: Graph
    relabelling: Relabelling
    words: Mapping[str, tuple[float, float]]


def pack(graph: Graph, samples: Any) -> Packing:
    """Renumber the channels of hidden layers by their activity in `samples` ([N, *shape] or by
    input name). All outputs, and the values of all neurons but for their place, stay the same.

    Raises UsageError for a step graph: what its latches hold would have to move along.
    """
    if graph.sweeps:
        raise UsageError("the channels of a network with steps stay where they are")
    values = dense(graph, input_counts(graph, samples))
    return pack_by(graph, lambda node: values[node.name])


def pack_by(graph: Graph, value: Callable[[Node], Ints]) -> Packing:
    """As `pack`, from the values [N, *shape] of nodes."""
    symmetry = Symmetry(graph)
    read = layers_read(graph)
    active = {node.name: value(node) != 0 for node in read}
    orders = {}
    for owner, size in symmetry.classes().items():
        rows = [
            np.moveaxis(active[n.name], word_axis(graph, n) + 1, -1).reshape(
                len(active[n.name]), -1, size
            )
            for n in read
            if _lies_in_words(symmetry, n, owner)
        ]
        if rows:
            order = chosen(np.concatenate(rows, axis=1))
            if order is not None:
                orders[owner] = order
    relabelling = Relabelling(symmetry, orders)
    words = {}
    for node in read:
        moved = active[node.name].reshape(len(active[node.name]), -1)
        moved = moved[:, relabelling.units(node.name)].reshape(active[node.name].shape)
        axis = word_axis(graph, node)
        words[node.name] = (_words(active[node.name], axis), _words(moved, axis))
    return Packing(relabelling.graph() if orders else graph, relabelling, words)


def event_words(graph: Graph, samples: Any) -> dict[str, float]:
    """Mean number of event words per sample, by layer that synapses read."""
    values = dense(graph, input_counts(graph, samples))
    return {n.name: _words(values[n.name] != 0, word_axis(graph, n)) for n in layers_read(graph)}


def layers_read(graph: Graph) -> list[Node]:
    """Hidden nodes whose values go into synapses, directly or in another shape."""
    reads: set[str] = set()
    for node in reversed(graph.nodes):
        reshapes = node.attrs.get("kind") in ("reshape", "transpose")
        if node.op in ("conv", "linear") or (reshapes and node.name in reads):
            reads.update(node.inputs)
    passing = ("reshape", "transpose", "concat")
    return [
        n
        for n in graph.nodes
        if n.name in reads and n.op != "input" and n.attrs.get("kind") not in passing
    ]


def word_axis(graph: Graph, node: Node) -> int:
    """The axis (without the batch axis) of which four neighbours make a word: the channels."""
    while node.op in ("spike", "add"):
        node = graph.node[node.inputs[0]]
    return len(node.shape) - 1 if node.op == "linear" else 0


def _lies_in_words(symmetry: Symmetry, node: Node, owner: int) -> bool:
    axis = symmetry.axes[node.name][word_axis(symmetry.graph, node)]
    return len(axis) == 1 and axis[0].inner == 1 and symmetry.class_of(axis[0].owner) == owner


def _words(active: Flags, axis: int) -> float:
    """Mean number of words with an active channel; active [N, *shape]."""
    last = np.moveaxis(active, axis + 1, -1).reshape(-1, active.shape[axis + 1])
    starts = np.arange(0, last.shape[1], WORD)
    return float(np.logical_or.reduceat(last, starts, axis=1).sum()) / len(active)


def chosen(active: Flags) -> Array | None:
    """An order of channels for activity [samples, sites, channels], or None to leave them: it has
    to save words in the half of the samples that did not choose it."""
    halves = [_rows(active[i::2]) for i in (0, 1)]
    if not all(len(h) for h in halves):
        return None
    if word_cost(halves[1], grouped(halves[0])) >= word_cost(halves[1]):
        return None
    return grouped(_rows(active))


def _rows(active: Flags) -> Flags:
    """Sites that are not silent, thinned out evenly."""
    channels = active.shape[-1]
    rows = active.reshape(-1, channels)
    rows = rows[rows.any(axis=1)]
    most = int(np.clip(MOST_WORK // channels**2, 2**10, MOST_ROWS))
    picked: Flags = rows[np.unique(np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(int))]
    return picked


def word_cost(rows: Flags, order: Array | None = None) -> int:
    """Words with an active channel, over all rows [N, channels]."""
    if order is not None:
        rows = rows[:, order]
    starts = np.arange(0, rows.shape[1], WORD)
    return int(np.logical_or.reduceat(rows, starts, axis=1).sum())


def grouped(rows: Flags) -> Array:
    """An order of the channels [N, channels] with few words; what never fires comes at the end.

    From several orders, swaps of channels between words, the best first, as long as any saves a
    word; the best end is taken. The first start is sorted by rate.
    """
    channels = rows.shape[1]
    slots = -(-channels // WORD) * WORD
    padded = np.zeros((len(rows), slots), np.float32)
    padded[:, :channels] = rows
    filler = np.arange(channels, slots)
    rng = np.random.default_rng(0)
    starts = [np.argsort(-padded[:, :channels].sum(axis=0), kind="stable")]
    starts += [rng.permutation(channels) for _ in range(MORE_STARTS)]
    ends = [_descended(padded, np.concatenate([start, filler]), channels) for start in starts]
    order = min(ends, key=lambda end: word_cost(rows, end[end < channels]))
    words = np.sort(order.reshape(-1, WORD), axis=1)
    costs = (padded[:, words].max(axis=2) > 0).sum(axis=0)
    costs[-1] = -1 if slots > channels else costs[-1]
    flat = words[np.lexsort((words[:, 0], -costs))].reshape(-1)
    return np.asarray(flat[flat < channels])


def _descended(active: Array, order: Array, channels: int) -> Array:
    for _ in range(MOST_SWEEPS):
        swaps = _swaps(active[:, order], channels)
        if not len(swaps):
            break
        order[swaps] = order[swaps[:, ::-1]]
    return order


def _swaps(active: Array, channels: int) -> Array:
    """Pairs of places whose channels should change places, no two pairs in the same words.

    With the channels in `active` [rows, places] in their order; a pair's saving is exact: rows in
    which the others of the word are active, or the newcomer is.
    """
    slots = active.shape[1]
    word = np.arange(slots) // WORD
    total = active.reshape(len(active), -1, WORD).sum(axis=2)
    others = (np.repeat(total, WORD, axis=1) - active > 0).astype(np.float32)
    after = others.sum(axis=0)[:, None] + active.sum(axis=0)[None] - others.T @ active
    cost = (total > 0).sum(axis=0).astype(np.float32)[word]
    change = after + after.T - cost[:, None] - cost[None]
    change[word[:, None] >= word[None]] = 0
    change[:, channels:] = 0
    first, second = np.nonzero(change < 0)
    best = np.argsort(change[first, second], kind="stable")
    used = np.zeros(slots // WORD, bool)
    pairs = []
    for i in best:
        a, b = first[i], second[i]
        if not (used[word[a]] or used[word[b]]):
            used[word[a]] = used[word[b]] = True
            pairs.append((a, b))
    return np.array(pairs, np.int64).reshape(-1, 2)
