"""What each layer can become, at what predicted error and cost, at full and at narrower widths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from onebyone.allocation import Choices
from onebyone.conv import ConvSpec
from onebyone.form_costs import FormCosts, cost_at
from onebyone.forms import FORMS, full_rank
from onebyone.losses import Losses
from onebyone.narrowing.spaces import Narrowing, narrowed
from onebyone.statistics import Statistics
from onebyone.surveying import Seen


@dataclass(frozen=True)
class Candidate:
    """One form of a layer."""

    form: str
    ranks: tuple[int, ...]


@dataclass(frozen=True)
class Table:
    """All candidates of one layer, `keep` first.

    `errors` (n,) in nats per image; `coefficients` (n, 4, 2) give MACs and parameters at any number
    of channels (`FormCosts`); `choices` are those at the layer's own number.
    """

    seen: Seen
    conv: ConvSpec
    candidates: tuple[Candidate, ...]
    errors: NDArray[np.float64]
    coefficients: NDArray[np.float64]

    @cached_property
    def groups(self) -> tuple[tuple[str, NDArray[np.int64]], ...]:
        """The candidates form by form, in order: its name and the ranks (n, sides)."""
        found = []
        for form, group in groupby(self.candidates, key=lambda c: c.form):
            ranks = [c.ranks for c in group]
            found.append((form, np.asarray(ranks, dtype=np.int64).reshape(len(ranks), -1)))
        return tuple(found)

    @property
    def choices(self) -> Choices:
        """Errors and costs (n, 2)."""
        return Choices(self.errors, cost_at(self.coefficients, self.conv.c_in, self.conv.c_out))

    def coarse(self, most: int) -> list[int]:
        """The places of candidates with about `most` ranks on each side."""
        return [i for i, c in enumerate(self.candidates) if self._coarse(c, most)]

    def _coarse(self, candidate: Candidate, most: int) -> bool:
        for rank, side in zip(candidate.ranks, FORMS[candidate.form].ranks, strict=True):
            grid = steps(full_rank(self.conv, side))
            if grid.index(rank) % -(-len(grid) // most):
                return False
        return True


class Candidates:
    """The tables of a network's layers, each made once for each width that is asked for."""

    def __init__(self, statistics: Statistics) -> None:
        self.free = [s for s in statistics.survey.layers if s.refusal is None and s.conv]
        self.made: dict[tuple[object, ...], Table] = {}
        self.losses = Losses(statistics)

    def tables(self, narrowings: Sequence[Narrowing]) -> list[Table]:
        """One table for each layer that can change."""
        return [self._table(seen, narrowings) for seen in self.free]

    def _table(self, seen: Seen, narrowings: Sequence[Narrowing]) -> Table:
        own = [n for n in narrowings if any(c.module == seen.layer for c in n.cuts)]
        key = (seen.layer, *((n.layer, n.width) for n in own))
        if key not in self.made:
            self.made[key] = _table(seen, self.losses, own)
        return self.made[key]


def _table(seen: Seen, losses: Losses, narrowings: Sequence[Narrowing]) -> Table:
    """Keep, and every form and rank that is cheaper than keep in MACs or parameters."""
    assert seen.conv is not None
    conv = narrowed(seen.layer, seen.conv, narrowings)
    none = np.zeros((1, 0), dtype=np.int64)
    found, errors = [Candidate("keep", ())], [np.zeros(1)]
    coefficients = [FormCosts("keep", conv, seen.places).at_ranks(none)]
    whole = cost_at(coefficients[0], conv.c_in, conv.c_out)[0]
    by_rank = {} if seen.conv.depthwise else losses.at(seen, narrowings)
    for name, form in FORMS.items():
        if not form.ranks or form.refuse(seen.conv) is not None:
            continue
        sides = [steps(full) for full in form.full(conv)]
        ranks = np.stack([g.ravel() for g in np.meshgrid(*sides, indexing="ij")], 1)
        made = FormCosts(name, conv, seen.places).at_ranks(ranks)
        cost = cost_at(made, conv.c_in, conv.c_out)
        cheaper = (cost <= whole).all(1) & (cost < whole).any(1)
        lost = sum(by_rank[side][ranks[:, i]] for i, side in enumerate(form.ranks))
        found += [Candidate(name, tuple(r)) for r in ranks[cheaper].tolist()]
        errors.append(np.asarray(lost)[cheaper])
        coefficients.append(made[cheaper])
    return Table(seen, conv, tuple(found), np.concatenate(errors), np.concatenate(coefficients))


def steps(size: int) -> list[int]:
    """Ranks to try for so many channels: multiples of 8 in big layers, finer in small ones."""
    step = 8 if size >= 64 else max(1, size // 8)
    return list(range(step, size, step)) or [1]
