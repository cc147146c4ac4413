"""Time of the engine as a ratio to named rivals, measured in one process, in turns.

Equality is proved before anything is timed, on the samples that are timed. Ours is
`program.infer` from float arrays to float outputs, a rival's is `session.run` (or the module's
call) from the same arrays to float outputs: nothing is left out on either side.
"""

from snnkit.bench.measure import AGAINST, DENSITIES, Report, Row, bench

__all__ = ["AGAINST", "DENSITIES", "Report", "Row", "bench"]
