"""What each layer is predicted to lose at every rank of its sides, at full and at narrower widths."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from onebyone.factorize.judging import JUDGED, tails_on_other
from onebyone.factorize.metric import energies, factor, tails, within
from onebyone.factorize.spatial import between_energies, between_form
from onebyone.narrowing.spaces import Narrowing, kept_entries
from onebyone.narrowing.widths import Floats
from onebyone.recorder import LayerStatistics
from onebyone.statistics import Statistics
from onebyone.surveying import Seen

NOTHING = 1e-6  # of all that a layer can lose: below is rounding
Entries = tuple[int, ...] | None  # those of an axis that stay, None for all


class Losses:
    """The losses of layers by rank in nats per image; each spectrum is worked out once.

    A layer's sides are "out" and, for kernels of several taps, "in" (its channels) and "between" (the
    halves of a kernel along its axes). A spectrum is that of the channels that stay on its own side;
    that fewer outputs may stay, which feel less of the other sides, is not counted on.
    """

    def __init__(self, statistics: Statistics) -> None:
        self.statistics = statistics
        self.spectra: dict[tuple[str, str, Entries], Tensor] = {}
        self.excess: dict[str, dict[str, Floats]] = {}
        self.forms: dict[str, list[Tensor]] = {}

    def at(self, seen: Seen, narrowings: Sequence[Narrowing] = ()) -> dict[str, Floats]:
        """The losses of a layer for ranks 0, 1, … of each side, with some channels left out."""
        conv, layer = seen.conv, self.statistics.layers[seen.layer]
        assert conv is not None
        rows, columns = (
            None if kept is None else tuple(kept)
            for kept in (
                kept_entries(seen.layer, axis, size, narrowings)
                for axis, size in enumerate((conv.c_out, conv.c_in))
            )
        )
        sides = {"out": rows}
        if conv.taps > 1:  # no form of a pointwise layer cuts its input side
            sides["in"] = columns
            if seen.layer in self.statistics.kernels:
                sides["between"] = columns
        samples = {"out": layer.outputs.samples, "in": layer.channels.samples}
        if conv.transposed:  # most of what its patches hold are zeros between and around the pixels
            samples["in"] = min(samples["in"], self.statistics.images * seen.positions_in)
        optimism, lost = self.optimism(seen), {}
        for side, entries in sides.items():
            own = (tails(self.spectrum(seen, side, entries)) / 2).numpy()
            lost[side] = (
                beyond(own, optimism[side]) if side in optimism else unseen(own, samples.get(side))
            )
        return lost

    def optimism(self, seen: Seen) -> dict[str, Floats]:
        """How many times more one half of the images loses in the other's directions than all in their own.

        At each rank of the output and the input side of a layer at full width; without a side of more
        than `JUDGED` channels, and empty where one half did not reach the layer.
        """
        if seen.layer not in self.excess:
            self.excess[seen.layer] = {
                side: self._ratio(seen, side, forms) for side, forms in self._halves(seen).items()
            }
        return self.excess[seen.layer]

    def spectrum(self, seen: Seen, side: str, entries: Entries = None) -> Tensor:
        """The energies of the directions of a side among these entries, from large to small, in twice
        the nats of an image; those of each group added up."""
        key = (seen.layer, side, entries)
        if key not in self.spectra:
            found = self._energies(seen, side, None if entries is None else list(entries))
            self.spectra[key] = torch.stack(found).sum(0) / self.statistics.images
        return self.spectra[key]

    def _energies(self, seen: Seen, side: str, entries: list[int] | None) -> list[Tensor]:
        layer, name = self.statistics.layers[seen.layer], seen.layer
        if side == "out":
            forms, covariances = _felt(layer, entries)
            size = len(layer.lowest) // len(forms) if entries is None else len(entries)
            return [
                _padded(energies(root.T @ covariance @ root), size)
                for root, covariance in zip(map(factor, forms), covariances, strict=True)
            ]
        inside = _own(layer.channels.all.covariance, entries)
        if side == "in":
            return [
                energies(root.T @ need.double() @ root)
                for need, root in zip(
                    _own(self.statistics.needs[name], entries), map(factor, inside), strict=True
                )
            ]
        forms = self._between(seen)
        if entries is not None:
            forms = [form[:, entries][:, :, :, entries] for form in forms]
        assert seen.conv is not None
        c_out = seen.conv.c_out // len(forms)
        return [
            between_energies(form, covariance, layer.taps, c_out)
            for form, covariance in zip(forms, inside, strict=True)
        ]

    def _between(self, seen: Seen) -> list[Tensor]:
        """The forms between the halves of a kernel, one for each group, worked out once."""
        name, conv = seen.layer, seen.conv
        if name not in self.forms:
            assert conv is not None
            layer = self.statistics.layers[name]
            gradients = _own(layer.gradients, None)
            kernels = self.statistics.kernels[name].chunk(len(gradients))
            self.forms[name] = [
                between_form(w, layer.taps, metric, conv.first_taps)
                for w, metric in zip(kernels, gradients, strict=True)
            ]
        return self.forms[name]

    def _halves(self, seen: Seen) -> dict[str, list[tuple[Tensor, Tensor]]]:
        """The form of the loss and the covariance of each half, of the sides that are judged."""
        name, conv = seen.layer, seen.conv
        halves = [h for h in self.statistics.halves if name in h.layers]
        if conv is None or conv.depthwise or len(halves) < 2:
            return {}
        found = {}
        if halves[0].layers[name].outputs.size:
            found["out"] = [_felt(h.layers[name]) for h in halves]
        if conv.taps > 1 and all(name in h.needs for h in halves):
            found["in"] = [(h.needs[name], h.layers[name].channels.all.covariance) for h in halves]
        return {side: pairs for side, pairs in found.items() if 0 < pairs[0][1].shape[-1] <= JUDGED}

    def _ratio(self, seen: Seen, side: str, halves: list[tuple[Tensor, Tensor]]) -> Floats:
        """What each half loses in the other's directions, in parts of what all lose in their own."""
        (form, one), (other_form, other) = (
            (_own(form, None), _own(covariance, None)) for form, covariance in halves
        )
        groups = zip(form, one, other_form, other, strict=True)
        judged = torch.stack(
            [tails_on_other(f, c, g, d) + tails_on_other(g, d, f, c) for f, c, g, d in groups]
        ).sum(0)
        own = tails(self.spectrum(seen, side)) * self.statistics.images
        judged = _padded(judged, len(own))
        ratio = (judged / own.clamp_min(NOTHING * float(own[0]))).clamp_min(1)
        return torch.where(own > NOTHING * own[0], ratio, 1.0).numpy()


