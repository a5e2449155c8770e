"""A lighter network → the original's architecture again, each form's layers merged into one."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from onebyone.building import fill, skeleton
from onebyone.conv import ConvSpec
from onebyone.errors import PlanError
from onebyone.factorize.factors import Factors
from onebyone.forms import FORMS
from onebyone.planning import Plan
from onebyone.tree import deep_copy, modules_by_name, replace_modules


def merged(lighter: nn.Module, plan: Plan) -> nn.Module:
    """A copy with one layer for each that the plan split: the same function, at the original's cost.

    There is nothing between the parts of a form, so their product is one kernel; the layer gets a
    bias where its form has one. So what training found between two steps of slimming is carried into
    the next plan, which is made for the original's layers again.
    Raises PlanError for a network that the plan did not make, and for a plan that narrows layers, whose
    channels are gone for good.
    """
    if plan.narrowings:
        raise PlanError(
            "a network whose layers were narrowed cannot be merged: make the plan with narrow=False"
        )
    copy = deep_copy(lighter)
    modules = modules_by_name(copy)
    new: dict[str, nn.Module] = {}
    for decision in plan.decisions:
        if decision.refused or decision.form == "keep" or decision.conv is None:
            continue
        block = modules.get(decision.layer)
        parts = FORMS[decision.form].parts(decision.conv, decision.ranks)
        layers = list(block.children()) if block is not None else []
        if [ConvSpec.of(m) for m in layers] != [p.conv for p in parts]:
            raise PlanError(
                f"the plan's layer {decision.layer!r} is not as planned in this network"
            )
        new[decision.layer] = _merged(layers, [p.name for p in parts], decision.conv)
    return replace_modules(copy, new)


def _merged(layers: list[nn.Module], names: list[str], conv: ConvSpec) -> nn.Module:
    """One layer of the original's geometry with the product of the parts' kernels."""
    weights = {name: _kernel(layer) for name, layer in zip(names, layers, strict=True)}
    middle = "conv" if "conv" in weights else "reduce"
    core = weights[middle]
    if middle == "conv" and "reduce" in weights:
        core = core @ weights["reduce"][:, 0]
    if "expand" in weights:
        core = torch.einsum("or,rtc->otc", weights["expand"][:, 0], core)
    bias: Tensor = layers[-1].bias.detach()  # type: ignore[union-attr]
    like = layers[names.index(middle)]
    made = skeleton(_shape(like, conv), "keep", ())
    return fill(made, "keep", Factors(core, bias.double()))


def _kernel(layer: nn.Module) -> Tensor:
    """(c_out, taps, c_in) in float64."""
    weight: Tensor = layer.weight.detach()  # type: ignore[assignment]
    return weight.double().reshape(weight.shape[0], weight.shape[1], -1).transpose(1, 2)


def _shape(like: nn.Module, conv: ConvSpec) -> nn.Module:
    """A layer with this geometry, on the device and in the type of another; weights are not set."""
    weight: Tensor = like.weight  # type: ignore[assignment]
    options = {"bias": True, "device": weight.device, "dtype": weight.dtype}
    if not conv.kernel:
        made: nn.Module = nn.utils.skip_init(nn.Linear, conv.c_in, conv.c_out, **options)
    else:
        kind = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[len(conv.kernel)]
        made = nn.utils.skip_init(
            kind, conv.c_in, conv.c_out, conv.kernel, stride=conv.stride,
            padding=like.padding, dilation=conv.dilation, padding_mode=conv.padding_mode, **options,
        )  # fmt: skip
    return made.train(like.training).requires_grad_(weight.requires_grad)
