"""Every error snnkit raises on purpose: *where: found; expected; what to do*.

Each class also inherits the builtin that a caller would catch, and carries the
exit code that the command line returns for it.
"""

from __future__ import annotations

from dataclasses import dataclass


class SnnkitError(Exception):
    """Base of all errors raised on purpose."""

    exit_code = 1


class UsageError(SnnkitError, ValueError):
    """An argument that cannot be taken (wrong shape, wrong type, unknown option)."""

    exit_code = 2


@dataclass(frozen=True)
class Problem:
    """One reason why a model cannot be converted: the node, its op, the reason, the remedy."""

    node: str
    op: str
    reason: str
    remedy: str

    def __str__(self) -> str:
        return f"node '{self.node}' ({self.op}): {self.reason}; {self.remedy}"


class UnsupportedModel(SnnkitError, ValueError):
    """A model that cannot be converted; `problems` lists every offending node at once."""

    exit_code = 3

    def __init__(self, problems: list[Problem]):
        self.problems = problems
        lines = "\n".join(f"  {problem}" for problem in problems)
        super().__init__(f"{len(problems)} node(s) cannot be converted exactly:\n{lines}")


class BadCalibration(SnnkitError, ValueError):
    """Calibration or sample data that cannot be used."""

    exit_code = 3


class BadEvents(SnnkitError, ValueError):
    """Events that cannot be used; says which field, which index, found and expected."""

    exit_code = 3


class InvalidGraph(SnnkitError, ValueError):
    """A graph that breaks a rule of its op table."""

    exit_code = 3


class UnknownOp(InvalidGraph):
    """An op that is not in the table."""


class FloatArray(InvalidGraph):
    """A float array right of the quantiser."""


class BadShape(InvalidGraph):
    """Shapes of a node, its inputs and its arrays do not fit."""


class BadThreshold(InvalidGraph):
    """Thresholds that are not sorted, or a theta below one."""


class RangeOverflow(InvalidGraph):
    """An accumulator whose bound does not fit 32 bits."""


class TooLarge(InvalidGraph):
    """A size over the limits that are checked before anything is allocated."""


class InvalidFile(SnnkitError, ValueError):
    """A file that is not a network of ours; the subclass says in which way."""

    exit_code = 3


class UnreadableFile(InvalidFile):
    """Missing, empty, truncated, or not an ONNX file at all."""


class FileTooLarge(InvalidFile):
    """More bytes than the limit."""


class ForeignFile(InvalidFile):
    """A valid ONNX file that snnkit did not write (convert it first)."""


class FormatMismatch(InvalidFile):
    """Written in another version of the file format."""


class ExternalData(InvalidFile):
    """Tensor data kept outside the file, or outside the model's own folder."""


class MalformedGraph(InvalidFile):
    """The description of the graph inside the file cannot be read."""


class AlteredFile(InvalidFile):
    """The file was changed after it was written."""


class BadDataset(SnnkitError, ValueError):
    """Files of a data set that are missing, truncated, or not what they should be."""

    exit_code = 3


class BadRecipe(UsageError):
    """A training recipe with an unknown key or a value that cannot be taken."""


class BadCheckpoint(InvalidFile):
    """A checkpoint that is damaged, foreign, or of another run than the one to go on with."""


class TrainingFailed(SnnkitError):
    """The loss is not finite any more, or the processes of a run disagree."""


class StateMismatch(SnnkitError, RuntimeError):
    """A neuron's state belongs to another batch shape or device; reset_net comes first."""


class VerificationFailed(SnnkitError):
    """At least one integer differs."""

    exit_code = 4


class BackendMissing(SnnkitError, ImportError):
    """A backend or dependency that is not installed; the message has the install line."""

    exit_code = 5


class UnsupportedByBackend(SnnkitError, ValueError):
    """A graph that a backend cannot run; every node with its reason."""

    exit_code = 3
