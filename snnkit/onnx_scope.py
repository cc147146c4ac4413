"""Where the ONNX nodes of a graph are collected: the model's own scope, and one per Scan body."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

from snnkit.errors import RangeOverflow
from snnkit.graph import ARRAY, TENSOR, Graph, Node
from snnkit.onnx_functions import DOMAIN


class Scope:
    """Collects nodes and initialisers; implements `snnkit.ops.Writer`.

    A sweep with a direction has a writer of its own, for the body of its Scan: it shares arrays
    with the `outer` one and sees the values of sweeps of direction 0 there.
    stacks : the values of all steps, [T, N, *shape], as (are they bytes, tensor), by node.
    """

    def __init__(self, graph: Graph, outer: Scope | None = None, suffix: str = ""):
        self.graph, self.outer, self.suffix = graph, outer, suffix
        self.nodes: list[onnx.NodeProto] = []
        self.arrays: dict[str, npt.NDArray[Any]] = outer.arrays if outer else {}
        self.bytes: dict[str, str] = {}
        self.words: dict[str, str] = {}
        self.stacks: dict[str, tuple[bool, str]] = {}
        self.lengths = self.ends = self.ticks = ""
        self.called: set[str] = outer.called if outer else set()

    def source(self, node: Node, index: int = 0) -> Node:
        return self.graph.node[node.inputs[index]]

    def array(self, name: str, value: npt.ArrayLike) -> str:
        tensor = f"{ARRAY}{name}"
        self.arrays[tensor] = np.asarray(value)
        return tensor

    def emit(
        self, op: str, inputs: Sequence[str], output: str, domain: str = "", **attrs: Any
    ) -> str:
        return self.append(op, inputs, [f"{TENSOR}{output}"], domain, **attrs)

    def state(self, node: Node) -> str:
        return f"{TENSOR}{node.name}.before"

    def emit_stateful(self, op: str, inputs: Sequence[str], output: str, node: Node) -> str:
        outputs = [f"{TENSOR}{output}", f"{TENSOR}{node.name}.after"]
        return self.append(op, inputs, outputs, DOMAIN)

    def append(
        self,
        op: str,
        inputs: Sequence[str],
        outputs: Sequence[str],
        domain: str = "",
        **attrs: Any,
    ) -> str:
        """One ONNX node with outputs of these very names; returns the first."""
        if domain:
            self.called.add(op)
        plain = {k: list(v) if isinstance(v, tuple) else v for k, v in attrs.items()}
        self.nodes.append(
            helper.make_node(op, list(inputs), outputs, name=outputs[0], domain=domain, **plain)
        )
        return outputs[0]

    def is_byte(self, node: Node, tensor: str) -> None:
        self.bytes[node.name] = tensor

    def is_word(self, node: Node, tensor: str) -> None:
        self.words[node.name] = tensor

    def stack(self, node: Node) -> tuple[bool, str]:
        return self.stacks[node.name]

    def is_stack(self, node: Node, as_byte: bool, tensor: str) -> None:
        """Declare that `tensor` holds the node's values of all steps, as bytes or as words."""
        self.stacks[node.name] = (as_byte, tensor)

    def long_lengths(self) -> str:
        """The samples' numbers of steps, [N] int64; written once."""
        if not self.lengths:
            self.lengths = self.emit("Cast", [self.graph.lengths], "lengths", to=TensorProto.INT64)
        return self.lengths

    def _ends(self) -> str:
        """Where in a stack the last step of each sample lies: [N, 2], (step, sample)."""
        if not self.ends:
            one, zero = self.array("one_step", np.int64(1)), self.array("step_first", np.int64(0))
            step = self.emit("Sub", [self.long_lengths(), one], "ends.steps")
            count = self.emit("Size", [step], "ends.count")
            sample = self.emit("Range", [zero, count, one], "ends.samples")
            column = self.array("column", np.array([1], np.int64))
            pairs = [
                self.emit("Unsqueeze", [tensor, column], f"ends.{i}")
                for i, tensor in enumerate((step, sample))
            ]
            self.ends = self.emit("Concat", pairs, "ends", axis=1)
        return self.ends

    def zero_point(self, node: Node) -> str:
        return self.array(f"zero_{-node.lo}", np.uint8(-node.lo))

    def byte(self, node: Node) -> str:
        holder = self._holder(node)
        if holder is not self:
            return holder.byte(node)
        if node.name not in self.bytes:
            if node.hi - node.lo > 255:
                raise RangeOverflow(
                    f"node '{node.name}': its values {node.lo}..{node.hi} are read as 8 bits; "
                    "expected a spike node behind it"
                )
            word, low = self.words[node.name], self.array(f"low_{node.lo}", np.int32(node.lo))
            shifted = self.emit("Sub", [word, low], f"{node.name}.shifted{self.suffix}")
            self.bytes[node.name] = self.emit(
                "Cast", [shifted], f"{node.name}.byte{self.suffix}", to=TensorProto.UINT8
            )
        return self.bytes[node.name]

    def word(self, node: Node) -> str:
        holder = self._holder(node)
        if holder is not self:
            return holder.word(node)
        if node.name not in self.words:
            wide = self.emit(
                "Cast",
                [self.bytes[node.name]],
                f"{node.name}.wide{self.suffix}",
                to=TensorProto.INT32,
            )
            low = self.array(f"low_{node.lo}", np.int32(node.lo))
            self.words[node.name] = self.emit("Add", [wide, low], f"{node.name}.word{self.suffix}")
        return self.words[node.name]

    def _holder(self, node: Node) -> Scope:
        """The scope that has the value: of a sweep of direction 0, the outer one. In the outer
        one, a node of a sweep with steps is its value at the last of them."""
        name = node.name
        if self.outer:
            return self if self.graph.direction(name) else self.outer
        if name in self.stacks and name not in self.bytes and name not in self.words:
            as_byte, stack = self.stacks[name]
            if self.graph.lengths and self.graph.direction(name) > 0:
                tensor = self.emit("GatherND", [stack, self._ends()], f"{name}.last")
                (self.is_byte if as_byte else self.is_word)(node, tensor)
                return self
            # the first step is the last that a sweep backwards takes
            forward = self.graph.direction(name) > 0
            last = (
                self.array("step_last", np.int64(-1))
                if forward
                else self.array("step_first", np.int64(0))
            )
            tensor = self.emit("Gather", [stack, last], f"{name}.last", axis=0)
            (self.is_byte if as_byte else self.is_word)(node, tensor)
        return self
