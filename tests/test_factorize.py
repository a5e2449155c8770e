"""The closed forms: exact, monotone, never worse than plain SVD, as good as brute force."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import TypeCheckError
from test_building import reconstructed
from torch import Tensor

from onebyone.factorize import fit as fitting
from onebyone.factorize import least_squares, metric, reduced_rank

FORMS = ("squeeze", "channel", "tucker2", "pointwise")


@dataclass(frozen=True)
class Problem:
    """Patches, the outputs that a layer gave for them, and the metric of the loss; all float64."""

    weight: Tensor
    bias: Tensor
    patches: Tensor
    targets: Tensor
    gradients: Tensor

    @property
    def lower(self) -> Tensor:
        return metric.factor(self.gradients)


def problem(
    seed: int, c_out: int = 6, taps: int = 4, c_in: int = 5, samples: int = 400, rank: int = 99
) -> Problem:
    """A random layer (each side of rank `rank` at most), correlated patches, uneven gradients."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    r_in, r_out = min(rank, c_in), min(rank, c_out)
    weight = torch.einsum("or,rkj,jc->okc", draw(c_out, r_out), draw(r_out, taps, r_in),
                          draw(r_in, c_in))  # fmt: skip
    mixing = draw(c_in, c_in) * torch.logspace(0, -1, c_in, dtype=torch.float64)
    patches = torch.einsum("kj,njd,dc->nkc", draw(taps, taps), draw(samples, taps, c_in), mixing)
    patches = patches + draw(taps, c_in)
    bias = draw(c_out)
    targets = torch.einsum("nkc,okc->no", patches, weight) + bias
    slopes = draw(3 * c_out, c_out) * torch.logspace(0, -1, c_out, dtype=torch.float64)
    return Problem(weight, bias, patches, targets, slopes.T @ slopes / len(slopes))


def solve(
    p: Problem, form: str, ranks: tuple[int, ...], ridge: float = 0.0, rounds: int = 3
) -> fitting.Factors:
    """The library's factors for a form and its ranks."""
    return fitting.fit(
        p.weight, p.patches, p.targets, p.lower,
        rank_in=ranks[0] if form in ("squeeze", "tucker2") else None,
        rank_out=ranks[-1] if form in ("channel", "tucker2", "pointwise") else None,
        ridge=ridge,
        rounds=rounds,
    )  # fmt: skip


def outputs(factors: fitting.Factors, patches: Tensor) -> Tensor:
    return torch.einsum("nkc,okc->no", patches, reconstructed(factors)) + factors.bias


def loss(p: Problem, given: Tensor) -> float:
    """Mean of (y − ŷ)ᵀ G (y − ŷ)."""
    rest = p.targets - given
    return float(torch.einsum("no,op,np->n", rest, p.gradients, rest).mean())


def error(p: Problem, form: str, ranks: tuple[int, ...], ridge: float = 0.0) -> float:
    """The loss of the closed form, relative to that of the mean output."""
    found = solve(p, form, ranks, ridge)
    return loss(p, outputs(found, p.patches)) / loss(p, p.targets.mean(0).expand_as(p.targets))


def shape_for(form: str) -> dict[str, int]:
    return {"taps": 1} if form == "pointwise" else {}


def full_ranks(p: Problem, form: str) -> tuple[int, ...]:
    c_out, _, c_in = p.weight.shape
    return {"squeeze": (c_in,), "tucker2": (c_in, c_out)}.get(form, (c_out,))


def check_full_rank(form: str, seed: int) -> None:
    """Law: full rank gives the layer back."""
    p = problem(seed, **shape_for(form))
    found = solve(p, form, full_ranks(p, form))
    torch.testing.assert_close(reconstructed(found), p.weight, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.bias, p.bias, rtol=1e-5, atol=1e-5)


def check_family(form: str, seed: int, rank: int) -> None:
    """Law: a kernel of the form's own rank is recovered exactly."""
    p = problem(seed, rank=rank, **shape_for(form))
    found = solve(p, form, tuple(min(rank, r) for r in full_ranks(p, form)))
    torch.testing.assert_close(outputs(found, p.patches), p.targets, rtol=1e-5, atol=1e-5)