def _felt(layer: LayerStatistics, entries: list[int] | None = None) -> tuple[Tensor, Tensor]:
    """The form of the loss and the covariance at a layer's outputs, of each group, within their reach."""
    if entries is None or layer.basis is None:
        return _own(layer.felt, entries), _own(layer.outputs.covariance, entries)
    kept, rest = torch.linalg.qr(layer.basis[:, entries].double())
    forms = _own(layer.gradients, entries)
    return within(forms, kept), layer.outputs.within(rest.mT).covariance


def _padded(values: Tensor, size: int) -> Tensor:
    """The values and so many zeros that there are `size`."""
    return torch.cat([values, values.new_zeros(size - len(values))])


def beyond(losses: Floats, optimism: Floats) -> Floats:
    """Losses at ranks 0, 1, … times what `optimism` is at the same part of its own ranks.

    At most all is lost, and at a higher rank never more than at a lower one.
    """
    at = np.linspace(0, len(optimism) - 1, len(losses))
    more = losses * np.interp(at, np.arange(len(optimism)), optimism)
    return np.maximum.accumulate(np.minimum(more, losses[0])[::-1])[::-1].copy()


def unseen(losses: Floats, samples: int | None) -> Floats:
    """What is lost at ranks 0, 1, … on other samples than the n that the directions were found on.

    Directions fitted to few samples keep those and lose others: the loss is n² / (n − r)² times what
    it is on its own samples (generalized cross-validation; Craven & Wahba, "Smoothing noisy data with
    spline functions", 1979), at most all, and at a higher rank never more than at a lower one.
    """
    if not samples:
        return losses
    ranks = np.arange(len(losses))
    left = np.maximum(samples - ranks, 0) / samples
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.where(left > 0, losses / left**2, losses[0])
    found = np.minimum.accumulate(np.minimum(found, losses[0]))
    found[-1] = losses[-1]
    return found


def _own(matrix: Tensor, entries: list[int] | None) -> Tensor:
    """A matrix for each group (of dense layers there is one), of those entries that stay."""
    if entries is not None:
        matrix = matrix[entries][:, entries]
    return matrix if matrix.ndim == 3 else matrix[None]
