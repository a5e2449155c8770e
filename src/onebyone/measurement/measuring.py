"""measure: counts, memory, the clock and the machine's limits, together for one network."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_iter

from onebyone.errors import ModelError
from onebyone.measurement.counting import Count, LayerCount, count
from onebyone.measurement.latency import Latency, time_models
from onebyone.measurement.layer_latency import LayerLatencies, LayerLatency, time_layers
from onebyone.measurement.memory import Memory, measure_memory
from onebyone.measurement.preparing import Setting, prepared
from onebyone.measurement.roofline import Machine, Placement, measure_machine, place
from onebyone.measurement.timing import SECONDS


@dataclass(frozen=True)
class LayerMeasurement(LayerCount):
    """A layer's counts for the inputs given, its time for the whole batch, and its place.

    `latency` (inference), `training` (a training step) and `placement` are None where they were not
    timed; a placement stands on the layer's MACs and bytes for the batch that was timed.
    """

    latency: LayerLatency | None = None
    training: LayerLatency | None = None
    placement: Placement | None = None


@dataclass(frozen=True)
class Measurement:
    """What a network costs. Counts are for the inputs given, `memory` and times for `batch` images.

    `uncounted` names the operators without products with the elements that they wrote, `unknown` those
    of them that are not PyTorch's own, `unused` the layers with parameters that did not run. `failure`
    says why the pass ended early; the counts are partial then and nothing else is measured.
    `latency` has what was asked for: inference, a training step, compiled. `layer_latency` says where
    the time of a pass goes, `training_latency` the same of a training step; `placement` stands for the
    whole network under `machine`'s limits.
    """

    input_shapes: tuple[tuple[int, ...], ...]
    macs: int
    params: int
    weight_bytes: int
    activation_bytes: int
    layers: dict[str, LayerMeasurement]
    count: Count
    batch: int
    memory: Memory | None = None
    latency: tuple[Latency, ...] = ()
    layer_latency: LayerLatencies | None = None
    training_latency: LayerLatencies | None = None
    machine: Machine | None = None
    placement: Placement | None = None
    notes: tuple[str, ...] = ()

    @property
    def uncounted(self) -> dict[str, int]:
        """Operators without products, with the elements that they wrote."""
        return self.count.uncounted

    @property
    def unknown(self) -> tuple[str, ...]:
        """Operators that are not PyTorch's own and have no formula: they may hide products."""
        return self.count.unknown

    @property
    def unused(self) -> tuple[str, ...]:
        """Layers with parameters that did not run."""
        return self.count.unused

    @property
    def failure(self) -> str | None:
        """Why the pass ended early, where it did."""
        return self.count.failure


def measure(
    model: nn.Module,
    example: Tensor | tuple[Any, ...],
    *,
    latency: bool = False,
    training: bool = False,
    compiled: bool = False,
    memory: bool = True,
    threads: int = 1,
    batch: int | None = None,
    dtype: torch.dtype | None = None,
    channels_last: bool = False,
    device: torch.device | str | None = None,
    seconds: float = SECONDS,
    partial: bool = False,
) -> Measurement:
    """What the network costs on an example input, or a tuple of inputs; it comes back as it was.

    Counting and memory need no arithmetic: the network runs on shapes alone where it can. latency:
    time inference, whole and layer by layer, and place both under the limits of this machine;
    training: time a training step as well, whole and layer by
    layer; compiled: what torch.compile makes of the network as well.
    batch repeats the example for memory and latency; dtype, channels_last and device apply to them
    too. seconds are for each of the timings. partial: what ran before a failure, with `failure` set.
    Raises ModelError where the network fails on the example.
    """
    inputs = example if isinstance(example, tuple) else (example,)
    counted = count(model, *inputs, partial=partial)
    layers = {name: LayerMeasurement(**_values(layer)) for name, layer in counted.layers.items()}
    shapes = tuple(tuple(t.shape) for t in tree_iter(inputs) if isinstance(t, Tensor))
    found = _Found(counted, layers, shapes)
    if counted.failure is not None:
        return found.whole()
    setting = Setting(training, threads, batch, dtype, channels_last, compiled, device)
    if memory or latency:
        with prepared(model, inputs, Setting(False, threads, batch, dtype, channels_last)) as ready:
            found.repeated = count(ready.plain, *ready.inputs)
            if memory:
                found.memory = _memory(ready.plain, ready.inputs, found)
    if latency:
        _time(model, inputs, setting, seconds, found)
    return found.whole()


@dataclass
class _Found:
    """What is known so far."""

    counted: Count
    layers: dict[str, LayerMeasurement]
    shapes: tuple[tuple[int, ...], ...]
    repeated: Count | None = None
    memory: Memory | None = None
    latency: tuple[Latency, ...] = ()
    inside: LayerLatencies | None = None
    training: LayerLatencies | None = None
    machine: Machine | None = None
    placement: Placement | None = None
    notes: tuple[str, ...] = ()

    def whole(self) -> Measurement:
        """All of it."""
        counted = self.counted
        shapes = self.shapes
        batch = (
            self.latency[0].batch if self.latency else shapes[0][0] if shapes and shapes[0] else 1
        )
        return Measurement(
            shapes, counted.macs, counted.params, counted.weight_bytes, counted.activation_bytes,
            self.layers, counted, batch, self.memory, self.latency, self.inside, self.training,
            self.machine, self.placement, (*counted.notes, *self.notes),
        )  # fmt: skip


def _values(layer: LayerCount) -> dict[str, Any]:
    return {f.name: getattr(layer, f.name) for f in fields(LayerCount)}


def _memory(model: nn.Module, inputs: tuple[Any, ...], found: _Found) -> Memory:
    """Both peaks; the one of inference alone where nothing can be trained."""
    try:
        return measure_memory(model, *inputs)
    except ModelError as error:
        found.notes += (f"no training step: {error}",)
        return measure_memory(model, *inputs, training=False)


def _time(
    model: nn.Module, inputs: tuple[Any, ...], setting: Setting, seconds: float, found: _Found
) -> None:
    """Whole networks, layers, and where both stand."""
    options: dict[str, Any] = {
        "threads": setting.threads, "batch": setting.batch, "dtype": setting.dtype,
        "channels_last": setting.channels_last, "device": setting.device,
    }  # fmt: skip
    found.inside = time_layers(model, inputs, seconds=2 * seconds, **options)
    whole = found.inside.whole
    times = [whole]
    if setting.training:
        found.training = time_layers(model, inputs, training=True, seconds=2 * seconds, **options)
        times.append(found.training.whole)
    if setting.compiled:
        times += time_models(
            {"": model}, inputs, compiled=True, seconds=seconds, **options
        ).values()
    found.latency = tuple(times)
    dtype = getattr(torch, whole.dtype)
    found.machine = measure_machine(threads=setting.threads, dtype=dtype, device=whole.device)
    assert found.repeated is not None
    moved = sum(o.bytes_read + o.bytes_written for o in found.repeated.operations)
    found.placement = place(found.repeated.macs, moved, whole.median_ms, found.machine)
    for name, layer in found.layers.items():
        timed = found.inside.layers.get(name)
        seen = found.repeated.layers.get(name)
        placed = None
        if timed is not None and seen is not None and timed.network_ms > 0:
            size = seen.bytes_read + seen.bytes_written
            placed = place(seen.macs, size, timed.network_ms, found.machine)
        trained = None if found.training is None else found.training.layers.get(name)
        found.layers[name] = LayerMeasurement(
            **_values(layer), latency=timed, training=trained, placement=placed
        )
