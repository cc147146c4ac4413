"""The workloads of the benchmarks: readers, generated inputs, shipped networks, size variants."""

from __future__ import annotations

import io
import tarfile

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st

import snnkit
from benchmarks import activity, generated, recordings, variants
from benchmarks.workloads import WORKLOADS, Split, event_parts, present, samples, splits, streams
from snnkit.errors import BadDataset

NAMES = sorted(WORKLOADS)
EVENTS = [n for n in NAMES if WORKLOADS[n].events]
DENSITY = {"mnist": 0.19, "nmnist": 0.037, "dvs": 0.0039, "cifar": 1.0}
"""Share of non-zero inputs of the real data."""


def drawn(seed: int, size: int, count: int, until: int) -> recordings.Array:
    rng = np.random.default_rng(seed)
    t = np.sort(rng.integers(0, until, count))
    x, y = rng.integers(0, size, (2, count))
    return recordings.events(t, x, y, rng.integers(0, 2, count))


def as_nmnist(events: recordings.Array) -> bytes:
    t = events["t"]
    columns = events["x"], events["y"], events["p"] << 7 | t >> 16, t >> 8 & 255, t & 255
    return np.stack(columns, 1).astype(np.uint8).tobytes()


def as_aedat2(events: recordings.Array, first: int) -> bytes:
    address = (1 - events["p"]) | (127 - events["x"]) << 1 | events["y"].astype(int) << 8
    stamp = (first + events["t"]) % 2**32
    header = b"#!AER-DAT2.0\r\n# This is a raw AE data file\r\n"
    return header + np.stack([address, stamp], 1).astype(">u4").tobytes()


seeds = given(st.integers(0, 2**32 - 1), st.integers(1, 200))


@seeds
def test_aedat2_reads_what_was_written(tmp_path_factory, seed: int, count: int) -> None:
    """The camera's clock has 32 bits, is unsigned and may pass zero."""
    made = drawn(seed, 128, count, 10**8)
    path = tmp_path_factory.getbasetemp() / "recording.aedat"
    path.write_bytes(as_aedat2(made, 2**32 - 10**7))
    found = recordings.read_aedat2(path)
    made["t"] -= made["t"][0]
    assert found.dtype == recordings.EVENT and np.array_equal(found, made)


