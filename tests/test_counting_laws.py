"""Counting leaves no trace, says the same twice, and credits each operator to the layer it belongs to."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from known_costs import CONVOLUTIONS, ByHand, Case
from known_products import PRODUCTS
from models import TRAPS, Trap
from test_counting_known import built
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize
from traces import bits, differences, traces

from onebyone.errors import ModelError
from onebyone.measurement import rehearsing
from onebyone.measurement.counting import count
from onebyone.measurement.rehearsing import on_meta
from onebyone.tree import uncollected

CASES = {case.name: case for case in (*CONVOLUTIONS, *PRODUCTS)}

pytestmark = [
    pytest.mark.filterwarnings("ignore:Using padding='same'"),
    pytest.mark.filterwarnings("ignore:LSTM with projections"),
    pytest.mark.filterwarnings("ignore:.*quantize_per_tensor.*are deprecated"),
]
both_trainings = pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])


def check_no_trace(model: nn.Module, *inputs: Tensor, fails: bool = False) -> None:
    before, given = traces(model), [bits(x) for x in inputs]
    if fails:
        with pytest.raises(ModelError):
            count(model, *inputs)
    else:
        count(model, *inputs)
    changed = differences(before, traces(model))
    if isinstance(model, Uncopyable):  # it ran itself: buffers were written, and written back
        changed = [what for what in changed if what != "versions"]
    assert not changed
    assert [bits(x) for x in inputs] == given


@both_trainings
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_no_trace(case: Case, training: bool) -> None:
    model, inputs = built(case)
    check_no_trace(model.train(training), *inputs)


@both_trainings
@pytest.mark.parametrize("trap", TRAPS.values(), ids=TRAPS)
def test_no_trace_in_trap_networks(trap: Trap, training: bool) -> None:
    model = trap.model().train(training)
    dtype = next((p.dtype for p in model.parameters()), torch.float32)
    check_no_trace(model, trap.images(2).to(dtype), fails=trap is TRAPS["two inputs"])


class Moody(nn.Module):
    """Statistics, dropout and random numbers; then it fails, if it is told to."""

    def __init__(self, fails: bool, by_data: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 6, 3)
        self.norm = nn.BatchNorm2d(6)
        self.frozen = nn.BatchNorm2d(6)
        self.drop = nn.Dropout(0.5)
        self.fails, self.by_data = fails, by_data

    def forward(self, x: Tensor) -> Tensor:
        y = self.drop(self.frozen(self.norm(self.conv(x))))
        y = y + torch.rand_like(y)
        if self.by_data and y.sum() > 0:
            y = 2 * y
        if self.fails:
            raise RuntimeError("as it was told to")
        return y


class Uncopyable(Moody):
    def __deepcopy__(self, memo: object) -> nn.Module:
        raise TypeError("there is but one of me")


@both_trainings
@pytest.mark.parametrize("by_data", [False, True], ids=["shapes", "values"])
@pytest.mark.parametrize("fails", [False, True], ids=["runs", "raises"])
@pytest.mark.parametrize("kind", [Moody, Uncopyable])
def test_no_trace_of_failures(
    kind: type[Moody], fails: bool, by_data: bool, training: bool
) -> None:
    model = kind(fails, by_data).train(training)
    model.frozen.eval()  # a partly frozen network stays one
    model.conv.register_forward_hook(lambda module, args, output: None)
    x = torch.randn(2, 4, 8, 8)
    model.conv(x).sum().backward()
    check_no_trace(model, x, fails=fails)
    check_no_trace(model, x[:, :3], fails=True)


@both_trainings
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_again_is_the_same_and_layers_sum_to_the_total(case: Case, training: bool) -> None:
    model, inputs = built(case)
    found = count(model.train(training), *inputs)
    assert count(model, *inputs) == found
    assert sum(layer.macs for layer in found.layers.values()) == found.macs
    assert sum(layer.params for layer in found.layers.values()) == found.params
    assert sum(layer.weight_bytes for layer in found.layers.values()) == found.weight_bytes
    assert sum(layer.activation_bytes for layer in found.layers.values()) == found.activation_bytes
    for name, layer in found.layers.items():
        own = [o for o in found.operations if o.layer == name]
        assert sum(o.macs or 0 for o in own) == layer.macs
        assert sum(o.bytes_read for o in own) == layer.bytes_read
        assert sum(o.bytes_written for o in own) == layer.bytes_written


class ByData(nn.Module):
    """Looks at its input's values, so that shapes alone cannot run it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.model(*inputs) if inputs[0].isfinite().all() else inputs[0]


@both_trainings
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_values_and_shapes_cost_the_same(case: Case, training: bool) -> None:
    model, inputs = built(case)
    on_shapes = count(model.train(training), *inputs)
    on_values = count(ByData(model), *inputs)
    assert on_values.notes
    assert (on_values.macs, on_values.params) == (on_shapes.macs, on_shapes.params)


# --- whose each product is


def test_the_copy_does_not_outlive_the_count(monkeypatch: pytest.MonkeyPatch) -> None:
    copies: list[weakref.ref[nn.Module]] = []

    def noting(*given: Any) -> nn.Module:
        copies.append(weakref.ref(copy := on_meta(*given)))
        return copy

    monkeypatch.setattr(rehearsing, "on_meta", noting)
    with uncollected():
        count(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.ReLU())), torch.randn(1, 3, 8, 8))
        assert copies[0]() is None


