"""Where a layer stands: its input's size at each call, and what a runtime fuses with it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import Node

from onebyone.conv import ConvSpec
from onebyone.exporting.folding import LAYERS, fold
from onebyone.exporting.program import export_program
from onebyone.running import call, suited
from onebyone.surveying import PLAIN
from onebyone.tree import evaluating, hooked, modules_by_name

aten = torch.ops.aten
ACTIVATIONS = {
    aten.relu.default: "relu", aten.relu_.default: "relu", aten.hardtanh.default: "relu6",
    aten.hardtanh_.default: "relu6", aten.relu6.default: "relu6", aten.silu.default: "silu",
    aten.silu_.default: "silu", aten.hardswish.default: "hardswish",
    aten.hardswish_.default: "hardswish", aten.sigmoid.default: "sigmoid",
    aten.leaky_relu.default: "leaky_relu", aten.leaky_relu_.default: "leaky_relu",
}  # fmt: skip
SUMS = (aten.add.Tensor, aten.add_.Tensor)


@dataclass(frozen=True)
class Site:
    """One call of a layer on one image.

    `size` are the lengths of its input between the batch and, for a convolution, after the channels;
    for a linear layer those before them. `sum` says that its output is added to another tensor,
    `activation` names the function that follows; both may be fused with it. The layer has a bias
    where a normalization is folded into it.
    """

    conv: ConvSpec
    size: tuple[int, ...]
    sum: bool = False
    activation: str = ""

    @property
    def summed(self) -> bool:
        """Whether its output is added to a tensor that a strided 1×1 convolution of its input's size
        can stand for."""
        conv = self.conv
        strided = tuple((n - 1) // s + 1 for n, s in zip(self.size, conv.stride, strict=False))
        return self.sum and bool(conv.kernel) and conv.output_size(self.size) == strided

    @property
    def key(self) -> str:
        """Everything that its time depends on, as text."""
        conv = self.conv
        sides = "" if not conv.kernel else f" pad {conv.padding} {conv.padding_mode}"
        sides += f" more {conv.output_padding}" if any(conv.output_padding) else ""
        return (
            f"{conv.text()}{sides}{' bias' if conv.bias else ''} on {self.size}"
            f"{' sum' if self.sum else ''} {self.activation}".strip()
        )


def sites_of(model: nn.Module, example: Tensor) -> dict[str, tuple[Site, ...]]:
    """The sites of every plain convolution and linear layer that one image reaches, by its name.

    Sizes are what reaches the layer; what follows it is read from the exported program, and left out
    where there is none. The network comes back as it was.
    """
    layers = {n: m for n, m in modules_by_name(model).items() if type(m) in PLAIN}
    found: dict[str, list[Site]] = {n: [] for n in layers}

    def watch(name: str):
        conv = ConvSpec.of(layers[name])

        def hook(_: nn.Module, args: tuple, output: object) -> None:
            if len(args) == 1 and isinstance(args[0], Tensor):
                size = args[0].shape[2:] if conv.kernel else args[0].shape[1:-1]
                found[name].append(Site(conv, tuple(size)))

        return hook

    with evaluating(model), torch.no_grad():
        with hooked([m.register_forward_hook(watch(n)) for n, m in layers.items()]):
            call(model, suited(model, example[:1]))
        around = _surroundings(export_program(model, suited(model, example[:1])))
    return {
        name: tuple(_in_place(site, around.get(name)) for site in sites)
        for name, sites in found.items()
        if sites
    }


@dataclass(frozen=True)
class _Around:
    bias: bool
    sum: bool
    activation: str


def _in_place(site: Site, around: _Around | None) -> Site:
    if around is None:
        return site
    conv = replace(site.conv, bias=site.conv.bias or around.bias)
    return replace(site, conv=conv, sum=around.sum, activation=around.activation)


def _surroundings(program: ExportedProgram | str) -> dict[str, _Around]:
    if isinstance(program, str):
        return {}
    fold(program)
    found: dict[str, _Around] = {}
    for node in program.graph.nodes:
        if node.target in LAYERS:
            stack = list((node.meta.get("nn_module_stack") or {}).values())
            name = str(stack[-1][0]) if stack else ""
            bias = len(node.args) > 2 and node.args[2] is not None
            reader = _reader(node)
            added = reader is not None and reader.target in SUMS
            if added and reader is not None:
                reader = _reader(reader)
            follows = "" if reader is None else ACTIVATIONS.get(reader.target, "")  # type: ignore[arg-type]
            found.setdefault(name, _Around(bias, added, follows))
    return found


def _reader(node: Node) -> Node | None:
    """The only node that reads this one."""
    return next(iter(node.users)) if len(node.users) == 1 else None
