"""survey: one image through the network → which layers can be rewritten, and why others cannot."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container
from dataclasses import dataclass
from math import prod
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn

from onebyone.conv import CONVOLUTIONS, GEOMETRY, TRANSPOSED, ConvSpec, Places
from onebyone.errors import ModelError
from onebyone.measurement.counting import count
from onebyone.running import call, placed_for, suited
from onebyone.sampling import positions_of
from onebyone.tree import (
    evaluating,
    hooked,
    modules_by_name,
    random_state,
    replace_modules,
    shallow_copy,
    tensors_in,
)

PLAIN = (*CONVOLUTIONS.values(), *TRANSPOSED.values(), nn.Linear)
CONV_LIKE = (nn.modules.conv._ConvNd, nn.Linear, nn.Bilinear)
TRIED = 16  # images among which `telling` looks
QUANTIZED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torchao")
PREPARED = (
    "torch.ao.nn.qat", "torch.ao.nn.intrinsic.qat", "torch.ao.quantization.fake_quantize",
    "torch.ao.quantization.observer",
)  # fmt: skip
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Seen:
    """One layer as the survey saw it; positions are of one image, summed over the calls.

    `positions_between` is as in `Places`.
    """

    layer: str
    conv: ConvSpec | None
    positions_in: int = 0
    positions_out: int = 0
    calls: int = 0
    items_per_image: int = 1
    refusal: str | None = None
    positions_between: int | None = None

    @property
    def places(self) -> Places:
        """The positions, to count on."""
        return Places(self.positions_in, self.positions_out, self.positions_between)

    @property
    def macs(self) -> int:
        """Multiply–accumulates for one image."""
        return self.conv.macs_on(self.places) if self.conv else 0


@dataclass(frozen=True)
class Survey:
    """Every convolution and linear layer in the order that data reaches them, and the totals.

    `macs` is what `onebyone.measurement.counting` counts for one image;
    `activation_bytes` adds up all layer outputs of one image and `live_bytes` is the largest one.
    """

    layers: tuple[Seen, ...]
    macs: int
    params: int
    input_shape: tuple[int, ...]
    activation_bytes: int
    live_bytes: int
    device: torch.device

    @property
    def other_macs(self) -> int:
        """Those of no layer's own, such as products of attention."""
        return self.macs - sum(s.macs for s in self.layers)

    @property
    def other_params(self) -> int:
        """Those of no convolution or linear layer; below 0 where layers share weights."""
        return self.params - sum(s.conv.params for s in self.layers if s.conv)


