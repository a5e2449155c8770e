"""torchvision beside a torch that it was not built for: declare the operators that it registers for.

Users with a matching pair need nothing. Without compiled operators torchvision cannot be imported,
while the networks that use none of them run.
"""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor

_BOXES = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_DEFORMABLE = (
    "(Tensor input, Tensor weight, Tensor offset, Tensor mask, Tensor bias, "
    "int stride_h, int stride_w, int pad_h, int pad_w, int dilation_h, int dilation_w, "
    "int groups, int offset_groups, bool use_mask) -> Tensor"
)
_KEPT: list[torch.library.Library] = []


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
