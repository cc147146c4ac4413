"""Data sets: what the readers give on files written here, and on damaged ones."""

from __future__ import annotations

import gzip
import random
import struct
import tarfile

import numpy as np
import pytest

from snnkit import datasets
from snnkit.datasets.arrays import Dataset
from snnkit.datasets.event_folders import EVENT, count, read_bin
from snnkit.datasets.images import read_idx
from snnkit.errors import BadDataset, UsageError
from tests import shared_data

torch = pytest.importorskip("torch", reason="torch is not installed")

from snnkit.datasets.augment import Augment, cutout, flip, mixup, shift  # noqa: E402
from snnkit.datasets.loader import Batches, Inputs, generator_of, tensor_of  # noqa: E402

RNG = np.random.default_rng(5)


def idx(array: np.ndarray) -> bytes:
    return (
        bytes((0, 0, 8, array.ndim))
        + struct.pack(f">{array.ndim}I", *array.shape)
        + array.tobytes()
    )


@pytest.fixture
def mnist(tmp_path):
    """A folder like MNIST's with other sizes; half of the files gzipped."""
    arrays = {}
    for part, n in (("train", 7), ("t10k", 4)):
        arrays[part] = RNG.integers(0, 256, (n, 5, 3), np.uint8), RNG.integers(0, 10, n, np.uint8)
        images, labels = (idx(a) for a in arrays[part])
        (tmp_path / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
        (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(labels)
    return tmp_path, arrays


def test_mnist_is_what_was_written(mnist) -> None:
    folder, arrays = mnist
    data = datasets.load("mnist", str(folder))
    assert data.x_train.shape == (7, 1, 5, 3) and data.classes == 10
    for x, y, part in (
        (data.x_train, data.y_train, "train"),
        (data.x_test, data.y_test, "t10k"),
    ):
        assert (x[:, 0] == arrays[part][0]).all() and (y == arrays[part][1]).all()
        assert x.dtype == np.uint8 and y.dtype == np.int64


def test_every_damaged_idx_file_is_named(mnist) -> None:
    folder, _ = mnist
    path = folder / "train-images-idx3-ubyte.gz"
    whole = gzip.decompress(path.read_bytes())
    huge = whole[:4] + struct.pack(">3I", 2**31, 2**31, 2**31)
    for content, words in (
        (b"", "nothing"),
        (b"\x80\x04pickle", "00 00 08 03"),
        (whole[:3] + b"\1" + whole[4:], "3 axes"),
        (whole[:9], "ends within its header"),
        (whole[:-1], "as its header says"),
        (whole + b"x", "as its header says"),
        (huge, "the limit is"),
    ):
        for packed in (content, gzip.compress(content)):
            path.write_bytes(packed)
            with pytest.raises(BadDataset, match=words) as caught:
                datasets.load("mnist", str(folder))
            assert str(path) in str(caught.value)
    packed = gzip.compress(whole)
    for damaged in (packed[:12], packed[:-3], packed[:20] + b"\0\xff\0" + packed[23:]):
        path.write_bytes(damaged)
        with pytest.raises(BadDataset, match="gzip"):
            read_idx(path, 3)
    path.unlink()
    with pytest.raises(BadDataset, match=r"no file train-images-idx3-ubyte or"):
        datasets.load("mnist", str(folder))


def test_cifar_reads_the_binary_version_only(tmp_path) -> None:
    names = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
    rows = {name: RNG.integers(0, 256, (3, 3073), np.uint8) for name in names}
    for name, row in rows.items():
        row[:, 0] %= 10
        (tmp_path / name).write_bytes(row.tobytes())
    data = datasets.load("cifar10", str(tmp_path))
    assert data.x_train.shape == (15, 3, 32, 32) and data.x_test.shape == (3, 3, 32, 32)
    third = rows["data_batch_3.bin"]
    assert (data.x_train[6:9].reshape(3, -1) == third[:, 1:]).all()
    assert (data.y_train[6:9] == third[:, 0]).all()
    assert data.x_train[6, 1, 2, 3] == third[0, 1 + 1024 + 2 * 32 + 3]  # planes, then rows
    (tmp_path / names[1]).write_bytes(rows[names[1]].tobytes()[:-1])
    with pytest.raises(BadDataset, match="9218 bytes; expected a multiple of 3073"):
        datasets.load("cifar10", str(tmp_path))
    (tmp_path / names[1]).unlink()
    (tmp_path / "data_batch_2").write_bytes(b"\x80\x04.")
    with pytest.raises(BadDataset, match="pickles can run code"):
        datasets.load("cifar10", str(tmp_path))


def test_cifar100_takes_the_fine_label(tmp_path) -> None:
    rows = RNG.integers(0, 256, (4, 3074), np.uint8)
    rows[:, 0], rows[:, 1] = 3, (99, 0, 50, 7)
    for name in ("train.bin", "test.bin"):
        (tmp_path / name).write_bytes(rows.tobytes())
    data = datasets.load("cifar100", str(tmp_path))
    assert data.y_test.tolist() == [99, 0, 50, 7] and data.classes == 100
    assert (data.x_train.reshape(4, -1) == rows[:, 2:]).all()
    rows[0, 1] = 100
    (tmp_path / "test.bin").write_bytes(rows.tobytes())
    with pytest.raises(BadDataset, match=r"labels 0\.\.100; expected 0\.\.99"):
        datasets.load("cifar100", str(tmp_path))


def test_npz_in_every_layout(tmp_path) -> None:
    x, y = RNG.integers(0, 256, (10, 4, 6, 3), np.uint8), RNG.integers(0, 3, 10)
    y[0] = 2
    mask = np.arange(10) % 3 == 0
    np.savez(tmp_path / "a.npz", x=x, y=y, mask=mask)
    data = datasets.load("npz", str(tmp_path), file="a.npz", mask="mask", channels="last")
    assert data.x_train.shape == (6, 3, 4, 6) and data.classes == 3
    assert (data.x_test == x[mask].transpose(0, 3, 1, 2)).all()
    assert (data.y_train == y[~mask]).all()
    drawn = datasets.load("npz", str(tmp_path), file="a.npz", test=0.3, seed=1, channels="none")
    assert drawn.x_train.shape == (7, 1, 4, 6, 3) and len(drawn.x_test) == 3
    again = datasets.load("npz", str(tmp_path), file="a.npz", test=0.3, seed=1, channels="none")
    other = datasets.load("npz", str(tmp_path), file="a.npz", test=0.3, seed=2, channels="none")
    assert (again.x_test == drawn.x_test).all() and (other.x_test != drawn.x_test).any()
    both = {"x": x, "y": y, "x_test": x[:2], "y_test": y[:2]}
    np.savez(tmp_path / "b.npz", **both)
    given = datasets.load("npz", str(tmp_path), file="b.npz")
    assert len(given.x_train) == 10 and (given.x_test == x[:2]).all()


def test_npz_that_cannot_be_used(tmp_path) -> None:
    path = tmp_path / "a.npz"

    def load(**options):
        return datasets.load("npz", str(tmp_path), file="a.npz", **options)

    x, y = np.zeros((4, 2)), np.zeros(4, np.int64)
    for arrays, options, words in (
        ({"x": x, "label": y}, {}, "no array 'y'; it has x, label"),
        ({"x": x, "y": y[:3]}, {}, "4 samples in 'x', 3 labels in 'y'"),
        ({"x": x, "y": y + 0.5}, {}, "one integer class per sample"),
        ({"x": x, "y": y - 1}, {}, r"labels -1\.\.-1"),
        ({"x": x, "y": y, "m": y}, {"mask": "m"}, "the mask is int64"),
        ({"x": x, "y": y, "m": y[:2] > 0}, {"mask": "m"}, r"has shape \(2,\)"),
        ({"x": x, "y": y, "m": y > 5}, {"mask": "m"}, "test part: 0 samples"),
        ({"x": np.array([{}] * 4), "y": y}, {}, "damaged, or not an .npz"),
    ):
        np.savez(path, **arrays)
        with pytest.raises(BadDataset, match=words):
            load(**options)
    np.savez(path, x=x, y=y)
    whole = path.read_bytes()
    for content in (b"", b"PK nonsense", whole[:100], whole[:-30]):
        path.write_bytes(content)
        with pytest.raises(BadDataset) as caught:
            load()
        assert str(path) in str(caught.value)
    path.unlink()
    with pytest.raises(BadDataset, match="No such file"):
        load()
    np.savez(path, x=x, y=y)
    with pytest.raises(UsageError, match="no option 'chanels'"):
        load(chanels="last")
    with pytest.raises(UsageError, match="channels 'x'"):
        load(channels="x")
    with pytest.raises(UsageError, match="unknown; expected one of digits"):
        datasets.load("imagenet", str(tmp_path))
    with pytest.raises(UsageError, match="no folder given"):
        datasets.load("mnist")


def test_digits_split_has_every_image_once() -> None:
    load_digits = pytest.importorskip("sklearn.datasets").load_digits
    data = datasets.load("digits")
    images = np.concatenate([data.x_train, data.x_test]).reshape(1797, 64)
    everything = load_digits().data.astype(np.uint8)
    assert sorted(map(bytes, images)) == sorted(map(bytes, everything))
    assert set(data.y_test) == set(range(10)) and data.x_train.max() == 16


def recording(n: int, t_max: int = 300_000) -> np.ndarray:
    events = np.empty(n, EVENT)
    events["t"] = np.sort(RNG.integers(0, t_max, n))
    events["x"], events["y"] = RNG.integers(0, 34, n), RNG.integers(0, 30, n)
    events["p"] = RNG.integers(0, 2, n)
    return events


def to_bin(events: np.ndarray) -> bytes:
    return b"".join(
        bytes((e["x"], e["y"])) + (int(e["p"]) << 23 | int(e["t"])).to_bytes(3, "big")
        for e in events
    )


def counted(events: np.ndarray, frames: int, window: int) -> np.ndarray:
    made = np.zeros((frames, 2, 30, 34), np.int64)
    for e in events:
        if e["t"] // window < frames:
            made[e["t"] // window, e["p"], e["y"], e["x"]] += 1
    return made


OPTIONS = {"size": [34, 30], "frames": 3, "window": 90_000}


def test_event_folders_by_class_and_by_labels(tmp_path) -> None:
    """Every layout of the same recordings gives the counts of a plain loop, in .bin and .npy."""
    every = [recording(200 + 10 * i) for i in range(6)]
    expected = np.stack([counted(e, 3, 90_000) for e in every])
    assert expected.sum() > 1000
    reordered = [("y", "<u2"), ("p", "?"), ("t", "<u8"), ("x", "<u2")]  # fields in another order
    for part, chosen in (("Train", range(4)), ("Test", range(4, 6))):
        for i in chosen:
            home = tmp_path / "classes" / part / str(i % 2)
            home.mkdir(parents=True, exist_ok=True)
            if i % 3 == 0:
                other = np.empty(len(every[i]), reordered)
                for name in "txyp":
                    other[name] = every[i][name]
                np.save(home / f"{i:05d}.npy", other)
            else:
                (home / f"{i:05d}.bin").write_bytes(to_bin(every[i]))
    data = datasets.load("events", str(tmp_path / "classes"), channels="polarity", **OPTIONS)
    assert data.y_train.tolist() == [0, 0, 1, 1] and data.y_test.tolist() == [0, 1]
    assert (data.x_train == expected[[0, 2, 1, 3]]).all() and (data.x_test == expected[4:]).all()
    flat = tmp_path / "flat"
    flat.mkdir()
    for i, events in enumerate(every):
        (flat / f"{i:05d}.bin").write_bytes(to_bin(events))
    rows = "".join(f"{i}\t{i % 3}\r\n" for i in range(6))
    (flat / "labels.txt").write_bytes(f"#sample\t#class\r\n{rows}".encode())
    data = datasets.load("events", str(flat), test=0.5, **OPTIONS)
    assert data.x_train.shape == (3, 6, 30, 34) and data.classes == 3
    found = {bytes(x): y for x, y in zip(data.x_train, data.y_train, strict=True)}
    found |= {bytes(x): y for x, y in zip(data.x_test, data.y_test, strict=True)}
    wanted = expected.astype(np.uint8)
    assert found == {bytes(x): i % 3 for i, x in enumerate(wanted)}


def test_counts_above_255_are_kept(tmp_path) -> None:
    events = np.zeros(300, EVENT)
    assert count(events, (34, 30), 1, 10, "here").max() == 300
    (tmp_path / "0").mkdir()
    for name in "ab":
        (tmp_path / "0" / f"{name}.bin").write_bytes(to_bin(events))
    data = datasets.load("events", str(tmp_path), test=0.5, **OPTIONS)
    assert data.x_train.max() == data.x_test.max() == 300


def test_damaged_event_folders(tmp_path) -> None:
    home = tmp_path / "0"
    home.mkdir()
    good = to_bin(recording(50))
    (home / "a.bin").write_bytes(good)

    def load(path=tmp_path, **options):
        return datasets.load("events", str(path), **{**OPTIONS, "test": 0.5, **options})

    with pytest.raises(BadDataset, match="1 recordings"):
        load()
    bad = home / "b.bin"
    outside = np.zeros(3, EVENT)
    outside["x"] = 34
    for content, words in (
        (good[:-2], "248 bytes; expected a multiple of 5"),
        (b"", "0 bytes"),
        (to_bin(outside), r"x in 34\.\.34; expected 0\.\.33"),
    ):
        bad.write_bytes(content)
        with pytest.raises(BadDataset, match=words) as caught:
            load()
        assert "b.bin" in str(caught.value)
    bad.unlink()
    np.save(home / "b.npy", np.zeros((4, 4)))
    with pytest.raises(BadDataset, match="structured array with t, x, y, p"):
        load()
    (home / "b.npy").write_bytes(b"\x93NUMPY broken")
    with pytest.raises(BadDataset, match=r"b\.npy: damaged"):
        load()
    with pytest.raises(BadDataset, match="no such folder"):
        load(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="at least 1"):
        load(frames=0)
    (home / "labels.txt").write_text("1 0\n2 x\n")
    with pytest.raises(BadDataset, match=r"line 1: there is no file 00001\.bin"):
        load(home)
    (home / "00001.bin").write_bytes(good)
    with pytest.raises(BadDataset, match="line 2: '2 x'"):
        load(home)


def test_data_sets_that_do_not_fit() -> None:
    x, y = np.zeros((3, 2)), np.zeros(3, np.int64)
    for arrays, words in (
        ((x[:0], y[:0], x, y), "0 samples"),
        ((x, y, x, y[:2]), "test part: 3 samples and labels of shape"),
        ((x, y, np.zeros((3, 5)), y), r"expected \(2,\) as in the training"),
        ((x.astype("U1"), y, x.astype("U1"), y), "samples are <U1; expected numbers"),
        ((x, y + 1, x, y), r"labels 1\.\.1; expected 0\.\.0"),
    ):
        with pytest.raises(BadDataset, match=words):
            Dataset("made", *arrays, 1)


# --- augmentations against plain loops ---------------------------------------------------------


@pytest.mark.parametrize("leading", [(2,), (3, 2)])
def test_augmentations_are_their_formulas(leading) -> None:
    n, height, width = 6, 5, 7
    x = RNG.integers(1, 256, (n, *leading, height, width)).astype(np.uint8)
    down, right = RNG.integers(-3, 4, n), RNG.integers(-3, 4, n)
    row, column = RNG.integers(0, height, n), RNG.integers(0, width, n)
    which = np.arange(n) % 2 == 0
    moved, holed = np.zeros_like(x), x.copy()
    for k in range(n):
        for i in range(height):
            for j in range(width):
                a, b = i - down[k], j - right[k]
                if 0 <= a < height and 0 <= b < width:
                    moved[k, ..., i, j] = x[k, ..., a, b]
                a, b = i - (row[k] - 3 // 2), j - (column[k] - 3 // 2)
                if 0 <= a < 3 and 0 <= b < 3:
                    holed[k, ..., i, j] = 0
    t = torch.from_numpy
    assert (shift(t(x), t(down), t(right)).numpy() == moved).all()
    assert (cutout(t(x), t(row), t(column), 3).numpy() == holed).all()
    mirrored = flip(t(x), t(which)).numpy()
    assert (mirrored[::2] == x[::2, ..., ::-1]).all() and (mirrored[1::2] == x[1::2]).all()
    a, b = (torch.rand(4, 3, generator=generator_of(s)) for s in (1, 2))
    assert torch.equal(mixup(a, b, 0.25), 0.25 * a + 0.75 * b)


def test_what_is_drawn_reaches_its_limits() -> None:
    drawn = Augment(shift=2, flip=True, cutout=3).draw(generator_of(0), 500, 8, 9)
    assert set(drawn["down"].tolist()) == set(drawn["right"].tolist()) == {-2, -1, 0, 1, 2}
    assert set(drawn["row"].tolist()) == set(range(8))
    assert set(drawn["column"].tolist()) == set(range(9))
    assert 150 < int(drawn["mirrored"].sum()) < 350


# --- batches -----------------------------------------------------------------------------------

STRONG = Augment(shift=2, flip=True, cutout=2, mixup=1.0, mixup_probability=0.7)


def batches(rank: int = 0, world: int = 1, seed: int = 3, augment: Augment = STRONG) -> Batches:
    x = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (26, 1, 6, 5)).astype(np.uint8))
    inputs = Inputs(255.0, (0.5,), (0.25,))
    return Batches(
        x, torch.arange(26), 8, seed=seed, inputs=inputs, augment=augment, rank=rank, world=world
    )


@pytest.mark.parametrize("world", [2, 4, 8])
def test_processes_share_the_batch_of_one(world) -> None:
    """Rows rank, rank + world, ... of each batch, to the bit, augmented and mixed."""
    whole, parts = batches(), [batches(rank, world) for rank in range(world)]
    shares = set()
    for step in range(9):
        one = whole.batch(step)
        shares.add(one.share)
        for rank, part in enumerate(parts):
            own = part.batch(step)
            assert torch.equal(own.x, one.x[rank::world]) and own.share == one.share
            assert torch.equal(own.y, one.y[rank::world])
            assert torch.equal(own.other, one.other[rank::world])
    assert 1.0 in shares and len(shares) > 3


def test_a_batch_depends_on_its_number_only() -> None:
    """So a run can go on anywhere in an epoch; another seed or epoch gives another order."""
    loader, steps = batches(), list(range(12))
    first = [loader.batch(step) for step in steps]
    random.Random(0).shuffle(steps)
    again = batches()
    for step in steps:
        b = again.batch(step)
        assert torch.equal(b.x, first[step].x) and torch.equal(b.y, first[step].y)
    assert not torch.equal(batches(seed=4).batch(0).y, first[0].y)
    assert loader.per_epoch == 3
    for epoch in range(3):
        seen = torch.cat([first[3 * epoch + i].y for i in range(3)]).tolist()
        assert len(set(seen)) == 24  # no sample twice in an epoch
    assert [b.y.tolist() for b in first[:3]] != [b.y.tolist() for b in first[3:6]]


def test_plain_batches_are_the_scaled_samples() -> None:
    loader = batches(augment=Augment())
    b = loader.batch(4)
    expected = (loader.x[b.y].float() / 255 - 0.5) / 0.25
    assert torch.equal(b.x, expected) and b.share == 1 and torch.equal(b.other, b.y)
    three = Inputs(mean=(1.0, 2.0, 3.0), std=(2.0,))(torch.ones(2, 3, 4, 4))
    assert three[0, :, 0, 0].tolist() == [0.0, -0.5, -1.0]
    with pytest.raises(BadDataset, match="3 values of mean; samples have 1"):
        Inputs(mean=(1.0, 2.0, 3.0))(torch.ones(2, 1, 4, 4))


def test_arrays_of_any_number_type_become_tensors() -> None:
    """Read-only, byte-swapped and wide unsigned ones too, by value and without touching them."""
    for kind in (np.uint8, np.int8, np.uint16, np.int32, ">i4", ">f4", np.float16, np.uint32, "?"):
        array = np.arange(6).astype(kind).reshape(2, 3).T
        array.flags.writeable = False
        made = tensor_of(array)
        assert (made.double().numpy() == array.astype(np.float64)).all()
        made[0, 0] = 1
        assert array[0, 0] == 0


def test_batches_that_cannot_be_made() -> None:
    x, y = torch.zeros(4, 2), torch.zeros(4, dtype=torch.int64)
    options = {"seed": 0, "inputs": Inputs(), "augment": Augment()}
    with pytest.raises(UsageError, match="batches of 5 samples; there are 4"):
        Batches(x, y, 5, **options)
    with pytest.raises(UsageError, match="cannot be shared by 2 processes"):
        Batches(x, y, 3, world=2, **options)


# --- real files, where they are ----------------------------------------------------------------


@shared_data.needed
def test_real_mnist_and_audio() -> None:
    data = datasets.load("mnist", str(shared_data.HOME / "mnist"))
    for part, x, y in (("train", data.x_train, data.y_train), ("t10k", data.x_test, data.y_test)):
        images, labels = shared_data.mnist(part)
        assert (x[:, 0] == images).all() and (y == labels).all()
    audio = datasets.load(
        "npz",
        str(shared_data.HOME / "fsdd"),
        file="fsdd_logmel_u8.npz",
        mask="is_test",
        channels="none",
    )
    assert audio.x_train.shape == (2250, 1, 64, 32) and len(audio.x_test) == 250
    assert np.bincount(audio.y_test).tolist() == [25] * 10


@shared_data.needed
def test_real_event_recordings(tmp_path) -> None:
    """The first 20 recordings of N-MNIST are those of the first 20 images of MNIST."""
    names = {f"{i:05d}.bin" for i in range(1, 21)}
    with tarfile.open(shared_data.HOME / "nmnist" / "nmnist_train_00001_01000.tar.xz") as archive:
        for member in archive:
            name = member.name.rpartition("/")[2]
            if name in names or name == "labels.txt":
                content = archive.extractfile(member).read()
                if name == "labels.txt":
                    content = b"\r\n".join(content.split(b"\r\n")[:21])
                (tmp_path / name).write_bytes(content)
    data = datasets.load("events", str(tmp_path), size=[34, 34], frames=4, window=80_000, test=0.25)
    assert data.x_train.shape == (15, 8, 34, 34)
    labels = [*data.y_train, *data.y_test]
    assert sorted(labels) == sorted(shared_data.mnist("train")[1][:20])
    total = sum(int(x.astype(np.int64).sum()) for x in (data.x_train, data.x_test))
    assert total == sum(len(read_bin(p)) for p in tmp_path.glob("*.bin")) > 50_000
