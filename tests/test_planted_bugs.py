"""Tests of the tests: each law catches a bug that is planted here, one at a time."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import test_allocation
import test_building
import test_conv
import test_factorize
import test_forms
import test_plan_files
import test_planning
import test_rewriting
import test_sampling
import test_statistics
import test_tree
import torch
from models import TRAPS, Tied, images
from planting import Bug, Patch, check_caught
from torch import Tensor, nn

import onebyone as obo
from onebyone import (
    allocation,
    building,
    plan_files,
    planning,
    plans,
    recorder,
    rewriting,
    sensing,
    statistics,
)
from onebyone.conv import ConvSpec
from onebyone.factorize import fit as fitting
from onebyone.factorize import least_squares
from onebyone.forms import FORMS, Form, Part

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")


# --- geometry, forms and their costs


def _layer(**options: Any) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return nn.Conv2d(6, 5, 3, **options).double(), torch.randn(2, 6, 11, 10).double()


def _cost_law(**options: Any) -> Callable[[], object]:
    return lambda: test_conv.check_cost(*_layer(**options))


def _form_cost_law(form: str, ranks: tuple[int, ...]) -> Callable[[], object]:
    def law() -> None:
        layer, x = _layer(stride=2, padding=1)
        test_forms.check_form_cost(form, layer, x, ranks)

    return law


def _chain_law(form: str, ranks: tuple[int, ...]) -> Callable[[], object]:
    conv = ConvSpec(6, 5, (3, 3), (2, 2), ((1, 1),) * 2, (2, 2))
    return lambda: test_forms.check_chain(form, conv, ranks)


def _kernel_law(form: str, ranks: tuple[int, ...], **options: Any) -> Callable[[], object]:
    def law() -> None:
        layer, x = _layer(**options)
        test_building.check_reconstruction(form, layer, x, ranks)

    return law


def _parts(form: str, change: Callable[[list[Part]], object]) -> Callable[[Patch], object]:
    """A form whose parts come out changed."""

    def plant(patch: Patch) -> None:
        row = FORMS[form]

        def parts(conv: ConvSpec, ranks: tuple[int, ...]) -> tuple[Part, ...]:
            made = list(row.parts(conv, ranks))
            change(made)
            return tuple(made)

        patch.setitem(FORMS, form, replace(row, parts=parts))

    return plant


def _set_conv(index: int, **changes: Any) -> Callable[[list[Part]], object]:
    def change(parts: list[Part]) -> None:
        parts[index] = replace(parts[index], conv=replace(parts[index].conv, **changes))

    return change


def _both(*changes: Callable[[list[Part]], object]) -> Callable[[list[Part]], object]:
    return lambda parts: [change(parts) for change in changes]


def _form_macs(change: Callable[..., tuple[Any, ...]]) -> Callable[[Patch], object]:
    right = Form.macs
    return lambda patch: patch.setattr(Form, "macs", lambda self, *a: right(self, *change(*a)))


def _geometry(**changes: Callable[[ConvSpec], Any]) -> Callable[[Patch], object]:
    """`ConvSpec.of` gives wrong fields."""
    right = ConvSpec.of

    def of(layer: nn.Module) -> ConvSpec:
        conv = right(layer)
        return replace(conv, **{k: change(conv) for k, change in changes.items()})

    return lambda patch: patch.setattr(ConvSpec, "of", staticmethod(of))


def _flipped(patch: Patch) -> None:
    right = building.as_weight
    patch.setattr(building, "as_weight", lambda layer, kernel: right(layer, kernel.flip(1)))


GEOMETRY = {
    "bias not counted": Bug(
        lambda p: p.setattr(
            ConvSpec, "params", property(lambda c: c.c_out * c.c_in // c.groups * c.taps)
        ),
        _cost_law(),
    ),
    "groups not counted": Bug(
        lambda p: p.setattr(ConvSpec, "macs", lambda c, n: n * c.c_out * c.c_in * c.taps),
        lambda: test_conv.check_cost(nn.Conv2d(6, 4, 3, groups=2), torch.randn(1, 6, 8, 8)),
    ),
    "taps not counted": Bug(
        lambda p: p.setattr(ConvSpec, "macs", lambda c, n: n * c.c_out * c.c_in),
        _cost_law(dilation=2),
    ),
    "dilation not in the output size": Bug(
        _geometry(dilation=lambda c: (1, 1)), _cost_law(dilation=2)
    ),
    "bias in the first part": Bug(
        _parts("channel", _both(_set_conv(0, bias=True), _set_conv(-1, bias=False))),
        _chain_law("channel", (3,)),
    ),
    "rank off by one in the parts": Bug(
        _parts("channel", _both(_set_conv(0, c_out=4), _set_conv(1, c_in=4))),
        _chain_law("channel", (3,)),
    ),
    "dilation forgotten": Bug(
        _parts("tucker2", _set_conv(1, dilation=(1, 1))), _chain_law("tucker2", (3, 4))
    ),
    "padding forgotten": Bug(
        _parts("squeeze", _set_conv(1, padding=((0, 0),) * 2)),
        _kernel_law("squeeze", (3,), padding=1),
    ),
    "stride on the wrong part": Bug(
        _parts("channel", _both(_set_conv(0, stride=(1, 1)), _set_conv(1, stride=(2, 2)))),
        _form_cost_law("channel", (3,)),
    ),
    "padding mode forgotten": Bug(
        _parts("channel", _set_conv(0, padding_mode="zeros")),
        _kernel_law("channel", (3,), padding=1, padding_mode="circular"),
    ),
    "taps in another order": Bug(_flipped, _kernel_law("squeeze", (3,))),
    "rank off by one in the cost": Bug(
        _form_macs(lambda conv, ranks, places: (conv, tuple(r + 1 for r in ranks), places)),
        _form_cost_law("tucker2", (3, 2)),
    ),
    "positions of the output counted at the input": Bug(
        _form_macs(lambda conv, ranks, p: (conv, ranks, replace(p, inside=p.outside))),
        _form_cost_law("squeeze", (3,)),
    ),
}  # fmt: skip


# --- sampled rows


def _rows_law(**options: Any) -> Callable[[], object]:
    return lambda: test_sampling.check_rows(*_layer(**options), 30)


SAMPLING = {
    "padding mode ignored in patches": Bug(
        _geometry(padding_mode=lambda c: "zeros"),
        _rows_law(padding=1, padding_mode="circular"),
    ),
    "lopsided padding on the other side": Bug(
        _geometry(padding=lambda c: tuple((b, a) for a, b in c.padding)),
        lambda: test_sampling.check_rows(
            nn.Conv2d(3, 2, 4, padding="same").double(), torch.randn(2, 3, 8, 8).double(), 64
        ),
    ),
    "stride ignored in patches": Bug(
        _geometry(stride=lambda c: tuple(max(1, s - 1) for s in c.stride)), _rows_law(stride=2)
    ),
    "rows that are views": Bug(
        lambda p: p.setattr(
            test_sampling, "output_rows", lambda conv, y, chosen: y.reshape(len(y), -1)
        ),
        lambda: test_sampling.check_rows_are_copies(
            nn.Conv2d(4, 8, 1), torch.randn(3, 4, 1, 1), 9
        ),
    ),
    "positions drawn twice": Bug(
        lambda p: p.setattr(
            test_sampling, "choose_positions",
            lambda items, n, wanted, g: torch.randint(0, n, (items, min(n, wanted)), generator=g),
        ),
        lambda: test_sampling.check_positions(3, 30, 20, 0),
    ),
}  # fmt: skip


# --- closed forms


def _low_rank(change: Callable[..., fitting.LowRank]) -> Callable[[Patch], object]:
    right = fitting.reduced_rank
    return lambda p: p.setattr(fitting, "reduced_rank", lambda *a: change(right, *a))


def _not_unwhitened(right: Any, slope: Tensor, root: Tensor, lower: Tensor, rank: int) -> Any:
    found = right(slope, root, lower, rank)
    return replace(found, expand=lower.T @ found.expand)


def _last_dropped(right: Any, *given: Any) -> fitting.LowRank:
    found = right(*given)
    return replace(found, expand=torch.cat([found.expand[:, :-1], 0 * found.expand[:, -1:]], 1))


def _wrong_first_basis(right: Any = fitting.squeeze_basis) -> Callable[..., Any]:
    def basis(weight: Tensor, channels: Tensor, *rest: Any) -> Any:
        return right(weight, channels, *rest) @ channels @ channels.T

    return basis


def _wrong_basis(right: Any = fitting.improve_basis) -> Callable[..., Any]:
    def basis(*given: Any) -> Any:
        return right(*given) @ given[-1] @ given[-1].T

    return basis


def _in_another_metric(right: Any = fitting.improve_basis) -> Callable[..., Any]:
    def basis(*given: Any) -> Any:
        *rest, metric, channels = given
        return right(*rest, torch.linalg.inv(metric).T, channels)

    return basis


def _fit(change: Callable[[Any], Any]) -> Callable[[Patch], object]:
    """Every regression's answer comes out changed."""
    right = least_squares.Regression.fit
    return lambda p: p.setattr(
        least_squares.Regression, "fit", lambda self, *a: change(self)(right(self, *a))
    )


