"""What is no network, and layers that nothing reaches, are told by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import onebyone as obo
from onebyone.errors import ModelError

NET = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
X = torch.randn(2, 2, 8, 8)

TAKEN: dict[str, tuple[str, Callable[[Any], object]]] = {
    "slim": ("model", lambda wrong: obo.slim(wrong, X, macs=0.7)),
    "observe": ("model", lambda wrong: obo.observe(wrong, X)),
    "measure": ("model", lambda wrong: obo.measure(wrong, X)),
    "rewrite": ("model", lambda wrong: obo.rewrite(wrong, None, X)),  # type: ignore[arg-type]
    "verify": ("lighter", lambda wrong: obo.verify(NET, wrong, X)),
    "diff": ("after", lambda wrong: obo.diff(NET, wrong, X)),
    "export": ("model", lambda wrong: obo.export(wrong, X[:1], "never.pt2")),
    "bench": ("model", lambda wrong: obo.bench(wrong, X[:1], runtimes=("torch",))),
    "fine_tune": ("teacher", lambda wrong: obo.fine_tune(NET, X, teacher=wrong)),
    "deepen": ("reference", lambda wrong: obo.deepen(NET, X[:1], obo.Budget(macs=1.0), reference=wrong)),
    "explain": ("model", lambda wrong: obo.explain(wrong, X[:1])),
}  # fmt: skip


@pytest.mark.parametrize("name", TAKEN)
def test_what_is_no_network_is_told_by_the_arguments_name(name: str) -> None:
    argument, act = TAKEN[name]
    with pytest.raises(ModelError, match=rf"^{argument}= is int, and a network") as told:
        act(3)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("name", sorted({*TAKEN} - {"measure", "diff"}))
def test_weights_without_values_are_told_by_the_arguments_name(name: str) -> None:
    argument, act = TAKEN[name]
    with pytest.raises(ModelError, match=rf"^{argument}= has tensors on the meta device"):
        act(nn.Conv2d(2, 4, 3, device="meta"))


@pytest.mark.parametrize(
    ("wrong", "advice"),
    [
        (NET.state_dict(), "load_state_dict"),
        (nn.Sequential, "the class Sequential.*an instance"),
        ("timm:resnet18", r"onebyone\.load\('timm:resnet18'\)\.model"),
        (obo.load("demo"), r"is Loaded.*give its \.model"),
    ],
)
def test_what_may_have_been_meant(wrong: object, advice: str) -> None:
    with pytest.raises(ModelError, match=advice):
        obo.measure(wrong, X)  # type: ignore[arg-type]


def lazy() -> nn.Module:
    return nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.ReLU(), nn.LazyConv2d(4, 3))


@pytest.mark.parametrize("name", TAKEN)
def test_weights_without_shapes_are_told_and_left_without_them(name: str) -> None:
    model = lazy()
    with pytest.raises(ModelError, match="has no shape yet"):
        TAKEN[name][1](model)
    assert isinstance(model[0], nn.LazyConv2d)


def test_a_function_may_return_lazy_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They get their shapes from its example, without a trace in BatchNorm."""
    (tmp_path / "my_lazy.py").write_text(
        "import torch\nfrom torch import nn\ndef make():\n    torch.manual_seed(0)\n"
        "    return nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d()), torch.ones(1, 2, 8, 8)\n"
    )
    monkeypatch.chdir(tmp_path)
    loaded = obo.load("my_lazy:make")
    convolution, norm = loaded.model.children()
    assert type(convolution) is nn.Conv2d
    assert convolution.in_channels == 2
    assert type(norm) is nn.BatchNorm2d
    assert torch.equal(norm.running_mean, torch.zeros(4))


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("made", [torch.jit.script, lambda m: torch.jit.trace(m, X[:1])])
def test_a_teacher_may_be_torchscript(made: Callable[[nn.Module], nn.Module]) -> None:
    """Its outputs are what counts: they train the same weights as the module's own do."""
    torch.manual_seed(1)
    student = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Conv2d(3, 4, 3))
    recipe = obo.Recipe(batch_size=2, epochs=1, precision="float32", features=0.0)
    x = torch.randn(8, 2, 8, 8)
    tuned = [
        obo.fine_tune(student, x, teacher=teacher, recipe=recipe, held_out=0).model
        for teacher in (NET.eval(), made(NET.eval()))
    ]
    for one, other, before in zip(*(m.parameters() for m in (*tuned, student)), strict=True):
        torch.testing.assert_close(one, other)
        assert not torch.equal(one, before)


class _Finder(nn.Module):
    """A second stage on the pixels above a threshold, of which an image may have none."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1)
        self.middle = nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, 64)
        self.last = nn.Linear(64, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.middle(self.stem(x).relu())
        found = (x[:, 0] > 0.9).nonzero()
        rows = y[found[:, 0], :, found[:, 1], found[:, 2]]
        seen = self.last(self.head(rows).relu())
        return y.mean((1, 2, 3)) + seen.sum() / 100


def _refused(images: torch.Tensor) -> dict[str, str | None]:
    return {seen.layer: seen.refusal for seen in obo.observe(_Finder(), images).survey.layers}


def test_layers_that_get_nothing_of_the_first_image_stay_and_say_so() -> None:
    images = torch.rand(16, 1, 12, 12)
    assert set(_refused(images).values()) == {None}
    images[3] *= 0.5
    assert set(_refused(images).values()) == {None}
    images[0] *= 0.5
    refused = _refused(images)
    assert refused["stem"] is refused["middle"] is None
    assert "nothing reaches it on the first image" in str(refused["head"])
    assert "nothing reaches it on the first image" in str(refused["last"])


@pytest.mark.parametrize("budget", [{"macs": 0.6}, {"params": 0.6}])
def test_the_other_layers_are_slimmed_where_no_image_reaches_one(budget: dict[str, float]) -> None:
    torch.manual_seed(0)
    model = _Finder()
    slimmed = obo.slim(model, torch.rand(16, 1, 12, 12) / 2, **budget)  # type: ignore[arg-type]
    before = sum(p.numel() for p in model.parameters())
    after = sum(p.numel() for p in slimmed.model.parameters())
    assert slimmed.plan.macs_after <= 0.6 * slimmed.plan.macs_before or after <= 0.6 * before
    reasons = {d.layer: d.reason for d in slimmed.plan.decisions}
    assert "nothing reaches it" in str(reasons["head"])
    assert torch.equal(slimmed.model.head.weight, model.head.weight)  # type: ignore[union-attr]


def test_batches_that_leave_a_layer_without_rows_count_for_the_others() -> None:
    images = torch.rand(24, 1, 12, 12)
    images[1:-1] /= 2
    felt = obo.observe(_Finder(), images, memory=1).layers["last"]  # one image a batch
    assert torch.isfinite(felt.lowest).all()
    assert torch.isfinite(felt.highest).all()
    slimmed = obo.slim(_Finder(), images, params=0.3, memory=1)
    assert {d.layer: d.form for d in slimmed.plan.decisions}["head"] != "keep"
    assert (slimmed.verification.output_error or 0) < 0.5


def test_control_flow_that_is_captured_is_named() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            return torch.cond(x.sum() > 0, lambda y: self.a(y), lambda y: self.b(y), (x,))

    with pytest.raises(ModelError, match=r"control flow of torch\.cond .* give net\.pt2"):
        obo.slim(Branching().eval(), torch.randn(8, 3, 6, 6), macs=0.5, latency=False)
