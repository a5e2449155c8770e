"""Module trees: replacing by identity, and giving back what was borrowed."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass

import pytest
import torch
from models import TRAPS, PartlyFrozen, Tied
from torch import Tensor, nn

from onebyone.tree import (
    evaluating,
    frozen,
    hooked,
    modules_by_name,
    random_numbers_kept,
    random_state,
    replace_modules,
    tensors_in,
    uncollected,
)


@dataclass
class Output:
    logits: Tensor
    name: str = "x"


class Fault(Exception):
    """What the tests raise inside a context."""


def check_replaced_everywhere(model: nn.Module, name: str) -> None:
    """Law: a module is replaced wherever it stands, and nothing else changes."""
    old = modules_by_name(model)[name]
    inside = {id(m) for m in old.modules()} - {id(old)}
    expected = _paths(model, inside)
    new = nn.Identity()
    expected = [(k, new if m is old else m) for k, m in expected]
    assert _paths(replace_modules(model, {name: new}), inside) == expected


def _paths(model: nn.Module, without: set[int]) -> list[tuple[str, nn.Module]]:
    """Every place in the tree and what stands there, but for the inside of the module in question."""
    found = model.named_modules(remove_duplicate=False)
    return [(k, m) for k, m in found if id(m) not in without]


@pytest.mark.parametrize("name", ["stem", "a", "fc", "inner.0"])
def test_replaced_wherever_it_stands(name: str) -> None:
    check_replaced_everywhere(Tied(), name)


def test_the_root_may_be_replaced() -> None:
    new = nn.Identity()
    assert replace_modules(nn.Conv2d(1, 1, 1), {"": new}) is new


def test_a_name_that_is_not_there_changes_nothing() -> None:
    model = nn.Sequential(nn.ReLU(), nn.ReLU())
    first = model[0]
    with pytest.raises(KeyError, match="'2'"):
        replace_modules(model, {"0": nn.Identity(), "2": nn.Identity()})
    assert model[0] is first


def test_names_of_tied_modules() -> None:
    model = Tied()
    assert modules_by_name(model)[""] is model
    assert "b" not in modules_by_name(model)
    assert "inner.1" not in modules_by_name(model)


def test_tensors_inside_outputs() -> None:
    a, b, c = (torch.tensor(float(i)) for i in range(3))
    assert list(tensors_in({"x": a, "y": [b, (c, None, 3)]})) == [a, b, c]
    assert list(tensors_in(Output(b))) == [b]
    assert list(tensors_in((nn.Linear(1, 1), "text"))) == []


def state_of(model: nn.Module) -> list[object]:
    """Everything of a model that a pass may borrow, for comparison."""
    return [
        [(n, m.training, len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks))
         for n, m in model.named_modules()],
        [(n, p.requires_grad, p.grad, id(p)) for n, p in model.named_parameters()],
        [(k, v.clone()) for k, v in model.state_dict().items()],
        torch.random.get_rng_state(), torch.is_grad_enabled(), torch.get_num_threads(),
    ]  # fmt: skip


def same(a: object, b: object) -> bool:
    """Equality that looks into lists and tuples and compares tensors bit for bit."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.dtype == b.dtype and torch.equal(a.nan_to_num(), b.nan_to_num())
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def check_untouched(model: nn.Module, act: Callable[[nn.Module], object]) -> None:
    """Law: whatever happens inside, also a failure, the model and the global state are as before."""
    before = state_of(model)
    try:
        act(model)
    finally:
        assert same(state_of(model), before)


BORROWED: dict[str, Callable[[nn.Module], AbstractContextManager[object]]] = {
    "evaluating": evaluating,
    "frozen": frozen,
    "random_state": lambda model: random_state(3),
    "hooked": lambda model: hooked(
        [m.register_forward_hook(lambda m, args, y: None) for m in model.modules()]
    ),
}


@pytest.mark.parametrize("name", BORROWED)
@pytest.mark.parametrize("fails", [False, True])
def test_what_is_borrowed_is_given_back(name: str, fails: bool) -> None:
    def act(model: nn.Module) -> None:
        with BORROWED[name](model):
            torch.rand(3) if name == "random_state" else None
            if fails:
                raise Fault

    model = TRAPS["partly frozen"].model().train()
    assert len({m.training for m in model.modules()}) == 2
    with pytest.raises(Fault) if fails else nullcontext():
        check_untouched(model, act)


def test_inside_the_contexts() -> None:
    model = PartlyFrozen().train()
    with evaluating(model), frozen(model):
        assert not any(m.training for m in model.modules())
        assert not any(p.requires_grad for p in model.parameters())


def test_random_state_is_that_of_the_seed() -> None:
    drawn = []
    for _ in range(2):
        with random_state(5) as generator:
            drawn.append((torch.rand(2), torch.rand(2, generator=generator)))
        torch.rand(7)
    assert same(drawn[0], drawn[1])


def test_random_numbers_of_every_device_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    @contextmanager
    def fork_rng(devices: object = None) -> Iterator[None]:
        asked.append(devices)
        yield

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.random, "fork_rng", fork_rng)
    with random_numbers_kept():
        pass
    assert asked == [[0, 1]]


@pytest.mark.parametrize("on", [True, False])
def test_garbage_is_collected_again_after_a_failure_if_it_was_before(on: bool) -> None:
    before = gc.isenabled()
    try:
        gc.enable() if on else gc.disable()
        with suppress(ValueError), uncollected():
            assert not gc.isenabled()
            raise ValueError("it was told to")
        assert gc.isenabled() == on
    finally:
        gc.enable() if before else gc.disable()


def test_the_check_sees_every_kind_of_change() -> None:
    changes: list[Callable[[nn.Module], object]] = [
        lambda m: m.train(),
        lambda m: m.requires_grad_(False),
        lambda m: m.register_forward_hook(lambda m, args, y: None),
        lambda m: next(m.parameters()).data.mul_(2),
        lambda m: next(m.buffers()).add_(1),
        lambda m: torch.rand(1),
        lambda m: setattr(next(m.parameters()), "grad", torch.zeros(())),
    ]
    for change in changes:
        model = nn.Sequential(nn.BatchNorm1d(2), nn.Flatten()).eval()
        model[0].weight = nn.Parameter(torch.tensor(1.0))
        with torch.random.fork_rng(devices=[]), pytest.raises(AssertionError):
            check_untouched(copy.deepcopy(model), change)