def _regression(**changes: Callable[[Any], Any]) -> Callable[[Patch], object]:
    """Regressions are set up with other arguments (features, prior, ridge)."""
    right = least_squares.Regression.__init__

    def init(
        self: Any, features: Tensor, prior: Tensor, ridge: float, *rest: Any, **more: Any
    ) -> None:
        given = {"features": features, "prior": prior, "ridge": ridge}
        given |= {k: change(given[k]) for k, change in changes.items()}
        right(self, given["features"], given["prior"], given["ridge"], *rest, **more)

    return lambda p: p.setattr(least_squares.Regression, "__init__", init)


FACTORIZE = {
    "not un-whitened on the output side": Bug(
        _low_rank(_not_unwhitened), lambda: test_factorize.check_full_rank("channel", 0)
    ),
    "metric of the loss ignored": Bug(
        _low_rank(lambda right, b, c, lower, r: right(b, c, torch.eye(len(lower)).double(), r)),
        lambda: test_factorize.check_brute_force("channel", 0),
    ),
    "covariance of the inputs ignored": Bug(
        _low_rank(lambda right, b, c, lower, r: right(b, b.T, lower, r)),
        lambda: test_factorize.check_brute_force("channel", 0),
    ),
    "one rank less than asked": Bug(
        _low_rank(lambda right, b, c, lower, r: right(b, c, lower, max(1, r - 1))),
        lambda: test_factorize.check_family("channel", 0, 3),
    ),
    "smallest directions kept": Bug(
        _low_rank(lambda right, b, c, lower, r: right(b, torch.linalg.pinv(c).T, lower, r)),
        lambda: test_factorize.check_against_weight_svd("channel", 0),
    ),
    "not un-whitened on the input side": Bug(
        lambda p: p.setattr(fitting, "improve_basis", _wrong_basis()),
        lambda: test_factorize.check_brute_force("squeeze", 0),
    ),
    "first basis not un-whitened": Bug(
        lambda p: p.setattr(fitting, "squeeze_basis", _wrong_first_basis()),
        lambda: test_factorize.check_first_basis(0),
    ),
    "alternation in another metric": Bug(
        lambda p: p.setattr(fitting, "improve_basis", _in_another_metric()),
        lambda: test_factorize.check_alternation("tucker2", 1),
    ),
    "core not refitted": Bug(
        _fit(lambda self: lambda found: replace(found, slope=self.prior)),
        lambda: test_factorize.check_core_is_refitted(0),
    ),
    "mean output not kept": Bug(
        _fit(lambda self: lambda found: replace(found, feature_mean=0 * found.feature_mean)),
        lambda: test_factorize.check_mean_output("channel", 0),
    ),
    "prior dropped": Bug(
        _regression(prior=lambda prior: 0 * prior), lambda: test_factorize.check_silent_features(0)
    ),
    "prior dropped from the formula": Bug(
        _regression(prior=lambda prior: 0 * prior), lambda: test_factorize.check_ridge(0, 9, 12, 0.1)
    ),
    "ridge ignored": Bug(
        _regression(ridge=lambda ridge: ridge / 100), lambda: test_factorize.check_ridge(0, 40, 6, 1.0)
    ),
    "error that grows with the rank": Bug(
        _low_rank(lambda right, b, c, lower, r: right(b, c, lower, max(1, len(lower) - r))),
        lambda: test_factorize.check_monotone("channel", 0),
    ),
    "band ignored": Bug(
        lambda p: p.setattr(fitting, "relax", lambda targets, given, band: targets),
        lambda: test_factorize.check_band(0),
    ),
}  # fmt: skip