@seeds
def test_slices_count_every_event(seed: int, count: int) -> None:
    made = drawn(seed, 9, count, 60_000)
    found = recordings.slices(made, (9, 9), 10_000)
    assert len(found) == made["t"][-1] // 10_000 + 1
    expected = np.zeros_like(found)
    for event in made:
        expected[event["t"] // 10_000, event["p"], event["y"], event["x"]] += 1
    assert np.array_equal(found, expected) and found.sum() == count


def test_slices_saturate_and_may_be_none() -> None:
    assert recordings.slices(drawn(0, 1, 3000, 5000), (1, 1)).max() == 255
    assert recordings.slices(drawn(0, 1, 0, 1), (3, 4)).shape == (0, 2, 3, 4)


def test_archive_pairs_recordings_with_labels(tmp_path) -> None:
    """Whatever the order and the folder of the members, and with CRLF in labels.txt."""
    made = {number: drawn(number, 34, 20, 2**23) for number in (3, 1, 2)}
    contents = {f"set/{n:05d}.bin": as_nmnist(events) for n, events in made.items()}
    contents["set/labels.txt"] = b"#sample\t#class\r\n2\t7\r\n1\t5\r\n3\t9\r\n"
    path = tmp_path / "some.tar.xz"
    with tarfile.open(path, "w:xz") as archive:
        for name, data in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    found = list(recordings.read_nmnist_archive(path))
    assert [label for label, _ in found] == [5, 7, 9]
    for (_, events), number in zip(found, (1, 2, 3), strict=True):
        assert np.array_equal(events, made[number])


def test_broken_recordings_are_refused(tmp_path) -> None:
    whole = as_aedat2(drawn(0, 128, 4, 99), 0)
    path = tmp_path / "some.aedat"
    for data in (b"", b"no header", b"# endless header", whole[:-1], whole[13:]):
        path.write_bytes(data)
        with pytest.raises(BadDataset, match=r"some\.aedat.*#!AER-DAT2\.0"):
            recordings.read_aedat2(path)
    path.write_bytes(whole[: whole.index(b"file") + 6])
    assert len(recordings.read_aedat2(path)) == 0
    with pytest.raises(BadDataset, match=r"expected 0\.\.8"):
        recordings.slices(drawn(0, 12, 100, 99), (9, 9))


@pytest.mark.parametrize("name", NAMES)
def test_generated_inputs_are_as_dense_as_real_ones(name: str) -> None:
    if not WORKLOADS[name].events:
        pytest.importorskip("sklearn", reason="pip install scikit-learn")
    made = samples(name, 100, real=False)
    assert not made.real and made.x.dtype == np.float32
    assert made.x.shape == (100, *WORKLOADS[name].shape)
    assert 0.7 < (made.x != 0).mean() / DENSITY[name] < 1.3
    assert np.array_equal(made.x, samples(name, 100, real=False).x)
    assert not np.array_equal(made.x, samples(name, 100, "train", False).x)
    if WORKLOADS[name].events:
        assert (
            np.array_equal(made.x, np.rint(made.x)) and made.x.any(axis=(2, 3)).all(1).mean() > 0.9
        )


@pytest.mark.parametrize("name", EVENTS)
def test_generated_streams(name: str) -> None:
    found = streams(name, 4, real=False)
    height, width = found.size
    assert not found.real and len(found.events) == 4
    for events in found.events:
        assert events.dtype == recordings.EVENT and 8_000 < len(events) < 14_500
        assert (np.diff(events["t"]) >= 0).all() and events["t"][0] >= 0
        assert 900_000 < events["t"][-1] < 1_000_000
        assert events["x"].min() >= 0 and events["x"].max() < width
        assert events["y"].min() >= 0 and events["y"].max() < height
        assert 0.4 < events["p"].mean() < 0.6


def test_a_pixel_of_a_moving_shape_brightens_and_darkens_in_turn() -> None:
    """Without dropping, what a pixel got brighter never exceeds full contrast."""
    events = generated.moving_shape((20, 20), 0.5, 3, rate=1e9)
    place = events["y"].astype(int) * 20 + events["x"]
    for pixel in np.unique(place):
        level = np.cumsum(np.where(events["p"][place == pixel] == 1, 1, -1))
        assert level.max() - level.min() <= 1 / generated.CONTRAST


@pytest.fixture(scope="module")
def converted() -> dict[str, snnkit.Graph]:
    """Each shipped network, calibrated on generated inputs."""
    pytest.importorskip("sklearn", reason="pip install scikit-learn")
    return {
        name: snnkit.convert(
            WORKLOADS[name].network, samples(name, 60, "train", False).x, levels=15
        )
        for name in NAMES
    }


@pytest.mark.parametrize("name", NAMES)
def test_shipped_networks_take_any_batch(name: str) -> None:
    path = WORKLOADS[name].network
    assert path.stat().st_size < 1_000_000
    session = ort.InferenceSession(path)
    (given_input,), (output,) = session.get_inputs(), session.get_outputs()
    assert given_input.type == output.type == "tensor(float)"
    for batch in (1, 3):
        x = np.zeros((batch, *WORKLOADS[name].shape), np.float32)
        (logits,) = session.run(None, {given_input.name: x})
        assert logits.shape == (batch, WORKLOADS[name].classes) and logits.dtype == np.float32


@pytest.mark.parametrize("name", NAMES)
def test_shipped_networks_are_quiet_and_fire(name: str, converted, tmp_path) -> None:
    """No event, no spike; generated events, spikes in every layer, and equal to onnxruntime."""
    graph = converted[name]
    program = snnkit.compile(graph, backend="numba")
    x = samples(name, 20, real=False).x
    result = program.run(x, record=("spike",))
    assert len(result.counts) == len(WORKLOADS[name].convs)
    for layer, counts in result.counts.items():
        assert counts.any(), layer
        assert (counts != 0).mean() < 0.4, layer
    silence = program.run(np.zeros_like(x[:1]), record=("spike",))
    assert not any(counts.any() for counts in silence.counts.values())
    snnkit.save(graph, tmp_path / "net.onnx")
    session = ort.InferenceSession(tmp_path / "net.onnx")
    (expected,) = session.run(None, {session.get_inputs()[0].name: x})
    (outputs,) = result.outputs.values()
    assert np.array_equal(outputs, expected)


@pytest.mark.parametrize("name", NAMES)
def test_accuracy_of_the_shipped_networks(name: str) -> None:
    if not present(name):
        pytest.skip(f"no data for {name}; set SNNKIT_DATA to the folder that holds it")
    test = samples(name, 500)
    session = ort.InferenceSession(WORKLOADS[name].network)
    (logits,) = session.run(None, {"input": test.x})
    assert test.real and (logits.argmax(1) == test.y).mean() > ACCURACY[name]
    assert 0.8 < (test.x != 0).mean() / DENSITY[name] < 1.2


ACCURACY = {"mnist": 0.96, "nmnist": 0.68, "dvs": 0.74, "cifar": 0.45}


@pytest.mark.parametrize("name", NAMES)
def test_absent_data_is_said_and_generated(name: str, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("SNNKIT_DATA", str(tmp_path))
    splits.cache_clear()
    for ask in (samples, streams) if WORKLOADS[name].events else (samples,):
        with pytest.raises(FileNotFoundError, match="SNNKIT_DATA"):
            ask(name, 3, real=True)
        assert not ask(name, 3).real


def test_real_recordings_are_what_their_makers_say() -> None:
    if not present("nmnist") or not present("mnist"):
        pytest.skip("no N-MNIST or MNIST data; set SNNKIT_DATA")
    parts = event_parts("nmnist", "train"), event_parts("nmnist", "test")
    assert [len(p) for p in parts] == [800, 200]
    recorded = [r for part in parts for r in part]
    assert sum(len(events) for _, events in recorded) == 4_133_231
    assert [label for label, _ in recorded] == splits("mnist", "train").y[:1000].tolist()
    for _, events in recorded:
        assert max(events["x"].max(), events["y"].max()) <= 33 and events["t"][-1] <= 315_109


def test_training_and_test_stretches_lie_apart() -> None:
    if not present("dvs"):
        pytest.skip("no DVS128 recordings; set SNNKIT_DATA")
    counts = [201_523, 351_217, 307_531, 314_257, 126_164, 293_096, 143_655]
    parts = zip(counts, event_parts("dvs", "train"), event_parts("dvs", "test"), strict=True)
    for label, (count, (first, train), (second, test)) in enumerate(parts):
        assert first == second == label
        assert 0.5 * count < len(train) and len(train) + len(test) < 0.99 * count
        assert (np.diff(train["t"]) >= 0).all() and (np.diff(test["t"]) >= 0).all()
        length = test["t"][-1] / 0.2
        assert train["t"][-1] <= 0.75 * length * 1.01 and test["t"][0] < 100_000


def test_activity_counts_neurons_and_words(converted) -> None:
    graph = converted["nmnist"]
    x = samples("nmnist", activity.CHUNK + 7, real=False).x
    found = activity.measure(graph, x)
    result = snnkit.compile(graph, backend="reference").run(x[:9], record=("spike",))
    (outputs,) = result.outputs.values()
    assert np.array_equal(found.outputs[:9], outputs) and len(found.outputs) == len(x)
    few = activity.measure(graph, x[:9])
    for counts, units, words in zip(result.counts.values(), few.units, few.words, strict=True):
        active = [
            any(site)
            for sample in counts
            for group in zip(*[iter(sample)] * 4, strict=True)
            for site in np.reshape(group, (4, -1)).T
        ]
        assert words == pytest.approx(np.mean(active)) and units == pytest.approx(
            (counts != 0).mean()
        )
    assert few.synops == pytest.approx(sum(s.sum() for s in result.synops.values()) / 9)
    parts = [activity.measure(graph, x[:50]), activity.measure(graph, x[50:])]
    mean = np.average([p.words for p in parts], axis=0, weights=[50, len(x) - 50])
    assert np.allclose(found.words, mean)


def test_votes_stay_within_a_recording() -> None:
    outputs = np.eye(2)[[0, 0, 1, 1, 1, 0, 1]]
    labels, part = np.array([0, 0, 0, 1, 1, 1, 1]), np.array([0, 0, 0, 1, 1, 1, 1])
    assert activity.votes(outputs, labels, part, 1) == pytest.approx(5 / 7)
    assert activity.votes(outputs, labels, part, 3) == 1.0
    assert activity.votes(outputs, labels, part, 2) == pytest.approx(2 / 4)


def test_a_mosaic_shows_its_scenes_side_by_side() -> None:
    x = np.arange(4 * 2 * 3 * 5, dtype=np.float32).reshape(4, 2, 3, 5)
    (found,) = variants.mosaic(x, 2)
    rows = [np.concatenate([x[0], x[1]], -1), np.concatenate([x[2], x[3]], -1)]
    assert np.array_equal(found, np.concatenate(rows, -2))


@pytest.mark.parametrize(("width", "resolution"), [(1, 1), (2, 1), (1, 2)])
def test_variants_are_as_active_at_any_size(width: int, resolution: int) -> None:
    name = "nmnist"
    model, x = variants.variant(name, width, resolution, 16, real=False)
    assert x.shape == (16, 2, 34 * resolution, 34 * resolution)
    graph = snnkit.convert(model, x, levels=15)
    program = snnkit.compile(graph, backend="numba")
    result = program.run(x, record=("spike",))
    shapes = [(16 * width, 34), (32 * width, 17), (32 * width, 9)]
    for counts, (channels, side), share in zip(
        result.counts.values(), shapes, variants.ACTIVE[name], strict=True
    ):
        assert counts.shape[1] == channels
        assert side * resolution - resolution < counts.shape[2] <= side * resolution
        assert 1 / 1.6 < (counts != 0).mean() / share < 1.6
    silence = program.run(np.zeros_like(x[:1]), record=("spike",))
    assert not any(counts.any() for counts in silence.counts.values())


def test_the_penalty_counts_groups_and_ignores_scale() -> None:
    torch = pytest.importorskip("torch", reason="pip install -c constraints.txt 'snnkit[train]'")
    from benchmarks import train

    x = torch.zeros(1, 8, 2, 2)
    x[0, :4, 0, 0] = 1.0
    one = float(train.active_share(x))
    x[0, 4, 1, 1] = 4.0
    two = float(train.active_share(x))
    assert one == pytest.approx(1 / 8 / (1 + train.WEAK)) and two == pytest.approx(2 * one)
    assert float(train.active_share(100 * x)) == pytest.approx(two)
    assert float(train.active_share(torch.zeros(1, 8, 2, 2))) == 0


def noise(count: int) -> Split:
    """N-MNIST's shape, nothing to learn."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 3, (count, 2, 34, 34)).astype(np.uint8)
    return Split(x, np.arange(count) % 10, np.arange(count))


def test_training_keeps_silence_silent_and_the_penalty_makes_sparse() -> None:
    torch = pytest.importorskip("torch", reason="pip install -c constraints.txt 'snnkit[train]'")
    from benchmarks import train

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # small layers: more threads only wait for each other
    active = {}
    for penalty in (0.0, 20.0):
        net = train.train(WORKLOADS["nmnist"], noise(64), penalty, epochs=1, per_epoch=1280)
        with torch.no_grad():
            _, hidden = net(torch.from_numpy(noise(8).x).float())
            _, silence = net(torch.zeros(1, 2, 34, 34))
        active[penalty] = float(np.mean([float((h > 0).float().mean()) for h in hidden]))
        assert not any(bool(h.any()) for h in silence)
        biases = torch.cat([c.beta.detach() for c in net.convs])
        assert float(biases.max()) <= 0 and float(biases.min()) < 0
    torch.set_num_threads(threads)
    assert 0 < active[20.0] < 0.8 * active[0.0]


def test_folding_and_writing_keep_the_function() -> None:
    torch = pytest.importorskip("torch", reason="pip install -c constraints.txt 'snnkit[train]'")
    from benchmarks import train

    torch.manual_seed(0)
    net = train.Stack(WORKLOADS["nmnist"])
    x = torch.from_numpy(noise(8).x).float()
    with torch.no_grad():
        for conv in net.convs:
            conv.gamma.uniform_(0.5, 2)
            conv.beta.uniform_(-0.3, 0)
        for _ in range(20):
            net(x)
        before = net.eval()(x)[0].numpy()
        folded = net.fold()(x)[0].numpy()
    assert np.allclose(before, folded, atol=0.02) and np.ptp(before, axis=0).min() > 0.1
    session = ort.InferenceSession(train.written(net, WORKLOADS["nmnist"]).SerializeToString())
    (found,) = session.run(None, {"input": x.numpy()})
    assert np.allclose(found, folded, atol=1e-4)
