"""Starts a Lava worker and sees to its end: `python -I -B watchdog.py JOB PROCESS_DIRECTORY`.

Lava waits for ever when one of its processes fails, and leaves processes and shared memory behind
when it is killed. So it runs in a process group of its own, under this watchdog, which ends the
group and unlinks its shared memory when the worker reports an error or dies, when there is no sign
of life for `heartbeat` seconds, after `total` seconds, or when its own standard input closes: then
whoever started it is gone. It prints one line of JSON.

Python 3.10, the standard library only.
"""

import contextlib
import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

SUBREAPER, DEATH_SIGNAL = 36, 1
SHARED_MEMORY = Path("/dev/shm")
POLL = 0.02
GROUP_PATIENCE = 10.0
"""Seconds for a killed group to be gone."""
KEPT = 4000
"""Bytes of standard error that are kept."""


class Watch:
    def __init__(self, folder, process_folder, limits):
        self.folder, self.limits = Path(folder), limits
        self.prefix = limits["prefix"]
        self.reports, self.noise, self.running, self.asked = [], b"", False, False
        signal.signal(signal.SIGTERM, self.ask)
        prctl = ctypes.CDLL(None).prctl
        # orphans of the group come here, so that nothing is left waiting for a parent
        prctl(SUBREAPER, 1)
        self.progress = os.open(self.folder / "progress", os.O_RDWR | os.O_CREAT, 0o600)
        self.pipe, theirs = os.pipe()
        environment = {
            **os.environ,
            "SNNKIT_REPORT": str(theirs),
            "SNNKIT_PROGRESS": str(self.progress),
            "SNNKIT_SHM": self.prefix,
        }
        main = Path(__file__).with_name("worker_main.py")
        self.worker = subprocess.Popen(
            [sys.executable, "-I", "-B", str(main), str(folder), str(process_folder)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=(theirs, self.progress),
            env=environment,
            start_new_session=True,
        )
        os.close(theirs)
        self.group = self.worker.pid
        self.sources, self.rest = [self.pipe, self.worker.stdout.fileno(), 0], b""

    def ask(self, *_):
        """Asked to stop: whoever started it has died."""
        self.asked = True

    def look(self):
        """Read what there is to read; False when standard input has closed."""
        ready, _, _ = select.select(self.sources, [], [], POLL)
        for source in ready:
            found = os.read(source, 65536)
            if source == 0 and not found:
                return False
            if not found:
                self.sources.remove(source)
            elif source == self.pipe:
                *lines, self.rest = (self.rest + found).split(b"\n")
                self.reports += [json.loads(line) for line in lines]
            elif source != 0:
                self.noise = (self.noise + found)[-KEPT:]
        return True

    def verdict(self):
        """What to print, once the worker is done, or has to be stopped."""
        start, ended = time.monotonic(), None
        since = start
        while True:
            if not self.look() or self.asked:
                return {"error": {"kind": "orphan", "message": "whoever started it is gone"}}
            while self.reports:
                message = self.reports.pop(0)
                if "error" in message or "done" in message:
                    return message
                # networks are built one after the other, and only running ones beat
                self.running, since = "running" in message, time.monotonic()
            if ended is not None:
                return {"error": {"kind": "died", "message": died(ended)}}
            # what it said last is read once more before it counts as dead
            ended = self.worker.poll()
            now, limits = time.monotonic(), self.limits
            silent = min(now - since, time.time() - os.fstat(self.progress).st_mtime)
            if now - start > limits["total"]:
                return self.too_long(f"not done after {limits['total']:g} s")
            if self.running and silent > limits["heartbeat"]:
                return self.too_long(f"no sign of life for {limits['heartbeat']:g} s")
            if not self.running and now - since > limits["start"]:
                return self.too_long(f"nothing has started after {limits['start']:g} s")

    def too_long(self, text):
        done = os.pread(self.progress, 19, 0).decode().strip() or "0"
        return {"error": {"kind": "timeout", "message": f"{text}, {done} steps of time done"}}

    def clean(self, gently):
        """End the group, wait until it is gone, and unlink its shared memory."""
        if gently:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.worker.wait(GROUP_PATIENCE)
        end = time.monotonic() + GROUP_PATIENCE
        while time.monotonic() < end:
            try:
                os.killpg(self.group, signal.SIGKILL)
            except ProcessLookupError:
                break
            self.worker.poll()
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            time.sleep(0.005)
        unlink(self.prefix)


def died(code):
    if code < 0:
        return f"the worker was ended by signal {-code} ({signal.Signals(-code).name})"
    return f"the worker ended with code {code} and without a word"


def unlink(prefix):
    """Remove the shared memory of one run."""
    for path in SHARED_MEMORY.glob(f"{prefix}*"):
        with contextlib.suppress(OSError):
            path.unlink()


def main(folder, process_folder):
    ctypes.CDLL(None).prctl(DEATH_SIGNAL, signal.SIGTERM)
    limits = json.loads((Path(folder) / "limits.json").read_text())
    watch = Watch(folder, process_folder, limits)
    found = {"error": {"kind": "watchdog", "message": "the watchdog failed"}}
    try:
        found = watch.verdict()
    finally:
        watch.clean(gently="done" in found)
        if "error" in found:
            found["error"]["noise"] = watch.noise.decode(errors="replace")
        with contextlib.suppress(OSError):
            print(json.dumps(found), flush=True)
    return 0 if "done" in found else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
