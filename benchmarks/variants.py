"""A workload's network wider or on a larger sensor, to show how cost grows with size.

Weights are random; thresholds are set so that each layer's share of active neurons is that of the
trained network, whatever the size.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx

from benchmarks import model_file
from benchmarks.workloads import WORKLOADS, samples

Floats = npt.NDArray[np.float32]
ACTIVE = {
    "mnist": (0.023, 0.011, 0.057),
    "nmnist": (0.016, 0.021, 0.053),
    "dvs": (0.011, 0.010, 0.049, 0.072, 0.092),
    "cifar": (0.230, 0.160, 0.195, 0.112, 0.196, 0.126),
}
"""Share of neurons with at least one spike per layer of the trained networks, 15 levels, real test
data."""
ALIKE = 0.5
"""Share of a weight's size that it has in common with the other channels of its group of 4: makes
groups about as often active together as those of the trained networks."""
LEVELS = 15


def variant(
    name: str, width: int = 1, resolution: int = 1, count: int = 32, real: bool | None = None
) -> tuple[onnx.ModelProto, Floats]:
    """(float model, inputs [count, C, H, W]) of a workload `width` times as wide with `resolution`
    times the side; each input is a mosaic of `samples`, so that its density does not change.

    Convert with `levels=15`; the shares hold for that number of levels, within a factor of about
    1.5. Biases are at most 0, so that silence stays silent. `real` as in `samples`.
    """
    workload = WORKLOADS[name]
    x = mosaic(samples(name, count * resolution**2, "train", real).x, resolution)
    shape = x.shape[1:]
    rng = np.random.default_rng(0)
    layers, value = [], x
    for (out, stride), share in zip(workload.convs, ACTIVE[name], strict=True):
        out *= width
        weight = _weights(rng, out, value.shape[1])
        charge = _convolved(value, weight, stride)
        bias, step = _thresholds(charge, share)
        layers.append((weight, bias, stride))
        value = np.clip(np.floor((charge + bias[:, None, None]) / step + 0.5), 0, LEVELS) * step
    features = int(np.prod(value.shape[1:]))
    readout = rng.normal(0, features**-0.5, (workload.classes, features)).astype(np.float16)
    last = readout, np.zeros(workload.classes, np.float16)
    return model_file.model(f"{name}_w{width}_r{resolution}", shape, layers, last), x


def mosaic(x: Floats, side: int) -> Floats:
    """Samples [N * side^2, C, H, W] as [N, C, side * H, side * W]: side^2 scenes on one sensor."""
    n, channels, height, width = x.shape
    tiles = x.reshape(n // side**2, side, side, channels, height, width)
    return np.ascontiguousarray(
        tiles.transpose(0, 3, 1, 4, 2, 5).reshape(-1, channels, side * height, side * width)
    )


def _weights(rng: np.random.Generator, out: int, fan: int) -> Floats:
    group = rng.normal(size=(out // 4, 1, fan, 3, 3)) * ALIKE**0.5
    own = rng.normal(size=(out // 4, 4, fan, 3, 3)) * (1 - ALIKE) ** 0.5
    weight = (group + own).reshape(out, fan, 3, 3) / np.sqrt(9 * fan)
    return weight.astype(np.float16).astype(np.float32)


def _convolved(x: Floats, weight: Floats, stride: int) -> Floats:
    """Charges of a 3x3 convolution with pad 1, sample by sample."""
    made = []
    for one in np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1))):
        windows = np.lib.stride_tricks.sliding_window_view(one, (3, 3), (1, 2))[
            :, ::stride, ::stride
        ]
        made.append(np.tensordot(weight, windows, ([1, 2, 3], [0, 3, 4])))
    return np.stack(made)


def _thresholds(charge: Floats, share: float) -> tuple[Floats, float]:
    """(bias per channel, step): `share` of a channel's charges plus bias reach half a step, where a
    staircase up to the highest charge has its first level."""
    flat = np.moveaxis(charge, 1, 0).reshape(charge.shape[1], -1)
    cut = np.quantile(flat, 1 - share, axis=1)
    top = float((flat.max(axis=1) - cut).max())
    step = top / (LEVELS - 0.5)
    bias = np.minimum(step / 2 - cut, 0).astype(np.float16).astype(np.float32)
    return bias, step
