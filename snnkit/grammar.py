"""The command line's grammar: what may be typed."""

from __future__ import annotations

import argparse

from snnkit import commands, commands_hardware
from snnkit.commands import MODES


def _convert(p: argparse.ArgumentParser) -> None:
    p.add_argument("model", help="float ONNX file, or a spiking network as PATH.nir")
    p.add_argument("-o", "--output", required=True, help="net.onnx to write")
    p.add_argument("--calibration", help=".npy, or .npz by input name: real inputs (.nir: if any)")
    p.add_argument("--levels", type=int, help="1..255 steps; default 255, with --target 15 or 3")
    p.add_argument("--weight-bits", type=int, default=8, help="2..8")
    p.add_argument("--calibrator", choices=("mse", "percentile", "minmax"), default="mse")
    p.add_argument("--staircase", choices=("auto", "uniform", "ladder"), default="auto")
    p.add_argument("--target", help="choose grids that fit a chip: loihi1, loihi2, lava-cpu")
    _expression(p)
    p.add_argument("--no-bias-correction", action="store_true")
    p.add_argument("--no-pack", action="store_true", help="keep the channels in the model's order")
    p.add_argument("--dt", type=float, help=".nir: seconds per step; 1e-4, or 1 if only IF fire")
    p.add_argument("--discretisation", choices=("euler", "exact"), help=".nir; default euler")
    p.add_argument("--reset", choices=("hard", "soft"), help=".nir: to v_reset, or by v_threshold")
    p.add_argument("--steps", type=int, help=".nir: most steps of a run; default the data's, 1000")
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


def _export(p: argparse.ArgumentParser) -> None:
    p.add_argument("net", help="net.onnx")
    p.add_argument("-o", "--output", required=True, help="file to write; its suffix is the format")


def _run(p: argparse.ArgumentParser) -> None:
    p.add_argument("net", help="net.onnx")
    p.add_argument("--input", required=True, help=".npy, or .npz by input name")
    p.add_argument("-o", "--output", help=".npy to write (.npz if there are several outputs)")
    p.add_argument("--backend", default="numba")
    p.add_argument("--mode", choices=MODES, default="settle")
    p.add_argument("--seed", type=int, default=0, help="of mode fuzz")
    p.add_argument(
        "--encoding",
        choices=("s-analog", "rate", "bit-serial"),
        default="s-analog",
        help="how inputs arrive, in modes events and steps",
    )
    p.add_argument("--record", help=".npz to write: the spike count of every neuron")


def _stream(p: argparse.ArgumentParser) -> None:
    p.add_argument("net", help="net.onnx")
    p.add_argument(
        "events",
        help=".npy: structured array with the fields t (us), x, y, p; or, for a network that takes "
        "sequences, the elements of one, [T, ...] (.npz by input name)",
    )
    p.add_argument("--window", type=int, help="length of the window; not of networks with steps")
    p.add_argument("--every", type=int, help="step of the window: one packet, or one element")
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
    p.add_argument("model", help="float ONNX file, PATH.nir or net.onnx")
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


def _deploy(p: argparse.ArgumentParser) -> None:
    p.add_argument("net", help="net.onnx")
    p.add_argument("--target", choices=("lava-cpu", "loihi2"), required=True)
    p.add_argument("-o", "--output", required=True, help="folder to write")
    p.add_argument("--samples", help=".npy, or .npz by input name: golden inputs; default random")


def _lava_env(p: argparse.ArgumentParser) -> None:
    p.add_argument("action", choices=("create", "status"))
    p.add_argument("--python", help="an interpreter of version 3.10; default: looked for")
    p.add_argument("--path", help="folder to make; default: one in the user's cache")


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
    ("export", commands.export, _export, "write a network in another program's format (.nir)"),
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
    (
        "deploy",
        commands_hardware.deploy,
        _deploy,
        "write a folder that runs and checks itself where only Lava is installed",
    ),
    (
        "lava-env",
        commands_hardware.lava_env,
        _lava_env,
        "make or show the environment with Lava, for backend loihi",
    ),
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
