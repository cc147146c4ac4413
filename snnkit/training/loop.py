"""The loop: `train(recipe)`, top to bottom.

A run is a function of its recipe. Batches, augmentations and the learning rate of step k depend on
the recipe and k only; the weights, the optimiser, and the global random generators (which a model's
dropout draws from) are in the checkpoint. So a run that was killed goes on from its last
checkpoint to the same bits as a run that was not.
"""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from snnkit import datasets
from snnkit.datasets.augment import Augment
from snnkit.datasets.loader import Batches, Inputs, seed_of, tensor_of
from snnkit.errors import BadCheckpoint, TrainingFailed, UsageError
from snnkit.training import checkpoint
from snnkit.training.conditions import Stop, exact, seed_all
from snnkit.training.factory import build, try_out
from snnkit.training.processes import Processes, digest_of, processes
from snnkit.training.recipe import Recipe
from snnkit.training.record import Board, Metrics, Progress, Say, curves, to_stderr
from snnkit.training.result import Result
from snnkit.training.schedule import Average, learning_rate, mixed_loss, optimiser_of

LAST, BEST, METRICS, CURVES = "last.pt", "best.pt", "metrics.jsonl", "curves.png"
EXAMPLES = 512
"""Training samples that quantisation-aware training takes its first step sizes from."""
PRECISIONS = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def train(recipe: Recipe, *, resume: bool = False, say: Say = to_stderr) -> Result:
    """Train the recipe's model; writes last.pt, best.pt, metrics.jsonl, curves.png in its output.

    resume : go on from last.pt in the output folder (from the start if there is none yet).
    SIGINT or SIGTERM ends the run after the step under way, with a checkpoint; a second SIGINT
    ends it at once. Raises BadRecipe, BadDataset, BadCheckpoint, TrainingFailed, UsageError.
    """
    with processes(recipe.training.device) as here, exact(recipe), Stop() as stop:
        try:
            return _train(recipe, here, stop, resume, say)
        except torch.OutOfMemoryError as error:
            raise TrainingFailed(f"out of memory on {here.device}: lower training.batch") from error
        except RuntimeError as error:
            if here.world > 1 and any(word in str(error).lower() for word in ("gloo", "nccl")):
                raise TrainingFailed(
                    f"process {here.rank} lost another process of the run: {error}; go on from the "
                    "last checkpoint with --resume"
                ) from error
            if "use_deterministic_algorithms" not in str(error):
                raise
            raise UsageError(
                f"{str(error).splitlines()[0]} Set training.deterministic = false to allow it"
            ) from error


def trained(recipe: Recipe, name: str = BEST) -> Any:
    """The trained model, in evaluation mode, from a checkpoint in the recipe's output folder.

    Its weights are the moving average if the recipe has one. Raises BadCheckpoint.
    """
    path = Path(recipe.output) / name
    content = checkpoint.read(path)
    checkpoint.check_same_run(content, recipe.identity(), len(content["processes"]), path)
    with processes("cpu") as here, exact(recipe):
        model = Run(replace(recipe, training=replace(recipe.training, device="cpu")), here).model
    checkpoint.load_model(model, content["average"] or content["model"], path)
    return model.eval()


def _train(recipe: Recipe, here: Processes, stop: Stop, resume: bool, say: Say) -> Result:
    run, folder = Run(recipe, here), Path(recipe.output)
    _open(folder, resume, here)
    lines = run.restore(folder / LAST) if resume and (folder / LAST).exists() else []
    here.agree(run.model)
    if here.writes:
        say(run.describe(folder))
    metrics = Metrics(folder / METRICS, lines) if here.writes else None
    board = Board(folder / "tensorboard", run.step) if here.writes else None
    progress = Progress(say, run.total, run.step, here.writes)
    try:
        while run.step < run.total:
            run.advance()
            progress.step()
            due = run.step % run.interval == 0 or run.step == run.total
            # processes can only stop together, and asking each other costs time
            asked = run.step % (1 if here.world == 1 else 10) == 0 and here.any(stop.asked)
            if due:
                values = run.evaluate()
                progress.line(_line(values, run))
                if metrics is not None and board is not None:
                    metrics.append(values)
                    board.add(values)
            if due or asked:
                content = run.capture(metrics.lines if metrics else [])
                if here.writes and due and run.best["step"] == run.step:
                    checkpoint.write(folder / BEST, content)
                if here.writes:
                    checkpoint.write(folder / LAST, content)
            if asked:
                break
    finally:
        progress.close()
        if board is not None:
            board.close()
    if metrics is not None and not curves(metrics.lines, folder / CURVES):
        say("no learning curves: matplotlib is not installed, or nothing was evaluated")
    return run.result(folder)


