"""Networks as people bring them: several heads, detectors, generators, sound, volumes, odd tensors."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def block(c_in: int, c_out: int, stride: int = 1) -> nn.Sequential:
    """A normalised 3×3 convolution with an activation in place."""
    return nn.Sequential(
        nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False),
        nn.BatchNorm2d(c_out),
        nn.ReLU(inplace=True),
    )


def classifier() -> nn.Sequential:
    """The sound case."""
    return nn.Sequential(
        block(3, 16), block(16, 32), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)
    )


class Heads(nn.Module):
    """A detection head: maps of classes and of boxes, both as they come."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(block(3, 16), block(16, 32, 2))
        self.classes = nn.Sequential(block(32, 32), nn.Conv2d(32, 12, 3, padding=1))
        self.boxes = nn.Sequential(block(32, 32), nn.Conv2d(32, 8, 3, padding=1))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.body(x)
        return {"classes": self.classes(features), "boxes": self.boxes(features)}


class Detector(Heads):
    """Returns, image by image, what it is sure of: perhaps nothing; boxes from a detached branch."""

    def __init__(self, sure: float) -> None:
        super().__init__()
        self.sure = sure

    def forward(self, x: Tensor) -> list[dict[str, Tensor]]:  # type: ignore[override]
        features = self.body(x)
        scores = self.classes(features).flatten(2).sigmoid().amax(1)
        boxes = self.boxes(features.detach()).flatten(2)[:, :4].detach()
        return [
            {"boxes": b[:, s > self.sure].T, "scores": s[s > self.sure]}
            for b, s in zip(boxes, scores, strict=True)
        ]


