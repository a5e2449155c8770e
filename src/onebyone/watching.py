"""One layer watched as it runs → the convolution or linear map that it computes, if that is all it does."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from onebyone.conv import PaddingMode
from onebyone.tree import evaluating, tensors_in

_OF_CONV = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_OF_TRANSPOSED = (*_OF_CONV[:5], "output_padding", "groups", "dilation")
CALLS: dict[Callable[..., Any], tuple[str, ...]] = {
    F.conv1d: _OF_CONV,
    F.conv2d: _OF_CONV,
    F.conv3d: _OF_CONV,
    F.linear: ("input", "weight", "bias"),
    F.conv_transpose1d: _OF_TRANSPOSED,
    F.conv_transpose2d: _OF_TRANSPOSED,
    F.conv_transpose3d: _OF_TRANSPOSED,
}
ABSENT = {
    "bias": None, "stride": 1, "padding": 0, "output_padding": 0, "dilation": 1, "groups": 1,
}  # fmt: skip
MODES: dict[str, PaddingMode] = {
    "constant": "zeros", "reflect": "reflect", "replicate": "replicate", "circular": "circular",
}  # fmt: skip
# What code may ask of the data without a look at them.
QUERIES = (
    Tensor.size, Tensor.dim, Tensor.__len__, Tensor.is_floating_point,
    *(getattr(Tensor, name).__get__ for name in ("shape", "ndim", "dtype", "device", "requires_grad")),
)  # fmt: skip
SAME = (Tensor.to, Tensor.contiguous)  # they may give back the tensor itself

Pairs = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Geometry:
    """How a layer calls its operator, its own padding and that of the call added up.

    The tuples have one entry for each spatial axis: none for a linear map.
    """

    stride: tuple[int, ...]
    padding: Pairs
    dilation: tuple[int, ...]
    groups: int
    same: bool
    mode: PaddingMode
    transposed: bool
    output_padding: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Computed:
    """One call: the operator with these weights on the layer's input gave `output`, to the bit."""

    geometry: Geometry
    weight: Tensor
    bias: Tensor | None
    output: Tensor

    def like(self, other: Computed) -> bool:
        """Whether its weights are the same to the bit."""
        return _equal(self.weight, other.weight) and _equal(self.bias, other.bias)


def watched(layer: nn.Module, x: Tensor) -> Computed | None:
    """What the layer computes of one input in eval mode; None where it does anything else with it.

    The operator must get the input itself, or the input padded once, and weights that nothing of the
    data has entered; and its result must be returned as it is.
    """
    watch = _Watch(x)
    with evaluating(layer), torch.no_grad(), watch:
        try:
            result = layer(x)
        except Exception:
            return None
    found = watch.found
    return None if watch.odd or found is None or result is not found.output else found


class _Watch(TorchFunctionMode):
    """Follows the input to the operator; `odd` once anything else sees the input or what comes of it."""

    def __init__(self, inputs: Tensor) -> None:
        super().__init__()
        self.inputs = inputs
        self.pads: Pairs = ()
        self.mode: PaddingMode = "zeros"
        self.made: Tensor | None = None
        self.found: Computed | None = None
        self.odd = False

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if not self._sees_data((args, kwargs)) or func in QUERIES:
            return result
        if func in SAME and result is args[0]:
            return result
        if func is F.pad and args and args[0] is self.inputs and self.made is None:
            self.made = result
            self._pad(*args[1:], **kwargs)
        elif func in CALLS and self.found is None:
            names = CALLS[func]
            given = ABSENT | dict(zip(names, args, strict=False)) | kwargs
            self.found = self._computed(given, names is _OF_TRANSPOSED, result)
            self.odd |= self.found is None
        else:
            self.odd = True
        return result

    def _sees_data(self, given: object) -> bool:
        known = (self.inputs, self.made, None if self.found is None else self.found.output)
        return any(t is k for t in tensors_in(given) for k in known)

    def _pad(self, pad: Iterable[int], mode: str = "constant", value: float | None = None) -> None:
        """Padding in pairs from the first axis to the last; `odd` where no layer pads so."""
        sizes = [int(n) for n in pad]
        self.odd |= mode not in MODES or bool(value) or min(sizes, default=0) < 0
        self.pads = tuple(zip(sizes[::2], sizes[1::2], strict=True))[::-1]
        self.mode = MODES.get(mode, "zeros")

    def _computed(self, given: dict[str, Any], transposed: bool, output: Tensor) -> Computed | None:
        """The call as a map of the layer's input; None where it is none of a plain layer."""
        weight, fed = given["weight"], self.inputs if self.made is None else self.made
        others = [t for t in (weight, given["bias"]) if t is not None]
        if given["input"] is not fed or self._sees_data(others):
            return None
        axes = weight.ndim - 2
        if axes and fed.ndim != weight.ndim:  # without a batch axis
            return None
        same = given["padding"] == "same"
        added = _each(0 if isinstance(given["padding"], str) else given["padding"], axes)
        own = self.pads or ((0, 0),) * axes
        padded = any(map(any, own))
        if len(own) != axes or (padded and (same or transposed)):
            return None
        if padded and self.mode != "zeros" and any(added):
            return None
        if self.mode != "zeros" and any(before != after for before, after in own):
            return None
        geometry = Geometry(
            _each(given["stride"], axes),
            tuple((a + p, b + p) for (a, b), p in zip(own, added, strict=True)),
            _each(given["dilation"], axes), given["groups"], same,
            self.mode if padded else "zeros", transposed,
            _each(given["output_padding"], axes) if transposed else (),
        )  # fmt: skip
        return Computed(geometry, weight, given["bias"], output)


def _equal(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None:
        return a is b
    return a is b or (
        a.shape == b.shape
        and a.dtype == b.dtype
        and torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)
    )


def _each(value: Any, axes: int) -> tuple[int, ...]:
    found = (value,) if isinstance(value, int) else tuple(int(n) for n in value)
    return found * axes if len(found) == 1 else found
