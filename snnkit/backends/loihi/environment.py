"""The interpreter that has Lava: where it is looked for, and how one is made.

lava-nc 0.10.0, the last release, needs Python 3.10 and numpy below 2, and forks: Linux only.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from snnkit.errors import BackendMissing, SnnkitError

VARIABLE = "SNNKIT_LAVA_PYTHON"
LAVA = "lava-nc==0.10.0"
CREATE = "snnkit lava-env create"
VERSIONS = """
import json, sys
from importlib.metadata import version
print(json.dumps({"python": "%d.%d.%d" % sys.version_info[:3], "prefix": sys.prefix,
    "lava": version("lava-nc"), "numpy": version("numpy"), "scipy": version("scipy")}))
"""


@dataclass(frozen=True)
class Environment:
    """An interpreter with Lava. origin : where it was found."""

    executable: str
    origin: str
    python: str
    lava: str
    numpy: str
    scipy: str


def configuration() -> Path:
    """The user's configuration file, JSON; key `lava_python`: path of an interpreter."""
    home = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(home) / "snnkit" / "config.json"


def managed() -> Path:
    """Where `snnkit lava-env create` makes its environment, unless told otherwise."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "snnkit" / "lava-env"


def find() -> Environment:
    """The interpreter with Lava: SNNKIT_LAVA_PYTHON, the configuration file, the one that runs
    this, the managed environment, in this order. What is named but does not work is an error, not
    a reason to look on. Raises BackendMissing."""
    if sys.platform != "linux":
        raise BackendMissing(f"Lava on {sys.platform}; expected Linux, since it forks")
    for path, origin in _named():
        return _examine(path, origin)
    if here():
        return _examine(sys.executable, "this interpreter")
    own = managed() / "bin" / "python"
    if own.exists():
        return _examine(str(own), "managed environment")
    raise BackendMissing(
        f"no interpreter with {LAVA}: {VARIABLE} is not set, {configuration()} names none, "
        f"{managed()} does not exist"
    )


def here() -> bool:
    """Whether the interpreter that runs this has Lava."""
    try:
        return bool(version("lava-nc"))
    except PackageNotFoundError:
        return False


def _named() -> list[tuple[str, str]]:
    if os.environ.get(VARIABLE):
        return [(os.environ[VARIABLE], f"environment variable {VARIABLE}")]
    path = configuration()
    if not path.exists():
        return []
    try:
        named = json.loads(path.read_text()).get("lava_python")
    except (OSError, ValueError, AttributeError) as error:
        raise BackendMissing(f"{path}: cannot be read as JSON ({error}); repair it") from error
    return [(str(named), f"key 'lava_python' of {path}")] if named else []


@cache
def _examine(executable: str, origin: str) -> Environment:
    """What is installed there, without importing Lava, which takes seconds."""
    try:
        found = subprocess.run(
            [executable, "-I", "-B", "-c", VERSIONS], capture_output=True, timeout=60, text=True
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BackendMissing(f"{origin}: '{executable}' does not run ({error})") from error
    if found.returncode:
        last = (found.stderr.strip().splitlines() or ["no message"])[-1]
        raise BackendMissing(f"{origin}: '{executable}' has no Lava ({last})")
    versions = json.loads(found.stdout)
    versions.pop("prefix")
    return Environment(executable, origin, **versions)


def find_python310(wanted: str | None = None) -> str:
    """An interpreter of version 3.10: the one given, or on PATH, under pyenv, from uv.

    Raises BackendMissing, naming every place that was looked at.
    """
    if wanted:
        resolved = shutil.which(wanted) or wanted
        if _version(resolved) != (3, 10):
            raise BackendMissing(
                f"'{wanted}' is {_version(resolved) or 'no Python'}; expected 3.10"
            )
        return resolved
    root = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    candidates = [shutil.which("python3.10") or "", sys.executable]
    candidates += [str(p) for p in sorted(root.glob("3.10*/bin/python"), reverse=True)]
    if shutil.which("uv"):
        asked = subprocess.run(["uv", "python", "find", "3.10"], capture_output=True, text=True)
        candidates.append(asked.stdout.strip())
    for candidate in candidates:
        if candidate and _version(candidate) == (3, 10):
            return candidate
    raise BackendMissing(
        f"no Python 3.10, which {LAVA} needs: looked for python3.10 on PATH, in {root}, and with "
        "uv; install one (`pyenv install 3.10`, `uv python install 3.10`, or your system's "
        f"package), then run: {CREATE} --python PATH"
    )


def _version(executable: str) -> tuple[int, ...] | None:
    code = "import sys; print(*sys.version_info[:2])"
    try:
        found = subprocess.run(
            [executable, "-I", "-c", code], capture_output=True, timeout=60, text=True
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return tuple(int(n) for n in found.stdout.split()) if found.returncode == 0 else None


def create(python: str | None = None, folder: str | os.PathLike[str] | None = None) -> Environment:
    """Make an environment with Lava, test it, and write `lava-env.json` into it.

    python : an interpreter of version 3.10. folder : default `managed()`. It is made beside and
    put in its place only once a network ran in it as the reference says. Raises BackendMissing,
    SnnkitError.
    """
    target = Path(folder or managed()).absolute()
    base = find_python310(python)
    if target.exists() and not (target / "pyvenv.cfg").exists():
        raise SnnkitError(f"{target}: exists and is no virtual environment; move it away")
    target.parent.mkdir(parents=True, exist_ok=True)
    # scripts of an environment hold its path, so it cannot be moved: a mark says it is complete
    mark = target / "lava-env.json"
    mark.unlink(missing_ok=True)
    executable = str(target / "bin" / "python")
    _run([base, "-m", "venv", "--clear", str(target)], "make a virtual environment")
    _run([executable, "-m", "pip", "install", "--quiet", LAVA], f"install {LAVA}")
    _examine.cache_clear()
    found = _examine(executable, "just made")
    from snnkit.backends.loihi.selftest import selftest

    seconds = selftest(found)
    _write(mark, {**asdict(found), "origin": "managed", "selftest_seconds": seconds})
    return found


def _write(path: Path, content: dict[str, Any]) -> None:
    from snnkit.files import write_beside

    write_beside(path, (json.dumps(content, indent=2) + "\n").encode())


def _run(command: list[str], what: str) -> None:
    try:
        found = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    except OSError as error:
        raise BackendMissing(f"cannot {what}: {error}") from error
    if found.returncode:
        lines = "\n".join(found.stdout.strip().splitlines()[-5:])
        raise BackendMissing(f"cannot {what}: `{' '.join(command)}` failed:\n{lines}")


def status() -> dict[str, Any]:
    """What `snnkit lava-env status` shows."""
    try:
        return {"found": True, **asdict(find())}
    except BackendMissing as error:
        return {"found": False, "reason": str(error), "install": CREATE}
