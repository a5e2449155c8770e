"""What goes wrong → one clear message on stderr and an exit code."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import typer

from onebyone.cli.showing import leads, shown
from onebyone.cli.signals import INTERRUPTED, Terminated, deafen, interrupted
from onebyone.errors import LostError, OneByOneError, OutputError

BUG, MENDABLE, UNHEARD = 1, 2, 141
ISSUES = "please report it with the lines above and the command you ran"


@dataclass
class Outcome:
    """What a command has written so far; None is nothing."""

    written: Path | None = None


@contextmanager
def failures(lighter: str = "") -> Iterator[Outcome]:
    """Exit 2 for what the user can mend, 130 for an interrupt, 1 with a traceback for a bug.

    141, in silence, where whoever read the output has gone, as other commands in a pipe do.
    `lighter` is what to give so that this command takes less memory, in its own options.
    """
    outcome = Outcome()
    try:
        yield outcome
    except SystemExit as error:
        if isinstance(error, Terminated):
            raise
        stop(
            f"the network's own code ended the command (sys.exit({error.code!r})): let it return, or raise "
            "an error that says what is wrong"
        )
    except (Exception, KeyboardInterrupt) as error:
        if isinstance(error, typer.Exit | typer.BadParameter):
            raise
        if isinstance(error, KeyboardInterrupt) or interrupted():
            deafen()
            left = (
                f"{outcome.written} had been written" if outcome.written else "nothing was written"
            )
            stop(f"interrupted; {left}", INTERRUPTED)
        if isinstance(error, OSError) and error.errno == errno.EPIPE:
            _leave_in_silence()
        message = _message(error, lighter)
        if message is None:
            _bug(error)
        if outcome.written and isinstance(error, OutputError):
            message += f"; {outcome.written} had been written"
        if not leads() and not isinstance(error, LostError):
            raise typer.Exit(MENDABLE) from None  # every process meets it, and one tells
        stop(message)


def _message(error: Exception, lighter: str) -> str | None:
    """What to tell about an error that the user can mend; None for any other."""
    if isinstance(error, OneByOneError):
        return str(error)
    text = str(error)
    full = isinstance(error, RuntimeError) and any(
        said in text for said in ("alloc", "out of memory", "Storage size calculation overflowed")
    )
    if isinstance(error, MemoryError) or full:
        todo = f"give {lighter}" if lighter else "end what else runs on this machine"
        return (
            f"there is not enough memory: {todo}. "
            f"The system says: {text.splitlines()[0] if text else type(error).__name__}"
        )
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or error}"
    return None


def _leave_in_silence() -> NoReturn:
    # What is still buffered would fail once more when Python flushes it at exit.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    raise typer.Exit(UNHEARD)


def _bug(error: Exception) -> NoReturn:
    traceback.print_exception(error)
    stop(f"this is a bug in onebyone ({type(error).__name__}): {ISSUES}", BUG)


def stop(message: str, code: int = MENDABLE) -> NoReturn:
    """Say what went wrong, and end with this exit code."""
    typer.secho("onebyone: ", fg=typer.colors.RED, bold=True, nl=False, err=True)
    typer.echo(shown(message), err=True)
    raise typer.Exit(code)
