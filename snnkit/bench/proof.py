"""Equality before any time: a fast wrong answer is not an answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from snnkit.bench.rivals import caller, session
from snnkit.certificate import verify
from snnkit.errors import VerificationFailed
from snnkit.graph import Graph
from snnkit.onnx_writer import emit_recording

Array = npt.NDArray[Any]
Infer = Callable[[Any], Mapping[str, Array]]


def prove(
    graph: Graph, infer: Infer, x: Mapping[str, Array], parts: Sequence[Mapping[str, Array]]
) -> int:
    """The number of neurons compared: every neuron of every sample of `x`, in onnxruntime and in
    the engine's mode settle against the definition; then, batch by batch as they are timed, the
    bits of `infer` against onnxruntime on net.onnx.

    Raises VerificationFailed with the first difference.
    """
    certificate = verify(graph, x, modes=("settle",))
    if not certificate.passed:
        d = certificate.first_difference
        where = "" if d is None else f", first: {d.execution}, node '{d.node}', sample {d.sample}"
        raise VerificationFailed(
            f"{certificate.neurons_different} of {certificate.neurons_compared} neurons and "
            f"{certificate.outputs_different} outputs differ{where}; nothing was timed"
        )
    names = [b.name for b in graph.outputs]
    expected = caller(session(emit_recording(graph, [])[0], 1), names)
    exact = {b.name: all(step["op"] == "ArgMax" for step in b.post) for b in graph.outputs}
    for number, part in enumerate(parts):
        found = infer(part)
        for name, value in zip(names, expected(part), strict=True):
            same = found[name].tobytes() == np.asarray(value).tobytes()
            if exact[name] and not same:
                raise VerificationFailed(
                    f"output '{name}' of batch {number} differs from onnxruntime on net.onnx; "
                    "nothing was timed"
                )
    return certificate.neurons_compared
