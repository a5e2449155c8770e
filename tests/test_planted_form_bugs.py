"""Tests of the tests of kernels in two halves and of grouped forms: each law catches a planted bug."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import test_forms
import test_grouped
import test_spatial
import torch
from planting import Bug, Patch, check_caught
from torch import Tensor, nn

from onebyone import building, losses, merging, rewriting, surveying
from onebyone.conv import ConvSpec
from onebyone.factorize import grouped
from onebyone.forms import FORMS, Part

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")


def _taps_after_channels(patch: Patch) -> None:
    right = building.as_weight

    def wrong(layer: nn.Module, kernel: Tensor) -> Tensor:
        shape: tuple[int, ...] = layer.weight.shape  # type: ignore[assignment]
        return kernel.reshape(shape) if shape[2:] == (3, 1) else right(layer, kernel)

    patch.setattr(building, "as_weight", wrong)


def _channels_before_taps(patch: Patch) -> None:
    def wrong(values: Tensor, first: int) -> Tensor:
        n, taps, c_in = values.shape
        split = values.reshape(n, taps // first, first, c_in)
        return split.reshape(n, taps // first, first * c_in)

    patch.setattr(test_spatial, "along_first", wrong)


def _parts(change: Callable[[Part], Part]) -> Callable[[Patch], object]:
    """The first half changed."""

    def plant(patch: Patch) -> None:
        row = FORMS["spatial"]

        def parts(conv: ConvSpec, ranks: tuple[int, ...]) -> tuple[Part, ...]:
            first, second = row.parts(conv, ranks)
            return change(first), second

        patch.setitem(FORMS, "spatial", replace(row, parts=parts))

    return plant


def _no_padding(part: Part) -> Part:
    return replace(part, conv=replace(part.conv, padding=((0, 0),) * len(part.conv.kernel)))


def _one_metric_for_all(patch: Patch) -> None:
    right = grouped.fit

    def wrong(weight: Tensor, patches: Tensor, targets: Tensor, metric: Tensor, *more: object):
        return right(weight, patches, targets, torch.eye(len(metric)).double(), *more)  # type: ignore[arg-type]

    patch.setattr(grouped, "fit", wrong)


def _groups_shifted(patch: Patch) -> None:
    right = rewriting.fit_each_group

    def wrong(weight: Tensor, patches: Tensor, *more: object):
        return right(weight, patches.roll(1, 2), *more)  # type: ignore[arg-type]

    patch.setattr(rewriting, "fit_each_group", wrong)


def _halves_swapped(patch: Patch) -> None:
    right = merging._product
    patch.setattr(
        merging, "_product",
        lambda a, b, groups: right(a, b, groups).unflatten(1, (3, -1)).transpose(1, 2).flatten(1, 2),
    )  # fmt: skip


def _strided() -> None:
    layer, x = nn.Conv2d(8, 8, 3, stride=2, padding=1), torch.randn(1, 8, 12, 12)
    test_forms.check_form_cost("spatial", layer, x, (4,))


BUGS: dict[str, Bug] = {
    "taps of the first half are mixed up with channels": Bug(
        _taps_after_channels, lambda: test_spatial.check_recovered("3×3")
    ),
    "the other axis is taken for the first": Bug(
        _channels_before_taps, test_spatial.test_taps_of_the_first_axis_become_channels
    ),
    "the first half is not padded": Bug(
        _parts(_no_padding), lambda: test_forms.check_chain(
            "spatial", ConvSpec.of(nn.Conv2d(6, 5, 3, padding=1)), (4,))
    ),
    "the first half is counted at the output": Bug(
        _parts(lambda part: replace(part, grid="outside")), _strided
    ),
    "the grid between is not recorded": Bug(
        lambda patch: patch.setattr(surveying, "_between", lambda conv, x, y: 0), _strided
    ),
    "what is lost is that of one group alone": Bug(
        lambda patch: patch.setattr(
            losses, "tails", lambda v, right=losses.tails: right(v.flip(0))
        ),
        lambda: test_spatial.check_predicted("grouped"),
    ),
    "taps are not weighed": Bug(
        lambda patch: patch.setattr(
            test_spatial, "between_energies",
            lambda form, c, taps, out, right=test_spatial.between_energies:
                right(form, c, torch.eye(len(taps)).double(), out),
        ),
        lambda: test_spatial.check_spectrum(3, 3, 4, 5),
    ),
    "groups read their neighbors' channels": Bug(
        _groups_shifted, lambda: test_grouped.check_family("squeeze", (2,))
    ),
    "the loss's metric is left out of groups": Bug(
        _one_metric_for_all, lambda: test_grouped.check_thin_groups(0)
    ),
    "merging swaps the axes": Bug(_halves_swapped, lambda: test_spatial.check_merged("dilated")),
}  # fmt: skip


@pytest.mark.parametrize("name", BUGS)
def test_the_law_holds_and_fails_with_the_bug(name: str, monkeypatch: Patch) -> None:
    check_caught(BUGS[name], monkeypatch)
