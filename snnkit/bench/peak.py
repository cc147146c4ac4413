"""The most multiply-accumulates per second of one core: the engine's inner instruction alone."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from functools import cache
from typing import Any

from snnkit.backends.numba_cpu.fast.isa import ISAS

SUMS = 12
"""Independent vectors of sums: enough to hide the latency of the instruction, few enough for
registers."""
STEPS = 20_000
ROUNDS = 30
CHANNELS = 4
"""Of one word: every lane of a vector of sums takes as many products at once."""


@cache
def peak_macs(isa_name: str) -> float | None:
    """Multiply-accumulates per second of one thread: the best of 30 runs of a loop in registers.

    The loop does what the row kernels do to a word (`Emit.dot`: vpdpbusd where there is VNNI, two
    vpmaddwd and additions on AVX2) with nothing to load. None for the path without vectors.
    """
    if isa_name not in ISAS:
        return None
    run, memory = register_loop(isa_name)
    best = float("inf")
    for _ in range(ROUNDS):
        start = time.thread_time()
        run(memory.ctypes.data)
        best = min(best, time.thread_time() - start)
    return SUMS * ISAS[isa_name].lanes * CHANNELS * STEPS / best


def register_loop(isa_name: str) -> tuple[Callable[[int], int], Any]:
    """The compiled loop, which takes the address of its memory, and that memory: weights, then the
    sums, which it adds to. In step k the word is k."""
    import numpy as np

    from snnkit.backends.numba_cpu.fast.native import compiled
    from snnkit.backends.numba_cpu.fast.pack import aligned

    memory = aligned(128 * SUMS)
    memory[:] = np.arange(memory.size) % 251
    at = compiled(_loop(isa_name)).get_function_address("peak")
    return ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)(at), memory


def _loop(isa_name: str) -> str:
    from llvmlite import ir

    from snnkit.backends.numba_cpu.fast.emit import I32, I64, Emit

    isa, module = ISAS[isa_name], ir.Module("snnkit_peak")
    function = ir.Function(module, ir.FunctionType(I64, [I64]), "peak")
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    e, base = Emit(builder, isa), function.args[0]
    groups = SUMS * isa.lanes // 16
    behind = isa.word_bytes * groups
    # all weights and all starts differ, or the code generator would compute a sum once for many
    weights = e.weights(base, groups)
    places = [builder.add(base, I64(behind + 4 * isa.lanes * i)) for i in range(SUMS)]
    starts = [e.load(e.ints, place) for place in places]

    def body(k: Any, sums: list[Any]) -> Any:
        # a word that stays the same would let it multiply before the loop
        return e.dot(sums, builder.trunc(k, I32), weights)

    ends = e.loop(I64(0), I64(STEPS), starts, body)
    for value, place in zip(ends, places, strict=True):
        e.store(value, place)
    builder.ret(I64(0))
    return str(module)
