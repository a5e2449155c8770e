"""The forms a layer can take, as one plain table: when they apply, of which layers, at what cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from onebyone.conv import ConvSpec, Grid, Places


@dataclass(frozen=True)
class Part:
    """One plain layer of a form; `grid` tells which positions its outputs are counted on."""

    name: str
    conv: ConvSpec
    grid: Grid = "outside"

    def macs(self, places: Places) -> int:
        """MACs for one image."""
        return self.conv.macs(places.of(self.grid))


@dataclass(frozen=True)
class Form:
    """One row of the table. `ranks` names the form's ranks: those of its input and of its output side,
    or of what lies between its two halves; of a grouped layer, those of each group.

    `refuse(conv)` returns why the form does not suit a layer, or None; `parts(conv, ranks)` the plain
    layers it is made of, in order. The bias sits in the last part, and is always there but in `keep`.
    """

    title: str
    says: str
    paper: str
    ranks: tuple[str, ...]
    refuse: Callable[[ConvSpec], str | None]
    parts: Callable[[ConvSpec, tuple[int, ...]], tuple[Part, ...]]

    def macs(self, conv: ConvSpec, ranks: tuple[int, ...], places: Places) -> int:
        """MACs for one image."""
        return sum(part.macs(places) for part in self.parts(conv, ranks))

    def params(self, conv: ConvSpec, ranks: tuple[int, ...]) -> int:
        """Weights and biases of all parts."""
        return sum(part.conv.params for part in self.parts(conv, ranks))

    def full(self, conv: ConvSpec) -> tuple[int, ...]:
        """The ranks at which the form can compute all that the layer can."""
        return tuple(full_rank(conv, side) for side in self.ranks)


def full_rank(conv: ConvSpec, side: str) -> int:
    """The full rank of a layer's (or each of its groups') input or output side, or between halves."""
    c_in, c_out = conv.c_in // conv.groups, conv.c_out // conv.groups
    if side == "between":
        return min(conv.first_taps * c_in, conv.taps // conv.first_taps * c_out)
    return c_in if side == "in" else c_out


def _pointwise(conv: ConvSpec, c_in: int, c_out: int, bias: bool) -> ConvSpec:
    ones = (1,) * len(conv.kernel)
    padding = ((0, 0),) * len(ones)
    return ConvSpec(c_in, c_out, ones, ones, padding, ones, conv.groups, bias=bias)


def _keep_parts(conv: ConvSpec, ranks: tuple[int, ...]) -> tuple[Part, ...]:
    return (Part("", conv, conv.grid),)


def _squeeze_parts(conv: ConvSpec, ranks: tuple[int, ...]) -> tuple[Part, ...]:
    inner = ranks[0] * conv.groups
    return (
        Part("reduce", _pointwise(conv, conv.c_in, inner, bias=False), "inside"),
        Part("conv", replace(conv, c_in=inner, bias=True), conv.grid),
    )


def _channel_parts(conv: ConvSpec, ranks: tuple[int, ...], name: str = "conv") -> tuple[Part, ...]:
    inner = ranks[0] * conv.groups
    return (
        Part(name, replace(conv, c_out=inner, bias=False), conv.grid),
        Part("expand", _pointwise(conv, inner, conv.c_out, bias=True)),
    )


def _tucker2_parts(conv: ConvSpec, ranks: tuple[int, ...]) -> tuple[Part, ...]:
    inner, outer = (rank * conv.groups for rank in ranks)
    return (
        Part("reduce", _pointwise(conv, conv.c_in, inner, bias=False), "inside"),
        Part("conv", replace(conv, c_in=inner, c_out=outer, bias=False), conv.grid),
        Part("expand", _pointwise(conv, outer, conv.c_out, bias=True)),
    )


def _spatial_parts(conv: ConvSpec, ranks: tuple[int, ...]) -> tuple[Part, ...]:
    inner, first = ranks[0] * conv.groups, conv.first_axis
    others = [axis for axis in range(len(conv.kernel)) if axis != first]
    one = replace(conv, c_out=inner, bias=False)
    other = replace(conv, c_in=inner, bias=True)
    return (
        Part("first", _along(one, [first]), "inside" if conv.transposed else "between"),
        Part("second", _along(other, others), "between" if conv.transposed else "outside"),
    )


def _along(conv: ConvSpec, axes: list[int]) -> ConvSpec:
    """The same along these axes, and one pixel wide along the others."""
    own = [axis in axes for axis in range(len(conv.kernel))]
    padding = tuple(p if o else (0, 0) for p, o in zip(conv.padding, own, strict=True))
    return replace(
        conv,
        kernel=tuple(k if o else 1 for k, o in zip(conv.kernel, own, strict=True)),
        stride=tuple(s if o else 1 for s, o in zip(conv.stride, own, strict=True)),
        dilation=tuple(d if o else 1 for d, o in zip(conv.dilation, own, strict=True)),
        padding=padding,
        output_padding=tuple(m if o else 0 for m, o in zip(conv.output_padding, own, strict=False)),
        padding_mode=conv.padding_mode if any(map(any, padding)) else "zeros",
    )


def _never(conv: ConvSpec) -> str | None:
    return None


def _needs_taps(conv: ConvSpec) -> str | None:
    return "the layer is pointwise already" if conv.pointwise else _mixes(conv)


def _needs_one_tap(conv: ConvSpec) -> str | None:
    return _mixes(conv) if conv.pointwise else f"the kernel has {conv.taps} taps, not one"


def _needs_two_axes(conv: ConvSpec) -> str | None:
    along = sum(k > 1 for k in conv.kernel)
    return _needs_taps(conv) or ("the kernel lies along one axis" if along == 1 else None)


def _mixes(conv: ConvSpec) -> str | None:
    return "the layer is depthwise: its outputs mix no channels" if conv.depthwise else None


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
        parts=partial(_channel_parts, name="reduce"),
    ),
    "spatial": Form(
        title="k×1 and 1×k",
        says="a convolution along one axis of the kernel makes fewer channels, one along the other "
        "axes reads them",
        paper="Jaderberg et al., Speeding up Convolutional Neural Networks with Low Rank Expansions, 2014",
        ranks=("between",),
        refuse=_needs_two_axes,
        parts=_spatial_parts,
    ),
}

KEPT = ("keep", "narrow")  # forms that are one layer of the same class
