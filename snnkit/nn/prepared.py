"""A model prepared for quantisation-aware training: the spiking network in a form that trains."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx, nn

from snnkit.nn.quantised import Spike
from snnkit.nn.reading import Reading


class Prepared(nn.Module):
    """What `snnkit.nn.prepare` returns.

    Called, it behaves as the model did: floats in, floats out. In training mode gradients flow to
    weights and steps; in evaluation mode the result is the converted network's, bit for bit.

    shapes, dtypes : of one sample of each input, by the input's name.
    settings : what `prepare` was told, as text.
    """

    def __init__(
        self,
        body: fx.GraphModule,
        shapes: dict[str, tuple[int, ...]],
        dtypes: dict[str, str],
        settings: str,
    ):
        super().__init__()
        self.body = body
        self.shapes, self.dtypes, self.settings = shapes, dtypes, settings

    def forward(self, *inputs: Tensor) -> Any:
        return self.body(*inputs)

    def readings(self, *inputs: Tensor) -> dict[str, Reading]:
        """Every reading on the way, by name of its layer; evaluation mode, whatever the model's."""
        found: dict[str, Reading] = {}

        class Walk(fx.Interpreter):  # type: ignore[misc, unused-ignore]
            def run_node(self, n: fx.Node) -> Any:
                result = super().run_node(n)
                if isinstance(result, Reading):
                    found[n.name] = result
                return result

        modes = {m: m.training for m in self.modules()}
        self.eval()
        try:
            with torch.no_grad():
                Walk(self.body).run(*inputs)
        finally:
            for m, mode in modes.items():
                m.training = mode
        return found

    def counts(self, *inputs: Tensor) -> dict[str, npt.NDArray[np.int64]]:
        """The integers [N, *shape] of every spiking layer by name, in evaluation mode. The
        converted graph has a spike node of the same name."""
        names = {
            n.name
            for n in self.body.graph.nodes
            if n.op == "call_module" and isinstance(self.body.get_submodule(n.target), Spike)
        }
        readings = self.readings(*inputs)
        return {n: readings[n].counts.cpu().numpy().astype(np.int64) for n in names}
