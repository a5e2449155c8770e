"""Several chunks of a batch through one network together: all stop where a layer must be solved."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from copy import copy
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn

from onebyone.tree import draw_from, random_numbers, random_numbers_kept

# What PyTorch itself holds in a module, but for its buffers.
TORCH = frozenset(vars(nn.Module())) - {"_buffers"}
Place = dict[Any, Any] | list[Any]


class _Stopped(BaseException):
    """Ends a chunk's thread when the whole pass is given up."""


class _State:
    """What a network keeps in its modules between two layers, for each chunk by itself.

    That is attributes, buffers, and what its lists and dicts hold: a feature map that one layer leaves
    there for another. Where such places are is seen as a chunk comes by.
    """

    def __init__(self, model: nn.Module) -> None:
        self.places: list[Place] = []
        for module in model.modules():
            own = vars(module)
            kept = [v for k, v in own.items() if isinstance(v, dict | list) and k not in TORCH]
            self.places += [own, *kept]
        self.base = [copy(place) for place in self.places]
        self.changing: set[int] = set()
        self.own: dict[int, dict[int, Place]] = {}

    def enter(self, chunk: int) -> None:
        """The chunk finds what it left, or at first what there was before any."""
        own = self.own.get(chunk, {})
        for index in self.changing:
            _fill(self.places[index], own.get(index, self.base[index]))

    def leave(self, chunk: int, look: bool) -> None:
        """Keep what the chunk leaves, in places that are known, or also (`look`) in new ones."""
        if look:
            pairs = enumerate(zip(self.places, self.base, strict=True))
            self.changing |= {index for index, (one, other) in pairs if not _same(one, other)}
        self.own[chunk] = {index: copy(self.places[index]) for index in self.changing}

    def end(self) -> None:
        """What there was before any."""
        for index in self.changing:
            _fill(self.places[index], self.base[index])


def _fill(place: Place, values: Place) -> None:
    place.clear()
    if isinstance(place, dict):
        place.update(values)
    else:
        place.extend(values)


def _same(one: Place, other: Place) -> bool:
    """Whether they hold the same objects."""
    if len(one) != len(other):
        return False
    if isinstance(one, dict) and isinstance(other, dict):
        return all(key in other and value is other[key] for key, value in one.items())
    return all(map(is_, one, other))


class Lockstep:
    """Runs chunks one at a time, each until it waits at a stop or ends.

    A chunk calls `wait(stop)` from inside the network; when every chunk that is still under way
    waits, `solve(stop)` runs for the lowest waiting stop and the chunks that wait there go on. So a
    layer is solved when all the chunks have reached it, also where control flow depends on data.
    Each chunk draws its own random numbers, from `starts` on where they are given (`random_numbers`),
    and finds what it left in the network's modules, whatever the others do in between.

    `room` says for each stop how many chunks may be held there or further on, at least one and never
    fewer than at an earlier stop. The others begin when the stops before are solved, and pass those
    without waiting: every chunk passes once, and layers late in the network are solved on more of them.
    """

    def __init__(
        self,
        model: nn.Module,
        chunks: Sequence[Tensor],
        solve: Callable[[int], None],
        starts: Sequence[tuple[Any, ...]] = (),
        room: Sequence[int] = (),
    ) -> None:
        self.model, self.chunks, self.solve = model, chunks, solve
        self.room, self.unsolved = room, set(range(len(room)))
        self.threads: list[threading.Thread] = []  # of the chunks that have begun
        self.drawn = dict(enumerate(starts))
        self.turn = [threading.Semaphore(0) for _ in chunks]
        self.yielded = threading.Semaphore(0)
        self.waiting: dict[int, int] = {}
        self.failure: BaseException | None = None
        self.stopped = False
        self.local = threading.local()

    @property
    def chunk(self) -> int:
        """The index of the chunk whose thread this is."""
        return self.local.chunk

    def wait(self, stop: int) -> None:
        """From inside the network: go on when the stop has been solved."""
        chunk = self.chunk
        self.waiting[chunk] = stop
        self.yielded.release()
        self.turn[chunk].acquire()
        if self.stopped:
            raise _Stopped

    def run(self) -> None:
        """All chunks to their end; the first failure of any is raised."""
        self.state = _State(self.model)  # as the modules are when the first chunk begins
        try:
            ready = self._begin(self.room[0] if self.room else len(self.chunks))
            while ready and self.failure is None:
                for chunk in ready:
                    self._go_on(chunk)
                ready = self._next() if self.failure is None else []
        finally:
            self.stopped = True
            for chunk in range(len(self.threads)):
                self.turn[chunk].release()
            for thread in self.threads:
                thread.join()
            self.state.end()
        if self.failure is not None:
            raise self.failure

    def _go_on(self, chunk: int) -> None:
        """One chunk to its next stop or its end, with random numbers and a state of its own."""
        self.state.enter(chunk)
        with random_numbers_kept():
            if chunk in self.drawn:
                draw_from(self.drawn[chunk])
            self.turn[chunk].release()
            self.yielded.acquire()
            self.drawn[chunk] = random_numbers()
        self.state.leave(chunk, look=chunk == 0 and len(self.chunks) > 1)
        if chunk not in self.waiting:  # it has ended: what it left is of no use to any
            self.state.own.pop(chunk)

    def _begin(self, number: int) -> list[int]:
        """The chunks that begin now, so that so many have in all."""
        begun = range(len(self.threads), max(len(self.threads), min(number, len(self.chunks))))
        for chunk in begun:
            thread = threading.Thread(target=self._chunk, args=(chunk,), daemon=True)
            thread.start()
            self.threads.append(thread)
        return list(begun)

    def _next(self) -> list[int]:
        """The chunks that go on once the lowest stop at which any waits is solved."""
        if not self.waiting:
            # What only chunks that have not begun may reach.
            return self._begin(len(self.threads) + 1) if self.unsolved else []
        stop = min(self.waiting.values())
        self.solve(stop)
        self.unsolved.discard(stop)
        ready = [chunk for chunk, at in self.waiting.items() if at == stop]
        for chunk in ready:
            del self.waiting[chunk]
        return ready + self._begin(self.room[stop + 1] if stop + 1 < len(self.room) else 0)

    def _chunk(self, index: int) -> None:
        self.local.chunk = index
        self.turn[index].acquire()
        try:
            if not self.stopped:
                with torch.no_grad():
                    self.model(self.chunks[index].clone())
        except _Stopped:
            pass
        except BaseException as error:  # handed to the thread that called run
            self.failure = error
        finally:
            self.yielded.release()
