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
_POOLED = (
    "(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width, "
    "int sampling_ratio, bool aligned) -> Tensor"
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
        extension._has_ops = _has


def _zeros(
    input: Tensor, weight: Tensor, offset: Tensor, mask: Tensor, bias: Tensor, *geometry: int
) -> Tensor:
    return input.new_zeros(input.shape[0], weight.shape[0], *offset.shape[2:])


def allow_detection() -> None:
    """Give `nms` and `roi_align` kernels where torchvision has none, so that detectors run."""
    from torchvision.ops import boxes

    if _KEPT and "nms" not in _GIVEN:
        pooling: Any = sys.modules["torchvision.ops.roi_align"]
        _KEPT[0].impl("nms", _suppressed, "CPU")
        _KEPT[0].define("roi_align" + _POOLED)
        # Its own pure PyTorch form, without the compilation of it that costs more than it saves here.
        _KEPT[0].impl("roi_align", pooling._roi_align.__wrapped__, "CompositeImplicitAutograd")
        boxes._assert_has_ops = pooling._assert_has_ops = _there
        pooling._has_ops = _has
        _GIVEN.add("nms")


def _there() -> None:
    """TorchScript compiles it, so it is no lambda."""


def _has() -> bool:
    return True


def _suppressed(dets: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """The boxes that overlap no better one by more than the threshold, from the best score down."""
    from torchvision.ops import box_iou

    left = scores.argsort(descending=True, stable=True)
    kept: list[Tensor] = []
    while len(left):
        kept.append(left[:1])
        near = box_iou(dets[left[:1]], dets[left])[0] > iou_threshold
        near[0] = True  # a box without area does not overlap itself
        left = left[~near]
    return torch.cat(kept) if kept else left
