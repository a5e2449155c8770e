"""The volume of the first screens: small exact numbers, the same here and in the page's own code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from onebyone.explaining.packing import packed

# (C, H, W, K) to choose from; the first is the classic picture. For each the page has what PyTorch
# gives; for other sizes it computes alone.
SIZES = ((6, 5, 5, 4), (1, 5, 5, 2), (3, 8, 8, 2), (12, 10, 10, 6), (32, 14, 14, 8))


@dataclass(frozen=True)
class Toy:
    """A volume, K filters 1×1×C with biases, and for each a 3×3 and a depthwise 3×3 kernel.

    All are multiples of 1/8 below 1 in size, so sums of thousands of products are exact in float32.
    """

    volume: Float[Tensor, "c h w"]
    weight: Float[Tensor, "k c"]
    bias: Float[Tensor, " k"]
    kernel: Float[Tensor, "k c 3 3"]
    depthwise: Float[Tensor, "c 3 3"]

    def pointwise(self) -> Float[Tensor, "k h w"]:
        """The 1×1 convolution, before its ReLU."""
        return F.conv2d(self.volume[None], self.weight[:, :, None, None], self.bias)[0]

    def full(self) -> Float[Tensor, "k h w"]:
        """The 3×3 convolution, padded with zeros."""
        return F.conv2d(self.volume[None], self.kernel, padding=1)[0]

    def each(self) -> Float[Tensor, "c h w"]:
        """The depthwise 3×3 convolution, padded with zeros."""
        channels = len(self.volume)
        return F.conv2d(self.volume[None], self.depthwise[:, None], padding=1, groups=channels)[0]

    def pooled(self) -> Float[Tensor, "c h2 w2"]:
        """2×2 max-pooling; an odd last row or column is left out."""
        return F.max_pool2d(self.volume[None], 2)[0]


def toy(c: int, h: int, w: int, k: int) -> Toy:
    """The volume and filters of these sizes; a formula, no random numbers (`toy.js` has the same)."""
    out, channel = torch.arange(k)[:, None], torch.arange(c)[None]
    weight = ((out * 2 + channel * 8 + out * channel + 1) % 9 - 4) / 4
    i, j = torch.arange(3)[:, None], torch.arange(3)[None]
    taps = i * 7 + j * 11 + i * j
    kernel = ((out * 5 + channel * 3)[..., None, None] + taps) % 9 - 4
    depthwise = (channel[0] * 3)[:, None, None] + taps
    return Toy(
        torch.stack([_map(index, h, w) for index in range(c)]).float() / 4,
        weight.float(),
        ((torch.arange(k) * 3) % 5 - 2).float() / 4,
        kernel.float() / 8,
        (depthwise % 9 - 4).float() / 8,
    )


def _map(c: int, h: int, w: int) -> Tensor:
    """One channel, whole numbers from −4 to 4: slopes, a hill, a board, stripes, noise, and again."""
    y, x = torch.arange(h)[:, None].expand(h, w), torch.arange(w)[None].expand(h, w)
    shift = c // 6
    kinds = (
        lambda: 8 * ((x + shift) % w) // max(w - 1, 1) - 4,
        lambda: 8 * ((y + shift) % h) // max(h - 1, 1) - 4,
        lambda: 4 - 4 * ((2 * x - (w - 1)).abs() + (2 * y - (h - 1)).abs()) // max(w, h),
        lambda: torch.where((x + y + shift) % 2 == 1, 3, -2),
        lambda: torch.where((x - y + shift + 4 * h) % 4 == 0, 4, -1),
        lambda: (x * 7 + y * 13 + c * 5 + x * y * 3) % 9 - 4,
    )
    return kinds[c % 6]().clamp(-4, 4)


def toys_json() -> list[dict[str, Any]]:
    """The sizes that can be chosen, each with what PyTorch gives."""
    found = []
    for c, h, w, k in SIZES:
        made = toy(c, h, w, k)
        results = {
            "pointwise": made.pointwise(), "full": made.full(), "each": made.each(),
            "pooled": made.pooled(),
        }  # fmt: skip
        packs = {name: packed(value) for name, value in results.items()}
        found.append({"c": c, "h": h, "w": w, "k": k, **packs})
    return found
