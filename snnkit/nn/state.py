"""Modules that remember: state from one step to the next, and how it is forgotten."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from snnkit.errors import StateMismatch


class Stateful(nn.Module):
    """A module with state from step to step, kept in the attributes named by `memory`.

    The state is None until the first input and after `reset`. It is neither a parameter nor a
    buffer: it belongs to the batch under way, never to a checkpoint.

    multi_step : True: `forward` takes [T, N, ...] and runs T steps; False: [N, ...], one step.
    """

    memory: ClassVar[tuple[str, ...]] = ()

    def __init__(self, multi_step: bool = True):
        super().__init__()
        self.multi_step = multi_step
        self.label = ""
        self.reset()

    def reset(self) -> None:
        """Forget the state: the next input may have any batch size and device."""
        for name in self.memory:
            setattr(self, name, None)

    def step(self, x: Tensor) -> Tensor:
        """One step: x [N, ...] to an output of the same shape."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        if not self.multi_step:
            return self.step(x)
        return torch.stack([self.step(now) for now in x])

    def begin(self, x: Tensor, initial: float = 0.0) -> None:
        """Fill every state that is None with `initial`, shaped as x.

        Raises StateMismatch if the state in hand belongs to another batch shape or device.
        """
        for name in self.memory:
            state = getattr(self, name)
            if state is None:
                setattr(self, name, torch.full_like(x, initial))
            elif state.shape != x.shape or state.device != x.device:
                raise StateMismatch(
                    f"{type(self).__name__} '{self.label or self.extra_repr()}': state '{name}' is "
                    f"{tuple(state.shape)} on {state.device}, the input {tuple(x.shape)} on "
                    f"{x.device}; expected the same between resets; call "
                    "snnkit.nn.reset_net(model) before a new batch"
                )


def reset_net(model: nn.Module) -> None:
    """Forget the state of every neuron in `model` (and note the neurons' names for messages)."""
    for name, module in model.named_modules():
        if isinstance(module, Stateful):
            module.label = name
            module.reset()


def set_multi_step(model: nn.Module, multi_step: bool) -> None:
    """Let every neuron in `model` take [T, N, ...] (True) or one step [N, ...] (False)."""
    for module in model.modules():
        if isinstance(module, Stateful):
            module.multi_step = multi_step
