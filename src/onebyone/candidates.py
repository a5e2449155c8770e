"""What each layer can become, at what predicted error and cost, at full and at narrower widths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onebyone.allocation import Choices
from onebyone.conv import ConvSpec
from onebyone.factorize.metric import energies, factor, tails
from onebyone.form_costs import FormCosts, cost_at
from onebyone.forms import FORMS
from onebyone.narrowing.spaces import Narrowing, kept_entries, narrowed
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

    @property
    def choices(self) -> Choices:
        """Errors and costs (n, 2)."""
        return Choices(self.errors, cost_at(self.coefficients, self.conv.c_in, self.conv.c_out))

    def thinned(self, most: int) -> Table:
        """The same with about `most` ranks on each side."""
        index = [i for i, c in enumerate(self.candidates) if self._coarse(c, most)]
        kept = tuple(self.candidates[i] for i in index)
        return Table(self.seen, self.conv, kept, self.errors[index], self.coefficients[index])

    def _coarse(self, candidate: Candidate, most: int) -> bool:
        for rank, side in zip(candidate.ranks, FORMS[candidate.form].ranks, strict=True):
            grid = steps(self.conv.c_in if side == "in" else self.conv.c_out)
            if grid.index(rank) % -(-len(grid) // most):
                return False
        return True


class Candidates:
    """The tables of a network's layers, each made once for each width that is asked for."""

    def __init__(self, statistics: Statistics) -> None:
        self.statistics = statistics
        self.free = [s for s in statistics.survey.layers if s.refusal is None and s.conv]
        self.made: dict[tuple[object, ...], Table] = {}

    def tables(self, narrowings: Sequence[Narrowing]) -> list[Table]:
        """One table for each layer that can change."""
        return [self._table(seen, narrowings) for seen in self.free]

    def _table(self, seen: Seen, narrowings: Sequence[Narrowing]) -> Table:
        own = [n for n in narrowings if any(c.module == seen.layer for c in n.cuts)]
        key = (seen.layer, *((n.layer, n.width) for n in own))
        if key not in self.made:
            self.made[key] = _table(seen, self.statistics, own)
        return self.made[key]


def _table(seen: Seen, statistics: Statistics, narrowings: Sequence[Narrowing]) -> Table:
    """Keep, and every form and rank that is cheaper than keep in MACs or parameters."""
    assert seen.conv is not None
    conv = narrowed(seen.layer, seen.conv, narrowings)
    places = (conv, seen.positions_in, seen.positions_out)
    none = np.zeros((1, 0), dtype=np.int64)
    found, errors = [Candidate("keep", ())], [np.zeros(1)]
    coefficients = [FormCosts("keep", *places).at_ranks(none)]
    whole = cost_at(coefficients[0], conv.c_in, conv.c_out)[0]
    losses = _tails(seen, statistics, narrowings) if seen.conv.groups == 1 else {}
    for name, form in FORMS.items():
        if not form.ranks or form.refuse(seen.conv) is not None:
            continue
        sides = [steps(conv.c_in if side == "in" else conv.c_out) for side in form.ranks]
        ranks = np.stack([g.ravel() for g in np.meshgrid(*sides, indexing="ij")], 1)
        made = FormCosts(name, *places).at_ranks(ranks)
        cost = cost_at(made, conv.c_in, conv.c_out)
        cheaper = (cost <= whole).all(1) & (cost < whole).any(1)
        lost = sum(losses[side][ranks[:, i]] for i, side in enumerate(form.ranks))
        found += [Candidate(name, tuple(r)) for r in ranks[cheaper].tolist()]
        errors.append(np.asarray(lost)[cheaper])
        coefficients.append(made[cheaper])
    return Table(seen, conv, tuple(found), np.concatenate(errors), np.concatenate(coefficients))


def steps(size: int) -> list[int]:
    """Ranks to try for so many channels: multiples of 8 in big layers, finer in small ones."""
    step = 8 if size >= 64 else max(1, size // 8)
    return list(range(step, size, step)) or [1]


def _tails(
    seen: Seen, statistics: Statistics, narrowings: Sequence[Narrowing]
) -> dict[str, NDArray[np.float64]]:
    """Predicted loss for each rank of the input and of the output side, in nats per image."""
    conv, layer = seen.conv, statistics.layers[seen.layer]
    assert conv is not None
    rows = kept_entries(seen.layer, 0, conv.c_out, narrowings)
    columns = kept_entries(seen.layer, 1, conv.c_in, narrowings)
    gradients, covariance = layer.gradients / statistics.images, layer.outputs.covariance
    if rows is not None:
        gradients, covariance = gradients[rows][:, rows], covariance[rows][:, rows]
    metric = factor(gradients)
    found = {"out": (tails(energies(metric.T @ covariance @ metric)) / 2).numpy()}
    if conv.taps > 1:  # no form of a pointwise layer cuts its input side
        needs, inside = statistics.needs[seen.layer], layer.channels.covariance
        if columns is not None:
            needs, inside = needs[columns][:, columns], inside[columns][:, columns]
        channels = factor(inside)
        energy = energies(channels.T @ needs @ channels) / statistics.images
        found["in"] = (tails(energy) / 2).numpy()
    return found
