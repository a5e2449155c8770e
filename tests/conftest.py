"""Set-up for all tests."""

import importlib.util
import os
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings
from jaxtyping import install_import_hook

os.environ["HF_HUB_OFFLINE"] = "1"
# The shapes in the signatures of the pure mathematics hold at every call, in tests only.
install_import_hook(("onebyone.factorize", "onebyone.sampling"), "beartype.beartype")
settings.register_profile("laws", deadline=None, derandomize=True, database=None, max_examples=60)
settings.load_profile("laws")


@pytest.fixture(scope="session", autouse=True)
def torchvision_operators() -> Iterator[None]:
    """Declare torchvision's compiled operators where it stands beside a torch without them.

    It cannot be imported there otherwise; the models that need no such operator work.
    """
    library = None
    if importlib.util.find_spec("torchvision") and not hasattr(torch.ops.torchvision, "nms"):
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    yield
    del library
