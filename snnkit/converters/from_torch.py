"""A torch module, by way of ONNX: one path from model to graph, not two."""

from __future__ import annotations

import io
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from snnkit.errors import BackendMissing, Problem, UnsupportedModel


def is_module(model: Any) -> bool:
    """Whether `model` is a torch module; torch is not imported for the answer."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(model, torch.nn.Module)


def export(module: Any, calibration: Any) -> bytes:
    """The module in eval mode as ONNX bytes with a free batch axis; its own mode is kept."""
    import torch

    try:
        import onnxscript  # noqa: F401  torch.onnx needs it
    except ImportError as error:
        raise BackendMissing(
            "exporting a torch module needs onnxscript; pip install onnxscript"
        ) from error
    arrays = calibration.values() if isinstance(calibration, Mapping) else [calibration]
    example = tuple(torch.as_tensor(np.asarray(a)[:2]) for a in arrays)
    axes = tuple({0: torch.export.Dim("batch")} for _ in example)
    training = module.training
    module.eval()
    buffer = io.BytesIO()
    try:
        program = torch.onnx.export(
            module, example, dynamo=True, dynamic_shapes=axes, verbose=False, external_data=False
        )
        program.save(buffer)
    except Exception as error:  # the exporter raises many kinds
        reason = f"torch cannot export it: {str(error).strip().splitlines()[0]}"
        problem = Problem(
            type(module).__name__, "torch module", reason, "export it to ONNX yourself"
        )
        raise UnsupportedModel([problem]) from error
    finally:
        module.train(training)
    return buffer.getvalue()
