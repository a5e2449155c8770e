"""Networks whose rows of outputs are values (a place, a box), not scores of classes."""

from __future__ import annotations

import pytest
import torch
from planting import Bug, check_caught
from torch import Tensor, nn
from torch.nn import functional as F

import onebyone as obo
from onebyone import sensing
from onebyone.recovery import objective
from onebyone.running import are_scores


def spots(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Pictures (n, 1, 20, 20) of a bright spot in noise, and where it is, from 0 to 1."""
    g = torch.Generator().manual_seed(seed)
    at = torch.rand(n, 2, generator=g) * 0.7 + 0.15
    line = torch.linspace(0, 1, 20)
    away = (line - at[:, :1]).square()[:, None] + (line - at[:, 1:]).square()[:, :, None]
    return (-60 * away).exp()[:, None] + 0.2 * torch.randn(n, 1, 20, 20, generator=g), at


@pytest.fixture(scope="module")
def finder() -> nn.Module:
    """Trained to say where the spot is."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(),
        nn.Conv2d(32, 32, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 25, 32), nn.ReLU(),
        nn.Linear(32, 2),
    )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for step in range(150):
        x, y = spots(64, 100 + step)
        optimizer.zero_grad()
        F.mse_loss(model(x), y).backward()
        optimizer.step()
    return model.eval()


def test_what_is_told_apart(finder: nn.Module) -> None:
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        assert not are_scores(finder(spots(64, 1)[0]))
        for name in ("vgg", "resnet"):
            scores = obo.load(f"demo:{name}").model(obo.open_images("demo:test").inputs[:64])
            assert are_scores(scores)
            assert are_scores(scores.log_softmax(1))
            assert are_scores(scores.softmax(1))
    assert not are_scores(torch.rand(32, 4, generator=g) * 224)  # boxes
    face = torch.rand(136, generator=g) * 200
    moved = face + 20 * torch.randn(32, 1, generator=g) + 3 * torch.randn(32, 136, generator=g)
    assert not are_scores(moved)  # points of a face
    assert are_scores(torch.randn(32, 512, generator=g))  # of features, no direction is special
    assert are_scores(torch.ones(8, 3))
    assert are_scores(torch.rand(1, 4, generator=g))


def check_found_again(model: nn.Module) -> None:
    """Law: a common shift of both numbers is an error as any other is."""
    images = spots(256, 2)[0]
    slimmed = obo.slim(model, images, macs=0.1, held_out=32, latency=False)
    x, at = spots(512, 3)
    with torch.no_grad():
        before, after = model(x), slimmed.model(x)
    own, lost = ((y - at).square().mean().sqrt() for y in (before, after))
    assert float(lost) < 1.04 * float(own)
    error = after - before
    shift, turn = error.mean(1), error[:, 0] - error[:, 1]
    assert float(shift.norm()) < 1.3 * float(turn.norm())


def test_found_again(finder: nn.Module) -> None:
    check_found_again(finder)


def check_learned(model: nn.Module) -> None:
    """Law: distillation takes back a shift that is the same for both numbers."""
    shifted = nn.Sequential(*model)
    shifted[9] = nn.Linear(32, 2)
    shifted[9].load_state_dict(model[9].state_dict())  # type: ignore[index]
    with torch.no_grad():
        shifted[9].bias += 0.2
    recipe = obo.Recipe(batch_size=32, precision="float32", features=0)
    x = spots(512, 4)[0]
    tuned = obo.fine_tune(shifted.eval(), x, teacher=model, epochs=4, recipe=recipe)
    with torch.no_grad():
        y, t = tuned.model(x), model(x)
    assert float((y - t).abs().mean()) < 0.05


def test_learned(finder: nn.Module) -> None:
    check_learned(finder)


BUGS = {
    "values sensed as scores": (
        lambda patch: patch.setattr(sensing, "are_scores", lambda y: True), check_found_again,
    ),
    "values learned as scores": (
        lambda patch: patch.setattr(objective, "are_scores", lambda y: True), check_learned,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BUGS)
def test_planted_bugs_are_caught(
    name: str, finder: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant, law = BUGS[name]
    check_caught(Bug(plant, lambda: law(finder)), monkeypatch)
