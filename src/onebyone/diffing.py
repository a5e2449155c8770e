"""Two networks matched layer by layer: what was added, removed, renamed, changed in cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from onebyone.displaying import Displayed
from onebyone.errors import ModelError
from onebyone.matching import Key, match
from onebyone.measurement.counting import Count, count
from onebyone.sides import Side, sides, split
from onebyone.tree import check_networks

Status = Literal["unchanged", "changed", "renamed", "added", "removed"]
STATUSES: tuple[Status, ...] = ("changed", "renamed", "added", "removed", "unchanged")


@dataclass(frozen=True)
class Match:
    """One layer of both networks, or of one (the other side is None).

    `changes` names what differs: name, kind, parts, settings, weight shapes, dtype, input, output,
    calls, MACs, parameters, weight bytes, activation bytes. A layer is renamed where that is its
    name alone. `same_weights`: whether parameters and buffers are equal to the bit; None where that
    was not asked for, there are none, their shapes differ, or they are on PyTorch's meta device.
    """

    status: Status
    before: Side | None
    after: Side | None
    changes: tuple[str, ...] = ()
    same_weights: bool | None = None

    @property
    def name(self) -> str:
        """The qualified name, before where it has two."""
        side = self.before or self.after
        return side.name if side else ""


@dataclass(frozen=True)
class Difference(Displayed):
    """Two networks, counted and matched; every layer of both stands in exactly one match.

    The matches are in the order in which the layers run, added ones behind what runs before them.
    `before` and `after` are the counts of the whole networks.
    """

    matches: tuple[Match, ...]
    before: Count
    after: Count

    def of(self, status: Status) -> tuple[Match, ...]:
        """The matches of this status."""
        return tuple(m for m in self.matches if m.status == status)

    @property
    def same(self) -> bool:
        """Whether nothing differs, weights included as far as they could be compared."""
        return all(m.status == "unchanged" and m.same_weights is not False for m in self.matches)


def diff(
    before: nn.Module,
    after: nn.Module,
    *example: Any,
    after_example: Any = None,
    weights: bool = True,
) -> Difference:
    """Match two networks layer by layer and compare what each layer costs.

    Layers are matched by qualified name, kind, weight shapes and order, so that the most of these
    agree; where one network has a layer and the other several layers under its name, these count as
    one. Both are counted for one forward pass on the example (what the forward takes, one by one or
    as one tuple), `after` on `after_example` (one thing, or a tuple) where it is given. weights:
    compare their values too. Neither network is changed. Raises ModelError where one of them cannot
    run on it.

    >>> a = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
    >>> b = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    >>> for m in diff(a, b, torch.zeros(1, 3, 8, 8)).matches:
    ...     print(m.status, m.name, *m.changes)
    unchanged 0
    added 1
    renamed 1 name
    """
    check_networks(before=before, after=after)
    if len(example) == 1 and isinstance(example[0], tuple):
        example = example[0]
    other = example if after_example is None else after_example
    other = other if isinstance(other, tuple) else (other,)
    counts = _counted(before, example, "first"), _counted(after, other, "second")
    names = counts[0].layers.keys(), counts[1].layers.keys()
    a = sides(before, counts[0], split(names[1], names[0]))
    b = sides(after, counts[1], split(names[0], names[1]))
    pairs = match(list(map(_key, a)), list(map(_key, b)))
    return Difference(_in_order(a, b, pairs, weights), *counts)


def _counted(model: nn.Module, inputs: tuple[Any, ...], which: str) -> Count:
    try:
        return count(model, *inputs)
    except ModelError as error:
        raise ModelError(f"the {which} network: {error}") from error


def _key(side: Side) -> Key:
    return Key(side.name, side.kind, side.weight_shapes, side.output_shape, len(side.layers) > 1)


def _in_order(
    a: list[Side], b: list[Side], pairs: list[tuple[int, int]], weights: bool
) -> tuple[Match, ...]:
    partner, matched = dict(pairs), {j for _, j in pairs}
    entries: list[tuple[Side, Side | None] | tuple[None, Side]] = [
        (side, b[partner[i]] if i in partner else None) for i, side in enumerate(a)
    ]
    for j, side in enumerate(b):
        if j in matched:
            continue
        at = 1 + _index(entries, b[j - 1]) if j else 0
        while at < len(entries) and entries[at][1] is None:
            at += 1  # what was removed stands before what was added
        entries.insert(at, (None, side))
    return tuple(_compared(*entry, weights) for entry in entries)


def _index(entries: Sequence[tuple[Side | None, Side | None]], side: Side) -> int:
    return next(i for i, entry in enumerate(entries) if entry[1] is side)


def _compared(before: Side | None, after: Side | None, weights: bool) -> Match:
    if before is None or after is None:
        return Match("added" if before is None else "removed", before, after)
    changes = tuple(_changes(before, after))
    status: Status = (
        "unchanged" if not changes else "renamed" if changes == ("name",) else "changed"
    )
    same = _same_weights(before, after) if weights else None
    return Match(status, before, after, changes, same)


def _changes(before: Side, after: Side) -> list[str]:
    """What differs, in words."""
    kind, shapes = before.kind != after.kind, before.weight_shapes != after.weight_shapes
    settings, dtypes = (
        [getattr(x, what) for x in before.layers] != [getattr(x, what) for x in after.layers]
        for what in ("settings", "dtypes")
    )
    settings |= [x.attributes for x in before.layers] != [x.attributes for x in after.layers]
    differs = {
        "name": before.name != after.name,
        "kind": kind,
        "parts": len(before.layers) != len(after.layers),
        "settings": settings and not (kind or shapes),
        "weight shapes": shapes,
        "dtype": dtypes and not (kind or shapes),
        "input": before.input_shape != after.input_shape,
        "output": before.output_shape != after.output_shape,
        "calls": before.calls != after.calls and len(before.layers) == len(after.layers),
        "MACs": before.macs != after.macs,
        "parameters": before.params != after.params,
        "weight bytes": before.weight_bytes != after.weight_bytes,
        "activation bytes": before.activation_bytes != after.activation_bytes,
    }
    return [what for what, so in differs.items() if so]


def _same_weights(before: Side, after: Side) -> bool | None:
    pairs = [
        pair
        for a, b in zip(before.layers, after.layers, strict=False)
        for pair in zip(a.tensors, b.tensors, strict=False)
    ]
    if not pairs or before.weight_shapes != after.weight_shapes:
        return None
    found = [_same_bits(x, y) for x, y in pairs]
    return None if None in found else all(found)


@torch.no_grad()
def _same_bits(x: Tensor, y: Tensor) -> bool | None:
    """Whether two tensors of one shape are equal to the bit; None where they have no values."""
    if x is y:
        return True
    if x.is_meta or y.is_meta:
        return None
    if x.dtype != y.dtype:
        return False
    try:
        bits = [t.detach().cpu().contiguous().reshape(-1).view(torch.uint8) for t in (x, y)]
    except (NotImplementedError, RuntimeError):  # sparse, quantized: their values decide
        return bool(torch.equal(x, y))
    return torch.equal(bits[0], bits[1])
