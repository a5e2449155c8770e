"""The model and the images that a command's options name."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Any

from onebyone.cli import values
from onebyone.cli.showing import Progress, note, skipped

if TYPE_CHECKING:
    from onebyone.data import Images
    from onebyone.loading import Loaded
    from onebyone.preprocessing import Preprocess

LEAST_HELD_OUT = 64


@dataclass(frozen=True)
class Pictures:
    """How files become inputs, where the options say it."""

    size: tuple[int, ...] | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None

    @staticmethod
    def parse(size: str | None, mean: str | None, std: str | None) -> Pictures:
        """From the texts of --size, --mean and --std."""
        return Pictures(
            values.lengths(size, "--size", (1, 2, 3)),
            values.numbers(mean, "--mean"),
            values.numbers(std, "--std"),
        )

    def preprocess(self, loaded: Loaded) -> Preprocess | None:
        """The model's own preprocessing, with what the options change; None if it is not known."""
        from onebyone.errors import DataError
        from onebyone.preprocessing import Preprocess

        known = loaded.preprocess
        if self.size is None and self.mean is None and self.std is None:
            return known
        mean, std = self.mean or (known and known.mean), self.std or (known and known.std)
        if mean is None or std is None:
            raise DataError(
                "the network's normalization is not known: give --mean and --std, on the scale 0 "
                "to 1, one value or one a channel (the values that it was trained with)"
            )
        size = self._size(tuple(known.size if known else loaded.example.shape[1:]))
        if known is not None and size == known.size:
            return replace(known, mean=mean, std=std)
        return Preprocess(size, mean, std)  # type: ignore[arg-type]

    def _size(self, own: tuple[int, ...]) -> tuple[int, ...]:
        if self.size is None:
            return own
        if len(self.size) == 1:
            return (own[0], *self.size, *self.size)
        return self.size if len(self.size) == 3 else (own[0], *self.size)


@dataclass(frozen=True)
class Inputs:
    """What a command works on."""

    loaded: Loaded
    preprocess: Preprocess | None
    images: Images
    held_out: Images | None


@dataclass(frozen=True)
class Source:
    """The options that say what to work on, parsed; `images` is how many to slim with."""

    model: str
    weights: str | None
    input_size: tuple[int, ...] | None
    trust: bool
    data: str
    held_out: str | None
    pictures: Pictures
    images: int
    memory: int
    seed: int

    def read(self, tell: Progress) -> Inputs:
        """Load the network and the images, and check that they suit one another."""
        tell("load", 0)
        loaded = read_model(self.model, self.weights, self.input_size, self.trust)
        preprocess = self.pictures.preprocess(loaded)
        tell("load", 1)
        tell("read", 0)
        spare = room(self.memory, loaded, preprocess)
        most = self.images + (spare if self.held_out is None else 0)
        images = read_images(self.data, loaded, preprocess, most, self.seed)
        held_out = None
        if self.held_out is not None:
            held_out = read_images(self.held_out, loaded, preprocess, spare, self.seed)
        tell("read", 1)
        return Inputs(loaded, preprocess, images, held_out)


def use_threads(threads: int | None) -> None:
    """Let PyTorch compute with so many threads; by default as many as it chooses."""
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


def read_model(spec: str, weights: str | None, size: tuple[int, ...] | None, trust: bool) -> Loaded:
    """The network, checked to take batches of any size."""
    from onebyone.errors import ModelError
    from onebyone.loading import load

    loaded = load(spec, weights=weights, input_size=size, trust=trust)
    if loaded.fixed_batch is not None:
        raise ModelError("; ".join(loaded.notes))
    note(*loaded.notes)
    return loaded


def room(memory: int, loaded: Loaded, preprocess: Preprocess | None) -> int:
    """How many held-out images to read at most: a quarter of the memory for them."""
    shape: Any = preprocess.size if preprocess else loaded.example.shape[1:]
    return max(LEAST_HELD_OUT, memory // 4 // (4 * prod(shape)))


def read_images(
    data: str, loaded: Loaded, preprocess: Preprocess | None, limit: int, seed: int
) -> Images:
    """The images, checked to suit the network; tells what could not be read."""
    from onebyone.data import check_images, open_images

    images = open_images(data, preprocess, limit=limit, seed=seed, classes=loaded.classes)
    skipped(images.skipped)
    check_images(images, loaded.example)
    return images
