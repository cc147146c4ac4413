"""Runs samples through the bundle's network: python run.py input.npy -o output.npy

Input: a .npy of samples, or an .npz by input name. Needs numpy and lava-nc only.
"""

import argparse
import sys

sys.dont_write_bytecode = True

import numpy as np  # noqa: E402
from deployed import WorkerFailed, network, quantise, read_out, run  # noqa: E402


def main():
    p = argparse.ArgumentParser(description="Run samples through the network of this bundle.")
    p.add_argument("input", help=".npy of samples, or .npz by input name")
    p.add_argument("-o", "--output", required=True, help=".npy to write, .npz for several outputs")
    p.add_argument(
        "--network",
        choices=("fused", "unit", "graded"),
        default="fused",
        help="one Lava process, or one per layer with unit or with graded spikes",
    )
    a = p.parse_args()
    try:
        found = np.load(a.input, allow_pickle=False)
        x = dict(found) if hasattr(found, "files") else {network()["inputs"][0]["name"]: found}
        counts, lengths = quantise(x)
        values, seconds = run(counts, lengths, a.network)
    except (OSError, ValueError, KeyError, WorkerFailed) as error:
        print(f"run.py: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    outputs = read_out(values, lengths)
    if len(outputs) == 1:
        np.save(a.output, next(iter(outputs.values())))
    else:
        np.savez(a.output, **outputs)
    print(f"{len(next(iter(counts.values())))} samples in {seconds['run']:.3f} s on Lava")
    return 0


if __name__ == "__main__":
    sys.exit(main())
