"""Places → what could be inserted there, with its cost; refused places with their reasons."""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor, nn

from onebyone.deepening.insertions import Activation, Insertion, insert
from onebyone.deepening.places import BLOCKS, Place, find_places
from onebyone.running import call, first_output, placed_for
from onebyone.sensing import overwrites
from onebyone.tree import deep_copy, modules_by_name, replace_modules, tensors_in

KERNEL = 3
WIDTH = 0.25  # hidden channels of a bottleneck, as a part of the channels that it reads
KINDS = ("bottleneck", "pointwise", "prelu")


def candidates(
    model: nn.Module,
    example: Tensor,
    *,
    kinds: tuple[str, ...] = KINDS,
    widths: tuple[float, ...] = (WIDTH,),
) -> tuple[Insertion, ...]:
    """One insertion for each place and kind, in the order that data reaches them; refused ones too.

    model: already borrowed (eval mode). Each place is tried out with a random weight where the block
    starts at zero: one whose output nothing reads is refused, as is one where the outputs change although
    the block does nothing yet. Raises ModelError where the network cannot be run or copied.
    """
    places = find_places(model, example)
    style = _Style.of(model, places)
    found = [c for place in places for c in style.candidates(place, kinds, widths)]
    return _tried(model, placed_for(model, example), found)


class _Style:
    """What the network's own blocks look like: BatchNorm or not, and their activation."""

    def __init__(self, norm: bool, activation: Activation) -> None:
        self.norm, self.activation = norm, activation

    @staticmethod
    def of(model: nn.Module, places: tuple[Place, ...]) -> _Style:
        known = [a for m in model.modules() if (a := Activation.of(m)) is not None]
        common = Counter(known).most_common(1)
        norm = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())
        return _Style(norm, common[0][0] if common else Activation())

    def candidates(
        self, place: Place, kinds: tuple[str, ...], widths: tuple[float, ...]
    ) -> list[Insertion]:
        """All that a place can take; or one refusal."""
        if place.refusal is not None:
            wanted = "prelu" in kinds if place.where != BLOCKS else {*kinds} - {"prelu"}
            refused = Insertion(
                place.module, "refuse", place.channels, place.channels,
                positions=place.positions, reason=place.refusal,
            )  # fmt: skip
            return [refused] if wanted else []
        kernel = tuple(KERNEL if n > 1 else 1 for n in place.size)
        activation = place.activation or self.activation
        whole = Insertion(
            place.module, "prelu", place.channels, place.channels, kernel, place.positions,
            activation=activation,
        )  # fmt: skip
        if place.where != BLOCKS:
            return [whole] if "prelu" in kinds else []
        found = []
        if "pointwise" in kinds and place.activation is not None and activation.idempotent:
            found.append(_as(whole, "pointwise"))
        if "bottleneck" in kinds:
            sizes = dict.fromkeys(hidden(place.channels, share) for share in widths)
            found += [_as(whole, "bottleneck", size, self.norm) for size in sizes]
        return found


def _as(like: Insertion, kind: str, width: int | None = None, norm: bool = False) -> Insertion:
    return Insertion(
        like.place, kind, like.channels, width or like.channels, like.kernel, like.positions, norm,
        like.activation,
    )  # fmt: skip


def hidden(channels: int, share: float) -> int:
    """A width that suits vector units: a multiple of 8, or of 4 below 16.

    >>> hidden(64, 0.5), hidden(24, 0.5), hidden(6, 0.5), hidden(2, 0.25)
    (32, 12, 4, 2)
    """
    wanted = channels * share
    step = 8 if wanted >= 16 else 4
    return max(min(step, channels), round(wanted / step) * step)


