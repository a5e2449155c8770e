"""The networks that `coverage.py` goes through: those of torchvision, and the CNNs of timm by family."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

import torch
from operators import allow_detection
from torch import Tensor, nn

import onebyone as obo
from onebyone.running import first_output
from onebyone.tree import hooked

CLASSIFICATION, SEGMENTATION, DETECTION, VIDEO = (
    f"torchvision {task}" for task in ("classification", "segmentation", "detection", "video")
)
TIMM = "timm"
GROUPS = (SEGMENTATION, VIDEO, DETECTION, CLASSIFICATION, TIMM)
SIZES = (32, 64, 96, 128)  # pixels of a square input that are tried before the network's own
CLIPS = ((4, 32), (8, 64), (16, 112), (16, 224))  # frames, pixels
NOISE, MOVED = 1e-6, 1e-4
# Families that are convolutional networks whose 1×1 convolutions are written as linear layers.
LINEAR = ("convnext", "mambaout", "metaformer")
SCORES = ("cls_logits", "cls_score", "classification_head.module_list")  # layers of class scores
# What weighs channels or branches, or pools at the end.
GATES = (
    "SplitAttn", "SelectiveKernelAttn", "BatNonLocalAttn", "BilinearAttnTransform",
    "AttentionPool2d",
)  # fmt: skip


@dataclass(frozen=True)
class Network:
    """One network: `name` as `obo.load` takes it; `family` is the file of timm that defines it."""

    name: str
    group: str
    family: str
    params: int = 0


def torchvision_networks() -> list[Network]:
    """All of torchvision but quantized networks, optical flow and the transformers for video."""
    from torchvision import models

    places = {
        CLASSIFICATION: models, SEGMENTATION: models.segmentation, DETECTION: models.detection,
        VIDEO: models.video,
    }  # fmt: skip
    return [
        Network(f"torchvision:{name}", group, name)
        for group, module in places.items()
        for name in models.list_models(module=module)
        if not name.startswith(("mvit", "swin3d"))
    ]


def timm_networks() -> list[Network]:
    """timm's convolutional networks (`convolutional`), with family and number of parameters.

    They are built without memory for their weights, which takes a few minutes for all of them.
    """
    import timm

    found = []
    for name in timm.list_models():
        family = timm.models._registry._model_to_module[name]
        try:
            with torch.device("meta"):
                model = timm.create_model(name)
        except (RuntimeError, NotImplementedError):  # it computes with weights while it is built
            model = timm.create_model(name)
        if convolutional(model, family):
            params = sum(p.numel() for p in model.parameters())
            found.append(Network(f"timm:{name}", TIMM, family, params))
    return found


def convolutional(model: nn.Module, family: str) -> bool:
    """Whether it has no attention between positions, and convolutions hold half of its weights.

    Those of the classifier do not count.
    """
    kinds = {type(m).__name__ for m in model.modules()}.difference(GATES)
    if any("Attention" in k or "Attn" in k for k in kinds):
        return False
    convs, linears = (
        sum(
            p.numel()
            for m in model.modules()
            if isinstance(m, kind)
            for p in m.parameters(recurse=False)
        )
        for kind in (nn.modules.conv._ConvNd, nn.Linear)
    )
    head = getattr(model, "head_hidden_size", getattr(model, "num_features", 0))
    return family in LINEAR or convs >= linears - head * getattr(model, "num_classes", 0)


def families_first(networks: Iterable[Network]) -> list[Network]:
    """The smallest of each family, then the others, each part from the smallest."""
    order = sorted(networks, key=lambda n: n.params)
    seen: set[str] = set()
    first = [n for n in order if not (n.family in seen or seen.add(n.family))]
    return [*first, *(n for n in order if n not in first)]


def smallest(network: Network) -> obo.Loaded:
    """The network with random weights and the smallest input that it takes, or its own.

    One that rounding decides does not count: filter response normalization, on a map of one pixel, gives
    its sign.
    """
    shapes: list[tuple[int, ...]] = [(3, size, size) for size in SIZES]
    if network.group == VIDEO:
        shapes = [(3, frames, size, size) for frames, size in CLIPS]
    for shape in shapes:
        loaded = load(network, shape)
        try:
            found = network.group == DETECTION or steady(loaded.model, loaded.example)
        except (AssertionError, RuntimeError, ValueError, IndexError, ZeroDivisionError):
            continue
        if found:
            return loaded
    return load(network, None)


@torch.no_grad()
def steady(model: nn.Module, example: Tensor) -> bool:
    """Whether noise of `NOISE` of each pixel moves the output by no more than `MOVED` of its largest."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(4, *example.shape[1:], generator=generator)
    noisy = images * (1 + NOISE * torch.randn(images.shape, generator=generator))
    one, other = (first_output(model(x)) for x in (images, noisy))
    return float((one - other).abs().max()) <= MOVED * float(one.abs().max())


def load(network: Network, shape: tuple[int, ...] | None) -> obo.Loaded:
    """Random weights; a detector resizes images to 96 pixels where it takes any size."""
    loaded = obo.load(network.name, weights="random", input_size=shape)
    if network.group == DETECTION:
        allow_detection()
        transform: Any = loaded.model.transform
        if transform.fixed_size is None:
            transform.min_size, transform.max_size = (96,), 128
        enliven(loaded.model, loaded.example)
    return loaded


@torch.no_grad()
def enliven(model: nn.Module, example: Tensor) -> None:
    """Give BatchNorm the statistics of drawn images, and class scores a spread of 1.

    As they are drawn, weights make a detector's features vanish and all its scores ties, so that there
    is nothing to find and nothing to compare.
    """
    images = torch.randn(2, *example.shape[1:], generator=torch.Generator().manual_seed(0))
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    kept = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    model(images)
    for norm, momentum in zip(norms, kept, strict=True):
        norm.eval()
        norm.momentum = momentum
    spreads: dict[nn.Module, float] = {}

    def watch(layer: nn.Module, _: object, scores: Tensor) -> None:
        spreads.setdefault(layer, float(scores.std()))

    heads = [
        m for name, m in model.named_modules()
        if any(words in name for words in SCORES) and getattr(m, "bias", None) is not None
    ]  # fmt: skip
    with hooked([m.register_forward_hook(watch) for m in heads]):
        model(images[:1])
    for layer, spread in spreads.items():
        if spread > 0:
            cast(Tensor, layer.weight).div_(spread)
