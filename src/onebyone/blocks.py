"""Blocks that take C×H×W to C′×H′×W′ with a k×k kernel, each an `nn.Sequential` of plain layers.

    >>> block = BottleneckBefore("100x20x20", "40x20x20", 5, width=20)
    >>> sum(p.numel() for p in block.parameters())
    22000

In the formulas C and C′ are the channels of input and output, P = H·W and P′ = H′·W′ their pixels,
and w the width, that is the channels at the narrow place. Parameters are given without biases, and
behind them the biases that `bias=True` adds. Stride and padding follow from the sizes, see
`onebyone.windows.Window.between`; the 1×1 convolutions in front of the k×k one run on the input's grid.

Biases are left out by default, as are activations: what stands here are the linear parts, so that
blocks are compared as convolutions. `relu=True` puts an activation between the convolutions where the
paper has one. BatchNorm is left out; it folds into the convolutions. A block that cannot be built
raises ShapeError, which says why.
"""

from __future__ import annotations

from torch import nn

from onebyone.chains import POINT, Block, Layers, Parallel, Residual, joined, positive
from onebyone.errors import ShapeError
from onebyone.windows import AnyShape


class Direct(Block):
    """One k×k convolution, what all others are compared with.

    Parameters k²·C·C′ (+ C′). MACs k²·C·C′·P′. LeCun et al., Gradient-Based Learning Applied to Document
    Recognition, 1998.
    """

    def __init__(
        self, input: AnyShape, output: AnyShape, kernel: int = 3, *, bias: bool = False
    ) -> None:
        c_in, c_out = self._begin(input, output)
        self._chain(self._window(kernel).conv(c_in, c_out, bias=bias))


class BottleneckBefore(Block):
    """A 1×1 convolution C→w in front of the k×k one w→C′.

    Parameters w·(C + k²·C′) (+ w + C′). MACs w·(C·P + k²·C′·P′). Szegedy et al., Going Deeper with
    Convolutions, 2014, section 4.
    """

    def __init__(
        self, input: AnyShape, output: AnyShape, kernel: int = 3, *, width: int,
        bias: bool = False, relu: bool = False,
    ) -> None:  # fmt: skip
        c_in, c_out = self._begin(input, output)
        width = positive(width, "the width")
        self._chain(
            POINT.conv(c_in, width, bias=bias),
            self._window(kernel).conv(width, c_out, bias=bias),
            between=nn.ReLU if relu else None,
        )


class BottleneckAfter(Block):
    """The k×k convolution C→w, then a 1×1 one w→C′; linear in the paper, so there is no `relu`.

    Parameters w·(k²·C + C′) (+ w + C′). MACs w·(k²·C + C′)·P′. Zhang et al., Accelerating Very Deep
    Convolutional Networks for Classification and Detection, 2016.
    """

    def __init__(
        self, input: AnyShape, output: AnyShape, kernel: int = 3, *, width: int, bias: bool = False
    ) -> None:
        c_in, c_out = self._begin(input, output)
        width = positive(width, "the width")
        self._chain(
            self._window(kernel).conv(c_in, width, bias=bias),
            POINT.conv(width, c_out, bias=bias),
        )


class BottleneckBoth(Residual):
    """The bottleneck of ResNet: 1×1 C→w, k×k w→w with the stride, 1×1 w→C′.

    Parameters w·(C + k²·w + C′) (+ 2w + C′). MACs w·(C·P + (k²·w + C′)·P′); the shortcut adds none. It
    is off by default. He et al., Deep Residual Learning for Image Recognition, 2015, section 4.1 (the
    paper has the stride in the first 1×1 convolution, today's networks have it here).
    """

    def __init__(
        self, input: AnyShape, output: AnyShape, kernel: int = 3, *, width: int,
        shortcut: bool = False, bias: bool = False, relu: bool = False,
    ) -> None:  # fmt: skip
        c_in, c_out = self._begin(input, output)
        width = positive(width, "the width")
        self._shorten(shortcut)
        self._chain(
            POINT.conv(c_in, width, bias=bias),
            self._window(kernel).conv(width, width, bias=bias),
            POINT.conv(width, c_out, bias=bias),
            between=nn.ReLU if relu else None,
        )


