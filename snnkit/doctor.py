"""What is installed, what is not, and the line that installs it."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from snnkit.backends import available, get
from snnkit.errors import BackendMissing

REQUIRED = ("numpy", "numba", "onnx", "onnxruntime")
OPTIONAL = {
    "torch": "conversion of torch modules; without a GPU install its CPU wheel first",
    "onnxscript": "export of torch modules",
    "nir": "NIR files, in and out",
    "matplotlib": "pictures",
    "h5py": "export as a .net file",
    "scikit-learn": "the demo's images",
}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def diagnose() -> dict[str, Any]:
    """Versions of packages, state of backends, and whether the core is ready."""
    backends = {}
    for name in sorted(available()):
        try:
            worker = getattr(get(name), "environment", None)
            backends[name] = f"ready, in {worker.executable}" if worker else "ready"
        except BackendMissing as error:
            backends[name] = str(error)
    required = {name: _version(name) for name in REQUIRED}
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "snnkit": _version("snnkit"),
        "required": required,
        "optional": {name: _version(name) for name in OPTIONAL},
        "backends": backends,
        "ready": all(required.values()),
    }


def doctor_text(found: dict[str, Any]) -> str:
    lines = [f"python {found['python']} on {found['machine']}, snnkit {found['snnkit']}"]
    for name, installed in found["required"].items():
        lines.append(f"  {name:<14} {installed or f'MISSING: pip install {name}'}")
    for name, installed in found["optional"].items():
        absent = f"not installed: pip install {name}  ({OPTIONAL[name]})"
        lines.append(f"  {name:<14} {installed or absent}")
    for name, state in found["backends"].items():
        lines.append(f"  backend {name:<10} {state}")
    lines.append("ready" if found["ready"] else "not ready: install what is marked MISSING")
    return "\n".join(lines)
