"""Windows: how a k×k kernel steps from one spatial size to another, worked out from the two sizes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from torch import nn

from onebyone.errors import ShapeError, is_whole

Shape = tuple[int, int, int]  # channels, height, width
AnyShape = str | Sequence[int]
LARGEST = 2**20  # of any length
MOST = 2**34  # elements of one image
MOST_TAPS = 1023  # of a kernel's side


@dataclass(frozen=True)
class Axis:
    """One spatial axis of a window; padding may differ `before` and `after`."""

    kernel: int = 1
    stride: int = 1
    before: int = 0
    after: int = 0

    def output(self, size: int) -> int:
        """Output size: ⌊(n + before + after − k) / stride⌋ + 1."""
        return (size + self.before + self.after - self.kernel) // self.stride + 1

    def pixels(self, size: int, output: int) -> int:
        """How many of the input's pixels are read for so many outputs."""
        end = (output - 1) * self.stride - self.before + self.kernel
        if self.stride > self.kernel:
            return output * self.kernel - self.before - max(end - size, 0)
        return min(end, size)


@dataclass(frozen=True)
class Window:
    """A kernel with its stride and padding over height and width."""

    rows: Axis = Axis()
    columns: Axis = Axis()

    @property
    def even(self) -> bool:
        """Whether the padding is the same on both sides, as layers take it."""
        return all(a.before == a.after for a in (self.rows, self.columns))

    @property
    def kernel(self) -> tuple[int, int]:
        """(kh, kw)."""
        return self.rows.kernel, self.columns.kernel

    @property
    def stride(self) -> tuple[int, int]:
        """Of height and width."""
        return self.rows.stride, self.columns.stride

    @property
    def padding(self) -> tuple[int, int, int, int]:
        """Left, right, top, bottom, as `torch.nn.functional.pad` takes them."""
        return self.columns.before, self.columns.after, self.rows.before, self.rows.after

    def split(self) -> tuple[Window, Window]:
        """A k×1 window along the rows and a 1×k window along the columns, one after the other."""
        return Window(rows=self.rows), Window(columns=self.columns)

    def conv(self, c_in: int, c_out: int, *, groups: int = 1, bias: bool) -> list[nn.Module]:
        """The convolution, after a layer that pads where its padding is lopsided."""
        made: list[nn.Module] = [] if self.even else [nn.ZeroPad2d(self.padding)]
        padding = (self.rows.before, self.columns.before) if self.even else (0, 0)
        return [
            *made,
            nn.Conv2d(c_in, c_out, self.kernel, self.stride, padding, groups=groups, bias=bias),
        ]

    def max_pool(self) -> list[nn.Module]:
        """The max-pooling; what lies outside of the input is never the largest."""
        if self.even:
            padding = (self.rows.before, self.columns.before)
            return [nn.MaxPool2d(self.kernel, self.stride, padding)]
        outside = nn.ConstantPad2d(self.padding, float("-inf"))
        return [outside, nn.MaxPool2d(self.kernel, self.stride)]

    def text(self) -> str:
        """For people: `5×5, stride 2, padding 2`.

        >>> Window.between((20, 20), (10, 10), 5).text()
        '5×5, stride 2, padding 2'
        """
        return f"{_pair(*self.kernel, '×')}, stride {_single(*self.stride)}, {self._padding_text()}"

    def _padding_text(self) -> str:
        left, right, top, bottom = self.padding
        if not self.even:
            return f"padding {top} above, {bottom} below, {left} left, {right} right"
        return f"padding {_single(top, left)}" if any(self.padding) else "no padding"

    @staticmethod
    def between(size: tuple[int, int], output: tuple[int, int], kernel: int) -> Window:
        """The window of a kernel×kernel layer that makes `output` (H′, W′) of `size` (H, W).

        Equal sizes mean stride 1 and "same" padding, k − 1 in all. Else the padding is between none
        and that: the same on both sides where it can be, such that most of the input is read, then
        the largest; and the stride the smallest. Raises ShapeError where no stride and padding do
        it, with the sizes that fit.
        """
        if not is_whole(kernel) or not 1 <= kernel <= MOST_TAPS:
            raise ShapeError(
                f"the kernel is given as {kernel!r}: the length of its side is expected, a whole "
                f"number from 1 to {MOST_TAPS}"
            )
        kernel = int(kernel)
        found = []
        for name, n, m in zip(("height", "width"), size, output, strict=True):
            axis = axis_between(n, m, kernel)
            if axis is None:
                raise ShapeError(
                    f"a {kernel}×{kernel} kernel cannot make {name} {m} of {n}, whatever stride and "
                    f"padding (at most {kernel - 1} in all): {fitting_text(n, kernel)}"
                )
            found.append(axis)
        return Window(*found)


