"""Narrowings → a network of the same classes with fewer channels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from onebyone.errors import PlanError
from onebyone.narrowing.spaces import NUMBER, Cut, Narrowing
from onebyone.tree import modules_by_name

FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


def cut_model(model: nn.Module, narrowings: Sequence[Narrowing]) -> nn.Module:
    """Leave the narrowings' channels out of every tensor that has them; the tree changes in place.

    The tensors themselves do not: the modules get new ones, with the flags and the memory format of
    the old. Raises PlanError where a tensor is not there or has another size.
    """
    modules = modules_by_name(model)
    dropped: dict[tuple[str, int], tuple[Cut, set[int]]] = {}
    for narrowing in narrowings:
        gone = narrowing.order[narrowing.width :]
        if not gone:
            continue
        for cut in narrowing.cuts:
            _check(modules, cut, narrowing.channels)
            entries = dropped.setdefault((cut.tensor, cut.axis), (cut, set()))[1]
            entries.update(cut.entries(gone))
    for cut, entries in dropped.values():
        _cut(modules[cut.module], cut, entries)
    for name in {cut.module for cut, _ in dropped.values()}:
        _settle(modules[name])
        _settle_around(modules.get(name.rpartition(".")[0]))
    return model


def tensor_of(modules: dict[str, nn.Module], cut: Cut) -> Tensor | None:
    """The tensor that a cut names, or None where there is none."""
    module = modules.get(cut.module)
    if module is None:
        return None
    if cut.name == NUMBER and isinstance(module, nn.modules.instancenorm._InstanceNorm):
        return torch.empty(module.num_features, device="meta")
    found = module._parameters.get(cut.name)
    return module._buffers.get(cut.name) if found is None else found


def axis_of(module: nn.Module, cut: Cut) -> int:
    """The axis of the tensor that a cut goes along."""
    turned = isinstance(module, nn.modules.conv._ConvNd) and module.transposed
    return 1 - cut.axis if turned and cut.name == "weight" else cut.axis


def _check(modules: dict[str, nn.Module], cut: Cut, channels: int) -> None:
    tensor = tensor_of(modules, cut)
    if tensor is None:
        raise PlanError(f"the plan narrows {cut.tensor!r}, which is not in this network")
    axis = axis_of(modules[cut.module], cut)
    if axis >= tensor.ndim or tensor.shape[axis] < cut.start + channels * cut.block:
        raise PlanError(
            f"the plan narrows axis {axis} of {cut.tensor!r}, whose shape "
            f"{tuple(tensor.shape)} does not have {channels} channels there"
        )


def _cut(module: nn.Module, cut: Cut, dropped: set[int]) -> None:
    if cut.name == NUMBER:
        module.num_features -= len(dropped)  # type: ignore[operator]
        return
    own = module._parameters if module._parameters.get(cut.name) is not None else module._buffers
    tensor = own[cut.name]
    assert tensor is not None
    axis = axis_of(module, cut)
    kept = [i for i in range(tensor.shape[axis]) if i not in dropped]
    index = torch.tensor(kept, dtype=torch.long, device=tensor.device)
    values = tensor.detach().index_select(axis, index)
    last = FORMATS.get(tensor.ndim)
    # 1×1 kernels are contiguous in both formats: their strides tell.
    if last and tensor.is_contiguous(memory_format=last) and tensor.stride(tensor.ndim - 1) > 1:
        values = values.contiguous(memory_format=last)
    if isinstance(tensor, nn.Parameter):
        module._parameters[cut.name] = nn.Parameter(values, requires_grad=tensor.requires_grad)
    else:
        module._buffers[cut.name] = values


def _settle_around(block: nn.Module | None) -> None:
    """Let the layers of a form bear the channels of its first and last one, as `skeleton` has it.

    Blocks of others may have such attributes too, with a meaning of their own.
    """
    if type(block) is not nn.Sequential or not all(
        isinstance(m, nn.modules.conv._ConvNd | nn.Linear) for m in block
    ):
        return
    ends = {"in_channels": 0, "in_features": 0, "out_channels": -1, "out_features": -1}
    for name, end in ends.items():
        if name in vars(block):
            setattr(block, name, getattr(block[end], name))


def _settle(module: nn.Module) -> None:
    """Set the numbers that a module of PyTorch keeps beside its tensors."""
    weight = module._parameters.get("weight")
    if isinstance(module, nn.modules.conv._ConvNd):
        assert weight is not None
        if module.groups > 1:  # depthwise: as many outputs for each channel as before
            module.groups = len(weight) * module.groups // module.out_channels
        module.out_channels = len(weight)
        module.in_channels = weight.shape[1] * module.groups
        if module.transposed:
            module.in_channels, module.out_channels = weight.shape[:2]  # of one group
    elif isinstance(module, nn.Linear):
        assert weight is not None
        module.out_features, module.in_features = weight.shape
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        first = weight if weight is not None else module._buffers.get("running_mean")
        if first is not None:
            module.num_features = len(first)
    elif isinstance(module, nn.PReLU):
        module.num_parameters = len(module.weight)
