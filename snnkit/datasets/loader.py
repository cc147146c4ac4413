"""Batches from arrays in memory, in an order that is a function of the seed.

Batch k of a run depends on (seed, k) only: there is no state to lose, so a run resumes anywhere in
an epoch, and it does not matter how many processes share a batch.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from snnkit.datasets.augment import Augment, mixup
from snnkit.errors import BadDataset, UsageError

Tensor = Any


def seed_of(*parts: object) -> int:
    """A number below 2^63 that is a function of `parts` (their text) on every machine."""
    text = "/".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1


def generator_of(*parts: object) -> Any:
    """A torch generator on the CPU, seeded by `seed_of`."""
    return torch.Generator().manual_seed(seed_of(*parts))


def tensor_of(array: npt.NDArray[Any]) -> Tensor:
    """The array as a tensor: shared where torch can write to it and knows its type."""
    kind = array.dtype.newbyteorder("=")
    if kind.kind == "u" and kind.itemsize > 1:  # torch lacks operations on these
        kind = np.dtype(np.int64)
    return torch.from_numpy(np.require(array, kind, ["C", "W"]))


@dataclass(frozen=True)
class Batch:
    """x : (n, ...) float32. y : (n,) int64. Mixed: share of y, and 1 - share of `other`."""

    x: Tensor
    y: Tensor
    other: Tensor
    share: float


@dataclass(frozen=True)
class Inputs:
    """How stored numbers become inputs: (x / divide - mean) / std, mean and std per channel."""

    divide: float = 1.0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __call__(self, x: Tensor) -> Tensor:
        """x : (n, C, ...) any number type; returns float32. Raises BadDataset."""
        x = x.float() / self.divide
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values and len(values) not in (1, x.shape[1]):
                raise BadDataset(
                    f"data: {len(values)} values of {name}; samples have {x.shape[1]} channels"
                )
            if values:
                each = torch.tensor(values, dtype=x.dtype).reshape(1, -1, *[1] * (x.ndim - 2))
                x = x - each if name == "mean" else x / each
        return x


class Batches:
    """Shuffled batches without end; an epoch is count // size of them, the rest is left out.

    x : (N, ...) tensor. y : (N,) int64. size : samples per batch, over all processes. This process
    gets the samples rank, rank + world, ... of each batch. Raises UsageError.
    """

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        size: int,
        *,
        seed: int,
        inputs: Inputs,
        augment: Augment,
        rank: int = 0,
        world: int = 1,
    ):
        if size > len(x):
            raise UsageError(f"batches of {size} samples; there are {len(x)} to train on")
        if size % world:
            raise UsageError(f"batches of {size} samples cannot be shared by {world} processes")
        self.x, self.y, self.size, self.seed = x, y, size, seed
        self.inputs, self.augment = inputs, augment
        self.rows = torch.arange(rank, size, world)
        self.per_epoch = len(x) // size
        self._order: tuple[int, Tensor] = (-1, None)  # of the epoch that was asked for last

    def order(self, epoch: int) -> Tensor:
        """The order of the samples in an epoch, a permutation of (N,)."""
        if self._order[0] != epoch:
            generator = generator_of(self.seed, "order", epoch)
            self._order = (epoch, torch.randperm(len(self.x), generator=generator))
        return self._order[1]

    def batch(self, step: int) -> Batch:
        """This process's part of batch number `step`, counted from the start of the run."""
        epoch, position = divmod(step, self.per_epoch)
        index = self.order(epoch)[position * self.size : (position + 1) * self.size]
        generator = generator_of(self.seed, "augment", step)
        height, width = (self.x.shape[-2:]) if self.x.ndim > 2 else (1, 1)
        drawn = self.augment.draw(generator, self.size, height, width)

        def samples(rows: Tensor) -> Tensor:
            return self.inputs(self.augment.apply(self.x[index[rows]], drawn, rows))

        x, y = samples(self.rows), self.y[index[self.rows]]
        share = self._share(step)
        if share == 1:
            return Batch(x, y, y, 1.0)
        partners = self.size - 1 - self.rows  # the batch is in random order already
        return Batch(mixup(x, samples(partners), share), y, self.y[index[partners]], share)

    def _share(self, step: int) -> float:
        a, dice = self.augment, random.Random(seed_of(self.seed, "mixup", step))
        if not a.mixup or dice.random() >= a.mixup_probability:
            return 1.0
        return dice.betavariate(a.mixup, a.mixup)
