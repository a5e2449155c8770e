"""One of several processes that torchrun started: its rank, its share, sums over all."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch import distributed as dist

from onebyone.errors import LostError, line_of

WAIT = timedelta(minutes=30)  # the slowest step that others may have to wait for
Item = TypeVar("Item")
LOST = "another process was lost ({said}), so all stop"


@dataclass(frozen=True)
class World:
    """The processes that work together, and which of them this is; (0, 1) is one alone."""

    rank: int = 0
    size: int = 1

    @staticmethod
    def current() -> World:
        """The process group that this process is in."""
        if dist.is_available() and dist.is_initialized():
            return World(dist.get_rank(), dist.get_world_size())
        return World()

    @property
    def leads(self) -> bool:
        """Whether this process is the one that writes and shows."""
        return self.rank == 0

    def share(self, items: Iterable[Item]) -> Iterator[tuple[int, Item]]:
        """Every size-th of the items, with its place among all."""
        for index, item in enumerate(items):
            if index % self.size == self.rank:
                yield index, item

    def add(self, *tensors: Tensor) -> None:
        """Each tensor becomes its sum over all processes, in place."""
        self._reduce(tensors, dist.ReduceOp.SUM)

    def least(self, *tensors: Tensor) -> None:
        """Each element becomes its least over all processes, in place."""
        self._reduce(tensors, dist.ReduceOp.MIN)

    def greatest(self, *tensors: Tensor) -> None:
        """Each element becomes its greatest over all processes, in place."""
        self._reduce(tensors, dist.ReduceOp.MAX)

    def _reduce(self, tensors: Iterable[Tensor], operation: Any) -> None:
        if self.size > 1:
            with losses_told():
                for tensor in tensors:
                    if tensor.numel():
                        dist.all_reduce(tensor, operation)

    def copy(self, *tensors: Tensor) -> None:
        """Each tensor becomes the leading process's, in place."""
        if self.size > 1:
            with losses_told():
                for tensor in tensors:
                    dist.broadcast(tensor, 0)

    def copy_model(self, model: nn.Module) -> None:
        """The weights and buffers of each process's model become the leading process's, in place."""
        self.copy(*(tensor.data for tensor in (*model.parameters(), *model.buffers())))

    def led(self, make: Callable[[], Item]) -> Item:
        """What the leading process makes, on every process; its failure is everyone's."""
        if self.size == 1:
            return make()
        box: list[Any] = [None, None]
        if self.leads:
            try:
                box[0] = make()
            except Exception as error:
                box[1] = error
        with losses_told():
            dist.broadcast_object_list(box, 0)
        if box[1] is not None:
            raise box[1]
        return box[0]


@contextmanager
def losses_told() -> Iterator[None]:
    """A lost process as one clear message; other failures as they are."""
    try:
        yield
    except RuntimeError as error:
        # gloo's own failures have no class of their own.
        if isinstance(error, dist.DistError) or any(w in str(error) for w in ("gloo", "NCCL")):
            raise LostError(LOST.format(said=line_of(error) or type(error).__name__)) from error
        raise


def started_by_torchrun() -> bool:
    """Whether torchrun started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


@contextmanager
def together() -> Iterator[World]:
    """Join the processes that torchrun started; one alone where it did not, or they are joined.

    NCCL where every process has a GPU of its own, else gloo.
    """
    if not started_by_torchrun() or World.current().size > 1:
        yield World.current()
        return
    local, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    backend = "gloo"
    if count >= int(os.environ.get("LOCAL_WORLD_SIZE", "1")):
        torch.cuda.set_device(local)
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, timeout=WAIT)
    try:
        yield World.current()
    finally:
        dist.destroy_process_group()
