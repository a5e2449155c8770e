"""What passes each layer, sampled by hooks in both directions and summed up as second moments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from math import ceil

import torch
from jaxtyping import Float
from torch import Tensor, nn

from onebyone.conv import ConvSpec
from onebyone.factorize.judging import JUDGED
from onebyone.factorize.metric import within
from onebyone.factorize.squeeze import tap_products
from onebyone.moments import Moments, RangeMoments, Reads, add_products
from onebyone.sampling import choose_positions, output_rows, patch_rows, positions_of
from onebyone.surveying import Seen, Survey
from onebyone.tree import modules_by_name, out_of_inference

WORK_SHARE = 0.06  # of a layer's own arithmetic that sampling for one moment may cost
LEAST_ROWS, MOST_ROWS = 4096, 32768


@dataclass
class LayerStatistics:
    """What one layer saw, summed over `images`.

    `channels`: its input pixels, all of them together where a form squeezes them, and otherwise of those
    channels alone that a narrowing cuts, each space by itself; `taps`: products of the taps of its input
    patches, summed over channels; `outputs`: its outputs before any normalisation, or Qᵀ times them where
    they reach no more than half of their space, spanned by the columns Q of the `basis`; `gradients`:
    Σ g gᵀ over all output positions, g the gradient of the loss there, or Qᵀ times it where none of
    more than `JUDGED` outputs can be left out (or `in_reach`); `lowest` and `highest`: the least and the
    greatest output of each channel that had a gradient at all. Of a grouped layer all but the taps and
    these two are of each group by itself; a depthwise layer has only these two. `batches` is how many of
    them had something for the layer.
    """

    channels: RangeMoments
    taps: Float[Tensor, "taps taps"]
    outputs: Moments
    gradients: Float[Tensor, "*groups out out"]
    lowest: Float[Tensor, " c_out"]
    highest: Float[Tensor, " c_out"]
    batches: int = 0
    basis: Float[Tensor, "groups out reach"] | None = None

    @staticmethod
    def none(
        conv: ConvSpec,
        reads: Reads | None = None,
        device: torch.device | str = "cpu",
        basis: Tensor | None = None,
        whole: bool = True,
    ) -> LayerStatistics:
        """What a layer saw that has not run yet; `reads` as in `reads_of`, `whole` for the gradients of all
        outputs, beyond the `basis` too."""
        groups = 1 if conv.depthwise else conv.groups
        block = 1 if reads is None else reads.block
        ranges: tuple[range, ...] = () if reads is None else reads.ranges
        if conv.taps > 1:
            ranges = (range(conv.c_in // groups),)
        taps, out = conv.taps * block, 0 if conv.depthwise else conv.c_out // groups
        reached = out if basis is None else basis.shape[-1]
        felt = out if whole or groups > 1 else reached
        return LayerStatistics(
            RangeMoments.none(() if conv.depthwise else ranges, device, groups),
            torch.zeros(taps, taps, dtype=torch.float64, device=device),
            Moments.none(reached, device, groups),
            Moments.none(felt, device, groups).products.float(),
            torch.full((conv.c_out,), torch.inf, dtype=torch.float32, device=device),
            torch.full((conv.c_out,), -torch.inf, dtype=torch.float32, device=device),
            basis=None if basis is None else basis.to(device),
        )

    def to(self, device: torch.device | str) -> LayerStatistics:
        """The same sums on another device."""
        parts = {f.name: getattr(self, f.name) for f in fields(self)}
        kinds = (Moments, RangeMoments, Tensor)
        return replace(self, **{n: p.to(device) for n, p in parts.items() if isinstance(p, kinds)})

    @property
    def bounded(self) -> bool:
        """Whether the gradients are those within the outputs' reach."""
        return self.basis is not None and self.gradients.shape[-1] == self.basis.shape[-1]

    @property
    def felt(self) -> Float[Tensor, "*groups reach reach"]:
        """The gradients within the outputs' reach."""
        if self.basis is None or self.bounded:
            return self.gradients
        groups, size, reach = self.basis.shape
        own = self.basis.mT @ (self.gradients.reshape(groups, size, size) @ self.basis)
        return own.reshape(*self.gradients.shape[:-2], reach, reach)

    def in_reach(self) -> LayerStatistics:
        """With what the outputs can feel of the gradients alone."""
        return replace(self, gradients=self.felt)

    @property
    def covariance(self) -> Float[Tensor, "*groups out out"]:
        """That of all outputs, in float64."""
        if self.basis is None:
            return self.outputs.covariance
        groups, size, reach = self.basis.shape
        own = self.outputs.covariance.reshape(groups, reach, reach)
        return within(own, self.basis.mT).reshape(*self.gradients.shape[:-2], size, size)

    def reached(self, rows: Float[Tensor, "samples c_out"]) -> Float[Tensor, "samples all_reach"]:
        """Outputs as `outputs` has them."""
        if self.basis is None:
            return rows
        groups, size, _ = self.basis.shape
        return (
            (rows.reshape(-1, groups, size).transpose(0, 1) @ self.basis).transpose(0, 1).flatten(1)
        )

    def part(self, inside: bool) -> LayerStatistics:
        """The same without numbers yet, for a part of the batches that another is judged by.

        Without the channels if not `inside`, and without outputs of more than `JUDGED` channels: what
        nothing judges would take as much memory again.
        """
        size = self.outputs.size
        return replace(
            self,
            channels=self.channels.none_like() if inside else RangeMoments.none(()),
            taps=torch.zeros_like(self.taps),
            outputs=self.outputs.none_like(size if self.gradients.shape[-1] <= JUDGED else 0),
            gradients=torch.zeros_like(self.gradients),
            batches=0,
        )

    def without(self, part: LayerStatistics) -> LayerStatistics:
        """The sums over the batches that are not in the part, of what the part has."""
        return replace(
            self,
            channels=self.channels - part.channels if part.channels.ranges else part.channels,
            taps=self.taps - part.taps,
            outputs=self.outputs - part.outputs if part.outputs.size else part.outputs,
            gradients=self.gradients - part.gradients,
            batches=self.batches - part.batches,
        )