def check_monotone(form: str, seed: int) -> None:
    """Law: the error never grows with the rank, and falls from the first to the last."""
    p = problem(seed, **shape_for(form))
    full = full_ranks(p, form)
    for side in range(len(full)):
        errors = [
            error(p, form, tuple(r if i == side else max(1, n - 2) for i, n in enumerate(full)))
            for r in range(1, full[side] + 1)
        ]
        assert all(b <= a + 1e-9 for a, b in pairwise(errors)), errors
        assert errors[-1] < 0.9 * errors[0]


def check_against_weight_svd(form: str, seed: int) -> None:
    """Law: never worse on the calibration set than plain SVD, or Tucker-2 (HOSVD), of the weight."""
    p = problem(seed, **shape_for(form))
    full = full_ranks(p, form)
    for r in range(1, max(full)):
        ranks = tuple(min(r, n) for n in full)
        plain = torch.einsum("nkc,okc->no", p.patches, weight_svd(p.weight, form, ranks)) + p.bias
        found = loss(p, outputs(solve(p, form, ranks), p.patches))
        assert found <= loss(p, plain) * (1 + 1e-6) + 1e-9, (form, ranks)


def weight_svd(weight: Tensor, form: str, ranks: tuple[int, ...]) -> Tensor:
    """The textbook approximation of the kernel, blind to data and loss."""
    c_out, taps, c_in = weight.shape
    if form in ("squeeze", "tucker2"):
        _, _, right = torch.linalg.svd(weight.reshape(-1, c_in), full_matrices=False)
        weight = weight @ right[: ranks[0]].T @ right[: ranks[0]]
    if form != "squeeze":
        left, _, _ = torch.linalg.svd(weight.reshape(c_out, -1), full_matrices=False)
        kept = left[:, : ranks[-1]]
        weight = (kept @ kept.T @ weight.reshape(c_out, -1)).reshape(c_out, taps, c_in)
    return weight


def brute_force(p: Problem, form: str, ranks: tuple[int, ...], starts: int = 3) -> float:
    """The lowest loss that LBFGS finds over the factors, from several random starts."""
    c_out, taps, c_in = p.weight.shape
    r_in = ranks[0] if form in ("squeeze", "tucker2") else c_in
    r_out = ranks[-1] if form != "squeeze" else c_out
    best = torch.inf
    for seed in range(starts):
        generator = torch.Generator().manual_seed(seed)
        shapes = [(c_out, r_out), (r_out, taps, r_in), (r_in, c_in), (c_out,)]
        free = [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]
        for tensor in free:
            tensor.requires_grad_()
        search = torch.optim.LBFGS(free, max_iter=300, line_search_fn="strong_wolfe",
                                   tolerance_grad=1e-9, tolerance_change=1e-12)  # fmt: skip

        def objective(search: torch.optim.LBFGS = search, free: list[Tensor] = free) -> Tensor:
            search.zero_grad()
            kernel = torch.einsum("or,rkj,jc->okc", *free[:3])
            rest = p.targets - torch.einsum("nkc,okc->no", p.patches, kernel) - free[3]
            value = torch.einsum("no,op,np->n", rest, p.gradients, rest).mean()
            value.backward()
            return value

        search.step(objective)  # type: ignore[arg-type]
        best = min(best, objective().item())
    return best


def kronecker(p: Problem) -> Problem:
    """The problem on patches whose sample covariance is exactly a Kronecker product."""
    samples, taps, c_in = p.patches.shape
    flat = p.patches.reshape(samples, -1)
    white, _ = torch.linalg.qr(flat - flat.mean(0))
    mixing = 0.3 * p.patches[:c_in, 0] + torch.eye(c_in, dtype=torch.float64)
    patches = (white * samples**0.5).reshape(samples, taps, c_in) @ mixing
    targets = torch.einsum("nkc,okc->no", patches, p.weight) + p.bias
    return replace(p, patches=patches, targets=targets)


