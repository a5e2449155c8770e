"""Two small networks for 1×28×28 images whose layers differ from the built-in ones'.

`examples/train_edge.py` trains them on Fashion-MNIST; their weights are not kept in the repository.
"""

from __future__ import annotations

from torch import Tensor, nn

CLASSES = 10


def _normed(
    c_in: int, c_out: int, kernel: int, stride: int = 1, groups: int = 1
) -> list[nn.Module]:
    conv = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(c_out)]


def _head(channels: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, CLASSES)]


def large_kernels() -> nn.Sequential:
    """Convolutions of 5×5 and 7×7, two of them strided: 26 M MACs."""
    shapes = ((1, 24, 5, 1), (24, 40, 5, 2), (40, 40, 5, 1), (40, 64, 7, 2), (64, 64, 5, 1))
    layers: list[nn.Module] = []
    for shape in shapes:
        layers += [*_normed(*shape), nn.ReLU()]
    return nn.Sequential(*layers, *_head(64))


class Block(nn.Module):
    """1×1, grouped 3×3, 1×1 of one width beside a shortcut."""

    def __init__(self, c_in: int, width: int, stride: int, group_width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *_normed(c_in, width, 1), nn.ReLU(),
            *_normed(width, width, 3, stride, width // group_width), nn.ReLU(),
            *_normed(width, width, 1),
        )  # fmt: skip
        same = stride == 1 and c_in == width
        self.shortcut = nn.Identity() if same else nn.Sequential(*_normed(c_in, width, 1, stride))
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.shortcut(x) + self.body(x))


def regnet() -> nn.Sequential:
    """Four blocks with groups of 32 channels, after Radosavovic et al., RegNet, 2020."""
    stem = [*_normed(1, 32, 3, 2), nn.ReLU()]
    shapes = ((32, 64, 1), (64, 64, 1), (64, 128, 2), (128, 128, 1))
    return nn.Sequential(*stem, *[Block(*shape, group_width=32) for shape in shapes], *_head(128))


NETWORKS = {"large_kernels": large_kernels, "regnet": regnet}
