"""The spaces found so far: which are one, and which of their channels go together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from onebyone.narrowing.marks import Found, Segment

ONE = "it is one channel"


class Spaces:
    """Spaces that are joined as sums and products are met, and whose channels are tied where a network
    takes them apart: the halves of a `chunk`, the channels that `pixel_shuffle` makes one of.

    A segment keeps the `age` of its space; `now` says what has become of it since.
    """

    def __init__(self) -> None:
        self.all: list[Found] = []
        self.parents: list[
            tuple[int, int]
        ] = []  # what each was joined with, or itself; its age then
        self.ties: list[list[tuple[int, bool]]] = []  # how many parts or neighbours, whether parts

    def new(self, channels: int, refusal: str | None = None) -> Segment:
        """All channels of a space that nothing is known of yet."""
        self.all.append(Found(channels, refusal=refusal or (ONE if channels == 1 else None)))
        self.parents.append((len(self.parents), 0))
        self.ties.append([])
        return Segment(len(self.all) - 1, channels)

    def roots(self) -> Iterator[Found]:
        """The spaces that are left."""
        return (f for i, f in enumerate(self.all) if self.parents[i][0] == i)

    def root(self, space: int) -> int:
        """The space that it is by now."""
        while self.parents[space][0] != space:
            space = self.parents[space][0]
        return space

    def found(self, segment: Segment) -> Found:
        """What is known of the space that a segment is of."""
        return self.all[self.root(segment.space)]

    def now(self, segment: Segment) -> tuple[Segment, ...]:
        """A segment as its space is by now, perhaps several times all of its channels."""
        space, age, found = segment.space, segment.age, [segment]
        while True:
            for many, beside in self.ties[space][age:]:
                if beside:
                    found = [
                        replace(s, channels=s.channels // many) for s in found for _ in range(many)
                    ]
                else:
                    found = [
                        replace(s, channels=s.channels // many, block=s.block * many) for s in found
                    ]
            parent, then = self.parents[space]
            if parent == space:
                return tuple(replace(s, space=space, age=len(self.ties[space])) for s in found)
            space, age = parent, then

    def join(self, one: Segment, other: Segment) -> bool:
        """Take the channels of two segments for the same; whether they were not yet."""
        a, b = self.root(one.space), self.root(other.space)
        if a == b:
            return False
        into, gone = self.all[a], self.all[b]
        self.parents[b] = (a, len(self.ties[a]))
        into.writers += gone.writers
        into.readers += gone.readers
        into.through += gone.through
        into.cuts += gone.cuts
        into.summed |= gone.summed
        into.refusal = into.refusal or gone.refusal
        return True

    def tie(self, segment: Segment, many: int, beside: bool) -> bool:
        """Make one channel of so many neighbours, or of those at the same place of so many parts
        (`beside`). False where they cannot be one: a layer has read them otherwise."""
        found = self.found(segment)
        read = [c for c in found.cuts if c.axis == 1]
        if found.channels % many or any(c.block > 1 for c in read) or (read and not beside):
            return False
        found.channels //= many
        if beside:
            found.cuts = [
                replace(c, start=c.start + part * found.channels * c.block)
                for c in found.cuts for part in range(many)
            ]  # fmt: skip
        else:
            found.cuts = [replace(c, block=c.block * many) for c in found.cuts]
        if found.channels == 1:
            found.refusal = found.refusal or ONE
        self.ties[self.root(segment.space)].append((many, beside))
        return True
