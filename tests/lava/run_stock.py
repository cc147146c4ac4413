"""Builds stock Lava processes from a job, runs them, and writes what they showed.

In an interpreter with lava-nc 0.10.0. The job is an .npz: per network the inputs, and per
connection and LIF process the arrays in torch's order. Alone in its folder: Lava imports every
file beside one that defines a process.
"""

import json
import sys

import numpy as np


def kernel(weight):
    """(O, C, kH, kW) as Lava's Conv has it: (O, kW, kH, C), turned round."""
    return weight[:, :, ::-1, ::-1].transpose(0, 3, 2, 1).copy()


def run(net, arrays):
    from lava.magma.core.run_conditions import RunSteps
    from lava.magma.core.run_configs import Loihi2SimCfg
    from lava.proc.conv.process import Conv
    from lava.proc.dense.process import Dense
    from lava.proc.io.sink import RingBuffer as Sink
    from lava.proc.io.source import RingBuffer as Source
    from lava.proc.lif.process import LIF
    from lava.proc.monitor.process import Monitor
    from lava.utils.weightutils import SignMode

    x = arrays[net["input"]]  # (C, H, W, steps) or (units, steps)
    steps = x.shape[-1]
    source = Source(data=(x.transpose(2, 1, 0, 3) if net["planes"] else x).copy())
    ports, sinks, probes, kept = {"input": [(None, source.s_out)]}, {}, {}, []
    for layer in net["layers"]:
        processes = []
        for p in layer["processes"]:
            bias = arrays[p["bias"]]
            shape = tuple(layer["planes"][::-1]) if layer["planes"] else bias.shape
            if layer["planes"]:
                bias = bias.reshape(layer["planes"]).transpose(2, 1, 0).copy()
            lif = LIF(shape=shape, du=4095, dv=4096, vth=p["vth"], bias_mant=bias, bias_exp=6)
            processes.append((p, lif))
        for c in layer["connections"]:
            weight = arrays[c["weight"]]
            for rows, lif in processes:
                for columns, port in ports[c["source"]]:
                    if c["kind"] == "conv":
                        a = c["attrs"]
                        synapses = Conv(
                            weight=kernel(weight),
                            input_shape=port.shape,
                            stride=a["strides"][::-1],
                            padding=a["pads"][::-1],
                            dilation=a["dilations"][::-1],
                            num_message_bits=9,
                        )
                    else:
                        part = weight[arrays[rows["units"]]]
                        part = part if columns is None else part[:, columns]
                        synapses = Dense(
                            weights=2 * part,
                            weight_exp=c["exponent"] - 1,
                            sign_mode=SignMode.MIXED,
                            num_message_bits=9,
                        )
                        if len(port.shape) == 3:
                            port = port.transpose((2, 1, 0)).flatten()
                    port.connect(synapses.s_in)
                    synapses.a_out.connect(lif.a_in)
                    kept.append(synapses)
        ports[layer["name"]] = []
        for k, (p, lif) in enumerate(processes):
            units = None if layer["planes"] else arrays[p["units"]]
            ports[layer["name"]].append((units, lif.s_out))
            key = f"{net['name']}/{layer['name']}/{k}"
            if layer["readout"]:
                probes[key] = (Monitor(), lif)
                probes[key][0].probe(lif.v, steps)
            sinks[key] = Sink(shape=lif.s_out.shape, buffer=steps)
            lif.s_out.connect(sinks[key].a_in)
        first = processes[0][1]
    first.run(condition=RunSteps(num_steps=steps), run_cfg=Loihi2SimCfg(select_tag="fixed_pt"))
    found = {}
    for key, sink in sinks.items():
        data = sink.data.get()
        data = data.transpose(2, 1, 0, 3) if data.ndim == 4 else data
        found[key] = data.reshape(-1, steps).astype(np.int64)
    for key, (monitor, lif) in probes.items():
        found[key + "/v"] = monitor.get_data()[lif.name]["v"].T.astype(np.int64)
    first.stop()
    return found


def main(job, out):
    arrays = dict(np.load(job + ".npz", allow_pickle=False))
    with open(job + ".json") as f:
        nets = json.load(f)
    found = {}
    for net in nets:
        found.update(run(net, arrays))
    np.savez(out, **found)


if __name__ == "__main__":
    main(*sys.argv[1:3])
