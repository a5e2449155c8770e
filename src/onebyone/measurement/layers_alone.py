"""Layers timed alone, each on the inputs that it has in the network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_iter, tree_map

from onebyone.measurement.preparing import Ready, Setting
from onebyone.measurement.timing import Clock, Quartiles, interleave
from onebyone.tree import hooked, tensors_in

CAPTURED_BYTES = 2**30  # inputs that are held at once; one layer's may be more


def time_alone(
    layers: Mapping[str, nn.Module],
    ready: Ready,
    setting: Setting,
    seconds: float,
    clock: Clock,
) -> dict[str, Quartiles | None]:
    """Milliseconds of all calls of each layer in one pass, the layers timed in turn.

    Each call gets the inputs that it has in the network; for training, ones as the gradient of its
    outputs. Inputs are copied before each run, outside the clock, since a layer may work in place.
    None for a layer that fails when it runs alone.
    """
    found: dict[str, Quartiles | None] = {}
    while len(found) < len(layers):
        left = {name: layer for name, layer in layers.items() if name not in found}
        calls = _captured(left, ready)
        if not calls:
            return found | dict.fromkeys(left)
        work = {name: _Alone(layers[name], calls[name], setting.training) for name in calls}
        sound = {name: alone for name, alone in work.items() if alone.works()}
        found |= dict.fromkeys(work)
        if sound:
            samples = interleave(
                {name: alone.run for name, alone in sound.items()}, threads=setting.threads,
                device=ready.weight.device, seconds=seconds * len(sound) / len(layers),
                before=lambda name, sound=sound: sound[name].prepare(),
                after=lambda name, sound=sound: sound[name].clear(),
                clock=clock,
            )  # fmt: skip
            found |= {name: samples.quartiles(name) for name in sound}
    return found


@dataclass(frozen=True)
class _Call:
    """Arguments of one call, and which of the tensors in them have gradients, in order."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    gradients: tuple[bool, ...]


def _captured(layers: Mapping[str, nn.Module], ready: Ready) -> dict[str, list[_Call]]:
    """The calls of as many layers as fit into memory, copied in one pass."""
    calls: dict[str, list[_Call]] = {}
    held = 0

    def capture(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            nonlocal held
            if name not in calls and held >= CAPTURED_BYTES:
                return
            tensors = [t for t in tree_iter((args, kwargs)) if isinstance(t, Tensor)]
            held += sum(t.numel() * t.element_size() for t in tensors)
            gradients = tuple(t.requires_grad for t in tensors)
            copied_args, copied_kwargs = _copied((args, kwargs))
            calls.setdefault(name, []).append(_Call(copied_args, copied_kwargs, gradients))

        return hook

    handles = [
        layer.register_forward_pre_hook(capture(name), with_kwargs=True)
        for name, layer in layers.items()
    ]
    with hooked(handles):
        ready.renew()
        ready.infer()
    return calls


def _copied(values: Any) -> Any:
    return tree_map(lambda v: v.detach().clone() if isinstance(v, Tensor) else v, values)


@dataclass
class _Alone:
    """One layer with its calls; `prepare` before each run, `clear` after it."""

    layer: nn.Module
    calls: list[_Call]
    training: bool
    given: list[tuple[Any, Any]] = field(default_factory=list)
    ones: list[list[Tensor]] = field(default_factory=list)

    def works(self) -> bool:
        """Run once; take down the gradients that the outputs need."""
        try:
            self.prepare()
            for args, kwargs in self.given:
                outputs = _differentiable(self.layer(*args, **kwargs))
                self.ones.append([torch.ones_like(t) for t in outputs])
            self.prepare()
            self.run()
        except Exception:
            return False
        finally:
            self.clear()
        return True

    def prepare(self) -> None:
        """Fresh inputs; those with gradients are copies of leaves, which may be changed in place."""
        self.given.clear()
        for call in self.calls:
            flags = iter(call.gradients)

            def fresh(value: Any, flags: Any = flags) -> Any:
                if not isinstance(value, Tensor):
                    return value
                value = value.clone()
                return value.requires_grad_().clone() if next(flags) else value

            self.given.append(tree_map(fresh, (call.args, call.kwargs)))

    def run(self) -> None:
        """All calls, each with its backward pass where one trains."""
        for index, (args, kwargs) in enumerate(self.given):
            output = self.layer(*args, **kwargs)
            if self.training and self.ones[index]:
                torch.autograd.backward(_differentiable(output), self.ones[index])

    def clear(self) -> None:
        """Free inputs and gradients."""
        self.given.clear()
        self.layer.zero_grad(set_to_none=True) if self.training else None


def _differentiable(output: Any) -> list[Tensor]:
    return [t for t in tensors_in(output) if t.requires_grad and t.is_floating_point()]
