"""Cases whose true cost is known, first part: convolutions, and layers that are awkward to count.

Each truth is worked out by hand, never by a counter, and is written as the products that give it:
positions · channels · taps. A convolution multiplies at every output position, a transposed one at
every input position; products with padding, or with what cropping drops, are counted.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize
from torch.utils.checkpoint import checkpoint

Built = tuple[nn.Module, tuple[Tensor, ...]]


@dataclass(frozen=True)
class Case:
    """A model with its inputs, its true cost, and why that is the truth.

    `params` is None where the model holds its weights in no `nn.Parameter`; `training_macs` is given
    where a pass in training mode computes more; `needs` is a package that may be missing.
    """

    name: str
    build: Callable[[], Built]
    macs: int
    params: int | None
    why: str
    training_macs: int | None = None
    needs: str | None = None


class Applied(nn.Module):
    """A function of parameters of the given shapes and of the inputs."""

    def __init__(self, function: Callable[..., Tensor], *shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.function = function
        self.weights = nn.ParameterList([torch.randn(shape) for shape in shapes])

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(*inputs, *self.weights)


class ByHand(nn.Module):
    """Children that a function uses as it likes."""

    def __init__(self, function: Callable[..., Tensor], **children: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, child in children.items():
            self.add_module(name, child)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


class Doubled(nn.Module):
    """A parametrization: the weight is twice the parameter."""

    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def build(module: Callable[[], nn.Module], *shapes: tuple[int, ...]) -> Callable[[], Built]:
    """A way to build the module, and random inputs of these shapes."""
    return lambda: (module(), tuple(torch.randn(shape) for shape in shapes))


def _old_weight_norm() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.utils.weight_norm(nn.Conv2d(6, 8, 3))


def _doubled() -> nn.Module:
    layer = nn.Conv2d(6, 8, 3)
    parametrize.register_parametrization(layer, "weight", Doubled())
    return layer


def _deformable() -> nn.Module:
    import operators

    operators.allow_deformable()
    from torchvision.ops import DeformConv2d

    return ByHand(
        lambda self, x: self.conv(x, self.offset(x)),
        offset=nn.Conv2d(16, 18, 3, padding=1),
        conv=DeformConv2d(16, 32, 3, padding=1),
    )


def _tied() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1))
    model[1].weight = model[0].weight
    return model


def _checkpointed() -> nn.Module:
    block = nn.Sequential(nn.Conv2d(6, 8, 3), nn.ReLU())
    return ByHand(lambda m, x: checkpoint(m.block, x, use_reentrant=False), block=block)


CONVOLUTIONS: tuple[Case, ...] = (
    Case(
        "5×5, 100→40 at 20×20",
        build(lambda: nn.Conv2d(100, 40, 5, padding=2, bias=False), (1, 100, 20, 20)),
        40_000_000, 100_000, "400 positions · 100 · 40 · 25 taps",
    ),
    Case(
        "1×1 100→20, then 5×5 20→40",
        build(
            lambda: nn.Sequential(
                nn.Conv2d(100, 20, 1, bias=False), nn.Conv2d(20, 40, 5, padding=2, bias=False)
            ),
            (1, 100, 20, 20),
        ),
        8_800_000, 22_000, "400 · 100 · 20 and 400 · 20 · 40 · 25",
    ),
    Case(
        "with bias", build(lambda: nn.Conv2d(6, 8, 3), (1, 6, 12, 10)),
        80 * 6 * 8 * 9, 6 * 8 * 9 + 8, "10×8 outputs; adding the bias multiplies nothing",
    ),
    Case(
        "batch of 3", build(lambda: nn.Conv2d(6, 8, 3), (3, 6, 12, 10)),
        3 * 80 * 6 * 8 * 9, 440, "three times that of one image",
    ),
    Case(
        "without a batch axis", build(lambda: nn.Conv2d(6, 8, 3), (6, 12, 10)),
        80 * 6 * 8 * 9, 440, "one image is one image",
    ),
    Case(
        "strided", build(lambda: nn.Conv2d(6, 8, 3, stride=(2, 3), padding=1), (1, 6, 12, 10)),
        6 * 4 * 6 * 8 * 9, 440, "6×4 outputs",
    ),
    Case(
        "dilated", build(lambda: nn.Conv2d(6, 8, 3, dilation=(2, 3)), (1, 6, 12, 10)),
        8 * 4 * 6 * 8 * 9, 440, "8×4 outputs; the gaps of the kernel hold no taps",
    ),
    Case(
        "grouped", build(lambda: nn.Conv2d(12, 8, 3, groups=4), (1, 12, 12, 10)),
        80 * 3 * 8 * 9, 3 * 8 * 9 + 8, "each output reads 12 / 4 channels",
    ),
    Case(
        "depthwise", build(lambda: nn.Conv2d(12, 12, 3, groups=12), (1, 12, 12, 10)),
        80 * 12 * 9, 12 * 9 + 12, "each output reads one channel",
    ),
    Case(
        "depthwise, twice as many out",
        build(lambda: nn.Conv2d(12, 24, 3, groups=12), (1, 12, 12, 10)),
        80 * 24 * 9, 24 * 9 + 24, "each output reads one channel",
    ),
    Case(
        "same padding", build(lambda: nn.Conv2d(6, 8, 5, padding="same"), (1, 6, 12, 10)),
        120 * 6 * 8 * 25, 6 * 8 * 25 + 8, "as many outputs as inputs",
    ),
    Case(
        "same padding, even kernel",
        build(lambda: nn.Conv2d(6, 8, (4, 2), padding="same"), (1, 6, 12, 10)),
        120 * 6 * 8 * 8, 6 * 8 * 8 + 8, "as many outputs as inputs",
    ),
    Case(
        "circular padding",
        build(lambda: nn.Conv2d(6, 8, 3, padding=1, padding_mode="circular"), (1, 6, 12, 10)),
        120 * 6 * 8 * 9, 440, "padding copies, the products are those of zero padding",
    ),
    Case(
        "even kernel", build(lambda: nn.Conv2d(6, 8, 4, padding=1), (1, 6, 12, 10)),
        11 * 9 * 6 * 8 * 16, 6 * 8 * 16 + 8, "11×9 outputs",
    ),
    Case(
        "non-square kernels",
        build(lambda: nn.Sequential(nn.Conv2d(6, 8, (1, 5)), nn.Conv2d(8, 6, (3, 1))), (1, 6, 12, 10)),
        12 * 6 * 6 * 8 * 5 + 10 * 6 * 8 * 6 * 3, 6 * 8 * 5 + 8 + 8 * 6 * 3 + 6, "12×6, then 10×6 outputs",
    ),
    Case(
        "1d", build(lambda: nn.Conv1d(6, 8, 3, stride=2, padding=1), (2, 6, 21)),
        2 * 11 * 6 * 8 * 3, 6 * 8 * 3 + 8, "11 outputs",
    ),
    Case(
        "3d", build(lambda: nn.Conv3d(6, 8, (1, 2, 3)), (2, 6, 4, 5, 6)),
        2 * 64 * 6 * 8 * 6, 6 * 8 * 6 + 8, "4×4×4 outputs, 6 taps",
    ),
    Case(
        "1d, time first", build(
            lambda: Applied(lambda x, w, b: torch.conv_tbc(x, w, b), (3, 6, 8), (8,)), (10, 2, 6)
        ),
        2 * 8 * 6 * 8 * 3, 3 * 6 * 8 + 8, "8 outputs",
    ),
    Case(
        "half precision, channels-last",
        lambda: (
            nn.Conv2d(6, 8, 3).bfloat16().to(memory_format=torch.channels_last),
            (torch.randn(1, 6, 12, 10).bfloat16().to(memory_format=torch.channels_last),),
        ),
        80 * 6 * 8 * 9, 440, "neither the type nor the order in memory changes a product",
    ),
    Case(
        "transposed 32→16 k4 s2 p1 on 10×10",
        build(lambda: nn.ConvTranspose2d(32, 16, 4, 2, 1, bias=False), (1, 32, 10, 10)),
        819_200, 32 * 16 * 16, "100 input positions · 32 · 16 · 16 taps",
    ),
    Case(
        "transposed, output padding",
        build(lambda: nn.ConvTranspose2d(32, 16, 3, 2, 1, output_padding=1), (1, 32, 10, 10)),
        100 * 32 * 16 * 9, 32 * 16 * 9 + 16, "output padding adds outputs, no products",
    ),
    Case(
        "transposed, grouped",
        build(lambda: nn.ConvTranspose2d(32, 16, 4, 2, 1, groups=4), (1, 32, 10, 10)),
        100 * 32 * 4 * 16, 32 * 4 * 16 + 16, "each input goes to 16 / 4 channels",
    ),
    Case(
        "transposed, dilated",
        build(lambda: nn.ConvTranspose2d(8, 6, 3, dilation=2), (1, 8, 10, 9)),
        90 * 8 * 6 * 9, 8 * 6 * 9 + 6, "90 input positions; the gaps of the kernel hold no taps",
    ),
    Case(
        "transposed, 1d",
        build(lambda: nn.ConvTranspose1d(8, 6, 5, stride=3), (2, 8, 11)),
        2 * 11 * 8 * 6 * 5, 8 * 6 * 5 + 6, "11 input positions",
    ),
    Case(
        "transposed, 3d",
        build(lambda: nn.ConvTranspose3d(8, 6, (2, 3, 1), stride=2), (2, 8, 3, 4, 5)),
        2 * 60 * 8 * 6 * 6, 8 * 6 * 6 + 6, "60 input positions, 6 taps",
    ),
    Case(
        "transposed, as a function",
        build(lambda: Applied(lambda x, w: F.conv_transpose2d(x, w, stride=2), (8, 6, 2, 2)), (1, 8, 5, 7)),
        35 * 8 * 6 * 4, 8 * 6 * 4, "35 input positions",
    ),
    Case(
        "deformable 3×3 16→32 and its offsets", build(_deformable, (1, 16, 20, 20)),
        2_880_000, 16 * 18 * 9 + 18 + 16 * 32 * 9 + 32,
        "400 · 16 · 18 · 9 for the offsets, 400 · 16 · 32 · 9; interpolation is not counted",
        needs="torchvision",
    ),
    Case(
        "64-channel 1×1 run three times on 10×10",
        build(
            lambda: ByHand(lambda m, x: m.c(m.c(m.c(x))), c=nn.Conv2d(64, 64, 1, bias=False)),
            (1, 64, 10, 10),
        ),
        1_228_800, 4_096, "3 · 100 · 64 · 64; the weights are there once",
    ),
    Case(
        "two layers, one weight", build(_tied, (1, 8, 6, 7)),
        2 * 42 * 8 * 8 * 9, 8 * 8 * 9 + 16, "both multiply; the weights are there once",
    ),
    Case(
        "a child called through .forward",
        build(lambda: ByHand(lambda m, x: m.conv.forward(x), conv=nn.Conv2d(6, 8, 3)), (1, 6, 12, 10)),
        80 * 6 * 8 * 9, 440, "the products are those of a call",
    ),
    Case(
        "F.conv2d with a child's weight",
        build(lambda: ByHand(lambda m, x: F.conv2d(x, m.c.weight), c=nn.Conv2d(6, 8, 3)), (1, 6, 12, 10)),
        80 * 6 * 8 * 9, 440, "the products are those of a call",
    ),
    Case(
        "weight_norm", build(lambda: parametrizations.weight_norm(nn.Conv2d(6, 8, 3)), (1, 6, 12, 10)),
        80 * 6 * 8 * 9, 440 + 8, "the norm is no matrix product; a length for each of 8 outputs",
    ),
    Case(
        "weight_norm by hooks", build(_old_weight_norm, (1, 6, 12, 10)),
        80 * 6 * 8 * 9, 440 + 8, "the norm is no matrix product; a length for each of 8 outputs",
    ),
    Case(
        "spectral_norm", build(lambda: parametrizations.spectral_norm(nn.Conv2d(6, 8, 3)), (1, 6, 12, 10)),
        80 * 6 * 8 * 9 + 8 * 54 + 8, 440,
        "σ = uᵀ(Wv): W is 8×54; training multiplies once more by W and by Wᵀ",
        training_macs=80 * 6 * 8 * 9 + 3 * 8 * 54 + 8,
    ),
    Case(
        "a parametrized weight", build(_doubled, (1, 6, 12, 10)),
        80 * 6 * 8 * 9, 440, "scaling the weight is no matrix product",
    ),
    Case(
        "a checkpointed block", build(_checkpointed, (1, 6, 12, 10)),
        80 * 6 * 8 * 9, 440, "the forward pass computes it once",
    ),
    Case(
        "normalization and pooling",
        build(
            lambda: nn.Sequential(nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), nn.GroupNorm(2, 6)),
            (2, 6, 8, 8),
        ),
        0, 24, "no convolution, no matrix product",
    ),
)  # fmt: skip
