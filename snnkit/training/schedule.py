"""Learning rate, optimiser, and loss, each as its formula."""

from __future__ import annotations

import math
from typing import Any

import torch

from snnkit.training.recipe import Optimiser, Schedule

Tensor = Any


def learning_rate(schedule: Schedule, peak: float, step: int, total: int, per_epoch: int) -> float:
    """Of step 0 <= step < total, with W = round(warmup * per_epoch) steps of warm-up.

    step < W: start + (peak - start) * step / W. Otherwise, with u = (step - W) / (total - W):
    end + (peak - end) * (1 + cos(pi * u)) / 2 (Loshchilov and Hutter, arXiv 1608.03983).
    """
    warm = round(schedule.warmup * per_epoch)
    if step < warm:
        return schedule.start + (peak - schedule.start) * step / warm
    done = (step - warm) / max(total - warm, 1)
    return schedule.end + (peak - schedule.end) * (1 + math.cos(math.pi * done)) / 2


def optimiser_of(model: Any, o: Optimiser) -> Any:
    """The torch optimiser; parameters of one axis get no weight decay unless the recipe says so."""
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in trained if p.ndim > 1 or o.decay_vectors]
    vectors = [p for p in trained if not (p.ndim > 1 or o.decay_vectors)]
    groups = [
        {"params": group, "weight_decay": decay}
        for group, decay in ((matrices, o.weight_decay), (vectors, 0.0))
        if group
    ]
    if o.name == "sgd":
        return torch.optim.SGD(groups, o.lr, momentum=o.momentum, nesterov=o.nesterov)
    return torch.optim.AdamW(groups, o.lr, betas=o.betas, amsgrad=o.amsgrad)


def mixed_loss(logits: Tensor, y: Tensor, other: Tensor, share: float, smoothing: float) -> Tensor:
    """Cross-entropy with the soft targets share * onehot(y) + (1 - share) * onehot(other),
    each smoothed: (1 - smoothing) * onehot + smoothing / classes. Mean over samples.

    logits : (n, classes). Cross-entropy is linear in its target, so two plain ones are mixed.
    """

    def loss(target: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(logits.float(), target, label_smoothing=smoothing)

    return loss(y) if share == 1 else share * loss(y) + (1 - share) * loss(other)


class Average:
    """Exponential moving average of a model: a <- d * a + (1 - d) * w after every step.

    d = min(decay, (1 + n) / (10 + n)) after n earlier steps, so that the start is forgotten.
    Numbers that are not floats (counters) are copied. `model` holds the average, in eval mode.
    """

    def __init__(self, model: Any, decay: float):
        import copy

        self.model, self.decay = copy.deepcopy(model).eval().requires_grad_(False), decay

    def update(self, model: Any, steps: int) -> None:
        """Take in the weights after `steps` earlier steps."""
        d = min(self.decay, (1 + steps) / (10 + steps))
        with torch.no_grad():
            pairs = zip(tensors_of(self.model), tensors_of(model), strict=True)
            for (_, average), (_, now) in pairs:
                if average.is_floating_point():
                    average.lerp_(now, 1 - d)
                else:
                    average.copy_(now)


def tensors_of(model: Any) -> list[tuple[str, Tensor]]:
    """Parameters and buffers by name, in the model's own order."""
    return [*model.named_parameters(), *model.named_buffers()]
