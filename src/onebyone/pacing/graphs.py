"""A layer, or a form of it, in its surroundings as a small network that a runtime can time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from onebyone.conv import CONVOLUTIONS, TRANSPOSED, ConvSpec
from onebyone.exporting.network import exported, network_of
from onebyone.exporting.targets import TARGETS
from onebyone.pacing.sites import Site

EAGER = "eager"
READ_ONNX = ("onnx", "openvino")  # runtimes that read ONNX files themselves

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "": lambda x: x, "relu": F.relu, "relu6": F.relu6, "silu": F.silu, "hardswish": F.hardswish,
    "sigmoid": torch.sigmoid, "leaky_relu": F.leaky_relu,
}  # fmt: skip


class Surrounded(nn.Module):
    """The layers one after another, then what the site has after them."""

    def __init__(self, site: Site, parts: Sequence[ConvSpec]) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.layers = nn.Sequential(*(_layer(part) for part in parts))
        self.site = site

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        """The output of the last layer, summed and activated."""
        y = self.layers(x)
        for other in others:
            y = y + other
        return FUNCTIONS[self.site.activation](y)


def _layer(conv: ConvSpec) -> nn.Module:
    if not conv.kernel:
        return nn.Linear(conv.c_in, conv.c_out, bias=conv.bias)
    even = all(before == after for before, after in conv.padding)
    padding: Any = tuple(p[0] for p in conv.padding) if even else "same"
    if conv.transposed:
        return TRANSPOSED[len(conv.kernel)](
            conv.c_in, conv.c_out, conv.kernel, stride=conv.stride, padding=padding,
            output_padding=conv.output_padding, dilation=conv.dilation, groups=conv.groups,
            bias=conv.bias,
        )  # fmt: skip
    return CONVOLUTIONS[len(conv.kernel)](
        conv.c_in, conv.c_out, conv.kernel, stride=conv.stride, padding=padding,
        dilation=conv.dilation, groups=conv.groups, bias=conv.bias, padding_mode=conv.padding_mode,
    )  # fmt: skip


def opened(
    runtime: str, site: Site, parts: Sequence[ConvSpec], folder: Path, threads: int
) -> Callable[[], object]:
    """A call that runs the layers once in the runtime, on one image.

    `runtime` is "eager" or a name of TARGETS; files go to `folder`. ONNX is written directly, which
    takes milliseconds; what a runtime does not take raises ModelError.
    """
    module = Surrounded(site, parts).eval()
    x = torch.randn(site.input_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        inputs = (x, torch.zeros_like(module.layers(x))) if site.sum else (x,)
    if runtime == EAGER:
        return _inferring(module, inputs)
    number = len(list(folder.iterdir()))
    if runtime in READ_ONNX and _plain(site, parts):
        path = folder / f"{number}.onnx"
        write_onnx(module, parts, inputs, path)
    else:
        path = folder / f"{number}{TARGETS[runtime].suffix}"
        TARGETS[runtime].write(network_of(exported(module, inputs), inputs), path)
    session = TARGETS[runtime].open(path, threads)
    return lambda: session(inputs)


def _inferring(module: nn.Module, inputs: tuple[Tensor, ...]) -> Callable[[], object]:
    def run() -> object:
        with torch.inference_mode():
            return module(*inputs)

    return run


def _plain(site: Site, parts: Sequence[ConvSpec]) -> bool:
    """Whether ONNX has one operator for each part."""
    return all(p.padding_mode == "zeros" for p in parts) and site.activation != "silu"


def write_onnx(
    module: Surrounded, parts: Sequence[ConvSpec], inputs: tuple[Tensor, ...], path: Path
) -> None:
    """The module as an ONNX graph without PyTorch's exporter; batch 1, zero padding only."""
    from onnx import TensorProto, helper, numpy_helper

    nodes, weights, last = [], [], "x"
    for i, (conv, layer) in enumerate(zip(parts, module.layers, strict=True)):
        given = [last, f"w{i}"]
        weight: Tensor = layer.weight  # type: ignore[assignment]
        kept = weight if conv.kernel else weight.T.contiguous()
        weights.append(numpy_helper.from_array(kept.detach().numpy(), f"w{i}"))
        if conv.bias:
            given.append(f"b{i}")
            weights.append(numpy_helper.from_array(layer.bias.detach().numpy(), f"b{i}"))  # type: ignore[union-attr]
        last = f"y{i}"
        nodes += _nodes(conv, given, last, helper)
    if module.site.sum:
        nodes.append(helper.make_node("Add", [last, "other"], ["sum"]))
        last = "sum"
    nodes += _activation(module.site.activation, last, weights, helper, numpy_helper)
    names = ("x", "other")
    with torch.no_grad():
        output = module(*inputs)
    graph = helper.make_graph(
        nodes, "layer",
        [
            helper.make_tensor_value_info(n, TensorProto.FLOAT, list(x.shape))
            for n, x in zip(names, inputs, strict=False)
        ],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, list(output.shape))],
        weights,
    )  # fmt: skip
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
    name: str, last: str, weights: list[Any], helper: Any, numpy_helper: Any
) -> list[Any]:
    operators = {
        "": "Identity", "relu": "Relu", "hardswish": "HardSwish", "sigmoid": "Sigmoid",
        "leaky_relu": "LeakyRelu",
    }  # fmt: skip
    if name != "relu6":
        return [helper.make_node(operators[name], [last], ["out"])]
    for limit, value in (("low", 0.0), ("high", 6.0)):
        weights.append(numpy_helper.from_array(torch.tensor(value).numpy(), limit))
    return [helper.make_node("Clip", [last, "low", "high"], ["out"])]
