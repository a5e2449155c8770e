"""Tests of the tests of exports and paces: each law catches a bug that is planted here, one at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import test_exporting
import test_pacing
import torch
from planting import Bug, Patch, check_caught
from torch import nn

from onebyone.exporting import checking, folding
from onebyone.pacing import interpolating, sites


def _law(name: str) -> Callable[[], object]:
    return lambda: test_exporting.test_folding_keeps_the_outputs(name)


def _any_layer(norm: Any, names: Any) -> bool:
    return norm.args[0].target in folding.LAYERS


def _nearest(points: Any, at: Any) -> Any:
    known = np.asarray(sorted(points))
    values = np.stack([np.broadcast_to(points[r], at.shape) for r in known.tolist()])
    return values[abs(known[:, None] - at).argmin(0), np.arange(len(at))]


def _plain_steps(milliseconds: Any) -> int:
    return 8


BUGS: dict[str, Bug] = {
    "the bias forgotten when a normalization is folded": Bug(
        lambda p: p.setattr(
            folding, "_set",
            lambda program, name, value: program.state_dict.update(
                {name: nn.Parameter(0 * value if value.ndim == 1 else value)}
            ),
        ),
        _law("2d, with and without bias"),
    ),
    "weights folded that other layers read": Bug(
        lambda p: p.setattr(folding, "_foldable", _any_layer),
        _law("read twice"),
    ),
    "folded into what is no layer before it": Bug(
        lambda p: p.setattr(folding, "LAYERS", (*folding.LAYERS, torch.ops.aten.conv_transpose2d.input)),
        _law("transposed"),
    ),
    "ties counted as other classes": Bug(
        lambda p: p.setattr(checking, "TIE", 0.0),
        lambda: test_exporting.test_the_check_measures_the_largest_difference_and_the_classes(True),
    ),
    "the first image alone is checked": Bug(
        lambda p: p.setattr(
            checking, "_parts", lambda inputs, any_batch: [tuple(x[:1] for x in inputs)]
        ),
        lambda: test_exporting.test_the_check_measures_the_largest_difference_and_the_classes(True),
    ),
    "NaN taken as equal": Bug(
        lambda p: p.setattr(checking.Check, "failure", None),
        test_exporting.test_nan_fails_the_check,
    ),
    "every runtime likes steps of 8": Bug(
        lambda p: p.setattr(test_pacing, "step_of", _plain_steps),
        lambda: test_pacing.TestSteps().test_the_step_is_found(4),
    ),
    "between ranks the nearest one's time": Bug(
        lambda p: p.setattr(interpolating, "_line", _nearest),
        lambda: test_pacing.TestSteps().test_two_ranks(),
    ),
    "what a layer is summed with left out": Bug(
        lambda p: p.setattr(sites.Site, "summed", False),
        test_pacing.test_what_stands_around_a_layer,
    ),
    "what is fused with a layer is not seen": Bug(
        lambda p: p.setattr(sites, "_surroundings", lambda program: {}),
        lambda: test_pacing.TestSites().test_sizes_and_what_is_fused(),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_is_caught(name: str, monkeypatch: Patch) -> None:
    check_caught(BUGS[name], monkeypatch, RuntimeError)
