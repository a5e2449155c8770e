"""A network's own 1×1 convolutions on one photo: what they read, their weights, what PyTorch gives."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from onebyone.errors import ModelError
from onebyone.explaining.packing import Levels, in_levels, packed
from onebyone.explaining.photos import Photo
from onebyone.running import call, suited
from onebyone.tree import evaluating, hooked, modules_by_name, random_state

MOST_LAYERS = 8
MOST_BYTES = 1_750_000  # of all layers together, before they are packed
MOST_FILTERS = 24
SIDE = 56  # pixels of a stored map's longer side
EXACT = 1e-3  # relative; beyond that a layer computes with other weights than it shows


class NothingToShowError(ModelError):
    """No 1×1 convolution that can be shown; `why` is the message without its advice."""

    def __init__(self, why: str, advice: str = "") -> None:
        super().__init__(why + advice)
        self.why = why


@dataclass(frozen=True)
class Shown:
    """One 1×1 convolution on one photo.

    `maps` are its input at every `stride`-th pixel of its output's grid; `filters` are the output
    channels that are shown, `weight` and `bias` theirs; `output` is what PyTorch computes from `maps`.
    `rounding` is how far the 8 bits of `maps` move the output, relative to its spread.
    """

    layer: str
    c_out: int
    grid: tuple[int, int]
    stride: int
    maps: Levels
    filters: tuple[int, ...]
    weight: Float[Tensor, "k c"]
    bias: Float[Tensor, " k"]
    output: Float[Tensor, "k h w"]
    rounding: float

    def to_json(self) -> dict[str, Any]:
        """For the page."""
        return {
            "name": self.layer, "outputs": self.c_out, "grid": list(self.grid),
            "stride": self.stride, "maps": self.maps.to_json(), "filters": list(self.filters),
            "weight": packed(self.weight), "bias": packed(self.bias),
            "output": packed(self.output), "rounding": self.rounding,
        }  # fmt: skip


@dataclass(frozen=True)
class Network:
    """A network's layers on one photo, and its name for people."""

    name: str
    photo: Photo
    layers: tuple[Shown, ...]

    def to_json(self) -> dict[str, Any]:
        """For the page."""
        layers = [layer.to_json() for layer in self.layers]
        return {"name": self.name, "photo": self.photo.to_json(), "layers": layers}


def pointwise_layers(model: nn.Module) -> dict[str, nn.Conv2d]:
    """The dense 1×1 convolutions by their names, in the order of the module tree."""
    return {
        name: module
        for name, module in modules_by_name(model).items()
        if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.groups == 1
    }


def choose(model: nn.Module, names: Sequence[str] | None = None) -> dict[str, nn.Conv2d]:
    """The layers to show: those named, or at most eight spread over the depth of the network.

    Raises NothingToShowError where there is no 1×1 convolution, ModelError where none has that name.
    """
    found = pointwise_layers(model)
    if not found:
        others = [
            m for m in modules_by_name(model).values() if isinstance(m, nn.Conv1d | nn.Conv3d)
        ]
        if others:
            raise NothingToShowError(
                f"{type(model).__name__} has {type(others[0]).__name__} layers and no 1×1 convolution of "
                "pictures",
                ": the page shows networks of images (N, C, H, W); onebyone measure and diff take this one",
            )
        raise NothingToShowError(
            f"{type(model).__name__} has no 1×1 convolution to show",
            ": slim it first, which puts some in (onebyone slim MODEL --data DIR --macs 0.5 -o out/), and "
            "give out/ here; or leave the network out",
        )
    if names:
        return {name: _named(name, found, model) for name in names}
    return _spread(found)


def _spread(found: Mapping[str, nn.Conv2d]) -> dict[str, nn.Conv2d]:
    """At most eight of them, the first and the last among them."""
    every = list(found)
    count = min(MOST_LAYERS, len(every))
    chosen = [every[round(i * (len(every) - 1) / max(count - 1, 1))] for i in range(count)]
    return {name: found[name] for name in chosen}


def _named(name: str, found: dict[str, nn.Conv2d], model: nn.Module) -> nn.Conv2d:
    if name in found:
        return found[name]
    modules = modules_by_name(model)
    if name in modules:
        kind = type(modules[name]).__name__
        given = f"the layer {name!r} is a {kind}, and no dense 1×1 convolution"
    else:
        given = f"there is no layer {name!r}"
    near = difflib.get_close_matches(name, found, 3, 0.3) or list(found)[:3]
    raise ModelError(
        f"{given}: its 1×1 convolutions have names such as {', '.join(map(repr, near))}"
    )


def show_layers(
    model: nn.Module, image: Float[Tensor, "1 c h w"], names: Sequence[str] | None = None
) -> tuple[tuple[Shown, ...], tuple[str, ...]]:
    """Run the image through and keep what the chosen layers read; notes on layers left out.

    Where more than eight could be shown, those that did not run or make maps of a single pixel give
    their places to others. The network comes back as it was. Raises ModelError as `choose` does, where
    the network fails on the image, and NothingToShowError where no layer can be shown.
    """
    chosen = choose(model, names)
    caught, pixels = _run(model, image, chosen)
    every = pointwise_layers(model)
    if not names and len(every) > MOST_LAYERS:
        maps = {n: m for n, m in every.items() if pixels.get(n, 0) > 1}
        if maps and _spread(maps) != chosen:
            chosen = _spread(maps)
            caught, _ = _run(model, image, chosen)
    made: list[Shown] = []
    notes: list[str] = []
    strides = _strides({n: (chosen[n].in_channels, y) for n, (_, y) in caught.items()})
    for name, module in chosen.items():
        result = "it did not run"
        if name in caught:
            with evaluating(model):  # where reading a weight can compute it
                result = _show(name, module, *caught[name], strides[name])
        if isinstance(result, Shown):
            made.append(result)
        else:
            notes.append(f"the layer {name} is not shown: {result}")
    if not made:
        raise NothingToShowError("no 1×1 convolution can be shown: " + "; ".join(notes))
    return tuple(made), tuple(notes)


