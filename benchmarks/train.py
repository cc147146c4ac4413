"""Trains the networks of the four workloads so that they are sparse, and writes them as ONNX.

    python -m benchmarks.train mnist

One thread. On Linux MALLOC_MMAP_THRESHOLD_=1000000000 MALLOC_TRIM_THRESHOLD_=4000000000 in the
environment halves the time of `dvs`: else the pages of its activations are fetched anew each step.

* Biases of the convolutions are never positive: no event under the window means no spike.
* Each convolution is followed by a scale per channel (root mean square over the batch, running at
  the end), folded into its weights. Unlike BatchNorm it shifts nothing, so silence stays silence.
* Penalty: of each layer the soft share of active groups of 4 channels at a site (`active_share`),
  which does not change when activations are rescaled. Layers weigh half by what their events cost
  in the next layer, half alike.
* Weights are rounded to float16 at the end, as the file stores them.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn
from torch.nn import functional

from benchmarks import activity, model_file
from benchmarks.workloads import WORKLOADS, Split, Workload, present, scaled, splits

GROUP = 4
WEAK = 0.1
LEVELS = 15
PENALTY = {"mnist": 5.0, "nmnist": 5.0, "dvs": 8.0, "cifar": 0.5}
EPOCHS = {"mnist": 8, "nmnist": 16, "dvs": 8, "cifar": 30}
PER_EPOCH = {"mnist": 30_000, "nmnist": 8_000, "dvs": 3_000, "cifar": 3_500}
BATCH = {"mnist": 100, "nmnist": 64, "dvs": 16, "cifar": 50}
RATE = {"mnist": 3e-3, "nmnist": 3e-3, "dvs": 2e-3, "cifar": 2e-3}


class ScaledConv(nn.Module):
    """relu(gamma * conv(x) / rms + beta), beta <= 0."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out, 3, stride, padding=1, bias=False)
        self.gamma = nn.Parameter(torch.ones(out))
        self.beta = nn.Parameter(torch.zeros(out))
        self.register_buffer("power", torch.ones(out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        charge = self.conv(x)
        if self.training:
            power = charge.square().mean((0, 2, 3))
            self.power.lerp_(power.detach(), 0.05)
        else:
            power = self.power
        scale = self.gamma / (power + 1e-8).sqrt()
        return torch.relu(charge * scale[:, None, None] + self.beta[:, None, None])

    @torch.no_grad()
    def fold(self) -> None:
        """Scale and weights into weights, as the file stores them."""
        scale = self.gamma / (self.power + 1e-8).sqrt()
        self.conv.weight *= scale[:, None, None, None]
        self.gamma.fill_(1)
        self.power.fill_(1 - 1e-8)
        self.half().float()


class Stack(nn.Module):
    """conv - ReLU - ... - linear; forward returns the logits and each layer's activation."""

    def __init__(self, workload: Workload) -> None:
        super().__init__()
        channels, height, width = workload.shape
        self.convs = nn.ModuleList()
        costs = []
        for out, stride in workload.convs:
            costs.append(channels * height * width * out / stride**2)
            self.convs.append(ScaledConv(channels, out, stride))
            channels, height, width = out, -(-height // stride), -(-width // stride)
        self.readout = nn.Linear(channels * height * width, workload.classes)
        cost = torch.tensor([*costs[1:], channels * height * width * workload.classes / 9])
        self.shares = cost / cost.sum() / 2 + 0.5 / len(cost)

    @torch.no_grad()
    def clamp(self) -> None:
        for conv in self.convs:
            conv.beta.clamp_(max=0)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        hidden = []
        for conv in self.convs:
            x = conv(x)
            hidden.append(x)
        return self.readout(functional.dropout(x.flatten(1), 0.3, self.training)), hidden

    def fold(self) -> Stack:
        for conv in self.convs:
            conv.fold()
        self.readout.half().float()
        return self.eval()


def active_share(x: torch.Tensor) -> torch.Tensor:
    """Soft share of active groups of a layer [N, C, H, W]: mean of g / (g + WEAK), where g is a
    group's sum over the root mean square of those that are active."""
    groups = x.unflatten(1, (-1, GROUP)).sum(2)
    count = (groups > 0).sum().clamp(min=1)
    unit = (groups.square().sum() / count + 1e-12).sqrt()
    groups = groups / unit
    return (groups / (groups + WEAK)).mean()


def augmented(name: str, x: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """Shifted by up to 1/8 of the side (1/16 for handwriting); CIFAR also mirrored."""
    reach = x.shape[-1] // (16 if "mnist" in name else 8)
    padded = functional.pad(x, (reach,) * 4)
    size = x.shape[-1]
    dx, dy = torch.randint(0, 2 * reach + 1, (2, len(x)), generator=rng)
    rows = (dy[:, None] + torch.arange(size))[:, None, :, None]
    columns = (dx[:, None] + torch.arange(size))[:, None, None, :]
    if name == "cifar":
        mirror = torch.rand(len(x), generator=rng) < 0.5
        columns[mirror] = columns[mirror].flip(-1)
    item = torch.arange(len(x))[:, None, None, None]
    return padded[item, torch.arange(x.shape[1])[None, :, None, None], rows, columns]


def train(
    workload: Workload, data: Split, penalty: float, epochs: int, per_epoch: int | None = None
) -> Stack:
    """Adam with one cycle of the learning rate; the penalty grows from 1/10 to 1/2 of the steps."""
    torch.manual_seed(0)
    rng = torch.Generator().manual_seed(0)
    net = Stack(workload)
    size, name = BATCH[workload.name], workload.name
    steps = epochs * ((per_epoch or PER_EPOCH[name]) // size)
    optimiser = torch.optim.AdamW(net.parameters(), RATE[name], weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE[name], steps, pct_start=0.2)
    labels = torch.from_numpy(data.y)
    order = torch.empty(0, dtype=torch.int64)
    for step in range(steps):
        if len(order) < size:
            order = torch.randperm(len(labels), generator=rng)
        index, order = order[:size], order[size:]
        x = augmented(name, torch.from_numpy(scaled(name, data.x[index.numpy()])), rng)
        logits, hidden = net(x)
        loss = functional.cross_entropy(logits, labels[index], label_smoothing=0.05)
        shares = torch.stack([active_share(h) for h in hidden])
        ramp = min(1.0, max(0.0, 2.5 * step / steps - 0.25))
        total = loss + penalty * ramp * (shares * net.shares).sum()
        optimiser.zero_grad()
        total.backward()
        optimiser.step()
        schedule.step()
        net.clamp()
        if step % max(1, steps // 8) == 0:
            row = " ".join(f"{s:.3f}" for s in shares.tolist())
            print(f"  step {step}/{steps} loss {loss.item():.3f} share {row}", flush=True)
    return net.fold()


def written(net: Stack, workload: Workload) -> onnx.ModelProto:
    def array(t: torch.Tensor) -> np.ndarray:
        return t.detach().numpy()

    convs = [(array(c.conv.weight), array(c.beta), c.conv.stride[0]) for c in net.convs]
    readout = array(net.readout.weight), array(net.readout.bias)
    return model_file.model(workload.name, workload.shape, convs, readout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("workload", choices=sorted(WORKLOADS))
    parser.add_argument("--penalty", type=float, help="default: that of the shipped network")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    if not present(given.workload):
        parser.error(f"no data for {given.workload}; set SNNKIT_DATA to the folder that holds it")
    torch.set_num_threads(1)
    workload = WORKLOADS[given.workload]
    began = time.perf_counter()
    data = splits(workload.name, "train")
    epochs = given.epochs or EPOCHS[workload.name]
    penalty = PENALTY[workload.name] if given.penalty is None else given.penalty
    net = train(workload, data, penalty, epochs)
    path = given.output or workload.network
    path.write_bytes(written(net, workload).SerializeToString())
    print(f"penalty {penalty}: {path.stat().st_size} bytes, ", end="")
    print(f"{time.perf_counter() - began:.0f} s with reading the data", flush=True)
    print(activity.report(workload.name, path, LEVELS))


if __name__ == "__main__":
    main()
