"""How many samples and rounds each layer's solution gets, so that all together stay cheap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onebyone.conv import ConvSpec
from onebyone.factorize import alternate
from onebyone.planning import Decision

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
        """The channels that a first 1×1 leaves, None where there is none."""
        return self.decision.ranks[0] if self.decision.form in ("squeeze", "tucker2") else None

    @property
    def width(self) -> int:
        """Unknowns per output of the least-squares problem."""
        return (self.rank_in or self.conv.c_in // self.conv.groups) * self.conv.taps

    @property
    def cut(self) -> int:
        """What cutting the rank of the outputs takes: eigenvectors in float64."""
        cuts = self.decision.form in ("channel", "tucker2", "pointwise")
        return 20 * min(self.conv.c_out, self.width) ** 3 if cuts else 0

    def cost(self, effort: Effort) -> float:
        """Multiply–accumulates of a solution."""
        rows, width, conv = effort.rows, self.width, self.conv
        if conv.groups != 1:
            own = conv.c_out // conv.groups * (1 + effort.rounds)
            return conv.groups * (rows * width * (width + 2 * own) + width**3)
        once = rows * width * min(rows, width) + min(rows, width) ** 3
        targets = 2 * rows * width * conv.c_out + self.cut
        if self.rank_in is None:
            return once + (1 + effort.rounds) * targets
        out = self.decision.ranks[-1] if self.decision.form == "tucker2" else conv.c_out
        step = min(rows, alternate.MOST_ROWS) * conv.taps * self.rank_in * (conv.c_in + out)
        squeezing = rows * conv.taps * conv.c_in * self.rank_in
        again = once + targets + squeezing + 2 * alternate.STEPS * step
        return once + targets + rows * conv.taps * conv.c_in**2 + effort.rounds * again


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
    if work.conv.groups != 1:
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
