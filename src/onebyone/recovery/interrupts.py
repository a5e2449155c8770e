"""Ctrl-C between two steps of a training, not in the middle of one."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

PATIENCE = 2.0  # seconds after which a second Ctrl-C does not wait; people press it twice


@contextmanager
def undisturbed() -> Iterator[None]:
    """An interrupt inside takes effect at the end of the block, a later second one at once."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    waiting: list[tuple[float, int, FrameType | None]] = []

    def later(number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if waiting and now - waiting[0][0] > PATIENCE:
            before(number, frame)
        waiting.append((now, number, frame))

    signal.signal(signal.SIGINT, later)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if waiting:
        before(*waiting[0][1:])
