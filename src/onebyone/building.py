"""Factors → plain PyTorch layers in the form that the plan names."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from onebyone.conv import ConvSpec, as_weight, bear_geometry, layer_for
from onebyone.factorize.factors import Factors
from onebyone.forms import FORMS, KEPT


def skeleton(layer: nn.Module, form: str, ranks: tuple[int, ...]) -> nn.Module:
    """The layers of a form around a given layer's geometry, with unset weights.

    Device, dtype, training mode, `requires_grad` and memory format are those of `layer`; `keep` and
    `narrow` give a layer of the same class and shape.
    """
    conv = ConvSpec.of(layer)
    parts = FORMS[form].parts(conv, ranks)
    made = [(part.name, plain_layer(layer, part.conv)) for part in parts]
    if form in KEPT:
        return made[0][1]
    block = nn.Sequential()
    for name, module in made:
        block.add_module(name, module)
    block.training = layer.training
    bear_geometry(block, layer)
    return block


def plain_layer(layer: nn.Module, conv: ConvSpec) -> nn.Module:
    """One plain layer with unset weights, all else but its geometry that of `layer`.

    Padding is spelled as the original spells it ("same", which may be lopsided, stays "same").
    """
    weight: Tensor = layer.weight  # type: ignore[assignment]
    same = getattr(layer, "padding", None) == "same"
    made = layer_for(conv, same=same, dtype=weight.dtype, device="meta")
    made.to_empty(device=weight.device)
    made.train(layer.training)
    made.requires_grad_(weight.requires_grad)
    if weight.ndim == 4 and _channels_last(weight):
        made.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return made


def _channels_last(weight: Tensor) -> bool:
    last = torch.channels_last
    # 1×1 kernels are contiguous in both formats: their strides tell.
    return weight.is_contiguous(memory_format=last) and weight.stride(3) > 1


def fill(block: nn.Module, form: str, factors: Factors) -> nn.Module:
    """Put factors into a skeleton, in place; values too small for the dtype's normal range become 0."""
    parts = [block] if form in KEPT else list(block.children())
    kernels: list[Tensor] = [factors.core]
    if factors.reduce is not None:
        first = ConvSpec.of(parts[0])
        inside = first.c_in // first.groups
        kernels.insert(0, factors.reduce.reshape(len(factors.reduce), -1, inside))  # taps first
    if factors.expand is not None:
        kernels.append(factors.expand[:, None])
    with torch.no_grad():
        for part, kernel in zip(parts, kernels, strict=True):
            _set(part.weight, as_weight(part, kernel))  # type: ignore[arg-type]
        if parts[-1].bias is not None:
            _set(parts[-1].bias, factors.bias)  # type: ignore[arg-type]
    return block


def _set(parameter: Tensor, values: Tensor) -> None:
    values = values.reshape(parameter.shape).to(parameter.dtype)
    tiny = torch.finfo(parameter.dtype).tiny
    parameter.copy_(torch.where(values.abs() < tiny, torch.zeros_like(values), values))
