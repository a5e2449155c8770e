"""What can be inserted behind a module without changing an output, as one plain table."""

from __future__ import annotations

import operator
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from onebyone.conv import CONVOLUTIONS, ConvSpec, bear_geometry

NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
HOST, DEEPER = "layer", "deeper"  # names of the parts of what stands at a place

# Activations that a new block may have, with the attributes that make one of the kind.
ACTIVATIONS: dict[str, tuple[type[nn.Module], tuple[str, ...]]] = {
    "ReLU": (nn.ReLU, ()),
    "ReLU6": (nn.ReLU6, ()),
    "Hardtanh": (nn.Hardtanh, ("min_val", "max_val")),
    "LeakyReLU": (nn.LeakyReLU, ("negative_slope",)),
    "ELU": (nn.ELU, ("alpha",)),
    "CELU": (nn.CELU, ("alpha",)),
    "SELU": (nn.SELU, ()),
    "GELU": (nn.GELU, ("approximate",)),
    "SiLU": (nn.SiLU, ()),
    "Mish": (nn.Mish, ()),
    "Hardswish": (nn.Hardswish, ()),
    "Tanh": (nn.Tanh, ()),
    "Sigmoid": (nn.Sigmoid, ()),
}
IDEMPOTENT = ("ReLU", "ReLU6", "Hardtanh")  # a second one behind the first changes nothing


@dataclass(frozen=True)
class Activation:
    """An activation as data: its class's name, and the options that are not of every one."""

    name: str = "ReLU"
    options: tuple[float | str, ...] = ()

    @staticmethod
    def of(module: nn.Module) -> Activation | None:
        """The activation that a module is; None for one that is in no table of ours."""
        for name, (kind, attributes) in ACTIVATIONS.items():
            if type(module) is kind:
                return Activation(name, tuple(getattr(module, a) for a in attributes))
        return None

    @property
    def idempotent(self) -> bool:
        """Whether applying it twice is applying it once."""
        return self.name in IDEMPOTENT

    def build(self) -> nn.Module:
        """The module; never an in-place one."""
        kind, attributes = ACTIVATIONS[self.name]
        return kind(**dict(zip(attributes, self.options, strict=True)))


@dataclass(frozen=True)
class Insertion:
    """One block behind a module, or why there is none (kind `refuse`).

    `place` is the qualified name of the module in the network before any insertion; `channels` and
    `positions` (pixels of one image) are those of its output, `kernel` the middle convolution's, with
    one entry for each spatial axis. `width` is the hidden channels of a bottleneck, else `channels`.
    `norm` is whether BatchNorm follows the first two convolutions of a bottleneck. `score` is the fall
    of the loss that the probe promises for it, in nats per image, None where none was measured.
    """

    place: str
    kind: str
    channels: int = 0
    width: int = 0
    kernel: tuple[int, ...] = ()
    positions: int = 0
    norm: bool = False
    activation: Activation = Activation()
    score: float | None = None
    reason: str = ""

    @property
    def refused(self) -> bool:
        """Whether nothing is inserted here; `reason` says why."""
        return self.kind == "refuse"

    @property
    def macs(self) -> int:
        """MACs that it adds for one image."""
        return sum(conv.macs(self.positions) for conv in self.convs)

    @property
    def params(self) -> int:
        """Parameters that it adds."""
        if self.kind == "prelu":
            return self.channels
        scales = 4 * self.width if self.norm and self.kind == "bottleneck" else 0
        return scales + sum(conv.params for conv in self.convs)

    @property
    def convs(self) -> tuple[ConvSpec, ...]:
        """Its convolutions, in order."""
        return () if self.refused else INSERTIONS[self.kind].convs(self)

    def build(self, seed: int = 0) -> nn.Module:
        """The module on the CPU in float32, in training mode; random weights come from `seed`."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return INSERTIONS[self.kind].build(self)


@dataclass(frozen=True)
class Kind:
    """One row of the table: what it is, where it comes from, its convolutions, how it is made."""

    title: str
    says: str
    paper: str
    convs: Callable[[Insertion], tuple[ConvSpec, ...]]
    build: Callable[[Insertion], nn.Module]


def _same(c_in: int, c_out: int, kernel: tuple[int, ...], bias: bool) -> ConvSpec:
    ones = (1,) * len(kernel)
    around = tuple((k // 2, k // 2) for k in kernel)
    return ConvSpec(c_in, c_out, kernel, ones, around, ones, bias=bias)


def _layer(conv: ConvSpec) -> nn.Module:
    padding = tuple(before for before, _ in conv.padding)
    return CONVOLUTIONS[len(conv.kernel)](
        conv.c_in, conv.c_out, conv.kernel, padding=padding, bias=conv.bias
    )


def _bottleneck_convs(block: Insertion) -> tuple[ConvSpec, ...]:
    points = (1,) * len(block.kernel)
    return (
        _same(block.channels, block.width, points, bias=not block.norm),
        _same(block.width, block.width, block.kernel, bias=not block.norm),
        _same(block.width, block.channels, points, bias=True),
    )


def _bottleneck(block: Insertion) -> nn.Module:
    """x + body(x); the last convolution starts at zero, so only its own gradient is not zero at first.

    The others have He's normal weights, and gradients from the second step on.
    """
    reduce, conv, expand = map(_layer, block.convs)
    for layer in (reduce, conv):
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")  # type: ignore[arg-type]
    for layer in (reduce, conv, expand):
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    nn.init.zeros_(expand.weight)  # type: ignore[arg-type]
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    for index, (name, layer) in enumerate((("reduce", reduce), ("conv", conv)), start=1):
        parts[name] = layer
        if block.norm:
            parts[f"norm{index}"] = NORMS[len(block.kernel)](block.width)
        parts[f"act{index}"] = block.activation.build()
    parts["expand"] = expand
    return _residual(nn.Sequential(parts))


def _residual(body: nn.Module) -> fx.GraphModule:
    """x + body(x), as a module of PyTorch's own: it needs no class of ours to run, copy or export."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.output(graph.call_function(operator.add, (x, graph.call_module("body", (x,)))))
    return fx.GraphModule({"body": body}, graph, "Residual")


