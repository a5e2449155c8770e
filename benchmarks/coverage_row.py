"""One network through `slim`, with everything that `coverage.py` checks of it → its row."""

from __future__ import annotations

import json
import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from importlib.metadata import version
from math import inf
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from coverage_checks import check, check_equal, check_plan, digest
from coverage_networks import DETECTION, Network, smallest
from coverage_page import LOWEST, MET, REFUSED, Row
from torch import Tensor, nn

import onebyone as obo
from onebyone import slimming
from onebyone.errors import BudgetError, OneByOneError
from onebyone.exporting.checking import LIMITS
from onebyone.exporting.checking import check as check_outputs
from onebyone.exporting.tracing import is_detector
from onebyone.files import ONNX, PLAN
from onebyone.forms import FORMS
from onebyone.plans import Decision, Plan
from onebyone.running import call, first_output
from onebyone.searching import Trial
from onebyone.tree import deep_copy, tensors_in

MOST_IMAGES, LEAST_IMAGES = 8, 4  # a quarter of them is held out
WORK = 2e10  # MACs of one pass over the images, where fewer than the most then do
FULL_RANK = 1e-3  # of the largest output: what rounding may change


def one(network: Network, macs: float, params: float) -> Row:
    """The row of one network; what the product refuses with a message of its own is no failure."""
    try:
        return cover(network, macs, params)
    except OneByOneError as error:
        if type(error) is BudgetError:
            raise
        return Row(
            network.name, network.group, network.family, REFUSED, {"macs": macs, "params": params},
            why=str(error), day=date.today().isoformat(), versions=versions(),
        )  # fmt: skip


