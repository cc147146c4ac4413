"""The networks of the workloads, converted, with the samples to time and to test them on."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import onnx

import snnkit
from benchmarks.workloads import WORKLOADS, Samples, samples
from snnkit.graph import Graph

LEVELS = 15
CALIBRATION = 256
TESTED = 2000
"""Samples that accuracies are of, at most."""


@cache
def test(name: str) -> Samples:
    return samples(name, TESTED)


@cache
def train(name: str) -> Samples:
    """What graphs and rivals are calibrated on."""
    return samples(name, CALIBRATION, "train")


@cache
def source(name: str) -> onnx.ModelProto:
    return onnx.load(WORKLOADS[name].network)


@cache
def graph(name: str, levels: int = LEVELS, staircase: str = "auto") -> Graph:
    """The trained network as integers, without retraining."""
    return snnkit.convert(
        str(WORKLOADS[name].network), train(name).x, levels=levels, staircase=staircase
    )


def accuracies(name: str, candidates: Mapping[str, Any]) -> dict[str, float]:
    """Share of the test samples that each candidate (a call from samples to outputs) gets right;
    empty where they have no labels."""
    given = test(name)
    if given.y is None:
        return {}
    found = {}
    for title, call in candidates.items():
        parts = [given.x[i : i + 100] for i in range(0, len(given.x), 100)]
        guesses = np.concatenate([np.asarray(call(part)).argmax(1) for part in parts])
        found[title] = float((guesses == given.y).mean())
    return found
