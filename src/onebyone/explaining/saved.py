"""A folder that `slim` wrote, as the last screen shows it: before and after, as far as it is there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from onebyone.errors import DataError, OneByOneError
from onebyone.explaining.insight import Insight, same_image
from onebyone.files import PLAN, REPORT, REPORT_JSON
from onebyone.plan_files import read_plan
from onebyone.plans import Plan
from onebyone.report.json import read_report
from onebyone.verification import Verification


@dataclass(frozen=True)
class Saved:
    """What became of a network; `original` gives it, or raises an error of ours where it is gone."""

    verification: Verification
    plan: Plan
    original: Callable[[], nn.Module]
    classes: tuple[str, ...] | None = None

    def look(self, lighter: nn.Module, image: Tensor) -> tuple[Insight, tuple[str, ...]]:
        """The image through both networks, and notes on what the folder has no more.

        Plans at other budgets and spectra take the images that it was slimmed with; they stay in the
        folder's own report.
        """
        notes = [f"the plans at other budgets and the spectra are in the folder's own {REPORT}"]
        both = None
        try:
            both = same_image(self.original(), lighter, self.plan, image, self.classes)
        except OneByOneError as error:
            notes.append(f"the photo is not shown through both networks: {error}")
        return Insight((self.plan,), (), both), tuple(notes)


def read_saved(
    folder: Path, original: Callable[[], nn.Module], classes: tuple[str, ...] | None = None
) -> Saved:
    """The folder's plan and its report; DataError or PlanError where they are missing or damaged."""
    plan = read_plan(folder / PLAN)
    if plan.reference is not None or plan.insertions:
        raise DataError(f"{folder} holds a deepened network, whose report.html is of another kind")
    return Saved(read_report(folder / REPORT_JSON, plan), plan, original, classes)
