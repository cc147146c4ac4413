"""Random small torch networks for the laws of quantisation-aware training."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

ACTIVATIONS = (
    nn.ReLU,
    nn.ReLU,
    nn.ReLU6,
    lambda: nn.LeakyReLU(0.2),
    nn.Sigmoid,
    nn.Tanh,
    nn.GELU,
    nn.SiLU,
    nn.Hardswish,
)


class Residual(nn.Module):
    def __init__(self, body: nn.Module, after: nn.Module, sign: int):
        super().__init__()
        self.body, self.after, self.sign = body, after, sign

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.body(x)
        return self.after(x + y if self.sign > 0 else x - y)


class Beside(nn.Module):
    def __init__(self, body: nn.Module):
        super().__init__()
        self.body = body

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, self.body(x)], 1)


class Parts:
    """Draws blocks of one or two space axes."""

    def __init__(self, rng: np.random.Generator, dims: int):
        self.rng, self.dims = rng, dims

    def conv(self, inputs: int, outputs: int, **options: int) -> nn.Module:
        layer = nn.Conv1d if self.dims == 1 else nn.Conv2d
        return layer(inputs, outputs, bias=bool(self.rng.integers(2)), **options)

    def norm(self, channels: int) -> nn.Module:
        norm = (nn.BatchNorm1d if self.dims == 1 else nn.BatchNorm2d)(channels, momentum=0.9)
        gain = self.rng.normal(0, 1.5, channels)
        gain[self.rng.random(channels) < 0.15] = 0  # a channel that its BatchNorm silences
        norm.weight.data = torch.tensor(gain, dtype=torch.float32)
        norm.bias.data = torch.tensor(self.rng.normal(0.2, 0.5, channels), dtype=torch.float32)
        return norm

    def act(self) -> nn.Module:
        return ACTIVATIONS[self.rng.integers(len(ACTIVATIONS))]()

    def block(self, kind: str, c: int) -> tuple[nn.Module, int]:
        """A block for c channels that keeps or halves the size; and its channels."""
        max_pool = nn.MaxPool1d if self.dims == 1 else nn.MaxPool2d
        average = nn.AvgPool1d if self.dims == 1 else nn.AvgPool2d
        wide = int(self.rng.integers(3, 8))
        if kind == "conv":
            conv = self.conv(c, wide, kernel_size=3, padding=1)
            return nn.Sequential(conv, self.norm(wide), self.act()), wide
        if kind == "depthwise":
            conv = self.conv(c, c, kernel_size=3, padding=2, dilation=2, groups=c)
            return nn.Sequential(conv, self.act()), c
        if kind == "residual":
            conv = self.conv(c, c, kernel_size=3, padding=1)
            body = nn.Sequential(conv, self.norm(c))
            return Residual(body, self.act(), int(self.rng.choice([-1, 1]))), c
        if kind == "beside":
            conv = self.conv(c, wide, kernel_size=1)
            return Beside(nn.Sequential(conv, self.act())), c + wide
        if kind == "pool":
            return max_pool(3, 2, padding=1), c
        if kind == "pool first":
            return nn.Sequential(self.conv(c, wide, kernel_size=3), max_pool(2), nn.ReLU()), wide
        if kind == "average":
            return average(2), c
        return nn.Sequential(nn.Dropout(0.1), self.norm(c)), c


KINDS = ("conv", "depthwise", "residual", "beside", "pool", "pool first", "average", "norm")


def network(seed: int) -> tuple[nn.Module, np.ndarray]:
    """(network, images [24, C, *space] float32 on an 8-bit grid, raw or normalised)."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    dims = int(rng.integers(1, 3))
    parts = Parts(rng, dims)
    first, c = int(rng.integers(1, 4)), 6
    blocks: list[nn.Module] = [
        parts.conv(first, c, kernel_size=3, padding=int(rng.integers(2))),
        parts.norm(c),
        parts.act(),
    ]
    for kind in rng.choice(KINDS, 3):
        block, c = parts.block(str(kind), c)
        blocks.append(block)
    size = 14 if dims == 2 else 30
    noise = rng.integers(0, 256, (24, first, *(size,) * dims))
    # images of different brightness and contrast, or averages would be the same for all
    images = np.rint(noise * rng.uniform(0.1, 1, (24, first, *(1,) * dims))).astype(np.float32)
    images[0].flat[:256] = np.arange(256)[: images[0].size]
    if rng.integers(2):
        images = (images / np.float32(255) - np.float32(0.3)) / np.float32(0.4)
    if rng.integers(2):
        pool = nn.AdaptiveAvgPool1d if dims == 1 else nn.AdaptiveAvgPool2d
        blocks += [pool(1), nn.Flatten()]
    else:
        blocks.append(nn.Flatten())
    model = nn.Sequential(*blocks)
    with torch.no_grad():
        features = model.eval()(torch.from_numpy(images[:2])).shape[1]
    head = [nn.Linear(features, 8), nn.BatchNorm1d(8, momentum=0.9), nn.ReLU(), nn.Linear(8, 4)]
    return nn.Sequential(model, *head).train(), images