def _run(
    model: nn.Module, image: Tensor, chosen: Mapping[str, nn.Conv2d]
) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, int]]:
    """Input and output of the chosen layers, and how many pixels the outputs of all 1×1 layers have."""
    caught: dict[str, tuple[Tensor, Tensor]] = {}
    pixels: dict[str, int] = {}

    def take(name: str):
        def hook(_: nn.Module, args: tuple, named: dict[str, Any], output: object) -> None:
            given = (*args, *named.values())
            if name in pixels or not given or not isinstance(output, Tensor) or output.ndim != 4:
                return
            pixels[name] = output.shape[2] * output.shape[3]
            if name in chosen:  # copies: layers behind may write into what they are given
                x, y = (tensor.detach()[:1].cpu().clone() for tensor in (given[0], output))
                caught[name] = (x, y)

        return hook

    with evaluating(model), random_state(0), torch.inference_mode():
        every = pointwise_layers(model)
        hooks = [m.register_forward_hook(take(n), with_kwargs=True) for n, m in every.items()]
        with hooked(hooks):
            call(model, suited(model, image))
    return caught, pixels


def _strides(layers: Mapping[str, tuple[int, Tensor]]) -> dict[str, int]:
    """From how many pixels on one is kept, so that all layers fit; of the largest first.

    layers: each one's input channels and output. A byte for each value of the input, four for each
    of the outputs that are shown and for each weight.
    """
    shapes = {n: (c, min(y.shape[1], MOST_FILTERS), *y.shape[2:]) for n, (c, y) in layers.items()}
    strides = {n: max(1, ceil(max(shape[2:]) / SIDE)) for n, shape in shapes.items()}

    def cost(name: str) -> int:
        c, k, height, width = shapes[name]
        return (c + 4 * k) * ceil(height / strides[name]) * ceil(width / strides[name]) + 4 * k * c

    while sum(map(cost, strides)) > MOST_BYTES:
        largest = max(strides, key=cost)
        if strides[largest] >= max(shapes[largest][2:]):
            break
        strides[largest] += 1
    return strides


def _show(name: str, layer: nn.Conv2d, x: Tensor, y: Tensor, stride: int) -> Shown | str:
    """The layer as the page holds it, or why it cannot be shown."""
    weight = layer.weight.detach().cpu().double()[:, :, 0, 0]
    bias = torch.zeros(len(weight)).double() if layer.bias is None else layer.bias.detach().cpu()
    pixels = _pixels(layer, x.double(), y)
    if pixels is None or not (pixels.isfinite().all() and y.isfinite().all()):
        return "its input or output has NaN or infinite values, or another size than a 1×1's"
    expected = _apply(pixels, weight, bias.double())
    wrong = (expected - y[0].double()).abs().max() > EXACT * y.abs().max().clamp_min(1e-6)
    if y.dtype in (torch.float32, torch.float64) and wrong:
        return "it computes with other weights than it holds, or the input changed in place"
    _, height, width = pixels.shape
    maps = in_levels(pixels[:, ::stride, ::stride].float())
    filters = _filters(y[0].float())
    weight, bias = weight[filters].float(), bias[filters].float()
    output = _apply(maps.values.double(), weight.double(), bias.double())
    exact = expected[filters][:, ::stride, ::stride]
    moved = (output - exact).abs().max() / exact.std(correction=0).clamp_min(1e-12)
    return Shown(
        name, len(y[0]), (height, width), stride, maps, tuple(filters), weight, bias, output.float(),
        float(moved),
    )  # fmt: skip


def _pixels(layer: nn.Conv2d, x: Tensor, y: Tensor) -> Tensor | None:
    """The input (C, H′, W′) at the pixels that the outputs read; None where the sizes do not fit."""
    if isinstance(layer.padding, tuple) and any(layer.padding):
        rows, columns = layer.padding
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        x = F.pad(x, (columns, columns, rows, rows), mode)
    x = x[0, :, :: layer.stride[0], :: layer.stride[1]]
    return x if x.shape[1:] == y.shape[2:] else None


def _apply(
    maps: Float[Tensor, "c h w"], weight: Float[Tensor, "k c"], bias: Float[Tensor, " k"]
) -> Float[Tensor, "k h w"]:
    """The 1×1 convolution itself, as PyTorch computes it."""
    return F.conv2d(maps[None], weight[:, :, None, None], bias)[0]


def _filters(output: Float[Tensor, "k h w"]) -> list[int]:
    """The output channels that vary most over the photo, in their own order; at most 24."""
    spread = output.flatten(1).std(1, correction=0)
    return sorted(spread.argsort(descending=True)[:MOST_FILTERS].tolist())
