"""What `coverage.py` checks of a slimmed network: AssertionError where it is not what `slim` promises."""

from __future__ import annotations

from hashlib import blake2b

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import onebyone as obo
from onebyone.plans import Plan
from onebyone.tree import modules_by_name, tensors_in


def count_macs(model: nn.Module, example: Tensor) -> int:
    """PyTorch's own count for one image; fused kernels, which it does not know, are kept out."""
    plain = sdpa_kernel(SDPBackend.MATH)
    with torch.enable_grad(), plain, FlopCounterMode(display=False) as flops:
        model(example)
    return flops.get_total_flops() // 2


def digest(model: nn.Module) -> str:
    """Every name, value and mode of a network, and how many hooks it carries."""
    found = blake2b()
    for name, tensor in model.state_dict().items():
        found.update(name.encode())
        found.update(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().data)
    for name, module in modules_by_name(model).items():
        hooks = len(module._forward_hooks) + len(module._forward_pre_hooks)
        found.update(f"{name} {type(module)} {module.training} {hooks}".encode())
    for parameter in model.parameters():
        found.update(f"{parameter.requires_grad} {parameter.grad is None}".encode())
    return found.hexdigest()


def check(
    loaded: obo.Loaded, slimmed: obo.Slimmed, images: Tensor, limit: float, *, by_data: bool = False
) -> None:
    """The result of `slim`; `by_data` networks compute more for some images than for others."""
    plan, sides = slimmed.plan, slimmed.verification
    if not by_data:
        counted = count_macs(slimmed.model, loaded.example)
        assert counted == plan.macs_after == sides.after.macs, (
            f"PyTorch counts {counted:,} MACs, the plan says {plan.macs_after:,} and the verification "
            f"{sides.after.macs:,}"
        )
        assert count_macs(loaded.model, loaded.example) == plan.macs_before == sides.before.macs, (
            "the original's MACs differ"
        )
    assert plan.macs_after <= limit, (
        f"{plan.macs_after:,} MACs are above the budget of {limit:,.0f}"
    )
    assert plan.params_after == sides.after.params, f"{sides.after.params:,} parameters"
    check_plan(loaded.model, slimmed.model, plan, images)


def check_plan(model: nn.Module, lighter: nn.Module, plan: Plan, images: Tensor) -> None:
    """What a plan says of a network that it made."""
    params = sum(p.numel() for p in lighter.parameters())
    assert params == plan.params_after, f"{params:,} parameters"
    with torch.no_grad():
        outputs = list(tensors_in(lighter(images)))
    assert all(y.isfinite().all() for y in outputs), "the output has NaN or infinite values"
    own, other = modules_by_name(model), modules_by_name(lighter)
    assert not any(type(m).__module__.startswith("onebyone") for m in other.values()), (
        "the result has layers of onebyone's own"
    )
    for decision in plan.decisions:
        if decision.form in ("keep", "refuse") and decision.macs_after:
            assert decision.reason, f"the plan does not say why {decision.layer} stays as it is"
        if decision.refused:
            pairs = zip(
                own[decision.layer].parameters(), other[decision.layer].parameters(), strict=True
            )
            assert all(torch.equal(a, b) for a, b in pairs), f"refused {decision.layer} was changed"


def check_equal(one: object, other: object, message: str) -> None:
    """Two outputs, bit for bit."""
    pairs = zip(tensors_in(one), tensors_in(other), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs), message
