"""Which hidden spaces to narrow under a budget, and how much: a few proposals."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from onebyone.candidates import Table
from onebyone.errors import listed, said_of
from onebyone.narrowing.spaces import OUTPUT, Narrowing
from onebyone.narrowing.widths import Floats, Hidden, Options, choose_widths
from onebyone.statistics import Statistics

COSTS = ("macs", "params", "latency")
LOOSER = (1.1, 1.0)  # times the budget: forms bring wider layers within it too
ROUGHLY = (1.03,)  # the same, where one has to do
AS_TIMES = (1.6, 1.3, 1.1, 0.95, 0.8, 0.65, 0.5)  # as that, where times go with the MACs of a form
RANKS = 8  # on each side of a layer that widths are weighed against


def narrowed_ways(
    statistics: Statistics,
    tables: Sequence[Table],
    budget: Mapping[str, float],
    looser: Sequence[float],
    paces: Mapping[str, Floats] | None = None,
) -> Iterator[tuple[Narrowing, ...]]:
    """Widths for the fractions of a budget and for looser ones, the tightest last.

    tables: every layer that can change, at full width. paces: for a budget of latency, which is that
    of these layers here, the nanoseconds that each of their candidates takes at full width; with
    fewer channels it takes as many fewer as it has fewer MACs.
    """
    known = {t.seen.layer for t in tables}
    spaces = [
        s for s in statistics.spaces
        if s.name in statistics.orders and known.issuperset((*s.writers, *s.readers, *s.through))
    ]  # fmt: skip
    if not spaces:
        return
    columns = [COSTS.index(name) for name in budget]
    survey = statistics.survey
    whole = np.asarray((survey.macs, survey.params, 0), dtype=np.float64)
    options, fixed = [], whole.copy()
    for table in tables:
        own = table.choices.costs
        times = own[:, 0] if paces is None else paces[table.seen.layer]
        whole[2] += times[0]
        fixed[:2] -= own[0]
        each_mac = times / np.maximum(own[:, 0], 1)
        costs = np.concatenate(
            [table.coefficients, table.coefficients[:, :, :1] * each_mac[:, None, None]], 2
        )
        thin = [i for i in table.coarse(RANKS) if np.isfinite(times[i])]
        options.append(
            Options(table.seen.layer, table.conv, table.errors[thin], costs[thin][:, :, columns])
        )
    hidden = []
    for space in spaces:
        each = np.asarray((0, space.params_each, 0), dtype=np.float64)
        fixed -= space.channels * each
        errors = statistics.orders[space.name].errors.numpy() / statistics.images
        hidden.append(Hidden(space, errors, widths_of(space.channels), each[columns]))
    for times in looser:
        limits = [
            times * f * whole[c] - fixed[c] for f, c in zip(budget.values(), columns, strict=True)
        ]
        widths = choose_widths(options, hidden, np.asarray(limits))
        yield tuple(
            Narrowing(
                h.space.name, width, tuple(statistics.orders[h.space.name].channels.tolist()),
                h.space.cuts, h.space.params_each, float(h.errors[width]),
            )
            for h, width in zip(hidden, widths, strict=True)
            if width < h.space.channels
        )  # fmt: skip


def widths_kept(statistics: Statistics) -> tuple[str, ...]:
    """Why channels between layers stay as many as they are, each reason once with its layers."""
    found: dict[str, dict[str, None]] = {}  # a layer that runs several times has several spaces
    for space in statistics.spaces:
        if space.refusal is not None and space.refusal != OUTPUT:
            found.setdefault(space.refusal, {})[space.name] = None
    return tuple(
        f"the width stays behind {listed([*names])}: {said_of([*names], reason)}"
        for reason, names in found.items()
    )


def widened(
    narrowings: Sequence[Narrowing], layer: str, statistics: Statistics
) -> tuple[Narrowing, ...]:
    """The same with one of them a step wider; at full width it is none any more."""
    errors = statistics.orders[layer].errors / statistics.images
    changed = []
    for narrowing in narrowings:
        if narrowing.layer == layer:
            width = next(w for w in widths_of(narrowing.channels) if w > narrowing.width)
            narrowing = replace(narrowing, width=width, error=float(errors[width]))
        changed.append(narrowing)
    return tuple(n for n in changed if n.width < n.channels)


def widths_of(size: int) -> tuple[int, ...]:
    """Widths to try, the full one last: twice as fine as ranks in small spaces."""
    step = 8 if size >= 64 else max(1, size // 16)
    return (*range(step, size, step), size)
