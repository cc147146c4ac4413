"""Tiny training runs for tests, and a driver that kills them.

python -m tests.training_runs kill RECIPE FOLDER SEED    one run left alone, one killed often
torchrun -m tests.training_runs share RECIPE FOLDER      what two processes do, as JSON
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

NETWORK = '''
from torch import nn


def net(width=16, norm=True):
    """Dropout draws from torch's generator, BatchNorm has buffers, one of them an integer."""
    middle = [nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.2)] if norm else [nn.ReLU()]
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), *middle, nn.Linear(width, 3))
'''

RECIPE = """
seed = 11
[data]
name = "npz"
folder = "."
divide = 255.0
options = { file = "data.npz", channels = "none" }
[model]
name = "tiny:net"
[training]
epochs = 30
batch = 16
interval = 5
threads = 1
label_smoothing = 0.1
[optimiser]
lr = 0.01
weight_decay = 0.05
clip = 1.0
[schedule]
warmup = 1
[augment]
shift = 1
flip = true
cutout = 2
mixup = 0.4
[average]
decay = 0.9
"""


def write_run(folder: Path) -> Path:
    """A recipe with its network and data: three noisy patterns, 160 images of 8x8."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 160)
    x = rng.integers(0, 256, (3, 8, 8))[y] // 2 + rng.integers(0, 128, (160, 8, 8))
    np.savez(folder / "data.npz", x=x.astype(np.uint8), y=y)
    (folder / "tiny.py").write_text(NETWORK)
    (folder / "recipe.toml").write_text(RECIPE)
    return folder / "recipe.toml"


def kill(recipe: Path, folder: Path, seed: int) -> None:
    """Forks runs: `whole` is left alone; `killed` is killed and resumed. Prints where, as JSON.

    Ten kills come from outside after a random time, ten more strike while a checkpoint is written.
    """
    import torch

    from snnkit.training import loop  # imported once, before the forks

    torch.set_num_threads(1)
    torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))]).step()  # imports a second's worth
    loop.curves = lambda lines, path: True  # matplotlib would be imported by every fork
    rng = random.Random(seed)
    start = time.monotonic()
    assert wait(fork(recipe, folder / "whole", None)) == 0
    whole = time.monotonic() - start
    found = {"outside": 0, "inside": 0, "left": 0}
    for i in range(20):
        inside = i % 2 == 1
        moment = ("half", "fsync", "replace", "after")[i // 2 % 4]
        pid = fork(recipe, folder / "killed", (rng, moment) if inside else None)
        if not inside:
            time.sleep(rng.uniform(0, whole / 8))
            os.kill(pid, signal.SIGKILL)
        if wait(pid) == -signal.SIGKILL:
            found["inside" if inside else "outside"] += 1
            found["left"] += bool(list((folder / "killed").glob(".*.pt.*")))
        rng.random()  # the forks draw from copies
    assert wait(fork(recipe, folder / "killed", None)) == 0
    print(json.dumps(found))


def fork(recipe: Path, output: Path, strike: tuple[random.Random, str] | None) -> int:
    pid = os.fork()
    if pid == 0:
        from snnkit.cli import main

        if strike is not None:
            kill_inside_writing(*strike)
        os._exit(main(["train", str(recipe), "--output", str(output), "--resume", "--json"]))
    return pid


def wait(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def kill_inside_writing(rng: random.Random, moment: str) -> None:
    """SIGKILL in one of the next three writings of a checkpoint: half written, before it is made
    to last, before it is renamed, or right after."""
    from snnkit.training import checkpoint

    left = rng.randint(1, 3)
    whole_write = checkpoint.write_beside

    def die(*arguments) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def struck(path, content: bytes) -> None:
        nonlocal left
        left -= 1
        if left == 0 and moment == "half":
            real = os.fdopen

            def half(handle, mode):
                with real(handle, mode) as file:
                    file.write(content[: len(content) // 2])
                die()

            os.fdopen = half
        elif left == 0 and moment in ("fsync", "replace"):
            setattr(os, moment, die)
        whole_write(path, content)
        if left == 0:
            die()

    checkpoint.write_beside = struck


def share(recipe_path: Path, folder: Path) -> None:
    """In each of two processes: train; train again with a stop and a resumption on the way."""
    from torch import distributed

    from snnkit.errors import TrainingFailed
    from snnkit.training import checkpoint, loop, read_recipe, train

    distributed.init_process_group("gloo")  # one group for the four runs
    rank = distributed.get_rank()
    recipe = replace(
        read_recipe(
            recipe_path, ["training.interval=15", "training.epochs=6", "training.test_batch=5"]
        ),
        output=str(folder / "whole"),
    )
    if rank:
        for module, name in ((checkpoint, "write"), (loop, "Metrics"), (loop, "curves")):
            setattr(module, name, None)  # calling it would raise: only process 0 writes
    whole = train(recipe, say=lambda text: None)
    parted = replace(recipe, output=str(folder / "parted"))
    stop_after(20)
    half = train(parted, say=lambda text: None)
    stop_after(None)
    again = train(parted, resume=True, say=lambda text: None)
    found = {"whole": whole.as_json(), "half": half.as_json(), "again": again.as_json()}
    for name in ("build", "optimiser_of"):
        real = getattr(loop, name)
        # other weights in one process: from the start, and by another learning rate
        setattr(loop, name, {"build": shifted, "optimiser_of": faster}[name](real, rank))
        try:
            train(replace(recipe, output=str(folder / name)), say=lambda text: None)
        except TrainingFailed as error:
            found[name] = str(error)
        setattr(loop, name, real)
    (folder / f"{rank}.json").write_text(json.dumps(found))
    distributed.destroy_process_group()
    # torch's own threads now and then abort the interpreter's end ("terminate called without an
    # active exception"); everything is written
    os._exit(0)


def shifted(build, rank: int):
    def other(*arguments):
        model = build(*arguments)
        for p in model.parameters():
            p.data += rank
        return model

    return other


def faster(optimiser_of, rank: int):
    def other(model, o):
        return optimiser_of(model, replace(o, betas=(0.9, 0.9)) if rank else o)

    return other


ADVANCE = "Run.advance, as it is"


def stop_after(steps: int | None) -> None:
    """Let a run see a wish to stop from step `steps` on; None: no more."""
    from snnkit.training import loop

    real = KEPT.setdefault(ADVANCE, loop.Run.advance)

    def advance(run) -> None:
        real(run)
        loop.Stop.asked = steps is not None and run.step >= steps

    loop.Stop.asked = False
    loop.Run.advance = real if steps is None else advance


KEPT: dict[str, object] = {}

if __name__ == "__main__":
    command, recipe, folder, *rest = sys.argv[1:]
    if command == "kill":
        kill(Path(recipe), Path(folder), int(rest[0]))
    else:
        share(Path(recipe), Path(folder))
