"""Rivals written in torch: the float network itself, and spiking frameworks that step in time.

The spiking ones compute something else than one settled evaluation: an approximation of the float
network (rate coding) or of a quantised one (ST-BIF), over T time steps. Their time per classified
sample is what is compared, not the efficiency of their kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from snnkit.bench.rivals import Rivals
from snnkit.bench.torch_chain import torch_chain
from snnkit.errors import UnsupportedModel

Array = npt.NDArray[Any]
Net = Callable[[Array], Any]
RATE_STEPS = 16
STBIF_STEPS = 32
CALIBRATION = 512
"""Most samples that thresholds are taken from."""
INSTALL = {
    "torch": "pip install 'torch==2.13.0'",
    "spikingjelly": "pip install --no-deps spikingjelly==2.0.0 (its other requirements replace a "
    "CPU build of torch)",
    "sinabs": "pip install --no-deps sinabs==3.1.3 pbr nir==1.0.4",
}


def activations(net: Any, x: Array) -> list[Array]:
    """Outputs of each ReLU of a chain on samples x, in order."""
    import torch

    found, value = [], torch.from_numpy(x)
    with torch.no_grad():
        for layer in net:
            value = layer(value)
            if isinstance(layer, torch.nn.ReLU):
                found.append(value.numpy())
    return found


def spikingjelly_rate(net: Any, x: Array, steps: int, mode: str = "99.9%") -> Net:
    """IF neurons in place of ReLUs by `RateCodingRecipe` (thresholds from x, by `mode`); the input
    is presented in every step, the readout is the mean over time."""
    import torch
    from spikingjelly.activation_based import ann2snn, functional

    batches = [(torch.from_numpy(x[i : i + 64]), 0) for i in range(0, len(x), 64)]
    recipe = ann2snn.RateCodingRecipe(dataloader=batches, mode=mode)
    snn = ann2snn.Converter(recipe).convert(net).eval()

    def call(data: Array) -> Any:
        with torch.no_grad():
            functional.reset_net(snn)
            given = torch.from_numpy(data)
            total = snn(given)
            for _ in range(steps - 1):
                total = total + snn(given)
            return total / steps

    return call


def quantised_chain(net: Any, x: Array, levels: int) -> Any:
    """The chain with clip(rint(v / s), 0, levels) * s in place of each ReLU: the network that
    ST-BIF neurons are made from. s is the 99.9 % quantile on x over `levels`."""
    import torch

    class Quantiser(torch.nn.Module):  # type: ignore[misc]
        def __init__(self, scale: float):
            super().__init__()
            self.s, self.sym = torch.tensor(scale), False
            self.pos_max, self.neg_min, self.level = levels, 0, levels + 1

        def forward(self, v: Any) -> Any:
            return torch.clamp(torch.round(v / self.s), 0, levels) * self.s

    scales = iter([float(np.quantile(a, 0.999)) / levels for a in activations(net, x)])
    layers = [
        Quantiser(max(next(scales), 1e-9)) if isinstance(layer, torch.nn.ReLU) else layer
        for layer in net
    ]
    return torch.nn.Sequential(*layers).eval()


def spikingjelly_stbif(qann: Any, steps: int) -> Net:
    """`STBIFNode` in place of the quantisers by `SpikeZIPTFQANNRecipe`, all steps in one call; the
    input is presented in the first step, the readout is the sum over time."""
    import torch
    from spikingjelly.activation_based import ann2snn, functional, layer

    recipe = ann2snn.SpikeZIPTFQANNRecipe(time_steps=steps, model_family="roberta")
    snn = ann2snn.ModuleConverter(recipe).convert(qann).eval()
    for name, child in list(snn.named_children()):
        if isinstance(child, torch.nn.Flatten):
            setattr(snn, name, layer.Flatten(step_mode="m"))
    functional.set_step_mode(snn, "m")

    def call(data: Array) -> Any:
        with torch.no_grad():
            functional.reset_net(snn)
            sequence = torch.zeros((steps, *data.shape))
            sequence[0] = torch.from_numpy(data)
            return snn(sequence).sum(0)

    return call


def sinabs_rate(net: Any, shape: Sequence[int], steps: int) -> Net:
    """`sinabs.from_torch.from_model` (neurons that may fire several spikes in a step); the input is
    presented in every step, the readout is the mean over time."""
    import copy

    import torch
    from sinabs.from_torch import from_model

    made = from_model(copy.deepcopy(net), input_shape=tuple(shape), batch_size=1)
    snn = made.spiking_model

    def call(data: Array) -> Any:
        with torch.no_grad():
            snn.apply(lambda m: m.reset_states() if hasattr(m, "reset_states") else None)
            frames = torch.from_numpy(data).repeat_interleave(steps, 0)
            for module in snn.modules():
                if hasattr(module, "batch_size"):
                    module.batch_size = len(data)
            return snn(frames).reshape(len(data), steps, -1).mean(1)

    return call


def torch_rivals(
    source: onnx.ModelProto | None, x: Mapping[str, Array], threads: int, wanted: Sequence[str]
) -> Rivals:
    """Those of torch, spikingjelly and sinabs in `wanted` that are installed and take the source.

    x : samples by input name, which thresholds are taken from.
    """
    found = Rivals()
    if source is None or len(x) != 1:
        reason = "needs the source model (--source) with one input"
        found.left_out = {name: reason for name in wanted}
        return found
    name, data = next(iter(x.items()))
    data = data[:CALIBRATION]
    for rival in wanted:
        try:
            import torch

            torch.set_num_threads(threads)
            for title, call in _MAKERS[rival](torch_chain(source), data).items():
                found.candidates[title] = _on(name, call)
        except ModuleNotFoundError as error:
            package = "torch" if error.name == "torch" else rival
            found.left_out[rival] = f"not installed ({error}); run: {INSTALL[package]}"
        except UnsupportedModel as error:
            found.left_out[rival] = f"cannot take this network: {error.problems[0]}"
        except Exception as error:  # a peer that cannot take this network is left out, not fatal
            lines = str(error).strip().splitlines() or [type(error).__name__]
            found.left_out[rival] = f"cannot take this network: {lines[0].strip()}"
    return found


def _on(name: str, call: Net) -> Callable[[Mapping[str, Array]], Sequence[Any]]:
    return lambda x: [call(x[name]).numpy()]


def _eager(net: Any, x: Array) -> dict[str, Callable[[Array], Any]]:
    import torch

    def call(data: Array) -> Any:
        with torch.no_grad():
            return net(torch.from_numpy(data))

    return {"torch eager": call}


def _spikingjelly(net: Any, x: Array) -> dict[str, Callable[[Array], Any]]:
    qann = quantised_chain(net, x, STBIF_STEPS // 2 - 1)
    return {
        f"spikingjelly rate T={RATE_STEPS}": spikingjelly_rate(net, x, RATE_STEPS),
        f"spikingjelly ST-BIF T={STBIF_STEPS}": spikingjelly_stbif(qann, STBIF_STEPS),
    }


def _sinabs(net: Any, x: Array) -> dict[str, Callable[[Array], Any]]:
    return {f"sinabs T={RATE_STEPS}": sinabs_rate(net, x.shape[1:], RATE_STEPS)}


_MAKERS = {"torch": _eager, "spikingjelly": _spikingjelly, "sinabs": _sinabs}
