"""onebyone: make convolutional networks light with 1×1 convolutions."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onebyone import blocks
    from onebyone.comparing import Comparison, Variant, compare
    from onebyone.data import Images, open_images
    from onebyone.diffing import Difference, diff
    from onebyone.errors import OneByOneError
    from onebyone.explaining.explaining import Explanation, explain
    from onebyone.loading import Loaded, load
    from onebyone.measurement.measuring import Measurement, measure
    from onebyone.plan_files import read_plan, write_plan
    from onebyone.planning import Budget, Decision, Plan, plan
    from onebyone.preprocessing import Preprocess
    from onebyone.rewriting import rewrite
    from onebyone.slimming import Slimmed, slim
    from onebyone.statistics import Statistics, observe
    from onebyone.verification import Verification, verify

_HOMES = {
    "Budget": "planning",
    "Comparison": "comparing",
    "Decision": "planning",
    "Difference": "diffing",
    "Explanation": "explaining.explaining",
    "Images": "data",
    "Loaded": "loading",
    "Measurement": "measurement.measuring",
    "OneByOneError": "errors",
    "Plan": "planning",
    "Preprocess": "preprocessing",
    "Slimmed": "slimming",
    "Statistics": "statistics",
    "Variant": "comparing",
    "Verification": "verification",
    "blocks": "blocks",
    "compare": "comparing",
    "diff": "diffing",
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
    "Budget",
    "Comparison",
    "Decision",
    "Difference",
    "Explanation",
    "Images",
    "Loaded",
    "Measurement",
    "OneByOneError",
    "Plan",
    "Preprocess",
    "Slimmed",
    "Statistics",
    "Variant",
    "Verification",
    "blocks",
    "compare",
    "diff",
    "explain",
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
    module = importlib.import_module(f"onebyone.{_HOMES[name]}")
    value = module if name == _HOMES[name] else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
