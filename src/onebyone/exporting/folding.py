"""Batch normalization folded into the convolution or linear layer before it, in an exported program."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Node

aten = torch.ops.aten
LAYERS = (
    aten.conv1d.default, aten.conv2d.default, aten.conv3d.default, aten.conv1d.padding,
    aten.conv2d.padding, aten.conv3d.padding, aten.linear.default,
)  # fmt: skip


def fold(program: ExportedProgram) -> int:
    """Fold what can be folded, in the program itself; how many normalizations that were.

    BN(W x + b) = γ (W x + b − μ) / √(σ² + ε) + β is a layer of its own with W′ = s W and
    b′ = s (b − μ) + β, where s = γ / √(σ² + ε). It is one where the layer's output has no other
    reader and its weight and bias no other user. The tensors of the network are not changed.
    """
    names = {
        spec.arg.name: str(spec.target)
        for spec in program.graph_signature.input_specs
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER)
    }
    done = 0
    for node in list(program.graph.nodes):
        if node.target == aten.batch_norm.default and _foldable(node, names):
            _fold(program, node, names)
            done += 1
    if done:
        _drop_unused(program)
    return done


def _foldable(norm: Node, names: dict[str, str]) -> bool:
    layer, *tensors, training = norm.args[:6]
    if not isinstance(layer, Node) or layer.target not in LAYERS or training:
        return False
    if len(layer.users) > 1 or any(t is not None and t.name not in names for t in tensors):  # type: ignore[union-attr]
        return False
    if tensors[2] is None or tensors[3] is None:  # statistics of the batch itself
        return False
    weight, bias = _weight_and_bias(layer)
    if layer.target == aten.linear.default and layer.meta["val"].ndim != 2:
        return False
    own = [n for n in (weight, bias) if n is not None]
    return all(n.name in names and len(n.users) == 1 for n in own) and (
        bias is not None or (tensors[1] is not None and len(tensors[1].users) == 1)  # type: ignore[union-attr]
    )


def _weight_and_bias(layer: Node) -> tuple[Node, Node | None]:
    return layer.args[1], layer.args[2] if len(layer.args) > 2 else None  # type: ignore[return-value]


def _fold(program: ExportedProgram, norm: Node, names: dict[str, str]) -> None:
    layer: Node = norm.args[0]  # type: ignore[assignment]
    weight, bias = _weight_and_bias(layer)
    gamma, beta, mean, variance = (_value(program, n, names) for n in norm.args[1:5])
    epsilon: float = norm.args[7]  # type: ignore[assignment]
    w, b = _value(program, weight, names), _value(program, bias, names)
    assert w is not None
    assert mean is not None
    assert variance is not None
    scale = (variance.double() + epsilon).rsqrt()
    if gamma is not None:
        scale = scale * gamma.double()
    shift = ((0 if b is None else b.double()) - mean.double()) * scale
    if beta is not None:
        shift = shift + beta.double()
    tall = scale.reshape(-1, *[1] * (w.ndim - 1))
    place: Node = norm.args[2] if bias is None else bias  # type: ignore[assignment]
    _set(program, names[weight.name], (w.double() * tall).to(w.dtype))
    _set(program, names[place.name], shift.to(w.dtype))
    layer.args = (*layer.args[:2], place, *layer.args[3:])
    norm.replace_all_uses_with(layer)
    program.graph.erase_node(norm)


def _value(program: ExportedProgram, node: object, names: dict[str, str]) -> Tensor | None:
    if not isinstance(node, Node):
        return None
    name = names[node.name]
    return program.state_dict.get(name, program.constants.get(name)).detach()  # type: ignore[union-attr]


def _set(program: ExportedProgram, name: str, value: Tensor) -> None:
    program.state_dict[name] = nn.Parameter(value, requires_grad=False)


def _drop_unused(program: ExportedProgram) -> None:
    """Weights and statistics that nothing reads any more leave the program."""
    specs = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
    for node in [n for n in program.graph.nodes if n.op == "placeholder" and not n.users]:
        spec = specs[node.name]
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
            program.graph.erase_node(node)
            program.graph_signature.input_specs.remove(spec)
            program.state_dict.pop(str(spec.target), None)
    program.graph_module.recompile()
