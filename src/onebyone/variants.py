"""The ways to build one layer, as one plain table: what each is called, says, comes from, and builds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from onebyone import blocks
from onebyone.chains import Block
from onebyone.errors import ShapeError
from onebyone.windows import Shape

DIRECT, BEFORE = "direct", "bottleneck_before"


@dataclass(frozen=True)
class Asked:
    """What one variant is to be built for."""

    input: Shape
    output: Shape
    kernel: int
    width: int
    groups: int
    bias: bool


@dataclass(frozen=True)
class Kind:
    """One row of the table: `build` may raise ShapeError; `wide` ones come once for each width."""

    title: str
    says: str
    paper: str
    build: Callable[[Asked], Block]
    wide: bool = False


KINDS: dict[str, Kind] = {
    DIRECT: Kind(
        "direct", "one k×k convolution",
        "LeCun et al., Gradient-Based Learning Applied to Document Recognition, 1998",
        lambda a: blocks.Direct(a.input, a.output, a.kernel, bias=a.bias),
    ),
    BEFORE: Kind(
        "1×1 before", "a 1×1 convolution to w channels, then k×k: the bottleneck of GoogLeNet",
        "Szegedy et al., Going Deeper with Convolutions, 2014",
        lambda a: blocks.BottleneckBefore(a.input, a.output, a.kernel, width=a.width, bias=a.bias),
        wide=True,
    ),
    "bottleneck_after": Kind(
        "1×1 after", "a k×k convolution to w channels, then 1×1",
        "Zhang et al., Accelerating Very Deep Convolutional Networks, 2016",
        lambda a: blocks.BottleneckAfter(a.input, a.output, a.kernel, width=a.width, bias=a.bias),
        wide=True,
    ),
    "bottleneck_both": Kind(
        "1×1 both sides", "1×1 to w channels, k×k, 1×1: the bottleneck of ResNet, without the shortcut",
        "He et al., Deep Residual Learning for Image Recognition, 2015",
        lambda a: blocks.BottleneckBoth(a.input, a.output, a.kernel, width=a.width, bias=a.bias),
        wide=True,
    ),
    "inception": Kind(
        "Inception", "1×1, 3×3, 5×5 and max-pool side by side, with 1×1 in each; its kernels are fixed",
        "Szegedy et al., Going Deeper with Convolutions, 2014",
        lambda a: blocks.InceptionBranch(a.input, a.output, bias=a.bias),
    ),
    "fire": Kind(
        "fire", "1×1 to w channels, then 1×1 and k×k side by side: SqueezeNet",
        "Iandola et al., SqueezeNet, 2016",
        lambda a: blocks.Fire(a.input, a.output, a.kernel, width=a.width, bias=a.bias),
        wide=True,
    ),
    "depthwise_separable": Kind(
        "depthwise separable", "a k×k kernel on each channel alone, then 1×1: MobileNet",
        "Howard et al., MobileNets, 2017",
        lambda a: blocks.DepthwiseSeparable(a.input, a.output, a.kernel, bias=a.bias),
    ),
    "inverted_residual": Kind(
        "inverted residual",
        "1×1 to 6·C channels, k×k on each alone, 1×1: MobileNetV2, without the shortcut",
        "Sandler et al., MobileNetV2: Inverted Residuals and Linear Bottlenecks, 2018",
        lambda a: blocks.InvertedResidual(a.input, a.output, a.kernel, bias=a.bias),
    ),
    "grouped": Kind(
        "grouped", "one k×k convolution in g groups that do not see one another: AlexNet, ResNeXt",
        "Xie et al., Aggregated Residual Transformations for Deep Neural Networks, 2017",
        lambda a: blocks.Grouped(a.input, a.output, a.kernel, groups=a.groups, bias=a.bias),
    ),
    "cp": Kind(
        "CP", "1×1 to w channels, k×1 and 1×k on each alone, 1×1: the CP decomposition",
        "Lebedev et al., Speeding-up CNNs Using Fine-tuned CP-Decomposition, 2015",
        lambda a: blocks.CPLike(a.input, a.output, a.kernel, width=a.width, bias=a.bias),
        wide=True,
    ),
    "network_in_network": Kind(
        "network in network", "one k×k convolution, then two 1×1: more depth, not fewer MACs",
        "Lin et al., Network In Network, 2014",
        lambda a: blocks.NetworkInNetwork(a.input, a.output, a.kernel, bias=a.bias),
    ),
    "max_pool": Kind(
        "max-pool", "the largest of k×k in each channel, for contrast: nothing is learned",
        "Ranzato et al., Unsupervised Learning of Invariant Feature Hierarchies, 2007",
        lambda a: blocks.MaxPool(a.input, (a.input[0], *a.output[1:]), a.kernel),
    ),
}  # fmt: skip


def check_name(name: str) -> str:
    """A variant's name, hyphens allowed for underscores; ShapeError with the names that there are."""
    plain = name.strip().lower().replace("-", "_")
    if plain not in KINDS:
        raise ShapeError(f"no block is called {name!r}: there are {', '.join(KINDS)}")
    return plain
