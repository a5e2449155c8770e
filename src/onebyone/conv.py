"""One convolution's geometry, and the only home of its cost formulas."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor, nn

PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]
Grid = Literal["inside", "between", "outside"]
CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
GEOMETRY = (
    "in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups",
    "padding_mode", "output_padding", "transposed", "in_features", "out_features",
)  # fmt: skip
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


def kernel_of(layer: nn.Module) -> Float[Tensor, "c_out taps c_in_of_group"]:
    """A convolution's or a linear layer's weights, detached, tap by tap; a linear layer has one tap."""
    weight: Tensor = layer.weight.detach()  # type: ignore[assignment]
    if (
        isinstance(layer, nn.modules.conv._ConvNd) and layer.transposed
    ):  # (c_in, c_out of a group, …)
        groups = layer.groups
        parts = weight.reshape(groups, len(weight) // groups, weight.shape[1], -1)
        return parts.permute(0, 2, 3, 1).flatten(0, 1)
    return weight.reshape(*weight.shape[:2], -1).transpose(1, 2)


def as_weight(
    layer: nn.Module, kernel: Float[Tensor, "c_out taps c_in_of_group"]
) -> Float[Tensor, ...]:
    """A kernel in the layout of the layer's own weight: the way back from `kernel_of`."""
    shape: tuple[int, ...] = layer.weight.shape  # type: ignore[assignment]
    if isinstance(layer, nn.modules.conv._ConvNd) and layer.transposed:
        parts = kernel.reshape(layer.groups, shape[1], *kernel.shape[1:])
        return parts.permute(0, 3, 1, 2).reshape(shape)
    return kernel.transpose(1, 2).reshape(shape)


