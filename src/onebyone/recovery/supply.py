"""Batches to train on: shuffled anew each epoch from memory or from files, or a loader's own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any, Protocol

import torch
from torch import Tensor

from onebyone.data import Images, open_images
from onebyone.distributed import World
from onebyone.errors import TrainingError, is_number
from onebyone.folders import Listing
from onebyone.pools import Pool, check_all_used, is_batches, open_pool
from onebyone.preprocessing import Preprocess
from onebyone.several import Packing

HELD_OUT_SHARE = 20
Batch = tuple[Tensor, Tensor | None]


class Supply(Protocol):
    """Batches, the same ones for the same epoch; each process gets its share of them."""

    @property
    def steps(self) -> int:
        """Batches that each process gets in one epoch."""
        ...

    @property
    def held_out(self) -> Images | None:
        """Images set apart, None where there are none."""
        ...

    @property
    def packing(self) -> Packing | None:
        """How several inputs lie in one tensor; None where an image is all."""
        ...

    @property
    def labels(self) -> Tensor | None:
        """Those of all images to train on, None where they are not known before these are read."""
        ...

    @property
    def skipped(self) -> tuple[str, ...]:
        """Files that could not be read so far, with the reason."""
        ...

    def epoch(self, number: int, first: int, world: World) -> Iterator[Batch]:
        """This process's part of the batches of an epoch, from the `first` one on."""
        ...


class Shuffled:
    """A permutation of the images for each epoch, cut into full batches; some are held out of it.

    Batches are of `batch` images over all processes; the rest of an epoch that fills none is left
    out of it. While one is computed with, the next one is read.
    """

    def __init__(self, pool: Pool, batch: int, held_out: int, seed: int) -> None:
        self.pool, apart = pool.split(held_out, seed)
        self.batch, self.seed, self.packing = batch, seed, pool.packing
        self.held_out = apart.readable()
        self.steps = len(self.pool) // batch
        if not self.steps:
            raise TrainingError(
                f"{len(self.pool):,} images fill no batch of {batch:,}: give more images, or a smaller "
                "--batch (batch_size= of Recipe)"
            )

    @property
    def labels(self) -> Tensor | None:
        """Those of all images to train on."""
        return self.pool.labels

    @property
    def skipped(self) -> tuple[str, ...]:
        """Files that could not be read so far, with the reason."""
        return self.pool.skipped

    def epoch(self, number: int, first: int, world: World) -> Iterator[Batch]:
        """This process's part of the batches of an epoch, from the `first` one on."""
        generator = torch.Generator().manual_seed(hash((self.seed, number)) % (1 << 62))
        order = torch.randperm(len(self.pool), generator=generator)
        part = self.batch // world.size
        begin = world.rank * part
        index = [order[step * self.batch :][begin : begin + part] for step in range(self.steps)]
        with ThreadPoolExecutor(1) as pool:
            ahead: Future[Batch] | None = None
            for step in range(first, self.steps):
                batch = ahead.result() if ahead else self.pool.read(index[step])
                if step + 1 < self.steps and isinstance(self.pool.source, Listing):
                    ahead = pool.submit(self.pool.read, index[step + 1])
                yield batch


class Given:
    """The batches of a loader or another iterable, as they come; processes take turns."""

    def __init__(self, batches: Iterable[Any], preprocess: Preprocess | None, world: World) -> None:
        if iter(batches) is batches:
            raise TrainingError(
                f"{type(batches).__name__} gives its batches only once: give a DataLoader, a list of "
                "batches, or a tensor, so that each epoch can begin anew"
            )
        try:
            count = len(batches)  # type: ignore[arg-type]
        except TypeError:
            raise TrainingError(
                f"{type(batches).__name__} does not say how many batches it has (no len()), which the "
                "learning rate's course needs: give a DataLoader of a dataset with a length"
            ) from None
        self.batches, self.preprocess = batches, preprocess
        self.steps, self.held_out = count // world.size, None
        self.packing: Packing | None = None  # known when a batch was read
        self.skipped: tuple[str, ...] = ()
        self.labels: Tensor | None = None
        if not self.steps:
            raise TrainingError(f"{count} batches are not enough for {world.size} processes")

    def epoch(self, number: int, first: int, world: World) -> Iterator[Batch]:
        """This process's part of the batches of an epoch, from the `first` one on."""
        own = (batch for _, batch in world.share(self.batches))
        for batch in islice(own, first, self.steps):
            images = open_images([batch], self.preprocess)
            self.packing = images.packing
            yield images.inputs, images.labels


def open_supply(
    data: object,
    preprocess: Preprocess | None,
    classes: tuple[str, ...] | None,
    batch: int,
    held_out: object,
    seed: int,
    world: World,
) -> tuple[Supply, tuple[str, ...]]:
    """The batches of anything that `open_images` takes, and what there is to say about them.

    held_out: None to set some images apart, where batches are ours to make: a twentieth, 2,000 at most;
    a number for so many; images of their own, for none of these.
    Raises TrainingError where the images fill no batch or the processes cannot share one.
    """
    if batch % world.size:
        raise TrainingError(
            f"a batch of {batch} images cannot be shared by {world.size} processes: give a batch size "
            f"that {world.size} divides, such as {batch // world.size * world.size or world.size}"
        )
    if is_batches(data):
        if is_number(held_out):
            check_all_used(data, held_out)
        return Given(data, preprocess, world), ()  # type: ignore[arg-type]
    pool = open_pool(data, preprocess, classes)
    return Shuffled(pool, batch, pool.apart(held_out, HELD_OUT_SHARE), seed), pool.notes
