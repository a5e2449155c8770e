"""Factors of one map, scaled alike: what they compute together stays, how they train gets better."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from onebyone.factorize.factors import Factors
from onebyone.factorize.metric import spectrum

SWEEPS = 30  # over the scales of three factors, each of which leaves a quarter of what is off
FAINT = 1e-6  # of the strongest direction
LEAST = 1e-150  # the smallest scale, whose square is still a number


def balanced(factors: Factors) -> Factors:
    """The same map with factors of equal norm and parallel singular spaces, in float64.

    Solutions in a whitened space have factors whose norms differ by a hundred and more, so that one
    learning rate is too high for one and too low for the other. Neighbors A B become U √S and √S Vᵀ
    of A B = U S Vᵀ: of all factors of this product those of the least ‖A‖² + ‖B‖², where gradient
    descent is best conditioned (Srebro, Rennie & Jaakkola, "Maximum-Margin Matrix Factorization",
    2004, lemma 1). Three get singular vectors for their directions and each direction one scale
    (`_three`). Values of the map change by rounding alone.
    """
    core, reduce, expand = factors.core.double(), factors.reduce, factors.expand
    out, taps, inside = core.shape
    if expand is not None and reduce is not None:
        expand, core, reduce = _three(expand.double(), core, reduce.double())
    elif expand is not None:
        expand, flat = _pair(expand.double(), core.reshape(out, -1))
        core = flat.reshape(out, taps, inside)
    elif reduce is not None:
        tall, reduce = _pair(core.reshape(-1, inside), reduce.double())
        core = tall.reshape(out, taps, inside)
    return Factors(core, factors.bias, reduce, expand)


def _three(
    expand: Float[Tensor, "c_out out"],
    core: Float[Tensor, "out taps inside"],
    reduce: Float[Tensor, "inside c_in"],
) -> tuple[
    Float[Tensor, "c_out out"], Float[Tensor, "out taps inside"], Float[Tensor, "inside c_in"]
]:
    """Balanced factors of expand · core · reduce, of the same sizes.

    The directions are those of the higher-order singular value decomposition of the whole map (De
    Lathauwer, De Moor & Vandewalle, "A multilinear singular value decomposition", 2000), worked out in
    the core. With the energy m_jk of its entries, scales a_j of the outer columns and b_k of the inner
    rows give all three factors the same energy along each direction where a_j² = Σ_k m_jk / b_k and
    b_k² = Σ_j m_jk / a_j, whose turns converge.
    """
    out, _, inside = core.shape
    outer, upper = torch.linalg.qr(expand)
    inner, turned = torch.linalg.qr(reduce.T)
    core = torch.tensordot(upper, core, 1) @ turned.T
    rows, columns = core.reshape(out, -1), core.reshape(-1, inside)
    u, v = spectrum(rows @ rows.T)[1], spectrum(columns.T @ columns)[1]
    core = torch.tensordot(u.T, core, 1) @ v
    energy = core.square().sum(1)
    left, right = energy.new_ones(out), energy.new_ones(inside)
    for _ in range(SWEEPS):
        left = _above((energy @ (1 / right)).sqrt())
        right = _above(((1 / left) @ energy).sqrt())
    left, right = left.sqrt(), right.sqrt()
    core = core / left[:, None, None] / right
    return outer @ (u * left), core, (v * right).T @ inner.T


def _above(scales: Float[Tensor, " rank"]) -> Float[Tensor, " rank"]:
    return scales.clamp_min(FAINT * float(scales.max())).clamp_min(LEAST)


def _pair(
    left: Float[Tensor, "rows rank"], right: Float[Tensor, "rank columns"]
) -> tuple[Float[Tensor, "rows rank"], Float[Tensor, "rank columns"]]:
    """Balanced factors of left · right, of the same sizes."""
    rank = left.shape[1]
    if rank > min(len(left), right.shape[1]):
        # Directions that only one side has would end up 0 on both, where no gradient moves them.
        scale = (right.norm(dim=1) / left.norm(dim=0).clamp_min(LEAST)).clamp(1e-75, 1e75).sqrt()
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
    root = _above(norms).sqrt()
    spread = torch.linalg.solve_triangular(lower.T, u * root, upper=True)
    return left @ spread, rows / root[:, None]


def _root(gram: Float[Tensor, "rank rank"]) -> Float[Tensor, "rank rank"] | None:
    """The Cholesky factor; None where directions are too faint to be told from rounding."""
    lower, info = torch.linalg.cholesky_ex(gram)
    pivots = lower.diagonal()
    return lower if not info and bool((pivots > FAINT * pivots.max()).all()) else None
