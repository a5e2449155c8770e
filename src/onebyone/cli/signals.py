"""Interrupts: the first one ends the command, whatever the code that it meets makes of it."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

INTERRUPTED = 130  # the exit code
AGAIN = 2.0  # seconds in which a second Ctrl-C is part of the first
SOON, LONGEST = 0.02, 5.0  # seconds after which a signal comes again, and those in which it may
_times: list[float] = []
_first: dict[int, float] = {}  # when a signal was put off first


class Terminated(SystemExit):
    """SIGTERM's own way out, which a network's `sys.exit` is not."""


def listen() -> None:
    """Handle SIGINT, unless it is ignored here (as in the background), and SIGTERM."""
    signal.signal(signal.SIGTERM, _terminated)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupted)


def interrupted() -> bool:
    """Whether there was an interrupt; code that it hit may have raised something else instead."""
    return bool(_times)


@contextmanager
def before_work() -> Iterator[None]:
    """Tell of an interrupt that comes before the command has begun."""
    try:
        yield
    except KeyboardInterrupt:
        deafen()
        print("onebyone: interrupted; nothing was written", file=sys.stderr)
        raise


def deafen() -> None:
    """Nothing interrupts what is left to do: the message and Python's own end."""
    if signal.getsignal(signal.SIGINT) is _interrupted:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _interrupted(number: int, frame: FrameType | None) -> None:
    if _put_off(number, frame):
        return
    now = time.monotonic()
    if _times and now - _times[-1] < AGAIN:
        return  # it would disturb the tidying up
    _times.append(now)
    raise KeyboardInterrupt


def _terminated(number: int, frame: FrameType | None) -> None:
    """Leave through every `finally`, so that nothing half-written stays."""
    if not _put_off(number, frame):
        raise Terminated(128 + number)


def _put_off(number: int, frame: FrameType | None) -> bool:
    """Whether the signal comes again a moment later, since a module is being imported.

    What is raised there may be lost, and leaves modules half made (numpy's, torch's).
    """
    if not _importing(frame) or not hasattr(signal, "setitimer"):
        _first.pop(number, None)
        return False
    if time.monotonic() - _first.setdefault(number, time.monotonic()) > LONGEST:
        return False  # a module of the user's that works while it is imported
    handle = signal.getsignal(number)
    signal.signal(signal.SIGALRM, lambda _, now: handle(number, now) if callable(handle) else None)
    signal.setitimer(signal.ITIMER_REAL, SOON)
    return True


def _importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False
