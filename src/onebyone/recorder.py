"""What passes each layer, sampled by hooks in both directions and summed up as second moments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from math import ceil

import torch
from jaxtyping import Float
from torch import Tensor, nn

from onebyone.conv import ConvSpec
from onebyone.factorize.squeeze import tap_products
from onebyone.moments import Moments, add_products
from onebyone.sampling import choose_positions, output_rows, patch_rows, positions_of
from onebyone.surveying import Seen, Survey
from onebyone.tree import modules_by_name

WORK_SHARE = 0.06  # of a layer's own arithmetic that sampling for one moment may cost
LEAST_ROWS, MOST_ROWS = 4096, 32768


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
            Moments.none(out, device, groups).products.float(),
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
class Half:
    """What every other batch of the images gave: sums, and Σ Wᵀ G W as `Statistics.needs`."""

    layers: dict[str, LayerStatistics]
    needs: dict[str, Tensor]


class Recorder:
    """Hooks that sample what passes a layer, in both directions."""

    def __init__(
        self, found: Survey, images: int, generator: torch.Generator, blocks: dict[str, int]
    ) -> None:
        self.found, self.images, self.generator, self.blocks = found, images, generator, blocks
        self.halves: tuple[dict[str, LayerStatistics], ...] = ({}, {})
        self.half = 0  # which of them the batch that passes belongs to

    def attach(self, model: nn.Module) -> list[torch.utils.hooks.RemovableHandle]:
        """Hooks on every layer that can change; the caller takes them off."""
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
            layers = self.halves[self.half]
            layer = layers.setdefault(seen.layer, LayerStatistics.none(conv, block, x.device))
            if not y.numel():  # rows that the network chooses itself, and chose none of
                return y
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
            if not y.requires_grad:  # the network's own forward takes no gradients here
                return y
            felt = conv.c_out // groups
            chosen = self._choose(seen, y, groups * felt**2, felt)
            values = output_rows(conv, y.detach(), chosen)
            scale = positions_of(conv, y) / chosen.shape[1]
            y.register_hook(lambda g: _feel(layer, values, output_rows(conv, g, chosen), scale))
            return y

        return hook

    def _choose(self, seen: Seen, y: Tensor, macs_per_row: int, width: int) -> Tensor:
        """Positions to sample in each item, so that the sampling stays cheap beside the layer."""
        conv = seen.conv
        assert conv is not None
        share = WORK_SHARE * seen.macs * self.images / macs_per_row
        rows = max(min(share, MOST_ROWS), LEAST_ROWS, 4 * width)
        wanted = ceil(rows / (self.images * seen.items_per_image * seen.calls))
        return choose_positions(len(y), positions_of(conv, y), wanted, self.generator)


def _feel(layer: LayerStatistics, values: Tensor, gradients: Tensor, scale: float) -> None:
    """Add Σ g gᵀ, and widen the band of outputs that some gradient reached."""
    felt = gradients != 0
    low = torch.where(felt, values, torch.inf).amin(0)
    high = torch.where(felt, values, -torch.inf).amax(0)
    if layer.outputs.size:
        add_products(layer.gradients, gradients, scale)
    torch.minimum(layer.lowest, low, out=layer.lowest)
    torch.maximum(layer.highest, high, out=layer.highest)
