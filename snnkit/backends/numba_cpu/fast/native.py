"""The row kernels as machine code, made by LLVM when a process first needs them (about 0.2 s).

They are written in the form they shall run in, so they go straight to the code generator; no
optimiser and no cache on disk stand between, which also means that no stale code can run.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

import llvmlite.binding as llvm
import numpy as np
import numpy.typing as npt
from llvmlite import ir

from snnkit.backends.numba_cpu.fast import fields as f
from snnkit.backends.numba_cpu.fast.emit import I64, Emit
from snnkit.backends.numba_cpu.fast.emit_charges import block, gather
from snnkit.backends.numba_cpu.fast.emit_fire import fire, fire_wide
from snnkit.backends.numba_cpu.fast.emit_maps import maximum, move, narrow, scatter
from snnkit.backends.numba_cpu.fast.emit_rows import quantise, scan, silent
from snnkit.backends.numba_cpu.fast.emit_run import run
from snnkit.backends.numba_cpu.fast.emit_step import convolve, read_input
from snnkit.backends.numba_cpu.fast.emit_sums import add, channelwise, ladder, pick
from snnkit.backends.numba_cpu.fast.isa import ISAS

ORDER: list[tuple[Callable[..., Any], int]] = [
    *((gather, n) for n in (1, 2, 3, 4)),
    *((block, n) for n in (1, 2, 3, 4)),
    *((make, n) for make in (fire, fire_wide) for n in (1, 2, 3, 4, 5)),
    *((scan, 0), (silent, 0), (quantise, 0), (quantise, 1)),
    *((step, 0) for step in (read_input, scatter, convolve, channelwise, add, ladder)),
    *((step, 0) for step in (maximum, move, pick, narrow, run)),
]
"""In the order of the C_ names."""
_ENGINES: list[Any] = []


@cache
def table(isa_name: str) -> npt.NDArray[np.int64]:
    """Addresses of the kernels of an instruction set, in the order above."""
    return machine_code(isa_name, ORDER)


def machine_code(
    isa_name: str, order: list[tuple[Callable[..., Any], int]]
) -> npt.NDArray[np.int64]:
    """Compile kernels, (function that emits one, its last argument); their addresses."""
    isa, module = ISAS[isa_name], ir.Module(f"snnkit_{isa_name}")
    names = []
    for make, groups in order:
        names.append(f"snnkit_{isa_name}_{make.__name__}{groups}")
        function = ir.Function(module, ir.FunctionType(I64, [I64]), names[-1])
        builder = ir.IRBuilder(function.append_basic_block("entry"))
        builder.ret(make(Emit(builder, isa), function.args[0], groups))
    engine = compiled(str(module))
    return np.array([engine.get_function_address(name) for name in names], np.int64)


def compiled(text: str) -> Any:
    """The engine that holds the machine code of a module of LLVM code, for this CPU."""
    _set_up()
    target = llvm.Target.from_default_triple()
    machine = target.create_target_machine(
        cpu=llvm.get_host_cpu_name(),
        features=llvm.get_host_cpu_features().flatten(),
        opt=2,
        jit=True,
    )
    parsed = llvm.parse_assembly(text)
    parsed.verify()
    engine = llvm.create_mcjit_compiler(parsed, machine)
    engine.finalize_object()
    # the code lives as long as its engine
    _ENGINES.append(engine)
    return engine


def entry(isa_name: str) -> Callable[[int], int]:
    """The kernel `run`, to be called with the address of a job; other threads run meanwhile."""
    kind = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)
    return kind(int(table(isa_name)[f.C_RUN]))


def _set_up() -> None:
    """LLVM for this CPU; newer releases of llvmlite have done so when they are imported."""
    for initialise in ("initialize", "initialize_native_target", "initialize_native_asmprinter"):
        with contextlib.suppress(AttributeError, RuntimeError):
            getattr(llvm, initialise)()