class InceptionBranch(Block):
    """The Inception module: 1×1; 1×1→3×3; 1×1→5×5; 3×3 max-pool→1×1; concatenated.

    Its kernels are fixed. The four branches make c₁ = ⌊C′/4⌋, c₃ = what is left, c₅ = cₚ = ⌊C′/8⌋
    channels, at least one each; 1×1 convolutions to r₃ = ⌊3·c₃/4⌋ and r₅ = ⌊c₅/2⌋ stand before 3×3 and
    5×5. These are the proportions of module 3a.
    Parameters C·(c₁ + r₃ + r₅ + cₚ) + 9·r₃·c₃ + 25·r₅·c₅ (+ C′ + r₃ + r₅).
    MACs C·(r₃ + r₅)·P + (C·(c₁ + cₚ) + 9·r₃·c₃ + 25·r₅·c₅)·P′. Szegedy et al., Going Deeper with
    Convolutions, 2014, figure 2b and table 1. `relu` stands between the convolutions of a branch.
    """

    def __init__(
        self, input: AnyShape, output: AnyShape, *, bias: bool = False, relu: bool = False
    ) -> None:
        c_in, c_out = self._begin(input, output)
        if c_out < 4:
            raise ShapeError(f"four branches cannot make {c_out} channels: four is the least")
        one, five = max(1, c_out // 4), max(1, c_out // 8)
        three = c_out - one - 2 * five

        def reduced(width: int, kernel: int, out: int) -> nn.Module:
            between: Layers = [nn.ReLU()] if relu else []
            last = self._window(kernel).conv(width, out, bias=bias)
            return joined(POINT.conv(c_in, width, bias=bias) + between + last)

        self.append(
            Parallel(
                joined(self._window(1).conv(c_in, one, bias=bias)),
                reduced(max(1, 3 * three // 4), 3, three),
                reduced(max(1, five // 2), 5, five),
                joined(self._window(3).max_pool() + POINT.conv(c_in, five, bias=bias)),
            )
        )


class Fire(Block):
    """The fire module: 1×1 C→w, then 1×1 w→⌊C′/2⌋ beside k×k w→⌈C′/2⌉, concatenated.

    Parameters w·(C + ⌊C′/2⌋ + k²·⌈C′/2⌉) (+ w + C′). MACs w·(C·P + (⌊C′/2⌋ + k²·⌈C′/2⌉)·P′). Iandola et
    al., SqueezeNet, 2016, section 3.2 (k = 3, w = C′/8).
    """

    def __init__(
        self, input: AnyShape, output: AnyShape, kernel: int = 3, *, width: int,
        bias: bool = False, relu: bool = False,
    ) -> None:  # fmt: skip
        c_in, c_out = self._begin(input, output)
        width = positive(width, "the width")
        if c_out < 2:
            raise ShapeError("two branches cannot make one channel: two is the least")
        one, many = c_out // 2, c_out - c_out // 2
        expand = Parallel(
            joined(self._window(1).conv(width, one, bias=bias)),
            joined(self._window(kernel).conv(width, many, bias=bias)),
        )
        self._chain(POINT.conv(c_in, width, bias=bias), [expand], between=nn.ReLU if relu else None)


class DepthwiseSeparable(Block):
    """A depthwise k×k convolution, one kernel a channel, then a 1×1 one C→C′.

    Parameters C·(k² + C′) (+ C + C′). MACs C·(k² + C′)·P′. Howard et al., MobileNets, 2017, section 3.1.
    """

    def __init__(
        self, input: AnyShape, output: AnyShape, kernel: int = 3, *,
        bias: bool = False, relu: bool = False,
    ) -> None:  # fmt: skip
        c_in, c_out = self._begin(input, output)
        self._chain(
            self._window(kernel).conv(c_in, c_in, groups=c_in, bias=bias),
            POINT.conv(c_in, c_out, bias=bias),
            between=nn.ReLU if relu else None,
        )


class InvertedResidual(Residual):
    """1×1 C→t·C, depthwise k×k, 1×1 t·C→C′ without an activation behind it; t is the `expansion`.

    Parameters t·C·(C + k² + C′) (+ 2·t·C + C′). MACs t·C·(C·P + (k² + C′)·P′); the shortcut adds none. It
    is off by default; MobileNetV2 has it wherever the shapes are equal. `relu` means ReLU6. Sandler et
    al., MobileNetV2, 2018, table 1 (t = 6).
    """

    def __init__(
        self, input: AnyShape, output: AnyShape, kernel: int = 3, *, expansion: int = 6,
        shortcut: bool = False, bias: bool = False, relu: bool = False,
    ) -> None:  # fmt: skip
        c_in, c_out = self._begin(input, output)
        inside = positive(expansion, "the expansion") * c_in
        self._shorten(shortcut)
        self._chain(
            POINT.conv(c_in, inside, bias=bias),
            self._window(kernel).conv(inside, inside, groups=inside, bias=bias),
            POINT.conv(inside, c_out, bias=bias),
            between=nn.ReLU6 if relu else None,
        )


class Grouped(Block):
    """One k×k convolution in g groups, which do not see one another's channels.

    Parameters k²·C·C′/g (+ C′). MACs k²·C·C′·P′/g. Krizhevsky et al., ImageNet Classification with Deep
    Convolutional Neural Networks, 2012; Xie et al., Aggregated Residual Transformations, 2017.
    """

    def __init__(
        self, input: AnyShape, output: AnyShape, kernel: int = 3, *, groups: int,
        bias: bool = False,
    ) -> None:  # fmt: skip
        c_in, c_out = self._begin(input, output)
        groups = positive(groups, "the number of groups")
        shared = [g for g in range(1, min(c_in, c_out) + 1) if c_in % g == 0 and c_out % g == 0]
        if groups not in shared:
            few = ", ".join(map(str, shared[:12])) + (" and more" if shared[12:] else "")
            raise ShapeError(
                f"{c_in} and {c_out} channels cannot both be split into {groups} groups: {few} can"
            )
        self._chain(self._window(kernel).conv(c_in, c_out, groups=groups, bias=bias))


class CPLike(Block):
    """1×1 C→w, depthwise k×1, depthwise 1×k, 1×1 w→C′: a CP decomposition of rank w.

    Parameters w·(C + 2k + C′) (+ 3w + C′). MACs w·(C·P + k·H′·W + (k + C′)·P′): the k×1 step has the
    output's height already, and the input's width. Lebedev et al., Speeding-up Convolutional Neural
    Networks Using Fine-tuned CP-Decomposition, 2015, section 3.2; linear there, so there is no `relu`.
    """

    def __init__(
        self, input: AnyShape, output: AnyShape, kernel: int = 3, *, width: int, bias: bool = False
    ) -> None:
        c_in, c_out = self._begin(input, output)
        width = positive(width, "the width")
        down, across = self._window(kernel).split()
        self._chain(
            POINT.conv(c_in, width, bias=bias),
            down.conv(width, width, groups=width, bias=bias),
            across.conv(width, width, groups=width, bias=bias),
            POINT.conv(width, c_out, bias=bias),
        )


class NetworkInNetwork(Block):
    """The k×k convolution C→C′, then n 1×1 ones C′→C′: a small network at every pixel.

    Parameters k²·C·C′ + n·C′² (+ (1 + n)·C′). MACs (k²·C·C′ + n·C′²)·P′. Lin et al., Network In Network,
    2014, section 3.2 (n = 2). It costs more than the convolution alone: depth, not thrift.
    """

    def __init__(
        self, input: AnyShape, output: AnyShape, kernel: int = 3, *, layers: int = 2,
        bias: bool = False, relu: bool = False,
    ) -> None:  # fmt: skip
        c_in, c_out = self._begin(input, output)
        number = positive(layers, "the number of layers")
        stacked = [POINT.conv(c_out, c_out, bias=bias) for _ in range(number)]
        self._chain(
            self._window(kernel).conv(c_in, c_out, bias=bias), *stacked,
            between=nn.ReLU if relu else None,
        )  # fmt: skip


class MaxPool(Block):
    """k×k max-pooling, for contrast: it changes height and width, and cannot change the channels.

    No parameters, no MACs. Padding is never the largest. LeCun et al. 1998 have pooling by means; Ranzato
    et al., Unsupervised Learning of Invariant Feature Hierarchies, 2007, by maxima.
    """

    def __init__(self, input: AnyShape, output: AnyShape, kernel: int = 3) -> None:
        c_in, c_out = self._begin(input, output)
        if c_in != c_out:
            raise ShapeError(
                f"a max-pool keeps the channels of its input: it cannot make {c_out} of {c_in}"
            )
        self._chain(self._window(kernel).max_pool())
