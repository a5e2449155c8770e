"""memory: known peaks by hand, and PyTorch's own allocator as the witness."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from models import TRAPS
from test_tree import check_untouched
from torch import Tensor, nn
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint

import onebyone as obo
from onebyone.errors import ModelError
from onebyone.loading import load
from onebyone.measurement.counting import count
from onebyone.measurement.memory import held_before, measure_memory

F32 = 4


def conv(c_in: int, c_out: int, k: int = 1) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, k, padding=k // 2, bias=False)


def test_a_chain_holds_one_input_and_one_output_at_a_time() -> None:
    model = nn.Sequential(conv(4, 8), nn.ReLU(), conv(8, 2), nn.Sigmoid())
    found = measure_memory(model, torch.randn(3, 4, 5, 5), training=False)
    weights, pixels = (4 * 8 + 8 * 2) * F32, 3 * 25 * F32
    assert found.weight_bytes == weights
    assert found.inference.bytes == weights + pixels * (4 + 8 + 8)
    assert (found.inference.layer, found.inference.operator) == ("1", "aten.relu")
    assert found.inference.of("activation") == pixels * 16
    assert found.inference.of("input") == pixels * 4
    assert found.inference.of("weight") == weights
    assert found.training is None


def test_in_place_and_views_take_nothing() -> None:
    model = nn.Sequential(conv(4, 8), nn.ReLU(inplace=True), nn.Flatten(2))
    found = measure_memory(model, torch.randn(1, 4, 5, 5), training=False)
    assert found.inference.bytes == 4 * 8 * F32 + 25 * F32 * (4 + 8)


def test_a_shortcut_stays_alive() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = conv(4, 16), conv(16, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = x * 2
            return x + self.second(self.first(x))

    found = measure_memory(Residual(), torch.randn(1, 4, 5, 5), training=False).inference
    weights = 2 * 64 * F32
    assert found.bytes == weights + 25 * F32 * (4 + 4 + 16 + 4)
    assert found.layer == "second"
    assert next(a.shape for a in found.alive if a.role == "activation") == (1, 16, 5, 5)


def test_what_is_held_when_a_layer_begins() -> None:
    class Skips(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.twice = conv(4, 16), conv(16, 8), conv(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            skip = self.first(x)
            return torch.cat([skip, self.twice(self.twice(self.second(skip)))], 1)

    model = Skips()
    found = held_before(model, ["first", "second", "twice"], torch.randn(1, 4, 5, 5))
    pixels = 25 * F32
    assert found == {"first": 0, "second": 16 * pixels, "twice": (16 + 8) * pixels}
    assert not model.first._forward_pre_hooks


def test_a_training_step_keeps_activations_and_gradients() -> None:
    model = nn.Sequential(conv(4, 8), nn.ReLU(), conv(8, 2))
    found = measure_memory(model, torch.randn(3, 4, 5, 5)).training
    assert found is not None
    pixels, weights = 3 * 25 * F32, (4 * 8 + 8 * 2) * F32
    # Most is alive as the ReLU's gradient is there: its output (saved for it and for the second
    # convolution), the gradients on both of its sides, that of the second weight, and two scalars.
    assert found.of("weight") == weights
    assert found.of("input") == 4 * pixels
    assert found.bytes == weights + pixels * (4 + 3 * 8) + 8 * 2 * F32 + 2 * F32
    assert (found.layer, found.operator) == ("1", "aten.threshold_backward")
    assert found.bytes == sum(a.bytes for a in found.alive)


def allocated(run: object) -> int:
    """The most bytes that PyTorch's allocator held at once inside."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        run()  # type: ignore[operator]
    assert found.profiler is not None
    events = [e for e in found.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


@pytest.mark.parametrize("name", ["demo", "demo:resnet"])
def test_a_training_step_takes_what_the_allocator_says(name: str) -> None:
    model = load(name).model.train()
    inputs = torch.randn(32, 1, 28, 28)
    found = measure_memory(model, inputs).training
    assert found is not None

    def step() -> None:
        model(inputs).sum().backward()
        model.zero_grad(set_to_none=True)

    step()
    base = sum(t.nbytes for t in (*model.parameters(), *model.buffers(), inputs))
    assert found.bytes - base == pytest.approx(allocated(step), rel=0.1)


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_training_step_with_checkpoints_takes_what_the_allocator_says(reentrant: bool) -> None:

    class Kept(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = conv(3, 8)
            self.blocks = nn.ModuleList(
                nn.Sequential(nn.Sigmoid(), nn.Tanh(), nn.Sigmoid(), nn.Tanh()) for _ in range(6)
            )

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            for block in self.blocks:
                x = checkpoint(block, x, use_reentrant=reentrant)  # type: ignore[assignment]
            return x

    model, inputs = Kept().train(), torch.randn(4, 3, 64, 64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = measure_memory(model, inputs).training
    assert found is not None

    def step() -> None:
        model(inputs).sum().backward()
        model.zero_grad(set_to_none=True)

    step()
    base = sum(t.nbytes for t in (*model.parameters(), inputs))
    assert found.bytes - base == pytest.approx(allocated(step), rel=0.1)


@pytest.mark.parametrize(
    "name", ["plain", "partly frozen", "two inputs", "data-dependent", "cannot be copied"]
)
def test_the_model_comes_back_as_it_was(name: str) -> None:
    trap = TRAPS[name]
    inputs = [trap.images(2)] * (2 if name == "two inputs" else 1)
    model = trap.model().train()
    check_untouched(model, lambda m: measure_memory(m, *inputs))


def test_a_model_that_fails_is_told() -> None:
    with pytest.raises(ModelError, match="fails on an input of shape 1×3×8×8"):
        measure_memory(conv(4, 8), torch.randn(1, 3, 8, 8))


def test_no_gradient_is_told() -> None:
    model = conv(4, 8).requires_grad_(False)
    with pytest.raises(ModelError, match="no training step can be measured"):
        measure_memory(model, torch.randn(1, 4, 8, 8))
    assert measure_memory(model, torch.randn(1, 4, 8, 8), training=False).training is None


def test_a_backward_pass_of_the_networks_own_that_fails_is_told() -> None:
    class Overwriting(nn.Module):  # a partial convolution as it is written for inference
        def __init__(self) -> None:
            super().__init__()
            self.first, self.part = conv(4, 8), conv(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x).clone()
            x[:, :2] = self.part(x[:, :2])
            return x

    model, image = Overwriting(), torch.randn(1, 4, 8, 8)
    with pytest.raises(
        ModelError, match=r"backward pass fails .*modified by an inplace operation\)"
    ):
        measure_memory(model, image)
    found = obo.measure(model, image, memory=True, latency=False)
    assert found.memory is not None
    assert found.memory.training is None
    assert any(note.startswith("no training step: the network's backward") for note in found.notes)


def by_out(x: Tensor) -> Tensor:
    return torch.cat([x] * 50, 1, out=x.new_empty(0))


def by_resizing(x: Tensor) -> Tensor:
    return x.new_empty(0).resize_(50 * x.numel()).zero_()


@pytest.mark.parametrize("make", [by_out, by_resizing])
def test_memory_that_a_tensor_grows_to(make: Callable[[Tensor], Tensor]) -> None:
    class Grows(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return make(x).sum()

    x = torch.randn(2, 4, 5, 5)
    grown = 50 * x.nbytes
    assert measure_memory(Grows(), x, training=False).inference.bytes == x.nbytes + grown + F32
    found = count(Grows(), x)
    assert found.activation_bytes == grown + F32
    copied = x.nbytes * 50 if make is by_out else grown  # what is filled is read too
    assert sum(o.bytes_read for o in found.operations) == copied + grown


def test_in_the_forward_pass_a_function_belongs_to_the_module_that_runs() -> None:
    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = conv(3, 4)

        def forward(self, x: Tensor) -> Tensor:
            return functional.pad(self.conv(x), (9, 9, 9, 9))

    x = torch.randn(1, 3, 8, 8)
    peak = measure_memory(Padded(), x, training=False).inference
    assert (peak.layer, peak.operator) == ("", "aten.constant_pad_nd")
    assert [o.layer for o in count(Padded(), x).operations if "pad" in o.name] == [""]


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU])
def test_recurrent_layers_take_what_the_allocator_says(kind: type[nn.RNNBase]) -> None:
    layer, x = kind(16, 16), torch.randn(5, 2, 16)

    def run() -> None:
        with torch.no_grad():
            layer(x)

    run()
    found = measure_memory(layer, x, training=False).inference
    assert found.of("activation") == allocated(run)
