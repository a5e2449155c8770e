"""The model and the images that a command's options name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Any

from onebyone.cli import values
from onebyone.cli.showing import Progress, note

if TYPE_CHECKING:
    import torch

    from onebyone.data import Images
    from onebyone.loading import Loaded
    from onebyone.pools import Pool
    from onebyone.preprocessing import Preprocess

LEAST = 64  # images that are read whatever --memory says
HELD_OUT = 1024  # images to compare on, where none are named and accuracy decides nothing


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
    """What a command works on; `memory` is what the images leave, in bytes."""

    loaded: Loaded
    preprocess: Preprocess | None
    images: Images
    held_out: Images | None
    memory: int


@dataclass(frozen=True)
class Opened:
    """What a command trains on: all images, read as they are needed."""

    loaded: Loaded
    preprocess: Preprocess | None
    images: Pool
    held_out: Images | None
    memory: int


@dataclass(frozen=True)
class Source:
    """The options that say what to work on, parsed; `images` is how many to slim with.

    `labels`: accuracy decides, so the held-out images need labels, and as many as fit are read.
    """

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
    labels: bool

    @property
    def paths(self) -> tuple[str | None, ...]:
        """What must not be overwritten, where these are files or folders."""
        return self.model, self.weights, self.data, self.held_out

    def _load(self, tell: Progress) -> tuple[Loaded, Preprocess | None]:
        tell("load", 0)
        loaded = read_model(self.model, self.weights, self.input_size, self.trust, several=True)
        preprocess = self.pictures.preprocess(loaded)
        tell("load", 1)
        return loaded, preprocess

    def open(self, tell: Progress) -> Opened:
        """Load the network, and all images to train on, which are read as they are needed."""
        loaded, preprocess = self._load(tell)
        pool = read_pool(self.data, loaded, preprocess)
        held_out = None
        if self.held_out is not None:
            fit = room(self.memory, loaded, preprocess)
            held_out = read_held_out(self.held_out, loaded, preprocess, fit, self.seed)
        return Opened(loaded, preprocess, pool, held_out, self.memory)

    def read(self, tell: Progress) -> Inputs:
        """Load the network and the images, and check that they suit one another."""
        from onebyone.slimming import set_apart

        loaded, preprocess = self._load(tell)
        tell("read", 0)
        fit = room(self.memory, loaded, preprocess)
        if self.images > fit:
            note(f"slimming with {fit:,} images at most: --memory has no room for {self.images:,}")
        wanted, spare = min(self.images, fit), fit if self.labels else min(fit, HELD_OUT)
        held_out = None
        if self.held_out is not None:
            held_out = read_held_out(self.held_out, loaded, preprocess, fit, self.seed)
            spare = 0
        images = read_images(self.data, loaded, preprocess, wanted + spare, self.seed)
        images, held_out = set_apart(
            images, held_out, calibration=wanted, labels=self.labels, seed=self.seed
        )
        tell("read", 1)
        used = sum(4 * i.inputs.numel() for i in (images, held_out) if i is not None)
        return Inputs(loaded, preprocess, images, held_out, max(self.memory - used, used))


def use_threads(threads: int | None) -> None:
    """Let PyTorch compute with so many threads; by default as many as it chooses."""
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


def place(device: str) -> torch.device:
    """The device that an option names; auto is this process's GPU if there is one."""
    import torch

    from onebyone.errors import ModelError, line_of

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise ModelError(f"the device {device!r} cannot be used here: {line_of(error)}") from None


def read_model(
    spec: str, weights: str | None, size: tuple[int, ...] | None, trust: bool, *,
    several: bool = False,
) -> Loaded:  # fmt: skip
    """The network, checked to take batches of any size, and one tensor of them unless `several` may be."""
    from onebyone.errors import ModelError
    from onebyone.loading import load
    from onebyone.tree import tensors_in

    loaded = load(spec, weights=weights, input_size=size, trust=trust)
    if loaded.fixed_batch is not None:
        raise ModelError("; ".join(loaded.notes))
    batches = loaded.of_tensors and all(x.ndim for x in tensors_in(loaded.inputs))
    if not batches or (loaded.several and not several):
        number, kind = len(loaded.inputs), type(loaded.inputs[0]).__name__
        takes = f"{number} inputs" if number > 1 else f"a {kind}"
        raise ModelError(
            f"{spec} takes {takes}: a batch of images is one tensor"
            + (" for this command" if batches else ", so it can be measured and not slimmed")
        )
    note(*loaded.notes)
    return loaded


