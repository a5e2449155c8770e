"""verify: what it counts and compares, against numbers worked out otherwise."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from onebyone.data import Images
from onebyone.errors import DataError, ModelError
from onebyone.verification import relative_error, verify


class Table(nn.Module):
    """A "network" that looks its logits up: the first pixel of an image is the row."""

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.rows = nn.Parameter(rows)

    def forward(self, x: Tensor) -> Tensor:
        return self.rows[x[:, 0, 0, 0].long()]


def rows(n: int, classes: int = 4, seed: int = 0) -> Tensor:
    return torch.randn(n, classes, generator=torch.Generator().manual_seed(seed))


def numbered(n: int, labels: Tensor | None = None) -> Images:
    inputs = torch.arange(n, dtype=torch.float32)[:, None, None, None].expand(n, 1, 2, 2)
    return Images(inputs.contiguous(), labels)


def convolutional() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 4))


def pictures(n: int = 20) -> Tensor:
    return torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class TestComparison:
    def test_agreement_divergence_and_error(self) -> None:
        """150 images, so that the last batch is a part of one."""
        before, after = rows(150), rows(150) + 0.5 * rows(150, seed=1)
        found = verify(Table(before), Table(after), numbered(150), latency=False)
        assert found.images == 150
        same = (before.argmax(1) == after.argmax(1)).double().mean()
        assert 0.3 < same < 1
        assert found.agreement == pytest.approx(float(same))
        kl = F.kl_div(
            after.log_softmax(1), before.log_softmax(1), log_target=True, reduction="none"
        )
        assert found.kl == pytest.approx(float(kl.sum(1).mean()), rel=1e-5)
        error = (before - after).square().sum() / (before - before.mean(0)).square().sum()
        assert found.output_error == pytest.approx(float(error), rel=1e-5)

    def test_accuracy_of_each(self) -> None:
        before, after = rows(90), rows(90, seed=1)
        labels = before.argmax(1)
        labels[:30] = (labels[:30] + 1) % 4
        found = verify(Table(before), Table(after), numbered(90, labels), latency=False)
        assert found.before.accuracy == pytest.approx(60 / 90)
        expected = (after.argmax(1) == labels).double().mean()
        assert found.after.accuracy == pytest.approx(float(expected))

    @pytest.mark.parametrize(("right", "told"), [(20, True), (45, False)])
    def test_labels_that_are_right_by_chance_only(self, right: int, told: bool) -> None:
        """A quarter is right by chance."""
        before = rows(80)
        labels = (before.argmax(1) + (torch.arange(80) >= right)) % 4
        found = verify(Table(before), Table(before), numbered(80, labels), latency=False)
        assert found.before.accuracy == right / 80
        said = f"the original is right on {right} of 80 images, no more than by chance"
        assert any(said in note for note in found.notes) == told

    def test_equal_networks(self) -> None:
        found = verify(convolutional(), convolutional(), pictures(), latency=False)
        assert (found.agreement, found.kl, found.output_error) == (1.0, 0.0, 0.0)
        assert {e.layer: e.error for e in found.layers} == {"0": 0.0, "3": 0.0, "6": 0.0}
        assert found.before.accuracy is None

    def test_outputs_that_are_no_classes(self) -> None:
        model = convolutional()[:4]
        other = copy.deepcopy(model)
        nn.init.zeros_(other[3].weight)  # type: ignore[arg-type]
        found = verify(model, other, pictures(), latency=False)
        assert found.agreement is None
        assert found.kl is None
        assert found.output_error is not None
        assert 0.5 < found.output_error < 2

    def test_without_images(self) -> None:
        model = convolutional()
        found = verify(model, model, example=pictures(1), latency=False)
        assert (found.images, found.agreement, found.output_error, found.layers) == (
            0,
            None,
            None,
            (),
        )
        with pytest.raises(DataError, match="nothing to verify on"):
            verify(model, model)

    @pytest.mark.parametrize(
        ("before", "after", "message"),
        [
            (torch.nan, 0.0, "the original network's output"),
            (0.0, torch.inf, "the lighter network's"),
        ],
    )
    def test_nan(self, before: float, after: float, message: str) -> None:
        tables = [Table(rows(4) + value) for value in (before, after)]
        with pytest.raises(ModelError, match=message):
            verify(tables[0], tables[1], numbered(4), latency=False)

    def test_labels_beyond_the_classes(self) -> None:
        labels = torch.tensor([0, 1, 2, 4])
        with pytest.raises(DataError, match="a label is 4, but the network has 4 classes"):
            verify(Table(rows(4)), Table(rows(4)), numbered(4, labels), latency=False)

    def test_no_output_to_compare(self) -> None:
        class Says(nn.Module):
            def forward(self, x: Tensor) -> str:
                return "a cat"

        with pytest.raises(ModelError, match="no floating-point tensor"):
            verify(Says(), Says(), pictures(), latency=False)

    def test_an_original_of_other_classes(self) -> None:
        with pytest.raises(ModelError, match=r"\(9, 3\) and the original's \(9, 4\): give the"):
            verify(Table(rows(9)), Table(rows(9, classes=3)), numbered(9), latency=False)


class TestLayers:
    def test_errors_are_those_of_the_outputs(self) -> None:
        """Every position of 20 small images is sampled more than once; the estimate is close."""
        model = convolutional().eval()
        other = copy.deepcopy(model)
        with torch.no_grad():
            other[3].weight.mul_(0.9)  # type: ignore[operator]
            x = pictures()
            before, after = model[:4](x), other[:4](x)
        found = verify(model, other, x, latency=False)
        errors = {e.layer: e.error for e in found.layers}
        mean = before.mean((0, 2, 3), keepdim=True)
        expected = float((before - after).square().sum() / (before - mean).square().sum())
        assert errors["0"] == 0.0
        assert errors["3"] == pytest.approx(expected, rel=0.05)
        assert list(errors) == ["0", "3", "6"]


class TestCounts:
    def test_macs_params_and_bytes(self) -> None:
        model, x = convolutional(), pictures()
        found = verify(model, model, x, latency=False).before
        with FlopCounterMode(display=False) as flops, torch.no_grad():
            model(x[:1])
        assert found.macs == flops.get_total_flops() // 2
        assert found.macs == 8 * 3 * 9 * 64 + 12 * 8 * 9 * 36 + 12 * 4
        assert found.params == sum(p.numel() for p in model.parameters())
        assert found.weight_bytes == 4 * (found.params + 2 * 8) + 8

    def test_tied_weights_are_counted_once(self) -> None:
        conv = nn.Conv2d(3, 3, 1, bias=False)
        model = nn.Sequential(conv, conv)
        found = verify(model, model, pictures(), latency=False).before
        assert (found.params, found.weight_bytes, found.macs) == (9, 36, 2 * 9 * 64)


class TestLatency:
    def test_both_are_timed_under_the_same_conditions(self) -> None:
        model = convolutional()
        threads = torch.get_num_threads()
        found = verify(model, model, pictures())
        assert torch.get_num_threads() == threads
        for side in (found.before, found.after):
            assert [t.batch for t in side.latency] == [1, 16]
            for timed in side.latency:
                assert 0 < timed.low_ms <= timed.median_ms <= timed.high_ms
                assert timed.runs >= 5
                assert (timed.threads, timed.dtype, timed.device) == (1, "float32", "cpu")
        assert verify(model, model, pictures(), latency=False).before.latency == ()


@pytest.mark.parametrize("fails", [False, True])
def test_networks_come_back_as_they_were(fails: bool) -> None:
    model, other = convolutional().train(), convolutional().train()
    other[1].eval()
    if fails:
        nn.init.constant_(other[6].bias, torch.nan)  # type: ignore[arg-type]
    states: list[dict[str, Any]] = [copy.deepcopy(m.state_dict()) for m in (model, other)]
    if fails:
        with pytest.raises(ModelError):
            verify(model, other, pictures(), latency=False)
    else:
        verify(model, other, pictures(), latency=False)
    for network, state in zip((model, other), states, strict=True):
        torch.testing.assert_close(network.state_dict(), state, rtol=0, atol=0, equal_nan=True)
        assert not any(m._forward_hooks for m in network.modules())
    assert all(m.training for m in model.modules())
    assert [n for n, m in other.named_modules() if not m.training] == ["1"]


class Several(nn.Module):
    """Its outputs beside each other, in a dict or a list, and one that is no number of theirs."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, x: Tensor) -> dict[str, Any]:
        return {"same": x.mean((2, 3)), "maps": [x * self.scale, x.sum(1)], "count": 3}


