"""Second moments of what passes a layer, as sums over samples, for each group of channels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from onebyone.factorize.metric import shrink, shrinkage


@dataclass
class Moments:
    """Sums over samples, so that the parts of a data set can be added up; in float64.

    Rows are centred before they are multiplied, in their own type: features that vary little about a
    large mean would be nothing but rounding in a float32 sum of their squares.
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
            torch.zeros(*shape, size, dtype=torch.float64, device=device),
        )  # fmt: skip

    def add(self, rows: Float[Tensor, "samples all_d"]) -> None:
        """Take these rows in; each has the numbers of all groups."""
        if not len(rows):
            return
        mean = rows.mean(0)
        rows = rows - mean
        centred = torch.zeros(self.products.shape, dtype=rows.dtype, device=rows.device)
        add_products(centred, rows)
        rest = rows.sum(0).double()  # what rounding left of the mean
        total = len(rows) * mean.double() + rest
        rest, total = (part.reshape(self.total.shape) for part in (rest, total))
        self.samples += len(rows)
        self.total += total
        self.products += centred + (_square(total) - _square(rest)) / len(rows)

    @property
    def size(self) -> int:
        """How many numbers a sample has in each group."""
        return self.total.shape[-1]

    def to(self, device: torch.device | str) -> Moments:
        """The same sums on another device."""
        return Moments(self.samples, self.total.to(device), self.products.to(device))

    def __add__(self, other: Moments) -> Moments:
        return Moments(
            self.samples + other.samples, self.total + other.total, self.products + other.products
        )

    @property
    def few(self) -> bool:
        """Whether there are no more samples than numbers in one: their covariance is singular."""
        return 0 < self.samples <= self.size

    @property
    def covariance(self) -> Float[Tensor, "*groups d d"]:
        """Centred second moments, in float64; of few samples shrunk, so that no direction is free."""
        mean = self.total / self.samples
        found = self.products.to(torch.float64, copy=True).div_(self.samples)
        found.sub_(_square(mean))
        if not self.few:
            return found
        groups = [
            shrink(one, shrinkage(one, self.samples)) if one.any() else one
            for one in found.reshape(-1, self.size, self.size)
        ]
        return torch.stack(groups).reshape(found.shape)


def _square(values: Float[Tensor, "*groups d"]) -> Float[Tensor, "*groups d d"]:
    return values[..., :, None] * values[..., None, :]


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
