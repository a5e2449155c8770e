"""Factors of one map, scaled alike: what they compute together stays, how they train gets better."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from onebyone.factorize.factors import Factors

ROUNDS = 3  # with two neighbors; one pair alone is balanced at once


def balanced(factors: Factors) -> Factors:
    """The same map with factors of equal norm and parallel singular spaces, in float64.

    Solutions in a whitened space have factors whose norms differ by a hundred and more, so that one
    learning rate is too high for one and too low for the other. Neighbors A B become U √S and √S Vᵀ
    of A B = U S Vᵀ: of all factors of this product those of the least ‖A‖² + ‖B‖², where gradient
    descent is best conditioned (Srebro, Rennie & Jaakkola, "Maximum-Margin Matrix Factorization",
    2004, lemma 1). Values of the map change by rounding alone.
    """
    core, reduce, expand = factors.core.double(), factors.reduce, factors.expand
    out, taps, inside = core.shape
    for _ in range(ROUNDS if reduce is not None and expand is not None else 1):
        if expand is not None:
            expand, flat = _pair(expand.double(), core.reshape(out, -1))
            core = flat.reshape(out, taps, inside)
        if reduce is not None:
            tall, reduce = _pair(core.reshape(-1, inside), reduce.double())
            core = tall.reshape(out, taps, inside)
    return Factors(core, factors.bias, reduce, expand)


def _pair(
    left: Float[Tensor, "rows rank"], right: Float[Tensor, "rank columns"]
) -> tuple[Float[Tensor, "rows rank"], Float[Tensor, "rank columns"]]:
    """Balanced factors of left · right, of the same sizes."""
    rank = left.shape[1]
    if rank > min(len(left), right.shape[1]):
        # Directions that only one side has would end up 0 on both, where no gradient moves them.
        scale = (right.norm(dim=1) / left.norm(dim=0).clamp_min(1e-150)).clamp(1e-75, 1e75).sqrt()
        return left * scale, right / scale[:, None]
    outer, upper = torch.linalg.qr(left)
    inner, lower = torch.linalg.qr(right.T)
    u, s, v = torch.linalg.svd(upper @ lower.T)
    root = s.sqrt()
    return outer @ (u * root), (root[:, None] * v) @ inner.T