# --- allocation and plans

EQUAL = [allocation.Choices(np.asarray([0.0, 1.0, 3.0]), np.asarray([[9.0], [6.0], [2.0]]))] * 5


def _limits(factor: float) -> Callable[[Patch], object]:
    right = planning.allocate
    return lambda p: p.setattr(
        planning, "allocate", lambda c, limits: right(c, [factor * n for n in limits])
    )


def _budget_law() -> None:
    model, inputs = test_planning.wide()
    found = obo.observe(model, inputs)
    plan = obo.plan(model, found, plans.Budget(macs=0.5))
    lighter = obo.rewrite(model, plan, inputs, statistics=found)
    test_planning.check_budget_met(plan, lighter, inputs[:1])


def _reported_law(name: str) -> Callable[[], object]:
    def law() -> None:
        model, inputs = TRAPS[name].model(), TRAPS[name].images(8)
        found = obo.observe(model, inputs)
        plan = obo.plan(model, found, plans.Budget(macs=0.8))
        lighter = obo.rewrite(model, plan, inputs, statistics=found)
        test_planning.check_reported_cost(plan, model, lighter, inputs[:1])

    return law


def _predicted_law() -> None:
    torch.manual_seed(0)
    test_planning.check_predicted_error()


def _forgetful(patch: Patch) -> None:
    right = plan_files.plan_to_json

    def to_json(plan: plans.Plan) -> dict[str, Any]:
        return right(plan) | {"notes": []}

    patch.setattr(plan_files, "plan_to_json", to_json)


