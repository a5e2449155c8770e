"""Hidden spaces: channels that some layers write, others read, and nothing else needs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from onebyone.conv import ConvSpec
from onebyone.moments import Reads

OUTPUT = "the network gives it out"


NUMBER = (
    "num_features"  # of a normalization without tensors: it is cut as one with an entry a channel
)


@dataclass(frozen=True)
class Cut:
    """Where the channels of a space lie in a parameter or buffer.

    Channel c has the `block` entries from start + c·block on of the tensor's axis. Axes of a layer's
    weight are those of its kernel: outputs 0, inputs 1, also where the tensor has them the other way
    round (transposed convolutions).
    """

    tensor: str
    axis: int
    start: int = 0
    block: int = 1

    @property
    def module(self) -> str:
        """The qualified name of the module that holds the tensor."""
        return self.tensor.rpartition(".")[0]

    @property
    def name(self) -> str:
        """The tensor's name in its module."""
        return self.tensor.rpartition(".")[2]

    def entries(self, channels: Iterable[int]) -> list[int]:
        """The entries along the axis that these channels have."""
        return [self.start + c * self.block + i for c in channels for i in range(self.block)]


@dataclass(frozen=True)
class Space:
    """Channels that can be left out together.

    `writers` are the layers whose outputs they are, `readers` the layers that mix them, `through` the
    depthwise layers between. `cuts` are all tensors that have an entry for each channel;
    `params_each` is how many parameters a channel has outside of convolutions and linear layers.
    `refusal` says why none can be left out, or is None.
    """

    channels: int
    writers: tuple[str, ...]
    readers: tuple[str, ...]
    through: tuple[str, ...]
    cuts: tuple[Cut, ...]
    params_each: int = 0
    refusal: str | None = None

    @property
    def name(self) -> str:
        """The first layer that writes it."""
        return self.writers[0]

    def readings(self, layer: str) -> tuple[Cut, ...]:
        """Where the channels lie in the weight of a reader: more than once where it reads copies of them
        side by side, as they are and pooled for example."""
        weight = tensor_name(layer, "weight")
        return tuple(c for c in self.cuts if c.tensor == weight and c.axis == 1)

    def channels_of(self, layer: str) -> tuple[range, ...]:
        """The channels that they are among all that a reader has, for each of its readings."""
        firsts = (cut.start // cut.block for cut in self.readings(layer))
        return tuple(range(first, first + self.channels) for first in firsts)


@dataclass(frozen=True)
class Narrowing:
    """What becomes of one space: the first `width` channels of `order` stay.

    `order` has all channels, those that are needed most first. `error` is the predicted rise of the
    loss in nats per image for leaving out the others.
    """

    layer: str
    width: int
    order: tuple[int, ...]
    cuts: tuple[Cut, ...]
    params_each: int = 0
    error: float = 0.0

    @property
    def channels(self) -> int:
        """How many channels there were."""
        return len(self.order)

    @property
    def kept(self) -> tuple[int, ...]:
        """The channels that stay, in their own order."""
        return tuple(sorted(self.order[: self.width]))

    @property
    def params_saved(self) -> int:
        """Parameters that go with the channels, outside of convolutions and linear layers."""
        return (self.channels - self.width) * self.params_each


def tensor_name(layer: str, name: str) -> str:
    """The qualified name of a layer's tensor; the root has no name."""
    return f"{layer}.{name}" if layer else name


def narrowed(layer: str, conv: ConvSpec, narrowings: Sequence[Narrowing]) -> ConvSpec:
    """The geometry of a layer after the narrowings."""
    weight = tensor_name(layer, "weight")
    for narrowing in narrowings:
        for cut in narrowing.cuts:
            if cut.tensor == weight:
                conv = without(conv, cut, narrowing.channels - narrowing.width)
    return conv


def without(conv: ConvSpec, cut: Cut, channels: int) -> ConvSpec:
    """The geometry without so many channels of a space that is cut from the layer's weight."""
    entries = channels * cut.block
    if cut.axis == 1:
        return replace(conv, c_in=conv.c_in - entries)
    if conv.groups == 1:
        return replace(conv, c_out=conv.c_out - entries)
    groups = conv.groups - entries * conv.groups // conv.c_out  # depthwise
    return replace(conv, c_in=groups, c_out=conv.c_out - entries, groups=groups)


def kept_entries(
    layer: str, axis: int, size: int, narrowings: Sequence[Narrowing]
) -> list[int] | None:
    """The entries that stay of an axis of a layer's weight; None where nothing is cut there."""
    weight, dropped = tensor_name(layer, "weight"), set()
    for narrowing in narrowings:
        gone = narrowing.order[narrowing.width :]
        for cut in narrowing.cuts:
            if cut.tensor == weight and cut.axis == axis:
                dropped |= set(cut.entries(gone))
    return [i for i in range(size) if i not in dropped] if dropped else None


def reads_of(spaces: Iterable[Space]) -> dict[str, Reads]:
    """For each layer that reads channels which can be left out: where, and as how many entries each.

    There is one entry but for linear layers behind a flattened map, and one number for a layer.
    """
    found: dict[str, Reads] = {}
    for space in spaces:
        for layer in space.readers if space.refusal is None else ():
            before = found[layer].ranges if layer in found else ()
            ranges = sorted({*before, *space.channels_of(layer)}, key=lambda own: own.start)
            found[layer] = Reads(space.readings(layer)[0].block, tuple(ranges))
    return found
