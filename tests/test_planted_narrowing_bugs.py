"""Tests of the tests: each law of narrowing and of grouped layers catches a planted bug."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import test_grouped
import test_narrowing
import torch
from models import images
from planting import Bug, Patch, check_caught
from torch import Tensor, nn

import onebyone as obo
from onebyone import candidates, planning, rewriting
from onebyone.conv import ConvSpec
from onebyone.errors import OneByOneError
from onebyone.factorize import grouped, selection
from onebyone.narrowing import cutting, finding, following, ordering, spaces, tying
from onebyone.plans import Budget


def _observed() -> tuple[nn.Module, Tensor, obo.Statistics]:
    model, inputs = test_narrowing.settled(test_narrowing.Mobile()), images(96, 4, 8, 8)
    return model, inputs, obo.observe(model, inputs)


def _cost_law(budget: Budget) -> Callable[[], object]:
    return lambda: test_narrowing.check_cost(
        test_narrowing.settled(test_narrowing.Mobile()), images(48, 4, 8, 8), budget
    )


def _no_trial(patch: Patch) -> None:
    patch.setattr(finding, "_proven", lambda *a: True)


def _nothing_joined(patch: Patch) -> None:
    """Only one of the branches that a sum or a product joins is cut."""
    patch.setattr(tying.Spaces, "join", lambda *a: False)


def _first_kept(patch: Patch) -> None:
    """The channels that are needed least stay."""
    right = ordering.needed_order

    def order(readings: Any) -> selection.Order:
        found = right(readings)
        return replace(found, channels=found.channels.flip(0))

    patch.setattr(ordering, "needed_order", order)


def _not_refitted(patch: Patch) -> None:
    """Channels go by their energy alone, as if no other could stand in for them."""
    right = selection.needed_order

    def order(readings: Any) -> selection.Order:
        alone = [replace(r, covariance=r.covariance.diagonal().diag()) for r in readings]
        return right(alone)

    patch.setattr(selection, "needed_order", order)


def _targets_of_all(patch: Patch) -> None:
    """Targets are taken from the first channels, not from those that stay."""
    right = rewriting.kept_entries

    def kept(layer: str, axis: int, size: int, narrowings: Any) -> list[int] | None:
        found = right(layer, axis, size, narrowings)
        return found if found is None else list(range(len(found)))

    patch.setattr(rewriting, "kept_entries", kept)


def _norm_forgotten(patch: Patch) -> None:
    patch.setattr(planning.Narrowing, "params_saved", property(lambda n: 0))


def _through_forgotten(patch: Patch) -> None:
    """Depthwise layers are counted as wide as they were."""
    right = candidates.narrowed

    def narrowed(layer: str, conv: ConvSpec, narrowings: Any) -> ConvSpec:
        return conv if conv.groups != 1 else right(layer, conv, narrowings)

    patch.setattr(candidates, "narrowed", narrowed)


def _starts_forgotten(patch: Patch) -> None:
    right = spaces.Cut.entries
    patch.setattr(spaces.Cut, "entries", lambda c, channels: right(replace(c, start=0), channels))


def _cut_in_place(patch: Patch) -> None:
    """The tensors themselves are cut, which a copy may share with the original."""
    right = cutting._cut

    def cut(module: nn.Module, where: spaces.Cut, dropped: set[int]) -> None:
        before = (module._parameters.get(where.name), module._buffers.get(where.name))
        right(module, where, dropped)
        after = (module._parameters.get(where.name), module._buffers.get(where.name))
        for old, new in zip(before, after, strict=True):
            if old is not None and new is not None:
                old.data = new.data

    patch.setattr(cutting, "_cut", cut)


def _error_not_for_one_image(patch: Patch) -> None:
    right = obo.observe
    patch.setattr(test_narrowing.obo, "observe", lambda m, x: replace(right(m, x), images=1))


def _untouched_law() -> None:
    model, inputs, statistics = _observed()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    obo.rewrite(model, obo.plan(model, statistics, Budget(macs=0.4)), inputs)
    for name, value in model.state_dict().items():
        assert value.shape == before[name].shape
        assert torch.equal(value, before[name])


def _groups_mixed(patch: Patch) -> None:
    right = grouped.group_features

    def features(patches: Tensor, groups: int) -> Tensor:
        return right(patches, groups).roll(1, 0)

    patch.setattr(grouped, "group_features", features)


BUGS = {
    "branches not joined": Bug(_nothing_joined, test_narrowing.check_spaces_of_mobile),
    "no trial": Bug(
        _no_trial, lambda: test_narrowing.check_refused("a number of channels in the code")
    ),
    "unknown operators let through": Bug(
        lambda p: p.setattr(following.Follower, "_lost", lambda *a: None),
        lambda: test_narrowing.check_refused("a softmax over channels"),
    ),
    "outputs let through": Bug(
        lambda p: p.setattr(following.Follower, "result", lambda self, output: [*self.spaces.roots()]),
        lambda: test_narrowing.check_refused("an output"),
    ),
    "needed channels go": Bug(
        _first_kept, lambda: test_narrowing.check_error_falls_with_width(_observed())
    ),
    "refit not foreseen": Bug(_not_refitted, lambda: test_narrowing.check_order(5, 3)),
    "targets of other channels": Bug(
        _targets_of_all, lambda: test_narrowing.check_error_falls_with_width(_observed())
    ),
    "normalisation not counted": Bug(_norm_forgotten, _cost_law(Budget(params=0.5))),
    "depthwise layers not counted": Bug(_through_forgotten, _cost_law(Budget(macs=0.5))),
    "places of a second branch forgotten": Bug(_starts_forgotten, test_narrowing.check_branches),
    "the original cut too": Bug(_cut_in_place, _untouched_law),
    "error not for one image": Bug(
        _error_not_for_one_image, test_narrowing.check_predicted
    ),
    "groups mixed up": Bug(_groups_mixed, lambda: test_grouped.check_each_group(4, 8, 12, 0)),
    "ridge of groups towards zero": Bug(
        lambda p: p.setattr(
            test_grouped, "fit_groups",
            lambda w, *a, **k: grouped.fit_groups(0 * w, *a, **k),
        ),
        lambda: test_grouped.check_silent_groups(0),
    ),
    "mean of groups not kept": Bug(
        lambda p: p.setattr(
            test_grouped, "fit_groups",
            lambda *a, **k: replace(
                grouped.fit_groups(*a, **k), bias=0 * grouped.fit_groups(*a, **k).bias
            ),
        ),
        lambda: test_grouped.check_each_group(4, 8, 12, 0),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_is_caught(name: str, monkeypatch: Patch) -> None:
    check_caught(BUGS[name], monkeypatch, OneByOneError)
