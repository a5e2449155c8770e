"""observe: moments against direct computation, and a model that comes back as it was."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from models import TRAPS, as_trained, images
from test_tree import check_untouched
from torch import Tensor, nn

import onebyone as obo
from onebyone import recorder, sensing, statistics
from onebyone.conv import ConvSpec
from onebyone.errors import ModelError
from onebyone.factorize.selection import Order, Reading
from onebyone.moments import Moments, RangeMoments
from onebyone.narrowing import ordering
from onebyone.narrowing.spaces import Cut, Space
from onebyone.recorder import LayerStatistics


def tiny(classes: int = 3) -> nn.Sequential:
    """A network so small that every position is sampled."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 5, 2), nn.ReLU(),
            nn.Flatten(), nn.Linear(5 * 16, classes),
        ).eval()  # fmt: skip


def covariance(rows: Tensor) -> Tensor:
    return torch.cov(rows.double().T, correction=0)


def check_moments(model: nn.Module, inputs: Tensor) -> None:
    """Law: covariances of outputs are those of all output positions of all images."""
    found = statistics.observe(model, inputs)
    with torch.no_grad():
        first = model[0](inputs)  # type: ignore[operator]
        second = model[:3](inputs)  # type: ignore[index,operator]
    for name, maps in (("0", first), ("2", second)):
        rows = maps.transpose(0, 1).flatten(1).T
        seen = found.layers[name].outputs
        assert seen.samples == len(rows)
        torch.testing.assert_close(seen.covariance, covariance(rows), rtol=1e-3, atol=1e-5)
    padded = torch.nn.functional.pad(inputs, (1, 1, 1, 1))
    patches = padded.unfold(2, 3, 1).unfold(3, 3, 1).transpose(0, 1).flatten(1).T
    seen = found.layers["0"].channels.all
    torch.testing.assert_close(seen.covariance, covariance(patches), rtol=1e-3, atol=1e-4)


def test_moments_are_those_of_all_positions() -> None:
    check_moments(tiny(), images(20, 3, 5, 5))


