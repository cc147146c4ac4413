"""Which vector instructions the fast path uses, chosen from the CPU when a program is made."""

from __future__ import annotations

import os
from typing import NamedTuple

from snnkit.errors import UsageError

VARIABLE = "SNNKIT_CPU_PATH"
GENERIC = "generic"


class Isa(NamedTuple):
    """One set of instructions.

    features : LLVM's names; each alternative is a set that suffices.
    lanes : int32 lanes of a vector. word_bytes : bytes of weights of one word for 16 outputs.
    dot : the instruction that multiplies a word by its weights.
    blocks : output sites side by side in the dense kernel, by number of 16-output groups - 1.
    switch : by the same number, when the dense kernel is cheaper: where more than `share` per
    thousand of the words under a site's window are listed, less `extra` words for what a site costs
    the gather kernel by itself; `far` is the share for weights that do not fit the L1 cache.
    Fitted to the times of both kernels on one AMD Zen 4 core: 3 x 3 windows, 4 to 128 channels
    in, 16 to 128 out, 5 to 100 % of the words.
    """

    name: str
    features: tuple[tuple[str, ...], ...]
    lanes: int
    word_bytes: int
    dot: str
    blocks: tuple[int, ...]
    switch: tuple[tuple[int, int], ...]
    far: int


AVX512 = Isa(
    "avx512",
    (("avx512f", "avx512bw", "avx512vl", "avx512vnni"),),
    16,
    64,
    "llvm.x86.avx512.vpdpbusd.512",
    (8, 8, 4, 4),
    ((360, 11), (550, 11), (600, 8), (640, 6)),
    480,
)
AVXVNNI = Isa(
    "avxvnni",
    (("avx2", "fma", "avxvnni"), ("avx2", "fma", "avx512vl", "avx512vnni")),
    8,
    64,
    "llvm.x86.avx512.vpdpbusd.256",
    (4, 2, 1, 1),
    ((370, 11), (530, 6), (800, 8), (1000, 9)),
    1000,
)
AVX2 = Isa(
    "avx2",
    (("avx2", "fma"),),
    8,
    128,
    "llvm.x86.avx2.pmadd.wd",
    (4, 2, 1, 1),
    ((750, 5), (700, 5), (850, 5), (960, 5)),
    1000,
)
ISAS = {isa.name: isa for isa in (AVX512, AVXVNNI, AVX2)}


def host_features() -> dict[str, bool]:
    """Features of this CPU by LLVM's names; none where LLVM cannot tell."""
    import llvmlite.binding as llvm

    try:
        return dict(llvm.get_host_cpu_features())
    except RuntimeError:
        return {}


def missing(isa: Isa, features: dict[str, bool]) -> list[str]:
    """What the host lacks of the nearest set of features; nothing if it has one."""
    lacking = [[f for f in way if not features.get(f, False)] for way in isa.features]
    return min(lacking, key=len)


def choose(wanted: str | None = None) -> Isa | None:
    """The set named by `wanted` or the environment, or the best one; None means generic.

    Raises UsageError where a set was asked for that this CPU does not have.
    """
    name = wanted or os.environ.get(VARIABLE, "auto")
    if name == GENERIC:
        return None
    features = host_features()
    if name == "auto":
        return next((isa for isa in ISAS.values() if not missing(isa, features)), None)
    if name not in ISAS:
        raise UsageError(f"{VARIABLE}={name!r}; expected auto, {', '.join(ISAS)} or {GENERIC}")
    lacking = missing(ISAS[name], features)
    if lacking:
        raise UsageError(f"{VARIABLE}={name}: this CPU lacks {', '.join(lacking)}")
    return ISAS[name]
