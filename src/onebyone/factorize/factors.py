"""Factors: what a layer's map is split into."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Factors:
    """W ≈ expand · core · (reduce at every tap), plus a bias; None where the form has no such part."""

    core: Float[Tensor, "core_out taps core_in"]
    bias: Float[Tensor, " c_out"]
    reduce: Float[Tensor, "rank_in c_in"] | None = None
    expand: Float[Tensor, "c_out rank_out"] | None = None
