"""How far a training is, for people."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import timedelta

from onebyone.report.numbers import small

SMOOTH = 0.95  # of the loss that is shown


@dataclass(frozen=True)
class Status:
    """How far a training is; `accuracy` is that on training images, None without labels."""

    epoch: float
    epochs: float
    loss: float
    accuracy: float | None
    images_per_second: float
    seconds_left: float

    @property
    def done(self) -> float:
        """The fraction done."""
        return self.epoch / self.epochs

    @property
    def words(self) -> str:
        """For people: "epoch 0.5 of 2, 0:01:40 left, loss 0.1830, accuracy 94.1 %, 1,250 images/s"."""
        left = timedelta(seconds=round(self.seconds_left))
        parts = [f"epoch {self.epoch:.1f} of {self.epochs:g}", f"{left} left"]
        parts.append(f"loss {small(self.loss)}")
        if self.accuracy is not None:
            parts.append(f"accuracy {self.accuracy:.1%}".replace("%", " %"))
        return ", ".join([*parts, f"{self.images_per_second:,.0f} images/s"])


class Shown:
    """What the progress shows: loss and accuracy as moving averages, and the pace."""

    def __init__(self) -> None:
        self.began, self.steps, self.images = time.perf_counter(), 0, 0
        self.loss, self.accuracy = 0.0, None

    def add(self, loss: float, right: int | None, images: int) -> None:
        """One step."""
        keep = SMOOTH if self.steps else 0.0
        self.loss = keep * self.loss + (1 - keep) * loss
        if right is not None:
            before = right / images if self.accuracy is None else self.accuracy
            self.accuracy: float | None = keep * before + (1 - keep) * right / images
        self.steps += 1
        self.images += images
