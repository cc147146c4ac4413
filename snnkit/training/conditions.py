"""What holds while a run runs: seeds, deterministic algorithms, and how it is asked to stop."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from snnkit.datasets.loader import seed_of
from snnkit.training.recipe import Recipe


def seed_all(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


@contextmanager
def exact(recipe: Recipe) -> Iterator[None]:
    """Seeds and deterministic algorithms while a run runs; torch's settings come back after."""
    before, threads = torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()
    if recipe.training.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(recipe.training.deterministic)
    if recipe.training.threads:
        torch.set_num_threads(recipe.training.threads)
    seed_all(seed_of(recipe.seed, "model"))
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        torch.set_num_threads(threads)


class Stop:
    """SIGINT and SIGTERM as a wish that the loop looks at between steps."""

    asked = False

    def __enter__(self) -> Stop:
        self.before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self.before[number] = signal.signal(number, self.ask)
        return self

    def ask(self, number: int, frame: Any) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True

    def __exit__(self, *error: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
