"""Whether images are like those of training, and covariances of few samples."""

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

import onebyone as obo
from onebyone import agreement
from onebyone.agreement import gap
from onebyone.factorize.metric import shrink, shrinkage, shrinkage_of_halves
from onebyone.tree import modules_by_name


def test_the_gap_is_the_divergence_of_two_normal_distributions() -> None:
    mean, variance = torch.tensor([0.5, -1.0, 2.0]), torch.tensor([1.0, 4.0, 0.25])
    running = torch.tensor([0.0, -1.0, 1.0]), torch.tensor([2.0, 1.0, 0.25])
    expected = kl_divergence(Normal(mean, variance.sqrt()), Normal(running[0], running[1].sqrt()))
    found = gap(mean, variance, *running)
    assert found == pytest.approx(float(expected.median()), rel=1e-5)
    assert gap(*running, *running) == 0


def spoiled(x: Tensor) -> dict[str, Tensor]:
    """The same images otherwise than in training, and others."""
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    return {
        "noise": noise, "constant": torch.full_like(x, 0.3), "bytes": 64 * x + 100,
        "from 0 to 1": (x - x.min()) / (x.max() - x.min()), "negatives": -x,
    }  # fmt: skip


def warned(model: nn.Module, x: Tensor) -> bool:
    """Whether `observe` tells that the images are unlike those of training."""
    return any("unlike those" in note for note in obo.observe(model, x).notes)


def test_images_unlike_those_of_training_are_told_of() -> None:
    model, x = obo.load("demo").model, obo.open_images("demo").take(32).inputs
    assert not warned(model, x)
    assert not warned(model, x[:4])
    found = {name: warned(model, other) for name, other in spoiled(x).items()}
    assert all(found.values()), found


@pytest.mark.parametrize("name", ["noise", "constant", "bytes"])
def test_no_image_gives_nan(name: str) -> None:
    model, x = obo.load("demo").model, obo.open_images("demo").take(32).inputs
    slimmed = obo.slim(model, spoiled(x)[name], macs=0.5, held_out=8, latency=False)
    with torch.no_grad():
        assert slimmed.model(x).isfinite().all()
    assert any("normalised as in training" in note for note in slimmed.plan.notes)


def test_hooks_are_given_back_and_other_layers_left_alone() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, track_running_stats=False), nn.ReLU()
    )
    model.append(nn.Conv2d(8, 4, 1))
    found = obo.observe(model.eval(), torch.randn(8, 3, 6, 6))
    assert not any("unlike" in note for note in found.notes)
    assert not any(m._forward_pre_hooks for m in modules_by_name(obo.load("demo").model).values())


def test_a_planted_bug_in_the_gap_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agreement, "gap", lambda *_: 0.0)
    model, x = obo.load("demo").model, obo.open_images("demo").take(8).inputs
    assert not warned(model, 64 * x + 100)


def test_shrinkage_is_nearer_to_the_truth() -> None:
    """Fewer samples than numbers: the shrunk covariance is nearer to the one that they came from."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.diag(torch.linspace(0.5, 2, 40).double())
    for samples in (5, 20, 40):
        rows = torch.randn(samples, 40, generator=generator, dtype=torch.float64) @ truth.sqrt()
        plain = rows.T.cov(correction=0)
        shrunk = shrink(plain, shrinkage(plain, samples))
        assert (shrunk - truth).norm() < 0.6 * (plain - truth).norm()
        assert torch.linalg.eigvalsh(shrunk)[0] > 0.01
        assert shrunk.trace() == pytest.approx(float(plain.trace()))


def test_many_samples_are_shrunk_little() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(4000, 8, generator=generator, dtype=torch.float64) * torch.arange(1, 9)
    assert shrinkage(rows.T.cov(correction=0), 4000) < 0.005


def test_few_images_are_told_of() -> None:
    """Four images give a classifier four samples: no rank of its outputs is free because of that."""
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 16)
    ).eval()  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    few = obo.observe(model, torch.randn(4, 3, 9, 9, generator=generator))
    assert any("give 4 no more samples than channels" in note for note in few.notes)
    (note,) = (note for note in few.notes if "no more samples" in note)
    assert note.startswith(
        "the 4 calibration images give 4 no more samples than channels: its covar"
    )
    (note,) = (n for n in obo.observe(model, torch.randn(1, 3, 9, 9)).notes if "samples" in n)
    assert note.startswith(
        "the one calibration image gives 4 no more samples than channels: its cov"
    )
    plan = obo.plan(model, few, obo.Budget(macs=0.9))
    assert any("shrunk" in note for note in plan.notes)
    values = torch.linalg.eigvalsh(few.layers["4"].outputs.covariance)
    assert values[0] > 1e-3 * values[-1]
    many = obo.observe(model, torch.randn(64, 3, 9, 9, generator=generator))
    assert not many.notes


class TestHalves:
    """Sixteen pixels of an image are nearly alike, so that there are as many samples as images."""

    truth = torch.diag(torch.tensor([4.0] * 4 + [1.0] * 12, dtype=torch.float64))

    def halves(self, images: int, seed: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randn(images, 16, generator=generator, dtype=torch.float64)
        rows = rows.repeat_interleave(16, 0) @ self.truth.sqrt()
        first, second = rows.chunk(2)
        return first.T @ first, second.T @ second

    def error(self, found: Tensor) -> float:
        return float((found / found.trace() - self.truth / self.truth.trace()).square().sum())

    @pytest.mark.parametrize("images", [8, 16, 64])
    def test_it_is_nearer_to_the_truth(self, images: int) -> None:
        errors = [0.0, 0.0, 0.0]
        for seed in range(40):
            first, second = self.halves(images, seed)
            whole = first + second
            by_halves = shrink(whole, shrinkage_of_halves(first, second))
            by_pixels = shrink(whole, shrinkage(whole, 16 * images))
            for i, found in enumerate((by_halves, by_pixels, whole)):
                errors[i] += self.error(found)
        assert errors[0] < 0.8 * errors[1]
        assert errors[0] < 0.8 * errors[2]

    def test_of_many_images_hardly_anything_is_shrunk(self) -> None:
        assert shrinkage_of_halves(*self.halves(20_000, 0)) < 0.01

    @pytest.mark.parametrize("size", [1, 3, 200])
    def test_it_is_the_formula_of_whole_matrices(self, size: int) -> None:
        rows = torch.randn(2, 30, size, generator=torch.Generator().manual_seed(0)).double()
        rows *= torch.linspace(0.1, 3, size)
        first, second = rows.mT @ rows
        before = first.clone()
        target = torch.eye(size, dtype=torch.float64) / size
        a, b = (m / m.trace() - target for m in (first, second))
        common, noise = float((a * b).sum()), float((a - b).square().sum() / 4)
        if size > 1:  # of one direction there is nothing to shrink
            assert shrinkage_of_halves(first, second) == pytest.approx(noise / (common + noise))
        assert 0 <= shrinkage_of_halves(first, second) <= 1
        assert first.equal(before)

    def test_halves_that_have_nothing_in_common(self) -> None:
        first = torch.diag(torch.tensor([1.0, 0, 0, 0]))
        assert shrinkage_of_halves(first, first.flip(0, 1)) == 1.0
        assert shrinkage_of_halves(first, torch.zeros(4, 4)) == 0.0
        assert shrinkage_of_halves(first, 3 * first) == pytest.approx(0.0)
