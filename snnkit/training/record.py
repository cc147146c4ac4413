"""What a run leaves behind to look at: metrics, progress, TensorBoard, learning curves."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from snnkit.errors import TrainingFailed
from snnkit.files import write_beside

Say = Callable[[str], None]


def to_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class Metrics:
    """metrics.jsonl: one JSON object per evaluation, no clock in it.

    `lines` is what the checkpoint holds; opening cuts the file back to it.
    """

    def __init__(self, path: Path, lines: Sequence[str]):
        self.path, self.lines = path, list(lines)
        write_beside(path, "".join(f"{line}\n" for line in self.lines).encode())

    def append(self, values: dict[str, Any]) -> None:
        """Add a line, whole or not at all. Raises TrainingFailed where it cannot be written."""
        line = json.dumps(values)
        rest = f"{line}\n".encode()
        try:
            with self.path.open("r+b", buffering=0) as file:  # a buffer would be written at closing
                end = file.seek(0, os.SEEK_END)
                try:
                    while rest:
                        rest = rest[file.write(rest) :]
                    os.fsync(file.fileno())
                except OSError:
                    file.truncate(end)
                    raise
        except OSError as error:
            raise TrainingFailed(
                f"{self.path}: cannot be written: {error.strerror}; make room and go on with "
                "--resume"
            ) from error
        self.lines.append(line)


class Progress:
    """A bar on stderr with rich on a terminal; otherwise one plain line per evaluation."""

    def __init__(self, say: Say, total: int, done: int, shown: bool):
        self.say, self.shown, self.bar = say, shown, None
        if shown and sys.stderr.isatty() and importlib.util.find_spec("rich"):
            from rich.console import Console
            from rich.progress import Progress as Bar

            self.bar = Bar(console=Console(stderr=True))
            self.task = self.bar.add_task("training", total=total, completed=done)
            self.bar.start()

    def step(self) -> None:
        if self.bar is not None:
            self.bar.advance(self.task)

    def line(self, text: str) -> None:
        if self.bar is not None:
            self.bar.console.print(text, highlight=False)
        elif self.shown:
            self.say(text)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.stop()


class Board:
    """TensorBoard's event files, if the package tensorboard is installed."""

    def __init__(self, folder: Path, step: int):
        self.writer: Any = None
        if importlib.util.find_spec("tensorboard"):
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(str(folder), purge_step=step)

    def add(self, values: dict[str, Any]) -> None:
        if self.writer is not None:
            for key in ("lr", "train_loss", "test_loss", "accuracy"):
                self.writer.add_scalar(key, values[key], values["step"])

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()


def curves(lines: Sequence[str], path: Path) -> bool:
    """Losses and accuracy over steps as PNG. False where matplotlib is not installed."""
    if not lines or not importlib.util.find_spec("matplotlib"):
        return False
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = [json.loads(line) for line in lines]
    steps = [row["step"] for row in rows]
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    loss, accuracy = figure.subplots(1, 2)
    for key, label in (("train_loss", "training"), ("test_loss", "test")):
        loss.plot(steps, [row[key] for row in rows], marker=".", label=label)
    accuracy.plot(steps, [row["accuracy"] for row in rows], marker=".", color="tab:green")
    for axes, title in ((loss, "cross-entropy"), (accuracy, "test accuracy")):
        axes.set(title=title, xlabel="step")
        axes.grid(alpha=0.3)
    loss.legend()
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    write_beside(path, buffer.getvalue())
    return True