class UNet(nn.Module):
    """Shortcuts joined by concatenation, transposed convolutions on the way up."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.inner = block(3, 16), block(16, 32)
        self.up = nn.ConvTranspose2d(32, 16, 2, 2)
        self.out = nn.Sequential(block(32, 16), nn.Conv2d(16, 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        first = self.down(x)
        return self.out(torch.cat([first, self.up(self.inner(F.max_pool2d(first, 2)))], 1))


class Generator(nn.Module):
    """A GAN's generator: a picture from a vector."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Linear(16, 32 * 16)
        self.up = nn.ConvTranspose2d(32, 16, 4, 2, 1)
        self.body = nn.Sequential(nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1))
        self.last = nn.Conv2d(16, 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        return self.last(
            self.body(self.up(self.start(z.flatten(1)).view(-1, 32, 4, 4))).relu()
        ).tanh()


def pictures() -> nn.Sequential:
    """The generator of a DCGAN: transposed convolutions alone, from a vector."""
    layers: list[nn.Module] = []
    for c_in, c_out, stride, padding in ((24, 48, 1, 0), (48, 32, 2, 1), (32, 16, 2, 1)):
        layers += [
            nn.ConvTranspose2d(c_in, c_out, 4, stride, padding, bias=False), nn.BatchNorm2d(c_out),
            nn.ReLU(True),
        ]  # fmt: skip
    return nn.Sequential(*layers, nn.ConvTranspose2d(16, 3, 4, 2, 1, bias=False), nn.Tanh())


def speech() -> nn.Sequential:
    """A decoder of sound with weight normalization: wide transposed kernels, large strides."""
    normed = nn.utils.parametrizations.weight_norm
    return nn.Sequential(
        normed(nn.Conv1d(10, 48, 7, padding=3)), nn.LeakyReLU(0.1),
        normed(nn.ConvTranspose1d(48, 32, 16, 8, 4)), nn.LeakyReLU(0.1),
        normed(nn.ConvTranspose1d(32, 16, 5, 2, 2, output_padding=1)), nn.LeakyReLU(0.1),
        normed(nn.Conv1d(16, 1, 7, padding=3)), nn.Tanh(),
    )  # fmt: skip


def sound() -> nn.Sequential:
    """A 1D network with strides and dilation."""
    return nn.Sequential(
        nn.Conv1d(1, 16, 9, 4, 4), nn.BatchNorm1d(16), nn.ReLU(), nn.Conv1d(16, 32, 9, 4, 4), nn.ReLU(),
        nn.Conv1d(32, 32, 3, padding=2, dilation=2), nn.AdaptiveAvgPool1d(1), nn.Flatten(),
        nn.Linear(32, 5),
    )  # fmt: skip


class Volume(nn.Module):
    """A 3D network with instance normalisation, one level down and up again."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(
            nn.Conv3d(1, 8, 3, padding=1), nn.InstanceNorm3d(8), nn.LeakyReLU()
        )
        self.inner = nn.Sequential(nn.Conv3d(8, 16, 3, 2, 1), nn.InstanceNorm3d(16), nn.LeakyReLU())
        self.up, self.out = nn.ConvTranspose3d(16, 8, 2, 2), nn.Conv3d(16, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.down(x)
        return self.out(torch.cat([first, self.up(self.inner(first))], 1))


class Between(nn.Module):
    """Something without layers of its own between two convolutions, then a classifier."""

    def __init__(self, c_between: int = 16) -> None:
        super().__init__()
        self.first, self.second = block(3, 16), block(c_between, 32)
        self.last = nn.Linear(32, 5)

    def between(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.second(self.between(self.first(x))).mean((2, 3)))


class Blurred(Between):
    """BlurPool: a fixed kernel in a buffer, padded by reflection, on each channel alone."""

    def __init__(self) -> None:
        super().__init__()
        row = torch.tensor([1.0, 2.0, 1.0]) / 4
        self.register_buffer("kernel", torch.outer(row, row)[None, None])

    def between(self, x: Tensor) -> Tensor:
        kernel = self.get_buffer("kernel").expand(x.shape[1], 1, 3, 3)
        return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), kernel, stride=2, groups=x.shape[1])


class Conditional(Between):
    """A convolution whose kernel each image mixes for itself from four experts."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.Parameter(torch.randn(4, 16, 16, 3, 3) / 12)
        self.routing = nn.Linear(16, 4)

    def between(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        mixed = torch.einsum(
            "nk,koihw->noihw", self.routing(x.mean((2, 3))).sigmoid(), self.experts
        )
        y = F.conv2d(x.reshape(1, n * c, h, w), mixed.reshape(n * c, c, 3, 3), padding=1, groups=n)
        return y.reshape(n, c, h, w).relu()


class Rearranged(Between):
    """Space to depth by reshaping and permuting, as einops does it."""

    def __init__(self) -> None:
        super().__init__(64)

    def between(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        apart = x.reshape(n, c, h // 2, 2, w // 2, 2).permute(0, 1, 3, 5, 2, 4)
        return apart.reshape(n, c * 4, h // 2, w // 2)


class Fourier(Between):
    """A filter of complex weights in the frequency domain."""

    def __init__(self) -> None:
        super().__init__()
        self.filter = nn.Parameter(torch.randn(16, 12, 7, dtype=torch.complex64) / 10 + 1)

    def between(self, x: Tensor) -> Tensor:
        return torch.fft.irfft2(torch.fft.rfft2(x) * self.filter, s=x.shape[-2:])


class Permuted(Between):
    """Channels put in the order that a parameter of whole numbers says."""

    def __init__(self) -> None:
        super().__init__()
        self.order = nn.Parameter(torch.arange(16).flip(0), requires_grad=False)

    def between(self, x: Tensor) -> Tensor:
        return x[:, self.order]


class Sparse(Between):
    """Mixes channels by a sparse matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.links = nn.Parameter(torch.eye(16).to_sparse())

    def between(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        mixed = torch.sparse.mm(self.links, x.transpose(0, 1).reshape(c, -1))
        return mixed.reshape(c, n, h, w).transpose(0, 1)


class ComplexLayer(Between):
    """A convolution with complex weights."""

    def __init__(self) -> None:
        super().__init__()
        self.complex = nn.Conv2d(16, 16, 3, padding=1, dtype=torch.complex64)

    def between(self, x: Tensor) -> Tensor:
        return self.complex(x.to(torch.complex64)).abs()