class Run:
    """Data, model and optimiser of a run, and how far it has come."""

    def __init__(self, recipe: Recipe, here: Processes):
        t = recipe.training
        self.recipe, self.here = recipe, here
        data = recipe.data
        found = datasets.load(
            data.name, str(recipe.path(data.folder)) if data.folder else None, **data.options
        )
        self.name = found.name
        self.inputs = Inputs(data.divide, data.mean, data.std)
        self.test = tensor_of(found.x_test), tensor_of(found.y_test)
        self.batches = Batches(
            tensor_of(found.x_train),
            tensor_of(found.y_train),
            t.batch,
            seed=recipe.seed,
            inputs=self.inputs,
            augment=Augment(**asdict(recipe.augment)),
            rank=here.rank,
            world=here.world,
        )
        self.total = t.epochs * self.batches.per_epoch
        self.interval = t.interval or self.batches.per_epoch
        model = build(recipe, self.inputs(self.batches.x[:EXAMPLES]))
        try_out(model, self.inputs(self.test[0][:1]), found.classes, recipe.model.name)
        self.model = model.to(here.device)
        self.compiled = torch.compile(self.model) if t.compile else self.model
        decay = recipe.average.decay
        self.average = Average(self.model, decay) if decay else None
        self.optimiser = optimiser_of(self.model, recipe.optimiser)
        self.scaler = torch.amp.GradScaler(here.device.type, enabled=t.precision == "float16")
        self.step = 0
        self.loss = torch.zeros((), dtype=torch.float64, device=here.device)  # since evaluation
        self.losses = 0  # how many batches are in it
        self.last = {"correct": 0, "total": 0}
        self.best = {"step": 0, "correct": -1}
        seed_all(seed_of(recipe.seed, "process", here.rank))  # dropout differs between processes

    def describe(self, folder: Path) -> str:
        count = sum(p.numel() for p in self.model.parameters())
        done = f"going on at step {self.step:,} of" if self.step else ""
        return (
            f"training {self.recipe.model.name} ({count:,} parameters) on {self.name}: "
            f"{len(self.batches.x):,} samples, {len(self.test[0]):,} to test; {done} "
            f"{self.total:,} steps in {self.recipe.training.epochs} epochs on {self.here.device}, "
            f"{self.here.world} process(es); output in {folder}"
        ).replace("  ", " ")

    def advance(self) -> None:
        """One optimiser step."""
        recipe, o = self.recipe, self.recipe.optimiser
        batch = self.batches.batch(self.step)
        x, y, other = (v.to(self.here.device) for v in (batch.x, batch.y, batch.other))
        rate = self.rate(self.step)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.model.train()
        _forget(self.model)
        with self.autocast():
            logits = self.compiled(x)
        loss = mixed_loss(logits, y, other, batch.share, recipe.training.label_smoothing)
        self.optimiser.zero_grad()
        self.scaler.scale(loss).backward()
        self.here.average_gradients(self.model)
        if o.clip:
            self.scaler.unscale_(self.optimiser)
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), o.clip)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        _clamp(self.model)
        if self.average is not None:
            self.average.update(self.model, self.step)
        self.loss += loss.detach()
        self.losses += 1
        self.step += 1

    def rate(self, step: int) -> float:
        """The learning rate of a step."""
        recipe, per_epoch = self.recipe, self.batches.per_epoch
        return learning_rate(recipe.schedule, recipe.optimiser.lr, step, self.total, per_epoch)

    def autocast(self) -> Any:
        wanted = PRECISIONS.get(self.recipe.training.precision)
        return torch.autocast(self.here.device.type, wanted, enabled=wanted is not None)

    def evaluate(self) -> dict[str, Any]:
        """A line of metrics; also notes whether this is the best so far."""
        trained = float(self.here.sum(self.loss)) / (self.losses * self.here.world)
        if not math.isfinite(trained):
            raise TrainingFailed(
                f"the training loss is {trained} before step {self.step}; nothing was written "
                "since the last checkpoint; lower optimiser.lr, or set optimiser.clip"
            )
        judged = self.average.model if self.average else self.model
        self.here.share_buffers(judged)
        correct, loss = self.test_part(judged)
        total = len(self.test[0])
        self.last = {"correct": correct, "total": total}
        if correct > self.best["correct"]:
            self.best = {"step": self.step, "correct": correct}
        self.loss.zero_()
        self.losses = 0
        return {
            "step": self.step,
            "epoch": self.step / self.batches.per_epoch,
            "lr": self.rate(self.step - 1),
            "train_loss": trained,
            "test_loss": loss,
            "correct": correct,
            "total": total,
            "accuracy": correct / total,
        }

    def test_part(self, model: Any) -> tuple[int, float]:
        """(correct, mean cross-entropy) on the test part, the same for any number of processes.

        Whole batches are shared out, so each is computed the same way wherever that happens, and
        their losses are added in one order.
        """
        x, y = self.test
        size = self.recipe.training.test_batch
        starts = range(0, len(x), size)
        found = torch.zeros((len(starts), 2), dtype=torch.float64)
        model.eval()
        for i in range(self.here.rank, len(starts), self.here.world):
            rows = slice(starts[i], starts[i] + size)
            _forget(model)
            with torch.no_grad(), self.autocast():
                logits = model(self.inputs(x[rows]).to(self.here.device))
            wanted = y[rows].to(self.here.device)
            loss = torch.nn.functional.cross_entropy(logits.float(), wanted, reduction="sum")
            found[i, 0] = (logits.argmax(1) == wanted).sum()
            found[i, 1] = loss
        found = self.here.sum(found.to(self.here.device)).cpu()
        _forget(model)
        return int(found[:, 0].sum()), sum(found[:, 1].tolist()) / len(x)

    def capture(self, lines: list[str]) -> dict[str, Any]:
        """The content of a checkpoint; every process must call it."""
        own = {
            "random": checkpoint.random_states(),
            "loss": self.loss.item(),
            "losses": self.losses,
        }
        self.here.share_buffers(self.model)
        if self.average is not None:
            self.here.share_buffers(self.average.model)
        return {
            "format": checkpoint.FORMAT,
            "recipe": self.recipe.identity(),
            "step": self.step,
            "per_epoch": self.batches.per_epoch,
            "model": dict(self.model.state_dict()),
            "average": dict(self.average.model.state_dict()) if self.average else {},
            "optimiser": self.optimiser.state_dict(),
            "scaler": self.scaler.state_dict(),
            "processes": self.here.gather(own),
            "metrics": list(lines),
            "last": dict(self.last),
            "best": dict(self.best),
        }

    def restore(self, path: Path) -> list[str]:
        """Go back to a checkpoint; returns its metrics. Raises BadCheckpoint."""
        content = checkpoint.read(path)
        checkpoint.check_same_run(content, self.recipe.identity(), self.here.world, path)
        checkpoint.load_model(self.model, content["model"], path)
        if self.average is not None:
            checkpoint.load_model(self.average.model, content["average"], path)
        try:
            self.optimiser.load_state_dict(content["optimiser"])
            self.scaler.load_state_dict(content["scaler"])
            self.step = content["step"]
            self.last = {k: content["last"][k] for k in self.last}
            self.best = {k: content["best"][k] for k in self.best}
            own = content["processes"][self.here.rank]
            self.loss.fill_(own["loss"])
            self.losses = own["losses"]
            checkpoint.restore_random_states(own["random"])
        except (LookupError, TypeError, ValueError, RuntimeError) as error:
            raise BadCheckpoint(
                f"{path}: its content cannot be taken over: {error!r}; expected what "
                "`snnkit train` wrote"
            ) from error
        return list(content["metrics"])

    def result(self, folder: Path) -> Result:
        finished = self.step == self.total
        models = (self.model, self.average.model) if self.average else (self.model,)
        return Result(
            output=folder,
            step=self.step,
            steps=self.total,
            finished=finished,
            correct=self.last["correct"],
            total=self.last["total"],
            best_correct=max(self.best["correct"], 0),
            best_step=self.best["step"],
            digest=self.here.agree(*models) if self.step else digest_of(*models),
            rank=self.here.rank,
        )


