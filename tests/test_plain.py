"""Layers that compute what a plain one does become plain to the bit; all others stay as they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from models import images
from planting import Bug, Patch, check_caught
from torch import Tensor, nn
from torch.nn import functional as F

import onebyone as obo
from onebyone import plain as plain_layers
from onebyone import watching
from onebyone.plain import plain
from onebyone.tree import modules_by_name


class PaddedBefore(nn.Conv2d):
    """Pads as TensorFlow does, by the size of what arrives."""

    def forward(self, input: Tensor) -> Tensor:
        pads: list[int] = []
        for n, k, s in zip(input.shape[:1:-1], self.kernel_size[::-1], self.stride, strict=True):
            total = max((-(-n // s) - 1) * s + k - n, 0)
            pads += [total // 2, total - total // 2]
        return F.conv2d(F.pad(input, pads), self.weight, self.bias, self.stride, 0, 1, self.groups)


class PaddedOnce(nn.Conv2d):
    """Holds its padding as a layer of its own, one more before than after."""

    def __init__(self, c_in: int, c_out: int, groups: int = 1) -> None:
        super().__init__(c_in, c_out, 3, padding=(0, 1), groups=groups)
        self.zeros = nn.ZeroPad2d((0, 0, 2, 1))

    def forward(self, input: Tensor) -> Tensor:
        return F.conv2d(self.zeros(input), self.weight, self.bias, 1, self.padding, 1, self.groups)


class Named(nn.Conv2d):
    """Computes what its parent does."""


class Network(nn.Module):
    """A strided stem, a depthwise layer and a wide middle, all of classes of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = PaddedBefore(4, 24, 3, stride=2)
        self.wide = Named(24, 48, 3, padding=1)
        self.depth = PaddedOnce(48, 48, groups=48)
        self.last = PaddedBefore(48, 24, 5)
        self.head = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.stem, self.wide, self.depth, self.last):
            x = layer(x).relu()
        return self.head(x.mean((2, 3)))


class Raised(nn.Conv2d):
    """Pads with ones."""

    def forward(self, input: Tensor) -> Tensor:
        return F.conv2d(F.pad(input, (1, 1, 1, 1), value=1.0), self.weight, self.bias)


