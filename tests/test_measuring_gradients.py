"""Networks that take gradients in their own forward are counted, measured and timed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import onebyone as obo
from onebyone.errors import ModelError
from onebyone.measurement.counting import count
from onebyone.measurement.latency import time_models
from onebyone.measurement.memory import measure_memory


class Force(nn.Module):
    """The gradient of an energy: with gradients as they are outside, or turned on inside."""

    def __init__(self, inside: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.inside = inside

    def forward(self, x: Tensor) -> Tensor:
        with torch.set_grad_enabled(self.inside or torch.is_grad_enabled()):
            x = x.detach().requires_grad_()
            energy = torch.tanh(self.conv(x)).sum()
            (force,) = torch.autograd.grad(energy, x, create_graph=self.training)
            return force


class Weighted(nn.Module):
    """The gradients of a convolution's input and of its weight; `transposed` or not."""

    def __init__(self, transposed: bool) -> None:
        super().__init__()
        kind = nn.ConvTranspose2d if transposed else nn.Conv2d
        self.conv = kind(4, 6, 3, stride=2, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        gradients = torch.autograd.grad(self.conv(x).sum(), (x, self.conv.weight))
        return gradients[0].sum() + gradients[1].sum()


class Attention(nn.Module):
    """The gradients of all that attention takes."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (t.detach().requires_grad_() for t in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v)
        return torch.stack([g.sum() for g in torch.autograd.grad(y.sum(), (q, k, v))])


class Hopeless(nn.Module):
    """It takes a gradient that no mode can give."""

    def forward(self, x: Tensor) -> Tensor:
        y = x @ x
        return torch.autograd.grad(y.detach().sum(), x)[0]


FORWARD = 64 * 4 * 27  # of Force's convolution on 8×8


@pytest.mark.parametrize("inside", [False, True])
def test_forward_and_backward_products_count(inside: bool) -> None:
    model, x = Force(inside).eval(), torch.randn(1, 3, 8, 8)
    found = count(model, x)
    assert found.macs == 2 * FORWARD  # the weight's gradient is not asked for
    assert found.layers["conv"].macs == 2 * FORWARD
    assert bool(found.notes) == (not inside)
    assert count(model.to("meta"), x.to("meta")).macs == 2 * FORWARD
    assert not torch.is_inference_mode_enabled()
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("transposed", [False, True])
def test_both_gradients_of_a_convolution(transposed: bool) -> None:
    """Each takes as many products as the convolution: outputs, or inputs, times 3 · 3 · a group's."""
    positions = 4 * 81 * 3 if transposed else 6 * 16 * 2
    assert count(Weighted(transposed), torch.randn(1, 4, 9, 9)).macs == 3 * positions * 9


def test_the_gradients_of_attention() -> None:
    """Two products forward; backward either five in a kernel that keeps none, or two for each."""
    q, k, v = torch.randn(1, 2, 5, 8), torch.randn(1, 2, 7, 8), torch.randn(1, 2, 7, 8)
    once = 2 * 5 * 7 * 8
    assert count(Attention(), q, k, v).macs in (7 * once, 6 * once)


@pytest.mark.parametrize("inside", [False, True])
def test_memory_and_the_clock(inside: bool) -> None:
    model, x = Force(inside), torch.randn(2, 3, 8, 8)
    found = obo.measure(model, x, latency=True, training=True, seconds=0.02)
    assert found.memory is not None
    assert found.memory.training is not None
    # Weights, the input and both activations at least are there when the gradient is taken.
    assert found.memory.inference.bytes >= 4 * (112 + 2 * 64 * (3 + 4 + 4))
    assert [t.mode for t in found.latency] == ["inference", "training step"]
    assert any("takes some in its own forward" in note for note in found.notes)
    assert found.latency[0].median_ms > 0


def test_no_gradients_are_kept_for_other_networks() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh())
    times = time_models({"plain": model}, torch.randn(1, 3, 8, 8), seconds=0.01)
    assert not any("gradients" in note for note in times["plain"].notes)
    chain = nn.Sequential(*(nn.Tanh() for _ in range(9)))
    assert measure_memory(chain, torch.zeros(1000), training=False).inference.bytes == 3 * 4000


def test_what_no_mode_can_give_is_said_and_what_ran_is_counted() -> None:
    with pytest.raises(ModelError, match="does not require grad"):
        count(Hopeless(), torch.randn(3, 3))
    for x in (torch.randn(3, 3), torch.empty(3, 3, device="meta")):
        found = count(Hopeless(), x, partial=True)
        assert found.macs == 27
        assert found.failure is not None
        assert "does not require grad" in found.failure
