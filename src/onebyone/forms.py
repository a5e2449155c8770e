"""The forms a layer can take, as one plain table: when they apply, of which layers, at what cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from onebyone.conv import ConvSpec


@dataclass(frozen=True)
class Part:
    """One plain layer of a form; `at_input` tells which grid its outputs are counted on."""

    name: str
    conv: ConvSpec
    at_input: bool = False


@dataclass(frozen=True)
class Form:
    """One row of the table. `ranks` names the form's ranks: those of its input and of its output side.

    `refuse(conv)` returns why the form does not suit a layer, or None; `parts(conv, ranks)` the plain
    layers it is made of, in order. The bias sits in the last part, and is always there but in `keep`.
    """

    title: str
    says: str
    paper: str
    ranks: tuple[str, ...]
    refuse: Callable[[ConvSpec], str | None]
    parts: Callable[[ConvSpec, tuple[int, ...]], tuple[Part, ...]]

    def macs(self, conv: ConvSpec, ranks: tuple[int, ...], inside: int, outside: int) -> int:
        """MACs for one image, with `inside` input and `outside` output positions."""
        parts = self.parts(conv, ranks)
        return sum(part.conv.macs(inside if part.at_input else outside) for part in parts)

    def params(self, conv: ConvSpec, ranks: tuple[int, ...]) -> int:
        """Weights and biases of all parts."""
        return sum(part.conv.params for part in self.parts(conv, ranks))


def _pointwise(conv: ConvSpec, c_in: int, c_out: int, bias: bool) -> ConvSpec:
    ones = (1,) * len(conv.kernel)
    return ConvSpec(c_in, c_out, ones, ones, ((0, 0),) * len(ones), ones, bias=bias)


def _keep_parts(conv: ConvSpec, ranks: tuple[int, ...]) -> tuple[Part, ...]:
    return (Part("", conv),)


def _squeeze_parts(conv: ConvSpec, ranks: tuple[int, ...]) -> tuple[Part, ...]:
    (rank,) = ranks
    return (
        Part("reduce", _pointwise(conv, conv.c_in, rank, bias=False), at_input=True),
        Part("conv", replace(conv, c_in=rank, bias=True)),
    )


def _channel_parts(conv: ConvSpec, ranks: tuple[int, ...]) -> tuple[Part, ...]:
    (rank,) = ranks
    return (
        Part("conv", replace(conv, c_out=rank, bias=False)),
        Part("expand", _pointwise(conv, rank, conv.c_out, bias=True)),
    )


def _tucker2_parts(conv: ConvSpec, ranks: tuple[int, ...]) -> tuple[Part, ...]:
    rank_in, rank_out = ranks
    return (
        Part("reduce", _pointwise(conv, conv.c_in, rank_in, bias=False), at_input=True),
        Part("conv", replace(conv, c_in=rank_in, c_out=rank_out, bias=False)),
        Part("expand", _pointwise(conv, rank_out, conv.c_out, bias=True)),
    )


def _never(conv: ConvSpec) -> str | None:
    return None


def _needs_taps(conv: ConvSpec) -> str | None:
    return "the layer is pointwise already" if conv.pointwise else _dense(conv)


def _needs_one_tap(conv: ConvSpec) -> str | None:
    return _dense(conv) if conv.pointwise else f"the kernel has {conv.taps} taps, not one"


def _dense(conv: ConvSpec) -> str | None:
    return f"the layer is grouped ({conv.groups} groups)" if conv.groups != 1 else None


FORMS: dict[str, Form] = {
    "keep": Form(
        title="kept",
        says="the layer keeps its shape; its weights may be refitted to its new inputs",
        paper="",
        ranks=(),
        refuse=_never,
        parts=_keep_parts,
    ),
    "narrow": Form(
        title="narrowed",
        says="fewer channels between two layers whose middle no one else reads; what reads them is "
        "refitted to those that are left",
        paper="He et al., Channel Pruning for Accelerating Very Deep Neural Networks, 2017",
        ranks=(),
        refuse=_never,
        parts=_keep_parts,
    ),
    "squeeze": Form(
        title="1×1 before",
        says="a 1×1 convolution mixes the input channels down, then the k×k convolution reads fewer",
        paper="Szegedy et al., Going Deeper with Convolutions, 2014",
        ranks=("in",),
        refuse=_needs_taps,
        parts=_squeeze_parts,
    ),
    "channel": Form(
        title="1×1 after",
        says="the k×k convolution makes fewer channels, a 1×1 convolution mixes them up again",
        paper="Zhang et al., Accelerating Very Deep Convolutional Networks, 2016",
        ranks=("out",),
        refuse=_needs_taps,
        parts=_channel_parts,
    ),
    "tucker2": Form(
        title="1×1 before and after",
        says="1×1 down, a small k×k convolution, 1×1 up: the bottleneck of ResNet",
        paper="Kim et al., Compression of Deep CNNs for Fast and Low Power Mobile Applications, 2016",
        ranks=("in", "out"),
        refuse=_needs_taps,
        parts=_tucker2_parts,
    ),
    "pointwise": Form(
        title="two 1×1",
        says="one 1×1 convolution or linear layer becomes two thin ones",
        paper="Denton et al., Exploiting Linear Structure Within Convolutional Networks, 2014",
        ranks=("out",),
        refuse=_needs_one_tap,
        parts=lambda conv, ranks: (
            Part("reduce", replace(conv, c_out=ranks[0], bias=False)),
            Part("expand", _pointwise(conv, ranks[0], conv.c_out, bias=True)),
        ),
    ),
}

KEPT = ("keep", "narrow")  # forms that are one layer of the same class