def _line(values: dict[str, Any], run: Run) -> str:
    return (
        f"step {values['step']:,}/{run.total:,}, epoch {values['epoch']:.4g}: "
        f"loss {values['train_loss']:.4f}, test loss {values['test_loss']:.4f}, "
        f"accuracy {values['accuracy']:.4f} ({values['correct']:,}/{values['total']:,})"
    )


def _open(folder: Path, resume: bool, here: Processes) -> None:
    """Make the output folder; never write over another run. Sweeps up what a killed run left."""
    exists = (folder / LAST).exists()
    here.any(False)  # all have looked before one writes
    if exists and not resume:
        raise UsageError(
            f"{folder}: holds a run already ({LAST}); go on with it by --resume, or give another "
            "folder with --output"
        )
    if here.writes:
        folder.mkdir(parents=True, exist_ok=True)
        for name in (LAST, BEST, METRICS, CURVES):
            for left in folder.glob(f".{name}.*"):
                left.unlink()


def _forget(model: Any) -> None:
    """Neurons with a state from step to step (`reset`) forget it: each batch starts fresh."""
    for module in model.modules():
        if callable(getattr(module, "reset", None)):
            module.reset()


def _clamp(model: Any) -> None:
    """Parameters with bounds (`clamp`) are put back into them."""
    for module in model.modules():
        if callable(getattr(module, "clamp", None)):
            module.clamp()
