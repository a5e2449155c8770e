"""What blocks are made of: layers in a row, beside one another, and with a shortcut around them."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from onebyone.errors import ShapeError, is_whole
from onebyone.windows import AnyShape, Shape, Window, shape_of, shape_text

Layers = list[nn.Module]
POINT = Window()  # 1×1, stride 1


class Parallel(nn.Sequential):
    """Branches that read the same input; their outputs are concatenated over the channels."""

    def forward(self, input: Float[Tensor, "batch c_in h w"]) -> Float[Tensor, "batch c_out h2 w2"]:
        """All branches' channels, in order."""
        return torch.cat([branch(input) for branch in self], 1)


class Block(nn.Sequential):
    """Layers one after the other, from `input_shape` to `output_shape`, (channels, height, width)."""

    input_shape: Shape
    output_shape: Shape

    def _begin(self, input: AnyShape, output: AnyShape) -> tuple[int, int]:
        """Note the shapes; returns C and C′."""
        super().__init__()
        self.input_shape = shape_of(input, "the input")
        self.output_shape = shape_of(output, "the output")
        return self.input_shape[0], self.output_shape[0]

    def _window(self, kernel: int) -> Window:
        return Window.between(self.input_shape[1:], self.output_shape[1:], kernel)

    def _chain(self, *parts: Layers, between: type[nn.Module] | None = None) -> None:
        """The parts in order, with an activation between each two if there is to be one."""
        for index, part in enumerate(parts):
            if index and between is not None:
                self.append(between())
            self.extend(part)


class Residual(Block):
    """A block that adds its input to its output if `shortcut` is set; that takes equal shapes."""

    shortcut: bool = False

    def _shorten(self, shortcut: bool) -> None:
        if shortcut and self.input_shape != self.output_shape:
            raise ShapeError(
                "a shortcut adds the input to the output, which takes equal shapes, not "
                f"{shape_text(self.input_shape)} and {shape_text(self.output_shape)}"
            )
        self.shortcut = shortcut

    def forward(self, input: Float[Tensor, "batch c_in h w"]) -> Float[Tensor, "batch c_out h2 w2"]:
        """The layers' output, plus the input where there is a shortcut."""
        output = super().forward(input)
        return input + output if self.shortcut else output


def joined(layers: Layers) -> nn.Module:
    """A single layer itself, several as one."""
    return layers[0] if len(layers) == 1 else nn.Sequential(*layers)


def positive(number: int, what: str) -> int:
    """The number, checked: ShapeError where it is none from 1 up."""
    if not is_whole(number) or not 1 <= number <= 2**20:
        raise ShapeError(
            f"{what} is given as {number!r}: a whole number from 1 to {2**20:,} is expected"
        )
    return int(number)
