"""torchvision beside a torch that it was not built for: declare the operators that it registers for.

Users with a matching pair need nothing. Without compiled operators torchvision cannot be imported,
while the networks that use none of them run.
"""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

import torch
from torch import Tensor

_BOXES = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_DEFORMABLE = (
    "(Tensor input, Tensor weight, Tensor offset, Tensor mask, Tensor bias, "
    "int stride_h, int stride_w, int pad_h, int pad_w, int dilation_h, int dilation_w, "
    "int groups, int offset_groups, bool use_mask) -> Tensor"
)
_KEPT: list[torch.library.Library] = []
_GIVEN: set[str] = set()


def declare() -> None:
    """Declare `nms`, `qnms` and `deform_conv2d` where torchvision stands without its operators.

    The first two have no kernel. The deformable convolution returns zeros of the right shape, on the
    CPU and on meta tensors: enough to count it.
    """
    if importlib.util.find_spec("torchvision") and not hasattr(torch.ops.torchvision, "nms"):
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(name + _BOXES)
        library.define("deform_conv2d" + _DEFORMABLE)
        for device in ("CPU", "Meta"):
            library.impl("deform_conv2d", _zeros, device)
        _KEPT.append(library)


def allow_deformable() -> None:
    """Let torchvision call the `deform_conv2d` declared here: it asks for compiled operators first."""
    from torchvision import extension

    if _KEPT:
        extension._has_ops = lambda: True


def _zeros(
    input: Tensor, weight: Tensor, offset: Tensor, mask: Tensor, bias: Tensor, *geometry: int
) -> Tensor:
    return input.new_zeros(input.shape[0], weight.shape[0], *offset.shape[2:])


def allow_detection() -> None:
    """Give `nms` a kernel where torchvision has none of its own, so that detectors run."""
    from torchvision.ops import boxes

    if _KEPT and "nms" not in _GIVEN:
        _KEPT[0].impl("nms", _suppressed, "CPU")
        boxes._assert_has_ops = lambda: None
        pooling: Any = sys.modules["torchvision.ops.roi_align"]
        # Its own pure PyTorch form, without the compilation of it that costs more than it saves here.
        pooling._roi_align = pooling._roi_align.__wrapped__
        _GIVEN.add("nms")


def _suppressed(dets: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """The boxes that overlap no better one by more than the threshold, from the best score down."""
    from torchvision.ops import box_iou

    order = scores.argsort(descending=True, stable=True)
    near = (box_iou(dets[order], dets[order]) > iou_threshold).tolist()
    kept: list[int] = []
    gone = [False] * len(order)
    for i, row in enumerate(near):
        if not gone[i]:
            kept.append(i)
            gone = [a or b for a, b in zip(gone, row, strict=True)]
    return order[torch.tensor(kept, dtype=torch.long)] if kept else order