PLANNING = {
    "slack not spent": Bug(
        lambda p: p.setattr(allocation, "_spend", lambda *a: None),
        lambda: test_allocation.check_within_limits(EQUAL, 0.75),
    ),
    "limit not looked at": Bug(
        lambda p: p.setattr(test_allocation.allocation, "allocate", lambda c, n: [0] * len(c)),
        lambda: test_allocation.check_within_limits(EQUAL, 0.7),
    ),
    "all layers at their cheapest": Bug(
        lambda p: p.setattr(test_allocation.allocation, "allocate", lambda c, n: [2] * len(c)),
        lambda: test_allocation.check_near_the_best(EQUAL, 0.9),
    ),
    "budget of another total": Bug(_limits(1.1), _budget_law),
    "budget not used": Bug(_limits(0.8), _budget_law),
    "what is no layer not counted": Bug(
        lambda p: p.setattr(plans.Plan, "macs_after", property(
            lambda plan: sum(d.macs_after for d in plan.decisions)
        )),
        _reported_law("attention"),
    ),
    "a tied weight counted twice": Bug(
        lambda p: p.setattr(plans.Plan, "params_after", property(
            lambda plan: sum(d.params_after for d in plan.decisions)
        )),
        _reported_law("tied weights"),
    ),
    "error not for one image": Bug(
        lambda p: p.setattr(obo, "observe", lambda m, x: replace(statistics.observe(m, x), images=1)),
        _predicted_law,
    ),
    "notes not written": Bug(
        _forgetful, lambda: test_plan_files.check_survives_json(test_plan_files.example())
    ),
}  # fmt: skip


# --- passes over models


@contextmanager
def _taken(model: nn.Module) -> Iterator[None]:
    model.eval().requires_grad_(False)
    yield


def _kept_hooks(handles: list[Any]) -> Any:
    return nullcontext(handles)