def test_the_error_is_that_of_all_outputs() -> None:
    images = torch.randn(150, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    found = verify(Several(1.0), Several(1.5), images, latency=False)
    wanted = 0.25 * float(images.square().sum()) / float((images - images.mean(0)).square().sum())
    assert found.output_error == pytest.approx(wanted / 3, rel=1e-4)
    assert any("returns 3 tensors" in note and "from 0 to 0.25" in note for note in found.notes)


class Turned(nn.Module):
    """Sequences whose axes are in another order."""

    def __init__(self, scale: float, order: tuple[int, ...]) -> None:
        super().__init__()
        self.scale, self.order = nn.Parameter(torch.tensor(scale)), order

    def forward(self, x: Tensor) -> Tensor:
        return (x.mean(2) * self.scale + 5).permute(self.order)


@pytest.mark.parametrize("count", [1, 5, 64, 100])
@pytest.mark.parametrize("order", [(2, 0, 1), (1, 2, 0)])
def test_images_may_lie_along_another_axis(count: int, order: tuple[int, ...]) -> None:
    images = torch.randn(count, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    found, wanted = (
        verify(Turned(1.0, o), Turned(1.3, o), images, latency=False).output_error
        for o in (order, (0, 1, 2))
    )
    assert found == pytest.approx(wanted)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_scripted_network_on_either_side() -> None:
    model, x = convolutional().eval(), torch.randn(4, 3, 8, 8)
    scripted = torch.jit.script(model)
    for one, other in ((model, scripted), (scripted, model)):
        found = verify(one, other, x, latency=False)
        assert found.agreement == 1.0
        assert found.layers == ()


def test_what_should_be_zero_and_is_not_is_no_error_of_zero() -> None:
    assert relative_error(2.0, 0.0, 0.0) == 1.0
    assert relative_error(0.0, 0.0, 0.0) == 0.0
    assert relative_error(2.0, 8.0, 4.0) == 0.5