def check_brute_force(form: str, seed: int, tolerance: float = 1e-3) -> None:
    """Law: no other factors of these ranks do better, where the closed form claims to be exact."""
    p = kronecker(problem(seed, c_out=4, c_in=4, samples=40, **{"taps": 2, **shape_for(form)}))
    for rank in (1, 2):
        found = loss(p, outputs(solve(p, form, (rank,)), p.patches))
        best = brute_force(p, form, (rank,))
        assert found <= best * (1 + tolerance), (form, rank)
        assert best <= found * 1.02, "the search itself has not arrived"


def check_first_basis(seed: int) -> None:
    """Law: where the patches' covariance is a Kronecker product, the first basis is the best one."""
    p = kronecker(problem(seed, c_out=4, c_in=4, samples=40, taps=2))
    for rank in (1, 2):
        found = loss(p, outputs(solve(p, "squeeze", (rank,), rounds=0), p.patches))
        assert found <= brute_force(p, "squeeze", (rank,)) * 1.001


@pytest.mark.parametrize("seed", range(3))
def test_the_first_basis_is_the_best_where_taps_and_channels_part(seed: int) -> None:
    check_first_basis(seed)


def check_alternation(form: str, seed: int) -> None:
    """Law: each round makes the loss no larger, and many arrive near the best factors there are."""
    p = problem(seed, c_out=4, c_in=4, samples=40, taps=2)
    ranks = (2, 2) if form == "tucker2" else (2,)
    losses = [
        loss(p, outputs(solve(p, form, ranks, rounds=n), p.patches)) for n in (0, 1, 2, 4, 8, 40)
    ]
    for before, after in itertools.pairwise(losses):
        assert after <= before * (1 + 1e-9)
    assert losses[-1] <= 1.05 * brute_force(p, form, ranks)


@pytest.mark.parametrize("form", ["squeeze", "tucker2"])
@pytest.mark.parametrize("seed", range(4))
def test_alternation_descends_to_the_best(form: str, seed: int) -> None:
    check_alternation(form, seed)


def check_core_is_refitted(seed: int) -> None:
    """Law: given the squeezed channels, the core is the least-squares answer (normal equations)."""
    p = problem(seed)
    for form, ranks in (("squeeze", (3,)), ("tucker2", (3, 6))):
        found = solve(p, form, ranks)
        features = (p.patches @ found.reduce.T).flatten(1)  # type: ignore[union-attr]
        rest = p.targets - outputs(found, p.patches)
        centred = features - features.mean(0)
        size = features.std() * p.targets.std()
        torch.testing.assert_close(rest.mean(0) / p.targets.std(), torch.zeros(6).double())
        moments = centred.T @ rest / len(rest) / size
        torch.testing.assert_close(moments, torch.zeros_like(moments), rtol=0, atol=1e-8)


def check_mean_output(form: str, seed: int, ridge: float = 0.05) -> None:
    """Law: the bias keeps the mean output, with and without a ridge."""
    p = problem(seed, **shape_for(form))
    ranks = tuple(max(1, r - 3) for r in full_ranks(p, form))
    given = outputs(solve(p, form, ranks, ridge), p.patches).mean(0)
    torch.testing.assert_close(given, p.targets.mean(0), rtol=1e-7, atol=1e-7)


