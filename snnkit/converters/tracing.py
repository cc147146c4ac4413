"""Where the batch and the elements of a sequence lie in every tensor of a float model.

A tensor's *frame* names its batch axis and, if it has a value per element, its time axis; the
other axes, in order, are the units of a node. Layout operators are run on labels (`labels`);
other operators keep the axes of what they read, aligned to the right.

Where the model leaves the number of elements open, everything is asked twice, for T and T + 1
elements, and has to agree: the last element is then another one than element 4.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from snnkit.converters.axes import RECURRENT, lengths_names
from snnkit.converters.doors import STACK, UNSTACK, Doors, across, elements
from snnkit.converters.frames import Frame, Move, Refusal
from snnkit.converters.labels import MOVES, by_labels
from snnkit.converters.operators import Op

if TYPE_CHECKING:
    from snnkit.converters.float_model import FloatModel

REDUCES = ("ReduceMean", "ReduceSum", "ReduceMax", "ArgMax")


@dataclass
class Trace:
    """frames : by tensor. moves : by output of a layout operator. refused : by operator's name.
    doors : where operators read a sequence otherwise than it was made. whole : names of operators
    that would read one as a whole, had it a fixed number of elements."""

    whole: list[str] = field(default_factory=list)
    doors: Doors = field(default_factory=Doors)
    frames: dict[str, Frame] = field(default_factory=dict)
    moves: dict[str, Move] = field(default_factory=dict)
    refused: dict[str, Refusal] = field(default_factory=dict)


def trace(model: FloatModel) -> Trace:
    """The frames of all tensors that depend on the data, as far as they can be told."""
    found, lengths = Trace(), lengths_names(model)
    for port in model.inputs:
        if port.name != model.lengths:
            found.frames[port.name] = Frame(port.batch, port.time)
    for op in model.data_ops:
        known = [n for n in op.inputs if n in found.frames]
        unknown = [n for n in op.inputs if n and n not in model.static and n not in found.frames]
        if not known or [n for n in unknown if n not in lengths]:
            continue
        try:
            found.frames.update(_by_elements_or_whole(model, op, found))
        except Refusal as refusal:
            found.refused[op.name] = refusal
    return found


def _by_elements_or_whole(model: FloatModel, op: Op, found: Trace) -> dict[str, Frame]:
    """Frames of the operator's outputs; where it does not work on elements, of the outputs that it
    has for whole sequences."""
    frames = {n: found.frames[n] for n in op.inputs if n in found.frames}
    given = frames.get(op.inputs[0])
    if op.op in RECURRENT and given is not None and given.time is None:
        frame = elements(model, op, given)
        found.frames[found.doors.lead(op, op.inputs[0], UNSTACK)] = frame
    timed = [n for n, f in frames.items() if f.time is not None and not f.merged]
    whole = bool(timed) and op.op not in RECURRENT and not model.lengths
    problem = None
    if not (whole and across(model, op, found.frames)):
        try:
            return _checked(model, _frames(model, op, found, frames))
        except Refusal as refusal:
            if not whole:
                raise
            problem = refusal
    if model.free_steps:
        found.whole.append(op.name)
        reason = "it reads a sequence of open length as a whole"
        raise problem or Refusal(reason, "fix the number of elements")
    frames.update({n: replace(frames[n], time=None) for n in timed})
    try:
        made = _checked(model, _frames(model, op, found, frames))
    except Refusal as refusal:
        raise problem or refusal from None
    for tensor in timed:
        name = found.doors.lead(op, tensor, STACK)
        found.frames[name] = frames[tensor]
    return made


def _frames(
    model: FloatModel, op: Op, found: Trace, frames: Mapping[str, Frame]
) -> dict[str, Frame]:
    """Frames of the operator's outputs, from those of the tensors that it reads."""
    names = list(frames)
    first, rank = frames[names[0]], len(model.shapes[names[0]])
    outputs = [o for o in op.outputs if o]
    if op.op in RECURRENT:
        each = [Frame(2, 0), Frame(1), Frame(1)]
        return {o: f for o, f in zip(op.outputs, each, strict=False) if o}
    if op.op in MOVES and op.inputs[0] in frames:
        return _moved(model, op, first, found)
    if op.op == "Transpose":
        perm = list(op.attrs.get("perm", range(rank)[::-1]))
        time = None if first.time is None else perm.index(first.time)
        return {outputs[0]: replace(first, batch=perm.index(first.batch), time=time)}
    if op.op in REDUCES and not takes_no_axes(model, op):
        left = first.without(reduced_axes(model, op), rank)
        return {o: first if op.attrs.get("keepdims", 1) else left for o in outputs}
    return {o: _aligned(model, o, frames) for o in outputs}


