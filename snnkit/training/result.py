"""What a training run came to, and how it is printed."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Result:
    """What a run came to. correct, total, accuracy : of the last evaluation of the test part."""

    output: Path
    step: int
    steps: int  # of the whole run
    finished: bool
    correct: int
    total: int
    best_correct: int
    best_step: int
    digest: str  # of the weights and the moving average
    rank: int

    @property
    def accuracy(self) -> float:
        return self.correct / self.total if self.total else 0.0

    def as_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {**asdict(self), "output": str(self.output), "accuracy": self.accuracy}

    def text(self) -> str:
        """For a person."""
        if not self.total:
            return f"{self.step:,} of {self.steps:,} steps, not evaluated yet; {self.output}"
        return (
            f"{self.step:,} of {self.steps:,} steps: test accuracy {self.accuracy:.4f} "
            f"({self.correct:,}/{self.total:,}), best {self.best_correct / self.total:.4f} at step "
            f"{self.best_step:,}; {self.output}"
        )
