"""A lighter network → the original's architecture again, each form's layers merged into one."""

from __future__ import annotations

from dataclasses import replace
from functools import reduce

import torch
from jaxtyping import Float
from torch import Tensor, nn

from onebyone.building import fill, plain_layer
from onebyone.conv import ConvSpec, kernel_of
from onebyone.errors import PlanError
from onebyone.factorize.factors import Factors
from onebyone.forms import FORMS
from onebyone.plans import Plan
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
        new[decision.layer] = _merged(layers, decision.conv)
    return replace_modules(copy, new)


def _merged(layers: list[nn.Module], conv: ConvSpec) -> nn.Module:
    """One layer of the original's geometry with the product of the parts' kernels."""
    kernels = (kernel_of(layer).double() for layer in layers)
    core = reduce(lambda one, other: _product(one, other, conv.groups), kernels)
    bias: Tensor = layers[-1].bias.detach()  # type: ignore[union-attr]
    padded = (layer for layer in layers if getattr(layer, "padding", None) == "same")
    made = plain_layer(next(padded, layers[0]), replace(conv, bias=True))
    return fill(made, "keep", Factors(core, bias.double()))


def _product(
    first: Float[Tensor, "middle taps c_in"], second: Float[Tensor, "c_out rest middle_group"],
    groups: int,
) -> Float[Tensor, "c_out all_taps c_in"]:  # fmt: skip
    """The kernel of one grouped convolution after another, whose taps are along other axes."""
    one, other = (w.reshape(groups, -1, *w.shape[1:]) for w in (first, second))
    made = torch.einsum("gorm,gmtc->gotrc", other, one)
    return made.reshape(len(second), -1, first.shape[2])
