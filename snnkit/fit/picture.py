"""The picture of a mapping: cores as cells, filled by how much of each its layer takes."""

from __future__ import annotations

import io
import math
import os

from snnkit.errors import BackendMissing, UsageError
from snnkit.files import write_beside
from snnkit.fit.partition import LIMITS
from snnkit.fit.result import Core, Fit

LINE = "pip install 'snnkit[plot]'"
MOST_CHIPS = 16


def draw(f: Fit, path: str | os.PathLike[str]) -> None:
    """Write a picture of the upper bound: each chip a grid of cores, coloured by layer, shaded to
    the height of the fullest of neurons, memory and axons. The suffix of `path` names the format.

    Raises BackendMissing without matplotlib, UsageError for a target without cores.
    """
    if not f.cores:
        raise UsageError(f"--picture: {f.target.name} has no cores to draw")
    try:
        import matplotlib
    except ImportError as error:
        raise BackendMissing(f"a picture needs matplotlib; run: {LINE}") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    size = f.target.value("cores_per_chip") or len(f.cores)
    usable = f.target.value("usable_cores_per_chip") or size
    chips = min(-(-len(f.cores) // usable), MOST_CHIPS)
    columns = math.ceil(math.sqrt(2 * size))
    rows = -(-size // columns)
    across = math.ceil(math.sqrt(chips))
    down = -(-chips // across)
    height = 1 + 9 * down * rows / (across * columns)
    figure, axes = pyplot.subplots(
        down, across, figsize=(9, height), squeeze=False, layout="constrained"
    )
    names = [e.name for e in f.layers]
    colours = pyplot.get_cmap("tab20")
    for chip, axis in enumerate(axes.reshape(-1)):
        axis.axis("off")
        if chip >= chips:
            continue
        here = f.cores[chip * usable : (chip + 1) * usable]
        for at in range(size):
            corner = (at % columns, -(at // columns) - 1)
            axis.add_patch(pyplot.Rectangle(corner, 0.92, 0.92, fill=False, color="lightgrey"))
            if at < len(here):
                colour = colours(names.index(here[at].layer) % 20)
                height = 0.92 * min(1.0, filled(f, here[at]))
                axis.add_patch(pyplot.Rectangle(corner, 0.92, height, color=colour))
        axis.set_xlim(-0.1, columns)
        axis.set_ylim(-rows - 0.1, 0.1)
        axis.set_aspect("equal")
        axis.set_title(f"chip {chip + 1}: {len(here)} of {size} cores", fontsize=8)
    handles = [
        pyplot.Rectangle((0, 0), 1, 1, color=colours(i % 20), label=f"{e.name}: {e.cores[1]}")
        for i, e in enumerate(f.layers)
    ]
    figure.suptitle(f"{f.target.title}: {len(f.cores)} cores, upper bound", fontsize=9)
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=7)
    buffer = io.BytesIO()
    suffix = os.path.splitext(os.fspath(path))[1].lstrip(".") or "png"
    try:
        figure.savefig(buffer, dpi=120, format=suffix)
    except ValueError as error:
        raise UsageError(f"--picture '{os.fspath(path)}': {error}") from error
    finally:
        pyplot.close(figure)
    write_beside(path, buffer.getvalue())


def filled(f: Fit, core: Core) -> float:
    """How full a core is: the largest share of any known limit."""
    shares = [
        getattr(core, name) / limit
        for name, constant in LIMITS.items()
        if (limit := f.target.value(constant))
    ]
    return max(shares, default=1.0)
