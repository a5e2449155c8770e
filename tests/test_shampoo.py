"""Shampoo: directions by their own scale, and steps in parts of the weight's own norm."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from onebyone.recovery.recipe import Recipe
from onebyone.recovery.shampoo import DAMPING, LONGEST, MEMORY, TURN, Shampoo, _inverse_root
from onebyone.recovery.updating import optimizer_of


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def started(weight: Tensor, **options: Any) -> tuple[nn.Parameter, Shampoo]:
    parameter = nn.Parameter(weight.clone())
    return parameter, Shampoo([{"params": [parameter], **options}], lr=0.1)


def moved(parameter: nn.Parameter, optimizer: Shampoo, gradient: Tensor) -> Tensor:
    before = parameter.detach().clone()
    parameter.grad = gradient
    optimizer.step()
    return parameter.detach() - before


@pytest.mark.parametrize("shape", [(12, 12), (30, 7), (8, 2, 2, 2), (8, 72, 3, 3), (5, 1, 5)])
def test_turning_the_axes_turns_the_step(shape: tuple[int, ...]) -> None:
    """Law: what a weight's outputs and inputs are written in does not matter, as for no Adam."""
    left = torch.linalg.qr(drawn(shape[0], shape[0]))[0]
    right = torch.linalg.qr(drawn(shape[1], shape[1]))[0]

    def turned(values: Tensor) -> Tensor:
        moved = values.reshape(shape[0], shape[1], -1)
        return torch.einsum("ij,jkp,kl->ilp", left, moved, right).reshape(shape)

    plain, optimizer = started(drawn(*shape))
    other, of_other = started(turned(plain.detach()))
    for number in range(25):
        gradient = drawn(*shape, number + 1).select(-1, number)
        one = moved(plain, optimizer, gradient)
        two = moved(other, of_other, turned(gradient))
        assert (two - turned(one)).norm() < 1e-3 * one.norm()


@pytest.mark.parametrize("shape", [(12, 12), (40, 10), (10, 40), (6, 3, 3, 3), (4, 64, 1, 1)])
def test_the_first_step_divides_by_both_roots(shape: tuple[int, ...]) -> None:
    """Law: of U S Vᵀ it is along U S (S² + damping)^−½ (S² + damping)^−½ Vᵀ, a part of the weight long."""
    weight, optimizer = started(drawn(*shape))
    long = float(weight.detach().norm())
    step = moved(weight, optimizer, drawn(*shape) * 1e-3).flatten(1)
    left, sizes, right = torch.linalg.svd(drawn(*shape).flatten(1), full_matrices=False)
    parts = sizes / sizes.max()
    roots = [(parts**2 + DAMPING + 1 / n).sqrt() for n in step.shape]
    along = left @ torch.diag(parts / (roots[0] * roots[1])) @ right
    expected = -along * (long * 0.1 * TURN / along.norm())
    torch.testing.assert_close(step, expected, rtol=1e-2, atol=1e-3 * float(expected.abs().max()))


def test_moments_are_means_that_forget() -> None:
    weight, optimizer = started(drawn(6, 4))
    expected = torch.zeros(6, 6)
    for number in range(12):
        gradient = drawn(6, 4, 12)[..., number]
        moved(weight, optimizer, gradient)
        expected = MEMORY * expected + (1 - MEMORY) * gradient @ gradient.T
        if number == 9:
            root = _inverse_root(expected[None], 10)
    state = optimizer.state[weight]
    torch.testing.assert_close(state["moments1"][0], expected)
    torch.testing.assert_close(state["root1"], root, rtol=1e-3, atol=1e-3)  # of the tenth step


def test_a_weight_whose_gradients_begin_later() -> None:
    """As those behind a convolution that starts at zero."""
    for silent in (1, 7, 9):
        weight, optimizer = started(drawn(6, 4))
        for _ in range(silent):
            assert not moved(weight, optimizer, torch.zeros(6, 4)).any()
        for number in range(3):
            step = moved(weight, optimizer, drawn(6, 4, 5)[..., number])
            assert step.isfinite().all()
            assert step.norm() > 0


def test_large_axes_are_left_as_they_are() -> None:
    weight, optimizer = started(drawn(3, LONGEST + 1))
    moved(weight, optimizer, drawn(3, LONGEST + 1))
    state = optimizer.state[weight]
    assert {n for n in state if n.startswith("root")} == {"root1"}
    assert state["root1"].shape == (1, 3, 3)


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
    assert isinstance(optimizer, Shampoo)
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

    assert left("shampoo") < 0.1 * left("sgd")
