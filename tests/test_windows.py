"""Stride and padding from two sizes: they give exactly what was asked, or the message says what fits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from onebyone.errors import ShapeError
from onebyone.windows import Axis, Window, axis_between, fitting, fitting_text, shape_of

SIZES, KERNELS = st.integers(1, 30), st.integers(1, 9)


def outputs(size: int, kernel: int) -> set[int]:
    """Every size that some padding below the kernel and some stride give, tried one by one."""
    return {
        (size + total - kernel) // stride + 1
        for total in range(kernel)
        for stride in range(1, size + 1)
        if size + total >= kernel
    }


@pytest.mark.parametrize(
    ("size", "output", "kernel", "axis"),
    [
        (20, 20, 5, Axis(5, 1, 2, 2)),
        (20, 20, 4, Axis(4, 1, 1, 2)),
        (224, 112, 7, Axis(7, 2, 3, 3)),
        (112, 56, 3, Axis(3, 2, 1, 1)),
        (56, 28, 1, Axis(1, 2, 0, 0)),
        (55, 27, 3, Axis(3, 2, 0, 0)),
        (224, 56, 4, Axis(4, 4, 0, 0)),
        (32, 16, 4, Axis(4, 2, 1, 1)),
        (20, 10, 2, Axis(2, 2, 0, 0)),
        (20, 16, 5, Axis(5, 1, 0, 0)),
        (20, 19, 3, Axis(3, 1, 0, 1)),
        (7, 1, 7, Axis(7, 1, 0, 0)),
        (1, 1, 3, Axis(3, 1, 1, 1)),
        (20, 15, 3, None),
        (20, 21, 3, None),
        (20, 9, 1, None),
    ],
)
def test_known_windows(size: int, output: int, kernel: int, axis: Axis | None) -> None:
    assert axis_between(size, output, kernel) == axis


@given(SIZES, KERNELS)
def test_every_size_that_can_be_made_is_made_and_no_other(size: int, kernel: int) -> None:
    can = outputs(size, kernel)
    assert set(fitting(size, kernel)) == can
    for output in range(1, size + 3):
        axis = axis_between(size, output, kernel)
        assert (axis is not None) == (output in can)
        if axis is not None:
            assert axis.output(size) == output
            assert axis.kernel == kernel
            assert axis.before + axis.after < kernel
            assert axis.after - axis.before in (0, 1)


@given(SIZES, KERNELS, st.data())
def test_pixels_are_those_under_the_kernel(size: int, kernel: int, data: st.DataObject) -> None:
    output = data.draw(st.sampled_from(fitting(size, kernel)))
    axis = axis_between(size, output, kernel)
    assert axis is not None
    read = {i * axis.stride - axis.before + j for i in range(output) for j in range(kernel)}
    assert axis.pixels(size, output) == len(read & set(range(size)))


@given(SIZES, SIZES, KERNELS, st.data())
def test_the_layers_make_the_size(h: int, w: int, kernel: int, data: st.DataObject) -> None:
    wanted = (data.draw(st.sampled_from(fitting(h, kernel))), data.draw(
        st.sampled_from(fitting(w, kernel))
    ))  # fmt: skip
    window = Window.between((h, w), wanted, kernel)
    x = torch.randn(1, 2, h, w)
    assert nn.Sequential(*window.conv(2, 3, bias=False))(x).shape == (1, 3, *wanted)
    pooled = nn.Sequential(*window.max_pool())(x)
    assert pooled.shape == (1, 2, *wanted)
    # What lies outside is never the largest: every output is one of the inputs.
    assert bool(torch.isin(pooled, x).all())
    down, across = window.split()
    both = nn.Sequential(*down.conv(2, 2, bias=False), *across.conv(2, 2, bias=False))
    assert both(x).shape == (1, 2, *wanted)


def test_an_impossible_pair_says_what_fits() -> None:
    message = (
        r"^a 3×3 kernel cannot make width 15 of 20, whatever stride and padding \(at most 2 in all\): "
        r"1 to 7, 9, 10 and 18 to 20 fit$"
    )
    with pytest.raises(ShapeError, match=message):
        Window.between((20, 20), (20, 15), 3)
    with pytest.raises(ShapeError, match="cannot make height 30 of 20"):
        Window.between((20, 20), (30, 30), 3)
    assert fitting_text(5, 5) == "1 to 5 fit"
    assert fitting_text(1, 3) == "1 fit"


@pytest.mark.parametrize("kernel", [0, -3, 1024, 2.5, "5"])
def test_a_kernel_that_is_none(kernel: int) -> None:
    with pytest.raises(ShapeError, match=r"the kernel is given as .*: the length of its side"):
        Window.between((20, 20), (20, 20), kernel)


@pytest.mark.parametrize(
    "given_", ["100x20x20", "100×20×20", " 100 X 20,20 ", (100, 20, 20), [100, 20, 20]]
)
def test_shapes_in_every_spelling(given_: object) -> None:
    assert shape_of(given_) == (100, 20, 20)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "given_",
    [
        "", "100", "100x20", "1x100x20x20", "100x0x20", "-3x20x20", "3x20x", "axbxc", "1e3x2x2", "²x2x2",
        (100, 20), (100, 20, 0), (100.0, 20, 20), (True, 20, 20),
    ],
)  # fmt: skip
def test_what_is_no_shape(given_: object) -> None:
    with pytest.raises(ShapeError, match=r"the output is given as .*channels × height × width"):
        shape_of(given_, "the output")  # type: ignore[arg-type]


@pytest.mark.parametrize("given_", ["2000000x2x2", "100000000000x20x20", (2**20, 2**10, 2**10)])
def test_shapes_beyond_reason(given_: object) -> None:
    with pytest.raises(ShapeError, match="no length may be above 1,048,576"):
        shape_of(given_)  # type: ignore[arg-type]


def test_windows_are_written_out() -> None:
    assert Window.between((20, 20), (20, 20), 5).text() == "5×5, stride 1, padding 2"
    assert Window.between((20, 20), (10, 20), 3).text() == "3×3, stride 2×1, padding 1"
    assert Window.between((20, 20), (18, 18), 3).text() == "3×3, stride 1, no padding"
    assert Window.between((9, 9), (9, 9), 2).text() == (
        "2×2, stride 1, padding 0 above, 1 below, 0 left, 1 right"
    )


def test_whole_numbers_of_numpy() -> None:
    three: Any = np.int64(3)
    found = Window.between((20, 20), (10, 10), three)
    assert found == Window.between((20, 20), (10, 10), 3)
    assert type(found.kernel[0]) is int
