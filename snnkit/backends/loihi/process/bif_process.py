"""The spiking network as Lava processes. Alone in its directory: Lava executes every Python file
that lies beside the one that defines a process.

`Fused` holds a whole window, and runs one window of a batch of samples in one time step. The
others make a network of one process per layer: `Source` and `Latch` give values at the start of a
window, `Synapses` are integer matrices, `Neurons` are bipolar integrate-and-fire neurons, `Leaky`
ones with a leak, `Recompute` maxima and products, `Readout` sums. A window takes `period` time
steps; in its last one no neuron may fire, so that nothing is under way when the next one starts.

Python 3.10; the standard library, numpy, lava, and `neurons` (worker_main puts it on the path).
"""

import os
import time

import numpy as np
from lava.magma.core.decorator import implements, requires, tag
from lava.magma.core.model.py.model import PyLoihiProcessModel
from lava.magma.core.model.py.ports import PyInPort, PyOutPort
from lava.magma.core.model.py.type import LavaPyType
from lava.magma.core.process.ports.ports import InPort, OutPort
from lava.magma.core.process.process import AbstractProcess
from lava.magma.core.resources import CPU
from lava.magma.core.sync.protocols.loihi_protocol import LoihiProtocol
from neurons import Leak, Overflow, Staircase, Windows, given, recomputed, report, tally

BEAT = 0.1
"""Seconds between two signs of life."""


class Fused(AbstractProcess):
    """Whole windows: one window of a batch of samples in one time step (`neurons.Windows`), sweep
    after sweep."""

    def __init__(self, spec):
        super().__init__(spec=spec)


class Layer(AbstractProcess):
    """One layer: charges in, spikes (or values, as differences) out."""

    def __init__(self, spec):
        super().__init__(spec=spec)
        self.a_in = InPort(shape=(spec["widths"][0],))
        self.s_out = OutPort(shape=(spec["units"],))


class Source(Layer):
    """Gives the values of an input as graded spikes in the first time step of a window."""


class Latch(Layer):
    """A source that gives what its input had summed up to at the end of the window before."""


class Neurons(Layer):
    """Bipolar integrate-and-fire neurons: unit spikes, or one graded spike per arrival."""


class Leaky(Layer):
    """Leaky neurons that correct their spike of this window when they are told more."""


class Readout(Layer):
    """Neurons that never fire: their charge is the value."""


class Recompute(Layer):
    """A maximum or a product of what its inputs sum up to."""

    def __init__(self, spec):
        super().__init__(spec)
        self.b_in = InPort(shape=(spec["widths"][-1],))


class Synapses(AbstractProcess):
    """charges = matrix @ spikes, one time step later, or, with delay 0, in the same."""

    def __init__(self, spec):
        super().__init__(spec=spec)
        self.s_in = InPort(shape=(spec["matrix"].shape[1],))
        self.a_out = OutPort(shape=(spec["matrix"].shape[0],))


class Guarded(PyLoihiProcessModel):
    """A model that reports its own failure, and beats while it works."""

    def __init__(self, proc_params):
        super().__init__(proc_params)
        self.spec = proc_params["spec"]
        self.begun, self.last_beat = False, 0.0

    def begin(self):
        """Set up in the first time step: a failure of a constructor would go unreported."""

    def run_spk(self):
        try:
            if not self.begun:
                self.begin()
                self.begun = True
            self.step()
        except BaseException as error:
            report("overflow" if isinstance(error, Overflow) else "model", error)
            raise

    def beat(self, done):
        now = time.monotonic()
        if now - self.last_beat > BEAT:
            self.last_beat = now
            os.pwrite(int(os.environ["SNNKIT_PROGRESS"]), b"%-19d\n" % done, 0)


@implements(proc=Fused, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class FusedModel(Guarded):
    def begin(self):
        self.waiting = list(self.spec["sweeps"])
        self.before = self.until = 0

    def step(self):
        while self.time_step > self.until:
            # a sweep may read what the one before it gave, so it is set up when its turn comes
            sweep = self.waiting.pop(0)
            self.windows = Windows(sweep)
            self.before, self.until = self.until, self.until + sweep["windows"]
        self.windows.run(self.time_step - 1 - self.before)
        self.beat(self.time_step)


class Timed(Guarded):
    """A layer's place in time: window `j` of all, time step `k` (from 1) of `period` in it."""

    a_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int32, precision=24)
    s_out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, np.int32, precision=24)

    def step(self):
        clock = self.spec["clock"]
        j, k = divmod(self.time_step - 1, clock["period"])
        self.k, self.last = k + 1, k + 1 == clock["period"]
        self.sample, self.t = clock["samples"][j], clock["times"][j]
        self.fresh = bool(clock["fresh"][j])
        if k == 0 and (self.fresh or not clock["carry"]):
            self.to_rest()
        out = self.act()
        if out is not None and out.any():
            tally(self.spec, [self.sample], out[:, None])
            if self.spec["raster"] is not None:
                self.spec["raster"][self.sample, k] = out
        if self.last and self.spec["record"] is not None:
            self.spec["record"][self.sample, self.t] = self.value()
        self.beat(j + 1)

    def send(self, out):
        self.s_out.send(out.astype(np.int32))
        return out

    def silence(self):
        return np.zeros(self.spec["units"], np.int64)


