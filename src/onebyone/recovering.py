"""Slimming with training in it: which images each part gets, and the recovery between the steps."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from onebyone.clock import Clock
from onebyone.data import Images, check_held_out, open_images
from onebyone.distributed import World
from onebyone.errors import is_number
from onebyone.plain import plain
from onebyone.plans import Step
from onebyone.pools import Pool, check_all_used, is_batches, open_pool
from onebyone.preprocessing import Preprocess
from onebyone.progressive import slim_in_steps
from onebyone.recovery.fine_tuning import FineTuned, fine_tune
from onebyone.recovery.recipe import Recipe
from onebyone.searching import Found
from onebyone.several import packed
from onebyone.surveying import telling

HELD_OUT_SHARE = 8


@dataclass(frozen=True)
class Recovering:
    """What `slim` was given for a training between its steps."""

    model: nn.Module
    images: object
    held_out: object
    preprocess: Preprocess | None
    classes: tuple[str, ...] | None
    recipe: Recipe | None
    calibration: int
    memory: int
    seed: int
    clock: Clock

    def slim(self, steps: tuple[Step, ...]) -> tuple[Found, Images | None, Images, tuple[str, ...]]:
        """The lighter network, the held-out and the calibration images, and notes.

        Held-out images are in no training and no calibration; DataError where they cannot be set
        apart.
        """
        with self.clock.step("read"):
            data, used, held_out, notes = self._parted()
        told: list[str] = []
        recipe = self.recipe or Recipe()
        if self.recipe is None and isinstance(data, Pool):
            recipe = recipe.fitting(len(data))

        def recover(lighter: nn.Module, epochs: float) -> FineTuned:
            tuned = fine_tune(
                lighter, data, teacher=self.model, epochs=epochs, recipe=recipe,
                preprocess=self.preprocess, classes=self.classes,
                progress=lambda status: self.clock.tell(status.done, status.words),
            )  # fmt: skip
            if tuned.ended == "interrupted":
                raise KeyboardInterrupt(tuned.why)
            told.append(
                World.current().led(lambda: tuned.words)
            )  # its seconds are each process's own
            return tuned

        made = plain(packed(self.model, used.packing), used.inputs[:1])
        used = used.led_by(telling(made.model, used.inputs))
        found = slim_in_steps(
            made.model, used, steps, recover, memory=self.memory, seed=self.seed, clock=self.clock
        )
        kept = [f"step {i}: {text}" for i, text in enumerate(told, start=1)]
        told = kept if len(told) > 1 else told
        return found, held_out, used, (*notes, *made.notes, *told)

    def _parted(self) -> tuple[object, Images, Images | None, tuple[str, ...]]:
        """Images to train on, to calibrate on (some of those), and held-out ones."""
        given = None
        if self.held_out is not None and not is_number(self.held_out):
            given = open_images(self.held_out, self.preprocess, classes=self.classes)
        if is_batches(self.images):
            if given is None:
                check_all_used(self.images, self.held_out)
            used = open_images(self.images, self.preprocess, limit=self.calibration)
            if given is not None:
                check_held_out(given, used.inputs[:1], used.packing)
            return self.images, used, given, ()
        pool = open_pool(self.images, self.preprocess, self.classes)
        rest, kept_back = pool.split(pool.apart(self.held_out, HELD_OUT_SHARE), self.seed)
        used = rest.take(self.calibration, self.seed)
        if given is not None:
            check_held_out(given, used.inputs[:1], pool.packing)
        else:
            given = kept_back.readable()
        return rest, used, given, pool.notes