def _pointwise(block: Insertion) -> nn.Module:
    """The identity as a 1×1 convolution, and the activation before it once more."""
    (spec,) = block.convs
    conv = _layer(spec)
    nn.init.dirac_(conv.weight)  # type: ignore[arg-type]
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    return nn.Sequential(OrderedDict(conv=conv, act=block.activation.build()))


INSERTIONS: dict[str, Kind] = {
    "bottleneck": Kind(
        title="residual bottleneck",
        says="1×1 down, k×k, 1×1 up, added to what passes by; the last 1×1 starts at zero",
        paper="He et al., Deep Residual Learning, 2016; zero start after Goyal et al. 2017",
        convs=_bottleneck_convs,
        build=_bottleneck,
    ),
    "pointwise": Kind(
        title="identity 1×1",
        says="a 1×1 convolution that starts as the identity, then the activation once more",
        paper="Lin et al., Network In Network, 2014; Chen et al., Net2Net (deeper), 2016",
        convs=lambda block: (
            _same(block.channels, block.channels, (1,) * len(block.kernel), bias=True),
        ),
        build=_pointwise,
    ),
    "prelu": Kind(
        title="PReLU between the halves",
        says="a slope for negative values in each channel, 1 at the start, inside a factorized layer",
        paper="He et al., Delving Deep into Rectifiers, 2015",
        convs=lambda block: (),
        build=lambda block: nn.PReLU(block.channels, init=1.0),
    ),
}


def insert(
    model: nn.Module, insertions: tuple[Insertion, ...], seed: int = 0
) -> dict[str, nn.Module]:
    """Modules to put in place of those that something is inserted behind, by their names.

    Each is an `nn.Sequential` of the module itself and of what is inserted, in the order given, on the
    device and in the dtype of the network's first parameter, and in its convolutions' memory format.
    """
    first = next((p for p in model.parameters() if p.is_floating_point()), None)
    last = any(p.ndim == 4 and _channels_last(p) for p in model.parameters())
    modules: Mapping[str, nn.Module] = dict(model.named_modules())
    made: dict[str, nn.Sequential] = {}
    for number, insertion in enumerate(i for i in insertions if not i.refused):
        host = modules[insertion.place]
        block = insertion.build(seed * 1000 + number).train(host.training)
        if first is not None:
            block = block.to(first.device, first.dtype)
        if last and len(insertion.kernel) == 2:
            block = block.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if insertion.place not in made:
            made[insertion.place] = nn.Sequential(OrderedDict([(HOST, host)]))
            made[insertion.place].training = host.training
            bear_geometry(made[insertion.place], host)
        chain = made[insertion.place]
        name = f"{DEEPER}{len(chain)}" if len(chain) > 1 else DEEPER
        chain.add_module(name, block)
    return dict(made)


def _channels_last(weight: Tensor) -> bool:
    """Whether a weight is so in memory; of a 1×1 kernel nothing can be told."""
    return weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
