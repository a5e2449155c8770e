"""observe: one pass over images → second moments of layer inputs, outputs and loss gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from math import ceil

import torch
from jaxtyping import Float
from torch import Tensor, nn

from onebyone.agreement import Agreement
from onebyone.conv import ConvSpec, kernel_of
from onebyone.data import open_images
from onebyone.distributed import World
from onebyone.factorize.metric import shrink, shrinkage_of_halves
from onebyone.factorize.selection import Order
from onebyone.factorize.squeeze import input_form, tap_products
from onebyone.moments import Moments, add_products
from onebyone.narrowing.finding import find_spaces
from onebyone.narrowing.ordering import channel_orders
from onebyone.narrowing.spaces import Space, blocks_read
from onebyone.plain import plain
from onebyone.running import call, release_memory, suited
from onebyone.sampling import choose_positions, output_rows, patch_rows, positions_of
from onebyone.sensing import send_back, stand_in
from onebyone.surveying import Seen, Survey, survey
from onebyone.tree import evaluating, frozen, hooked, modules_by_name, random_state

WORK_SHARE = 0.06  # of a layer's own arithmetic that sampling for one moment may cost
LEAST_ROWS, MOST_ROWS = 4096, 32768
OVER = 2  # bytes that a pass takes for each byte of activations


@dataclass
class LayerStatistics:
    """What one layer saw, summed over `images`.

    `channels`: its input pixels, of no channels for a pointwise or linear layer whose input neither a
    form squeezes nor a narrowing cuts; `taps`: products of the taps of its input patches, summed over
    channels; `outputs`: its outputs before any normalisation; `gradients`: Σ g gᵀ over all output
    positions, g the gradient of the loss there; `lowest` and `highest`: the least and the greatest
    output of each channel that had a gradient at all. Of a grouped layer all but the taps and these
    two are of each group by itself; a depthwise layer has only these two.
    """

    channels: Moments
    taps: Float[Tensor, "taps taps"]
    outputs: Moments
    gradients: Float[Tensor, "*groups out out"]
    lowest: Float[Tensor, " c_out"]
    highest: Float[Tensor, " c_out"]

    @staticmethod
    def none(conv: ConvSpec, block: int = 0, device: torch.device | str = "cpu") -> LayerStatistics:
        """What a layer saw that has not run yet; `block` as in `blocks_read`."""
        groups = 1 if conv.depthwise else conv.groups
        taps, out = conv.taps * max(block, 1), 0 if conv.depthwise else conv.c_out // groups
        reads = not conv.depthwise and (conv.taps > 1 or block)
        inside = conv.c_in // groups // max(block, 1) if reads else 0
        return LayerStatistics(
            Moments.none(inside, device, groups),
            torch.zeros(taps, taps, dtype=torch.float64, device=device),
            Moments.none(out, device, groups),
            Moments.none(out, device, groups).products,
            torch.full((conv.c_out,), torch.inf, device=device),
            torch.full((conv.c_out,), -torch.inf, device=device),
        )

    def to(self, device: torch.device | str) -> LayerStatistics:
        """The same sums on another device."""
        return LayerStatistics(*(getattr(self, part.name).to(device) for part in fields(self)))

    def __add__(self, other: LayerStatistics) -> LayerStatistics:
        return LayerStatistics(
            self.channels + other.channels,
            self.taps + other.taps,
            self.outputs + other.outputs,
            self.gradients + other.gradients,
            torch.minimum(self.lowest, other.lowest),
            torch.maximum(self.highest, other.highest),
        )


@dataclass(frozen=True)
class Statistics:
    """What `observe` returns: the survey of the network and the moments of each layer it can change.

    `spaces` are the hidden channels between layers, those that cannot be left out with the reason;
    `needs` has Σ Wᵀ G W for the input channels of layers, summed over the images, and `orders` for
    each space that can be cut, by its name, which channels are needed most. `kernels` are the weights
    (c_out, taps, c_in of a group) of layers whose kernel lies along several axes. `notes` say what of
    the images the plan should be read with: that they are few, or unlike those of training.
    """

    survey: Survey
    images: int
    layers: dict[str, LayerStatistics]
    seed: int
    spaces: tuple[Space, ...] = ()
    needs: dict[str, Tensor] = field(default_factory=dict)
    orders: dict[str, Order] = field(default_factory=dict)
    kernels: dict[str, Tensor] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def observe(
    model: nn.Module,
    images: object,
    *,
    seed: int = 0,
    memory: int = 2 << 30,
    progress: Callable[[float], None] | None = None,
) -> Statistics:
    """Run the images through the model once, forwards and backwards, and keep second moments.

    images: a tensor (N, C, H, W) or anything that `onebyone.data.open_images` takes; no labels are
    needed. What is sent back from logits is S v, S Sᵀ = diag(p) − p pᵀ for the model's own softened
    prediction p, v of random signs: the gradients' second moment is then the Fisher information
    (Martens 2020, §5), with less noise than from labels drawn from p. Rows of
    probabilities count as the logits behind them. For an output that is not (N, classes) it is
    v ~ N(0, I). The model comes back as it was.
    memory: bytes that the pass may take for activations; progress: told the fraction done.
    Processes that torchrun started share the batches, and each gets the sums over all.
    Layers of classes of their own that compute what a plain one does are seen as such (`onebyone.plain`).
    Raises ModelError for a model that fails on the images, returns NaN or has nothing to change.
    """
    inputs, world = open_images(images).inputs, World.current()
    model = plain(model, inputs[:1]).model
    with evaluating(model), frozen(model), random_state(seed) as generator:
        found = survey(model, inputs[:1])
        spaces = find_spaces(model, inputs, found)
        batch = max(
            1, min(ceil(len(inputs) / 2), 64, memory // max(OVER * found.activation_bytes, 1))
        )
        blocks = blocks_read(spaces)
        recorder, agreement = _Recorder(found, len(inputs), generator, blocks), Agreement()
        with hooked(recorder.attach(model)), torch.enable_grad():
            for index, part in world.share(inputs.split(batch)):
                # A batch draws the same whichever process it falls to.
                generator.manual_seed(hash((seed, index)) % (1 << 62))
                recorder.second = bool(index % 2)
                with hooked(agreement.attach(model) if not index else []):
                    output = call(model, suited(model, part))
                send_back(output, len(part), generator)
                if progress is not None:
                    progress(min(1.0, (index + 1) * batch / len(inputs)))
    release_memory()
    kept = {name: seen.to("cpu") for name, seen in recorder.layers.items()}
    layers = _summed(kept, found, blocks, world)
    _settle(layers, recorder.halves, world)
    notes = (*agreement.notes, *_filled(layers, len(inputs)))
    needs = _needs(model, layers)
    orders = channel_orders(spaces, layers, needs)
    kernels = _kernels(model, layers)
    return Statistics(
        _only(found, layers), len(inputs), layers, seed, spaces, needs, orders, kernels, notes
    )


def _settle(layers: dict[str, LayerStatistics], halves: dict[str, Tensor], world: World) -> None:
    """Shrink the moments of the gradients by as much as those of every other batch differ; in place.

    Few images span few directions of the gradients, others would span others.
    """
    for name, seen in layers.items():
        own = halves.get(name)
        second = torch.zeros_like(seen.gradients) if own is None else own.to(seen.gradients)
        world.add(second)
        shape = seen.gradients.shape
        if not seen.gradients.numel():
            continue
        size = shape[-1]
        pairs = zip(
            seen.gradients.reshape(-1, size, size), second.reshape(-1, size, size), strict=True
        )
        seen.gradients = torch.stack([
            shrink(whole, shrinkage_of_halves(whole - half, half)) if whole.any() else whole
            for whole, half in pairs
        ]).reshape(shape)  # fmt: skip


def _filled(layers: dict[str, LayerStatistics], images: int) -> tuple[str, ...]:
    """Moments for layers that no gradient reached; notes on those, and on layers of few samples."""
    dense = {name: seen for name, seen in layers.items() if seen.outputs.size}
    unfelt = stand_in(
        {name: seen.gradients for name, seen in dense.items()},
        {name: seen.outputs.covariance for name, seen in dense.items()},
        images,
    )
    few = tuple(name for name, seen in dense.items() if seen.outputs.few or seen.channels.few)
    notes = []
    if unfelt:
        notes.append(
            f"no gradient of the network's outputs reaches {_named(unfelt)}: their own outputs are "
            "kept close instead"
        )
    if few:
        notes.append(
            f"the {images:,} calibration images give {_named(few)} no more samples than channels: "
            "their covariance is shrunk towards equal channels, and more images would give a better plan"
        )
    return tuple(notes)


def _named(layers: tuple[str, ...]) -> str:
    """A few of the names, and how many more."""
    more = f" and {len(layers) - 3} more layers" if len(layers) > 3 else ""
    return ", ".join(layers[:3]) + more


def _needs(model: nn.Module, layers: dict[str, LayerStatistics]) -> dict[str, Tensor]:
    """The quadratic form of the loss in the input channels of each layer that recorded them."""
    modules = modules_by_name(model)
    needs: dict[str, Tensor] = {}
    for name, seen in layers.items():
        if seen.channels.size:
            kernel = kernel_of(modules[name]).cpu()
            if kernel.shape[2] != seen.channels.size:  # a linear layer behind a flattened map
                kernel = kernel.reshape(len(kernel), seen.channels.size, -1).transpose(1, 2)
            if seen.gradients.ndim == 2:
                needs[name] = input_form(kernel, seen.taps, seen.gradients)
            else:
                pairs = zip(kernel.chunk(len(seen.gradients)), seen.gradients, strict=True)
                needs[name] = torch.stack([input_form(w, seen.taps, g) for w, g in pairs])
    return needs


def _kernels(model: nn.Module, layers: dict[str, LayerStatistics]) -> dict[str, Tensor]:
    """Copies of the weights whose taps are not all of one axis."""
    modules = modules_by_name(model)
    found: dict[str, Tensor] = {}
    for name in layers:
        conv = ConvSpec.of(modules[name])
        if conv.taps > conv.first_taps and not conv.depthwise:
            found[name] = kernel_of(modules[name]).to("cpu", torch.float32, copy=True)
    return found


def _summed(
    layers: dict[str, LayerStatistics], found: Survey, blocks: dict[str, int], world: World
) -> dict[str, LayerStatistics]:
    """The sums over all processes; of layers that ran in none there are none."""
    if world.size == 1:
        return layers
    summed: dict[str, LayerStatistics] = {}
    for seen in found.layers:
        if seen.refusal is not None or seen.conv is None:
            continue
        ran = torch.tensor(int(seen.layer in layers))
        world.add(ran)
        own = layers.get(seen.layer)
        own = own or LayerStatistics.none(seen.conv, blocks.get(seen.layer, 0))
        for moments in (own.channels, own.outputs):
            samples = torch.tensor(moments.samples)
            world.add(samples, moments.total, moments.products)
            moments.samples = int(samples)
        world.add(own.taps, own.gradients)
        world.least(own.lowest)
        world.greatest(own.highest)
        if int(ran):
            summed[seen.layer] = own
    return summed


def _only(found: Survey, seen: dict[str, LayerStatistics]) -> Survey:
    """The survey with a refusal for layers that ran on the first image but not in the batches."""
    late = (
        "it ran on one image alone but not in batches: the model's control flow depends on its data"
    )
    layers = [
        replace(s, refusal=late) if s.refusal is None and s.layer not in seen else s
        for s in found.layers
    ]
    return replace(found, layers=tuple(layers))


class _Recorder:
    """Hooks that sample what passes a layer, in both directions."""

    def __init__(
        self, found: Survey, images: int, generator: torch.Generator, blocks: dict[str, int]
    ) -> None:
        self.found, self.images, self.generator, self.blocks = found, images, generator, blocks
        self.layers: dict[str, LayerStatistics] = {}
        self.second = False  # whether the batch that passes is one of every other
        self.halves: dict[str, Tensor] = {}  # the gradients' moments of those

    def attach(self, model: nn.Module) -> list[torch.utils.hooks.RemovableHandle]:
        modules = modules_by_name(model)
        return [
            modules[seen.layer].register_forward_hook(self._hook(seen))
            for seen in self.found.layers
            if seen.refusal is None
        ]

    def _hook(self, seen: Seen) -> Callable[[nn.Module, tuple[Tensor], Tensor], Tensor]:
        conv = seen.conv
        assert conv is not None

        def hook(_: nn.Module, args: tuple[Tensor], y: Tensor) -> Tensor:
            x = args[0].detach()
            block = self.blocks.get(seen.layer, 0)
            layer = self.layers.setdefault(seen.layer, LayerStatistics.none(conv, block, x.device))
            inside, taps = layer.channels.size, len(layer.taps)
            groups = 1 if conv.depthwise else conv.groups
            width = inside or conv.c_out // groups
            chosen = self._choose(seen, y, groups * taps * width**2, width)
            if inside:
                patches = patch_rows(conv, x, chosen)
                if block > 1:
                    patches = patches.reshape(-1, inside, taps).transpose(1, 2)
                layer.channels.add(patches.reshape(-1, groups * inside))
                layer.taps += tap_products(patches)
            if layer.outputs.size:
                layer.outputs.add(output_rows(conv, y.detach(), chosen))
            if not y.requires_grad:
                y = y + torch.zeros(1, dtype=y.dtype, device=y.device, requires_grad=True)
            felt = conv.c_out // groups
            chosen = self._choose(seen, y, groups * felt**2, felt)
            values = output_rows(conv, y.detach(), chosen)
            scale = positions_of(conv, y) / chosen.shape[1]
            second = self._half(seen.layer, layer)
            y.register_hook(
                lambda g: _feel(layer, second, values, output_rows(conv, g, chosen), scale)
            )
            return y

        return hook

    def _half(self, name: str, layer: LayerStatistics) -> Tensor | None:
        """Where gradients of a batch of every other are added too."""
        if not self.second:
            return None
        return self.halves.setdefault(name, torch.zeros_like(layer.gradients))

    def _choose(self, seen: Seen, y: Tensor, macs_per_row: int, width: int) -> Tensor:
        """Positions to sample in each item, so that the sampling stays cheap beside the layer."""
        conv = seen.conv
        assert conv is not None
        share = WORK_SHARE * seen.macs * self.images / macs_per_row
        rows = max(min(share, MOST_ROWS), LEAST_ROWS, 4 * width)
        wanted = ceil(rows / (self.images * seen.items_per_image * seen.calls))
        return choose_positions(len(y), positions_of(conv, y), wanted, self.generator)


def _feel(
    layer: LayerStatistics, second: Tensor | None, values: Tensor, gradients: Tensor, scale: float
) -> None:
    """Add Σ g gᵀ, and widen the band of outputs that some gradient reached."""
    felt = gradients != 0
    low = torch.where(felt, values, torch.inf).amin(0)
    high = torch.where(felt, values, -torch.inf).amax(0)
    if layer.outputs.size:
        add_products(layer.gradients, gradients, scale)
        if second is not None:
            add_products(second, gradients, scale)
    torch.minimum(layer.lowest, low, out=layer.lowest)
    torch.maximum(layer.highest, high, out=layer.highest)
