"""The row kernels as machine code, made by LLVM when a process first needs them (about 0.2 s).

They are written in the form they shall run in, so they go straight to the code generator; no
optimiser and no cache on disk stand between, which also means that no stale code can run.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import llvmlite.binding as llvm
import numba  # noqa: F401 (sets LLVM up for this CPU)
import numpy as np
import numpy.typing as npt
from llvmlite import ir

from snnkit.backends.numba_cpu.fast.emit import I64, Emit, block, gather
from snnkit.backends.numba_cpu.fast.emit_rows import quantise, scan
from snnkit.backends.numba_cpu.fast.isa import ISAS

LISTED, BLOCKS, SCAN, QUANTISE = 0, 4, 8, 9
"""Places of the kernels in the table; the first two by number of 16-output groups - 1."""
ORDER: list[tuple[Callable[..., Any], int]] = [(gather, n) for n in (1, 2, 3, 4)] + [
    (block, n) for n in (1, 2, 3, 4)
]
ORDER += [(scan, 1), (quantise, 1)]
_ENGINES: list[Any] = []


@cache
def table(isa_name: str) -> npt.NDArray[np.int64]:
    """Addresses of the kernels of an instruction set, in the order above."""
    isa, module = ISAS[isa_name], ir.Module(f"snnkit_{isa_name}")
    names = []
    for make, groups in ORDER:
        names.append(f"snnkit_{isa_name}_{make.__name__}{groups}")
        function = ir.Function(module, ir.FunctionType(I64, [I64]), names[-1])
        builder = ir.IRBuilder(function.append_basic_block("entry"))
        builder.ret(make(Emit(builder, isa), function.args[0], groups))
    target = llvm.Target.from_default_triple()
    machine = target.create_target_machine(
        cpu=llvm.get_host_cpu_name(),
        features=llvm.get_host_cpu_features().flatten(),
        opt=2,
        jit=True,
    )
    parsed = llvm.parse_assembly(str(module))
    parsed.verify()
    engine = llvm.create_mcjit_compiler(parsed, machine)
    engine.finalize_object()
    # the code lives as long as its engine
    _ENGINES.append(engine)
    return np.array([engine.get_function_address(name) for name in names], np.int64)
