"""A layer, or a form of it, in its surroundings as a small network that a runtime can time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from onebyone.conv import ConvSpec, layer_for
from onebyone.exporting.network import exported, network_of
from onebyone.exporting.targets import TARGETS
from onebyone.pacing.sites import Site

EAGER = "eager"
FEED = 8  # channels of what is fed to a layer's surroundings
READ_ONNX = ("onnx", "openvino")  # runtimes that read ONNX files themselves

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "": lambda x: x, "relu": F.relu, "relu6": F.relu6, "silu": F.silu, "hardswish": F.hardswish,
    "sigmoid": torch.sigmoid, "leaky_relu": F.leaky_relu,
}  # fmt: skip


class Surrounded(nn.Module):
    """The layers at a site, one after another, between what stands around them in a network.

    A convolution's input, and what its output is summed with, come from thin 1×1 convolutions, and its
    output is averaged over its pixels in the end. In a network other layers write and read them in
    the runtime's own layout; turning all of it into PyTorch's can take longer than the layer. What
    the surroundings take is the same for all forms of a layer.
    """

    def __init__(self, site: Site, parts: Sequence[ConvSpec]) -> None:
        super().__init__()
        conv = site.conv
        self.site, self.before, self.beside = site, None, None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.layers = nn.Sequential(*(layer_for(part) for part in parts))
            if conv.kernel:
                self.before = layer_for(_feeding(conv.c_in, (1,) * len(conv.kernel)))
            if site.summed:
                self.beside = layer_for(_feeding(conv.c_out, conv.stride))

    def forward(self, x: Tensor) -> Tensor:
        """The output of the last layer, summed, activated and averaged."""
        y = self.layers(x if self.before is None else self.before(x))
        if self.beside is not None:
            y = y + self.beside(x)
        y = FUNCTIONS[self.site.activation](y)
        return y if self.before is None else y.mean(tuple(range(2, y.ndim)), keepdim=True)


def input_shape(site: Site) -> tuple[int, ...]:
    """What the surroundings of a layer read, with a batch of 1."""
    if site.conv.kernel:
        return (1, FEED, *site.size)
    return (1, *site.size, site.conv.c_in)


def _feeding(c_out: int, stride: tuple[int, ...]) -> ConvSpec:
    ones = (1,) * len(stride)
    return ConvSpec(FEED, c_out, ones, stride, ((0, 0),) * len(ones), ones, bias=False)


def opened(
    runtime: str, site: Site, parts: Sequence[ConvSpec], path: Path, threads: int
) -> Callable[[], object]:
    """A call that runs the layers once in the runtime, on one image.

    `runtime` is "eager" or a name of TARGETS. The file is written to `path`, with the suffix of its
    kind, unless it is there. ONNX is written directly, which takes milliseconds; what a runtime does
    not take raises ModelError.
    """
    x = torch.randn(input_shape(site), generator=torch.Generator().manual_seed(0))
    if runtime == EAGER:
        return _inferring(Surrounded(site, parts).eval(), x)
    direct = runtime in READ_ONNX and _plain(site, parts)
    path = path.with_suffix(".onnx" if direct else TARGETS[runtime].suffix)
    if not path.exists():
        module = Surrounded(site, parts).eval()
        if direct:
            write_onnx(module, parts, x, path)
        else:
            TARGETS[runtime].write(network_of(exported(module, (x,)), (x,)), path)
    session = TARGETS[runtime].open(path, threads)
    return lambda: session((x,))


def _inferring(module: nn.Module, x: Tensor) -> Callable[[], object]:
    def run() -> object:
        with torch.inference_mode():
            return module(x)

    return run


def _plain(site: Site, parts: Sequence[ConvSpec]) -> bool:
    """Whether ONNX has one operator for each part."""
    return all(p.padding_mode == "zeros" for p in parts) and site.activation != "silu"


def write_onnx(module: Surrounded, parts: Sequence[ConvSpec], x: Tensor, path: Path) -> None:
    """The module as an ONNX graph without PyTorch's exporter; batch 1, zero padding only."""
    from onnx import TensorProto, helper, numpy_helper

    nodes: list[Any] = []
    weights: list[Any] = []

    def put(conv: ConvSpec, layer: nn.Module, given: str, out: str) -> str:
        names = [given, f"{out}_w"]
        weight: Tensor = layer.weight  # type: ignore[assignment]
        kept = weight if conv.kernel else weight.T.contiguous()
        weights.append(numpy_helper.from_array(kept.detach().numpy(), f"{out}_w"))
        if conv.bias:
            names.append(f"{out}_b")
            weights.append(numpy_helper.from_array(layer.bias.detach().numpy(), f"{out}_b"))  # type: ignore[union-attr]
        nodes.extend(_nodes(conv, names, out, helper))
        return out

    site, last = module.site, "x"
    if module.before is not None:
        last = put(ConvSpec.of(module.before), module.before, "x", "before")
    for i, (conv, layer) in enumerate(zip(parts, module.layers, strict=True)):
        last = put(conv, layer, last, f"y{i}")
    if module.beside is not None:
        put(ConvSpec.of(module.beside), module.beside, "x", "beside")
        nodes.append(helper.make_node("Add", [last, "beside"], ["sum"]))
        last = "sum"
    nodes += _activation(site.activation, last, "active", weights, helper, numpy_helper)
    averaged = "Identity" if module.before is None else "GlobalAveragePool"
    nodes.append(helper.make_node(averaged, ["active"], ["out"]))
    with torch.no_grad():
        output = module(x)
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, list(t.shape))
        for name, t in (("x", x), ("out", output))
    ]
    graph = helper.make_graph(nodes, "layer", ends[:1], ends[1:], weights)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    made.ir_version = 9
    path.write_bytes(made.SerializeToString())


def _nodes(conv: ConvSpec, given: list[str], last: str, helper: Any) -> list[Any]:
    if conv.kernel:
        pads = [p[0] for p in conv.padding] + [p[1] for p in conv.padding]
        more = {"output_padding": conv.output_padding} if conv.transposed else {}
        return [
            helper.make_node(
                "ConvTranspose" if conv.transposed else "Conv", given, [last],
                kernel_shape=conv.kernel, strides=conv.stride, pads=pads, dilations=conv.dilation,
                group=conv.groups, **more,
            )
        ]  # fmt: skip
    if not conv.bias:
        return [helper.make_node("MatMul", given, [last])]
    return [
        helper.make_node("MatMul", given[:2], [f"{last}_product"]),
        helper.make_node("Add", [f"{last}_product", given[2]], [last]),
    ]


def _activation(
    name: str, last: str, out: str, weights: list[Any], helper: Any, numpy_helper: Any
) -> list[Any]:
    operators = {
        "": "Identity", "relu": "Relu", "hardswish": "HardSwish", "sigmoid": "Sigmoid",
        "leaky_relu": "LeakyRelu",
    }  # fmt: skip
    if name != "relu6":
        return [helper.make_node(operators[name], [last], [out])]
    for limit, value in (("low", 0.0), ("high", 6.0)):
        weights.append(numpy_helper.from_array(torch.tensor(value).numpy(), limit))
    return [helper.make_node("Clip", [last, "low", "high"], [out])]