class Cropped(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return F.conv2d(F.pad(input, (0, -1, 0, 0)), self.weight, self.bias)


class Doubled(nn.Conv2d):
    """Does more than a convolution with what comes out."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


class Twice(nn.Conv2d):
    """Calls two convolutions, and returns that of the second."""

    def forward(self, input: Tensor) -> Tensor:
        scale = F.conv2d(input, self.weight, self.bias).mean()
        return F.conv2d(input, self.weight, self.bias) if scale.isfinite() else input


class Shifted(nn.Conv2d):
    """Does something to its input first."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input - 0.5)


class Overwritten(nn.Conv2d):
    """Changes its input in place first."""

    def forward(self, input: Tensor) -> Tensor:
        input.mul_(2)
        return super().forward(input)


class Gained(nn.Conv2d):
    """Changes what comes out in place."""

    def forward(self, input: Tensor) -> Tensor:
        found = super().forward(input)
        found += 1
        return found


class Attended(nn.Conv2d):
    """Computes its weights from the data."""

    def forward(self, input: Tensor) -> Tensor:
        weight = self.weight * input.mean((2, 3)).sigmoid().mean()
        return F.conv2d(input, weight, self.bias)


class Asked(nn.Conv2d):
    """Computes its weights from one number that it reads off the data."""

    def forward(self, input: Tensor) -> Tensor:
        return F.conv2d(input, self.weight * (2 if float(input.amax()) > 1e3 else 3), self.bias)


class Sized(nn.Conv2d):
    """Computes its weights from the size of the image."""

    def forward(self, input: Tensor) -> Tensor:
        return F.conv2d(input, self.weight / input.shape[-1], self.bias)


class Noisy(nn.Conv2d):
    """Computes with other weights each time."""

    def forward(self, input: Tensor) -> Tensor:
        return F.conv2d(input, self.weight + torch.randn_like(self.weight), self.bias)


class Counting(nn.Conv2d):
    """Computes with other weights the further it is, and forgets where it was."""

    calls = 0

    def forward(self, input: Tensor) -> Tensor:
        self.calls += 1
        return F.conv2d(input, self.weight * self.calls, self.bias)


ODD: dict[str, Callable[[], nn.Module]] = {
    kind.__name__: (lambda kind=kind: kind(4, 8, 3))
    for kind in (
        Raised,
        Cropped,
        Doubled,
        Twice,
        Shifted,
        Overwritten,
        Gained,
        Attended,
        Asked,
        Sized,
        Noisy,
        Counting,
    )
}


def check_same(model: nn.Module, x: Tensor) -> nn.Module:
    """The plain network has no classes of its own and computes the same bits."""
    found = plain(model.eval(), x[:1]).model
    with torch.no_grad():
        torch.testing.assert_close(found(x), model(x), rtol=0, atol=0)
    own = [
        n for n, m in modules_by_name(found).items() if not type(m).__module__.startswith("torch")
    ]
    assert own in ([], [""])
    return found


@pytest.mark.parametrize("size", [(11, 14), (16, 16), (13, 8)])
def test_padding_classes_become_plain_layers_to_the_bit(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    check_same(Network(), images(3, 4, *size))


def test_layers_keep_their_names_where_padding_is_even_and_share_their_weights() -> None:
    model = Network().eval()
    found = modules_by_name(plain(model, images(1, 4, 16, 16)).model)
    assert type(found["wide"]) is nn.Conv2d
    assert type(found["last"]) is nn.Conv2d
    assert found["last"].padding == (2, 2)
    assert type(found["stem.pad"]) is nn.ZeroPad2d
    assert found["stem.conv"].weight is model.stem.weight
    assert type(model.stem) is PaddedBefore


@pytest.mark.parametrize("name", ODD)
def test_what_does_anything_else_stays(name: str) -> None:
    model = nn.Sequential(ODD[name](), nn.ReLU()).eval()
    assert plain(model, images(1, 4, 8, 8)).model is model


def test_a_network_of_plain_layers_is_given_back_itself() -> None:
    model = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.ReLU())
    assert plain(model, images(1, 4, 8, 8)).model is model


def test_a_layer_whose_attributes_other_code_reads_stays() -> None:
    class Reading(Network):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * self.last.weight.shape[0]

    model = Reading().eval()
    found = modules_by_name(plain(model, images(1, 4, 8, 8)).model)
    assert type(found["last"]) is PaddedBefore
    assert type(found["wide"]) is nn.Conv2d


def test_padding_that_follows_the_size_is_told() -> None:
    model = Network().eval()
    notes = plain(model, images(1, 4, 16, 16)).notes
    assert len(notes) == 1
    assert "stem follows the size of the image" in notes[0]
    assert "16×16" in notes[0]
    assert not plain(nn.Sequential(PaddedOnce(4, 8)), images(1, 4, 8, 8)).notes


def test_a_layer_that_pads_differently_each_time_it_runs_stays() -> None:
    class Halving(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = PaddedBefore(4, 4, 3, stride=2)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(self.conv(x)).mean((2, 3))

    model = Halving().eval()
    assert plain(model, images(1, 4, 10, 10)).model is model  # 10 → 5 → 3: lopsided, then even
    assert plain(model, images(1, 4, 12, 12)).model is not model


def test_such_a_network_is_slimmed_saved_and_loaded(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Network().eval()
    x = images(64, 4, 16, 16)
    made = obo.slim(model, x, macs=0.5, latency=False)
    assert made.plan.macs_after <= 0.5 * made.plan.macs_before
    assert any("follows the size" in note for note in made.plan.notes)
    assert made.plan.macs_before == obo.measure(model, x[:1]).macs
    again = obo.load(str(made.save(tmp_path / "out")), architecture=Network()).model
    with torch.no_grad():
        torch.testing.assert_close(again(x), made.model(x), rtol=0, atol=0)


def test_the_steps_one_by_one_see_the_plain_layers() -> None:
    torch.manual_seed(0)
    model, x = Network().eval(), images(64, 4, 16, 16)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    plan = obo.plan(model, obo.observe(model, x), obo.Budget(macs=0.6))
    lighter = obo.rewrite(model, plan, x)
    assert obo.measure(lighter, x[:1]).macs == plan.macs_after
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)


def test_such_a_network_is_slimmed_in_steps() -> None:
    torch.manual_seed(0)
    model, x = Network().eval(), images(160, 4, 16, 16)
    recipe = obo.Recipe(batch_size=32)
    made = obo.slim(
        model, (x, torch.arange(160) % 10), macs=0.5, steps=2, finetune_epochs=1, recipe=recipe,
        latency=False,
    )  # fmt: skip
    assert made.plan.macs_after <= 0.5 * made.plan.macs_before
    assert made.plan.of("stem.conv").conv is not None
    assert any("follows the size" in note for note in made.plan.notes)


def _same_pads(patch: Patch) -> None:
    own = watching._Watch._pad
    patch.setattr(watching._Watch, "_pad", lambda watch, pad, *a, **k: own(watch, (1, 1, 1, 1)))


def _any_result(patch: Patch) -> None:
    """What becomes of the convolution's output is not looked at, nor what the plain layer gives."""

    def seen(layer: nn.Module, x: Tensor) -> object:
        watch = watching._Watch(x)
        with torch.no_grad(), watch:
            layer(x)
        return watch.found

    patch.setattr(plain_layers, "watched", seen)
    patch.setattr(plain_layers, "_gives_the_same", lambda made, layer, x: True)


BUGS = {
    "padding of one, whatever it was": Bug(
        _same_pads, lambda: check_same(Network(), images(2, 4, 16, 16))
    ),
    "what follows the convolution is not seen": Bug(
        _any_result, lambda: test_what_does_anything_else_stays("Doubled")
    ),
}


@pytest.mark.parametrize("name", BUGS)
def test_planted_bugs_are_caught(name: str, monkeypatch: Patch) -> None:
    check_caught(BUGS[name], monkeypatch)