def cover(network: Network, macs: float, params: float) -> Row:
    """Slim one network and check the result; AssertionError or the error of `slim` where it fails."""
    began = time.perf_counter()
    loaded, by_data = smallest(network), network.group == DETECTION
    model, before, shape = loaded.model, digest(loaded.model), loaded.example.shape[1:]
    whole = obo.measure(model, loaded.example).macs
    count = int(max(LEAST_IMAGES, min(MOST_IMAGES, WORK // max(whole, 1))))
    images = torch.randn(count, *shape, generator=torch.Generator().manual_seed(0))
    trials: list[Trial] = []
    with patch.object(slimming, "Trial", lambda *given: trials.append(Trial(*given)) or trials[-1]):
        slimmed, asked, outcome = lowest(lambda budget: slim(loaded, images, budget), "macs", macs)
    plan, trial = slimmed.plan, trials[-1]
    check(loaded, slimmed, images, asked * plan.macs_before, by_data=by_data)
    onnx = saved(loaded, slimmed, images)
    by_params = lowest(lambda budget: fitted(loaded, trial, images, budget), "params", params)
    gap = full_rank(loaded, plan, trial, images)
    assert digest(model) == before, "the original was changed"
    forms = Counter(d.form if d.form in ("keep", "refuse") else "changed" for d in plan.decisions)
    return Row(
        network.name, network.group, network.family, outcome, {"macs": macs, "params": params},
        "×".join(map(str, shape)), count, whole, asked, plan.macs_after / plan.macs_before,
        plan.params_after / plan.params_before, forms["changed"], forms["keep"], forms["refuse"],
        dict(Counter(general(d) for d in plan.decisions if d.reason).most_common()), held(plan),
        by_params[2], by_params[1], onnx, gap, seconds=time.perf_counter() - began,
        day=date.today().isoformat(), versions=versions(),
    )  # fmt: skip


def lowest(attempt: Callable[[float], Any], name: str, budget: float) -> tuple[Any, float, str]:
    """What comes out at the budget, or at the lowest one that is named; the budget, and which it was."""
    try:
        return attempt(budget), budget, MET
    except BudgetError as error:
        message = str(error)
    named = re.search(rf"lowest .* {name}=(\d\.\d+)", message)
    assert named is not None, f"the message names no lowest budget: {message}"
    return attempt(float(named[1])), float(named[1]), LOWEST


def slim(loaded: obo.Loaded, images: Tensor, macs: float) -> obo.Slimmed:
    """The whole of it, at a budget of MACs."""
    return obo.slim(
        loaded.model, images, macs=macs, held_out=len(images) // 4, latency=False,
        source=loaded.source,
    )  # fmt: skip


def fitted(loaded: obo.Loaded, trial: Trial, images: Tensor, params: float) -> Plan:
    """A budget of parameters planned on what slim has seen, and the result checked."""
    plan = trial.planned(obo.Budget(params=params))
    assert plan.params_after <= params * plan.params_before, "parameters are above the budget"
    check_plan(loaded.model, trial.rewritten(plan), plan, images)
    return plan


def saved(loaded: obo.Loaded, slimmed: obo.Slimmed, images: Tensor) -> str:
    """Why there is no ONNX file, empty where there is one; the folder gives bit-equal outputs."""
    with tempfile.TemporaryDirectory() as around, torch.no_grad():
        folder = slimmed.save(Path(around, "out"))
        again = obo.load(folder, architecture=loaded.model).model
        message = "outputs differ from those of the network that was saved"
        check_equal(again(images), slimmed.model(images), message)
        if (folder / ONNX).is_file():
            return ""
        notes = json.loads((folder / PLAN).read_text(encoding="utf-8"))["notes"]
    return next(
        (n for n in notes if n.startswith("no ") and ONNX in n), "no file, and no note on it"
    )


def full_rank(loaded: obo.Loaded, plan: Plan, trial: Trial, images: Tensor) -> float | None:
    """How far the network in forms of full rank is from the original, of its largest output.

    None where that cannot be told, as the original itself is as far from one with rounded weights: with
    random weights the scores by which a detector orders its boxes are nearly equal.
    """
    decisions = []
    for decision in plan.decisions:
        conv, form, ranks = decision.conv, decision.form, ()
        if conv is not None and not decision.refused:
            form = "keep" if conv.groups != 1 else "pointwise" if conv.pointwise else "tucker2"
            ranks = FORMS[form].full(conv)
        decisions.append(replace(decision, form=form, ranks=ranks, reason="", shape=None))
    lighter = trial.rewritten(replace(plan, decisions=tuple(decisions), narrowings=()))
    gap = far(loaded.model, lighter, images)
    if gap > FULL_RANK and far(loaded.model, rounded(loaded.model), images) > FULL_RANK:
        return None
    assert gap <= FULL_RANK, f"at full rank outputs differ by {gap:.1e} of the largest"
    return gap


def far(model: nn.Module, other: nn.Module, images: Tensor) -> float:
    """The largest difference of two networks' first outputs, of the largest output; inf for shapes.

    Of detectors that of what both find, in any order; inf where one finds what the other does not.
    """
    if is_detector(model):
        found = check_outputs(
            model, lambda part: list(tensors_in(call(other, *part))), (images,),
            limit=LIMITS["float32"], any_batch=False, drawn=True,
        )  # fmt: skip
        return found.error if found.failure is None else inf
    with torch.no_grad():
        one, two = (first_output(m(images)) for m in (model, other))
    if one.shape != two.shape:
        return inf
    if not one.numel():
        return 0.0
    return float((one - two).abs().max() / one.abs().max().clamp_min(1e-30))


def rounded(model: nn.Module) -> nn.Module:
    """A copy whose weights are off by what float32 rounds away."""
    copy, generator = deep_copy(model), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in copy.parameters():
            noise = torch.randn(weight.shape, generator=generator)
            weight.mul_(1 + torch.finfo(torch.float32).eps * noise)
    return copy


def general(decision: Decision) -> str:
    """Why a layer stays as it is, without what is particular to it."""
    reason = re.sub(r" \(\d+ groups\)", "", decision.reason)
    return re.sub(r"(tied to that of) .*", r"\1 another layer", reason)


def held(plan: Plan) -> dict[str, float]:
    """The share of the original's MACs that stays whatever the budget, by reason; greatest first."""
    shares = Counter[str]()
    for decision in plan.decisions:
        if decision.refused or decision.reason.startswith("no form"):
            shares[general(decision)] += decision.macs_before
    shares["products in no layer's own forward, such as attention's"] += plan.other_macs
    return {r: n / max(plan.macs_before, 1) for r, n in shares.most_common() if n}


def versions() -> dict[str, str]:
    """Of what the networks come from."""
    return {name: version(name) for name in ("torch", "torchvision", "timm")}
