"""Blocks: published numbers, formulas equal to what is counted, exact shapes, refusals with a reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from onebyone import blocks
from onebyone.blocks import (
    BottleneckAfter,
    BottleneckBefore,
    BottleneckBoth,
    CPLike,
    DepthwiseSeparable,
    Direct,
    Fire,
    Grouped,
    InceptionBranch,
    InvertedResidual,
    MaxPool,
    NetworkInNetwork,
)
from onebyone.chains import Block
from onebyone.errors import ShapeError
from onebyone.measurement.counting import count
from onebyone.windows import fitting

# The formulas of the docstrings: c, d channels of input and output; p, q their pixels; q1 = H′·W.
Formula = Callable[..., int]


def _inception(c: int, d: int, p: int, q: int) -> tuple[int, int, int]:
    c1, c5 = max(1, d // 4), max(1, d // 8)
    c3 = d - c1 - 2 * c5
    r3, r5 = max(1, 3 * c3 // 4), max(1, c5 // 2)
    params = c * (c1 + r3 + r5 + c5) + 9 * r3 * c3 + 25 * r5 * c5
    macs = c * (r3 + r5) * p + (c * (c1 + c5) + 9 * r3 * c3 + 25 * r5 * c5) * q
    return params, d + r3 + r5, macs


def expected(
    kind: type[Block], c: int, d: int, k: int, h: int, w: int, h2: int, w2: int, n: int
) -> tuple[int, int, int]:
    """(parameters, biases, MACs); n is the width, the expansion, the groups or the layers."""
    p, q, a, b = h * w, h2 * w2, d // 2, d - d // 2
    table: dict[type[Block], tuple[int, int, int]] = {
        Direct: (k * k * c * d, d, k * k * c * d * q),
        BottleneckBefore: (n * (c + k * k * d), n + d, n * (c * p + k * k * d * q)),
        BottleneckAfter: (n * (k * k * c + d), n + d, n * (k * k * c + d) * q),
        BottleneckBoth: (
            n * (c + k * k * n + d), 2 * n + d, n * (c * p + (k * k * n + d) * q)
        ),
        Fire: (n * (c + a + k * k * b), n + d, n * (c * p + (a + k * k * b) * q)),
        DepthwiseSeparable: (c * (k * k + d), c + d, c * (k * k + d) * q),
        InvertedResidual: (
            n * c * (c + k * k + d), 2 * n * c + d, n * c * (c * p + (k * k + d) * q)
        ),
        Grouped: (k * k * c * d // n, d, k * k * c * d * q // n),
        CPLike: (n * (c + 2 * k + d), 3 * n + d, n * (c * p + k * h2 * w + (k + d) * q)),
        NetworkInNetwork: (
            k * k * c * d + n * d * d, (1 + n) * d, (k * k * c * d + n * d * d) * q
        ),
        MaxPool: (0, 0, 0),
        InceptionBranch: _inception(c, d, p, q),
    }  # fmt: skip
    return table[kind]


NUMBER = {
    BottleneckBefore: "width", BottleneckAfter: "width", BottleneckBoth: "width", Fire: "width",
    CPLike: "width", InvertedResidual: "expansion", Grouped: "groups", NetworkInNetwork: "layers",
}  # fmt: skip
KINDS = [
    Direct, BottleneckBefore, BottleneckAfter, BottleneckBoth, InceptionBranch, Fire,
    DepthwiseSeparable, InvertedResidual, Grouped, CPLike, NetworkInNetwork, MaxPool,
]  # fmt: skip


def built(kind: Any, start: Any, end: Any, kernel: int, number: int, **more: Any) -> Block:
    named = {NUMBER[kind]: number} if kind in NUMBER else {}
    kernels = () if kind is InceptionBranch else (kernel,)
    return kind(start, end, *kernels, **named, **more)


def counted(block: Block) -> tuple[int, int]:
    found = count(block, torch.zeros(1, *block.input_shape))
    return found.params, found.macs


@pytest.mark.parametrize(
    ("block", "params", "macs"),
    [
        (Direct("100x20x20", "40x20x20", 5), 100_000, 40_000_000),
        (Direct("100x20x20", "40x20x20", 5, bias=True), 100_040, 40_000_000),
        (BottleneckBefore("100x20x20", "40x20x20", 5, width=20), 22_000, 8_800_000),
        (BottleneckBefore("100x20x20", "40x20x20", 5, width=20, bias=True), 22_060, 8_800_000),
        (Direct("100x20x20", "40x20x20", 1), 4_000, 1_600_000),
        # GoogLeNet, table 1, module 3a: 159 K and 128 M there.
        (InceptionBranch("192x28x28", "256x28x28"), 163_328, 128_049_152),
        (InceptionBranch("192x28x28", "256x28x28", bias=True), 163_696, 128_049_152),
        # SqueezeNet, table 1, fire2: 11,920.
        (Fire("96x55x55", "128x55x55", width=16, bias=True), 11_920, 35_622_400),
        # MobileNets, table 3: 462 M and 2.36 M against 52.3 M and 0.27 M.
        (Direct("512x14x14", "512x14x14"), 2_359_296, 462_422_016),
        (DepthwiseSeparable("512x14x14", "512x14x14"), 266_752, 52_283_392),
        # ResNet-50, a block of conv2_x without its BatchNorms.
        (BottleneckBoth("256x56x56", "256x56x56", width=64, shortcut=True), 69_632, 218_365_952),
        # MobileNetV2, 56×56×24 → 28×28×32 with t = 6.
        (InvertedResidual("24x56x56", "32x28x28"), 9_360, 15_466_752),
        # AlexNet, the second convolution in two groups.
        (Grouped("96x27x27", "256x27x27", 5, groups=2, bias=True), 307_456, 223_948_800),
        # 25·96·192 + 2·192², and three times 192 biases.
        (NetworkInNetwork("96x16x16", "192x16x16", 5, bias=True), 535_104, 136_839_168),
        (MaxPool("64x112x112", "64x56x56"), 0, 0),
    ],
)  # fmt: skip
def test_published_numbers(block: Block, params: int, macs: int) -> None:
    assert counted(block) == (params, macs)


@pytest.mark.parametrize("kind", KINDS)
@given(
    channels=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    kernel=st.integers(1, 5), number=st.integers(1, 4), data=st.data(),
)  # fmt: skip
def test_formulas_are_counted_and_shapes_exact(
    kind: type[Block], channels: tuple[int, int], size: tuple[int, int], kernel: int, number: int,
    data: st.DataObject,
) -> None:  # fmt: skip
    (c, d), (h, w) = channels, size
    if kind is Grouped:
        c, d = c * number, d * number
    if kind is MaxPool:
        d = c
    d += {InceptionBranch: 3, Fire: 1}.get(kind, 0)
    # What 1×1, 3×3 and 5×5 kernels can all make is what the branches need.
    kernels = {InceptionBranch: (1, 3, 5), Fire: (1, kernel)}.get(kind, (kernel,))
    h2, w2 = (
        data.draw(st.sampled_from(sorted(set.intersection(*(set(fitting(n, k)) for k in kernels)))))
        for n in (h, w)
    )
    start, end = (c, h, w), (d, h2, w2)
    params, biases, macs = expected(kind, c, d, kernel, h, w, h2, w2, number)
    block = built(kind, start, end, kernel, number)
    assert counted(block) == (params, macs)
    assert (block.input_shape, block.output_shape) == (start, end)
    assert block(torch.randn(2, *start)).shape == (2, *end)
    if kind is not MaxPool:
        biased = built(kind, start, end, kernel, number, bias=True)
        assert counted(biased) == (params + biases, macs)


def test_formulas_stand_in_the_docstrings() -> None:
    for kind in KINDS:
        text = str(kind.__doc__)
        assert "arameters" in text
        assert "MACs" in text
        assert any(f"20{n:02}" in text or "1998" in text for n in range(30)), kind


@pytest.mark.parametrize("size", [(8, 8), (4, 3)])
def test_linear_blocks_are_one_kernel(size: tuple[int, int]) -> None:
    """1×1 before, and CP, are k×k convolutions whose kernels have low rank."""
    torch.manual_seed(0)
    direct = Direct((5, 8, 9), (4, *size), 5).double()
    x = torch.randn(2, 5, 8, 9, dtype=torch.float64)
    (whole,) = direct.parameters()

    before = BottleneckBefore((5, 8, 9), (4, *size), 5, width=3).double()
    one, many = before.parameters()
    whole.data = torch.einsum("owij,wc->ocij", many, one[:, :, 0, 0])
    torch.testing.assert_close(before(x), direct(x))

    cp = CPLike((5, 8, 9), (4, *size), 5, width=3).double()
    first, down, across, last = cp.parameters()
    whole.data = torch.einsum(
        "ow,wi,wj,wc->ocij", last[:, :, 0, 0], down[:, 0, :, 0], across[:, 0, 0], first[:, :, 0, 0]
    )
    torch.testing.assert_close(cp(x), direct(x))


def test_branches_are_concatenated_in_order() -> None:
    torch.manual_seed(0)
    block = Fire((3, 6, 6), (7, 6, 6), width=2)
    x = torch.randn(1, 3, 6, 6)
    squeezed = block[0](x)
    one, many = block[1]  # type: ignore[misc]
    y = block(x)
    torch.testing.assert_close(y[:, :3], one(squeezed))
    torch.testing.assert_close(y[:, 3:], many(squeezed))


@pytest.mark.parametrize("kind", [BottleneckBoth, InvertedResidual])
def test_a_shortcut_adds_the_input(kind: Any) -> None:
    torch.manual_seed(0)
    start = (4, 6, 6)
    plain, short = (built(kind, start, start, 3, 2, shortcut=s) for s in (False, True))
    short.load_state_dict(plain.state_dict())
    x = torch.randn(2, *start)
    torch.testing.assert_close(short(x), plain(x) + x)
    with pytest.raises(ShapeError, match="equal shapes, not 4×6×6 and 8×6×6"):
        built(kind, start, (8, 6, 6), 3, 2, shortcut=True)


@pytest.mark.parametrize(
    ("kind", "activation", "number"),
    [
        (BottleneckBefore, nn.ReLU, 1), (BottleneckBoth, nn.ReLU, 2), (InceptionBranch, nn.ReLU, 2),
        (Fire, nn.ReLU, 1), (DepthwiseSeparable, nn.ReLU, 1), (InvertedResidual, nn.ReLU6, 2),
        (NetworkInNetwork, nn.ReLU, 2),
    ],
)  # fmt: skip
def test_activations_stand_between_convolutions(
    kind: Any, activation: type[nn.Module], number: int
) -> None:
    start, end = (4, 6, 6), (8, 6, 6)
    assert not any(
        isinstance(m, nn.ReLU | nn.ReLU6) for m in built(kind, start, end, 3, 2).modules()
    )
    block = built(kind, start, end, 3, 2, relu=True)
    assert sum(type(m) is activation for m in block.modules()) == number
    assert not isinstance([m for m in block.modules() if not list(m.children())][-1], activation)


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda: InceptionBranch("8x6x6", "3x6x6"), "four branches cannot make 3 channels"),
        (lambda: InceptionBranch("8x20x20", "8x16x16"), "a 1×1 kernel cannot make height 16 of 20"),
        (lambda: Fire("8x6x6", "1x6x6", width=2), "two branches cannot make one channel"),
        (
            lambda: Fire("8x20x20", "8x16x16", 5, width=2),
            "a 1×1 kernel cannot make height 16 of 20",
        ),
        (lambda: Grouped("9x6x6", "6x6x6", groups=2), "split into 2 groups: 1, 3 can"),
        (
            lambda: MaxPool("9x6x6", "6x6x6"),
            "keeps the channels of its input: it cannot make 6 of 9",
        ),
        (lambda: Direct("9x6x6", "6x7x6"), "cannot make height 7 of 6"),
        (lambda: BottleneckBefore("9x6x6", "6x6x6", width=0), "the width is given as 0"),
        (lambda: CPLike("9x6x6", "6x6x6", width=2.0), "the width is given as 2.0"),  # type: ignore
        (lambda: InvertedResidual("9x6x6", "6x6x6", expansion=-1), "the expansion is given as -1"),
        (
            lambda: NetworkInNetwork("9x6x6", "6x6x6", layers=0),
            "the number of layers is given as 0",
        ),
    ],
)
def test_refusals(build: Callable[[], Block], reason: str) -> None:
    with pytest.raises(ShapeError, match=reason):
        build()


def test_the_pooled_maximum_is_of_the_window() -> None:
    """Even kernels, negative inputs: the padding must not win."""
    x = -torch.rand(1, 2, 5, 5) - 1
    y = MaxPool((2, 5, 5), (2, 5, 5), 2)(x)
    for i in range(5):
        for j in range(5):
            torch.testing.assert_close(y[..., i, j], x[..., i : i + 2, j : j + 2].amax((2, 3)))


def test_every_block_is_public_and_told_here() -> None:
    own = {
        v for v in vars(blocks).values()
        if isinstance(v, type) and issubclass(v, Block) and v.__module__ == blocks.__name__
    }  # fmt: skip
    assert own == set(KINDS)
