"""Layers that compute their weights at each pass become plain layers with those weights, to the bit."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from models import head, images
from planting import Bug, Patch, check_caught
from test_plain import check_same
from test_rewriting import full, kept, outputs, relative_error
from test_tree import check_untouched
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize

import onebyone as obo
from onebyone import plain as plain_layers
from onebyone.errors import BudgetError
from onebyone.loading import module_of
from onebyone.plain import plain
from onebyone.tree import modules_by_name


class ScaledStandardized(nn.Conv2d):
    """Weights of mean 0 and variance 1 by way of batch normalization, with a gain (NFNet)."""

    def __init__(self, *args: int, **options: int) -> None:
        super().__init__(*args, **options)  # type: ignore[arg-type]
        self.gain = nn.Parameter(torch.rand(self.out_channels, 1, 1, 1) + 0.5)

    def forward(self, input: Tensor) -> Tensor:
        weight = F.batch_norm(
            self.weight.reshape(1, self.out_channels, -1), None, None, training=True, momentum=0.0,
            weight=(self.gain * 0.1).view(-1), eps=1e-6,
        ).reshape_as(self.weight)  # fmt: skip
        return F.conv2d(
            input, weight, self.bias, self.stride, self.padding, self.dilation, self.groups
        )


class PaddedStandardized(ScaledStandardized):
    """The same, padded as TensorFlow does."""

    def forward(self, input: Tensor) -> Tensor:
        pads: list[int] = []
        for n, k, s in zip(input.shape[:1:-1], self.kernel_size[::-1], self.stride, strict=True):
            total = max((-(-n // s) - 1) * s + k - n, 0)
            pads += [total // 2, total - total // 2]
        return super().forward(F.pad(input, pads))


class Equalized(nn.Module):
    """No convolution of PyTorch: weights of variance 1, scaled as they are used (progressive GANs)."""

    def __init__(self, c_in: int, c_out: int, kernel: int) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(c_out, c_in, kernel, kernel))
        self.shift = nn.Parameter(torch.randn(c_out))

    def forward(self, x: Tensor) -> Tensor:
        scale = (2 / self.kernel[0].numel()) ** 0.5
        return F.conv2d(x, self.kernel * scale, self.shift * 0.1, padding=1)


class EqualizedLinear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight * 0.5, self.bias)


def by_hooks(norm: Callable[[nn.Module], nn.Module], layer: nn.Module) -> nn.Module:
    """How it was done before parametrizations."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return norm(layer)


def conv(**options: object) -> nn.Conv2d:
    return nn.Conv2d(16, 16, 3, **options)  # type: ignore[arg-type]


def orthogonal() -> nn.Module:
    return parametrizations.orthogonal(nn.Conv2d(16, 16, 1))


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "standardized": lambda: ScaledStandardized(16, 16, 3),
    "standardized, grouped": lambda: ScaledStandardized(16, 16, 3, groups=4, padding=1),
    "standardized, padded": lambda: PaddedStandardized(16, 16, 3, stride=2),
    "equalized": lambda: Equalized(16, 16, 3),
    "weight norm": lambda: parametrizations.weight_norm(conv(bias=False)),
    "spectral norm": lambda: parametrizations.spectral_norm(conv(stride=2)),
    "weight norm, reflected": lambda: parametrizations.weight_norm(
        conv(padding=(1, 2), padding_mode="reflect")
    ),
    "orthogonal": orthogonal,
    "weight norm by hooks": lambda: by_hooks(nn.utils.weight_norm, conv()),
    "spectral norm by hooks": lambda: by_hooks(nn.utils.spectral_norm, conv()),
}


