"""The chain of IIR-SNN: an ANN, then an SNN at T = 5, 4, 3, 2, 1, each from the one before.

The schedule is data. The loop is as plain as it can be; another loop can take its place stage by
stage: it needs model(x) = logits, cross entropy on them, and `clamp_leaks` after each step.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from snnkit.errors import UsageError
from snnkit.models import create
from snnkit.models.iir_snn import IIRNet, fuse_bn, next_stage, spiking, thresholds_by_percentile
from snnkit.nn import TimeDropout, clamp_leaks

Loader = Iterable[tuple[Tensor, Tensor]]
"""Batches (x [N, C, H, W], class [N]); iterated once per epoch."""


@dataclass(frozen=True)
class Stage:
    """One stage of training.

    steps : T, 0 for the ANN. optimiser : "sgd" (momentum 0.9) or "adam" (amsgrad). The learning
    rate is multiplied by `factor` after each of `milestones`, shares of the epochs.
    """

    steps: int
    epochs: int
    learning_rate: float
    optimiser: str = "adam"
    weight_decay: float = 0.0
    dropout: float = 0.2
    milestones: tuple[float, ...] = (0.6, 0.8, 0.9)
    factor: float = 0.2


@dataclass(frozen=True)
class Schedule:
    """The whole chain. Its defaults are the authors' for CIFAR with BatchNorm (batch 64)."""

    ann: Stage = Stage(0, 300, 1e-2, "sgd", 5e-4, 0.5, (0.45, 0.7, 0.9))
    chain: tuple[Stage, ...] = tuple(Stage(t, 500, 1e-4) for t in (5, 4, 3, 2, 1))
    percentile: float = 90.0
    calibration: int = 512

    def __post_init__(self) -> None:
        steps = [stage.steps for stage in self.chain]
        if (
            self.ann.steps
            or not steps
            or steps != sorted(set(steps), reverse=True)
            or steps[-1] < 1
        ):
            raise UsageError(f"steps {self.ann.steps}, {steps}; expected 0, then T decreasing to 1")

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Schedule:
        """From plain data, for example a TOML table: ann, chain (a list), percentile, ..."""
        try:
            stages = [_stage(s) for s in data["chain"]]
            rest = {k: v for k, v in data.items() if k not in ("ann", "chain")}
            return cls(_stage(data["ann"]), tuple(stages), **rest)
        except (KeyError, TypeError) as error:
            raise UsageError(f"schedule: {error}; expected ann, chain, fields of Stage") from error

    def to_dict(self) -> dict[str, Any]:
        """As plain data; `from_dict` reads it."""
        return asdict(self)


def _stage(data: Mapping[str, Any]) -> Stage:
    stage = Stage(**data)
    return replace(stage, milestones=tuple(stage.milestones))


@dataclass
class Trained:
    """A stage's outcome. accuracy : on the held-out data, of the epoch whose weights `model` has
    (the best one). start : the state the stage began with. seconds : wall time."""

    steps: int
    model: IIRNet
    accuracy: float
    seconds: float
    start: dict[str, Tensor] = field(repr=False)


def accuracy(model: nn.Module, loader: Loader) -> float:
    """Share of right classes, in evaluation mode."""
    training = model.training
    model.eval()
    right, count = 0, 0
    with torch.no_grad():
        for x, y in loader:
            right += int((model(x).argmax(1) == y).sum())
            count += len(y)
    model.train(training)
    return right / count


def train_stage(
    model: IIRNet,
    stage: Stage,
    loader: Loader,
    held_out: Loader,
    report: Callable[[int, int, float], None] | None = None,
) -> Trained:
    """Train `model` in place with a fresh optimiser; the epoch best on `held_out` is kept.

    Loss: cross entropy of the logits, which an SNN sums over T. report : called with (T, epoch,
    accuracy on held_out). The authors choose the epoch by test accuracy: give other data.
    """
    began = time.perf_counter()
    start = copy.deepcopy(model.state_dict())
    for module in model.modules():
        if isinstance(module, (nn.Dropout, TimeDropout)):
            module.p = stage.dropout
    parameters = model.parameters()
    optimiser: torch.optim.Optimizer
    if stage.optimiser == "sgd":
        optimiser = torch.optim.SGD(
            parameters, stage.learning_rate, momentum=0.9, weight_decay=stage.weight_decay
        )
    else:
        optimiser = torch.optim.Adam(
            parameters, stage.learning_rate, weight_decay=stage.weight_decay, amsgrad=True
        )
    turns = [max(1, round(share * stage.epochs)) for share in stage.milestones]
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimiser, turns, stage.factor)
    best, state = -1.0, start
    for epoch in range(stage.epochs):
        model.train()
        for x, y in loader:
            loss = nn.functional.cross_entropy(model(x), y)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            clamp_leaks(model)
        schedule.step()
        found = accuracy(model, held_out)
        if report:
            report(stage.steps, epoch, found)
        if found > best:
            best, state = found, copy.deepcopy(model.state_dict())
    model.load_state_dict(state)
    model.eval()
    return Trained(stage.steps, model, best, time.perf_counter() - began, start)


def train_chain(
    name: str,
    loader: Loader,
    held_out: Loader,
    schedule: Schedule,
    seed: int = 0,
    report: Callable[[int, int, float], None] | None = None,
    **options: Any,
) -> list[Trained]:
    """The ANN and every SNN of the chain, in order.

    name, options : as for `create`. held_out : chooses the best epoch of each stage. seed : of
    the weights and dropout (the loader has its own); torch's global generator is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        ann = create(name, steps=None, batch_norm=True, **options)
        done = [train_stage(ann, schedule.ann, loader, held_out, report)]
        model = spiking(fuse_bn(ann), schedule.chain[0].steps)
        thresholds_by_percentile(model, _first(loader, schedule.calibration), schedule.percentile)
        for stage in schedule.chain:
            if stage is not schedule.chain[0]:
                model = next_stage(model, stage.steps)
            done.append(train_stage(model, stage, loader, held_out, report))
    return done


def _first(loader: Loader, count: int) -> Tensor:
    """The first `count` samples that the loader gives."""
    taken: list[Tensor] = []
    for x, _ in loader:
        taken.append(x)
        if sum(len(t) for t in taken) >= count:
            break
    return torch.cat(taken)[:count]
