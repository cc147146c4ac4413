"""From a plain torch model to one that trains as the spiking network it will become."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from snnkit.errors import Problem, UnsupportedModel, UsageError
from snnkit.nn import curves, quantised
from snnkit.nn.prepared import Prepared
from snnkit.nn.quantisers import QUANTISERS
from snnkit.nn.reading import Reading, varying

WIDE = 255
"""Levels where a charge is only carried on: before pools, layers without an activation, outputs."""
CALIBRATION_SAMPLES = 256
SAMPLED = 2**16


def prepare(
    model: nn.Module,
    *,
    example: Any,
    levels: int = 7,
    weight_bits: int = 4,
    quantiser: str = "lsq",
    overrides: Mapping[str, Mapping[str, int]] | None = None,
    input_grid: quantised.InputGrid | Mapping[str, quantised.InputGrid] | None = None,
) -> Prepared:
    """A copy of `model` that is quantised as the spiking network is, ready for training.

    Activations are y = s * clip(floor(f(z) / s + 1/2), lo, hi), weights symmetric integers per
    output channel, sums of branches share an integer grid, averages are integer sums. In
    evaluation mode the integers are exact and `snnkit.convert(prepared)` writes them down.

    Parameters
    ----------
    model : plain torch; it is traced with torch.fx and stays as it is.
    example : Tensor [N, ...] (or a tuple, one per input). First step sizes are taken from up to
        256 samples; a hundred training samples do.
    levels : 1..255, steps of each activation. weight_bits : 2..8.
    quantiser : "lsq" or "qcfs" (`snnkit.nn.quantisers`).
    overrides : {"layer1.conv": {"weight_bits": 8}, "relu_1": {"levels": 15}} by the path of a
        module or by the name that torch.fx gives a call.
    input_grid : the input's quantiser, `InputGrid(scale, offset, lo)` (by the input's name where
        there are several). Without it, it is read off the example: values on a grid of at most
        256 values per channel (images of 8 bits in any scaling, event counts) are taken exactly,
        so the example must show the whole grid; other data get 255 equal steps.

    Raises
    ------
    UnsupportedModel : with every layer that cannot be prepared. UsageError : for an option.
    """
    if not 1 <= levels <= 255 or not 2 <= weight_bits <= 8 or quantiser not in QUANTISERS:
        raise UsageError(
            f"levels {levels}, weight_bits {weight_bits}, quantiser {quantiser!r}; expected "
            f"1..255, 2..8 and one of {', '.join(QUANTISERS)}"
        )
    copied = copy.deepcopy(model).cpu()
    traced = _traced(copied)
    examples = example if isinstance(example, (tuple, list)) else (example,)
    tensors = [torch.as_tensor(e).detach().cpu() for e in examples]
    _check_examples(traced, tensors)
    settings = {"levels": levels, "weight_bits": weight_bits}
    builder = Builder(traced, tensors, settings, quantiser, dict(overrides or {}), input_grid)
    body = builder.build()
    shapes = {n: tuple(t.shape[1:]) for n, t in zip(builder.inputs, tensors, strict=True)}
    dtypes = {n: str(t.dtype).split(".")[-1] for n, t in zip(builder.inputs, tensors, strict=True)}
    text = f"trained with {quantiser}, levels {levels}, weight bits {weight_bits}"
    text += f", overrides {sorted(overrides)}" if overrides else ""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    prepared = Prepared(body, shapes, dtypes, text)
    prepared.to(device).train()
    return prepared


def _traced(model: nn.Module) -> fx.GraphModule:
    try:
        traced = fx.symbolic_trace(model)
    except Exception as error:  # tracing runs the model's own code
        reason = f"torch.fx cannot trace it: {str(error).strip().splitlines()[0]}"
        remedy = "its control flow must not depend on the data"
        name = type(model).__name__
        raise UnsupportedModel([Problem(name, "torch module", reason, remedy)]) from error
    traced.graph.eliminate_dead_code()
    return traced


def _check_examples(traced: fx.GraphModule, tensors: list[Tensor]) -> None:
    inputs = [n.name for n in traced.graph.nodes if n.op == "placeholder"]
    if len(inputs) != len(tensors):
        raise UsageError(f"{len(tensors)} examples for the inputs {inputs}; expected one for each")
    for name, t in zip(inputs, tensors, strict=True):
        if t.ndim < 2 or len(t) < 1 or not bool(torch.isfinite(t.double()).all()):
            raise UsageError(
                f"example for '{name}': {tuple(t.shape)}; expected [N, ...] of finite numbers"
            )


@dataclass(frozen=True, eq=False)
class Value:
    """A value of the model under construction: its node, its reading of two samples, and the
    bounds of its integers; None for a charge. `post` : a float step behind the readout."""

    node: fx.Node
    reading: Reading
    bounds: tuple[int, int] | None
    post: tuple[str, int] | None = None

    def is_byte(self, axis: int | None, positive: bool = False) -> bool:
        """Whether a layer can read it: 8 bits, its scale varying along `axis` at most."""
        if self.bounds is None or self.bounds[1] - self.bounds[0] > WIDE:
            return False
        if positive and not bool((self.reading.scale > 0).all()):
            return False
        return not set(varying(self.reading.scale)) - {axis}


class Floats(fx.Interpreter):  # type: ignore[misc, unused-ignore]
    """Runs the float model on the example and keeps every value."""

    def __init__(self, module: fx.GraphModule):
        super().__init__(module, garbage_collect_values=False)
        self.values: dict[str, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        self.values[n.name] = super().run_node(n)
        return self.values[n.name]


class Builder:
    """Goes through the traced model and builds the prepared one beside it."""

    def __init__(
        self,
        traced: fx.GraphModule,
        examples: list[Tensor],
        settings: dict[str, int],
        quantiser: str,
        overrides: dict[str, Mapping[str, int]],
        grid: Any,
    ):
        self.traced, self.settings, self.quantiser, self.grid = traced, settings, quantiser, grid
        self.root, self.graph = nn.Module(), fx.Graph()
        self.env: dict[fx.Node, Value] = {}
        self.broken: set[fx.Node] = set()
        self.problems: list[Problem] = []
        self.requantised: dict[fx.Node, Value] = {}
        self.inputs = [n.name for n in traced.graph.nodes if n.op == "placeholder"]
        self.examples = dict(zip(self.inputs, examples, strict=True))
        self.overrides = self._checked(overrides)
        self.floats = self._float_values()

    def _checked(self, overrides: dict[str, Mapping[str, int]]) -> dict[str, Mapping[str, int]]:
        nodes = self.traced.graph.nodes
        known = {n.name for n in nodes} | {str(n.target) for n in nodes if n.op == "call_module"}
        for key, options in overrides.items():
            if key not in known:
                raise UsageError(f"override '{key}'; expected one of {', '.join(sorted(known))}")
            ranges = {"levels": (1, 255), "weight_bits": (2, 8)}
            for name, value in options.items():
                if name not in ranges or not ranges[name][0] <= value <= ranges[name][1]:
                    raise UsageError(f"override '{key}': {name} {value}; expected {ranges}")
        return overrides

    def option(self, node: fx.Node, name: str, default: int | None = None) -> int:
        for key in (node.name, str(node.target)):
            if name in self.overrides.get(key, {}):
                return int(self.overrides[key][name])
        return self.settings[name] if default is None else default

    def _float_values(self) -> dict[str, Any]:
        model = copy.deepcopy(self.traced).eval()
        for m in model.modules():
            # statistics that nobody has gathered yet say nothing: take the example's
            if getattr(m, "num_batches_tracked", None) is not None and not m.num_batches_tracked:
                m.train()
        few = [t[:CALIBRATION_SAMPLES] for t in self.examples.values()]
        few = [torch.cat([t, t]) if len(t) == 1 else t for t in few]
        floats = Floats(model)
        try:
            with torch.no_grad():
                floats.run(*few)
        except Exception as error:  # the model's own code
            reason = f"it does not run on the example: {str(error).strip().splitlines()[0]}"
            problem = Problem("model", "torch module", reason, "give an example that it takes")
            raise UnsupportedModel([problem]) from error
        return floats.values

    def build(self) -> fx.GraphModule:
        from snnkit.nn.handlers import handle

        self.root.eval()
        for node in self.traced.graph.nodes:
            if self.broken.intersection(node.all_input_nodes):
                self.broken.add(node)
            elif node not in self.env:
                handle(self, node)
        if self.problems:
            raise UnsupportedModel(self.problems)
        return fx.GraphModule(self.root, self.graph)

    def refuse(self, node: fx.Node, reason: str, remedy: str) -> None:
        target = str(node.target) if node.op == "call_module" else node.name
        op = node.op
        if node.op == "call_module":
            op = type(self.traced.get_submodule(target)).__name__
        self.problems.append(Problem(target, op, reason, remedy))
        self.broken.add(node)

    def place(
        self,
        name: str,
        module: nn.Module,
        sources: list[Value],
        bounds: tuple[int, int] | None,
    ) -> Value:
        """A layer of the prepared model that reads `sources`."""
        target = name
        while hasattr(self.root, target):
            target += "_"
        self.root.add_module(target, module.eval())
        node = self.graph.create_node(
            "call_module", target, tuple(s.node for s in sources), name=name
        )
        with torch.no_grad():
            reading = module(*[s.reading for s in sources])
        return Value(node, reading, bounds)

    def spike(
        self, name: str, source: Value, curve: curves.Curve, floats: Tensor, levels: int
    ) -> Value:
        from snnkit.converters.calibration import choose

        flat = floats.detach().double().reshape(-1)
        some = flat[:: max(1, len(flat) // SAMPLED)].numpy()
        ends = (float(flat.min()), float(flat.max()))
        stairs = choose(np.append(some, ends), levels, "mse")
        # the range of a learned staircase starts at its first value: 0 unless the example says so
        made = QUANTISERS[self.quantiser](stairs.step, stairs.lo, stairs.hi)
        spike = quantised.Spike(curve, made)
        return self.place(name, spike, [source], (stairs.lo, stairs.hi))

    def byte(self, source: Value, old: fx.Node, axis: int | None, positive: bool = False) -> Value:
        """`source` (made of `old`) as 8-bit integers, through a quantiser if it is none yet."""
        if source.is_byte(axis, positive):
            return source
        if source.node not in self.requantised:
            floats, name = self.floats[old.name], f"{source.node.name}_requantised"
            made = self.spike(name, source, curves.IDENTITY, floats, WIDE)
            self.requantised[source.node] = made
        return self.requantised[source.node]
