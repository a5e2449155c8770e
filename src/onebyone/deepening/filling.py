"""Candidates and scores → the insertions that fill a budget."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from onebyone.deepening.insertions import Insertion

MOST = {"bottleneck": 8, "pointwise": 1, "prelu": 1}  # behind one module
AGAIN = 0.5  # what a further block is worth beside the one before it


@dataclass(frozen=True)
class Room:
    """What may still be spent; None is without limit."""

    macs: int | None
    params: int | None

    def holds(self, insertion: Insertion) -> bool:
        """Whether the insertion fits."""
        return (self.macs is None or insertion.macs <= self.macs) and (
            self.params is None or insertion.params <= self.params
        )

    def less(self, insertion: Insertion) -> Room:
        """What is left beside the insertion."""
        return Room(
            None if self.macs is None else self.macs - insertion.macs,
            None if self.params is None else self.params - insertion.params,
        )


def price(insertion: Insertion, room: Room) -> float:
    """Its share of what there is to spend, the larger one where MACs and parameters are both limited."""
    shares = [
        cost / max(most, 1)
        for cost, most in ((insertion.macs, room.macs), (insertion.params, room.params))
        if most is not None
    ]
    return max(*shares, 1e-9) if shares else 1e-9


def by_gain(found: Sequence[Insertion], room: Room) -> list[Insertion]:
    """The most gain for its price first, again and again, until nothing fits any more.

    A further block at the same place counts half as much as the one before, since they do the same
    work. A bottleneck that is too large for what is left is made narrower.
    """
    usable = [i for i in found if not i.refused and (i.score or 0) > 0]
    times: Counter[str] = Counter()

    def worth(insertion: Insertion) -> float:
        score = (insertion.score or 0) * AGAIN ** times[insertion.place]
        return score / price(insertion, room)

    return _fill(usable, room, times, worth)


def by_rule(found: Sequence[Insertion], room: Room) -> list[Insertion]:
    """Bottlenecks spread over the network: one at each place before a second one anywhere.

    In each round the cheapest MACs for a parameter come first. Where no bottleneck was asked for,
    the same with what was.
    """
    usable = [i for i in found if i.kind == "bottleneck"] or [i for i in found if not i.refused]
    times: Counter[str] = Counter()

    def worth(insertion: Insertion) -> float:
        return -times[insertion.place] + insertion.params / (insertion.params + insertion.macs)

    return _fill(usable, room, times, worth)


def _fill(
    usable: list[Insertion],
    room: Room,
    times: Counter[str],
    worth: Callable[[Insertion], float],
) -> list[Insertion]:
    chosen: list[Insertion] = []
    open_ = list(usable)
    while open_:
        best = max(open_, key=worth)
        fitted = _fitted(best, room)
        alike = sum(i.place == best.place and i.kind == best.kind for i in chosen)
        if fitted is None or alike >= MOST[best.kind]:
            open_.remove(best)
            continue
        chosen.append(fitted)
        room = room.less(fitted)
        times[best.place] += 1
    order = {id(i): n for n, i in enumerate(usable)}
    places = {i.place: order[id(i)] for i in reversed(usable)}
    # Behind an activation the identity 1×1 must come first, while its input is still activated.
    return sorted(chosen, key=lambda i: (places[i.place], i.kind != "pointwise", i.kind))


def _fitted(insertion: Insertion, room: Room) -> Insertion | None:
    """The insertion, as wide as fits; None where not even half of its width does."""
    if room.holds(insertion):
        return insertion
    if insertion.kind != "bottleneck":
        return None
    step = 4 if insertion.width >= 8 else 1
    for width in range(insertion.width - step, insertion.width // 2 - 1, -step):
        narrower = replace(insertion, width=width)
        if width > 0 and room.holds(narrower):
            return narrower
    return None
