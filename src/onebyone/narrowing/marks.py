"""Marks on tensors: along which axis they have channels that are followed, and what moves that axis."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from math import prod
from typing import Any

from torch import Tensor

from onebyone.narrowing.spaces import Cut

# Operators that compute every element from the one at its place; more carry PyTorch's own tag.
ELEMENTWISE = {
    "hardtanh", "hardtanh_", "hardswish", "hardswish_", "relu6", "relu6_", "leaky_relu",
    "leaky_relu_", "hardsigmoid_", "_prelu_kernel", "native_dropout", "dropout", "clone",
    "contiguous", "detach", "alias", "_to_copy", "lift_fresh", "copy_", "fill_", "zero_",
    "empty_like", "zeros_like", "ones_like", "silu_", "mish_", "elu_", "selu", "selu_", "celu",
    "celu_", "relu", "relu_", "threshold", "threshold_",
}  # fmt: skip
NORMS = {
    "native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training",
    "batch_norm", "cudnn_batch_norm", "miopen_batch_norm", "_batch_norm_no_update",
}  # fmt: skip
# Operators on the pixels of each channel by itself; channels are axis 1.
PIXELWISE = {
    "max_pool1d", "max_pool2d", "max_pool3d", "max_pool2d_with_indices",
    "max_pool3d_with_indices", "avg_pool1d", "avg_pool2d", "avg_pool3d", "_adaptive_avg_pool2d",
    "_adaptive_avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d",
    "adaptive_max_pool2d", "adaptive_max_pool3d",
    "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d",
    "_upsample_nearest_exact2d", "upsample_bilinear2d", "upsample_bicubic2d",
    "upsample_trilinear3d", "upsample_linear1d", "reflection_pad1d", "reflection_pad2d",
    "reflection_pad3d", "replication_pad1d", "replication_pad2d", "replication_pad3d",
    "constant_pad_nd",
}  # fmt: skip
REDUCTIONS = {
    "mean", "sum", "amax", "amin", "max", "min", "var", "std", "logsumexp", "linalg_vector_norm",
}  # fmt: skip
VIEWS = {
    "view", "_unsafe_view", "reshape", "_reshape_alias", "flatten", "squeeze", "unsqueeze",
}  # fmt: skip
SPLITS = {"split", "split_with_sizes", "chunk", "unsafe_split", "unsafe_chunk", "glu"}
# Operators along the axes that they name second, each channel by itself where it is another axis.
ALONG = {"slice", "select", "index_select", "flip", "cumsum", "_softmax", "_log_softmax"}
PRODUCTS = ("mul", "mul_", "div", "div_")


@dataclass(frozen=True)
class Segment:
    """All channels of a space, side by side, each of `block` entries, as they were at an `age` of it."""

    space: int
    channels: int
    block: int = 1
    age: int = 0

    @property
    def size(self) -> int:
        """Entries of the axis."""
        return self.channels * self.block


@dataclass(frozen=True)
class Tag:
    """Along which axis a tensor has channels that are followed."""

    axis: int
    segments: tuple[Segment, ...]


@dataclass(frozen=True)
class Vector:
    """A tensor made of parameters and buffers with one entry for each channel along one axis."""

    axis: int
    cuts: tuple[Cut, ...]


@dataclass
class Found:
    """What is known of one space so far."""

    channels: int
    writers: list[str] = field(default_factory=list)
    readers: list[str] = field(default_factory=list)
    through: list[str] = field(default_factory=list)
    cuts: list[Cut] = field(default_factory=list)
    summed: bool = False  # a sum joins the channels of several layers
    refusal: str | None = None


def pieces(segments: tuple[Segment, ...], many: int) -> list[tuple[Segment, ...]] | None:
    """The segments in so many parts of one size, where none is cut; None otherwise."""
    size, parts = sum(s.size for s in segments) // many, []
    left = list(segments)
    for _ in range(many):
        part: list[Segment] = []
        while left and sum(s.size for s in part) < size:
            part.append(left.pop(0))
        if sum(s.size for s in part) != size:
            return None
        parts.append(tuple(part))
    return None if left else parts


def starts(segments: tuple[Segment, ...]) -> Iterator[tuple[int, Segment]]:
    """Each segment with its first entry along the axis."""
    start = 0
    for segment in segments:
        yield start, segment
        start += segment.size


def length_of(moved: Tag | Vector, source: Tensor, mark: Tag | Vector | None) -> int:
    """How long the axis of channels must be."""
    if isinstance(moved, Tag):
        return sum(s.size for s in moved.segments)
    assert mark is not None
    return source.shape[mark.axis]


def named_axes(source: Tensor, args: Any, place: int = 1) -> set[int]:
    """The axes in an operator's argument at this place; none where it names none."""
    given = args[place] if len(args) > place else ()
    axes = [given] if isinstance(given, int) else given
    return {a % source.ndim for a in axes} if isinstance(axes, list | tuple) else set()


def along(mark: Tag | Vector, source: Tensor, output: Tensor, args: Any) -> Tag | Vector | None:
    """Where the axis is after an operator along other ones, of which it may leave one out."""
    axes = named_axes(source, args) or {0}
    if mark.axis in axes:
        return None
    gone = sum(a < mark.axis for a in axes) if output.ndim < source.ndim else 0
    return replace(mark, axis=mark.axis - gone)


def reduced(
    mark: Tag | Vector, source: Tensor, output: Tensor, name: str, args: Any
) -> Tag | Vector | None:
    """Where the axis is after a mean over others."""
    gone = named_axes(source, args, 2 if name == "linalg_vector_norm" else 1)
    if not gone or mark.axis in gone:
        return None
    if output.ndim == source.ndim:
        return mark
    return replace(mark, axis=mark.axis - sum(a < mark.axis for a in gone))


def permuted(mark: Tag | Vector, source: Tensor, name: str, args: Any) -> Tag | Vector:
    """Where the axis is after `permute`, `transpose` or `t`."""
    order = list(range(source.ndim))
    if name == "permute":
        order = [a % source.ndim for a in args[1]]
    else:
        one, other = (args[1], args[2]) if name == "transpose" else (0, source.ndim - 1)
        order[one], order[other] = order[other], order[one]
    return replace(mark, axis=order.index(mark.axis))


def viewed(mark: Tag | Vector, source: Tensor, output: Tensor) -> Tag | Vector | None:
    """Where the axis is after a reshaping, perhaps drawn together with those behind it or apart."""
    before, length = prod(source.shape[: mark.axis]), source.shape[mark.axis]
    for axis, size in enumerate(output.shape):
        if prod(output.shape[:axis]) != before or (size == 1 and length != 1):
            continue
        if size == length:
            return replace(mark, axis=axis)
        if isinstance(mark, Vector):
            return None
        if size % length == 0:  # (N, C, H, W) → (N, C·H·W)
            ratio = size // length
            wider = tuple(replace(s, block=s.block * ratio) for s in mark.segments)
            return Tag(axis, wider)
        ratio = length // size
        if length % size == 0 and all(s.block % ratio == 0 for s in mark.segments):
            return Tag(axis, tuple(replace(s, block=s.block // ratio) for s in mark.segments))
    return None


def taken_apart(mark: Tag, source: Tensor, output: Tensor) -> int | None:
    """The axis from which on a reshaping has the channels along two of them; None where it does not."""
    before, length = prod(source.shape[: mark.axis]), source.shape[mark.axis]
    for axis, (size, behind) in enumerate(pairwise(output.shape)):
        if prod(output.shape[:axis]) == before and size * behind == length and size > 1 < behind:
            return axis
    return None
