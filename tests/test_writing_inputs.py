"""Networks that write to what they are given: `x.sub_(mean)`, an activation in place, `x *= mask`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import onebyone as obo
from onebyone.measurement.latency import time_models
from onebyone.measurement.layer_latency import time_layers
from onebyone.measurement.preparing import Setting, prepared
from onebyone.pacing.graphs import EAGER
from onebyone.pacing.whole import Stopwatch


class Normalizing(nn.Module):
    """Brings images to mean and spread itself, in place or not."""

    def __init__(self, in_place: bool = True) -> None:
        super().__init__()
        self.in_place = in_place
        self.gain = nn.Parameter(torch.ones(()))
        self.body = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1),
            nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
            nn.Flatten(), nn.Linear(32, 5),
        )  # fmt: skip

    def forward(self, image: Tensor) -> Tensor:
        if self.in_place:
            return self.body(image.sub_(0.5).div_(0.25).mul_(self.gain))
        return self.body((image - 0.5) / 0.25 * self.gain)


@pytest.fixture
def twins() -> tuple[nn.Module, nn.Module, Tensor]:
    """One that writes to its input, the same one that does not, and images."""
    torch.manual_seed(0)
    one, other = Normalizing().eval(), Normalizing(in_place=False).eval()
    other.load_state_dict(one.state_dict())
    return one, other, torch.rand(80, 3, 16, 16)


def test_slimmed_as_if_it_did_not(twins: tuple[nn.Module, nn.Module, Tensor]) -> None:
    one, other, images = twins
    before = images.clone()
    found, expected = (
        obo.slim(m, images, macs=0.5, held_out=16, latency=False) for m in (one, other)
    )
    assert torch.equal(images, before)
    assert found.plan.decisions == expected.plan.decisions
    assert found.verification == expected.verification
    with torch.no_grad():
        assert torch.equal(found.model(images.clone()), expected.model(images.clone()))


def test_deepened_and_trained(twins: tuple[nn.Module, nn.Module, Tensor]) -> None:
    one, other, images = twins
    before = images.clone()
    larger = Normalizing().eval()
    larger.body[5] = nn.Sequential(*(nn.Conv2d(32, 32, 3, padding=1) for _ in range(4)))
    budget = obo.Budget(macs=1.0)
    deeper = [obo.deepen(m, images, budget, reference=larger, data=images) for m in (one, other)]
    assert deeper[0].plan.insertions == deeper[1].plan.insertions
    assert deeper[0].plan.insertions
    recipe = obo.Recipe(batch_size=16)
    tuned = [obo.fine_tune(m, images, teacher=m, epochs=1, recipe=recipe) for m in (one, other)]
    assert torch.equal(images, before)
    with torch.no_grad():
        ends = [t.model(images.clone()) for t in tuned]
    torch.testing.assert_close(*ends)


@pytest.mark.parametrize("training", [False, True])
def test_each_timed_pass_gets_what_was_given(
    twins: tuple[nn.Module, nn.Module, Tensor], training: bool
) -> None:
    one, _, images = twins
    seen: list[Tensor] = []
    one.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().clone()))
    given = images[:2].clone()
    time_models({"one": one}, given, seconds=0.0, training=training)
    assert torch.equal(given, images[:2])
    assert len(seen) > 5
    assert all(torch.equal(x, given) for x in seen)
    seen.clear()
    time_layers(one, given, seconds=0.0, training=training)
    assert torch.equal(given, images[:2])
    assert len(seen) > 5
    assert all(torch.equal(x, given) for x in seen)
    obo.measure(one, given, latency=True, training=training, seconds=0.0)
    assert torch.equal(given, images[:2])


def test_inputs_are_renewed_only_where_written_to(
    twins: tuple[nn.Module, nn.Module, Tensor],
) -> None:
    one, other, images = twins
    for model in (one, other):
        with prepared(model, images[:2], Setting()) as ready:
            own = ready.inputs[0]
            ready.infer()
            written = not torch.equal(own, images[:2])
            assert written == (model is one)
            ready.renew()
            assert ready.inputs[0] is own
            assert torch.equal(own, images[:2])


def test_the_stopwatch_gives_what_was_given(
    twins: tuple[nn.Module, nn.Module, Tensor],
) -> None:
    one, other, images = twins
    calls = [Stopwatch(m, images, EAGER, 1).original for m in (one, other)]
    for _ in range(3):
        found, expected = (call() for call in calls)
        assert isinstance(found, Tensor)
        assert isinstance(expected, Tensor)
        assert torch.equal(found, expected)


def test_exported(twins: tuple[nn.Module, nn.Module, Tensor], tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    one, _, images = twins
    before = images.clone()
    made = obo.export(one, images[:4], tmp_path / "net.onnx", images=images, latency=False)
    assert made.check.failure is None
    assert torch.equal(images, before)
