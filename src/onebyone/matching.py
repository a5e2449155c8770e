"""Match the layers of two networks one to one: by their names, kinds, weight shapes and order."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Int

ENDING = 3  # trailing parts of two names that count where they agree

# Points of a pair; pairs that have none are never matched.
KIND = 10  # the same kind
SHAPES = 10  # and the same weight shapes, or both without weights
WEIGHTS = 20  # and there are weights
OUTPUT = 10  # the same output shape, beside the same kind
NAME = 20  # the same name, beside the same kind and shapes
NAME_OF_OTHER_SHAPE = 10  # beside the same kind: weaker than equal shapes elsewhere
NAME_OF_OTHER_KIND = 20  # alone
NUMBER = 0.5  # of the points of a name where it ends in a number: positions shift, names do not
NAME_OF_GROUP = 30  # of a layer here and several layers there
NAME_PART = 1  # each trailing part of the name that agrees, beside the same kind


@dataclass(frozen=True)
class Key:
    """What a layer is matched by; `group`: it stands for several layers under its name."""

    name: str
    kind: str
    shapes: tuple[tuple[int, ...], ...]
    output: tuple[int, ...] | None = None
    group: bool = False

    @property
    def numbered(self) -> bool:
        """Whether the name is a position, as in nn.Sequential."""
        return self.name.rpartition(".")[2].isdigit()


def match(before: Sequence[Key], after: Sequence[Key]) -> list[tuple[int, int]]:
    """Pairs of indices (before, after), each index once at most, sorted.

    The pairs that keep the order of both and have the most points together; then, of what is left,
    those that have a name or weight shapes in common, in as many turns as it takes: layers that
    moved. Layers alike that only changed places keep their names. Swapping the arguments swaps the
    pairs.
    """
    if _ordered(after) < _ordered(before):  # one of two equally good answers, whoever comes first
        return sorted((i, j) for j, i in match(after, before))
    start, end = _ends(before, after)
    a, b = (keys[start : len(keys) - end] for keys in (before, after))
    middle = _by_name(a, b, _moved(a, b))
    return [
        *((i, i) for i in range(start)),
        *((start + i, start + j) for i, j in middle),
        *((len(before) - i, len(after) - i) for i in range(end, 0, -1)),
    ]


def _ends(before: Sequence[Key], after: Sequence[Key]) -> tuple[int, int]:
    """How many keys are the same at the beginning, and then at the end: no pairs have more points."""
    shorter = min(len(before), len(after))
    start = next((i for i in range(shorter) if before[i] != after[i]), shorter)
    rest = shorter - start
    return start, next((i for i in range(rest) if before[-1 - i] != after[-1 - i]), rest)


def _moved(before: Sequence[Key], after: Sequence[Key]) -> list[tuple[int, int]]:
    """The pairs in order, then those of layers that moved."""
    points, sure = _points(before, after)
    found = _aligned(points)
    points = np.where(sure, points, 0)
    while True:
        rows = sorted(set(range(len(before))) - {i for i, _ in found})
        columns = sorted(set(range(len(after))) - {j for _, j in found})
        more = _aligned(points[np.ix_(rows, columns)])
        if not more:
            return sorted(found)
        found += [(rows[i], columns[j]) for i, j in more]


def _by_name(
    before: Sequence[Key], after: Sequence[Key], pairs: list[tuple[int, int]]
) -> list[tuple[int, int]]:
    """The pairs; where some merely exchange their names among layers alike, by those names."""
    partner = dict(pairs)
    at = {key.name: i for i, key in enumerate(before)}
    to = {key.name: j for j, key in enumerate(after)}
    if len(at) < len(before) or len(to) < len(after):
        return pairs  # names that do not tell layers apart
    for first in sorted(partner):
        ring = [first]
        while (i := at.get(after[partner[ring[-1]]].name)) in partner and i not in ring:
            ring.append(i)
        alike = {replace(key, name="") for k in ring for key in (before[k], after[partner[k]])}
        if i == first and len(alike) == 1:
            partner |= {k: to[before[k].name] for k in ring}
    return sorted(partner.items())


def _ordered(keys: Sequence[Key]) -> list[tuple[str, str, tuple[tuple[int, ...], ...]]]:
    return [(key.name, key.kind, key.shapes) for key in keys]


def _points(
    before: Sequence[Key], after: Sequence[Key]
) -> tuple[Int[np.ndarray, "before after"], Bool[np.ndarray, "before after"]]:
    """Points of every pair, and whether more than its kind speaks for it."""
    kind = _equal([k.kind for k in before], [k.kind for k in after])
    shapes = kind & _equal([k.shapes for k in before], [k.shapes for k in after])
    weighted = shapes & np.array([bool(k.shapes) for k in before], bool)[:, None]
    name = _equal([k.name for k in before], [k.name for k in after])
    group = _either(before, after, [k.group for k in (*before, *after)])
    numbered = _either(before, after, [k.numbered for k in (*before, *after)])
    named = np.where(
        shapes, NAME, np.where(kind, NAME_OF_OTHER_SHAPE, NAME_OF_OTHER_KIND)
    ) * np.where(numbered, NUMBER, 1)
    named = np.where(group, NAME_OF_GROUP, named)
    output = kind & _equal([k.output for k in before], [k.output for k in after])
    points = KIND * kind + SHAPES * shapes + WEIGHTS * weighted + OUTPUT * output + named * name
    for parts in range(1, ENDING + 1):
        ends = _equal([_ending(k, parts) for k in before], [_ending(k, parts) for k in after])
        points = points + NAME_PART * (kind & ends)
    return points.astype(np.int32), name | weighted


def _either(before: Sequence[Key], after: Sequence[Key], flags: list[bool]) -> np.ndarray:
    array = np.array(flags, bool)
    return array[: len(before), None] | array[None, len(before) :]


def _ending(key: Key, parts: int) -> Hashable:
    """The last parts of the name; something equal to nothing else where it has fewer."""
    names = key.name.split(".")
    return tuple(names[-parts:]) if len(names) >= parts else object()


def _equal(before: Sequence[Hashable], after: Sequence[Hashable]) -> np.ndarray:
    numbers: dict[Hashable, int] = {}
    a, b = (
        np.array([numbers.setdefault(v, len(numbers)) for v in values], np.int32)
        for values in (before, after)
    )
    return a[:, None] == b[None, :]


def _aligned(points: Int[np.ndarray, "before after"]) -> list[tuple[int, int]]:
    """The pairs of most points that do not cross (longest common subsequence, weighted).

    best[i, j] = max(best[i+1, j], best[i, j+1], best[i+1, j+1] + points[i, j]); a whole row of it is
    a running maximum from its end.
    """
    rows, columns = points.shape
    best = np.zeros((rows + 1, columns + 1), np.int32)
    for i in reversed(range(rows)):
        own = np.maximum(best[i + 1, :-1], best[i + 1, 1:] + points[i])
        best[i, :-1] = np.maximum.accumulate(own[::-1])[::-1]
    found = []
    i = j = 0
    while i < rows and j < columns:
        if points[i, j] and best[i, j] == best[i + 1, j + 1] + points[i, j]:
            found.append((i, j))
            i, j = i + 1, j + 1
        elif best[i, j] == best[i + 1, j]:
            i += 1
        else:
            j += 1
    return found
