"""The command line's grammar: what may be typed."""

from __future__ import annotations

import argparse

from snnkit import commands
from snnkit.commands import MODES


def _convert(p: argparse.ArgumentParser) -> None:
    p.add_argument("model", help="float ONNX file")
    p.add_argument("-o", "--output", required=True, help="net.onnx to write")
    p.add_argument("--calibration", required=True, help=".npy, or .npz by input name: real inputs")
    p.add_argument("--levels", type=int, help="1..255 steps; default 255, with --target 15 or 3")
    p.add_argument("--weight-bits", type=int, default=8, help="2..8")
    p.add_argument("--calibrator", choices=("mse", "percentile", "minmax"), default="mse")
    p.add_argument("--staircase", choices=("auto", "uniform", "ladder"), default="auto")
    p.add_argument("--target", help="choose grids that fit a chip: loihi1, loihi2, lava-cpu")
    _expression(p)
    p.add_argument("--no-bias-correction", action="store_true")
    p.add_argument("--no-pack", action="store_true", help="keep the channels in the model's order")
    p.add_argument(
        "--verify", type=int, default=16, metavar="N", help="samples to prove it on; 0: none"
    )


def _expression(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--expression",
        choices=("bif", "thermometer"),
        help="of a neuron on the target: microcode of its own, or a stock LIF per level",
    )


def _verify(p: argparse.ArgumentParser) -> None:
    p.add_argument("net", help="net.onnx")
    p.add_argument("--samples", required=True, help=".npy, or .npz by input name")
    p.add_argument("--labels", help=".npy with the class of each sample")
    p.add_argument("--source", help="the float ONNX model, to report the quantisation error")
    p.add_argument("--backend", action="append", help="numba (default), reference, ...; repeatable")
    p.add_argument("--mode", action="append", choices=MODES, help="repeatable; default all")
    p.add_argument("--seed", type=int, default=0, help="of mode fuzz")
    p.add_argument("-o", "--output", help="certificate to write (JSON)")


def _run(p: argparse.ArgumentParser) -> None:
    p.add_argument("net", help="net.onnx")
    p.add_argument("--input", required=True, help=".npy, or .npz by input name")
    p.add_argument("-o", "--output", help=".npy to write (.npz if there are several outputs)")
    p.add_argument("--backend", default="numba")
    p.add_argument("--mode", choices=MODES, default="settle")
    p.add_argument("--seed", type=int, default=0, help="of mode fuzz")
    p.add_argument("--record", help=".npz to write: the spike count of every neuron")


def _stream(p: argparse.ArgumentParser) -> None:
    p.add_argument("net", help="net.onnx")
    p.add_argument("events", help=".npy: structured array with the fields t (us), x, y, p")
    p.add_argument("--window", type=int, required=True, help="length of the window")
    p.add_argument("--every", type=int, required=True, help="step of the window: one packet")
    p.add_argument("--unit", choices=("us", "events"), default="us", help="of window and every")
    p.add_argument("--backend", default="numba")
    p.add_argument("--update", choices=("auto", "incremental", "recompute"), default="auto")


def _train(p: argparse.ArgumentParser) -> None:
    p.add_argument("recipe", help="TOML file; snnkit/training/recipe.py lists its keys")
    p.add_argument("--resume", action="store_true", help="go on from the output's last checkpoint")
    p.add_argument("--output", help="folder to write to, instead of the recipe's")
    p.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="over the recipe's, for example training.epochs=3; repeatable",
    )


def _info(p: argparse.ArgumentParser) -> None:
    p.add_argument("model", help="float ONNX file or net.onnx")
    p.add_argument("--target", help="what it takes on a chip: loihi1, loihi2, lava-cpu")
    _expression(p)
    p.add_argument("--input", help=".npy: with --target, run it and count spikes and operations")
    p.add_argument("--picture", help="with --target, .png to write: cores filled by layer")


def _bench(p: argparse.ArgumentParser) -> None:
    p.add_argument("net", help="net.onnx")
    p.add_argument(
        "--against",
        action="append",
        choices=("onnxruntime", "torch", "spikingjelly", "sinabs"),
        help="repeatable; default onnxruntime: fp32 and int8 of the source, and net.onnx itself",
    )
    p.add_argument("--source", help="the float ONNX model, for the rivals that run it")
    p.add_argument("--input", help=".npy, or .npz by input name: real inputs to time")
    p.add_argument(
        "--density",
        type=float,
        nargs="+",
        help="shares of random input units that are events; default without --input: 0.005 to 1",
    )
    p.add_argument("--batch", type=int, nargs="+", default=[1, 32])
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--rounds", type=int, default=15, help="runs of each candidate, in turns")


def _nothing(p: argparse.ArgumentParser) -> None:
    """No arguments of its own."""


COMMANDS = (
    (
        "convert",
        commands.convert,
        _convert,
        "convert a float ONNX model into integers",
    ),
    ("verify", commands.verify, _verify, "compare every neuron of every sample in every execution"),
    ("run", commands.run, _run, "run samples through a network"),
    ("stream", commands.stream, _stream, "replay events of a camera through a moving window"),
    ("train", commands.train, _train, "train a model as a recipe says"),
    (
        "info",
        commands.info,
        _info,
        "layers and bounds; or why a model cannot be converted",
    ),
    ("bench", commands.bench, _bench, "time per sample beside rivals, once equality is proved"),
    ("doctor", commands.doctor, _nothing, "versions, backends, and what is missing"),
)
"""Name, what it does, its arguments, and what `--help` says."""


def parser() -> argparse.ArgumentParser:
    """The grammar of all commands."""
    main = argparse.ArgumentParser(
        prog="snnkit", description="Trained networks as spiking networks that compute the same."
    )
    found = main.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, run, arguments, text in COMMANDS:
        sub = found.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run)
        sub.add_argument("--json", action="store_true", help="one JSON document on stdout")
        arguments(sub)
    return main