def axis_between(size: int, output: int, kernel: int) -> Axis | None:
    """One axis of `Window.between`; None where nothing fits."""
    if output == size:
        return Axis(kernel, 1, (kernel - 1) // 2, kernel // 2)
    found = []
    for total in range(kernel):
        stride = _stride(size + total - kernel, output)
        if stride is not None:
            found.append(Axis(kernel, stride, total // 2, total - total // 2))
    return max(
        found, key=lambda a: (a.before == a.after, a.pixels(size, output), a.before), default=None
    )


def _stride(room: int, output: int) -> int | None:
    """The smallest stride s with ⌊room / s⌋ + 1 = output."""
    if room < 0 or output < 1:
        return None
    stride = room // output + 1
    return stride if room // stride + 1 == output else None


def fitting_text(size: int, kernel: int) -> str:
    """Which output sizes fit, for a message: `1 to 5, 7, 10 and 18 to 20 fit`."""
    sizes = fitting(size, kernel)
    runs: list[list[int]] = []
    for n in sizes:
        if runs and n == runs[-1][1] + 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    said = [
        text
        for a, b in runs
        for text in ([f"{a} to {b}"] if b > a + 1 else [str(n) for n in range(a, b + 1)])
    ]
    return (" and ".join([", ".join(said[:-1]), said[-1]]) if said[1:] else said[0]) + " fit"


def fitting(size: int, kernel: int) -> list[int]:
    """The output sizes that some stride and some padding up to k − 1 give, ascending."""
    found = {1, size}
    for room in range(max(size - kernel, 0), size):
        stride = 1
        while stride <= room:
            found.add(room // stride + 1)
            stride = room // (room // stride) + 1  # the next one that gives another size
    return sorted(found)


def shape_of(given: AnyShape, what: str = "the input") -> Shape:
    """Channels, height and width from a text such as 100x20x20, or three whole numbers.

    Raises ShapeError for anything else.

    >>> shape_of("100x20x20")
    (100, 20, 20)
    """
    lengths = _lengths(given)
    if len(lengths) != 3 or not all(lengths):
        raise ShapeError(
            f"{what} is given as {given!r}: three whole numbers from 1 up are expected, channels × "
            "height × width, as in 100x20x20"
        )
    if max(lengths) > LARGEST or prod(lengths) > MOST:
        raise ShapeError(
            f"{what} is given as {given!r}: no length may be above {LARGEST:,}, nor one image have "
            f"more than {MOST:,} elements"
        )
    return lengths[0], lengths[1], lengths[2]


def _lengths(given: AnyShape) -> list[int]:
    """The lengths; 0 for what is none."""
    if isinstance(given, str):
        parts = re.split("[x×X,]", given)
        return [int(p) if re.fullmatch(r"\s*[0-9]{1,18}\s*", p) else 0 for p in parts]
    whole = (is_whole(n) and n > 0 for n in given)
    return [int(n) if good else 0 for n, good in zip(given, whole, strict=True)]


def shape_text(shape: tuple[int, ...]) -> str:
    """For people: 100×20×20."""
    return "×".join(map(str, shape))


def _single(a: int, b: int) -> str:
    return str(a) if a == b else f"{a}×{b}"


def _pair(a: int, b: int, sign: str) -> str:
    return f"{a}{sign}{b}"
