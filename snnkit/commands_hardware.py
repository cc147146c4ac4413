"""Commands about Lava and Loihi. Each is thin over one Python function; heavy imports inside."""

from __future__ import annotations

import argparse

from snnkit.commands import _load, _print, _read_array, say


def deploy(a: argparse.Namespace) -> int:
    from snnkit.deploy import deploy

    samples = _read_array(a.samples, "samples") if a.samples else None
    found = deploy(_load(a.net), a.target, a.output, samples)
    for name in found["silent_layers"]:
        say(f"layer '{name}' is silent on the golden samples; give others with --samples")
    text = (
        f"{found['neurons']:,} spiking neurons for {a.target}, {found['samples']} golden samples, "
        f"at most {found['time_steps']} time steps\nwrote {a.output} ({found['files']} files); "
        "check it where Lava is: python verify.py"
    )
    _print(a, found, text)
    return 0


def lava_env(a: argparse.Namespace) -> int:
    from dataclasses import asdict

    from snnkit.backends.loihi import environment

    if a.action == "create":
        say("making an environment with Lava; this takes a minute or two")
        found = environment.create(a.python, a.path)
        text = f"{found.executable}: Python {found.python}, lava-nc {found.lava}, tested"
        _print(a, asdict(found), text)
        return 0
    state = environment.status()
    if not state["found"]:
        _print(a, state, f"{state['reason']}; run: {state['install']}")
        return 5
    _print(
        a,
        state,
        f"{state['executable']} ({state['origin']}): Python {state['python']}, lava-nc "
        f"{state['lava']}, numpy {state['numpy']}, scipy {state['scipy']}",
    )
    return 0
