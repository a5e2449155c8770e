"""Seconds by step, and word of progress."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from onebyone.errors import DataError

Progress = Callable[..., None]  # (step, fraction done), and perhaps a few words on how it goes


class Clock:
    """Times the steps of long work and tells `progress(step, fraction done)`, perhaps
    with words as a third.

    Steps may stand inside one another; the seconds of an inner one are not the outer one's too.
    """

    def __init__(self, progress: Progress | None = None) -> None:
        if progress is not None and not callable(progress):
            raise DataError(
                f"progress={progress!r} cannot be called: give a function of a step's name and of the "
                "fraction done (and of words, which may be left out)"
            )
        self.progress = progress or (lambda step, done, words="": None)
        self.seconds: dict[str, float] = {}
        self._steps: list[str] = []
        self._since = 0.0

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time what runs inside; 0 is told at its start and 1 at its end."""
        self._count()
        self._steps.append(name)
        self.tell(0.0)
        yield
        self._count()
        self.tell(1.0)
        self._steps.pop()

    def tell(self, done: float, words: str = "") -> None:
        """The fraction done of the innermost step, and perhaps a few words on how it goes."""
        self.progress(self._steps[-1], done, *([words] if words else []))

    def _count(self) -> None:
        now = time.perf_counter()
        if self._steps:
            name = self._steps[-1]
            self.seconds[name] = self.seconds.get(name, 0.0) + now - self._since
        self._since = now