def _observe_law() -> None:
    model = TRAPS["partly frozen"].model().train()
    test_tree.check_untouched(model, lambda m: statistics.observe(m, TRAPS["plain"].images(8)))


def _rewrite_law() -> None:
    model = TRAPS["plain"].model().train()
    test_tree.check_untouched(
        model, lambda m: test_rewriting.rewritten(m, TRAPS["plain"].images(8))
    )


def _refused_law() -> None:
    model, inputs = TRAPS["transposed"].model(), TRAPS["transposed"].images(8)
    plan = obo.plan(model, obo.observe(model, inputs), plans.Budget(macs=0.8))
    test_rewriting.check_refused_layers(plan, model, rewriting.rewrite(model, plan, inputs))


def _rounding(patch: Patch) -> None:
    right = rewriting.deep_copy
    patch.setattr(rewriting, "deep_copy", lambda m: right(m).bfloat16().float())


def _first_name_only(model: nn.Module, new: dict[str, nn.Module]) -> nn.Module:
    for name, module in new.items():
        model.set_submodule(name, module)
    return model


def _most_likely(patch: Patch) -> None:
    def direction(output: Tensor, generator: torch.Generator, images: int) -> Tensor:
        p = (output.double() / sensing.TEMPERATURE).softmax(1)
        return p - nn.functional.one_hot(p.argmax(1), p.shape[1])

    patch.setattr(sensing, "direction", direction)


PASSES = {
    "modes not given back": Bug(
        lambda p: p.setattr(statistics, "evaluating", _taken), _observe_law
    ),
    "requires_grad not given back": Bug(
        lambda p: p.setattr(statistics, "frozen", _taken), _observe_law
    ),
    "hooks left on": Bug(lambda p: p.setattr(statistics, "hooked", _kept_hooks), _observe_law),
    "random state used up": Bug(
        lambda p: p.setattr(statistics, "random_state", lambda seed: nullcontext(
            torch.manual_seed(seed)
        )),
        _observe_law,
    ),
    "the model itself rewritten": Bug(
        lambda p: p.setattr(rewriting, "deep_copy", lambda model: model), _rewrite_law
    ),
    "moments of few images taken as they are": Bug(
        lambda p: p.setattr(statistics, "shrinkage_of_halves", lambda *_: 0.0),
        test_statistics.test_gradients_of_few_images_leave_no_direction_out,
    ),
    "the seed ignored": Bug(
        lambda p: p.setattr(statistics, "hash", lambda _: random.getrandbits(60), raising=False),
        test_rewriting.check_deterministic,
    ),
    "refused layers rounded": Bug(_rounding, _refused_law),
    "replaced under one name only": Bug(
        lambda p: p.setattr(test_tree, "replace_modules", _first_name_only),
        lambda: test_tree.check_replaced_everywhere(Tied(), "a"),
    ),
    "kept layers not refitted": Bug(
        lambda p: p.setattr(rewriting, "_unchanged", lambda *a: True),
        lambda: test_rewriting.check_refit_of_kept_layers(bias=True),
    ),
    "low rank made lower": Bug(
        _low_rank(_last_dropped), test_rewriting.check_low_rank_network,
    ),
    "output side not un-whitened in a network": Bug(
        _low_rank(_not_unwhitened), lambda: test_rewriting.check_full_rank_network("channel")
    ),
    "covariance not centered": Bug(
        lambda p: p.setattr(recorder.Moments, "covariance", property(
            lambda m: m.products / m.samples + m.mean[:, None] * m.mean
        )),
        lambda: test_statistics.check_moments(test_statistics.tiny(), images(20, 3, 5, 5)),
    ),
    "labels not drawn": Bug(
        _most_likely,
        lambda: test_statistics.check_fisher(test_statistics.tiny(), images(3000, 3, 5, 5)),
    ),
}  # fmt: skip

BUGS = GEOMETRY | SAMPLING | FACTORIZE | PLANNING | PASSES


@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_is_caught(name: str, monkeypatch: Patch) -> None:
    check_caught(BUGS[name], monkeypatch)
