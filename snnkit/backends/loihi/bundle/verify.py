"""Checks the bundle: every file is as it was made, and Lava gives the golden integers.

python verify.py [--network fused|unit|graded]. Exit code 0, or 1 with the first difference.
"""

import argparse
import sys

sys.dont_write_bytecode = True

import numpy as np  # noqa: E402
from deployed import Damaged, WorkerFailed, arrays, check_files, quantise, read_out, run  # noqa: E402  # noqa: E402


def differences(manifest, how):
    golden = arrays("golden.npz")
    x = {key[6:]: value for key, value in golden.items() if key.startswith("input.")}
    counts, lengths = quantise(x)
    for key, value in counts.items():
        yield f"input node {key}", value, golden[f"count.{key}"]
    layers = {int(key[6:]): value for key, value in golden.items() if key.startswith("value.")}
    values, _ = run(counts, lengths, how, record=sorted(layers))
    for key, value in layers.items():
        yield f"layer '{manifest['layers'][str(key)]}'", values[key], value
    for name, y in read_out(values, lengths).items():
        # bits, not numbers: as integers of the same width
        yield (
            f"output '{name}'",
            y.view(f"V{y.itemsize}"),
            golden[f"output.{name}"].view(f"V{y.itemsize}"),
        )


def main():
    p = argparse.ArgumentParser(description="Check this bundle.")
    p.add_argument("--network", choices=("fused", "unit", "graded"), help="default: the target's")
    a = p.parse_args()
    try:
        manifest = check_files()
        compared = 0
        for what, found, expected in differences(manifest, a.network or manifest["network"]):
            if found.shape != expected.shape or not np.array_equal(found, expected):
                place = ""
                if found.shape == expected.shape:
                    at = tuple(int(i[0]) for i in np.nonzero(found != expected))
                    place = f" at {at}: {found[at]}, expected {expected[at]}"
                print(f"DIFFERENT: {what}{place}", file=sys.stderr)
                return 1
            compared += found.size
    except (Damaged, WorkerFailed, OSError, ValueError, KeyError) as error:
        print(f"FAILED: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    print(f"verified: {len(manifest['files'])} files, {compared:,} integers equal")
    return 0


if __name__ == "__main__":
    sys.exit(main())
