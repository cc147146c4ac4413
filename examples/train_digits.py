"""Trains the small CNN that the demo converts, and exports it as examples/digits_cnn.onnx.

    pip install -c constraints.txt torch==2.13.0 onnxscript scikit-learn
    python examples/train_digits.py

About half a minute on two cores. Three convolutions, one of them in a residual branch, with
BatchNorm, ReLU and max-pooling; scikit-learn's 8x8 digits, the last quarter held out.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from digits import split
from torch import nn


class Digits(nn.Module):
    """conv 16 - (conv 16 + skip) - max-pool - conv 32 - average - linear 10."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.branch = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16))
        self.head = nn.Sequential(
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(128, 10),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.stem(x)
        return self.head(torch.relu(self.branch(h) + h))


def train(epochs: int = 60) -> Digits:
    torch.manual_seed(0)
    x, y, _, _ = (torch.from_numpy(a) for a in split())
    model = Digits()
    optimiser = torch.optim.Adam(model.parameters(), 3e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs)
    for _ in range(epochs):
        for index in torch.randperm(len(x)).split(64):
            loss = nn.functional.cross_entropy(model(x[index]), y[index], label_smoothing=0.05)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        schedule.step()
    return model.eval()


def stripped(model: onnx.ModelProto) -> onnx.ModelProto:
    """Without the stack traces that the exporter leaves in every node."""
    for holder in (model, model.graph, *model.graph.node, *model.graph.value_info):
        del holder.metadata_props[:]
    return model


def main() -> None:
    model = train()
    _, _, x, y = split()
    with torch.no_grad():
        accuracy = float((model(torch.from_numpy(x)).argmax(1).numpy() == y).mean())
    path = Path(__file__).with_name("digits_cnn.onnx")
    program = torch.onnx.export(
        model,
        (torch.from_numpy(x[:2]),),
        input_names=["image"],
        output_names=["logits"],
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        external_data=False,
    )
    onnx.save(stripped(program.model_proto), path)
    parameters = sum(int(np.prod(p.shape)) for p in model.parameters())
    print(f"{parameters} parameters, {path.stat().st_size} bytes, test accuracy {accuracy:.4f}")


if __name__ == "__main__":
    main()
