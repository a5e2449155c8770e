"""Calls of aten operators → the layers that make them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.fx import Node

from onebyone.conv import CONVOLUTIONS, TRANSPOSED

Fetch = Callable[[Any], Tensor | None]
NORMS: dict[int, type[nn.Module]] = {
    2: nn.BatchNorm1d,
    3: nn.BatchNorm1d,
    4: nn.BatchNorm2d,
    5: nn.BatchNorm3d,
}


@dataclass(frozen=True)
class Restored:
    """A layer, the value it is called on, and its tensors' qualified names, the weight's first.

    Calls with equal keys are calls of one layer. `first_of_many`: the operator returned a tuple
    whose first item is the layer's output.
    """

    layer: nn.Module
    input: Any
    tensors: tuple[str, ...]
    key: tuple[Any, ...]
    first_of_many: bool = False


def operator_of(node: Node) -> str:
    """`conv2d` for aten.conv2d.default; empty for what is no aten operator."""
    target = node.target
    if isinstance(target, torch._ops.OpOverload) and target.namespace == "aten":
        return target._schema.name.split("::")[1]
    return ""


def bound(node: Node) -> dict[str, Any]:
    """A call's arguments by the names in the operator's schema, defaults filled in."""
    schema = cast(Any, node.target)._schema
    values: dict[str, Any] = {}
    for index, argument in enumerate(schema.arguments):
        if index < len(node.args):
            values[argument.name] = node.args[index]
        else:
            values[argument.name] = node.kwargs.get(argument.name, argument.default_value)
    return values


def layer_of(name: str, values: dict[str, Any], fetch: Fetch) -> Restored | None:
    """The layer of an operator's call by name, or None where it stays a call.

    A call stays where its weights are computed or no parameters (the kernels of a blur), or where the
    layer would compute anything else.
    """
    if name in ("conv1d", "conv2d", "conv3d", "convolution"):
        return _convolution(values, fetch)
    if name in ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"):
        return _convolution(values | {"transposed": True}, fetch)
    if name == "linear":
        return _linear(values, fetch)
    if name in ("addmm", "mm"):
        return _linear_of_product(values, fetch)
    if name in ("batch_norm", "_native_batch_norm_legit_no_training", "cudnn_batch_norm"):
        return _batch_norm(values, fetch, first_of_many=name != "batch_norm")
    if name in ("dropout", "dropout_"):
        given = values.get("input", values.get("self"))
        return Restored(nn.Dropout(values["p"], inplace=name == "dropout_"), given, (), ())
    return None


def _convolution(values: dict[str, Any], fetch: Fetch) -> Restored | None:
    weight, bias = _parameters(values, fetch)
    if weight is None or (bias is None) != (values["bias"] is None):
        return None
    axes, turned = weight.ndim - 2, bool(values.get("transposed"))
    names = ("stride", "padding", "dilation", *(("output_padding",) if turned else ()))
    geometry = {name: _each(values[name], axes) for name in names}
    if None in geometry.values():
        return None
    one, other = weight.shape[1] * values["groups"], weight.shape[0]
    c_in, c_out = (other, one) if turned else (one, other)
    with torch.device("meta"):
        layer = (TRANSPOSED if turned else CONVOLUTIONS)[axes](
            c_in, c_out, tuple(weight.shape[2:]),  # type: ignore[arg-type]
            groups=values["groups"], bias=bias is not None, **geometry,  # type: ignore[arg-type]
        )  # fmt: skip
    _fill(layer, weight=weight, bias=bias)
    key = (values["weight"], values["bias"], *geometry.values(), values["groups"])
    return Restored(layer, values["input"], _names(values, "weight", "bias"), key)


def _linear(values: dict[str, Any], fetch: Fetch) -> Restored | None:
    weight, bias = _parameters(values, fetch)
    if weight is None or weight.ndim != 2 or (bias is None) != (values["bias"] is None):
        return None
    with torch.device("meta"):
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    _fill(layer, weight=weight, bias=bias)
    key = (values["weight"], values["bias"])
    return Restored(layer, values["input"], _names(values, "weight", "bias"), key)


def _linear_of_product(values: dict[str, Any], fetch: Fetch) -> Restored | None:
    """The linear layer of bias + x · weightᵀ, into which it decomposes."""
    x, bias = (values["mat1"], values["self"]) if "mat1" in values else (values["self"], None)
    turned = values["mat2"]
    transposed = (
        getattr(turned, "target", None) is torch.ops.aten.permute.default
        and list(turned.args[1]) == [1, 0]
    ) or getattr(turned, "target", None) is torch.ops.aten.t.default
    scaled = values.get("alpha", 1) != 1 or values.get("beta", 1) != 1
    if not transposed or scaled:
        return None
    tensor = fetch(bias)
    if tensor is not None and tensor.ndim != 1:
        return None
    return _linear({"input": x, "weight": turned.args[0], "bias": bias}, fetch)


def _batch_norm(values: dict[str, Any], fetch: Fetch, *, first_of_many: bool) -> Restored | None:
    names = ("weight", "bias", "running_mean", "running_var")
    tensors = {k: fetch(values[k]) for k in names}
    shape = getattr(values["input"].meta.get("val"), "ndim", 0)
    if None in _parameters(values, fetch) or None in tensors.values() or shape not in NORMS:
        return None
    channels = len(tensors["running_mean"])  # type: ignore[arg-type]
    with torch.device("meta"):
        # A program says 0 for the average of all batches, for which the layer has None.
        layer: Any = NORMS[shape](channels, eps=values["eps"], momentum=values["momentum"] or None)
    layer.num_batches_tracked = torch.zeros((), dtype=torch.long)
    _fill(layer, **tensors)
    key = (*(values[k] for k in names), values["eps"], values["momentum"])
    return Restored(layer, values["input"], _names(values, *names), key, first_of_many)


def _parameters(values: dict[str, Any], fetch: Fetch) -> tuple[nn.Parameter | None, ...]:
    """The weight and the bias of a call, None for what is no parameter."""
    found = (fetch(values[name]) for name in ("weight", "bias"))
    return tuple(t if isinstance(t, nn.Parameter) else None for t in found)


def _names(values: dict[str, Any], *tensors: str) -> tuple[str, ...]:
    return tuple(str(values[name].target) for name in tensors if values[name] is not None)


def _each(given: Any, axes: int) -> tuple[int, ...] | str | None:
    """One whole number per axis, or "same"; None for symbolic ones."""
    if isinstance(given, str):
        return given
    given = [given] if isinstance(given, int) else list(given)
    if any(type(n) is not int for n in given):
        return None
    return tuple(given) * axes if len(given) == 1 else tuple(given)


def _fill(layer: nn.Module, **tensors: Tensor | None) -> None:
    """Give the layer the very tensors of the program, so that tied ones stay tied."""
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if name in layer._buffers:
            layer._buffers[name] = tensor
        else:
            assert isinstance(tensor, nn.Parameter)
            layer._parameters[name] = tensor
