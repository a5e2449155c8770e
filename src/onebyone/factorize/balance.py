"""Factors of one map, scaled alike: what they compute together stays, how they train gets better."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from onebyone.factorize.factors import Factors
from onebyone.factorize.metric import spectrum

ROUNDS = 3  # with two neighbors; one pair alone is balanced at once
FAINT = 1e-6  # of the strongest direction


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
    lower = _root(left.T @ left)
    if lower is None:
        outer, upper = torch.linalg.qr(left)
        inner, turned = torch.linalg.qr(right.T)
        u, s, v = torch.linalg.svd(upper @ turned.T)
        root = s.sqrt()
        return outer @ (u * root), (root[:, None] * v) @ inner.T
    # A = Q Lᵀ with orthonormal Q, so that A B = Q U (Uᵀ Lᵀ B) for any rotation U: here to orthogonal rows.
    # The map is kept by what is taken from one side and given to the other, however rounding turns U.
    u = spectrum(lower.T @ (right @ right.T) @ lower)[1]
    rows = (u.T @ lower.T) @ right
    norms = rows.norm(dim=1)
    root = norms.clamp_min(FAINT * float(norms.max())).clamp_min(1e-150).sqrt()
    spread = torch.linalg.solve_triangular(lower.T, u * root, upper=True)
    return left @ spread, rows / root[:, None]


def _root(gram: Float[Tensor, "rank rank"]) -> Float[Tensor, "rank rank"] | None:
    """The Cholesky factor; None where directions are too faint to be told from rounding."""
    lower, info = torch.linalg.cholesky_ex(gram)
    pivots = lower.diagonal()
    return lower if not info and bool((pivots > FAINT * pivots.max()).all()) else None
