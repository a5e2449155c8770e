"""How many samples and rounds each layer's solution gets, so that all together stay cheap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onebyone.conv import ConvSpec
from onebyone.factorize import alternate
from onebyone.plans import Decision

ROUNDS = (3, 1, 0)
ROWS_PER_FEATURE = 8
LEAST_ROWS, MOST_ROWS = 8192, 32768  # where they can be had and paid
FEWEST_ROWS = 1024
GROUPED_ROWS = 2048  # of a grouped layer, which has few unknowns a channel
GROUPED_VALUES = 1 << 24  # in its patches
LEAST_MACS = 1e9  # nobody waits for that


@dataclass(frozen=True)
class Work:
    """One planned layer; `samples` is how many outputs the calibration images give at the most."""

    conv: ConvSpec
    decision: Decision
    samples: int

    @property
    def rank_in(self) -> int | None:
        """The channels that a first layer leaves in each group, None where none is solved first."""
        sides = self.decision.sides
        return sides.get("in", sides.get("between"))

    @property
    def first(self) -> int:
        """The taps that such a first layer has."""
        return self.conv.first_taps if "between" in self.decision.sides else 1

    @property
    def width(self) -> int:
        """Unknowns per output of the least-squares problem."""
        return (self.rank_in or self.conv.c_in // self.conv.groups) * self.conv.taps // self.first

    def cost(self, effort: Effort) -> float:
        """Multiply–accumulates of a solution."""
        rows, width, conv, groups = effort.rows, self.width, self.conv, self.conv.groups
        c_in, c_out = conv.c_in // groups, conv.c_out // groups
        if groups != 1 and not self.decision.ranks:
            own = c_out * (1 + effort.rounds)
            judging = rows * width * (width + 2 * c_out)
            return groups * (rows * width * (width + 2 * own) + width**3 + judging)
        # The ridge is judged between halves of the rows, which costs about as much as the solution.
        once = 2 * (rows * width * min(rows, width) + min(rows, width) ** 3 + rows * width * c_out)
        cut = self.decision.sides.get("out")
        # Cutting the rank of the outputs takes eigenvectors in float64.
        targets = 2 * rows * width * c_out + (20 * min(c_out, width) ** 3 if cut else 0)
        if self.rank_in is None:
            return groups * (once + (1 + effort.rounds) * targets)
        read, rest = c_in * self.first, conv.taps // self.first
        step = min(rows, alternate.MOST_ROWS) * rest * self.rank_in * (read + (cut or c_out))
        squeezing = rows * rest * read * self.rank_in
        again = once + targets + squeezing + 2 * alternate.STEPS * step
        return groups * (once + targets + rows * rest * read**2 + effort.rounds * again)


@dataclass(frozen=True)
class Effort:
    """Samples to solve a layer on, and rounds of alternation and relaxation."""

    rows: int
    rounds: int


def efforts(layers: Sequence[Work], macs: float) -> list[Effort]:
    """The effort for each planned layer, at most about `macs` multiply–accumulates in all.

    Each gets what it wants up to a common limit, so that cheap layers are never cut for dear ones.
    """
    wanted = [_wanted(work) for work in layers]
    costs = [work.cost(effort) for work, effort in zip(layers, wanted, strict=True)]
    limit = _level(costs, max(macs, LEAST_MACS))
    return [
        effort if cost <= limit else _within(work, effort.rows, limit)
        for work, effort, cost in zip(layers, wanted, costs, strict=True)
    ]


def _wanted(work: Work) -> Effort:
    rows = max(LEAST_ROWS, min(MOST_ROWS, ROWS_PER_FEATURE * work.width))
    if work.conv.groups != 1 and not work.decision.ranks:
        most = min(GROUPED_ROWS, GROUPED_VALUES // (work.conv.c_in * work.conv.taps))
        return Effort(min(max(most, FEWEST_ROWS, 8 * work.width), work.samples), ROUNDS[1])
    return Effort(min(rows, work.samples), ROUNDS[0])


def _level(costs: Sequence[float], total: float) -> float:
    """The limit L with Σ min(cost, L) = total; infinite where everything can be paid."""
    left = total
    for index, cost in enumerate(sorted(costs)):
        share = left / (len(costs) - index)
        if cost > share:
            return share
        left -= cost
    return float("inf")


def _within(work: Work, rows: int, limit: float) -> Effort:
    """Fewer rounds first, then fewer samples."""
    for rounds in ROUNDS:
        found = _affordable(work, rows, rounds, limit)
        if found >= min(rows, 2 * work.width):
            return Effort(found, rounds)
    return Effort(_affordable(work, rows, ROUNDS[-1], limit), ROUNDS[-1])


def _affordable(work: Work, rows: int, rounds: int, limit: float) -> int:
    """The samples that the limit pays for, but never under the fewest."""
    fewest = min(FEWEST_ROWS, rows)
    while rows > fewest and work.cost(Effort(rows, rounds)) > limit:
        rows = max(fewest, int(0.9 * rows))
    return rows
