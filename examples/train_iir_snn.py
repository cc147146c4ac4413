"""Trains an IIR-SNN: an ANN, then an SNN at T = 5, 4, 3, 2, 1, each from the one before.

    python examples/train_iir_snn.py --output out/iir                  # scikit-learn's digits
    python examples/train_iir_snn.py --data mnist --output out/mnist   # needs the MNIST files

Writes a state dict per stage and accuracies.json. One thread, one seed. The network is
`iir-vgg5`, which is ours; the recipe is that of arXiv 2110.05929 (`snnkit.models.iir_training`)
with fewer epochs, larger learning rates, and epochs chosen by held-out training data.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from iir_data import Batches, load

from snnkit.models.iir_training import Schedule, accuracy, train_chain


def schedule(ann: int, chain: dict[int, int], rate: float, dropout: float) -> Schedule:
    """Epochs of the ANN and of each T."""
    stages = [
        {"steps": t, "epochs": n, "learning_rate": rate, "dropout": dropout}
        for t, n in chain.items()
    ]
    first = {"steps": 0, "epochs": ann, "learning_rate": 0.05, "optimiser": "sgd"}
    first |= {"weight_decay": 5e-4, "dropout": dropout, "milestones": [0.45, 0.7, 0.9]}
    return Schedule.from_dict({"ann": first, "chain": stages})


RECIPES: dict[str, dict[str, Any]] = {
    "digits": {
        "schedule": schedule(30, {5: 12, 4: 4, 3: 4, 2: 12, 1: 60}, 1e-3, 0.1),
        "count": 0,
        "options": {"input_shape": (1, 8, 8)},
    },
    "mnist": {
        "schedule": schedule(10, {5: 1, 4: 1, 3: 1, 2: 2, 1: 12}, 1e-3, 0.1),
        "count": 18_000,
        "options": {},
    },
    "cifar": {
        "schedule": schedule(40, {5: 3, 4: 2, 3: 2, 2: 4, 1: 25}, 1e-3, 0.2),
        "count": 0,
        "options": {"input_shape": (3, 32, 32)},
    },
    "nmnist": {
        "schedule": schedule(40, {5: 8, 4: 6, 3: 6, 2: 8, 1: 40}, 1e-3, 0.2),
        "count": 0,
        "options": {"input_shape": (2, 34, 34)},
    },
}
"""count : samples drawn per epoch, 0 for all."""


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--data", choices=list(RECIPES), default="digits")
    arguments.add_argument("--output", type=Path, required=True)
    arguments.add_argument("--seed", type=int, default=0)
    options = arguments.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    recipe, data = RECIPES[options.data], load(options.data)
    flip_and_crop = options.data == "cifar"
    loader = Batches(data.train, 64, options.seed, recipe["count"], flip_and_crop)
    held_out, test = Batches(data.held_out, 250), Batches(data.test, 250)
    began = time.perf_counter()

    def report(steps: int, epoch: int, found: float) -> None:
        seconds = time.perf_counter() - began
        print(f"T {steps or 'ANN'}  epoch {epoch + 1}  held out {found:.4f}  {seconds:.0f} s")

    done = train_chain(
        "iir-vgg5", loader, held_out, recipe["schedule"], options.seed, report, **recipe["options"]
    )
    rows = []
    for stage in done:
        name = f"t{stage.steps}" if stage.steps else "ann"
        torch.save(stage.model.state_dict(), options.output / f"{name}.pt")
        row = {"stage": name, "test_accuracy": accuracy(stage.model, test)}
        row |= {"held_out_accuracy": stage.accuracy, "seconds": round(stage.seconds, 1)}
        rows.append(row)
        print(row)
    record = {"data": options.data, "seed": options.seed, "stages": rows}
    record |= {"schedule": recipe["schedule"].to_dict(), "config": done[-1].model.config}
    (options.output / "accuracies.json").write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