def with_inputs(loaded: Loaded, sizes: Sequence[tuple[int, ...]]) -> Loaded:
    """The network with a random input of each size, of its weights' type and its own batch."""
    import torch

    from onebyone.loading.loaded import example_of
    from onebyone.running import suited

    own, batch = loaded.example, loaded.fixed_batch or 1
    dtype = own.dtype if own.is_floating_point() else torch.float32  # where there are no weights
    drawn = (example_of(size, batch).to(dtype) for size in sizes)
    return replace(loaded, inputs=tuple(suited(loaded.model, x) for x in drawn))


def room(memory: int, loaded: Loaded, preprocess: Preprocess | None) -> int:
    """How many images fit in a quarter of the memory, as float32; there are two sets of them."""
    from onebyone.tree import tensors_in

    shape: Any = preprocess.size if preprocess else loaded.example.shape[1:]
    values = prod(shape) + sum(prod(x.shape[1:]) for x in [*tensors_in(loaded.inputs)][1:])
    return max(LEAST, memory // 4 // (4 * values))


def read_held_out(
    data: str, loaded: Loaded, preprocess: Preprocess | None, fit: int, seed: int = 0
) -> Images:
    """Images to compare on, as many as fit; says so where that may not be all."""
    images = read_images(data, loaded, preprocess, fit, seed)
    if len(images) == fit:
        note(f"comparing on {fit:,} images of {data}: --memory has no room for more")
    return images


def read_pool(data: str, loaded: Loaded, preprocess: Preprocess | None) -> Pool:
    """All images to train on, checked to suit the network; files are read when they are needed."""
    from onebyone.pools import open_pool

    pool = open_pool(data, preprocess, loaded.classes, _names(loaded))
    _check_suits(pool.take(1), loaded, data)
    return pool


def read_images(
    data: str, loaded: Loaded, preprocess: Preprocess | None, limit: int, seed: int
) -> Images:
    """The images, checked to suit the network and the size that was asked for."""
    from onebyone.data import open_images
    from onebyone.errors import DataError

    images = open_images(
        data, preprocess, limit=limit, seed=seed, classes=loaded.classes, names=_names(loaded)
    )
    _check_suits(images, loaded, data)
    shape = tuple(images.inputs.shape[1:])
    if preprocess is not None and images.packing is None and shape != preprocess.size:
        given, wanted = ("×".join(map(str, n)) for n in (shape, preprocess.size))
        raise DataError(
            f"the images in {data} are {given} each and the size is {wanted}: arrays are taken as "
            "they are, so give arrays of that size, or --size for theirs"
        )
    return images


def _names(loaded: Loaded) -> tuple[str, ...]:
    """The names of several inputs; () for a network of one."""
    from onebyone.several import packing_of

    return packing_of(loaded.model, loaded.inputs).names if loaded.several else ()


def _check_suits(images: Images, loaded: Loaded, data: str) -> None:
    """Raise DataError where the inputs are not those that the network takes, several by their names."""
    from onebyone.data import check_images
    from onebyone.errors import DataError
    from onebyone.several import packing_of

    if not loaded.several and images.packing is None:
        check_images(images, loaded.example, f"{data}: ")
        return
    taken, given = packing_of(loaded.model, loaded.inputs), images.packing
    if given is not None and not loaded.several:
        raise DataError(
            f"{data} has {given.text}; the network takes {taken.text}, as far as is known: for several "
            "inputs let the function that makes it return (network, inputs), a tuple of one tensor for each"
        )
    if given is None or given.by_name != taken.by_name:
        raise DataError(
            f"{data} has {given.text if given else 'one input'}; the network takes {taken.text}: give "
            "a .npz file with an array for each, by these names, with the images as its first axis"
        )
