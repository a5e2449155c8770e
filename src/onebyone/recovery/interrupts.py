"""Ctrl-C, and SIGTERM, between two steps of a training, not in the middle of one."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

PATIENCE = 2.0  # seconds after which a second Ctrl-C does not wait; people press it twice


@contextmanager
def undisturbed() -> Iterator[None]:
    """An interrupt inside takes effect at the end of the block, a later second one at once."""
    before: dict[int, Callable[[int, FrameType | None], object]] = {}
    if threading.current_thread() is threading.main_thread():
        found = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        before = {number: handle for number, handle in found.items() if callable(handle)}
    waiting: list[tuple[float, int, FrameType | None]] = []

    def later(number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if waiting and now - waiting[0][0] > PATIENCE:
            before[number](number, frame)
        waiting.append((now, number, frame))

    for number in before:
        signal.signal(number, later)
    try:
        yield
    finally:
        for number, handle in before.items():
            signal.signal(number, handle)
    if waiting:
        before[waiting[0][1]](*waiting[0][1:])
