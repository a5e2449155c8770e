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
        _KEPT[0].impl("roi_align", _pooled, "CompositeImplicitAutograd")
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


def _pooled(
    maps: Tensor, boxes: Tensor, scale: float, high: int, wide: int, samples: int, aligned: bool
) -> Tensor:
    """The mean of so many samples a side in each of high×wide bins of every box, as two matrix products.

    Boxes are rows of image, left, top, right, bottom. torchvision's own form in PyTorch gathers the four
    neighbours of every sample, which takes thirty times as long on the small maps here.
    """
    if samples <= 0:
        raise NotImplementedError("roi_align takes a fixed number of samples here")
    left, top, right, bottom = (boxes[:, 1:] * scale - 0.5 * aligned).detach().unbind(1)
    rows = _sampled(top, bottom, high, samples, maps.shape[2], aligned)
    columns = _sampled(left, right, wide, samples, maps.shape[3], aligned)
    pooled = maps.new_zeros(len(boxes), maps.shape[1], high, wide)
    for index, image in enumerate(maps):
        own = (boxes[:, 0] == index).nonzero()[:, 0]
        found = torch.einsum("kph,chw,kqw->kcpq", rows[own], image, columns[own])
        pooled = pooled.index_copy(0, own, found)
    return pooled


def _sampled(
    start: Tensor, end: Tensor, bins: int, samples: int, size: int, aligned: bool
) -> Tensor:
    """What each of `size` pixels weighs in each bin between two ends, for every box: (K, bins, size)."""
    length = end - start if aligned else (end - start).clamp_min(1)
    steps = (torch.arange(bins * samples).to(start) + 0.5) / (bins * samples)
    at = start[:, None] + steps * length[:, None]
    inside = (at >= -1) & (at <= size)
    away = (at.clamp(0, size - 1)[..., None] - torch.arange(size).to(start)).abs()
    weights = (1 - away).clamp_min(0) * inside[..., None]
    return weights.unflatten(1, (bins, samples)).mean(2)