def network(name: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return head(nn.Sequential(nn.Conv2d(4, 16, 3, padding=1), LAYERS[name]())).eval()


@pytest.mark.parametrize("name", LAYERS)
def test_it_becomes_plain_to_the_bit(name: str) -> None:
    found = check_same(network(name), images(3, 4, 12, 12))
    kinds = {type(m) for n, m in modules_by_name(found).items() if n.startswith("first.1")}
    assert kinds <= {nn.Conv2d, nn.Sequential, nn.ZeroPad2d}
    assert not any(m._forward_pre_hooks for m in found.modules())


def program(name: str, decomposed: bool) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = torch.export.export(network(name), (images(1, 4, 12, 12),))
        return module_of(exported.run_decompositions() if decomposed else exported).model


@pytest.mark.parametrize("decomposed", [False, True])
@pytest.mark.parametrize("name", sorted({*LAYERS} - {"orthogonal"}))  # which is not exported
def test_so_it_does_in_an_exported_program(name: str, decomposed: bool) -> None:
    original, model, x = network(name), program(name, decomposed), images(5, 4, 12, 12)
    own, names = dict(original.named_parameters()), dict(model.named_parameters())
    assert own.keys() == names.keys()
    assert all(torch.equal(own[name], tensor) for name, tensor in names.items())
    torch.testing.assert_close(outputs(model, x), outputs(original, x), rtol=1e-5, atol=1e-5)
    slimmed = obo.slim(model, images(48, 4, 12, 12), macs=0.6, latency=False)
    assert not any(d.refused for d in slimmed.plan.decisions)
    assert "first.1" in {d.layer for d in slimmed.plan.decisions}
    assert any("first.1 are computed anew" in note for note in slimmed.plan.notes)


def test_a_program_keeps_calls_whose_weights_others_read() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            shared = self.a.weight * 2
            return F.conv2d(x, shared) + F.conv2d(x, shared, self.a.bias, stride=1) + self.b(x)

    original, x = Two().eval(), images(3, 4, 6, 6)
    model = module_of(torch.export.export(original, (x[:1],))).model
    assert type(model.b) is nn.Conv2d
    assert not isinstance(model.a, GraphModule)
    torch.testing.assert_close(outputs(model, x), outputs(original, x), rtol=0, atol=0)


@pytest.mark.parametrize("name", LAYERS)
def test_it_is_slimmed_saved_and_loaded(name: str, tmp_path: Path) -> None:
    model, x = network(name), images(48, 4, 12, 12)
    made = obo.slim(model, x, macs=0.6, latency=False)
    assert made.plan.macs_after <= 0.6 * made.plan.macs_before
    assert made.plan.macs_before <= obo.measure(model, x[:1]).macs  # without what makes the weights
    assert not any(d.refused for d in made.plan.decisions)
    assert any("first.1 are computed anew" in note for note in made.plan.notes)
    folder = made.save(tmp_path / "out")
    again = obo.load(str(folder), architecture=network(name)).model
    torch.testing.assert_close(outputs(again, x), outputs(made.model, x), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["standardized", "equalized", "weight norm, reflected"])
def test_at_full_rank_it_computes_what_the_original_does(name: str) -> None:
    model, x = network(name), images(48, 4, 12, 12)
    plan, statistics = kept(model, x)
    for form in ("squeeze", "channel", "tucker2"):
        lighter = obo.rewrite(model, full(plan, form), x, statistics=statistics)
        assert relative_error(outputs(model, x), outputs(lighter, x)) < 1e-6


@pytest.mark.parametrize("name", LAYERS)
def test_the_original_is_as_it_was(name: str) -> None:
    x = images(8, 4, 12, 12)
    check_untouched(
        network(name).train(), lambda model: obo.slim(model, x, macs=0.8, latency=False)
    )


def test_linear_layers_too() -> None:
    model = nn.Sequential(
        EqualizedLinear(16, 32), nn.ReLU(), parametrizations.weight_norm(nn.Linear(32, 5))
    )
    found = check_same(model, torch.randn(4, 16))
    assert [type(m) for m in found.children()] == [nn.Linear, nn.ReLU, nn.Linear]


def test_its_weights_train_as_those_that_they_are_made_of_did() -> None:
    model = network("standardized")
    model.get_submodule("first.1").requires_grad_(False)
    found = plain(model, images(1, 4, 12, 12)).model
    assert not found.get_submodule("first.1").weight.requires_grad  # type: ignore[union-attr]
    assert found.get_submodule("first.0").weight.requires_grad  # type: ignore[union-attr]


def test_weights_made_of_what_another_layer_holds_stay() -> None:
    model = network("standardized")
    first = model.get_submodule("first.1")
    second = ScaledStandardized(16, 16, 3)
    second.weight = first.weight  # type: ignore[assignment]
    model.get_submodule("first").append(second)  # type: ignore[operator]
    assert plain(model, images(1, 4, 12, 12)).model is model
    with pytest.raises(BudgetError, match="lowest"):
        obo.slim(model, images(16, 4, 12, 12), macs=0.2, latency=False)


class Buffered(nn.Module):
    """A fixed filter, which no training changes: nothing to make lighter."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kernel", torch.ones(4, 4, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.get_buffer("kernel"))


def test_fixed_filters_stay() -> None:
    model = nn.Sequential(Buffered(), nn.ReLU()).eval()
    assert plain(model, images(1, 4, 8, 8)).model is model


class Warm(nn.Module):
    """A parametrization that is another in training."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight * (2 if self.training else 3)


def test_it_is_the_weight_of_inference() -> None:
    layer = nn.Conv2d(4, 4, 1)
    own = layer.weight.detach().clone()
    parametrize.register_parametrization(layer, "weight", Warm())
    found = plain(nn.Sequential(layer).train(), images(1, 4, 8, 8)).model
    torch.testing.assert_close(found[0].weight, 3 * own)  # type: ignore[index]
    assert found[0].training  # type: ignore[index]


BUGS = {
    "the weight that it holds for the one that it computes": Bug(
        lambda patch: _held_instead(patch),
        lambda: test_it_becomes_plain_to_the_bit("standardized"),
    ),
    "weights of other data are not looked at": Bug(
        lambda patch: patch.setattr(plain_layers.Computed, "like", lambda *_: True),
        lambda: check_counted_stays(),
    ),
}


def _held_instead(patch: Patch) -> None:
    own = plain_layers._made

    def made(layer: nn.Module, found: plain_layers.Computed) -> nn.Module:
        plain = own(layer, found)
        plain.weight = layer.weight
        return plain

    patch.setattr(plain_layers, "_made", made)
    patch.setattr(plain_layers, "_gives_the_same", lambda *_: True)


class Cycling(nn.Module):
    """A parametrization that counts how often it was asked: the same every third time."""

    calls = 0

    def forward(self, weight: Tensor) -> Tensor:
        self.calls += 1
        return weight * (self.calls % 3 + 1)


def check_counted_stays() -> None:
    for _ in range(3):
        layer = nn.Conv2d(4, 4, 1)
        parametrize.register_parametrization(layer, "weight", Cycling())
        model = nn.Sequential(layer, nn.ReLU()).eval()
        for _ in range(3):
            assert plain(model, images(1, 4, 8, 8)).model is model
            model(images(1, 4, 8, 8))


@pytest.mark.parametrize("name", BUGS)
def test_planted_bugs_are_caught(name: str, monkeypatch: Patch) -> None:
    check_caught(BUGS[name], monkeypatch)