def same_padding(kernel: tuple[int, ...], dilation: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """(before, after) for each axis, such that outputs are as large as inputs at a stride of 1."""
    total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    return tuple((t // 2, t - t // 2) for t in total)


@dataclass(frozen=True)
class Places:
    """Positions of one image, summed over a layer's calls: those that enter it and leave it.

    `between` counts the grid of a layer that was left along the first axis of its kernel, and is still
    to be left along the others; None where it is as large as that of the output.
    """

    inside: int
    outside: int
    between: int | None = None

    def of(self, grid: Grid) -> int:
        """The positions of a grid."""
        if grid == "between" and self.between is not None:
            return self.between
        return self.inside if grid == "inside" else self.outside


@dataclass(frozen=True)
class ConvSpec:
    """The geometry of a convolution over d spatial axes; a linear layer is one with d = 0.

    `kernel`, `stride`, `padding` and `dilation` have d entries each; `padding` holds a
    (before, after) pair per axis, since "same" padding of even kernels is lopsided. A transposed
    convolution spreads each input pixel over the outputs, `stride` apart; its padding is what the
    output lacks around, `output_padding` what it has more at the end.
    """

    c_in: int
    c_out: int
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[tuple[int, int], ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    padding_mode: PaddingMode = "zeros"
    bias: bool = True
    transposed: bool = False
    output_padding: tuple[int, ...] = ()

    @staticmethod
    def of(layer: nn.Module) -> ConvSpec:
        """The geometry of a convolution of PyTorch, a transposed one, or an `nn.Linear`."""
        if isinstance(layer, nn.Linear):
            return ConvSpec(layer.in_features, layer.out_features, bias=layer.bias is not None)
        if not isinstance(layer, nn.modules.conv._ConvNd):
            raise TypeError(
                f"a convolution or linear layer is expected, not {type(layer).__name__}"
            )
        dilation = tuple(layer.dilation)
        kernel = tuple(layer.kernel_size)
        if layer.padding == "valid":
            padding = tuple((0, 0) for _ in kernel)
        elif layer.padding == "same":
            padding = same_padding(kernel, dilation)
        else:
            padding = tuple((int(p), int(p)) for p in layer.padding)
        return ConvSpec(
            layer.in_channels, layer.out_channels, kernel, tuple(layer.stride), padding, dilation,
            layer.groups, layer.padding_mode, layer.bias is not None,  # type: ignore[arg-type]
            layer.transposed, tuple(layer.output_padding) if layer.transposed else (),
        )  # fmt: skip

    @property
    def taps(self) -> int:
        """Kernel positions k₁·k₂·…; 1 for a linear layer."""
        return prod(self.kernel)

    @property
    def pointwise(self) -> bool:
        """Whether each output reads one pixel: a 1×1 kernel, or a linear layer."""
        return self.taps == 1

    @property
    def first_axis(self) -> int:
        """The first axis along which the kernel has several taps; 0 where there is none."""
        return next((axis for axis, k in enumerate(self.kernel) if k > 1), 0)

    @property
    def first_taps(self) -> int:
        """The taps along the first axis that has several; all taps are ordered along it first."""
        return self.kernel[self.first_axis] if self.kernel else 1

    @property
    def depthwise(self) -> bool:
        """Whether each channel is filtered by itself: as many groups as input channels, above 1."""
        return self.groups == self.c_in > 1

    @property
    def params(self) -> int:
        """Weights and biases: c_out · (c_in / groups · taps + bias)."""
        return self.c_out * (self.c_in // self.groups * self.taps + self.bias)

    @property
    def grid(self) -> Grid:
        """Whose positions `macs` counts: each input of a transposed convolution meets every tap."""
        return "inside" if self.transposed else "outside"

    def macs(self, positions: int) -> int:
        """Multiply–accumulates for so many positions of `grid`: positions · c_out · c_in / groups · taps.

        Products with padding are counted, the bias is not.
        """
        return positions * self.c_out * (self.c_in // self.groups) * self.taps

    def macs_on(self, places: Places) -> int:
        """Multiply–accumulates for one image."""
        return self.macs(places.of(self.grid))

    def output_size(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """Spatial output size for a spatial input size; empty for a linear layer."""
        if self.transposed:
            return tuple(
                (n - 1) * s - sum(p) + d * (k - 1) + more + 1
                for n, k, s, p, d, more in zip(
                    size, self.kernel, self.stride, self.padding, self.dilation,
                    self.output_padding, strict=True,
                )
            )  # fmt: skip
        return tuple(
            (n + sum(p) - d * (k - 1) - 1) // s + 1
            for n, k, s, p, d in zip(
                size, self.kernel, self.stride, self.padding, self.dilation, strict=True
            )
        )

    def text(self) -> str:
        """For people: `64→128 3×3 /2`, with groups and dilation where they are not 1."""
        parts = [f"{self.c_in}→{self.c_out}"]
        if self.kernel:
            parts.append("×".join(map(str, self.kernel)))
        if self.transposed:
            parts.append("transposed")
        if any(s != 1 for s in self.stride):
            parts.append("/" + "×".join(map(str, dict.fromkeys(self.stride))))
        if any(d != 1 for d in self.dilation):
            parts.append("dilation " + "×".join(map(str, dict.fromkeys(self.dilation))))
        if self.groups != 1:
            parts.append(f"groups {self.groups}")
        return " ".join(parts)


def bear_geometry(block: nn.Module, layer: nn.Module) -> None:
    """Let what takes a layer's place have its numbers, which the network's own code may read."""
    for name in GEOMETRY:
        if name in vars(layer):
            setattr(block, name, vars(layer)[name])


def layer_for(conv: ConvSpec, *, same: bool = False, **options: Any) -> nn.Module:
    """A layer of PyTorch with this geometry; `options` are device and dtype.

    Padding that is lopsided, or with `same`, is spelled "same".
    """
    options["bias"] = conv.bias
    if not conv.kernel:
        return nn.Linear(conv.c_in, conv.c_out, **options)
    options |= {"stride": conv.stride, "dilation": conv.dilation, "groups": conv.groups}
    padding = tuple(before for before, _ in conv.padding)
    if conv.transposed:
        made, options["output_padding"] = TRANSPOSED[len(conv.kernel)], conv.output_padding
    else:
        made = CONVOLUTIONS[len(conv.kernel)]
        if any(map(any, conv.padding)):
            options["padding_mode"] = conv.padding_mode
            uneven = any(before != after for before, after in conv.padding)
            padding = "same" if same or uneven else padding
    return made(conv.c_in, conv.c_out, conv.kernel, padding=padding, **options)