def survey(model: nn.Module, image: Tensor) -> Survey:
    """Run one image (1, C, H, W) through an already borrowed model (eval mode) and look.

    Raises ModelError when the model fails on it or has no convolution and no linear layer.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    image = placed_for(model, image)
    layers: dict[str, nn.Module] = {
        n: m for n, m in modules_by_name(model).items() if isinstance(m, CONV_LIKE)
    }
    _check_kind(model)
    if not layers:
        raise ModelError(
            f"{type(model).__name__} has no convolution and no linear layer that onebyone knows: "
            "there is nothing to make lighter"
        )
    watcher = _Watcher(layers)
    with torch.no_grad(), hooked(watcher.attach(model)):
        call(model, image.clone())
    taken = [n for n, m in layers.items() if type(m) in PLAIN]
    read = used_otherwise(model, taken, image, spared=GEOMETRY)
    shared = _shared_weights(model)
    order = {name: i for i, name in enumerate(watcher.calls)}
    seen = [
        watcher.seen(name, module, shared.get(name), read.get(name))
        for name, module in sorted(layers.items(), key=lambda item: order.get(item[0], len(order)))
    ]
    return Survey(
        tuple(seen), count(model, image).macs, sum(p.numel() for p in model.parameters()),
        tuple(image.shape[1:]), watcher.activation_bytes, watcher.live_bytes, device,
    )  # fmt: skip


@torch.no_grad()
def telling(model: nn.Module, images: Tensor) -> int:
    """The place of the image that reaches the most layers: of a detector, one where it finds something.

    0 where the first does as well as those after it, or the network fails on it.
    """
    layers = [m for m in modules_by_name(model).values() if isinstance(m, CONV_LIKE)]
    reached: set[int] = set()

    def reach(module: nn.Module, _: object, output: object) -> None:
        if sum(t.numel() for t in tensors_in(output)):
            reached.add(id(module))

    best, most = 0, -1
    with (
        evaluating(model),
        random_state(0),
        hooked([m.register_forward_hook(reach) for m in layers]),
    ):
        for place, image in enumerate(images[:TRIED].split(1)):
            reached.clear()
            try:
                call(model, suited(model, image))
            except ModelError:
                break
            if len(reached) > most:
                best, most = place, len(reached)
            if most == len(layers):
                break
    return best


def _check_kind(model: nn.Module) -> None:
    """Raise ModelError for networks whose layers cannot be seen, are quantized or prepared for it."""
    for name, module in modules_by_name(model).items():
        kind, where = type(module), f"its layer {name!r}" if name else "it"
        if isinstance(module, torch.jit.ScriptModule):
            raise ModelError(
                f"the network cannot be made lighter: {where} is TorchScript ({kind.__name__}), whose "
                "layers cannot be exchanged. Give the nn.Module that it was made from"
            )
        if kind.__module__.startswith((*QUANTIZED, *PREPARED)):
            done = "quantized already"
            if kind.__module__.startswith(PREPARED):
                done = "prepared for quantization"
            raise ModelError(
                f"the network cannot be made lighter: {where} is {done} "
                f"({kind.__module__.rpartition('.')[0]}.{kind.__name__}). Give the network as it was "
                "before, and quantize the lighter one"
            )
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.layout is not torch.strided:
            raise ModelError(
                f"the network cannot be made lighter: its tensor {name} is sparse ({tensor.layout}), "
                "and no copy of such a network can be made. Give it with dense tensors (to_dense())"
            )
        if tensor.is_quantized:
            raise ModelError(
                f"the network cannot be made lighter: its tensor {name} is quantized already "
                f"({tensor.dtype}). Give the network as it was before, and quantize the lighter one"
            )


class _Watcher:
    """Counts calls and sizes by forward hooks."""

    def __init__(self, layers: dict[str, nn.Module]) -> None:
        self.layers = layers
        self.calls: Counter[str] = Counter()
        self.positions: dict[str, list[int]] = {}
        self.items: dict[str, int] = {}
        self.odd: dict[str, str] = {}
        self.activation_bytes = self.live_bytes = 0
        self.thread = get_ident()

    def attach(self, model: nn.Module) -> list[torch.utils.hooks.RemovableHandle]:
        names = {id(m): n for n, m in self.layers.items()}
        return [
            m.register_forward_hook(self._hook(names.get(id(m))), with_kwargs=True)
            for m in model.modules()
            if id(m) in names or not list(m.children())
        ]

    def _hook(self, name: str | None):
        def hook(module: nn.Module, args: tuple, kwargs: dict, output: object) -> None:
            size = sum(t.numel() * t.element_size() for t in tensors_in(output))
            self.activation_bytes += size
            self.live_bytes = max(self.live_bytes, size)
            if name is None:
                return
            self.calls[name] += 1
            if get_ident() != self.thread:
                self.odd[name] = "it runs in a thread that the network's own code starts"
                return
            if type(module) not in PLAIN or not isinstance(output, Tensor):
                return
            conv = ConvSpec.of(module)
            given = next(iter((*args, *kwargs.values())), None)
            if len(args) != 1 or kwargs or not isinstance(given, Tensor):
                more = args and isinstance(given, Tensor)
                self.odd[name] = (
                    f"its input is {'not all it is given' if more else 'passed by keyword'}"
                )
            if not isinstance(given, Tensor):
                return
            if (conv.kernel and output.ndim != len(conv.kernel) + 2) or output.ndim < 2:
                self.odd[name] = f"its input has no batch axis (shape {tuple(given.shape)})"
                return
            before = self.positions.setdefault(name, [0, 0, 0])
            before[0] += len(output) * positions_of(conv, given)
            before[1] += len(output) * positions_of(conv, output)
            before[2] += len(output) * _between(conv, given, output)
            self.items[name] = max(len(output), self.items.get(name, 0))

        return hook

    def seen(self, name: str, module: nn.Module, shared: str | None, read: str | None) -> Seen:
        conv = ConvSpec.of(module) if type(module) in PLAIN else None
        inside, outside, between = self.positions.get(name, [0, 0, 0])
        refusal = _refuse(module) or shared
        if refusal is None and not self.calls[name]:
            refusal = (
                "its forward never ran on the first image (unused, or other code uses its weight)"
            )
        if refusal is None and self.items.get(name) == 0:
            refusal = (
                "nothing reaches it on the first image (a batch of none): give an image first on which "
                "the network finds something"
            )
        refusal = refusal or self.odd.get(name) or read
        return Seen(
            name, conv, inside, outside, self.calls[name], self.items.get(name, 1), refusal,
            None if between == outside else between,
        )  # fmt: skip


def _between(conv: ConvSpec, x: Tensor, y: Tensor) -> int:
    """Positions of the grid that is as long as the output along the kernel's first axis alone."""
    if not conv.kernel:
        return positions_of(conv, y)
    sizes = list(x.shape[2:])
    sizes[conv.first_axis] = y.shape[2 + conv.first_axis]
    return prod(sizes)


