"""The entry point: parse, run, and turn every error into one line and an exit code."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from snnkit.commands import say
from snnkit.errors import BackendMissing, SnnkitError
from snnkit.grammar import parser


def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes: 0 fine, 1 failed, 2 usage, 3 model or data not supported, 4 verification
    failed, 5 backend or dependency missing, 130 interrupted."""
    arguments = parser().parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except SnnkitError as error:
        return _fail(arguments, type(error).__name__, str(error), error.exit_code)
    except ModuleNotFoundError as error:
        missing = BackendMissing(f"{error}; run: pip install {error.name}")
        return _fail(arguments, "BackendMissing", str(missing), missing.exit_code)
    except KeyboardInterrupt:
        return _fail(arguments, "Interrupted", "interrupted", 130)
    except MemoryError:
        return _fail(arguments, "MemoryError", "out of memory; give fewer samples at once", 1)
    except OSError as error:
        return _fail(arguments, "OSError", str(error), 1)


def _fail(arguments: argparse.Namespace, kind: str, message: str, code: int) -> int:
    if arguments.json:
        print(json.dumps({"error": kind, "message": message, "exit_code": code}, indent=2))
    say(f"snnkit {arguments.command}: {message}")
    return code


__all__ = ["main", "parser"]

if __name__ == "__main__":
    sys.exit(main())
