"""The two small networks that ship trained: one plain, one with shortcuts."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

CLASSES = (
    "t-shirt/top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)


def vgg() -> nn.Sequential:
    """Six 3×3 convolutions in three stages, for 1×28×28 images: 29.1 M MACs, 288,618 parameters.

    A plain `nn.Sequential` of PyTorch layers with random weights; after Simonyan & Zisserman,
    "Very Deep Convolutional Networks for Large-Scale Image Recognition", 2014.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    channels = 1
    for stage, width in enumerate((32, 64, 128), start=1):
        for index in (1, 2):
            layers[f"conv{stage}_{index}"] = nn.Conv2d(channels, width, 3, padding=1)
            layers[f"norm{stage}_{index}"] = nn.BatchNorm2d(width)
            layers[f"relu{stage}_{index}"] = nn.ReLU()
            channels = width
        if stage < 3:
            layers[f"pool{stage}"] = nn.MaxPool2d(2)
    layers["pool3"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["fc"] = nn.Linear(channels, len(CLASSES))
    return nn.Sequential(layers)


class Residual(nn.Module):
    """Two 3×3 convolutions beside a shortcut; a strided block's shortcut is a 1×1 convolution."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != width:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels, width, 1, stride=stride, bias=False), nn.BatchNorm2d(width)
            )
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, width, H / stride, W / stride)."""
        y = self.relu1(self.norm1(self.conv1(x)))
        return self.relu2(self.norm2(self.conv2(y)) + self.shortcut(x))


class ResNet(nn.Module):
    """Six residual blocks in three stages, for 1×28×28 images: 45.3 M MACs, 392,242 parameters.

    After He et al., "Deep Residual Learning for Image Recognition", 2016 (the basic block).
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24), nn.ReLU()
        )
        self.stage1 = nn.Sequential(Residual(24, 24, 1), Residual(24, 24, 1))
        self.stage2 = nn.Sequential(Residual(24, 48, 2), Residual(48, 48, 1))
        self.stage3 = nn.Sequential(Residual(48, 96, 2), Residual(96, 96, 1))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(96, len(CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, 28, 28) → class logits (N, 10)."""
        x = self.stage3(self.stage2(self.stage1(self.stem(x))))
        return self.fc(self.flatten(self.pool(x)))


def resnet() -> ResNet:
    """A `ResNet` with random weights."""
    return ResNet()


NETWORKS = {"vgg": vgg, "resnet": resnet}
