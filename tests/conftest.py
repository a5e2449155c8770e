"""Set-up for all tests."""

import os
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path

import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

os.environ["HF_HUB_OFFLINE"] = "1"
# Last, so that no benchmark hides a package of the same name.
sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
# The shapes in the signatures of the pure mathematics hold at every call, in tests only.
install_import_hook(("onebyone.factorize", "onebyone.sampling"), "beartype.beartype")
settings.register_profile("laws", deadline=None, derandomize=True, database=None, max_examples=60)
settings.load_profile("laws")


@pytest.fixture(scope="session", autouse=True)
def torchvision_operators() -> None:
    """Declare torchvision's compiled operators where it stands beside a torch without them.

    It cannot be imported there otherwise; the models that need no such operator work.
    """
    import operators

    operators.declare()


@pytest.fixture(scope="session", autouse=True)
def signatures_once() -> None:
    """onnxscript parses the source of all its operators at every export; here once is enough."""
    with suppress(ImportError, AttributeError):
        from onnxscript import values

        traced = values.TracedOnnxFunction
        traced.function_ir = property(cache(traced.function_ir.fget))
