"""Renumbering channels changes no spike: laws over random networks; and it saves event words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import snnkit
from snnkit.cli import main
from snnkit.converters.packing import WORD, chosen, event_words, grouped, pack, word_cost
from snnkit.converters.relabel import Relabelling, Symmetry, matching_runs
from snnkit.errors import UsageError
from snnkit.files import from_bytes, to_bytes
from snnkit.graph import Boundary, Graph, Node, make_node
from tests.corpus import firing, random_graph, samples
from tests.models import Builder, cases
from tests.step_corpus import random_step_graph

SEEDS = range(120)
CASES = cases()


def shuffled(graph: Graph, rng: np.random.Generator) -> Relabelling:
    """Every class of channels in a random order: more than any choice by activity would move."""
    symmetry = Symmetry(graph)
    orders = {owner: rng.permutation(size) for owner, size in symmetry.classes().items()}
    return Relabelling(symmetry, orders)


def same_but_for_places(old: Graph, relabelling: Relabelling, x: Any) -> int:
    """Assert the law; returns how many nodes have units in new places."""
    new = relabelling.graph()
    new.check()
    assert [n.name for n in new.nodes] == [n.name for n in old.nodes]
    assert new.inputs == old.inputs and new.outputs == old.outputs and new.meta == old.meta
    one, other = (snnkit.compile(g, "reference").run(x, record=("all",)) for g in (old, new))
    firing(old, one)
    for name, value in one.outputs.items():
        assert other.outputs[name].tobytes() == value.tobytes()
    moved = 0
    for node in old.nodes:
        units = relabelling.units(node.name)
        assert sorted(units) == list(range(node.units))
        before = one.counts[node.name].reshape(len(one.counts[node.name]), -1)
        after = other.counts[node.name].reshape(len(before), -1)
        np.testing.assert_array_equal(after, before[:, units], err_msg=node.name)
        np.testing.assert_array_equal(np.sort(after), np.sort(before))
        moved += bool((units != np.arange(node.units)).any())
        if node.op in ("input", "readout"):
            assert (units == np.arange(node.units)).all()
    for field in ("spikes", "synops"):
        for name, tally in getattr(one, field).items():
            np.testing.assert_array_equal(getattr(other, field)[name], tally)
    return moved


@pytest.mark.parametrize("seed", SEEDS)
def test_any_relabelling_of_random_graphs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    graph = random_graph(rng)
    x = samples(graph, rng, 6)
    same_but_for_places(graph, shuffled(graph, rng), x)


def test_most_random_graphs_have_something_to_move() -> None:
    moved = 0
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        symmetry = Symmetry(random_graph(rng))
        moved += bool(symmetry.classes())
    assert moved >= len(SEEDS) // 2


@pytest.mark.parametrize("name", CASES)
def test_any_relabelling_of_converted_models(name: str) -> None:
    builder = CASES[name]
    x = builder.samples(24)
    graph = snnkit.convert(builder.model(), x, levels=15, pack=False)
    relabelling = shuffled(graph, np.random.default_rng(0))
    old, new = (snnkit.compile(g, "reference") for g in (graph, relabelling.graph()))
    one, other = old.run(x, record=("all",)), new.run(x, record=("all",))
    for output, value in one.outputs.items():
        assert other.outputs[output].tobytes() == value.tobytes()
    for node in graph.nodes:
        before = one.counts[node.name].reshape(len(value), -1)
        after = other.counts[node.name].reshape(len(value), -1)
        np.testing.assert_array_equal(after, before[:, relabelling.units(node.name)])


@pytest.mark.parametrize("seed", range(0, 120, 5))
def test_packing_random_graphs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    graph = random_graph(rng)
    x = samples(graph, rng, 12)
    packing = pack(graph, x)
    same_but_for_places(graph, packing.relabelling, x)
    before, after = event_words(graph, x), event_words(packing.graph, x)
    assert packing.words == {name: (before[name], after[name]) for name in before}
    assert sum(after.values()) <= sum(before.values())
    assert to_bytes(pack(graph, x).graph) == to_bytes(packing.graph)


def residual(rng: np.random.Generator, flat: bool) -> tuple[Graph, Any]:
    """Two branches, a depthwise convolution, pools, a join side by side and a layer on the
    flattened maps: everything that a permutation has to be followed through."""
    x = make_node("x", "input", attrs={"shape": (2, 6, 6), "lo": 0, "hi": 255})
    nodes = [x]

    def node(name: str, op: str, *inputs: Node, params: Any = None, **attrs: Any) -> Node:
        nodes.append(make_node(name, op, inputs, params, attrs))
        return nodes[-1]

    def conv(name: str, source: Node, outputs: int, group: int = 1) -> Node:
        weight = rng.integers(-127, 128, (outputs, source.shape[0] // group, 3, 3))
        same = {"strides": (1, 1), "pads": (1, 1, 1, 1), "dilations": (1, 1)}
        return node(name, "conv", source, params={"weight": weight}, group=group, **same)

    def spike(name: str, source: Node) -> Node:
        shape = (source.shape[0],) + (1,) * (len(source.shape) - 1)
        theta = rng.integers(max(1, source.peak // 120), source.peak // 60 + 2, shape)
        init = rng.integers(0, source.peak // 60 + 2, shape)
        params = {"init": init, "theta": theta}
        return node(name, "spike", source, params=params, kind="uniform", lo=0, hi=15)

    a = spike("a", conv("ca", x, 8))
    deep = spike("d", conv("cd", a, 16, group=8))
    b = spike("b", conv("cb", deep, 8))
    m0, m1 = rng.integers(1, 4, (8, 1, 1)), np.int32(3)
    joined = node("sum", "add", a, b, params={"m0": m0, "m1": m1})
    s = spike("s", joined)
    half = {"kernel": (2, 2), "strides": (2, 2), "pads": (0,) * 4, "dilations": (1, 1)}
    pooled, other = node("p", "max_pool", s, **half), node("q", "max_pool", deep, **half)
    side = node("side", "route", pooled, other, kind="concat", axis=0)
    if flat:
        turned = node("t", "route", side, kind="transpose", perm=(1, 2, 0))
        side = node("f", "route", turned, kind="reshape", shape=(24 * 9,))
    else:
        side = node("f", "route", side, kind="reshape", shape=(24 * 9,))
    weight = rng.integers(-127, 128, (5, 24 * 9))
    last = node("l", "linear", side, params={"weight": weight})
    y = node("y", "readout", last, params={"bias": np.int32(7)})
    one, zero = np.ones((), np.float32), np.zeros((), np.float32)
    ends = [Boundary(n.name.upper(), n.name, "float32", ("n", *n.shape), one, zero) for n in (x, y)]
    data = rng.integers(0, 256, (8, 2, 6, 6)) * (rng.random((8, 2, 6, 6)) < 0.5)
    return Graph(tuple(nodes), (ends[0],), (ends[1],)), data.astype(np.float32)


@pytest.mark.parametrize("flat", [False, True])
def test_branches_depthwise_concat_and_flattening_are_followed(flat: bool) -> None:
    rng = np.random.default_rng(3)
    graph, x = residual(rng, flat)
    symmetry = Symmetry(graph)
    # a, b and what their sum feeds are one class of 8 channels; the depthwise layer follows a
    assert list(symmetry.classes().values()) == [8]
    relabelling = shuffled(graph, rng)
    assert same_but_for_places(graph, relabelling, x) == len(graph.nodes) - 3
    for node in graph.nodes:
        still = (relabelling.units(node.name) == np.arange(node.units)).all()
        assert still == (node.name in ("x", "l", "y"))


def test_what_cannot_be_followed_stays() -> None:
    rng = np.random.default_rng(0)
    x = make_node("x", "input", attrs={"shape": (4, 4, 4), "lo": 0, "hi": 255})
    window = {"strides": (1, 1), "pads": (0,) * 4, "dilations": (1, 1)}
    weights = rng.integers(-127, 128, (6, 4, 1, 1))
    a = make_node("a", "conv", [x], {"weight": weights}, {**window, "group": 1})
    params = {"init": np.int32(0), "theta": np.int32(99)}
    s = make_node("s", "spike", [a], params, {"kind": "uniform", "lo": 0, "hi": 7})
    grouped_weights = rng.integers(-127, 128, (4, 3, 1, 1))
    b = make_node("b", "conv", [s], {"weight": grouped_weights}, {**window, "group": 2})
    y = make_node("y", "readout", [b], {"bias": np.int32(0)})
    one, zero = np.ones((), np.float32), np.zeros((), np.float32)
    ends = [Boundary(n.name.upper(), n.name, "float32", ("n", *n.shape), one, zero) for n in (x, y)]
    assert Symmetry(Graph((x, a, s, b, y), (ends[0],), (ends[1],))).classes() == {}


def test_matching_runs() -> None:
    runs = matching_runs((4, 3, 2, 1), (12, 1, 2))
    assert runs[0] == (slice(0, 2), slice(0, 1))
    for before, after in (((1, 784), (784,)), ((784,), (1, 28, 28)), ((5, 1, 1), (5,))):
        for old, new in matching_runs(before, after):
            assert np.prod(before[old]) == np.prod(after[new])
        assert sum(old.stop - old.start for old, _ in matching_runs(before, after)) == len(before)


def test_groups_that_fire_together_are_found() -> None:
    """Hidden groups of four channels, some channels silent: all words are found again."""
    rng = np.random.default_rng(0)
    for channels, groups in ((16, 4), (24, 4), (22, 5), (64, 12)):
        active = np.zeros((4000, channels), bool)
        places = rng.permutation(channels)
        for g in range(groups):
            fires = rng.random(len(active)) < 0.15
            active[:, places[4 * g : 4 * g + 4]] = fires[:, None]
        order = grouped(active)
        assert sorted(order) == list(range(channels))
        least = sum(active[:, places[4 * g]].sum() for g in range(groups))
        assert word_cost(active, order) == least < word_cost(active) / 2
        silent = channels - 4 * groups
        assert not active[:, order[channels - silent :]].any()


def test_the_last_word_may_be_short() -> None:
    rng = np.random.default_rng(1)
    for channels in (1, 2, 3, 5, 6, 7, 9, 31):
        active = rng.random((500, channels)) < rng.random(channels)
        order = grouped(active)
        assert sorted(order) == list(range(channels))
        assert word_cost(active, order) <= word_cost(active)


def test_what_half_of_the_samples_do_not_confirm_is_left() -> None:
    rng = np.random.default_rng(2)
    fires = rng.random((100, 1, 4, 1)) < 0.2
    together = np.broadcast_to(fires, (100, 1, 4, 4)).reshape(100, 1, 16)
    apart = np.ascontiguousarray(together.reshape(100, 1, 4, 4).swapaxes(2, 3)).reshape(100, 1, 16)
    assert chosen(together) is None  # four neighbours fire together already
    assert chosen(apart) is not None
    mixed = np.stack([apart, together], axis=1).reshape(200, 1, 16)
    assert chosen(mixed) is None


def test_order_of_nothing() -> None:
    """One sample is no evidence, nor is silence."""
    x = make_node("x", "input", attrs={"shape": (8,), "lo": 0, "hi": 255})
    weight = np.arange(-32, 32).reshape(8, 8)
    a = make_node("a", "linear", [x], {"weight": weight})
    params = {"init": np.int32(0), "theta": np.int32(99)}
    s = make_node("s", "spike", [a], params, {"kind": "uniform", "lo": 0, "hi": 7})
    b = make_node("b", "linear", [s], {"weight": weight})
    y = make_node("y", "readout", [b], {"bias": np.int32(0)})
    one, zero = np.ones((), np.float32), np.zeros((), np.float32)
    ends = [Boundary(n.name.upper(), n.name, "float32", ("n", *n.shape), one, zero) for n in (x, y)]
    graph = Graph((x, a, s, b, y), (ends[0],), (ends[1],))
    assert pack(graph, np.full((1, 8), 9, np.float32)).graph is graph
    assert pack(graph, np.zeros((20, 8), np.float32)).graph is graph


def alike_filters() -> Builder:
    """A convolution whose filters are variations of four, far apart from each other."""
    b = Builder((1, 9, 9))
    base = np.repeat(b.rng.normal(0, 1, (4, 1, 3, 3)), 4, axis=0)
    weight = (base + b.rng.normal(0, 0.2, base.shape))[b.rng.permutation(16)]
    b.op("Conv", b.array(weight), b.array(np.full(16, -3.0)))
    b.op("Relu")
    b.op("Flatten")
    b.linear(5, 16 * 7 * 7)
    return b


def test_convert_packs_and_says_so() -> None:
    builder = alike_filters()
    x, held_out = builder.samples(200), builder.samples(100)
    plain, packed = (
        snnkit.convert(builder.model(), x, levels=15, pack=choice) for choice in (False, True)
    )
    assert plain.meta["channels"] == "as in the source"
    assert packed.meta["channels"] == "by activity"
    before, after = event_words(plain, held_out), event_words(packed, held_out)
    assert list(before) == list(after) and sum(after.values()) < 0.6 * sum(before.values())
    again = snnkit.convert(builder.model(), x, levels=15)
    assert to_bytes(again) == to_bytes(packed)
    assert from_bytes(to_bytes(packed), "again").digest == packed.digest
    one, other = (snnkit.compile(g, "reference").run(x) for g in (plain, packed))
    assert sum(s.sum() for s in one.spikes.values()) > 0
    for name, value in one.outputs.items():
        assert other.outputs[name].tobytes() == value.tobytes()


@pytest.mark.parametrize("levels", [15, 255])
def test_words_on_held_out_images(levels: int) -> None:
    """A trained network, chosen on some images and counted on others."""
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    from sklearn.datasets import load_digits

    source = Path(__file__).parents[1] / "examples" / "digits_cnn.onnx"
    images = load_digits().images[:, None].astype(np.float32)
    rng = np.random.default_rng(0)
    images = images[rng.permutation(len(images))]
    graph = snnkit.convert(source, images[:450], levels=levels, pack=False)
    packing = pack(graph, images[:450])
    before = event_words(graph, images[450:])
    after = event_words(packing.graph, images[450:])
    assert sum(after.values()) < 0.95 * sum(before.values())
    assert all(after[name] <= before[name] for name in before)
    assert WORD == 4


def test_the_command_line_can_leave_the_order(tmp_path: Path) -> None:
    builder = alike_filters()
    model, x = tmp_path / "model.onnx", tmp_path / "x.npy"
    onnx.save(builder.model(), model)
    np.save(x, builder.samples(100))
    for name, options in (("packed", []), ("plain", ["--no-pack"])):
        net = str(tmp_path / f"{name}.onnx")
        assert main(["convert", str(model), "-o", net, "--calibration", str(x), *options]) == 0
    data = np.load(x)
    packed, plain = (snnkit.load(tmp_path / f"{n}.onnx") for n in ("packed", "plain"))
    assert sum(event_words(packed, data).values()) < sum(event_words(plain, data).values())


def test_a_network_with_steps_is_left_alone() -> None:
    graph = random_step_graph(np.random.default_rng(0), 3)
    with pytest.raises(UsageError, match="stay where they are"):
        pack(graph, {})
