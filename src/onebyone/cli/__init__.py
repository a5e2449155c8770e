"""The command line: parse, call one public function, hand the result to `report`."""

from __future__ import annotations

import os
import sys

from onebyone.cli.signals import INTERRUPTED, before_work, listen

__all__ = ["main"]


def main() -> None:
    """The console entry point."""
    # OpenMP threads that wait by spinning slow a shared machine down many times; torch reads this
    # when it is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    listen()
    # Where one is closed, the next file to be opened would stand for it.
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    try:
        with before_work():
            from onebyone.cli.app import app
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    app()
