"""IIR-SNN: Chowdhury, Rathi and Roy, "One Timestep is All You Need", arXiv 2110.05929.

An ANN is trained, its BatchNorm fused, its ReLUs become leaky neurons whose thresholds are a
percentile of the pre-activations, and the SNN is trained at T = 5, then from there at 4, 3, 2, 1.
At T = 1 it is a stateless network with binary activations. `snnkit.models.iir_training` holds the
training; here are the networks and the steps between the stages.

The direct encoding feeds the image in every step, so the first neurons are the encoder. The
logits are the sum of the last layer's outputs over T; it has neither leak nor threshold.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from snnkit.errors import UsageError
from snnkit.nn import Direct, Folded, IIRNeuron, TimeDropout, TimeSum, reset_net

POOL = "A"
VGG: dict[str, tuple[tuple[Any, ...], tuple[int, ...], tuple[int, int, int]]] = {
    "iir-vgg9": (
        (64, POOL, 128, 256, POOL, 256, 512, POOL, 512, POOL, 512),
        (4096, 4096),
        (3, 32, 32),
    ),
    "iir-vgg11": (
        (64, POOL, 128, 256, POOL, 512, 512, POOL, 512, POOL, 512, 512),
        (4096, 4096),
        (3, 32, 32),
    ),
    "iir-vgg16": (
        (64, 64, POOL, 128, 128, POOL, *(256,) * 3, POOL, *(512,) * 3, POOL, *(512,) * 3),
        (4096, 4096),
        (3, 32, 32),
    ),
    "iir-vgg16-imagenet": (
        (64, 64, POOL, 128, 128, POOL, *(256,) * 3, POOL, *(512,) * 3, POOL, *(512,) * 3, POOL),
        (4096, 4096),
        (3, 224, 224),
    ),
    "iir-vgg5": ((16, POOL, 32, POOL, 64), (128,), (1, 28, 28)),
}
"""Features (channels of 3x3 convolutions; POOL: 2x2 average), hidden linear layers, input shape.
iir-vgg5 is ours, for MNIST-sized data on a CPU; the others are the authors'."""


class IIRNet(nn.Module):
    """A network in two forms of the same layers: an SNN with `steps` steps, or its ANN.

    Attributes: layers, the network proper; config, what `build` takes to make it again.
    SNN: x [N, C, H, W] to logits [N, num_classes] summed over T; state is reset at each call.
    """

    def __init__(self, layers: nn.Sequential, steps: int | None, config: dict[str, Any]):
        super().__init__()
        self.config = config
        self.encode = nn.Identity() if steps is None else Direct(steps)
        self.layers = layers
        self.readout = nn.Identity() if steps is None else TimeSum()
        for module in layers.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    @property
    def steps(self) -> int | None:
        """T of the SNN, None for the ANN."""
        return self.encode.steps if isinstance(self.encode, Direct) else None

    def forward(self, x: Tensor) -> Tensor:
        reset_net(self)
        return self.readout(self.layers(self.encode(x)))


