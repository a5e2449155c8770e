"""Networks that leave a feature map in one of their modules and read it further on."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import onebyone as obo
from onebyone import lockstep
from onebyone.plans import Budget


def block(c_in: int, c_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(c_in, c_out, 3, padding=1), nn.BatchNorm2d(c_out), nn.ReLU())


class Skipping(nn.Module):
    """A small U-Net; `how` says where its skip connection waits."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.skip, self.maps, self.stack = how, None, {}, []
        self.a, self.b, self.c, self.out = (
            block(3, 8),
            block(8, 12),
            block(20, 12),
            nn.Conv2d(12, 3, 1),
        )
        self.register_buffer("kept", torch.zeros(1), persistent=False)
        if how == "hook":
            self.a.register_forward_hook(lambda module, args, y: self.maps.update(a=y))

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        if self.how == "attribute":
            self.skip = a
        elif self.how == "buffer":
            self.kept = a
        elif self.how == "stack":
            self.stack.append(a)
        y = F.interpolate(self.b(F.max_pool2d(a, 2)), scale_factor=2)
        if self.how == "attribute":
            a = self.skip
        elif self.how == "buffer":
            a = self.kept
        elif self.how == "stack":
            a = self.stack.pop()
        elif self.how == "hook":
            a = self.maps["a"]
        return self.out(self.c(torch.cat([y, a], 1)))


@pytest.mark.parametrize("how", ["attribute", "buffer", "hook", "stack"])
def test_every_chunk_of_images_finds_what_it_left(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = torch.randn(22, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr("onebyone.rewriting.CHUNK", 8)  # the last one is smaller
    made = []
    for where in ("variable", how):
        torch.manual_seed(0)
        model = Skipping(where).train()
        with torch.no_grad():
            model(images)
        statistics = obo.observe(model.eval(), images)
        plan = obo.plan(model, statistics, Budget(macs=0.5))
        lighter = obo.rewrite(model, plan, images, statistics=statistics)
        with torch.no_grad():
            made.append(lighter(images[:5]))
    torch.testing.assert_close(made[1], made[0])


def test_what_a_network_held_before_is_there_again() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1))
    model.maps, model.seen = {"before": 1}, [2]  # type: ignore[assignment]

    class Looks(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            assert model.maps == {"before": 1}
            assert model.seen == [2]
            model.maps["now"], model.first = x, x  # type: ignore[index,assignment]
            model.seen.append(x)  # type: ignore[union-attr,operator]
            steps.wait(0)
            assert model.maps["now"] is model.seen[-1] is model.first is x  # type: ignore[index]
            return x

    model.append(Looks())
    steps = lockstep.Lockstep(model, [torch.zeros(1, 3, 2, 2)] * 3, lambda stop: None)
    steps.run()
    assert model.maps == {"before": 1}
    assert model.seen == [2]
    assert not hasattr(model, "first")
