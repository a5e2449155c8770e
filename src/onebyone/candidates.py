"""What each layer can become at what predicted error, and how narrow hidden spaces can be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from onebyone.allocation import Choices
from onebyone.conv import ConvSpec
from onebyone.factorize.metric import energies, factor, tails
from onebyone.factorize.squeeze import input_energy
from onebyone.forms import FORMS
from onebyone.narrowing.spaces import Narrowing, kept_entries, narrowed
from onebyone.narrowing.widths import Hidden, Options, choose_widths, costs_of
from onebyone.statistics import LayerStatistics, Moments, Statistics
from onebyone.surveying import Seen

COSTS = ("macs", "params")


@dataclass(frozen=True)
class Candidate:
    """One form of a layer."""

    form: str
    ranks: tuple[int, ...]


@dataclass(frozen=True)
class Evidence:
    """A layer as it will be: its geometry, its kernel and what it saw, without channels that go."""

    conv: ConvSpec
    kernel: Tensor
    seen: LayerStatistics


def layer_evidence(
    seen: Seen, weight: Tensor, statistics: LayerStatistics, narrowings: Sequence[Narrowing]
) -> Evidence:
    """The layer after the narrowings."""
    conv = seen.conv
    assert conv is not None
    if conv.groups != 1:
        return Evidence(narrowed(seen.layer, conv, narrowings), weight, statistics)
    kernel = weight.reshape(conv.c_out, conv.c_in, conv.taps).transpose(1, 2)
    rows = kept_entries(seen.layer, 0, conv.c_out, narrowings)
    columns = kept_entries(seen.layer, 1, conv.c_in, narrowings)
    if rows is not None:
        kernel = kernel[rows]
        statistics = replace(
            statistics, outputs=_part(statistics.outputs, rows),
            gradients=statistics.gradients[rows][:, rows],
        )  # fmt: skip
    if columns is not None:
        kernel = kernel[:, :, columns]
        if conv.taps > 1:
            statistics = replace(statistics, channels=_part(statistics.channels, columns))
    return Evidence(narrowed(seen.layer, conv, narrowings), kernel, statistics)


def _part(moments: Moments, kept: list[int]) -> Moments:
    return Moments(moments.samples, moments.total[kept], moments.products[kept][:, kept])


def candidates(
    layer: Evidence, inside: int, outside: int, images: int
) -> tuple[list[Candidate], Choices]:
    """Keep, and every form and rank that is cheaper than keep in MACs or parameters."""
    conv = layer.conv
    losses_in, losses_out = _tails(layer, images) if conv.groups == 1 else (np.zeros(0),) * 2
    found = [Candidate("keep", ())]
    rows = [(0.0, conv.macs(outside), conv.params)]
    for name, form in FORMS.items():
        if not form.ranks or form.refuse(conv) is not None:
            continue
        sides = [
            (losses_in, conv.c_in) if side == "in" else (losses_out, conv.c_out)
            for side in form.ranks
        ]
        for ranks in np.ndindex(*(len(steps(size)) for _, size in sides)):
            chosen = tuple(steps(size)[i] for i, (_, size) in zip(ranks, sides, strict=True))
            error = sum(float(loss[r]) for r, (loss, _) in zip(chosen, sides, strict=True))
            macs = form.macs(conv, chosen, inside, outside)
            params = form.params(conv, chosen)
            if macs <= rows[0][1] and params <= rows[0][2] and (macs, params) != rows[0][1:]:
                found.append(Candidate(name, chosen))
                rows.append((error, macs, params))
    table = np.asarray(rows, dtype=np.float64)
    return found, Choices(table[:, 0], table[:, 1:])


def steps(size: int) -> list[int]:
    """Ranks or widths to try for so many channels: multiples of 8 in big layers, finer in small ones."""
    step = 8 if size >= 64 else max(1, size // 8)
    return list(range(step, size, step)) or [1]


def _tails(layer: Evidence, images: int) -> tuple[np.ndarray, np.ndarray]:
    """Predicted loss for each rank of the input and of the output side, in nats per image."""
    seen = layer.seen
    metric = factor(seen.gradients / images)
    outside = energies(metric.T @ seen.outputs.covariance @ metric)
    if layer.conv.taps == 1:  # no form of a pointwise layer cuts its input side
        return np.zeros(0), (tails(outside) / 2).numpy()
    taps = seen.taps / seen.taps.diagonal().mean().clamp_min(1e-30)
    channels = factor(seen.channels.covariance)
    inside = energies(input_energy(layer.kernel.cpu(), channels, taps, metric))
    return (tails(inside) / 2).numpy(), (tails(outside) / 2).numpy()


def narrowed_spaces(
    statistics: Statistics,
    layers: Sequence[tuple[Seen, Sequence[Candidate], np.ndarray]],
    budget: Mapping[str, float],
) -> tuple[Narrowing, ...]:
    """The hidden spaces that are to be narrower under the fractions of the budget, and how much.

    layers: every layer that can change with its candidates at full width and their errors.
    """
    known = {seen.layer for seen, _, _ in layers}
    spaces = [
        s for s in statistics.spaces
        if s.name in statistics.orders and known.issuperset((*s.writers, *s.readers, *s.through))
    ]  # fmt: skip
    if not spaces:
        return ()
    columns = [COSTS.index(name) for name in budget]
    survey = statistics.survey
    options, fixed = [], np.asarray((survey.macs, survey.params), dtype=np.float64)
    for seen, found, errors in layers:
        assert seen.conv is not None
        forms = [(c.form, c.ranks) for c in found]
        costs = costs_of(seen.conv, forms, seen.positions_in, seen.positions_out)
        options.append(Options(seen.layer, seen.conv, errors, costs[:, :, columns]))
        fixed -= (seen.conv.macs(seen.positions_out), seen.conv.params)
    hidden = []
    for space in spaces:
        each = np.asarray((0, space.params_each), dtype=np.float64)
        fixed -= space.channels * each
        errors = statistics.orders[space.name].errors.numpy() / statistics.images
        widths = (*steps(space.channels), space.channels) if space.channels > 1 else (1,)
        hidden.append(Hidden(space, errors, widths, each[columns]))
    whole = np.asarray((survey.macs, survey.params), dtype=np.float64)
    limits = np.asarray(
        [f * whole[c] - fixed[c] for f, c in zip(budget.values(), columns, strict=True)]
    )
    widths = choose_widths(options, hidden, limits)
    return tuple(
        Narrowing(
            h.space.name, width, tuple(statistics.orders[h.space.name].channels.tolist()),
            h.space.cuts, h.space.params_each, float(h.errors[width]),
        )
        for h, width in zip(hidden, widths, strict=True)
        if width < h.space.channels
    )  # fmt: skip
