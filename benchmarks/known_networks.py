"""Cases whose true cost is known, third part: whole networks, from the tables of their papers.

`worked_out` gives each truth again, from the published architecture; a test compares the two.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from known_costs import Built, Case


def _torchvision(name: str) -> Callable[[], Built]:
    def build() -> Built:
        import operators

        operators.declare()
        import torchvision

        return torchvision.models.get_model(name, weights=None), (torch.randn(1, 3, 224, 224),)

    return build


NETWORKS: tuple[Case, ...] = (
    Case(
        "ResNet-18", _torchvision("resnet18"), 1_814_073_344, 11_689_512,
        "He et al. 2016, table 1; projections where the shape changes",
        needs="torchvision",
    ),
    Case(
        "ResNet-50", _torchvision("resnet50"), 4_089_184_256, 25_557_032,
        "He et al. 2016, table 1, the stride in the 3×3",
        needs="torchvision",
    ),
    Case(
        "VGG-16", _torchvision("vgg16"), 15_470_264_320, 138_357_544,
        "Simonyan & Zisserman 2015, configuration D",
        needs="torchvision",
    ),
    Case(
        "MobileNetV2", _torchvision("mobilenet_v2"), 300_774_272, 3_504_872,
        "Sandler et al. 2018, table 2",
        needs="torchvision",
    ),
    Case(
        "ViT-B/16", _torchvision("vit_b_16"), 17_563_828_224, 86_567_656,
        "Dosovitskiy et al. 2021, table 1: 12 layers, 768 wide, 196 patches and a class token",
        needs="torchvision",
    ),
)  # fmt: skip


def worked_out() -> dict[str, tuple[int, int]]:
    """MACs and parameters at 224 pixels, by the names of `NETWORKS`."""
    return {
        "ResNet-18": resnet((2, 2, 2, 2), bottleneck=False),
        "ResNet-50": resnet((3, 4, 6, 3), bottleneck=True),
        "VGG-16": vgg16(),
        "MobileNetV2": mobilenet_v2(),
        "ViT-B/16": vit_b_16(),
    }


def _conv(side: int, c_in: int, c_out: int, taps: int) -> tuple[int, int]:
    """MACs and parameters of a convolution without bias and of the normalization after it."""
    return side * side * c_in * c_out * taps, c_in * c_out * taps + 2 * c_out


def _total(*parts: tuple[int, int]) -> tuple[int, int]:
    return sum(macs for macs, _ in parts), sum(params for _, params in parts)


def resnet(blocks: tuple[int, ...], bottleneck: bool) -> tuple[int, int]:
    """He et al. 2016, table 1."""
    parts = [_conv(112, 3, 64, 49)]
    c_in, before = 64, 56
    for count, width, side in zip(blocks, (64, 128, 256, 512), (56, 28, 14, 7), strict=True):
        c_out = 4 * width if bottleneck else width
        for _ in range(count):
            if bottleneck:
                parts += [_conv(before, c_in, width, 1), _conv(side, width, width, 9)]
                parts += [_conv(side, width, c_out, 1)]
            else:
                parts += [_conv(side, c_in, width, 9), _conv(side, width, width, 9)]
            if c_in != c_out:
                parts.append(_conv(side, c_in, c_out, 1))
            c_in, before = c_out, side
    return _total(*parts, (c_in * 1000, c_in * 1000 + 1000))


def vgg16() -> tuple[int, int]:
    """Simonyan & Zisserman 2015, table 1, column D; layers have a bias and no normalization."""
    parts, c_in = [], 3
    for count, width, side in zip(
        (2, 2, 3, 3, 3), (64, 128, 256, 512, 512), (224, 112, 56, 28, 14), strict=True
    ):
        for _ in range(count):
            parts.append((side**2 * c_in * width * 9, c_in * width * 9 + width))
            c_in = width
    for rows, columns in ((512 * 49, 4096), (4096, 4096), (4096, 1000)):
        parts.append((rows * columns, rows * columns + columns))
    return _total(*parts)


def mobilenet_v2() -> tuple[int, int]:
    """Sandler et al. 2018, table 2: expansion t, channels c, repeats n, output side s."""
    parts = [_conv(112, 3, 32, 9)]
    c_in, before = 32, 112
    for t, c, n, s in (
        (1, 16, 1, 112), (6, 24, 2, 56), (6, 32, 3, 28), (6, 64, 4, 14),
        (6, 96, 3, 14), (6, 160, 3, 7), (6, 320, 1, 7),
    ):  # fmt: skip
        for _ in range(n):
            if t != 1:
                parts.append(_conv(before, c_in, t * c_in, 1))
            parts += [_conv(s, 1, t * c_in, 9), _conv(s, t * c_in, c, 1)]
            c_in, before = c, s
    return _total(*parts, _conv(7, 320, 1280, 1), (1280 * 1000, 1280 * 1000 + 1000))


def vit_b_16() -> tuple[int, int]:
    """Dosovitskiy et al. 2021, table 1: each layer is attention and a perceptron four times as wide."""
    patches, tokens, width = 14 * 14, 14 * 14 + 1, 768
    layer = (
        tokens * 12 * width**2 + 2 * tokens**2 * width,
        12 * width**2 + (3 + 1 + 4 + 1) * width + 4 * width,
    )
    patch = 3 * 16 * 16 * width
    return _total(
        (patches * patch, patch + width),
        (0, width + tokens * width),  # the class token and the positions
        *[layer] * 12,
        (width * 1000, width * 1000 + 1000 + 2 * width),  # the head and the last normalization
    )
