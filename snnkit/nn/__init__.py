"""Quantisation-aware training in PyTorch."""

from __future__ import annotations

from snnkit.nn.prepare import prepare
from snnkit.nn.prepared import Prepared
from snnkit.nn.quantised import InputGrid
from snnkit.nn.quantisers import LSQ, QCFS, LevelQuantiser, WeightQuantiser

__all__ = ["LSQ", "QCFS", "InputGrid", "LevelQuantiser", "Prepared", "WeightQuantiser", "prepare"]