def takes_no_axes(model: FloatModel, op: Op) -> bool:
    """Whether a reduction without axes is told to do nothing."""
    given = op.attrs.get("axes")
    if given is None and len(op.inputs) > 1 and op.inputs[1]:
        given = model.constants.get(op.inputs[1])
    return bool(op.attrs.get("noop_with_empty_axes", 0)) and (given is None or not len(given))


def reduced_axes(model: FloatModel, op: Op) -> list[int]:
    """The axes that a reduction names."""
    if op.op == "ArgMax":
        return [int(op.attrs.get("axis", 0))]
    axes = op.attrs.get("axes")
    if axes is None and len(op.inputs) > 1 and op.inputs[1]:
        axes = model.constants.get(op.inputs[1])
    if axes is None or not len(axes):
        raise Refusal(f"{op.op} over all axes, the batch axis too", "name the axes to reduce")
    return [int(a) for a in axes]


def _aligned(model: FloatModel, output: str, inputs: Mapping[str, Frame]) -> Frame:
    """The frame that inputs which are aligned to the right give to the output."""
    rank = len(model.shapes[output])
    moved = {f.moved(rank - len(model.shapes[n])) for n, f in inputs.items()}
    timed = {f for f in moved if f.time is not None}
    frame = next(iter(timed or moved))
    if len(timed) > 1 or any(f.batch != frame.batch for f in moved):
        raise Refusal(
            "the samples, or the elements of the sequences, of what it reads lie on different axes",
            "bring them to the same axes",
        )
    return frame


def _checked(model: FloatModel, frames: dict[str, Frame]) -> dict[str, Frame]:
    for name, frame in frames.items():
        _check(model, name, frame)
    return frames


def _check(model: FloatModel, name: str, frame: Frame) -> None:
    """Refuse a tensor without the axes that its frame names."""
    for probe in model.probes:
        shape = probe.shapes[name]
        steps = 1 if frame.time is None else probe.steps
        sizes = {frame.batch: probe.batch}
        if frame.merged:
            sizes[frame.batch] = probe.batch * steps
        elif frame.time is not None:
            sizes[frame.time] = steps
        if any(not 0 <= a < len(shape) or shape[a] != n for a, n in sizes.items()):
            raise Refusal(
                f"'{name}' has shape {shape}: the batch of {probe.batch} is not at axis "
                f"{frame.batch}"
                + ("" if frame.time is None else f", {steps} elements not at {frame.time}"),
                "keep samples and elements on axes of their own throughout",
            )


def _moved(model: FloatModel, op: Op, frame: Frame, found: Trace) -> dict[str, Frame]:
    """Frames and moves of a layout operator's outputs, from labels."""
    seen: dict[str, tuple[Frame, Move]] = {}
    for probe in model.probes:
        for name, (after, move) in by_labels(model, op, frame, probe).items():
            before = seen.setdefault(name, (after, move))
            same = before[0] == after and before[1].pick == move.pick
            if not same or not np.array_equal(before[1].index, move.index):
                raise Refusal(
                    "what it does depends on the number of elements of a sequence",
                    "address elements from the end, or fix the length of the sequences",
                )
    for name, (_, move) in seen.items():
        found.moves[name] = move
    return {name: after for name, (after, _) in seen.items()}
