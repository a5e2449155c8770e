"""Second moments of what passes a layer, as sums over samples, for each group of channels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from onebyone.factorize.metric import raised, shrinkage, within


@dataclass
class Moments:
    """Sums over samples, so that the parts of a data set can be added up.

    `total` adds up the samples, in float64; `products` adds up the products of what they are off their
    own mean, in float32: features that vary little about a large mean would be nothing but rounding in
    a sum of their squares.
    """

    samples: int
    total: Float[Tensor, "*groups d"]
    products: Float[Tensor, "*groups d d"]

    @staticmethod
    def none(size: int, device: torch.device | str = "cpu", groups: int = 1) -> Moments:
        """The sums of no samples yet; one after another for each of several groups."""
        shape = (size,) if groups == 1 else (groups, size)
        return Moments(
            0, torch.zeros(shape, dtype=torch.float64, device=device),
            torch.zeros(*shape, size, dtype=torch.float32, device=device),
        )  # fmt: skip

    def none_like(self, size: int) -> Moments:
        """The sums of no samples yet, of another size, in as many groups on the same device."""
        groups = len(self.total) if self.total.ndim == 2 else 1
        return Moments.none(size, self.total.device, groups)

    def of(self, rows: Float[Tensor, "samples all_d"]) -> Moments:
        """The sums of these rows alone, in groups as these are; each row has the numbers of all groups."""
        made = Moments(len(rows), torch.zeros_like(self.total), torch.zeros_like(self.products))
        if len(rows):
            mean = rows.mean(0)
            rows = rows - mean
            add_products(made.products, rows.float())
            rest = rows.sum(0).double()  # what rounding left of the mean
            made.total += (len(rows) * mean.double() + rest).reshape(made.total.shape)
            made.shift(rest.reshape(made.total.shape) / len(rows), -len(rows))
        return made

    def take(self, other: Moments) -> None:
        """Take in what another part of the samples gave (Chan, Golub & LeVeque, "Algorithms for computing
        the sample variance", 1983)."""
        self.products += other.products
        self._between(other, 1)
        self.samples += other.samples
        self.total += other.total

    def shift(self, gap: Float[Tensor, "*groups d"], weight: float) -> None:
        """Add `weight` times the products of a gap between means to those of the samples."""
        gap = gap.to(self.products.dtype).unsqueeze(-1)
        if gap.ndim == 3:
            self.products.baddbmm_(gap, gap.transpose(1, 2), alpha=weight)
        else:
            self.products.addmm_(gap, gap.T, alpha=weight)

    @property
    def mean(self) -> Float[Tensor, "*groups d"]:
        """Of all samples."""
        return self.total / max(self.samples, 1)

    @property
    def size(self) -> int:
        """How many numbers a sample has in each group."""
        return self.total.shape[-1]

    def to(self, device: torch.device | str) -> Moments:
        """The same sums on another device."""
        return Moments(self.samples, self.total.to(device), self.products.to(device))

    def __sub__(self, part: Moments) -> Moments:
        """What the other samples gave, of which `part` are some."""
        rest = Moments(
            self.samples - part.samples, self.total - part.total, self.products - part.products
        )
        rest._between(part, -1)
        return rest

    @property
    def few(self) -> bool:
        """Whether there are no more samples than numbers in one: their covariance is singular."""
        return 0 < self.samples <= self.size

    @property
    def covariance(self) -> Float[Tensor, "*groups d d"]:
        """Centred second moments, in float64; of few samples shrunk, so that no direction is free."""
        if not self.few:
            return self.products.to(torch.float64, copy=True).div_(self.samples)
        groups = [self] if self.total.ndim == 1 else map(self.group, range(len(self.total)))
        found = [one.covariance_of(slice(None), one.shrinking) for one in groups]
        return torch.stack(found).reshape(self.products.shape)

    def group(self, index: int) -> Moments:
        """Those of one of several groups."""
        return Moments(self.samples, self.total[index], self.products[index])

    @property
    def shrinking(self) -> tuple[float, float]:
        """By how much `covariance` is shrunk, from 0 to 1, and the variance that it is shrunk towards."""
        if not self.few or not self.products.any():
            return 0.0, 0.0
        found = self.products.to(torch.float64, copy=True).div_(self.samples)
        scale = float(found.diagonal().mean())
        return (shrinkage(found, self.samples), scale) if scale > 0 else (1.0, 1.0)

    def covariance_of(self, own: slice, shrinking: tuple[float, float]) -> Float[Tensor, "c c"]:
        """The `covariance` of some of the numbers, shrunk as that of all is, by its `shrinking`."""
        amount, scale = shrinking
        found = self.products[own, own].to(torch.float64, copy=True).div_(self.samples)
        return raised(found.mul_(1 - amount), amount * scale)

    def within(self, basis: Float[Tensor, "groups d reach"]) -> Moments:
        """Those of Qᵀ x for samples x, group by group."""
        groups, size, reach = basis.shape
        total = basis.mT @ self.total.reshape(groups, size, 1)
        products = within(self.products.reshape(groups, size, size), basis)
        return Moments(self.samples, total.reshape(groups, reach), products)

    def _between(self, other: Moments, sign: int) -> None:
        """What the distance of both means adds to the products (or, at −1, takes off them)."""
        if self.samples and other.samples:
            weight = self.samples * other.samples / (self.samples + other.samples)
            self.shift(self.mean - other.mean, sign * weight)


@dataclass(frozen=True)
class Reads:
    """How a layer reads channels of interest: each as `block` entries, in these ranges of its channels."""

    block: int
    ranges: tuple[range, ...]


@dataclass
class RangeMoments:
    """Moments of the channels within each of several ranges; how two ranges vary together is left out.

    Of a layer that reads all that came before it (in a DenseNet), moments between all channels would take
    most of the memory and of the time. Ranges of one length are the groups of one `Moments`.
    """

    ranges: tuple[range, ...]
    by_length: dict[int, Moments]

    @staticmethod
    def none(
        ranges: Sequence[range], device: torch.device | str = "cpu", groups: int = 1
    ) -> RangeMoments:
        """The sums of no samples yet; a grouped layer has one range, that of each group."""
        lengths = [len(own) for own in ranges]
        found = {n: Moments.none(n, device, groups * lengths.count(n)) for n in sorted({*lengths})}
        return RangeMoments(tuple(ranges), found)

    def none_like(self) -> RangeMoments:
        """The sums of no samples yet, of the same ranges on the same device."""
        return self._each(lambda own: own.none_like(own.size))

    def of(self, rows: Float[Tensor, "samples all_d"]) -> RangeMoments:
        """The sums of these rows alone, each of all channels (of all groups, where there are some)."""
        return self._each(lambda own: own.of(self._columns(rows, own)))

    def take(self, other: RangeMoments) -> None:
        """Take in what another part of the samples gave."""
        for length, own in self.by_length.items():
            own.take(other.by_length[length])

    def to(self, device: torch.device | str) -> RangeMoments:
        """The same sums on another device."""
        return self._each(lambda own: own.to(device))

    def __sub__(self, part: RangeMoments) -> RangeMoments:
        """What the other samples gave, of which `part` are some."""
        return self._each(lambda own: own - part.by_length[own.size])

    @property
    def samples(self) -> int:
        """How many there were."""
        return next((own.samples for own in self.by_length.values()), 0)

    @property
    def few(self) -> bool:
        """Whether the covariance of some range is singular, of so few samples."""
        return any(own.few for own in self.by_length.values())

    @property
    def widest(self) -> int:
        """The channels of the longest range, 0 where there is none."""
        return max(map(len, self.ranges), default=0)

    @property
    def all(self) -> Moments:
        """Those of the one range that there is: all channels."""
        (found,) = self.by_length.values()
        return found

    @property
    def variance(self) -> float:
        """The mean variance of a channel, of those in all ranges."""
        each = torch.cat(
            [own.products.diagonal(0, -2, -1).flatten() for own in self.by_length.values()]
        )
        return float(each.double().mean()) / max(self.samples, 1)

    def around(self, own: range) -> tuple[range, Moments]:
        """The range that these channels are in, and its moments."""
        found = next(r for r in self.ranges if own.start in r)
        moments = self.by_length[len(found)]
        if moments.total.ndim == 1:
            return found, moments
        index = [r for r in self.ranges if len(r) == len(found)].index(found)
        return found, moments.group(index)

    def _each(self, made: Callable[[Moments], Moments]) -> RangeMoments:
        return replace(self, by_length={n: made(own) for n, own in self.by_length.items()})

    def _columns(self, rows: Tensor, own: Moments) -> Tensor:
        """What the rows have of the ranges of one length, one after another."""
        if own.total.numel() == rows.shape[1]:
            return rows
        columns = [c for r in self.ranges if len(r) == own.size for c in r]
        return rows[:, torch.tensor(columns, device=rows.device)]


def add_products(
    products: Float[Tensor, "*groups d d"], rows: Float[Tensor, "samples all_d"], scale: float = 1.0
) -> None:
    """Add `scale` times the products of the rows' numbers, within each group; in place."""
    if products.ndim == 2:
        products.addmm_(rows.T, rows, alpha=scale)
        return
    groups, size, _ = products.shape
    parts = rows.reshape(len(rows), groups, size).transpose(0, 1)
    products.baddbmm_(parts.transpose(1, 2), parts, alpha=scale)
