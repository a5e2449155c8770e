"""onebyone: make convolutional networks light with 1×1 convolutions."""

from __future__ import annotations

import importlib
import random
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onebyone import blocks
    from onebyone.benching import Bench, bench
    from onebyone.comparing import compare
    from onebyone.comparison import Comparison, Variant
    from onebyone.data import Images, open_images
    from onebyone.deepening.deepening import Deepened, deepen
    from onebyone.diffing import Difference, diff
    from onebyone.errors import OneByOneError
    from onebyone.explaining.explaining import Explanation, explain
    from onebyone.exporting.export import Export, export
    from onebyone.loading import Loaded, load
    from onebyone.measurement.measuring import Measurement, measure
    from onebyone.plan_files import read_plan, write_plan
    from onebyone.planning import plan
    from onebyone.plans import Budget, Decision, Plan
    from onebyone.preprocessing import Preprocess
    from onebyone.recovery.fine_tuning import FineTuned, fine_tune
    from onebyone.recovery.recipe import Recipe
    from onebyone.rewriting import rewrite
    from onebyone.slimming import Slimmed, slim
    from onebyone.statistics import Statistics, observe
    from onebyone.verification import Verification, verify

_HOMES = {
    "Bench": "benching",
    "Budget": "plans",
    "Comparison": "comparison",
    "Decision": "plans",
    "Deepened": "deepening.deepening",
    "Difference": "diffing",
    "FineTuned": "recovery.fine_tuning",
    "Export": "exporting.export",
    "Explanation": "explaining.explaining",
    "Images": "data",
    "Loaded": "loading",
    "Measurement": "measurement.measuring",
    "OneByOneError": "errors",
    "Plan": "plans",
    "Preprocess": "preprocessing",
    "Recipe": "recovery.recipe",
    "Slimmed": "slimming",
    "Statistics": "statistics",
    "Variant": "comparison",
    "Verification": "verification",
    "bench": "benching",
    "blocks": "blocks",
    "compare": "comparing",
    "deepen": "deepening.deepening",
    "diff": "diffing",
    "fine_tune": "recovery.fine_tuning",
    "export": "exporting.export",
    "explain": "explaining.explaining",
    "load": "loading",
    "measure": "measurement.measuring",
    "observe": "statistics",
    "open_images": "data",
    "plan": "planning",
    "read_plan": "plan_files",
    "rewrite": "rewriting",
    "slim": "slimming",
    "verify": "verification",
    "write_plan": "plan_files",
}

__version__ = "0.1.0"
__all__ = [
    "Bench",
    "Budget",
    "Comparison",
    "Decision",
    "Deepened",
    "Difference",
    "Explanation",
    "Export",
    "FineTuned",
    "Images",
    "Loaded",
    "Measurement",
    "OneByOneError",
    "Plan",
    "Preprocess",
    "Recipe",
    "Slimmed",
    "Statistics",
    "Variant",
    "Verification",
    "bench",
    "blocks",
    "compare",
    "deepen",
    "diff",
    "explain",
    "export",
    "fine_tune",
    "load",
    "measure",
    "observe",
    "open_images",
    "plan",
    "read_plan",
    "rewrite",
    "slim",
    "verify",
    "write_plan",
]


def __getattr__(name: str) -> Any:
    """Public names come from their modules when first asked for, so that the import is instant."""
    if name not in _HOMES:
        raise AttributeError(f"module 'onebyone' has no attribute {name!r}")
    drawn = random.getstate()
    module = importlib.import_module(f"onebyone.{_HOMES[name]}")
    random.setstate(drawn)  # rich draws from them when it is imported
    value = module if name == _HOMES[name] else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