def _tried(model: nn.Module, image: Tensor, found: list[Insertion]) -> tuple[Insertion, ...]:
    """With refusals for places that the example shows to be none."""
    first: dict[str, Insertion] = {}
    for candidate in found:
        if not candidate.refused:
            first.setdefault(candidate.place, candidate)
    if not first:
        return tuple(found)
    with torch.no_grad():
        expected = [t.detach().clone() for t in tensors_in(call(model, image.clone()))]
    reasons = dict.fromkeys(_unheard(model, list(first.values())), MODE)
    rest = [c for c in first.values() if c.place not in reasons]
    reasons |= dict.fromkeys(_changing(model, image, expected, rest), CHANGES)
    rest = [c for c in first.values() if c.place not in reasons]
    reasons |= dict.fromkeys(_unread(model, image, rest), UNREAD)
    return tuple(
        Insertion(c.place, "refuse", c.channels, c.channels, positions=c.positions,
                  reason=reasons[c.place])
        if c.place in reasons and not c.refused else c
        for c in found if c.place not in reasons or c is first.get(c.place) or c.refused
    )  # fmt: skip


CHANGES = "the network's outputs change when anything stands there, although it computes the same"
MODE = (
    "the model's own code sets whether it is in training mode, and would set what stands around it"
)
UNREAD = "nothing that the network returns depends on its output"


def _changing(
    model: nn.Module, image: Tensor, expected: list[Tensor], found: list[Insertion]
) -> list[str]:
    """Places where the outputs change; halves are tried until each culprit stands alone."""
    if not found or _equal(model, image, expected, found):
        return []
    if len(found) == 1:
        return [found[0].place]
    middle = len(found) // 2
    parts = (found[:middle], found[middle:])
    return [name for part in parts for name in _changing(model, image, expected, part)]


def inserted(model: nn.Module, found: tuple[Insertion, ...], seed: int = 0) -> nn.Module:
    """A copy of the network with the insertions in it."""
    copy = deep_copy(model)
    return replace_modules(copy, insert(copy, found, seed))


def _equal(model: nn.Module, image: Tensor, expected: list[Tensor], found: list[Insertion]) -> bool:
    with torch.no_grad():
        try:
            given = list(tensors_in(call(inserted(model, tuple(found)), image.clone())))
        except Exception:
            return False
    return same(expected, given)


def same(expected: list[Tensor], given: list[Tensor]) -> bool:
    """Whether outputs are equal within the rounding of their dtypes; NaN where there was NaN."""
    if [t.shape for t in expected] != [t.shape for t in given]:
        return False
    return all(
        bool(torch.allclose(a.double(), b.double(), rtol=_rounding(a), atol=_rounding(a) * _size(a),
                            equal_nan=True))
        for a, b in zip(expected, given, strict=True)
    )  # fmt: skip


def _rounding(tensor: Tensor) -> float:
    return 32 * torch.finfo(tensor.dtype).eps if tensor.is_floating_point() else 0.0


def _size(tensor: Tensor) -> float:
    finite = tensor[tensor.isfinite()] if tensor.is_floating_point() else tensor.new_zeros(0)
    return float(finite.abs().max()) if finite.numel() else 0.0


def _unread(model: nn.Module, image: Tensor, found: list[Insertion]) -> list[str]:
    """Places whose blocks get no gradient from the network's output."""
    trial = deep_copy(model)
    made = insert(trial, tuple(found))
    trial = replace_modules(trial, made).eval()
    for parameter in trial.parameters():
        parameter.requires_grad_(True)

    def back() -> None:
        output = first_output(call(trial, image.clone()))
        if output.requires_grad:
            output.float().square().sum().backward()

    with torch.enable_grad():
        overwrites(back)
    return [name for name, chain in made.items() if list(chain.parameters())[-1].grad is None]


def _unheard(model: nn.Module, found: list[Insertion]) -> list[str]:
    """Places whose modules no longer get the mode that the network's own code would set."""
    alone, wrapped = deep_copy(model), deep_copy(model)
    hosts = {c.place: modules_by_name(wrapped)[c.place] for c in found}
    wrapped = replace_modules(wrapped, insert(wrapped, tuple(found)))
    own = modules_by_name(alone)
    different: set[str] = set()
    for mode in (True, False):
        alone.train(mode)
        wrapped.train(mode)
        different |= {n for n, host in hosts.items() if host.training != own[n].training}
    return [name for name in hosts if name in different]
