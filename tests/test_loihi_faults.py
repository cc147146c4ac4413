"""What goes wrong on Lava ends in time, with its reason, and leaves nothing behind.

Faults are put into a copy of the process file: the worker runs what lies in the folder it is given.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from snnkit.backends.loihi import supervise
from snnkit.backends.loihi.job import PROCESS, WORKER, LavaFailed, Task, run_tasks
from snnkit.backends.loihi.selftest import network
from snnkit.errors import SnnkitError
from tests.lava import environment, gone, needed, nothing_left, orphaned_segments, workers

LIMITS = {"start": 240.0, "heartbeat": 60.0, "total": 300.0}
SILENT = {**LIMITS, "heartbeat": 2.0}
ROOT = Path(__file__).parents[1]


def faulty(folder: Path, code: str) -> Path:
    """A folder with a process file whose fused model does `code` at its second time step."""
    text = (PROCESS / "bif_process.py").read_text()
    marked = "    def step(self):\n        while self.time_step > self.until:\n"
    assert text.count(marked) == 1
    fault = f"    def step(self):\n        if self.time_step == 2:\n            {code}\n"
    place = folder / "process"
    place.mkdir()
    (place / "bif_process.py").write_text(text.replace(marked, fault + marked.split("\n", 1)[1]))
    return place


def task() -> Task:
    """More samples than one time step takes."""
    return Task(network(), {"x": np.arange(12 * 130).reshape(130, 1, 4, 3) % 251})


FAULTS = {
    "raises": ("raise ValueError('the model broke')", "model", "ValueError: the model broke"),
    "hangs": ("time.sleep(600)", "timeout", "no sign of life for 2 s"),
    "exits": ("os._exit(3)", "timeout", "no sign of life"),
    "killed": ("os.kill(os.getppid(), 9)", "died", "signal 9 (SIGKILL)"),
}


@needed
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_ends_in_time_and_leaves_nothing(fault: str, tmp_path: Path) -> None:
    code, kind, text = FAULTS[fault]
    place = faulty(tmp_path, code)
    with nothing_left():
        start = time.monotonic()
        with pytest.raises(LavaFailed) as raised:
            run_tasks([task()], environment(), SILENT if kind == "timeout" else LIMITS, place)
        assert time.monotonic() - start < LIMITS["total"]
    assert raised.value.kind == kind and text in str(raised.value), str(raised.value)
    assert isinstance(raised.value, SnnkitError)


@needed
def test_a_full_disk_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    """Results are laid out before anything starts; there is no room for them."""
    place = faulty(tmp_path, "pass")
    file = place / "bif_process.py"
    limit = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (64, 64))\n"
    file.write_text(file.read_text().replace("import os\n", f"import os\n{limit}", 1))
    with nothing_left(), pytest.raises(LavaFailed, match=r"File too large.*free space") as raised:
        run_tasks([task()], environment(), LIMITS, place)
    assert raised.value.kind == "disk"


def test_no_room_for_the_job_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(LavaFailed, match=r"No space left.*free space") as raised:
        run_tasks([task()], None)  # type: ignore[arg-type]
    assert raised.value.kind == "disk"


@needed
def test_total_time_is_limited(tmp_path: Path) -> None:
    limits = {**LIMITS, "total": 1.0}
    # an idle machine would be done before
    place = faulty(tmp_path, "time.sleep(600)")
    with nothing_left(), pytest.raises(LavaFailed, match=r"not done after 1 s.*more time"):
        run_tasks([task()], environment(), limits, place)


RUNNER = """
import signal
import sys
from pathlib import Path
from snnkit.backends.loihi.job import run_tasks
from tests.lava import environment
from tests.test_loihi_faults import LIMITS, task
# a shell has jobs in the background ignore it
signal.signal(signal.SIGINT, signal.default_int_handler)
print("at work", flush=True)
run_tasks([task()], environment(), {**LIMITS, "heartbeat": 300.0}, Path(sys.argv[1]))
"""


@needed
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_the_death_of_the_parent_ends_everything(how: signal.Signals, tmp_path: Path) -> None:
    mark = tmp_path / "reached"
    place = faulty(tmp_path, f"open({str(mark)!r}, 'w').close(); time.sleep(600)")
    command = [sys.executable, "-c", RUNNER, str(place)]
    assert environment() and gone()
    parent = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 240
        while not mark.exists() and time.monotonic() < until:
            time.sleep(0.05)
        assert mark.exists() and len(workers()) > 2
        assert list(supervise.SHARED_MEMORY.glob("sk????_*"))
    finally:
        os.kill(parent.pid, how)
    parent.wait(60)
    assert gone(60), (workers(), orphaned_segments())


@needed
def test_a_killed_watchdog_takes_the_worker_along(tmp_path: Path) -> None:
    """The worker ends with its parent, and whoever runs the job unlinks what it left."""
    place = faulty(tmp_path, "os.kill(int(os.popen('ps -o ppid= -p %d' % os.getppid()).read()), 9)")
    with pytest.raises(LavaFailed, match=r"watchdog ended with code -9") as raised:
        run_tasks([task()], environment(), LIMITS, place)
    assert raised.value.kind == "watchdog"
    assert gone(20), (workers(), orphaned_segments())


def test_stale_memory_is_swept_and_memory_in_use_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervise, "SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(supervise, "_locks", lambda: locks)
    locks = tmp_path / "locks"
    locks.mkdir()
    (locks / "skdead_").touch()
    for name in ("skdead_1", "skdead_2", "psm_other"):
        (tmp_path / name).touch()
    with supervise._own_prefix() as prefix:
        (tmp_path / f"{prefix}1").touch()
        assert supervise.sweep_stale() == 2
        assert {p.name for p in tmp_path.iterdir()} == {"locks", "psm_other", f"{prefix}1"}
        assert [p.name for p in locks.iterdir()] == [prefix]
    assert supervise.sweep_stale() == 0 and not list(locks.iterdir())


def test_the_process_file_is_alone_in_its_folder() -> None:
    """Lava executes every Python file beside the one that defines a process."""
    assert [p.name for p in PROCESS.glob("*.py")] == ["bif_process.py"]
    assert not (WORKER / "__init__.py").exists()
    for path in (*PROCESS.glob("*.py"), *WORKER.glob("*.py")):
        assert "snnkit" not in "".join(
            line for line in path.read_text().splitlines() if line.startswith(("import", "from"))
        )
