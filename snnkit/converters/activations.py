"""Activations as functions of one float, with the points where they turn round.

An activation becomes a ladder of integer thresholds by bisection over the function itself, so a
row of this table is all that a new elementwise activation needs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Activation:
    """y = f(z). f takes [..., K] and is evaluated in float64.

    turns : z where f changes between rising and falling; () for a function that only rises.
    clip : (a, b) if f(z) = min(max(z, a), b), which one theta per channel can express.
    pattern : shape that the parameters of f need beside the channel pattern of z.
    """

    f: Callable[[Floats], Floats]
    turns: tuple[float, ...] = ()
    clip: tuple[float, float] | None = None
    pattern: tuple[int, ...] = field(default=())


def clip(low: float, high: float) -> Activation:
    return Activation(lambda z: np.clip(z, low, high), clip=(low, high))


IDENTITY = clip(-np.inf, np.inf)
RELU = clip(0.0, np.inf)


def leaky(slope: Floats) -> Activation:
    """PRelu and LeakyRelu: z where z >= 0, slope * z below. slope broadcasts over z's pattern."""
    a = np.asarray(slope, np.float64)[..., None]
    turns = (0.0,) if (a < 0).any() else ()
    return Activation(lambda z: np.where(z >= 0, z, a * z), turns, pattern=a.shape[:-1])


def sigmoid() -> Activation:
    return Activation(lambda z: 0.5 * (1.0 + np.tanh(0.5 * z)))


def tanh() -> Activation:
    return Activation(np.tanh)


def hard_sigmoid(alpha: float, beta: float) -> Activation:
    if alpha >= 0:
        return Activation(lambda z: np.clip(alpha * z + beta, 0.0, 1.0))
    return Activation(lambda z: np.clip(alpha * z + beta, 0.0, 1.0), turns=(np.inf,))


def elu(alpha: float, gamma: float = 1.0) -> Activation:
    """gamma * z above zero, gamma * alpha * (exp(z) - 1) below: Elu, and Selu with its gamma."""
    turns = (0.0,) if alpha < 0 else ()
    return Activation(
        lambda z: gamma * np.where(z >= 0, z, alpha * np.expm1(np.minimum(z, 0.0))), turns
    )


def softplus() -> Activation:
    return Activation(lambda z: np.logaddexp(0.0, z))


def hard_swish() -> Activation:
    """z * clip(z / 6 + 1/2, 0, 1); falls between -3 and -1.5."""
    return Activation(lambda z: z * np.clip(z / 6.0 + 0.5, 0.0, 1.0), turns=(-3.0, -1.5))
