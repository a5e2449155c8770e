"""Loaded: a model with what is known about it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_iter, tree_map_only

from onebyone.errors import ModelError
from onebyone.preprocessing import Preprocess
from onebyone.running import suited

KINDS = (
    "torchvision:NAME, timm:NAME, package.module:factory, FILE.pt2, FILE.onnx, a folder that "
    "onebyone wrote, or demo"
)


@dataclass(frozen=True)
class Loaded:
    """A model in eval mode and what one call of it takes; unpacks as `model, example`.

    `inputs` are an image (1, C, H, W), or whatever else its forward takes, at least one tensor in it.
    `preprocess` and `classes` are None where they are not known. `source` is JSON-ready and enough
    to load the model again. `fixed_batch` is the only batch size that the model takes, None if it
    takes any. `notes` are for people.
    """

    model: nn.Module
    inputs: tuple[Any, ...]
    preprocess: Preprocess | None
    classes: tuple[str, ...] | None
    source: dict[str, Any]
    fixed_batch: int | None = None
    notes: tuple[str, ...] = ()

    @property
    def example(self) -> Tensor:
        """The first tensor in the inputs."""
        return next(leaf for leaf in tree_iter(self.inputs) if isinstance(leaf, Tensor))

    @property
    def input_size(self) -> tuple[int, ...] | None:
        """C×H×W, as `load` takes it; None for several inputs, which have their own."""
        return None if self.several else tuple(self.example.shape[1:])

    @property
    def several(self) -> bool:
        """Whether more is taken than one tensor: several inputs, or a list or dict of them."""
        return len(self.inputs) != 1 or not isinstance(self.inputs[0], Tensor)

    @property
    def of_tensors(self) -> bool:
        """Whether all that is taken are tensors, alone or in lists and dicts."""
        return all(isinstance(leaf, Tensor) for leaf in tree_iter(self.inputs))

    @property
    def sample(self) -> Tensor | tuple[Any, ...]:
        """A copy of the one input, or of the tuple of several, in the network's floating dtype."""
        return self.call if self.several else self.call[0]

    @property
    def call(self) -> tuple[Any, ...]:
        """A copy of what one call takes, in the network's floating dtype."""
        return tree_map_only(
            Tensor,
            lambda x: suited(self.model, x) if x.is_floating_point() else x.clone(),
            self.inputs,
        )

    def __iter__(self) -> Iterator[Any]:
        yield self.model
        yield self.example


def inputs_of(example: object) -> tuple[Any, ...] | None:
    """What a call takes, where the example is a tuple of it or the one thing; None without a tensor."""
    inputs = example if isinstance(example, tuple) else (example,)
    return inputs if any(isinstance(leaf, Tensor) for leaf in tree_iter(inputs)) else None


def example_of(size: tuple[int, ...], batch: int = 1) -> Tensor:
    """A normal random input (batch, C, H, W) for a size C×H×W, the same one every time."""
    if not size or any(not isinstance(n, int) or n < 1 for n in size):
        raise ModelError(
            f"the input size {size} is not C×H×W: give whole lengths above 0, such as 3x224x224"
        )
    return torch.randn((batch, *size), generator=torch.Generator().manual_seed(0))
