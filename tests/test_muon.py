"""Muon: the step of a matrix goes as far in all directions, in parts of the weight's own norm."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from onebyone.recovery.muon import TURN, Muon, orthogonal
from onebyone.recovery.recipe import Recipe
from onebyone.recovery.updating import optimizer_of


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("shape", [(1, 16, 144), (3, 40, 10), (1, 12, 12), (5, 1, 9)])
def test_singular_values_become_alike(shape: tuple[int, ...]) -> None:
    given = drawn(*shape)
    found = orthogonal(given)
    assert found.shape == shape
    left, values, right = torch.linalg.svd(given, full_matrices=False)
    assert (torch.linalg.svdvals(found)[values > 0.01 * values.max()] - 1).abs().max() < 0.35
    # The directions are those of U Vᵀ: along each pair of them lies what the values say.
    along = torch.einsum("nij,nik,njk->nk", found, left, right.mT)
    torch.testing.assert_close(
        along.sort().values, torch.linalg.svdvals(found).sort().values, atol=1e-3, rtol=1e-3
    )


def test_a_thin_direction_is_not_lost() -> None:
    left, right = torch.linalg.qr(drawn(8, 8))[0], torch.linalg.qr(drawn(20, 8))[0]
    given = left @ torch.diag(torch.logspace(0, -2, 8)) @ right.T
    assert (torch.linalg.svdvals(orthogonal(given[None])) - 1).abs().max() < 0.35
    assert not orthogonal(torch.zeros(1, 3, 4)).any()


@pytest.mark.parametrize("scale", [1.0, 1e3])
@pytest.mark.parametrize(
    "layer", [nn.Conv2d(6, 8, 3), nn.Conv2d(8, 8, 3, groups=8), nn.Linear(5, 4)]
)
def test_a_step_goes_a_part_of_the_weight(layer: nn.Module, scale: float) -> None:
    """Law: its length depends on neither the scale of the gradient nor that of the weight."""
    weight = nn.Parameter(scale * drawn(*layer.weight.shape) * 10)  # type: ignore[arg-type]
    layer.weight = weight
    before = weight.detach().clone()
    optimizer = optimizer_of(layer, Recipe(learning_rate=0.5, weight_decay=0.0))
    weight.grad = drawn(*weight.shape) / scale**2
    optimizer.step()
    moved = (weight.detach() - before).norm() / before.norm()
    assert 0.65 <= moved / (0.5 * TURN) <= 1.25


def test_zeros_begin_to_move_and_biases_take_steps_of_sgd() -> None:
    layer = nn.Linear(4, 3)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    optimizer = optimizer_of(layer, Recipe(learning_rate=0.1, momentum=0.5))
    layer.weight.grad, layer.bias.grad = drawn(3, 4), drawn(3)
    optimizer.step()
    assert torch.linalg.matrix_rank(layer.weight.detach()) == 3
    torch.testing.assert_close(layer.bias.detach(), -0.1 * 1.5 * layer.bias.grad)
    optimizer.step()
    torch.testing.assert_close(layer.bias.detach(), -0.1 * (1.5 + 1.75) * layer.bias.grad)


def test_depthwise_kernels_are_steps_of_their_own() -> None:
    """A channel whose gradient is a millionth of another's goes as far."""
    layer = nn.Conv2d(2, 2, 3, groups=2, bias=False)
    nn.init.ones_(layer.weight)
    optimizer = optimizer_of(layer, Recipe(learning_rate=0.1, weight_decay=0.0))
    assert isinstance(optimizer, Muon)
    layer.weight.grad = drawn(2, 1, 3, 3) * torch.tensor([1.0, 1e-6]).reshape(2, 1, 1, 1)
    optimizer.step()
    first, second = (layer.weight.detach() - 1).flatten(1).norm(dim=1).tolist()
    assert first == pytest.approx(second, rel=0.3)


def test_it_learns_where_gradients_are_led_by_one_direction() -> None:
    """A badly scaled regression: as many steps of SGD leave far more of the loss."""

    def left(optimizer: str) -> float:
        layer = nn.Linear(12, 12, bias=False)
        with torch.no_grad():
            layer.weight.copy_(0.3 * drawn(12, 12))
        wanted = torch.linalg.qr(drawn(13, 12))[0][:12]
        scale = torch.logspace(0, -1.5, 12)
        recipe = Recipe(optimizer=optimizer, learning_rate=0.5, weight_decay=0.0)
        steps = optimizer_of(layer, recipe)
        for step in range(150):
            for group in steps.param_groups:
                group["lr"] = recipe.rate_at(step, 150)
            loss = ((layer.weight - wanted) * scale).square().sum() / 2
            steps.zero_grad()
            loss.backward()
            steps.step()
        return float((layer.weight.detach() - wanted).square().sum())

    assert left("muon") < 0.1 * left("sgd")
