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


def _batch_axes(module: Any, data: list[np.ndarray[Any, Any]]) -> list[int]:
    """The batch axis of each input: the first, or the second where samples along the first depend
    on each other, as with torch's recurrent layers without `batch_first`."""
    import torch

    layers = [m for m in module.modules() if isinstance(m, torch.nn.RNNBase)]
    if all(m.batch_first for m in layers):
        return [0] * len(data)

    def outputs(arrays: list[np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
        with torch.no_grad():
            found = module(*(torch.as_tensor(a) for a in arrays))
        flat, _ = torch.utils._pytree.tree_flatten(found)
        return [np.asarray(t) for t in flat]

    def apart(index: int, axis: int) -> bool:
        changed = [a.copy() for a in data]
        slot = (slice(None),) * axis + (0,)
        changed[index][slot] = changed[index][slot] + 1
        for before, after in zip(outputs(data), outputs(changed), strict=True):
            moved = before != after
            axes = [k for k in range(moved.ndim) if moved.shape[k] == data[index].shape[axis]]
            if not any(not moved.take(range(1, moved.shape[k]), k).any() for k in axes):
                return False
        return True

    return [0 if a.ndim < 2 or apart(i, 0) or not apart(i, 1) else 1 for i, a in enumerate(data)]


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
    data = [np.asarray(a) for a in arrays]
    training = module.training
    module.eval()
    buffer = io.BytesIO()
    try:
        batch = _batch_axes(module, data)
        example = tuple(
            torch.as_tensor(a.take(range(min(2, a.shape[i])), i))
            for a, i in zip(data, batch, strict=True)
        )
        axes = tuple({i: torch.export.Dim("batch")} for i in batch)
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
