"""Two small networks of inverted residual blocks, as those made for phones are, for 1×28×28 images.

`examples/train_edge.py` trains them on Fashion-MNIST; their weights are not kept in the repository.
"""

from __future__ import annotations

from torch import Tensor, nn

# width, stride and expansion of each block
BLOCKS = ((40, 1, 6), (40, 1, 6), (64, 2, 6), (64, 1, 6), (96, 1, 6))
STEM, HEAD, CLASSES = 24, 256, 10


class Excitation(nn.Module):
    """Squeeze-and-excitation: a gate for each channel, from the means of all (Hu et al. 2018)."""

    def __init__(self, channels: int, middle: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.reduce = nn.Conv2d(channels, middle, 1)
        self.act = nn.SiLU()
        self.expand = nn.Conv2d(middle, channels, 1)
        self.gate = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.expand(self.act(self.reduce(self.pool(x)))))


class Inverted(nn.Module):
    """1×1 up, depthwise 3×3, 1×1 down, beside a shortcut where the shapes are equal."""

    def __init__(self, c_in: int, c_out: int, stride: int, expansion: int, excite: bool) -> None:
        super().__init__()
        hidden = c_in * expansion
        act = nn.SiLU if excite else nn.ReLU6
        self.body = nn.Sequential(
            nn.Conv2d(c_in, hidden, 1, bias=False), nn.BatchNorm2d(hidden), act(),
            nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden), act(),
            *([Excitation(hidden, c_in // 4)] if excite else []),
            nn.Conv2d(hidden, c_out, 1, bias=False), nn.BatchNorm2d(c_out),
        )  # fmt: skip
        self.shortcut = stride == 1 and c_in == c_out

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.shortcut else self.body(x)


def _network(excite: bool) -> nn.Sequential:
    act = nn.SiLU if excite else nn.ReLU6
    stem = nn.Sequential(nn.Conv2d(1, STEM, 3, 2, 1, bias=False), nn.BatchNorm2d(STEM), act())
    blocks, channels = nn.Sequential(), STEM
    for width, stride, expansion in BLOCKS:
        blocks.append(Inverted(channels, width, stride, expansion, excite))
        channels = width
    head = nn.Sequential(
        nn.Conv2d(channels, HEAD, 1, bias=False), nn.BatchNorm2d(HEAD), act(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(HEAD, CLASSES),
    )  # fmt: skip
    model = nn.Sequential()
    for name, part in (("stem", stem), ("blocks", blocks), ("head", head)):
        model.add_module(name, part)
    return model


def mobilenet() -> nn.Sequential:
    """Five inverted residual blocks with ReLU6, after Sandler et al., MobileNetV2, 2018."""
    return _network(excite=False)


def efficientnet() -> nn.Sequential:
    """The same with SiLU and squeeze-and-excitation, after Tan & Le, EfficientNet, 2019."""
    return _network(excite=True)


NETWORKS = {"mobilenet": mobilenet, "efficientnet": efficientnet}