@pytest.mark.parametrize("parts", [2, 3])
def test_moments_add_up(parts: int) -> None:
    rows = torch.randn(60, 4, generator=torch.Generator().manual_seed(0)) + 2
    whole, summed, filled = Moments.none(4), Moments.none(4), Moments.none(4)
    whole.take(whole.of(rows))
    for part in rows.chunk(parts):
        filled.take(filled.of(part))
        of_part = Moments.none(4)
        of_part.take(of_part.of(part))
        summed.take(of_part)
    torch.testing.assert_close(filled.covariance, whole.covariance, rtol=1e-4, atol=1e-5)
    assert summed.samples == whole.samples
    torch.testing.assert_close(summed.covariance, whole.covariance, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(whole.covariance, covariance(rows), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("groups", [1, 3])
def test_moments_without_a_part_are_those_of_the_rest(groups: int) -> None:
    torch.manual_seed(0)
    rows = 5 + torch.randn(90, 4 * groups)
    rows[30:] += 20  # the parts have other means than all
    whole, part, rest = (Moments.none(4, groups=groups) for _ in range(3))
    for moments, taken in ((whole, rows), (part, rows[:30]), (rest, rows[30:])):
        moments.take(moments.of(taken))
    found = whole - part
    assert found.samples == rest.samples
    torch.testing.assert_close(found.total, rest.total)
    torch.testing.assert_close(found.covariance, rest.covariance, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("samples", [6, 50])
def test_moments_of_ranges_are_those_of_all_channels_within_them(samples: int) -> None:
    """Also of few samples, where some of a range is shrunk as all of it is."""
    ranges = (range(8), range(9, 11), range(12, 20), range(20, 22))
    rows = torch.randn(samples, 23, generator=torch.Generator().manual_seed(0)) + 2
    whole, first = RangeMoments.none(ranges), RangeMoments.none(ranges)
    whole.take(whole.of(rows))
    first.take(first.of(rows[: samples // 2]))
    rest = (whole - first).to("cpu")
    assert (whole.samples, whole.widest, whole.few) == (samples, 8, samples == 6)
    for found, given in ((whole, rows), (rest, rows[samples // 2 :])):
        for own in ranges:
            around, moments = found.around(own[1:])
            expected = Moments.none(len(own)).of(given[:, own.start : own.stop])
            assert around == own
            near = {"rtol": 1e-5, "atol": 1e-5}
            torch.testing.assert_close(moments.covariance, expected.covariance, **near)
            some = moments.covariance_of(slice(1, len(own)), moments.shrinking)
            torch.testing.assert_close(some, expected.covariance[1:, 1:], **near)


def test_what_a_layer_reads_of_several_spaces_is_kept_for_each_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Dense(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.grown = nn.ModuleList(nn.Conv2d(4 + 6 * i, 6, 1) for i in range(8))
            self.head = nn.Conv2d(52, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.grown:
                x = torch.cat([x, layer(x).relu()], 1)
            return self.head(x).mean((2, 3))

    torch.manual_seed(0)
    made: list[int] = []
    none = Moments.none

    def watched(size: int, *args: Any, **kwargs: Any) -> Moments:
        made.append(size)
        return none(size, *args, **kwargs)

    monkeypatch.setattr(Moments, "none", staticmethod(watched))
    model = Dense().eval()
    with torch.no_grad():
        for layer in (*model.grown[4:], model.head):  # all ignore one channel of the fourth layer
            layer.weight[:, 4 + 6 * 3 + 2] = 0  # type: ignore[union-attr]
    found = obo.observe(model, images(20, 4, 6, 6))
    assert max(made) == 6
    assert found.orders["grown.3"].channels[-1] == 2
    assert found.orders["grown.3"].errors[5] < 1e-6 * found.orders["grown.3"].errors[0]
    assert len(found.orders) == 8


def test_halves_are_what_is_judged_by_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """No second copy of wide layers and of inputs that no form squeezes; the whole is the same."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 24, 3), nn.ReLU(), nn.Conv2d(24, 6, 1), nn.Flatten(),
    ).eval()  # fmt: skip
    inputs = images(40, 3, 9, 9)
    every = obo.observe(model, inputs)
    monkeypatch.setattr(recorder, "JUDGED", 16)
    monkeypatch.setattr(statistics, "JUDGED", 16)
    some = obo.observe(model, inputs)
    for name, seen in every.layers.items():
        assert torch.equal(some.layers[name].gradients, seen.gradients)
        assert torch.equal(some.layers[name].outputs.products, seen.outputs.products)
    for half in every.halves:
        sizes = {n: (s.channels.widest, s.outputs.size) for n, s in half.layers.items()}
        assert sizes == {"0": (3, 8), "2": (8, 24), "4": (0, 6)}
        assert half.needs.keys() == {"0", "2"}
    for half in some.halves:
        sizes = {n: (s.channels.widest, s.outputs.size) for n, s in half.layers.items()}
        assert sizes == {"0": (3, 8), "2": (8, 0), "4": (0, 6)}
    for name in ("0", "4"):
        both, second = (half.layers[name].outputs for half in every.halves)
        both.take(second)
        assert both.samples == every.layers[name].outputs.samples
        torch.testing.assert_close(both.covariance, every.layers[name].outputs.covariance)
    assert every.needs.keys() == {"0", "2"}
    assert every.layers["4"].channels.ranges == ()


def check_fisher(model: nn.Module, inputs: Tensor) -> None:
    """Law: at a classifier's logits Σ g gᵀ is the Fisher information of the softened prediction p."""
    as_trained(model)
    found = statistics.observe(model, inputs).layers["5"].gradients / len(inputs)
    with torch.no_grad():
        p = (model(inputs).double() / sensing.TEMPERATURE).softmax(1)
    expected = ((p.mean(0)).diag() - p.T @ p / len(p)).float()
    torch.testing.assert_close(
        found, expected, rtol=0, atol=0.08 * expected.diagonal().max().item()
    )


def test_gradients_of_a_classifier_are_the_fisher_information() -> None:
    check_fisher(tiny(), images(3000, 3, 5, 5))


def test_gradients_of_few_images_leave_no_direction_out() -> None:
    """Four images span four directions of twelve; of a single one there are no halves to compare."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 12, 5), nn.Flatten(), nn.Linear(12, 12)).eval()
    for number, rank in ((4, 12), (1, 1)):
        found = obo.observe(model, images(number, 3, 5, 5)).layers["0"].gradients
        assert int(torch.linalg.matrix_rank(found, hermitian=True)) == rank


def test_gradients_of_other_outputs_are_of_random_directions() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 1)).eval()
    found = obo.observe(model, images(200, 3, 6, 6)).layers["0"].gradients / 200
    torch.testing.assert_close(found, 36 * torch.eye(6), rtol=0, atol=6)


def test_the_band_is_where_the_relu_is_open() -> None:
    model, inputs = tiny(), images(50, 3, 5, 5)
    seen = obo.observe(model, inputs).layers["0"]
    with torch.no_grad():
        y = model[0](inputs).transpose(0, 1).flatten(1)
    felt = seen.lowest <= seen.highest
    assert felt.any()
    assert (seen.lowest[felt] >= 0).all()
    assert (seen.highest[felt] <= y.max(1).values[felt] + 1e-6).all()


def check_chunks_do_not_matter(model: nn.Module, inputs: Tensor) -> None:
    """Law: little memory gives the same moments of what goes forward, where all is sampled."""
    whole, parts = (statistics.observe(model, inputs, memory=m) for m in (2 << 30, 20_000))
    for name, seen in whole.layers.items():
        other = parts.layers[name]
        torch.testing.assert_close(
            other.outputs.covariance, seen.outputs.covariance, rtol=1e-3, atol=1e-5
        )
        assert other.channels.ranges == seen.channels.ranges
        for length, own in seen.channels.by_length.items():
            torch.testing.assert_close(
                other.channels.by_length[length].covariance, own.covariance, rtol=1e-3, atol=1e-5
            )


def test_chunks_do_not_matter() -> None:
    check_chunks_do_not_matter(tiny(), images(30, 3, 5, 5))


def test_the_same_seed_gives_the_same() -> None:
    model, inputs = TRAPS["plain"].model(), TRAPS["plain"].images()
    first, again, other = (obo.observe(model, inputs, seed=s) for s in (4, 4, 5))
    name = "conv"
    assert torch.equal(first.layers[name].gradients, again.layers[name].gradients)
    assert torch.equal(first.layers[name].outputs.products, again.layers[name].outputs.products)
    assert not torch.equal(first.layers[name].gradients, other.layers[name].gradients)


@pytest.mark.parametrize(
    "name", ["plain", "partly frozen", "NaN", "two inputs", "cannot be copied"]
)
def test_the_model_comes_back_as_it_was(name: str) -> None:
    model, inputs = TRAPS[name].model().train(), TRAPS[name].images()
    next(model.parameters()).grad = torch.ones_like(next(model.parameters()))
    with pytest.raises(ModelError) if TRAPS[name].error else nullcontext():
        check_untouched(model, lambda m: statistics.observe(m, inputs))


def test_it_comes_back_also_from_a_failure_in_the_middle() -> None:
    class Fails(nn.Sequential):
        def forward(self, input: Tensor) -> Tensor:
            y = super().forward(input)
            if len(input) > 1:
                raise RuntimeError("in the middle")
            return y

    model = Fails(*TRAPS["plain"].model().children()).train()
    inputs = TRAPS["plain"].images()
    with pytest.raises(ModelError, match="in the middle"):
        check_untouched(model, lambda m: obo.observe(m, inputs))


def test_the_model_may_run_under_no_grad_outside() -> None:
    model, inputs = TRAPS["plain"].model(), TRAPS["plain"].images()
    with torch.no_grad():
        inside = obo.observe(model, inputs)
    outside = obo.observe(model, inputs)
    assert torch.equal(inside.layers["conv"].gradients, outside.layers["conv"].gradients)
    assert inside.layers["conv"].gradients.abs().sum() > 0


def test_nan_is_told() -> None:
    with pytest.raises(ModelError, match="NaN"):
        obo.observe(TRAPS["NaN"].model(), TRAPS["NaN"].images())


def test_an_output_without_numbers_is_told() -> None:
    class Names(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x).mean((2, 3)).argmax(1)

    with pytest.raises(ModelError, match="no floating-point tensor"):
        obo.observe(Names().eval(), images(4, 3, 5, 5))


def test_progress_rises_to_one() -> None:
    told: list[float] = []
    obo.observe(tiny(), images(30, 3, 5, 5), memory=20_000, progress=told.append)
    assert told == sorted(told)
    assert told[-1] == 1
    assert len(told) > 2


@pytest.mark.parametrize("groups", [1, 3])
def test_moments_of_features_about_a_large_mean(groups: int) -> None:
    """In a float32 sum of squares they are nothing but rounding."""
    torch.manual_seed(0)
    rows = 1000 + 0.01 * torch.randn(400, 4 * groups)
    moments = Moments.none(4, groups=groups)
    for part in rows.split(64):
        moments.take(moments.of(part))
    parts = rows.reshape(400, groups, 4).transpose(0, 1)
    wanted = torch.stack([covariance(x) for x in parts])
    found = moments.covariance.reshape(wanted.shape)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-9)


class NoGradients(nn.Module):
    """Of which autograd can make nothing, or not all: by how it is written, or by what it computes."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.first, self.last = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "backbone":
            with torch.no_grad():
                x = self.first(x).relu()
            return self.last(x)
        if self.kind == "whole":
            with torch.no_grad():
                return self.last(self.first(x).relu())
        if self.kind == "in place":  # the gradient of a sigmoid is worked out from what it gave
            x = self.last(self.first(x).relu()).sigmoid()
            x[:, :2] = x[:, :2] * 2 - 0.5
            return x
        if self.kind == "copied":
            x = self.last(self.first(x).relu()).sigmoid()
            return torch.cat([x[:, :2] * 2 - 0.5, x[:, 2:]], 1)
        return self.last(Sign.apply(self.first(x)))  # type: ignore[arg-type]


class Sign(torch.autograd.Function):
    """Without a backward."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:  # type: ignore[override]
        return x.sign() * x.abs().sqrt()


@pytest.mark.parametrize(
    ("kind", "unfelt"),
    [
        ("backbone", "first:"),
        ("whole", "first, last:"),
        ("own", "first, last:"),
    ],
)
def test_layers_without_gradients_keep_their_own_outputs(kind: str, unfelt: str) -> None:
    torch.manual_seed(0)
    model, pictures = NoGradients(kind).eval(), images(64, 3, 8, 8)
    slimmed = obo.slim(model, pictures, macs=0.6, held_out=16, latency=False)
    assert any(f"reaches {unfelt}" in note for note in slimmed.plan.notes)
    cannot = [note for note in slimmed.plan.notes if "cannot be taken" in note]
    assert bool(cannot) == (kind == "own")
    assert slimmed.verification.output_error is not None
    assert slimmed.verification.output_error < 1


def test_what_a_network_overwrites_and_its_gradients_need_is_kept_for_them() -> None:
    torch.manual_seed(0)
    model, pictures = NoGradients("in place").eval(), images(64, 3, 8, 8)
    plan = obo.slim(model, pictures, macs=0.6, held_out=16, latency=False).plan
    assert not any("gradient" in note for note in plan.notes)
    model.kind = "copied"
    copied = obo.slim(model, pictures, macs=0.6, held_out=16, latency=False).plan
    assert [(d.form, d.ranks) for d in plan.decisions] == [
        (d.form, d.ranks) for d in copied.decisions
    ]
    assert plan.error == pytest.approx(copied.error, rel=1e-3)


class Unfelt(nn.Module):
    """No gradient reaches the layers, and the width between them is free to be narrowed."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (
            nn.Conv2d(i, o, 3, padding=1) for i, o in ((3, 24), (24, 24), (24, 4))
        )

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self.c(self.b(self.a(x).relu()).relu())


@pytest.mark.parametrize(("number", "judging"), [(2, False), (8, True)])
def test_a_half_of_one_sample_judges_no_widths(
    monkeypatch: pytest.MonkeyPatch, number: int, judging: bool
) -> None:
    """One pooled map does not vary: whatever width is kept, nothing would be lost on it."""
    called: list[int] = []
    right = ordering.judged

    def watched(order: Order, first: Sequence[Reading], second: Sequence[Reading]) -> Order:
        called.append(first[0].samples)
        return right(order, first, second)

    monkeypatch.setattr(ordering, "judged", watched)
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    ).eval()
    found = obo.observe(model, images(number, 3, 9, 9))
    assert called == ([number // 2] if judging else [])
    assert found.orders["0"].errors[0] > 0


@pytest.mark.parametrize("samples", [3, 50])
def test_few_samples_are_shrunk_to_the_variance_of_all_that_a_layer_reads(samples: int) -> None:
    rows = torch.randn(samples, 12, generator=torch.Generator().manual_seed(0))
    rows[:, :6] /= 100
    ranges = (range(6), range(6, 12))
    channels = RangeMoments.none(ranges)
    channels.take(channels.of(rows))
    assert channels.variance == pytest.approx(float(rows.var(0, correction=0).mean()), rel=1e-5)
    space = Space(6, ("a",), ("b",), (), (Cut("b.weight", 1),))
    seen = replace(LayerStatistics.none(ConvSpec.of(nn.Conv2d(12, 4, 1))), channels=channels)
    readings = ordering._Readings({"b": seen}, {"b": dict.fromkeys(ranges, torch.eye(6))})
    diagonal = readings.of(space)[0].covariance.diagonal()
    assert (float(diagonal.mean()) > 0.1 * channels.variance) == (samples == 3)


def test_widths_cost_something_where_no_gradient_is_felt() -> None:
    torch.manual_seed(0)
    model, pictures = Unfelt().eval(), images(96, 3, 10, 10)
    found = obo.slim(model, pictures, macs=0.5, held_out=32, latency=False)
    assert found.plan.macs_after > 0.4 * found.plan.macs_before
    assert found.plan.error > 0
    assert (found.verification.output_error or 1) < 0.5


def test_what_is_too_large_to_be_multiplied_is_told() -> None:
    with pytest.raises(ModelError, match="so large that its squares overflow"):
        statistics.observe(tiny(), 1e25 * images(20, 3, 5, 5))


def test_gradients_too_large_to_be_multiplied_are_told() -> None:
    conv, last = nn.Conv2d(3, 4, 3, bias=False), nn.Linear(16, 2, bias=False)
    model = nn.Sequential(conv, nn.Flatten(), last).eval()
    with torch.no_grad():
        conv.weight *= 1e-22
        last.weight *= 1e22
    inputs = torch.randn(24, 3, 4, 4)
    assert model(inputs).isfinite().all()
    with pytest.raises(ModelError, match=r"or its gradient, .* squares overflow"):
        statistics.observe(model, inputs)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_torchs_default_dtype_is_no_matter(dtype: torch.dtype) -> None:
    model, inputs = tiny(), images(20, 3, 5, 5)
    expected = statistics.observe(model, inputs)
    torch.set_default_dtype(dtype)
    try:
        found = statistics.observe(model, inputs)
    finally:
        torch.set_default_dtype(torch.float32)
    for name, layer in expected.layers.items():
        assert found.layers[name].outputs.products.dtype == torch.float32
        torch.testing.assert_close(found.layers[name].outputs.covariance, layer.outputs.covariance)


def test_a_compiled_network_is_the_one_within() -> None:
    model, inputs = tiny(), images(20, 3, 5, 5)
    compiled = cast(nn.Module, torch.compile(model, backend="eager"))
    found = statistics.observe(compiled, inputs)
    assert found.layers.keys() == statistics.observe(model, inputs).layers.keys()
    made = obo.plan(compiled, found, obo.Budget(macs=0.8))
    lighter = obo.rewrite(compiled, made, inputs, statistics=found)
    assert obo.measure(lighter, inputs[:1]).macs <= 0.8 * obo.measure(model, inputs[:1]).macs