@implements(proc=Source, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class SourceModel(Timed):
    def to_rest(self):
        self.given = self.silence()

    def act(self):
        out = self.silence()
        if self.k == 1:
            x = given(self.spec, self.sample, self.t).astype(np.int64)
            out, self.given = x - self.given, x
        return self.send(out)

    def value(self):
        return self.given


@implements(proc=Latch, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class LatchModel(Timed):
    def to_rest(self):
        if self.fresh:
            self.held = self.spec["first"][self.sample].astype(np.int64)
        self.told = self.silence()
        self.seen = self.spec["rests"][0].astype(np.int64)

    def act(self):
        out = self.silence()
        if self.k == 1:
            out, self.told = self.held - self.told, self.held
        # sends before it receives: the loop through it is cut here
        self.send(out)
        self.seen = self.seen + self.a_in.recv()
        if self.last:
            self.held = self.seen
        return out

    def value(self):
        return self.told


class Charged(Timed):
    """A layer that sums up what arrives."""

    def to_rest(self):
        self.charge = self.spec["rests"][0].astype(np.int64)[:, None]

    def receive(self):
        self.charge = self.charge + self.a_in.recv()[:, None]


@implements(proc=Neurons, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class NeuronsModel(Charged):
    def begin(self):
        self.stairs = Staircase(self.spec)

    def to_rest(self):
        super().to_rest()
        self.cell = self.stairs.rest()

    def act(self):
        self.receive()
        able = self.stairs.direction(self.charge, self.cell)
        if self.last and able.any():
            self.spec["busy"][self.sample] = 1
        if self.last or self.k < self.spec["from"] or not able.any():
            return self.send(self.silence())
        new = self.cell + able if self.spec["unit"] else self.stairs.settled(self.charge)
        out = (self.stairs.value(new) - self.stairs.value(self.cell))[:, 0]
        self.cell = new
        # later time steps of a window come later
        self.spec["moved"][self.sample, self.t] = self.k - 1
        return self.send(out)

    def value(self):
        return self.stairs.value(self.cell)[:, 0]


@implements(proc=Leaky, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class LeakyModel(Charged):
    def begin(self):
        self.leak = Leak(self.spec)

    def to_rest(self):
        super().to_rest()
        if self.fresh:
            self.v = self.leak.p["initial"]
        self.fired = np.zeros(self.charge.shape, np.int64)

    def act(self):
        self.receive()
        spike = self.leak.spike(self.v, self.charge)
        out, self.fired = (spike - self.fired)[:, 0], spike
        if self.last:
            self.v = self.leak.barrier(self.v, self.charge, spike)
        return self.send(out)

    def value(self):
        return self.fired[:, 0]


@implements(proc=Readout, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class ReadoutModel(Charged):
    def act(self):
        self.receive()

    def value(self):
        return self.charge[:, 0]


@implements(proc=Recompute, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class RecomputeModel(Timed):
    b_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int32, precision=24)

    def to_rest(self):
        self.seen = [rest.astype(np.int64)[:, None] for rest in self.spec["rests"]]
        self.told = recomputed(self.spec, self.seen)

    def act(self):
        ports = (self.a_in, self.b_in)[: len(self.seen)]
        self.seen = [x + p.recv()[:, None] for x, p in zip(self.seen, ports, strict=True)]
        new = recomputed(self.spec, self.seen)
        out, self.told = (new - self.told)[:, 0], new
        return self.send(out)

    def value(self):
        return self.told[:, 0]


@implements(proc=Synapses, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class SynapsesModel(Guarded):
    s_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int32, precision=24)
    a_out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, np.int32, precision=24)

    def begin(self):
        self.buffer = np.zeros(self.spec["matrix"].shape[0], np.int32)

    def step(self):
        if self.spec["delay"]:
            # sends before it receives, as Lava's own connections do
            self.a_out.send(self.buffer)
        self.buffer = (self.spec["matrix"] @ self.s_in.recv()).astype(np.int32)
        if not self.spec["delay"]:
            self.a_out.send(self.buffer)
