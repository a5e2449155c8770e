"""A folder that onebyone wrote, and the network that it was made from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from onebyone.cli.showing import note

if TYPE_CHECKING:
    from onebyone.plans import Plan


def original_of(
    folder: Path,
    given: str | None,
    weights: str | None,
    trust: bool,
    *,
    first: bool = False,
    option: str | None = "--original",
) -> tuple[Plan, str, str | None]:
    """The folder's plan, and the spec and weights of its original.

    Of a network that was made in several steps that is the one before the last; `first`: the one
    before the first, as it always is for a deepened network, whose budget is a part of that. `option`
    is what the command calls `given`, None where it does not take it; where that is the network that the
    plan names, its weights are those of the plan unless others are given. Raises ModelError for a folder
    that is not ours, and where the original is not known or naming it would run code that nobody trusted.
    """
    from onebyone.errors import ModelError
    from onebyone.files import PLAN
    from onebyone.loading.factories import find_again, is_factory
    from onebyone.loading.slimmed import check_ours, is_slimmed, root_source
    from onebyone.plan_files import read_plan

    if not is_slimmed(folder):
        check_ours(folder)
        raise ModelError(
            f"{folder} is no folder that onebyone wrote: give one that onebyone slim -o wrote"
        )
    plan = read_plan(folder / PLAN)
    source = root_source(plan.source) if first or plan.reference else plan.source or {}
    if given is not None:
        known = source.get("weights")
        if given == source.get("spec"):
            if is_factory(given):
                find_again(source)
            return plan, given, weights or known
        if known and not weights:
            note(
                f"{given} is taken with the weights that it comes with; the plan's original had {known}"
            )
        return plan, given, weights
    if not source:
        raise ModelError(
            f"{folder} does not say which network it was"
            + (f": give {option} MODEL" if option else "")
        )
    spec = str(source["spec"])
    if is_factory(spec) and not trust:
        raise ModelError(
            f"the plan in {folder} names {spec} as the original, and calling that runs code: give "
            + (f"{option} {spec} if that is yours" if option else "--trust if you trust the folder")
        )
    if is_factory(spec):
        find_again(source)
    return plan, spec, weights or source.get("weights")