class _Form:
    """How one layer is written in the ANN (steps None) and in the SNN."""

    def __init__(self, steps: int | None, batch_norm: bool, dropout: float):
        self.spiking, self.batch_norm, self.p = steps is not None, batch_norm, dropout

    def stateless(self, *modules: nn.Module) -> nn.Sequential:
        return Folded(*modules) if self.spiking else nn.Sequential(*modules)

    def conv(self, source: int, out: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
        norm = [nn.BatchNorm2d(out)] if self.batch_norm else []
        bias = not self.batch_norm
        conv = nn.Conv2d(source, out, kernel, stride, kernel // 2, bias=bias)
        return self.stateless(conv, *norm)

    def fire(self) -> nn.Module:
        return IIRNeuron() if self.spiking else nn.ReLU()

    def dropout(self) -> nn.Module:
        return TimeDropout(self.p) if self.spiking else nn.Dropout(self.p)


class Block(nn.Module):
    """fire(residual(x) + identity(x)): two synapses on one membrane."""

    def __init__(self, form: _Form, source: int, out: int, stride: int):
        super().__init__()
        first = form.conv(source, out, stride=stride)
        self.residual = nn.Sequential(first, form.fire(), form.dropout(), form.conv(out, out))
        same = stride == 1 and source == out
        self.identity = nn.Identity() if same else form.conv(source, out, 1, stride)
        self.fire = form.fire()

    def forward(self, x: Tensor) -> Tensor:
        return self.fire(self.residual(x) + self.identity(x))


def vgg(
    name: str,
    num_classes: int = 10,
    steps: int | None = 5,
    batch_norm: bool = False,
    dropout: float = 0.2,
    input_shape: tuple[int, int, int] | None = None,
) -> IIRNet:
    """A network of `VGG` by name.

    steps : T of the SNN; None gives the ANN (ReLU). batch_norm : behind each convolution, which
    then has no bias; linear layers never have one. Dropout stands behind every neuron that no
    pooling follows.
    """
    features, hidden, shape = VGG[name]
    channels, height, width = input_shape or shape
    form = _Form(steps, batch_norm, dropout)
    layers: list[nn.Module] = []
    for item in features:
        if item == POOL:
            layers[-1] = form.stateless(nn.AvgPool2d(2))
            height, width = height // 2, width // 2
        else:
            layers += [form.conv(channels, item), form.fire(), form.dropout()]
            channels = item
    layers.append(form.stateless(nn.Flatten()))
    size = channels * height * width
    for out in hidden:
        linear = nn.Linear(size, out, bias=False)
        layers += [form.stateless(linear), form.fire(), form.dropout()]
        size = out
    layers.append(form.stateless(nn.Linear(size, num_classes, bias=False)))
    config = {"name": name, "num_classes": num_classes, "input_shape": input_shape}
    return IIRNet(nn.Sequential(*layers), steps, config)


def resnet20(
    num_classes: int = 10,
    steps: int | None = 5,
    batch_norm: bool = False,
    dropout: float = 0.2,
    input_shape: tuple[int, int, int] | None = None,
) -> IIRNet:
    """The authors' ResNet-20: three 3x3 convolutions of 64 and an average pool, then two blocks
    each of 64, 128, 256, 512 channels, then one linear layer without bias. Options as `vgg`."""
    channels, height, width = input_shape or (3, 32, 32)
    form = _Form(steps, batch_norm, dropout)
    layers: list[nn.Module] = []
    for i in range(3):
        layers += [form.conv(64 if i else channels, 64), form.fire(), form.dropout()]
    layers[-1] = form.stateless(nn.AvgPool2d(2))
    height, width, source = height // 2, width // 2, 64
    for out in (64, 128, 256, 512):
        stride = 1 if out == 64 else 2
        layers += [Block(form, source, out, stride), Block(form, out, out, 1)]
        height, width, source = -(-height // stride), -(-width // stride), out
    linear = nn.Linear(source * height * width, num_classes, bias=False)
    layers += [form.stateless(nn.Flatten()), form.stateless(linear)]
    config = {"name": "iir-resnet20", "num_classes": num_classes, "input_shape": input_shape}
    return IIRNet(nn.Sequential(*layers), steps, config)


NETWORKS: dict[str, Callable[..., IIRNet]] = {
    **{name: partial(vgg, name) for name in VGG},
    "iir-resnet20": resnet20,
}


def fuse_bn(model: nn.Module) -> Any:
    """A copy of `model` in which no BatchNorm is left: y = gamma (Wx - mean) / sd + beta becomes
    W' x + b' with W' = W gamma / sd and b' = beta - mean gamma / sd (running statistics).

    Raises UsageError for a BatchNorm that does not directly follow a Conv2d or Linear.
    """
    fused = copy.deepcopy(model)
    for holder in list(fused.modules()):
        if not isinstance(holder, nn.Sequential):
            continue
        kept: list[nn.Module] = []
        for module in holder:
            known = kept and isinstance(kept[-1], (nn.Conv2d, nn.Linear))
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)) and known:
                _absorb(kept[-1], module)
            else:
                kept.append(module)
        if len(kept) < len(holder):
            del holder[:]
            holder.extend(kept)
    for name, module in fused.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise UsageError(
                f"'{name}': a BatchNorm that follows no convolution or linear layer inside one "
                "Sequential; expected that order, put them next to each other"
            )
    return fused


def _absorb(synapse: Any, norm: Any) -> None:
    with torch.no_grad():
        factor = norm.weight / (norm.running_var + norm.eps).sqrt()
        bias = norm.bias - norm.running_mean * factor
        if synapse.bias is not None:
            bias = bias + synapse.bias * factor
        weight = synapse.weight * factor.reshape(-1, *(1,) * (synapse.weight.dim() - 1))
        synapse.weight = nn.Parameter(weight)
        synapse.bias = nn.Parameter(bias)


def spiking(ann: IIRNet, steps: int, dropout: float = 0.2) -> IIRNet:
    """The SNN of a fused ANN: the same weights, leak 1, thresholds 1 (to be set next)."""
    model: IIRNet = NETWORKS[ann.config["name"]](
        **{k: v for k, v in ann.config.items() if k != "name"}, steps=steps, dropout=dropout
    )
    missing, unexpected = model.load_state_dict(ann.state_dict(), strict=False)
    if unexpected or any(not k.endswith((".threshold", ".leak")) for k in missing):
        raise UsageError(f"{unexpected or missing}; expected an ANN without BatchNorm: fuse_bn it")
    return model


def neurons(model: nn.Module) -> list[IIRNeuron]:
    """The model's IIR neurons in the order in which they fire."""
    return [m for m in model.modules() if isinstance(m, IIRNeuron)]


class _Reached(Exception):
    """The forward pass has come to the neuron that is looked at."""


def thresholds_by_percentile(model: IIRNet, x: Tensor, percentile: float = 90.0) -> list[float]:
    """Set each threshold to a percentile of its layer's pre-activations; returns them.

    Layer by layer, with the thresholds set so far, at the model's T: the largest over the steps
    of the k-th smallest of all pre-activations of the batch x, k = 1 + round(q/100 (n - 1)). A
    threshold that would be 0 or below becomes 0.1. The authors take the 90th percentile of 512
    training images over 500 steps (DIET-SNN the 99.7th).
    """
    found: list[float] = []
    training = model.training
    model.eval()
    for neuron in neurons(model):

        def look(_: Any, inputs: tuple[Tensor]) -> None:
            for step in inputs[0]:
                k = 1 + round(percentile / 100 * (step.numel() - 1))
                found[-1] = max(found[-1], float(step.flatten().kthvalue(k).values))
            raise _Reached

        found.append(0.0)
        hook = neuron.register_forward_pre_hook(look)
        try:
            with torch.no_grad():
                model(x)
        except _Reached:
            pass
        finally:
            hook.remove()
        found[-1] = found[-1] or 0.1
        with torch.no_grad():
            neuron.threshold.fill_(found[-1])
    model.train(training)
    reset_net(model)
    return found


def next_stage(model: IIRNet, steps: int) -> IIRNet:
    """The start of the next stage: a copy with fewer steps and the same weights, thresholds and
    leaks. Raises UsageError unless T decreases."""
    if model.steps is None or not 0 < steps < model.steps:
        raise UsageError(f"from T = {model.steps} to {steps}; expected fewer steps, at least 1")
    reset_net(model)
    following = copy.deepcopy(model)
    following.encode = Direct(steps)
    return following