@dataclass(frozen=True)
class Half:
    """What every other batch of the images gave, of what is judged by it: sums, and Σ Wᵀ G W."""

    layers: dict[str, LayerStatistics]
    needs: dict[str, Tensor]


class Recorder:
    """Hooks that sample what passes a layer, in both directions.

    `reads` as in `reads_of`; `narrowed` are the layers whose input channels may be left out, to be
    judged by every other batch; `bases` of layers whose outputs reach less than all their channels, `cut`
    those of which some outputs may be left out.
    """

    def __init__(
        self, found: Survey, images: int, generator: torch.Generator, reads: dict[str, Reads],
        narrowed: frozenset[str], bases: dict[str, Tensor], cut: frozenset[str],
    ) -> None:  # fmt: skip
        self.found, self.images, self.generator = found, images, generator
        self.reads, self.narrowed, self.bases, self.cut = reads, narrowed, bases, cut
        self.whole: dict[str, LayerStatistics] = {}
        self.first: dict[str, LayerStatistics] = {}
        self.in_first = True  # whether the batch that passes is one of those in `first` too

    def none(self, seen: Seen, device: torch.device | str = "cpu") -> LayerStatistics:
        """What a layer saw that has not run yet."""
        assert seen.conv is not None
        reads, basis = self.reads.get(seen.layer), self.bases.get(seen.layer)
        whole = seen.layer in self.cut or seen.conv.c_out <= JUDGED
        return LayerStatistics.none(seen.conv, reads, device, basis, whole)

    def none_first(self, seen: Seen, device: torch.device | str = "cpu") -> LayerStatistics:
        """The same for the first half of the batches, of what is judged by it."""
        assert seen.conv is not None
        whole = self.none(seen, device)
        judged = seen.conv.taps > 1 and whole.channels.widest <= JUDGED
        return whole.part(judged or seen.layer in self.narrowed)

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

        @out_of_inference
        def hook(_: nn.Module, args: tuple[Tensor], y: Tensor) -> Tensor:
            x = args[0].detach()
            if not y.numel():  # rows that the network chooses itself, and chose none of
                return y
            into = self._into(seen, x.device)
            layer, taps = into[0], len(into[0].taps)
            groups = 1 if conv.depthwise else conv.groups
            width = layer.channels.widest or conv.c_out // groups
            squares = sum(len(own) ** 2 for own in layer.channels.ranges) or width**2
            chosen = self._choose(seen, y, groups * taps * squares, width)
            if layer.channels.ranges:
                patches = patch_rows(conv, x, chosen)
                if taps > conv.taps:  # a linear layer behind a flattened map
                    patches = patches.reshape(len(patches), -1, taps).transpose(1, 2)
                channels = layer.channels.of(patches.flatten(0, 1))
                products = tap_products(patches)
                for one in into:
                    one.taps += products
                    if one.channels.ranges:
                        one.channels.take(channels)
            if layer.outputs.size:
                rows = output_rows(conv, y.detach(), chosen)
                outputs = layer.outputs.of(layer.reached(rows))
                for one in into:
                    if one.outputs.size:
                        one.outputs.take(outputs)
            if not y.requires_grad:
                y = y + torch.zeros(1, dtype=y.dtype, device=y.device, requires_grad=True)
            if not y.requires_grad:  # the network's own forward takes no gradients here
                return y
            felt = layer.gradients.shape[-1] or conv.c_out // groups
            chosen = self._choose(seen, y, groups * felt**2, felt)
            values = output_rows(conv, y.detach(), chosen)
            scale = positions_of(conv, y) / chosen.shape[1]
            y.register_hook(lambda g: _feel(into, values, output_rows(conv, g, chosen), scale))
            return y

        return hook

    def _into(self, seen: Seen, device: torch.device) -> list[LayerStatistics]:
        """The sums that what passes a layer now goes into: the whole, then the half if it is in that."""
        into = [self.whole.get(seen.layer) or self.none(seen, device)]
        self.whole[seen.layer] = into[0]
        if self.in_first:
            into.append(self.first.get(seen.layer) or self.none_first(seen, device))
            self.first[seen.layer] = into[1]
        for one in into:
            one.batches += 1
        return into

    def _choose(self, seen: Seen, y: Tensor, macs_per_row: int, width: int) -> Tensor:
        """Positions to sample in each item, so that the sampling stays cheap beside the layer."""
        conv = seen.conv
        assert conv is not None
        share = WORK_SHARE * seen.macs * self.images / macs_per_row
        rows = max(min(share, MOST_ROWS), LEAST_ROWS, 4 * width)
        wanted = ceil(rows / (self.images * seen.items_per_image * seen.calls))
        return choose_positions(len(y), positions_of(conv, y), wanted, self.generator)


def _feel(into: list[LayerStatistics], values: Tensor, gradients: Tensor, scale: float) -> None:
    """Add Σ g gᵀ, and widen the band of outputs that some gradient reached."""
    layer = into[0]
    felt = gradients != 0
    low = torch.where(felt, values, torch.inf).amin(0)
    high = torch.where(felt, values, -torch.inf).amax(0)
    torch.minimum(layer.lowest, low, out=layer.lowest)
    torch.maximum(layer.highest, high, out=layer.highest)
    if layer.outputs.size:
        products = torch.zeros_like(layer.gradients)
        add_products(products, layer.reached(gradients) if layer.bounded else gradients, scale)
        for one in into:
            one.gradients += products
