"""One command, all tables.

    python -m benchmarks --output out/benchmarks            # about 20 minutes on one core
    python -m benchmarks --quick                            # a minute, for CI
    python -m benchmarks --only workloads threads

Writes benchmarks.md and benchmarks.json; progress goes to stderr. Exit code 4: something differed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks import growth, startup, streaming, tables
from benchmarks.tables import QUICK, Say, Scope, Table
from snnkit.bench.table import markdown
from snnkit.errors import SnnkitError
from snnkit.files import write_beside

TABLES: dict[str, Callable[[Scope, Say], list[Table]]] = {
    "workloads": tables.workloads,
    "levels": tables.levels,
    "growth": growth.growth,
    "threads": tables.threads,
    "startup": startup.startup,
    "paths": tables.paths,
    "streaming": streaming.streaming,
}


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def machine() -> str:
    """CPU model, number of CPUs, load."""
    try:
        info = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        info = []
    models = {line.split(":", 1)[1].strip() for line in info if line.startswith("model name")}
    name = ", ".join(sorted(models)) or platform.processor() or platform.machine()
    loads = ", ".join(f"{load:.2f}" for load in os.getloadavg())
    return f"{name}, {os.cpu_count()} CPUs, {platform.system()}; load average {loads}"


def as_markdown(table: Table) -> str:
    notes = "\n".join(f"* {note}" for note in table.notes)
    return f"## {table.title}\n\n{markdown(table.header, table.lines)}\n\n{notes}\n"


def run(names: list[str], scope: Scope, output: Path) -> None:
    """Make the tables and write them after each one, so that a long run loses nothing."""
    output.mkdir(parents=True, exist_ok=True)
    head = f"# Benchmarks\n\nBefore: {machine()}\n"
    texts, figures = [], {}
    for name in names:
        start = time.perf_counter()
        made = TABLES[name](scope, _say)
        _say(f"{name}: {time.perf_counter() - start:.0f} s")
        texts += [as_markdown(table) for table in made]
        figures[name] = made[-1].figures
        text = "\n".join([head, *texts, f"After: {machine()}\n"])
        write_beside(output / "benchmarks.md", text.encode())
        write_beside(output / "benchmarks.json", json.dumps(figures, indent=1).encode())
    print(text)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("out/benchmarks"))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", nargs="+", choices=TABLES, default=list(TABLES))
    given = parser.parse_args()
    try:
        run(given.only, QUICK if given.quick else Scope(), given.output)
    except SnnkitError as error:
        _say(f"benchmarks: {error}")
        return error.exit_code
    return 0
