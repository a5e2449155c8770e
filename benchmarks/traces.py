"""What a counter could leave behind in a model and in the process, to be compared before and after."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
import torch._dynamo  # a first pass on meta tensors imports it, and it wraps functions as it comes
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules import module as all_modules

HOOKS = tuple(name for name in vars(nn.Module()) if "hooks" in name)
HOOKS_OF_ALL = tuple(
    name
    for name, value in vars(all_modules).items()
    if name.startswith("_global") and isinstance(value, dict)
)


def traces(model: nn.Module) -> dict[str, Any]:
    """All that counting may not change, by what to call it; equal values, nothing was left behind."""
    modules = list(model.named_modules())
    tensors = dict((*model.named_parameters(), *model.named_buffers()))
    return {
        "state dict keys": list(model.state_dict()),
        "weights and buffers": {name: (id(t), bits(t), bits(t.grad)) for name, t in tensors.items()},
        "versions": {name: t._version for name, t in tensors.items()},
        "requires_grad": {name: t.requires_grad for name, t in tensors.items()},
        "training flags": {name: module.training for name, module in modules},
        "hooks": {name: [dict(getattr(m, h)) for h in HOOKS] for name, m in modules},
        "attributes": {name: {k: id(v) for k, v in vars(m).items()} for name, m in modules},
        "classes": {name: type(module) for name, module in modules},
        "hooks of all modules": [dict(getattr(all_modules, name)) for name in HOOKS_OF_ALL],
        "functions of PyTorch": {
            name: id(value)
            for owner in (torch, F, Tensor)
            for name, value in vars(owner).items()
            if callable(value)
        },
        "random state": (
            bits(torch.get_rng_state()), random.getstate(), str(np.random.get_state()),
        ),
        "modes": (
            torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_default_dtype(),
            torch.get_default_device(), torch.get_num_threads(),
            torch.backends.mha.get_fastpath_enabled(),
        ),
    }  # fmt: skip


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """What changed, in words."""
    return [what for what, value in before.items() if after[what] != value]


def bits(tensor: Tensor | None) -> bytes | None:
    """A tensor's values, to the bit."""
    if tensor is None:
        return None
    if tensor.is_quantized:
        tensor = tensor.int_repr()
    return tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()