LAWS: dict[str, Callable[[str, int], None]] = {
    "full rank": check_full_rank,
    "monotone": check_monotone,
    "weight SVD": check_against_weight_svd,
    "mean output": check_mean_output,
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("law", LAWS)
def test_laws(law: str, form: str) -> None:
    for seed in range(6):
        LAWS[law](form, seed)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_kernels_of_the_family_are_recovered(form: str, rank: int) -> None:
    for seed in range(3):
        check_family(form, seed, rank)


@pytest.mark.parametrize("form", ["channel", "pointwise", "squeeze"])
def test_as_good_as_brute_force(form: str) -> None:
    check_brute_force(form, seed=0)


def test_tucker2_is_close_to_brute_force() -> None:
    for seed in range(2):
        p = problem(seed, c_out=4, c_in=3, taps=2, samples=40)
        found = loss(p, outputs(solve(p, "tucker2", (2, 2)), p.patches))
        assert found <= 1.5 * brute_force(p, "tucker2", (2, 2), starts=2)


def test_the_core_is_refitted() -> None:
    for seed in range(4):
        check_core_is_refitted(seed)


@pytest.mark.parametrize("form", FORMS)
def test_arguments_are_not_changed_and_answers_repeat(form: str) -> None:
    p = problem(3, **shape_for(form))
    before = [t.clone() for t in (p.weight, p.patches, p.targets)]
    ranks = tuple(max(1, r - 2) for r in full_ranks(p, form))
    first, again = solve(p, form, ranks, 0.01), solve(p, form, ranks, 0.01)
    for old, new in zip(before, (p.weight, p.patches, p.targets), strict=True):
        assert torch.equal(old, new)
    assert torch.equal(outputs(first, p.patches), outputs(again, p.patches))


@given(st.integers(0, 99), st.integers(1, 12), st.integers(1, 12), st.sampled_from([0.01, 1.0]))
def test_ridge_regression_is_the_written_formula(
    seed: int, samples: int, features: int, ridge: float
) -> None:
    """Primal (many samples) and dual (few) both solve the normal equations of the docstring."""
    check_ridge(seed, samples + 1, features, ridge)


def check_ridge(seed: int, samples: int, features: int, ridge: float) -> None:
    """Law: the gradient of the ridge objective is zero at the fitted slope."""
    generator = torch.Generator().manual_seed(seed)
    z, y, prior = (torch.randn(s, generator=generator, dtype=torch.float64)
                   for s in ((samples, features), (samples, 3), (3, features)))  # fmt: skip
    found = least_squares.Regression(z, prior, ridge).fit(y)
    centred = z - z.mean(0)
    penalty = centred.square().mean(0)
    penalty = ridge * (penalty + penalty.mean())
    rest = y - z @ found.slope.T - found.intercept
    gradient = -(rest.T @ centred) / samples + penalty * (found.slope - prior)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-8)
    torch.testing.assert_close(rest.mean(0), torch.zeros(3).double(), rtol=0, atol=1e-8)


def check_silent_features(seed: int) -> None:
    """Law: where the samples say nothing, the prior comes back."""
    p = problem(seed)
    silent = p.patches.clone()
    silent[:, :, 2] = 0.7
    found = solve(replace(p, patches=silent), "keep", (), ridge=1e-3)
    torch.testing.assert_close(found.core[:, :, 2], p.weight[:, :, 2], rtol=1e-6, atol=1e-6)


def test_the_prior_comes_back_where_samples_are_silent() -> None:
    check_silent_features(0)


