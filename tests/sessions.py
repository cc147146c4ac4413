"""onnxruntime as the oracle of a small network."""

from __future__ import annotations

from typing import Any

import onnxruntime as ort


def session(model: Any) -> ort.InferenceSession:
    """One thread: to start more takes longer than a small network, and integers are the same."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    content = model if isinstance(model, bytes) else model.SerializeToString()
    return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
