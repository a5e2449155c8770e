"""Pool: many images that are read when they are asked for, cut into parts that share none."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from onebyone.data import DEMO_FILES, Images, number_of, open_images
from onebyone.errors import DataError, is_number
from onebyone.folders import Listing, list_folder, shuffled
from onebyone.preprocessing import Preprocess
from onebyone.several import Packing

MOST_HELD_OUT = 2000


@dataclass(frozen=True)
class Pool:
    """Some images of a source in memory or in files, by their places in it."""

    source: Images | Listing
    places: Int[Tensor, " images"]

    def __len__(self) -> int:
        return len(self.places)

    @property
    def labels(self) -> Tensor | None:
        """Class numbers (images,), None where they are not known."""
        known = self.source.labels
        return None if known is None else known[self.places]

    @property
    def packing(self) -> Packing | None:
        """How several inputs lie in one tensor; None where an image is all."""
        return None if isinstance(self.source, Listing) else self.source.packing

    @property
    def notes(self) -> tuple[str, ...]:
        """What there is to say about the source."""
        return self.source.notes

    @property
    def skipped(self) -> tuple[str, ...]:
        """Files that could not be read so far, with the reason."""
        if isinstance(self.source, Listing):
            return tuple(f"{file}: {why}" for file, why in sorted(self.source.skipped.items()))
        return self.source.skipped

    def read(self, index: Int[Tensor, " some"]) -> tuple[Tensor, Tensor | None]:
        """Some of the images (some, C, H, W) and their labels; unreadable files are left out."""
        places = self.places[index]
        if isinstance(self.source, Listing):
            return self.source.read(places)
        labels = self.source.labels
        return self.source.inputs[places], None if labels is None else labels[places]

    def take(self, count: int, seed: int = 0) -> Images:
        """At most so many of the images, in memory, drawn at random by `seed`."""
        order = shuffled(len(self), seed)
        return Images(*self.read(order[:count]), packing=self.packing)

    def readable(self) -> Images | None:
        """All of the images, in memory; None where there are none, or none of their files can be read."""
        try:
            return self.take(len(self)) if len(self) else None
        except DataError:
            if len(self.skipped) < len(self):
                raise
            return None

    def split(self, apart: int, seed: int = 0) -> tuple[Pool, Pool]:
        """(the rest, `apart` images drawn at random); DataError where nothing would be left."""
        if not 0 <= apart < len(self):
            raise DataError(
                f"{apart:,} of {len(self):,} images cannot be set apart: give more images"
            )
        order = shuffled(len(self), seed)
        first, rest = (part.sort().values for part in (order[:apart], order[apart:]))
        return replace(self, places=self.places[rest]), replace(self, places=self.places[first])

    def apart(self, held_out: object, share: int) -> int:
        """How many of the images are held out: as many as that number says; where it is None one in
        `share`, 2,000 at most; none where it is images of their own."""
        if held_out is None:
            return min(MOST_HELD_OUT, max(1, len(self) // share))
        return number_of(held_out, len(self)) if is_number(held_out) else 0


def open_pool(
    data: object,
    preprocess: Preprocess | None = None,
    classes: tuple[str, ...] | None = None,
    names: tuple[str, ...] = (),
) -> Pool:
    """All images of what `open_images` takes; a folder's files are read when they are needed.

    Raises DataError where they cannot be told apart by their place: for loaders (`is_batches`).
    """
    if isinstance(data, Pool):
        return data
    if is_batches(data):
        raise DataError(
            f"{type(data).__name__} gives batches, of which none can be set apart: give a folder, a "
            "tensor or an array file"
        )
    source: Images | Listing
    if isinstance(data, str | Path) and str(data) not in DEMO_FILES and Path(data).is_dir():
        source = list_folder(Path(data), preprocess, classes)
        count = len(source.files)
    else:
        source = open_images(data, preprocess, classes=classes, names=names)
        count = len(source)
    return Pool(source, torch.arange(count))


def is_batches(data: object) -> bool:
    """Whether data is an iterable of batches rather than images at hand, or their place."""
    if isinstance(data, str | Path | Images | Pool | Tensor | dict | tuple):
        return False
    return isinstance(data, Iterable) and not hasattr(data, "__array__")


def check_all_used(batches: object, held_out: object) -> None:
    """DataError where some of these batches are to be held out: they cannot be told apart."""
    if held_out != 0:
        raise DataError(
            f"of the batches of {type(batches).__name__} none can be held out: give held_out= images of "
            "their own, or 0 for none"
        )
