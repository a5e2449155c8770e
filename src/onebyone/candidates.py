"""What each layer can become, at what predicted error and cost, at full and at narrower widths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from onebyone.allocation import Choices
from onebyone.conv import ConvSpec
from onebyone.factorize.judging import JUDGED, tails_on_other
from onebyone.factorize.metric import energies, factor, tails
from onebyone.factorize.spatial import between_energies
from onebyone.form_costs import FormCosts, cost_at
from onebyone.forms import FORMS, full_rank
from onebyone.narrowing.spaces import Narrowing, kept_entries, narrowed
from onebyone.statistics import Statistics
from onebyone.surveying import Seen

NOTHING = 1e-6  # of all that a layer can lose: below is rounding


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
        self.statistics = statistics
        self.free = [s for s in statistics.survey.layers if s.refusal is None and s.conv]
        self.made: dict[tuple[object, ...], Table] = {}
        self.optimism = {s.layer: _optimism(s, statistics) for s in self.free}

    def tables(self, narrowings: Sequence[Narrowing]) -> list[Table]:
        """One table for each layer that can change."""
        return [self._table(seen, narrowings) for seen in self.free]

    def _table(self, seen: Seen, narrowings: Sequence[Narrowing]) -> Table:
        own = [n for n in narrowings if any(c.module == seen.layer for c in n.cuts)]
        key = (seen.layer, *((n.layer, n.width) for n in own))
        if key not in self.made:
            self.made[key] = _table(seen, self.statistics, own, self.optimism[seen.layer])
        return self.made[key]


def _table(
    seen: Seen,
    statistics: Statistics,
    narrowings: Sequence[Narrowing],
    optimism: dict[str, NDArray[np.float64]],
) -> Table:
    """Keep, and every form and rank that is cheaper than keep in MACs or parameters."""
    assert seen.conv is not None
    conv = narrowed(seen.layer, seen.conv, narrowings)
    none = np.zeros((1, 0), dtype=np.int64)
    found, errors = [Candidate("keep", ())], [np.zeros(1)]
    coefficients = [FormCosts("keep", conv, seen.places).at_ranks(none)]
    whole = cost_at(coefficients[0], conv.c_in, conv.c_out)[0]
    losses = {} if seen.conv.depthwise else _tails(seen, statistics, narrowings, optimism)
    for name, form in FORMS.items():
        if not form.ranks or form.refuse(seen.conv) is not None:
            continue
        sides = [steps(full) for full in form.full(conv)]
        ranks = np.stack([g.ravel() for g in np.meshgrid(*sides, indexing="ij")], 1)
        made = FormCosts(name, conv, seen.places).at_ranks(ranks)
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
    seen: Seen,
    statistics: Statistics,
    narrowings: Sequence[Narrowing],
    optimism: dict[str, NDArray[np.float64]],
) -> dict[str, NDArray[np.float64]]:
    """Predicted loss for each rank of the input and of the output side, in nats per image."""
    conv, layer = seen.conv, statistics.layers[seen.layer]
    assert conv is not None
    rows = kept_entries(seen.layer, 0, conv.c_out, narrowings)
    columns = kept_entries(seen.layer, 1, conv.c_in, narrowings)
    gradients = _own(layer.gradients, rows) / statistics.images
    energy = {"out": [
        energies(metric.T @ covariance @ metric)
        for metric, covariance in zip(
            map(factor, gradients), _own(layer.outputs.covariance, rows), strict=True
        )
    ]}  # fmt: skip
    if conv.taps > 1:  # no form of a pointwise layer cuts its input side
        inside = _own(layer.channels.covariance, columns)
        needs = _own(statistics.needs[seen.layer], columns) / statistics.images
        energy["in"] = [
            energies(channels.T @ need @ channels)
            for need, channels in zip(needs, map(factor, inside), strict=True)
        ]
        if seen.layer in statistics.kernels:
            kernel = statistics.kernels[seen.layer]
            kernel = kernel if rows is None else kernel[rows]
            kernel = kernel if columns is None else kernel[:, :, columns]
            energy["between"] = [
                between_energies(w, covariance, layer.taps, metric, conv.first_taps)
                for w, covariance, metric in zip(
                    kernel.chunk(len(inside)), inside, gradients, strict=True
                )
            ]
    samples = {"out": layer.outputs.samples, "in": layer.channels.samples}
    if conv.transposed:  # most of what its patches hold are zeros between and around the pixels
        samples["in"] = min(samples["in"], statistics.images * seen.positions_in)
    lost: dict[str, NDArray[np.float64]] = {}
    for side, groups in energy.items():
        own = (tails(torch.stack(groups).sum(0)) / 2).numpy()
        lost[side] = (
            beyond(own, optimism[side]) if side in optimism else unseen(own, samples.get(side))
        )
    return lost


def _optimism(seen: Seen, statistics: Statistics) -> dict[str, NDArray[np.float64]]:
    """How many times more one half of the images loses in the other's directions than all in their own.

    At each rank of the output and the input side of a layer at full width; without a side of more than
    `JUDGED` channels, and empty where one half did not reach the layer.
    """
    name, conv = seen.layer, seen.conv
    halves = [h for h in statistics.halves if name in h.layers]
    if conv is None or conv.depthwise or len(halves) < 2:
        return {}
    sides = {"out": [(h.layers[name].gradients, h.layers[name].outputs) for h in halves]}
    whole = {"out": (statistics.layers[name].gradients, statistics.layers[name].outputs)}
    if conv.taps > 1 and all(name in h.needs for h in halves):
        sides["in"] = [(h.needs[name], h.layers[name].channels) for h in halves]
        whole["in"] = (statistics.needs[name], statistics.layers[name].channels)
    found: dict[str, NDArray[np.float64]] = {}
    for side, parts in sides.items():
        (one, form), (other, other_form) = (
            (_own(moments.covariance, None), _own(form, None)) for form, moments in parts
        )
        if len(form[0]) > JUDGED:
            continue
        groups = list(zip(form, one, other_form, other, strict=True))
        judged = sum(
            tails_on_other(f, c, g, d) + tails_on_other(g, d, f, c) for f, c, g, d in groups
        )
        own = sum(
            tails(energies(root.T @ covariance @ root))
            for root, covariance in zip(
                map(factor, _own(whole[side][0], None)), _own(whole[side][1].covariance, None),
                strict=True,
            )
        )  # fmt: skip
        assert isinstance(judged, Tensor)
        assert isinstance(own, Tensor)
        ratio = (judged / own.clamp_min(NOTHING * float(own[0]))).clamp_min(1)
        found[side] = torch.where(own > NOTHING * own[0], ratio, 1.0).numpy()
    return found


def beyond(losses: NDArray[np.float64], optimism: NDArray[np.float64]) -> NDArray[np.float64]:
    """Losses at ranks 0, 1, … times what `optimism` is at the same part of its own ranks.

    At most all is lost, and at a higher rank never more than at a lower one.
    """
    at = np.linspace(0, len(optimism) - 1, len(losses))
    more = losses * np.interp(at, np.arange(len(optimism)), optimism)
    return np.maximum.accumulate(np.minimum(more, losses[0])[::-1])[::-1].copy()


def unseen(losses: NDArray[np.float64], samples: int | None) -> NDArray[np.float64]:
    """What is lost at ranks 0, 1, … on other samples than the n that the directions were found on.

    Directions fitted to few samples keep those and lose others: the loss is n² / (n − r)² times what
    it is on its own samples (generalized cross-validation; Craven & Wahba, "Smoothing noisy data with
    spline functions", 1979), at most all, and at a higher rank never more than at a lower one.
    """
    if not samples:
        return losses
    ranks = np.arange(len(losses))
    left = np.maximum(samples - ranks, 0) / samples
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.where(left > 0, losses / left**2, losses[0])
    found = np.minimum.accumulate(np.minimum(found, losses[0]))
    found[-1] = losses[-1]
    return found


def _own(matrix: Tensor, entries: list[int] | None) -> Tensor:
    """A matrix for each group (of dense layers there is one), of those entries that stay."""
    if entries is not None:
        matrix = matrix[entries][:, entries]
    return matrix if matrix.ndim == 3 else matrix[None]
