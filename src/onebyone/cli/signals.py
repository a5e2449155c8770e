"""Interrupts: the first one ends the command, whatever the code that it meets makes of it."""

from __future__ import annotations

import signal
import sys
import time
from types import FrameType
from typing import NoReturn

AGAIN = 2.0  # seconds in which a second Ctrl-C is part of the first
_times: list[float] = []


def listen() -> None:
    """Handle SIGINT, unless it is ignored here (as in the background), and SIGTERM."""
    signal.signal(signal.SIGTERM, _terminated)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupted)


def interrupted() -> bool:
    """Whether there was an interrupt; code that it hit may have raised something else instead."""
    return bool(_times)


def deafen() -> None:
    """Nothing interrupts what is left to do: the message and Python's own end."""
    if signal.getsignal(signal.SIGINT) is _interrupted:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _interrupted(number: int, _: FrameType | None) -> None:
    now = time.monotonic()
    if _times and now - _times[-1] < AGAIN:
        return  # it would disturb the tidying up
    _times.append(now)
    raise KeyboardInterrupt


def _terminated(number: int, _: FrameType | None) -> NoReturn:
    """Leave through every `finally`, so that nothing half-written stays."""
    sys.exit(128 + number)
