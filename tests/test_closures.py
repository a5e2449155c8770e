"""Functions that a network holds: a copy runs its own modules, however they are reached."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable

import pytest
import torch
from test_counting_laws import check_no_trace
from torch import Tensor, nn

from onebyone.measurement.counting import count
from onebyone.measurement.memory import measure_memory
from onebyone.tree import deep_copy


class Net(nn.Module):
    """Its forward calls what `run` holds."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
        self.run = self.both

    def both(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.run(x)


def _holding(run: Callable[[Net], object]) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        net = Net()
        net.run = run(net)  # type: ignore[assignment]
        return net

    return make


def _wrapped(net: Net) -> Callable[[Tensor], Tensor]:
    @functools.wraps(net.both)
    def run(x: Tensor) -> Tensor:
        return net.both(x)

    return run


def _nested(net: Net) -> Callable[[Tensor], Tensor]:
    parts = {"layers": [net.conv, net.norm]}

    def through(x: Tensor) -> Tensor:
        for layer in parts["layers"]:
            x = layer(x)
        return x

    return lambda x: through(x)


def _forward_replaced() -> nn.Module:
    net = Net()
    before = net.forward
    net.forward = types.MethodType(lambda self, x: before(x) * 1, net)  # type: ignore[method-assign]
    return net


def _compiled_in_place() -> nn.Module:
    net = Net()
    net.compile(backend="eager")
    return net


def _listed() -> nn.Module:
    class Listed(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.steps[0](x)

    net = Listed()
    net.steps = [lambda x: net.both(x)]  # type: ignore[assignment]
    return net


HOLDERS: dict[str, Callable[[], nn.Module]] = {
    "a method": Net,
    "a lambda": _holding(lambda net: lambda x: net.both(x)),
    "a default": _holding(lambda net: lambda x, *, own=net: own.both(x)),
    "a wrapped method": _holding(_wrapped),
    "a partial lambda": _holding(lambda net: functools.partial(lambda k, x: net.both(x) * k, 2)),
    "a function of a function of a dict": _holding(_nested),
    "a compiled method": _holding(lambda net: torch.compile(net.both, backend="eager")),
    "a list of lambdas": _listed,
    "a forward that calls the one before": _forward_replaced,
    "compiled in place": _compiled_in_place,
}


@pytest.mark.parametrize("name", HOLDERS)
def test_a_copy_runs_its_own_modules(name: str) -> None:
    model, x = HOLDERS[name]().eval(), torch.randn(2, 3, 4, 4)
    before = model(x)
    copy = deep_copy(model)
    torch.testing.assert_close(copy(x), before)
    with torch.no_grad():
        copy.get_parameter("norm.weight").zero_()
    assert copy(x).count_nonzero() == 0
    torch.testing.assert_close(model(x), before)


@pytest.mark.parametrize("name", HOLDERS)
def test_its_layers_are_counted_and_nothing_is_left_behind(name: str) -> None:
    model, x = HOLDERS[name]().train(), torch.randn(2, 3, 4, 4)
    check_no_trace(model, x)
    found = count(model, x)
    assert found.layers["conv"].macs == found.macs == 2 * 16 * 12
    assert found.unused == ()
    assert found.notes == ()


@pytest.mark.parametrize("name", HOLDERS)
def test_its_training_step_has_its_gradients(name: str) -> None:
    model, x = HOLDERS[name]().train(), torch.randn(2, 3, 4, 4)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    found, plain = measure_memory(model, x).training, measure_memory(Net(), x).training
    assert found is not None
    assert plain is not None
    assert found.bytes >= plain.bytes
    assert all(p.grad is None for p in model.parameters())
    torch.testing.assert_close(dict(model.state_dict()), before)


def test_hooks_that_hold_the_network_write_to_the_copy() -> None:
    net = Net()
    net.seen = []  # type: ignore[assignment]
    net.conv.register_forward_hook(lambda module, args, output: net.seen.append(output.shape))
    count(net, torch.randn(2, 3, 4, 4))
    assert net.seen == []
    copy = deep_copy(net)
    copy(torch.randn(2, 3, 4, 4))
    assert len(copy.seen) == 1
    assert net.seen == []


def test_functions_of_nothing_in_the_tree_stay_as_they_are() -> None:
    net, scale = Net(), torch.tensor(2.0)
    net.other = lambda x: x * scale  # type: ignore[assignment]
    assert deep_copy(net).other is net.other