def _refuse(layer: nn.Module) -> str | None:
    """Why a layer cannot be rewritten whatever it does, or None."""
    kind = type(layer)
    if nn.utils.parametrize.is_parametrized(layer):
        return "its weight is parametrised: it is computed anew from other tensors at each pass"
    if kind not in PLAIN:
        name = f"{kind.__module__.removeprefix('torch.nn.modules.')}.{kind.__name__}"
        return f"{name} is not one of the plain layers that onebyone rewrites"
    weight = layer._parameters.get("weight")
    if weight is None:
        constant = "weight" in layer._buffers and not layer._forward_pre_hooks
        why = "a buffer" if constant else "weight or spectral normalisation"
        return f"its weight is no parameter of its own ({why})"
    if (
        layer._forward_hooks
        or layer._forward_pre_hooks
        or layer._backward_hooks
        or layer._backward_pre_hooks
    ):
        return "it carries hooks, whose effect a new layer would lose"
    if "forward" in vars(layer):
        return "its forward was replaced on the instance"
    if weight.dtype not in DTYPES:
        return f"its weight is {weight.dtype}, not floating point"
    if not torch.isfinite(weight).all():
        return "its weight has NaN or infinite values"
    return None


def _shared_weights(model: nn.Module) -> dict[str, str]:
    """Refusals of modules whose weight tensor is that of another module too."""
    owners: dict[int, list[str]] = {}
    for name, module in modules_by_name(model).items():
        for parameter in module._parameters.values():
            if parameter is not None:
                owners.setdefault(id(parameter), []).append(name)
    return {
        name: f"its weight is tied to that of {next(n for n in names if n != name)}"
        for names in owners.values() if len(names) > 1 for name in names
    }  # fmt: skip


class _Probe(nn.Module):
    """Stands in for a layer and notes which of its attributes other code reads."""

    def __init__(self, layer: nn.Module, reads: list[str], spared: Container[str]) -> None:
        super().__init__()
        self.layer = layer
        self.called = False
        self.__dict__["reads"] = reads
        self.__dict__["spared"] = spared

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            value = getattr(self.layer, name)
            if name not in self.__dict__["spared"]:
                self.__dict__["reads"].append(name)
            return value

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        self.called = True
        return self.layer(*args, **kwargs)


def used_otherwise(
    model: nn.Module, names: list[str], image: Tensor, *, spared: Container[str] = ()
) -> dict[str, str]:
    """Why other code would miss a layer: it reads its attributes, or calls it by another way.

    spared: attributes that what takes the layer's place has too.
    """
    reads: dict[str, list[str]] = {name: [] for name in names}
    shell = shallow_copy(model)
    copies = modules_by_name(shell)
    probes = {n: _Probe(copies[n], reads[n], spared) for n in names}
    shell = replace_modules(shell, probes)
    with torch.no_grad():
        call(shell, image.clone())
    return {
        name: f"the model's own code reads its attribute `{found[0]}`"
        if found
        else "the model calls it past the module tree (from a list or a closure of its own)"
        for name, found in reads.items()
        if found or not probes[name].called
    }