class Borrower(nn.Module):
    """Reads the weight of another module's child, as it is and turned round."""

    def __init__(self, own: nn.Module) -> None:
        super().__init__()
        self.lender = [own]  # no child: a network may hold references that are not its tree

    def forward(self, x: Tensor) -> Tensor:
        return x.movedim(1, -1) @ self.lender[0].weight.flatten(1).t()


def _borrowed() -> nn.Module:
    inner = nn.Sequential(nn.Conv2d(6, 6, 1), nn.ReLU())
    return nn.Sequential(inner, Borrower(inner[0]))


def _tied() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 1), nn.ReLU())
    model[1].weight = model[0].weight
    return model


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def _parametrized(wrap: Callable[[nn.Module], object]) -> nn.Module:
    layer = nn.Conv2d(6, 6, 1)
    wrap(layer)
    return nn.Sequential(nn.ReLU(), layer)


ONE = 80 * 36  # a 1×1 convolution of 6 channels on 8×10 pixels
ATTENTION = 2 * 2 * 10 * 10 * 16

OWNED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], dict[str, int]]] = {
    "the root is the layer": (lambda: nn.Conv2d(6, 6, 1), (1, 6, 8, 10), {"": ONE}),
    "called as usual": (
        lambda: nn.Sequential(nn.ReLU(), nn.Conv2d(6, 6, 1)), (1, 6, 8, 10), {"1": ONE}
    ),
    "called through .forward": (
        lambda: ByHand(lambda m, x: m.conv.forward(x), conv=nn.Conv2d(6, 6, 1)),
        (1, 6, 8, 10), {"conv": ONE},
    ),
    "a function of its weight": (
        lambda: ByHand(lambda m, x: F.conv2d(x, m.conv.weight), conv=nn.Conv2d(6, 6, 1)),
        (1, 6, 8, 10), {"conv": ONE},
    ),
    "a function of its changed weight": (
        lambda: ByHand(
            lambda m, x: F.conv2d(x, 2 * m.conv.weight - m.conv.weight.mean()),
            conv=nn.Conv2d(6, 6, 1),
        ),
        (1, 6, 8, 10), {"conv": ONE},
    ),
    "a grandchild's weight": (
        lambda: ByHand(
            lambda m, x: F.conv2d(m.a(x), m.b[1].weight), a=nn.Conv2d(6, 6, 1),
            b=nn.Sequential(nn.ReLU(), nn.Conv2d(6, 6, 1)),
        ),
        (1, 6, 8, 10), {"a": ONE, "b.1": ONE},
    ),
    "run three times": (
        lambda: ByHand(lambda m, x: m.conv(m.conv(m.conv(x))), conv=nn.Conv2d(6, 6, 1)),
        (1, 6, 8, 10), {"conv": 3 * ONE},
    ),
    "borrowed by another module": (_borrowed, (1, 6, 8, 10), {"0.0": 2 * ONE}),
    "tied weights": (_tied, (1, 6, 8, 10), {"0": ONE, "1": ONE}),
    "a parametrized weight": (
        lambda: _parametrized(lambda m: parametrize.register_parametrization(m, "weight", Doubled())),
        (1, 6, 8, 10), {"1": ONE},
    ),
    "weight_norm": (lambda: _parametrized(parametrizations.weight_norm), (1, 6, 8, 10), {"1": ONE}),
    "spectral_norm": (
        lambda: _parametrized(parametrizations.spectral_norm), (1, 6, 8, 10), {"1": ONE + 3 * 36 + 6}
    ),
    "no weight at all": (
        lambda: nn.Sequential(nn.ReLU(), ByHand(lambda m, x: x @ x.transpose(2, 3))),
        (1, 6, 8, 10), {"1": 6 * 8 * 10 * 8},
    ),
    "a transformer's layer": (
        lambda: nn.Sequential(nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)), (2, 10, 16),
        {
            "0.self_attn": 20 * 3 * 16 * 16 + ATTENTION, "0.self_attn.out_proj": 20 * 16 * 16,
            "0.linear1": 20 * 16 * 32, "0.linear2": 20 * 32 * 16,
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OWNED)
def test_products_belong_to_their_layer(name: str) -> None:
    build, shape, expected = OWNED[name]
    found = count(build().train(), torch.randn(shape))
    assert {n: layer.macs for n, layer in found.layers.items() if layer.macs} == expected


def test_calls_and_shapes() -> None:
    model = ByHand(lambda m, x: m.b(m.a(m.a(x))), a=nn.Conv2d(6, 6, 3), b=nn.Conv2d(6, 4, 1))
    found = count(model, torch.randn(2, 6, 8, 10)).layers
    assert (found["a"].calls, found["b"].calls) == (2, 1)
    assert found["a"].input_shape == (2, 6, 8, 10)
    assert found["b"].output_shape == (2, 4, 4, 6)
    assert (found["a"].kind, found["a"].params) == ("Conv2d", 6 * 6 * 9 + 6)
