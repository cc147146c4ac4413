"""Runs a job on Lava: `python -I -B worker_main.py JOB PROCESS_DIRECTORY`, started by the watchdog.

JOB holds job.json (networks and tasks), net.npz and in.npz (their arrays), and `out`, where every
task's results are laid out as .npy before anything starts; the processes write into them. A
network is a list of sweeps of nodes; a sweep is one Lava runtime. Messages to the watchdog are
lines of JSON on a pipe. Nothing is pickled, and nothing of snnkit is imported.

Python 3.10; the standard library, numpy, scipy (which lava needs) and lava only.
"""

import ctypes
import json
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

LARGEST_WEIGHT = 127
"""Lava's Sparse clips at -256 and 255, and weights are doubled there."""
LONGEST_PERIOD = 1 << 16
"""No window of a network that fits 24 bits takes more time steps."""


def tell(message):
    """A line to the watchdog."""
    os.write(int(os.environ["SNNKIT_REPORT"]), json.dumps(message).encode() + b"\n")


def die_with_parent():
    """Every process that is forked from here on ends when its parent does."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


class Sweep:
    """One sweep of one task: its nodes with their arrays, and where its results go."""

    def __init__(self, job, task, index):
        self.task, self.index = task, index
        described = job.networks[task["network"]][index]
        self.direction, self.samples = described["direction"], task["samples"]
        self.steps = task["steps"] if self.direction else 1
        lengths = job.given.get(f"{task['name']}.lengths")
        if lengths is None or not self.direction:
            lengths = np.full(self.samples, self.steps)
        self.clock = lengths
        self.nodes = [self.load(job, n) for n in described["nodes"]]
        self.levels = max((n["level"] for n in self.nodes if n["kind"] == "spike"), default=-1) + 1
        self.moved = shared(np.zeros((self.samples, self.steps), np.int64))

    def load(self, job, described):
        """The node with its arrays, the values it is given, and arrays for what it gives."""
        n = dict(described)
        prefix = f"{self.task['network']}.{n['id']}."
        n.update({key: job.arrays[prefix + key] for key in n["arrays"]})
        if n["kind"] == "linear":
            n["matrices"] = [csr(n, i) for i in range(len(n["inputs"]))]
        n["rest"] = n["rest"] if "rest" in n else np.zeros(n["units"], np.int64)
        values = job.values[self.task["name"]]
        if n["kind"] == "input":
            # the elements of a sequence and the whole of it are the same memory
            held = values[n.get("held_by", n["id"])]
            n["given"] = held.reshape(self.samples, -1, n["units"])
            n["last"] = self.last_step(n, job)
        if "initial_of" in n:
            n["first"] = values[n["initial_of"]][:, 0]
        elif n["kind"] == "latch":
            n["first"] = np.broadcast_to(n["initial"], (self.samples, n["units"]))
        n["record"] = n["tally"] = n["raster"] = None
        n["bits"] = self.task["bits"]
        if n["own"] and n["id"] in self.task["keep"]:
            n["record"] = values[n["id"]] = job.result(self.task, f"value.{n['id']}")
        if tallied(n):
            n["tally"] = job.result(self.task, f"tally.{n['id']}")
        return n

    def last_step(self, n, job):
        """[N]: which step of an earlier sweep's value this sweep sees, which has none itself; or
        None: each step sees its own, or there is one for all."""
        if self.direction or not n["direction"]:
            return None
        lengths = job.given.get(f"{self.task['name']}.lengths")
        if n["direction"] < 0:
            return np.zeros(self.samples, np.int64)
        return lengths - 1 if lengths is not None else np.full(self.samples, self.task["steps"] - 1)

    def crossings(self, at):
        """(fan out, tally) of the synapses that read node `at` itself."""
        readers = [n for n in self.nodes if "fan_out" in n and n["inputs"][0] == at]
        return [(n["fan_out"], n["tally"]) for n in readers]


def tallied(node):
    """Whether spikes or synaptic operations of a node are counted."""
    counts = node["kind"] in ("spike", "lif") or "fan_out" in node["arrays"]
    return node["own"] and counts


def results_of(task, sweeps):
    """(name, type, shape) of everything that a task gives."""
    samples = task["samples"]
    yield "steps", "int64", [samples]
    for sweep in sweeps:
        steps = task["steps"] if sweep["direction"] else 1
        for n in sweep["nodes"]:
            if n["own"] and n["id"] in task["keep"]:
                yield f"value.{n['id']}", "int32", [samples, steps, n["units"]]
            if tallied(n):
                yield f"tally.{n['id']}", "int64", [samples, 3]


def csr(node, i):
    from scipy.sparse import csr_matrix

    parts = (node[f"data{i}"].astype(np.int32), node[f"indices{i}"], node[f"indptr{i}"])
    return csr_matrix(parts, shape=(node["units"], node["widths"][i]))


class Job:
    """What is to be run, and the files that results are written into."""

    def __init__(self, folder, bif):
        self.folder, self.bif = Path(folder), bif
        description = json.loads((self.folder / "job.json").read_text())
        self.networks, self.tasks = description["networks"], description["tasks"]
        self.arrays = dict(np.load(self.folder / "net.npz", allow_pickle=False))
        self.given = dict(np.load(self.folder / "in.npz", allow_pickle=False))
        self.values, self.waiting = {}, []
        self.seconds = {"build": 0.0, "run": 0.0}
        self.reserve()

    def reserve(self):
        """Lay out all results in one file and reserve its space: a full disk is an error here, not
        later the death of a process that writes. layout.json says what lies where."""
        layout, size = {}, 0
        for task in self.tasks:
            for name, kind, shape in results_of(task, self.networks[task["network"]]):
                layout[f"{task['name']}.{name}"] = [kind, shape, size]
                size += -(-int(np.prod(shape)) * np.dtype(kind).itemsize // 8) * 8
        path = self.folder / "out" / "results"
        with open(path, "wb") as file:
            os.posix_fallocate(file.fileno(), 0, size)
        (self.folder / "out" / "layout.json").write_text(json.dumps(layout))
        self.layout = layout
        self.results = np.memmap(path, np.uint8, "r+")

    def result(self, task, name):
        """The place of a result, zeroed; all processes that are forked write into the same."""
        kind, shape, at = self.layout[f"{task['name']}.{name}"]
        end = at + int(np.prod(shape)) * np.dtype(kind).itemsize
        return self.results[at:end].view(kind).reshape(shape)

    def raster(self, task, node, shape):
        """A result whose shape nobody knows beforehand, in a file of its own."""
        path = self.folder / "out" / f"{task['name']}.raster.{node['id']}.npy"
        return np.lib.format.open_memmap(path, mode="w+", dtype=np.int32, shape=shape)

    def run(self):
        for task in self.tasks:
            prefix = f"{task['name']}."
            self.values[task["name"]] = {
                int(key[len(prefix) :]): value
                for key, value in self.given.items()
                if key.startswith(prefix) and key[len(prefix) :].isdecimal()
            }
            steps = self.result(task, "steps")
            for index in range(len(self.networks[task["network"]])):
                sweep = Sweep(self, task, index)
                (self.fused if task["how"] == "fused" else self.layers)(sweep)
                steps += sweep.moved.sum(axis=1)
        if self.waiting:
            # one runtime for all: building one takes longer than running most networks
            spec = {"sweeps": self.waiting}
            self.execute(self.bif.Fused(spec), sum(s["windows"] for s in self.waiting))
        return self.seconds

    def fused(self, sweep):
        for n in sweep.nodes:
            n["crossings"] = sweep.crossings(n["at"])
        batch = min(sweep.task["batch"], sweep.samples)
        spec = {
            "nodes": sweep.nodes,
            "steps": sweep.steps,
            "direction": sweep.direction,
            "clock": sweep.clock,
            "carry": sweep.task["carry"],
            "batch": batch,
            "windows": -(-sweep.samples // batch) * sweep.steps,
        }
        self.waiting.append(spec)

    def layers(self, sweep):
        """One process per layer. Where neurons send unit spikes nobody knows beforehand how many
        time steps a window takes: samples that had too few are run again with twice as many."""
        waiting = np.arange(sweep.samples)
        neurons = any(n["kind"] == "spike" for n in sweep.nodes)
        task = sweep.task
        period = sweep.levels * (1 + task["phase"]) + 2 if neurons else 1
        if task["how"] == "unit" and neurons:
            period = task["period"] or period + 16
        while len(waiting):
            if period > LONGEST_PERIOD:
                raise RuntimeError(f"a window is not quiescent after {period} time steps")
            busy = shared(np.zeros(sweep.samples, np.int64))
            self.run_layers(sweep, waiting, period, busy)
            waiting = waiting[busy[waiting] != 0]
            if task["raster"] and len(waiting):
                # a raster of more steps is another file
                waiting = np.arange(sweep.samples)
            for n in sweep.nodes:
                if n["tally"] is not None:
                    n["tally"][waiting] = 0
            period *= 2

    def run_layers(self, sweep, chosen, period, busy):
        clock = sweep.clock[chosen]
        order = [range(c) if sweep.direction >= 0 else range(c - 1, -1, -1) for c in clock]
        when = {
            "samples": np.repeat(chosen, clock),
            "times": np.concatenate([np.array(o) for o in order]),
            "fresh": np.concatenate([np.arange(c) == 0 for c in clock]),
            "carry": sweep.task["carry"],
            "period": period,
        }
        for process in Layers(self, sweep, when, busy).parts():
            self.execute(process, int(clock.sum()) * period)

    def execute(self, process, steps):
        """Build a runtime, run it to its end, and take it down."""
        from lava.magma.core.run_conditions import RunSteps
        from lava.magma.core.run_configs import Loihi2SimCfg

        start = time.perf_counter()
        config = Loihi2SimCfg(select_tag="fixed_pt")
        process.create_runtime(run_cfg=config)
        tell({"running": steps})
        built = time.perf_counter()
        process.run(condition=RunSteps(num_steps=steps), run_cfg=config)
        self.seconds["run"] += time.perf_counter() - built
        self.seconds["build"] += built - start
        process.stop()
        tell({"building": True})


def shared(array):
    """The array in memory that forked processes write into, too."""
    import mmap

    room = mmap.mmap(-1, max(array.nbytes, 1))
    view = np.frombuffer(room, array.dtype, array.size).reshape(array.shape)
    view[...] = array
    return view


class Layers:
    """A network of one process per layer. Between two of them lies one connection: everything
    linear that happens on the way, as one integer matrix."""

    def __init__(self, job, sweep, when, busy):
        self.job, self.sweep, self.when, self.busy = job, sweep, when, busy
        self.task = sweep.task
        self.reach = self.linear_reach()
        self.processes = {
            n["at"]: self.process(n)
            for n in sweep.nodes
            if n["kind"] != "linear" or n["record"] is not None
        }
        self.part = {at: {at} for at in self.processes}
        for n in sweep.nodes:
            if n["at"] in self.processes:
                self.connect(n)

    def parts(self):
        """One process of each connected part: a Lava runtime runs no more than that."""
        return [
            self.processes[min(part)] for part in {id(p): p for p in self.part.values()}.values()
        ]

    def join(self, a, b):
        """Two processes are connected, so their parts are one."""
        joined = self.part[a] | self.part[b]
        self.part.update(dict.fromkeys(joined, joined))

    def linear_reach(self):
        """For every node, the matrices from the processes that it is a linear function of."""
        from scipy.sparse import identity

        reach = {}
        for n in self.sweep.nodes:
            if n["kind"] != "linear":
                reach[n["at"]] = {n["at"]: identity(n["units"], np.int32, "csr")}
                continue
            found = {}
            for s, matrix in zip(n["inputs"], n["matrices"], strict=True):
                for source, first in reach[s].items():
                    product = (matrix @ first).tocsr()
                    found[source] = found[source] + product if source in found else product
            reach[n["at"]] = found
        return reach

    def process(self, n):
        bif, nodes = self.job.bif, self.sweep.nodes
        sources = [n["source"]] if n["kind"] == "latch" else n["inputs"]
        if n["kind"] == "linear":
            sources = [n["at"]]
        spec = {k: v for k, v in n.items() if k != "matrices"}
        spec.update(
            clock=self.when,
            rests=[nodes[s]["rest"] for s in sources],
            widths=[nodes[s]["units"] for s in sources] or [n["units"]],
            crossings=self.sweep.crossings(n["at"]),
            unit=self.task["how"] == "unit",
            busy=self.busy,
            moved=self.sweep.moved,
        )
        if self.task["raster"] and n["kind"] in ("spike", "lif"):
            shape = (self.sweep.samples, self.when["period"], n["units"])
            spec["raster"] = self.job.raster(self.task, n, shape)
        if n["kind"] == "linear":
            return bif.Readout(spec)
        spec["from"] = 2 + self.task["phase"] * n["level"]
        kinds = {"input": bif.Source, "latch": bif.Latch, "spike": bif.Neurons, "lif": bif.Leaky}
        return kinds.get(n["kind"], bif.Recompute)(spec)

    def connect(self, n):
        """Connections into a node's process. Only those into neurons take time."""
        target = self.processes[n["at"]]
        sources = [n["source"]] if n["kind"] == "latch" else n["inputs"]
        if n["kind"] == "linear":
            sources = [n["at"]]
        delay = self.task["delay"] if n["kind"] == "spike" else 0
        for port, s in zip((target.a_in, getattr(target, "b_in", None)), sources, strict=False):
            for source, matrix in self.reach[s].items():
                synapses = self.synapses(matrix, delay)
                self.processes[source].s_out.connect(synapses.s_in)
                synapses.a_out.connect(port)
                self.join(source, n["at"])

    def synapses(self, matrix, delay):
        """Lava's own connection where it is exact, else ours."""
        from lava.proc.sparse.process import Sparse
        from lava.utils.weightutils import SignMode

        matrix = matrix.astype(np.int32)
        # sums are doubled there, so more than 24 bits would not fit
        wide = self.task["bits"] > 24
        if not delay or wide or (matrix.nnz and abs(matrix).max() > LARGEST_WEIGHT):
            return self.job.bif.Synapses({"matrix": matrix, "delay": delay})
        # mixed weights lose their lowest bit, so they are doubled and the sums halved
        return Sparse(
            weights=matrix * 2, weight_exp=-1, num_message_bits=24, sign_mode=SignMode.MIXED
        )


def main(folder, process_folder):
    start = time.perf_counter()
    die_with_parent()
    os.register_at_fork(after_in_child=die_with_parent)
    # leftovers of this run are told from those of other programs by their prefix
    from multiprocessing import shared_memory

    shared_memory._SHM_NAME_PREFIX = "/" + os.environ["SNNKIT_SHM"]
    sys.path[:0] = [str(Path(__file__).parent), str(process_folder)]
    from neurons import report

    try:
        import bif_process
        import lava.magma.core.process.process  # noqa: F401

        imported = time.perf_counter() - start
        seconds = Job(folder, bif_process).run()
    except BaseException as error:
        report("disk" if isinstance(error, OSError) else "worker", error)
        return 1
    tell({"done": {"import": imported, **seconds, "total": time.perf_counter() - start}})
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
