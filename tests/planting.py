"""Planting bugs: what each file of planted bugs does with its table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch

Patch = pytest.MonkeyPatch


@dataclass(frozen=True)
class Bug:
    """What is made wrong, and the law that must fail for it and hold without it."""

    plant: Callable[[Patch], object]
    law: Callable[[], object]


def check_caught(bug: Bug, patch: Patch, *more: type[Exception]) -> None:
    """The law holds, and fails with the bug: by an assertion, or by one of `more`."""
    with torch.random.fork_rng(devices=[]):
        bug.law()
        bug.plant(patch)
        with pytest.raises((AssertionError, *more)):
            bug.law()
