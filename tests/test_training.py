"""Training: a killed run ends in the same bits, two processes count the same, formulas hold."""

from __future__ import annotations

import json
import math
import os
import random
import resource
import signal
import subprocess
import sys
import zipfile
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from snnkit.cli import main  # noqa: E402
from snnkit.errors import (  # noqa: E402
    BadCheckpoint,
    BadRecipe,
    SnnkitError,
    TrainingFailed,
    UsageError,
)
from snnkit.training import checkpoint, loop, read_recipe, record, train, trained  # noqa: E402
from snnkit.training.processes import Processes, digest_of  # noqa: E402
from snnkit.training.recipe import Optimiser, Schedule, known_keys  # noqa: E402
from snnkit.training.schedule import (  # noqa: E402
    Average,
    learning_rate,
    mixed_loss,
    optimiser_of,
)
from tests import shared_data  # noqa: E402
from tests.training_runs import write_run  # noqa: E402

ROOT = Path(__file__).parents[1]
SHORT = ["training.epochs=2", "training.interval=5"]  # 16 steps, evaluated after 5, 10, 15, 16
CPU = Processes(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("training")
    write_run(folder)
    return folder


@pytest.fixture(autouse=True)
def no_curves(monkeypatch, request):
    """matplotlib only where a test looks at the picture."""
    if "curves" not in request.node.name:
        monkeypatch.setattr(loop, "curves", lambda lines, path: True)


def recipe_in(home: Path, output: Path, *settings: str):
    recipe = read_recipe(home / "recipe.toml", [*SHORT, *settings])
    return replace(recipe, output=str(output))


def quiet(text: str) -> None:
    pass


def same(a: object, b: object) -> bool:
    """Equal in every value, tensors bit for bit and of the same type."""
    if isinstance(a, torch.Tensor) or isinstance(b, torch.Tensor):
        return (
            a.dtype == b.dtype and a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()
        )
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return type(a) is type(b) and a == b


def assert_same_run(one: Path, other: Path) -> None:
    for name in (loop.LAST, loop.BEST):
        assert same(checkpoint.read(one / name), checkpoint.read(other / name)), name
    assert (one / loop.METRICS).read_bytes() == (other / loop.METRICS).read_bytes()


@contextmanager
def stop_after(monkeypatch, steps: int):
    """A run sees SIGINT once it has done `steps` steps."""
    real = loop.Run.advance

    def advance(run) -> None:
        real(run)
        if run.step == steps:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Run, "advance", advance)
        yield


