"""Loaded: a model with what is known about it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from onebyone.errors import ModelError
from onebyone.preprocessing import Preprocess

KINDS = (
    "torchvision:NAME, timm:NAME, package.module:factory, FILE.pt2, FILE.onnx, a folder that "
    "onebyone wrote, or demo"
)


@dataclass(frozen=True)
class Loaded:
    """A model in eval mode and one example input (1, C, H, W); unpacks as `model, example`.

    `preprocess` and `classes` are None where they are not known. `source` is JSON-ready and enough
    to load the model again. `fixed_batch` is the only batch size that the model takes, None if it
    takes any. `notes` are for people. `more` are further inputs that its forward takes after the first.
    """

    model: nn.Module
    example: Tensor
    preprocess: Preprocess | None
    classes: tuple[str, ...] | None
    source: dict[str, Any]
    fixed_batch: int | None = None
    notes: tuple[str, ...] = ()
    more: tuple[Any, ...] = ()

    @property
    def inputs(self) -> tuple[Any, ...]:
        """Everything that one call of the model takes."""
        return (self.example, *self.more)

    def __iter__(self) -> Iterator[Any]:
        yield self.model
        yield self.example


def example_of(size: tuple[int, ...], batch: int = 1) -> Tensor:
    """A normal random input (batch, C, H, W) for a size C×H×W, the same one every time."""
    if not size or any(not isinstance(n, int) or n < 1 for n in size):
        raise ModelError(
            f"the input size {size} is not C×H×W: give whole lengths above 0, such as 3x224x224"
        )
    return torch.randn((batch, *size), generator=torch.Generator().manual_seed(0))
