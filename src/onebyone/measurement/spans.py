"""Where the time of one pass goes: the spans in which each module runs, forward and backward."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import Node
from torch.utils.hooks import RemovableHandle

from onebyone.tree import modules_by_name, tensors_in

FORWARD, BACKWARD = "forward", "backward"
ENGINE = ("", "backward outside the layers")
Key = tuple[str, str]  # the module's name, and which of its passes
Event = tuple[Key, bool, Any]  # whether the span begins here, and the mark


def own_times(events: Sequence[Event], elapsed_ms: Callable[[Any, Any], float]) -> dict[Key, float]:
    """Milliseconds of each key's spans without those of the spans inside them, summed over calls.

    The values add up to the time from the first mark to the last where one span holds all others.
    """
    found: dict[Key, float] = {}
    open_spans: list[list[Any]] = []
    for key, begins, mark in events:
        if begins:
            open_spans.append([key, mark, 0.0])
            continue
        if all(span[0] != key for span in open_spans):
            continue
        # A module that raised has no end of its own; its span ends with the one around it.
        ended = None
        while ended != key:
            ended, start, inside = open_spans.pop()
            took = elapsed_ms(start, mark)
            found[ended] = found.get(ended, 0.0) + took - inside
            if open_spans:
                open_spans[-1][2] += took
    return found


class Spans:
    """Hooks on every module that mark when it begins and ends; on `layers`, backward too.

    The backward pass of a layer is the nodes of the autograd graph between its outputs and its
    inputs, those that take up its parameters' gradients included: full backward hooks would put views
    between the layers, which layers that work in place refuse. On CUDA the marks are events in the
    stream, so that nothing waits. A parametrized layer's parts belong to the layer.
    """

    def __init__(
        self,
        model: nn.Module,
        device: torch.device,
        layers: Collection[str] = (),
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.modules = {n: m for n, m in modules_by_name(model).items() if not _is_part(n)}
        self.layers = frozenset(layers)
        self.events: list[Event] = []
        self._cuda = device.type == "cuda"
        self._device = device
        self._clock = clock
        self._handles: list[RemovableHandle] = []
        self._seen: set[Node] = set()
        self._before: list[set[Node]] = []  # what the inputs of the running layers came from

    def times(self) -> dict[Key, float]:
        """What `own_times` finds in the last pass."""
        return own_times(self.events, self._elapsed_ms)

    @contextmanager
    def span(self, key: Key) -> Iterator[None]:
        """What runs inside is a span of the key."""
        self.events.append((key, True, self._mark()))
        yield
        self.events.append((key, False, self._mark()))

    def attach(self) -> None:
        """Put the hooks on, for one pass."""
        self.events.clear()
        for name, module in self.modules.items():
            # First to begin and last to end: the hooks that the module has are its own time.
            self._handles += [
                module.register_forward_pre_hook(self._begin(name), prepend=True),
                module.register_forward_hook(self._end(name)),
            ]

    def detach(self) -> None:
        """Take off every hook."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._seen.clear()
        self._before.clear()

    def _begin(self, name: str) -> Callable[..., None]:
        key, follows = (name, FORWARD), name in self.layers

        def begin(module: nn.Module, args: Any) -> None:
            if follows:
                self._before.append({t.grad_fn for t in tensors_in(args) if t.grad_fn is not None})
            self.events.append((key, True, self._mark()))

        return begin

    def _end(self, name: str) -> Callable[..., None]:
        key, follows = (name, FORWARD), name in self.layers

        def end(module: nn.Module, args: Any, output: Any) -> None:
            self.events.append((key, False, self._mark()))
            if follows:
                self._follow((name, BACKWARD), output, self._before.pop())

        return end

    def _follow(self, key: Key, output: Any, before: set[Node]) -> None:
        """Hooks on the nodes that compute the output from what was there before."""
        ahead = [t.grad_fn for t in tensors_in(output)]
        while ahead:
            node = ahead.pop()
            if node is None or node in before or node in self._seen:
                continue
            self._seen.add(node)
            self._handles += [
                node.register_prehook(lambda *_: self.events.append((key, True, self._mark()))),
                node.register_hook(lambda *_: self.events.append((key, False, self._mark()))),
            ]
            ahead += [parent for parent, _ in node.next_functions]

    def _mark(self) -> Any:
        if not self._cuda:
            return self._clock()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))  # the current device may be another
        return event

    def _elapsed_ms(self, start: Any, end: Any) -> float:
        return start.elapsed_time(end) if self._cuda else 1000 * (end - start)


def _is_part(name: str) -> bool:
    """Whether a module is inside a parametrization."""
    return "parametrizations" in name.split(".")