@pytest.fixture(scope="module")
def whole(home):
    """A short run that nothing disturbs, and its result."""
    recipe = recipe_in(home, home / "whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "curves", lambda lines, path: True)
        return home / "whole", train(recipe, say=quiet)


# --- killed, stopped, damaged ------------------------------------------------------------------


def test_a_run_killed_at_any_moment_ends_in_the_same_bits(home) -> None:
    """SIGKILL twenty times, ten of them while a checkpoint is written; see `training_runs.kill`."""
    command = [sys.executable, "-m", "tests.training_runs", "kill"]
    ended = subprocess.run(
        [*command, str(home / "recipe.toml"), str(home / "kills"), "7"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    found = json.loads(ended.stdout.splitlines()[-1])
    assert found["outside"] >= 8 and found["inside"] >= 8 and found["left"] >= 4, found
    assert_same_run(home / "kills" / "whole", home / "kills" / "killed")
    left = [p.name for p in (home / "kills" / "killed").iterdir() if p.name.startswith(".")]
    assert not left  # what a killed writing left is swept up
    lines = (home / "kills" / "whole" / loop.METRICS).read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(5, 241, 5))
    assert json.loads(lines[-1])["accuracy"] > 0.6  # it learns: chance is 0.33


@pytest.mark.parametrize("steps", [3, 10, 12])
def test_ctrl_c_writes_a_checkpoint_and_says_how_to_go_on(
    home, whole, tmp_path, monkeypatch, capsys, steps
) -> None:
    """Before the first evaluation, at one, and between two."""
    output = tmp_path / "run"
    command = ["train", str(home / "recipe.toml"), "--output", str(output)]
    for setting in SHORT:
        command += ["--set", setting]
    with stop_after(monkeypatch, steps):
        assert main(command) == 130
    captured = capsys.readouterr()
    assert "--resume" in captured.err and f"{steps} of 16 steps" in captured.out
    assert checkpoint.read(output / loop.LAST)["step"] == steps
    assert main(command) == 2 and "holds a run already" in capsys.readouterr().err
    assert main([*command, "--resume", "--json"]) == 0
    captured = capsys.readouterr()
    printed = json.loads(captured.out)
    assert printed["digest"] == whole[1].digest and printed["finished"]
    assert f"going on at step {steps}" in captured.err
    assert_same_run(output, whole[0])
    assert main([*command, "--resume", "--json"]) == 0  # a finished run only reports
    assert json.loads(capsys.readouterr().out) == printed


def test_a_second_ctrl_c_ends_at_once(home, tmp_path, monkeypatch) -> None:
    real = loop.Run.advance

    def advance(run) -> None:
        real(run)
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(loop.Run, "advance", advance)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(recipe_in(home, tmp_path), say=quiet)
    assert signal.getsignal(signal.SIGINT) is before
    assert not torch.are_deterministic_algorithms_enabled()


def damages(path: Path) -> dict[str, bytes]:
    """Contents of a checkpoint file that must be refused, by kind."""
    whole = path.read_bytes()
    made = {"empty": b"", "text": b"not a checkpoint", "tail lost": whole[:-1]}
    made |= {f"{cut} of 8": whole[: len(whole) * cut // 8] for cut in range(1, 8)}
    content = checkpoint.read(path)

    def saved(value: object) -> bytes:
        torch.save(value, path)
        return path.read_bytes()

    made["foreign dict"] = saved({"weight": torch.zeros(3)})
    made["foreign list"] = saved([1, 2])
    made["other format"] = saved({**content, "format": "snnkit checkpoint 0"})
    for key in checkpoint.KEYS:
        made[f"no {key}"] = saved({k: v for k, v in content.items() if k != key})
    for key in ("optimiser", "processes", "best"):
        made[f"hollow {key}"] = saved(
            {**content, key: type(content[key])([{}] if key == "processes" else ())}
        )
    made["wrong type"] = saved({**content, "step": "5"})
    arrays = path.with_name("arrays.npz")
    np.savez(arrays, x=np.zeros(3))
    made["npz"] = arrays.read_bytes()
    path.write_bytes(whole)
    return made


class RunsCode:
    def __reduce__(self):
        return (os.system, ("touch was_run",))


def test_damaged_and_foreign_checkpoints_are_named(home, whole, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = recipe_in(home, tmp_path / "run")
    (tmp_path / "run").mkdir()
    last = tmp_path / "run" / loop.LAST
    last.write_bytes((whole[0] / loop.LAST).read_bytes())
    made = damages(last)
    assert len(made) > 20
    torch.save({"format": RunsCode()}, last)
    made["runs code"] = last.read_bytes()
    for kind, content in made.items():
        last.write_bytes(content)
        with pytest.raises(BadCheckpoint) as caught:
            train(recipe, resume=True, say=quiet)
        assert str(last) in str(caught.value), kind
        assert last.read_bytes() == content  # never written over
    assert not (tmp_path / "was_run").exists()
    last.unlink()
    last.mkdir()
    with pytest.raises(BadCheckpoint, match="cannot be read"):
        train(recipe, resume=True, say=quiet)


def test_no_flipped_byte_goes_unseen(whole, tmp_path) -> None:
    """Any single byte changed: the checkpoint is refused, or holds the same values."""
    good = (whole[0] / loop.LAST).read_bytes()
    content, path, rng = (
        checkpoint.read(whole[0] / loop.LAST),
        tmp_path / "last.pt",
        random.Random(3),
    )
    with zipfile.ZipFile(whole[0] / loop.LAST) as archive:
        starts = [i.header_offset for i in archive.infolist()]
    places = [*rng.sample(range(len(good)), 150), *(s + rng.randrange(60) for s in starts)]
    refused = 0
    for place in places:
        path.write_bytes(
            good[:place] + bytes((good[place] ^ rng.randrange(1, 256),)) + good[place + 1 :]
        )
        try:
            assert same(checkpoint.read(path), content), place
        except BadCheckpoint:
            refused += 1
    assert refused > len(places) // 3


def test_another_recipe_or_model_is_refused(home, whole, tmp_path, monkeypatch, capsys) -> None:
    output, _ = whole
    with pytest.raises(BadCheckpoint, match=r"'optimiser\.lr' was 0\.01, now 0\.02") as caught:
        train(recipe_in(home, output, "optimiser.lr=0.02"), resume=True, say=quiet)
    assert str(output / loop.LAST) in str(caught.value)
    with pytest.raises(BadCheckpoint, match=r"model\.options\.width' was None, now 8"):
        train(recipe_in(home, output, "model.options.width=8"), resume=True, say=quiet)
    with pytest.raises(BadCheckpoint, match="by 1 processes; there are 3 now"):
        content = checkpoint.read(output / loop.LAST)
        checkpoint.check_same_run(content, content["recipe"], 3, output / loop.LAST)
    write_run(tmp_path)  # the same recipe, but tiny.py makes another model
    text = (tmp_path / "tiny.py").read_text()
    (tmp_path / "tiny.py").write_text(text.replace("width=16", "width=12"))
    other = recipe_in(tmp_path, output)
    with pytest.raises(
        BadCheckpoint, match=r"'1\.weight' has shape \(16, 64\), in this model \(12"
    ):
        train(other, resume=True, say=quiet)
    arguments = ["train", str(tmp_path / "recipe.toml"), "--output", str(output), "--resume"]
    assert main([*arguments, "--set", SHORT[0], "--set", SHORT[1], "--json"]) == 3
    captured = capsys.readouterr()
    assert json.loads(captured.out)["error"] == "BadCheckpoint"
    assert "Traceback" not in captured.err


@contextmanager
def files_up_to(size: int):
    """The kernel refuses to let a file grow beyond `size` bytes, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("what", ["checkpoint", "metrics"])
def test_nothing_is_half_written_on_a_full_disk(home, whole, tmp_path, monkeypatch, what) -> None:
    recipe = recipe_in(home, tmp_path)
    with stop_after(monkeypatch, 7):
        train(recipe, say=quiet)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    sizes = {"checkpoint": len(before[loop.LAST]) // 2, "metrics": len(before[loop.METRICS]) + 20}
    with files_up_to(sizes[what]), pytest.raises(SnnkitError, match="cannot be written"):
        train(recipe, resume=True, say=quiet)
    after = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    lines = after.pop(loop.METRICS)
    assert lines.endswith(b"}\n") and all(json.loads(line) for line in lines.splitlines())
    if what == "metrics":
        assert lines == before[loop.METRICS]
    assert after == {k: v for k, v in before.items() if k != loop.METRICS}
    train(recipe, resume=True, say=quiet)
    assert_same_run(tmp_path, whole[0])


def test_metrics_are_cut_back_to_the_checkpoint(home, whole, tmp_path, monkeypatch) -> None:
    """A line written after the last checkpoint, half a line, or none at all."""
    recipe = recipe_in(home, tmp_path)
    with stop_after(monkeypatch, 11):
        train(recipe, say=quiet)
    lines = (tmp_path / loop.METRICS).read_bytes()
    saved = (tmp_path / loop.LAST).read_bytes()
    for damaged in (lines + b'{"step": 15}\n', lines + b'{"st', lines[:-30], b""):
        (tmp_path / loop.LAST).write_bytes(saved)
        (tmp_path / loop.METRICS).write_bytes(damaged)
        train(recipe, resume=True, say=quiet)
        assert_same_run(tmp_path, whole[0])
    (tmp_path / loop.LAST).write_bytes(saved)
    (tmp_path / loop.METRICS).unlink()
    train(recipe, resume=True, say=quiet)
    assert_same_run(tmp_path, whole[0])


def test_a_loss_that_is_not_finite_leaves_the_checkpoint(home, tmp_path, monkeypatch) -> None:
    recipe = recipe_in(home, tmp_path)
    with stop_after(monkeypatch, 6):
        train(recipe, say=quiet)
    before = (tmp_path / loop.LAST).read_bytes()
    monkeypatch.setattr(loop, "mixed_loss", lambda logits, *rest: logits.sum() * math.nan)
    with pytest.raises(TrainingFailed, match="loss is nan before step 10"):
        train(recipe, resume=True, say=quiet)
    assert (tmp_path / loop.LAST).read_bytes() == before


# --- several processes -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shared(home, tmp_path_factory):
    """What two processes said of their runs; see `training_runs.share`."""
    folder = tmp_path_factory.mktemp("shared")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    script = ["--nproc_per_node", "2", "-m", "tests.training_runs", "share"]
    ended = subprocess.run(
        [*torchrun, *script, str(home / "recipe.toml"), str(folder)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    return folder, [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


def test_two_processes_hold_the_same_weights_and_resume_exactly(shared) -> None:
    folder, (one, two) = shared
    assert one["whole"]["digest"] == two["whole"]["digest"]
    assert one["half"]["step"] == 20 and not one["half"]["finished"]  # between two evaluations
    assert one["again"]["digest"] == two["again"]["digest"] == one["whole"]["digest"]
    assert_same_run(folder / "whole", folder / "parted")
    for found in (one, two):
        for kind in ("build", "optimiser_of"):
            assert "process 0: " in found[kind] and "hold different weights" in found[kind]
    assert not (folder / "build" / loop.LAST).exists()  # seen before the first step


@pytest.fixture
def one_thread():
    """As many threads as each of two processes has: the order of a float sum depends on it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_evaluation_does_not_depend_on_the_number_of_processes(home, shared, one_thread) -> None:
    """The weights of two processes, evaluated by one: the same counts and the very same loss."""
    folder, _ = shared
    content = checkpoint.read(folder / "whole" / loop.LAST)
    metrics = json.loads(content["metrics"][-1])
    run = loop.Run(recipe_in(home, home, "training.test_batch=5"), CPU)
    checkpoint.load_model(run.average.model, content["average"], folder)
    correct, loss = run.test_part(run.average.model)
    assert (correct, loss) == (metrics["correct"], metrics["test_loss"]) and 0 < correct < 32
    for world in (2, 3):  # seven batches, shared out
        parts = []
        for rank in range(world):
            run.here = Alone(rank, world, torch.device("cpu"))
            run.test_part(run.average.model)
            parts.append(run.here.sums.pop())
        assert all((p != 0).any() for p in parts)
        whole = torch.stack(parts).sum(0)
        found = int(whole[:, 0].sum()), sum(whole[:, 1].tolist()) / 32
        assert found == (correct, loss)


class Alone(Processes):
    """A process that pretends to have others, and notes what it would add to theirs."""

    sums: list = []

    def sum(self, values):
        self.sums.append(values.clone())
        return values


def test_gradients_of_two_processes_are_those_of_one(home, shared, tmp_path) -> None:
    """Without dropout, BatchNorm and mixup, two half batches are the whole batch up to rounding."""
    settings = ["model.options.norm=false", "training.epochs=2", "training.threads=1"]
    one = train(recipe_in(home, tmp_path / "one", *settings), say=quiet)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = ["--nproc_per_node", "2", "-m", "snnkit.cli", "train", str(home / "recipe.toml")]
    options = [word for s in [*SHORT, *settings] for word in ("--set", s)]
    ended = subprocess.run(
        [*torchrun, *command, *options, "--output", str(tmp_path / "two"), "--json"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    two = json.loads(ended.stdout)  # one document: only process 0 prints
    assert ended.stderr.count("training tiny:net") == 1
    a, b = (checkpoint.read(tmp_path / name / loop.LAST)["model"] for name in ("one", "two"))
    moved = checkpoint.read(shared[0] / "whole" / loop.LAST)["model"]
    for name, weights in a.items():
        torch.testing.assert_close(weights, b[name], rtol=2e-4, atol=2e-5)
    assert (a["1.weight"] - moved["1.weight"]).abs().max() > 1e-2  # the bound means something
    assert (one.correct, one.total) == (two["correct"], two["total"])


# --- formulas ----------------------------------------------------------------------------------


def test_schedule_is_its_formula() -> None:
    """Warm-up by hand, the cosine against torch's own scheduler."""
    s = Schedule(warmup=2, start=0.1, end=0.01)
    rates = [learning_rate(s, 0.5, step, 60, 5) for step in range(60)]
    assert rates[:10] == pytest.approx([0.1 + 0.04 * k for k in range(10)])
    weight = torch.nn.Parameter(torch.zeros(1))
    sgd = torch.optim.SGD([weight], 0.5)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, 50, 0.01)
    for rate in rates[10:]:
        assert rate == pytest.approx(sgd.param_groups[0]["lr"], rel=1e-9)
        sgd.step()
        cosine.step()
    assert learning_rate(Schedule(), 0.5, 0, 7, 7) == 0.5
    assert learning_rate(Schedule(warmup=9), 1.0, 3, 4, 1) == pytest.approx(1 / 3)


def test_loss_is_cross_entropy_with_soft_targets() -> None:
    rng = np.random.default_rng(2)
    logits = rng.normal(size=(6, 4))
    y, other, share, smoothing = rng.integers(0, 4, 6), rng.integers(0, 4, 6), 0.3, 0.2
    target = share * np.eye(4)[y] + (1 - share) * np.eye(4)[other]
    target = (1 - smoothing) * target + smoothing / 4
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    expected = -(target * log_p).sum(1).mean()
    t = torch.from_numpy
    found = mixed_loss(t(logits), t(y), t(other), share, smoothing)
    assert float(found) == pytest.approx(expected, rel=1e-6)
    plain = mixed_loss(t(logits), t(y), t(other), 1.0, 0.0)
    assert float(plain) == pytest.approx(-log_p[np.arange(6), y].mean(), rel=1e-6)


def test_average_is_its_formula() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2)).double()
    average = Average(model, 0.7)
    expected = {k: v.clone().numpy() for k, v in model.state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    for n in range(12):
        model(torch.rand(4, 3, generator=generator, dtype=torch.float64))
        with torch.no_grad():
            for p in model.parameters():
                p += torch.rand(p.shape, generator=generator, dtype=p.dtype)
        average.update(model, n)
        d = min(0.7, (1 + n) / (10 + n))
        for k, v in model.state_dict().items():
            if v.is_floating_point():
                expected[k] = d * expected[k] + (1 - d) * v.numpy()
            else:
                expected[k] = v.numpy().copy()
    for k, v in average.model.state_dict().items():
        np.testing.assert_allclose(v.numpy(), expected[k], rtol=1e-12)
    assert expected["1.num_batches_tracked"] == 12 and not average.model.training
    assert all(not p.requires_grad for p in average.model.parameters())


def test_average_is_what_is_evaluated_and_taken_over(home, whole, tmp_path) -> None:
    """The metrics are those of the average; model.weights starts another run from it."""
    output, result = whole
    content = checkpoint.read(output / loop.LAST)
    assert any((content["average"][k] != content["model"][k]).any() for k in content["model"])
    path = os.path.relpath(output / loop.LAST, home)
    run = loop.Run(recipe_in(home, tmp_path, f"model.weights={path}"), CPU)
    assert same(dict(run.model.state_dict()), content["average"])
    metrics = json.loads(content["metrics"][-1])
    assert run.test_part(run.model) == (result.correct, metrics["test_loss"])
    torch.save(content["model"], home / "state.pt")
    run = loop.Run(recipe_in(home, tmp_path, "model.weights=state.pt"), CPU)
    assert same(dict(run.model.state_dict()), content["model"])
    with pytest.raises(BadCheckpoint, match="does not fit the model"):
        loop.Run(recipe_in(home, tmp_path, f"model.weights={path}", "model.options.width=8"), CPU)


def test_weight_decay_spares_vectors_and_gradients_are_clipped(home, tmp_path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    groups = optimiser_of(model, Optimiser(weight_decay=0.5)).param_groups
    assert [(g["weight_decay"], [p.ndim for p in g["params"]]) for g in groups] == [
        (0.5, [2]),
        (0.0, [1, 1, 1]),
    ]
    every = optimiser_of(model, Optimiser("sgd", weight_decay=0.5, decay_vectors=True)).param_groups
    assert [(g["weight_decay"], len(g["params"])) for g in every] == [(0.5, 4)]
    settings = ["optimiser.name=sgd", "optimiser.lr=1.0", "optimiser.momentum=0.0"]
    steps = ["schedule.warmup=0", "optimiser.weight_decay=0.0"]
    for clip, bounded in ((1e-3, True), (0.0, False)):
        recipe = recipe_in(home, tmp_path, *settings, *steps, f"optimiser.clip={clip}")
        run = loop.Run(recipe, CPU)
        before = [p.detach().clone() for p in run.model.parameters()]
        run.advance()
        moved = [p.detach() - b for p, b in zip(run.model.parameters(), before, strict=True)]
        norm = float(torch.sqrt(sum((m**2).sum() for m in moved)))
        assert (norm == pytest.approx(1e-3, rel=1e-3)) is bounded, norm


def test_neurons_forget_between_batches_and_stay_in_bounds(home, tmp_path, monkeypatch) -> None:
    """`reset` before every batch, `clamp` after every step: what snnkit.nn's neurons offer."""
    calls = []

    class Neuron(torch.nn.Linear):
        def reset(self):
            calls.append("reset")
            self.v = None

        def clamp(self):
            calls.append("clamp")

        def forward(self, x):
            assert self.v is None
            self.v = super().forward(x.flatten(1))
            calls.append("forward")
            return self.v

    neuron = Neuron(64, 3)
    neuron.v = None
    monkeypatch.setattr(loop, "build", lambda recipe, examples: neuron)
    train(recipe_in(home, tmp_path, "average.decay=0.0"), say=quiet)
    trained = [c for c in calls if c != "reset"]
    assert trained.count("clamp") == 16 and trained.count("forward") == 1 + 16 + 4
    for i, call in enumerate(calls):
        if call == "forward" and i:  # the first is a trial of a fresh model
            assert calls[i - 1] == "reset"


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_mixed_precision_learns_and_resumes(home, tmp_path, monkeypatch, precision) -> None:
    """float16 scales its loss; the scale is in the checkpoint."""
    settings = [f"training.precision={precision}", "training.epochs=4"]
    one = train(recipe_in(home, tmp_path / "one", *settings), say=quiet)
    parted = recipe_in(home, tmp_path / "two", *settings)
    with stop_after(monkeypatch, 13):
        train(parted, say=quiet)
    assert train(parted, resume=True, say=quiet).digest == one.digest
    assert_same_run(tmp_path / "one", tmp_path / "two")
    content = checkpoint.read(tmp_path / "two" / loop.LAST)
    assert bool(content["scaler"]) is (precision == "float16")
    single = train(recipe_in(home, tmp_path / "three", settings[1]), say=quiet)
    assert single.digest != one.digest


def test_seeds_decide(home, whole, tmp_path) -> None:
    again = train(recipe_in(home, tmp_path / "a"), say=quiet)
    other = train(recipe_in(home, tmp_path / "b", "seed=12"), say=quiet)
    assert again.digest == whole[1].digest != other.digest
    assert_same_run(tmp_path / "a", whole[0])


# --- recipes and what a person sees ------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("lr = 0.01", "learning_rate = 0.01"), "unknown key 'optimiser.learning_rate'; did you"),
        (("epochs", "epoch"), "unknown key 'training.epoch'; did you mean 'training.epochs'?"),
        (("[augment]", "[augmentation]"), "unknown key 'augmentation'; did you mean 'augment'?"),
        (("mixup = 0.4", "mix_up = 0.4"), "did you mean 'augment.mixup'?"),
        (("decay = 0.9", "dekay = 0.9"), "'average.dekay'; did you mean 'average.decay'?"),
        (("batch = 16", 'batch = "16"'), "'training.batch' is '16'; expected an integer"),
        (("batch = 16", "batch = true"), "'training.batch' is True; expected an integer"),
        (("batch = 16", "batch = 0"), "'training.batch' is 0; expected at least 1"),
        (("lr = 0.01", "lr = nan"), "'optimiser.lr' is nan; expected a finite number"),
        (("lr = 0.01", "lr = 0"), "'optimiser.lr' is 0.0; expected above 0"),
        (("flip = true", "flip = 1"), "'augment.flip' is 1; expected true or false"),
        (("decay = 0.9", "decay = 1.5"), "'average.decay' is 1.5; expected at most 1"),
        (("lr = 0.01", 'name = "adam"'), "is 'adam'; expected one of sgd, adamw"),
        (("epochs = 30\n", ""), "no key 'training.epochs'; it has no default"),
        (("[average]\ndecay = 0.9", "average = 3"), "unknown key 'augment.average'"),
        (("seed = 11", "seed = "), "not TOML"),
        (("divide = 255.0", "std = [1, 0]"), "'data.std' is 0.0; expected above 0"),
        (("divide = 255.0", "std = 1"), "'data.std' is 1; expected a list of numbers"),
        (('"npz"', '"nzp"'), "data set 'nzp': unknown; expected one of digits"),
        (("channels =", "chanels ="), "data set 'npz': no option 'chanels'"),
        (("tiny:net", "tiny:network"), "has no function 'network'; did you mean 'net'?"),
        (("tiny:net", "tinny:net"), "no installed module 'tinny'"),
        (('"tiny:net"', '"tiny:net"\noptions = { widht = 3 }'), "'widht'; did you mean 'width'?"),
        (('"tiny:net"', '"tiny:net"\noptions = { width = -3 }'), "cannot be made with these"),
        (('"none"', '"first"'), "no error"),
        (('"none"', '"last"'), "no error"),
        (("batch = 16", "batch = 999"), "batches of 999 samples; there are 128"),
        (("threads = 1", 'device = "abacus"'), "torch knows no such device"),
    ],
)
def test_a_recipe_that_cannot_be_taken(home, tmp_path, change, words, capsys) -> None:
    write_run(tmp_path)
    text = (tmp_path / "recipe.toml").read_text()
    assert change[0] in text
    (tmp_path / "recipe.toml").write_text(text.replace(*change))
    options = [w for s in SHORT[1:] for w in ("--set", s)]
    output = tmp_path / "run"
    code = main(["train", str(tmp_path / "recipe.toml"), "--output", str(output), *options])
    message = capsys.readouterr().err
    if words == "no error":
        assert code == 0, message
        return
    assert code == 2, message
    assert words in message and "Traceback" not in message
    assert not output.exists()


def test_the_nearest_key_for_every_known_one(home) -> None:
    """A letter lost from any key leads back to it, unless what is left is a key too."""
    keys, checked = list(known_keys()), 0
    for key in keys:
        table, _, last = key.rpartition(".")
        wrong = f"{table}.{last[:-1]}".lstrip(".")
        if len(last) < 4 or wrong in keys or key in ("data", "model", "training"):
            continue
        with pytest.raises(BadRecipe) as caught:
            read_recipe(home / "recipe.toml", [f"{wrong}=1"])
        assert f"'{wrong}'; did you mean '{key}'?" in str(caught.value)
        checked += 1
    assert checked > 30


def test_settings_go_over_the_file(home, tmp_path) -> None:
    recipe = read_recipe(
        home / "recipe.toml",
        ["optimiser.lr=3", "augment.flip=false", "model.name=a:b", "data.std=[2]", "output=x y"],
    )
    assert recipe.optimiser.lr == 3.0 and recipe.augment.flip is False
    assert recipe.model.name == "a:b" and recipe.data.std == (2.0,) and recipe.output == "x y"
    for bad in ("lr", "=3", "seed.a=1"):
        with pytest.raises(BadRecipe, match="--set"):
            read_recipe(home / "recipe.toml", [bad])
    with pytest.raises(BadRecipe, match="cannot be read"):
        read_recipe(tmp_path / "none.toml")


def test_models_that_give_no_logits(home, tmp_path) -> None:
    write_run(tmp_path)
    for body, words in (
        ("return nn.Linear(3, 3)", r"fails on an input of shape \(1, 1, 8, 8\)"),
        ("return nn.Identity()", r"gives \(1, 1, 8, 8\) for 1 sample; expected \(1, 3\)"),
        ("return nn.Sequential(nn.Flatten(), nn.Linear(64, 2))", r"expected \(1, 3\)"),
        ("return 3", "made int; expected a torch module"),
    ):
        (tmp_path / "tiny.py").write_text(f"from torch import nn\ndef net():\n    {body}\n")
        with pytest.raises(BadRecipe, match=words):
            train(recipe_in(tmp_path, tmp_path / "run"), say=quiet)


def test_curves_and_a_plain_line_for_each_evaluation(home, tmp_path, capsys) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    lines: list[str] = []
    train(recipe_in(home, tmp_path), say=lines.append)
    picture = (tmp_path / loop.CURVES).read_bytes()
    assert picture.startswith(b"\x89PNG") and len(picture) > 5000
    shown = [line for line in lines if line.startswith("step ")]
    assert len(shown) == 4 and shown[-1].startswith("step 16/16, epoch 2: loss ")
    assert lines[0].startswith("training tiny:net (1,123 parameters) on ")
    assert not record.curves([], tmp_path / "none.png")


def test_the_result_does_not_depend_on_the_order_of_names() -> None:
    a = torch.nn.Linear(2, 2)
    assert digest_of(a) != digest_of(torch.nn.Linear(2, 2)) and digest_of(a) == digest_of(a)
    assert digest_of(a, a) != digest_of(a)


def test_help_of_train_imports_nothing_heavy() -> None:
    code = (
        "import sys; from snnkit.cli import main\n"
        "try: main(['train', '--help'])\n"
        "except SystemExit: pass\n"
        "print([m for m in ('torch', 'numpy', 'numba', 'onnx') if m in sys.modules])"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert ended.stdout.endswith("[]\n") and "--resume" in ended.stdout


# --- recipes that ship -------------------------------------------------------------------------

RECIPES = sorted((ROOT / "examples" / "recipes").glob("*.toml"))


def test_every_recipe_reads() -> None:
    assert len(RECIPES) >= 4
    for path in RECIPES:
        assert read_recipe(path).output.startswith("runs/")


def test_the_digits_recipe_learns_and_its_network_spikes(tmp_path, capsys) -> None:
    """Recipe, checkpoint, converted network: as accurate, and no neuron differs."""
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    import snnkit
    from snnkit.datasets import load

    path = str(ROOT / "examples" / "recipes" / "digits.toml")
    code = main(["train", path, "--output", str(tmp_path), "--json", "--set", "training.epochs=10"])
    assert code == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["accuracy"] > 0.95
    recipe = replace(read_recipe(path, ["training.epochs=10"]), output=str(tmp_path))
    model, data = trained(recipe), load("digits")
    x, held = ((a / 16).astype(np.float32) for a in (data.x_train, data.x_test))
    with torch.no_grad():
        right = int((model(torch.from_numpy(held)).argmax(1).numpy() == data.y_test).sum())
    assert right == printed["best_correct"]
    graph = snnkit.convert(model, calibration=x[:300], levels=31)
    certificate = snnkit.verify(
        graph, samples=held[:20], backends=("reference",), modes=("settle",)
    )
    assert certificate.passed and certificate.neurons_compared > 20 * 300
    outputs = snnkit.compile(graph, backend="reference").run(held).outputs
    spiking = int((next(iter(outputs.values())).argmax(1) == data.y_test).sum())
    assert spiking > right - 10
    with pytest.raises(BadCheckpoint, match="was 10, now 30"):
        trained(replace(read_recipe(path), output=str(tmp_path)))


@shared_data.needed
def test_the_mnist_recipe_learns_in_a_few_steps(tmp_path) -> None:
    """A tenth of an epoch on the real files."""
    path = ROOT / "examples" / "recipes" / "mnist.toml"
    settings = [f"data.folder={shared_data.HOME / 'mnist'}", "schedule.warmup=0"]
    recipe = replace(read_recipe(path, settings), output=str(tmp_path))
    run = loop.Run(replace(recipe, training=replace(recipe.training, threads=1)), CPU)
    for _ in range(47):
        run.advance()
    assert run.test_part(run.model)[0] > 9000
    with pytest.raises(UsageError, match="no folder given"):
        train(replace(recipe, data=replace(recipe.data, folder="")), say=quiet)
