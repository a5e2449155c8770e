"""torchvision beside a torch that it was not built for: declare the operators that it registers for.

Users with a matching pair need nothing. Without compiled operators torchvision cannot be imported,
while the networks that use none of them run.
"""

from __future__ import annotations

import importlib.util

import torch

_KEPT: list[torch.library.Library] = []


def declare() -> None:
    """Declare `nms` and `qnms` where torchvision is installed and they are missing."""
    if importlib.util.find_spec("torchvision") and not hasattr(torch.ops.torchvision, "nms"):
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _KEPT.append(library)