def test_targets_that_are_met_take_no_more_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the rank of the layer itself the first solution is exact; below it is not."""
    p = problem(0, rank=3)
    p = replace(p, weight=p.weight.float(), patches=p.patches.float(), targets=p.targets.float())
    improved: list[int] = []
    monkeypatch.setattr(
        fitting, "improve_basis", lambda reduce, *others: improved.append(len(reduce)) or reduce
    )
    for rank in (5, 2):
        solve(p, "tucker2", (rank, rank), rounds=3)
    assert improved == [2, 2, 2]


def band_loss(y: Tensor, given: Tensor, band: fitting.Band) -> float:
    """Squared distance from the outputs to the nearest that count as the targets do."""
    below, above = (y <= band.lower), (y >= band.upper)
    nearest = torch.where(below, torch.minimum(given, band.lower), y)
    nearest = torch.where(above, torch.maximum(given, band.upper), nearest)
    return float((given - nearest).square().sum())


def check_band(seed: int) -> None:
    """Law: the rounds for what lies outside the band never make worse what they minimise."""
    p = replace(problem(seed), gradients=torch.eye(6, dtype=torch.float64))
    infinite = torch.full((6,), torch.inf, dtype=torch.float64)
    band = fitting.Band(p.targets.median(0).values, infinite)
    losses = [
        band_loss(p.targets, outputs(
            fitting.fit(p.weight, p.patches, p.targets, p.lower, None, 2, 0.0, band, rounds), p.patches
        ), band)
        for rounds in (0, 1, 2, 5)
    ]  # fmt: skip
    assert all(b <= a * (1 + 1e-6) for a, b in pairwise(losses)), losses
    assert losses[-1] < 0.98 * losses[0]


def test_a_band_lowers_the_error_that_is_felt() -> None:
    for seed in range(4):
        check_band(seed)


@given(st.integers(0, 99), st.integers(1, 8), st.integers(1, 8))
def test_metrics(seed: int, size: int, rank: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    thin = torch.randn(size, rank, generator=generator, dtype=torch.float64)
    matrix = thin @ thin.T
    lower = metric.factor(matrix)
    assert torch.equal(lower, lower.tril())
    torch.testing.assert_close(lower @ lower.T, matrix, rtol=1e-4, atol=1e-4)
    values, vectors = metric.spectrum(matrix)
    torch.testing.assert_close(vectors @ values.diag() @ vectors.T, matrix, rtol=1e-8, atol=1e-8)
    assert (values[:-1] >= values[1:]).all()
    tails = metric.tails(values)
    torch.testing.assert_close(tails[0], matrix.trace())
    torch.testing.assert_close(tails[:-1] - tails[1:], values, rtol=0, atol=1e-9)
    assert tails[-1] == 0


@pytest.mark.parametrize(("c_out", "features"), [(5, 9), (9, 5), (6, 6)])
@pytest.mark.parametrize("rows", [0, 2, 40])
def test_the_largest_rank_keeps_the_whole_map(c_out: int, features: int, rows: int) -> None:
    torch.manual_seed(rows)
    slope, inputs = torch.randn(c_out, features).double(), torch.randn(rows, features).double()
    root = metric.factor(torch.cov(torch.randn(c_out, 50)))
    low = reduced_rank.reduced_rank(slope, inputs @ slope.T, root, min(c_out, features))
    assert low.reduce.shape == (min(c_out, features), features)
    torch.testing.assert_close(low.expand @ low.reduce, slope)


def test_what_is_below_all_normal_numbers_has_no_spectrum() -> None:
    """Where a signal has died away, sums of products are such, and LAPACK may not converge on them."""
    pairs = [
        (5, 7), (7, -22), (7, 38), (7, 66), (18, 74), (22, -41), (29, -47), (38, 7), (40, 66), (47, 66),
        (65, 65),
    ]  # fmt: skip
    matrix = torch.zeros(80, 80)
    for row, column in pairs:
        matrix[row, abs(column)] = matrix[abs(column), row] = -1.4e-45 if column > 0 else 1.4e-45
    values, vectors = metric.spectrum(matrix)
    assert not values.any()
    torch.testing.assert_close(vectors.T @ vectors, torch.eye(80))
    assert not metric.energies(matrix).any()


def test_a_zero_metric_becomes_the_identity() -> None:
    eye = torch.eye(3, dtype=torch.float64)
    torch.testing.assert_close(metric.factor(torch.zeros(3, 3)), eye)


def test_shapes_are_checked_in_tests() -> None:
    square = torch.eye(3, dtype=torch.float64)
    with pytest.raises(TypeCheckError):
        reduced_rank.reduced_rank(torch.ones(4, 5), square, square, 2)


def few(seed: int, samples: int) -> tuple[Problem, Problem]:
    """A layer of which what arrives is known with errors, on a few samples and on many others."""
    generator = torch.Generator().manual_seed(seed)
    whole = problem(seed, c_out=24, taps=2, c_in=32, samples=samples + 2000)
    noise = torch.randn(whole.patches.shape, generator=generator, dtype=torch.float64)
    arrived = whole.patches + 0.5 * noise * whole.patches.std(0)
    return tuple(  # type: ignore[return-value]
        replace(whole, patches=arrived[rows], targets=whole.targets[rows])
        for rows in (slice(samples), slice(samples, None))
    )


@pytest.mark.parametrize("samples", [12, 24, 40, 80, 160])
def test_a_basis_is_improved_for_other_samples_too(samples: int) -> None:
    for seed in range(4):
        some, others = few(seed, samples)
        lost = []
        for rounds in (0, 3):
            found = solve(some, "squeeze", (8,), ridge=0.02 * 16 / samples, rounds=rounds)
            lost.append(p_loss(found, others))
        assert lost[1] <= 1.35 * lost[0], (seed, lost)


def p_loss(found: fitting.Factors, p: Problem) -> float:
    """What it misses of the targets, in their metric."""
    missed = (outputs(found, p.patches) - p.targets) @ p.lower
    return float(missed.square().sum(1).mean())
