"""Factors: what a layer's map is split into."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Factors:
    """W ≈ expand · core · (reduce at every tap), plus a bias; None where the form has no such part.

    `reduce` may span several taps, ordered before the channels; the core has those that are left. Of a
    grouped layer each part is grouped, with its groups one after another along the first axis.
    """

    core: Float[Tensor, "core_out taps core_in"]
    bias: Float[Tensor, " c_out"]
    reduce: Float[Tensor, "rank_in read"] | None = None
    expand: Float[Tensor, "c_out rank_out"] | None = None
