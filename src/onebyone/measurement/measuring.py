"""measure: counts, memory, the clock and the machine's limits, together for one network."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_iter

from onebyone.displaying import Displayed
from onebyone.errors import ModelError
from onebyone.measurement.counting import Count, LayerCount, count
from onebyone.measurement.latency import Latency, time_settings
from onebyone.measurement.layer_latency import LayerLatencies, LayerLatency, beside, time_layers
from onebyone.measurement.memory import Memory, measure_memory
from onebyone.measurement.preparing import Setting, batch_of, prepared
from onebyone.measurement.roofline import Machine, Placement, measure_machine, place
from onebyone.measurement.timing import SECONDS, as_seconds
from onebyone.running import ALONE
from onebyone.tree import check_networks


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
class Measurement(Displayed):
    """What a network costs. Counts are for the inputs given, `memory` and times for `batch` images.

    `images` is how many the counts are for, None where the first input is not a batch of any.
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
    images: int | None
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
    again: bool = False,
    partial: bool = False,
) -> Measurement:
    """What the network costs on an example input, or a tuple of inputs; it comes back as it was.

    Counting and memory need no arithmetic: the network runs on shapes alone where it can. latency:
    time inference, whole and layer by layer, and place both under the limits of this machine;
    training: time a training step as well, whole and layer by layer; compiled: what torch.compile
    makes of the network as well. batch repeats the example for memory and latency; dtype and
    channels_last apply to both too, device to latency. seconds are for each of the timings. again:
    measure the limits of the machine anew. partial: what ran before a failure, with `failure` set.
    Raises ModelError where the network fails on the example.
    """
    check_networks(model=model)
    seconds = as_seconds(seconds)
    inputs = example if isinstance(example, tuple) else (example,)
    counted = count(model, *inputs, partial=partial)
    layers = {name: LayerMeasurement(**vars(layer)) for name, layer in counted.layers.items()}
    shapes = tuple(tuple(t.shape) for t in tree_iter(inputs) if isinstance(t, Tensor))
    first = inputs[0] if inputs else None
    number = len(first) if isinstance(first, Tensor) and first.ndim > 2 else None
    found = _Found(counted, layers, shapes, number, batch_of(inputs))
    if counted.failure is not None:
        return found.whole()
    setting = Setting(training, threads, batch, dtype, channels_last, compiled, device)
    if memory or latency:
        still = replace(setting, training=False, compiled=False, device=None)
        with prepared(model, inputs, still, values=latency) as ready:
            found.batch = batch_of(ready.inputs)
            if latency:
                found.repeated = count(ready.plain, *ready.inputs)
            if memory:
                found.memory = _memory(ready.plain, ready.inputs, found)
                if found.memory.note is not None and not counted.notes:
                    found.notes += (found.memory.note,)
    if latency:
        _time(model, inputs, setting, seconds, found)
        _place(setting, found, again)
    return found.whole()


@dataclass
class _Found:
    """What is known so far."""

    counted: Count
    layers: dict[str, LayerMeasurement]
    shapes: tuple[tuple[int, ...], ...]
    images: int | None
    batch: int
    repeated: Count | None = None
    memory: Memory | None = None
    latency: tuple[Latency, ...] = ()
    inside: LayerLatencies | None = None
    training: LayerLatencies | None = None
    machine: Machine | None = None
    placement: Placement | None = None
    notes: tuple[str, ...] = ()

    def no_training(self, error: ModelError) -> None:
        """Say why no training step is measured, once."""
        said = f"no training step: {_why(error)}"
        self.notes += () if said in self.notes else (said,)

    def whole(self) -> Measurement:
        """All of it."""
        counted = self.counted
        return Measurement(
            self.shapes, counted.macs, counted.params, counted.weight_bytes, counted.activation_bytes,
            self.layers, counted, self.batch, self.images, self.memory, self.latency, self.inside,
            self.training, self.machine, self.placement, (*counted.notes, *self.notes),
        )  # fmt: skip


def _memory(model: nn.Module, inputs: tuple[Any, ...], found: _Found) -> Memory:
    """Both peaks; the one of inference alone where nothing can be trained."""
    try:
        return measure_memory(model, *inputs)
    except ModelError as error:
        found.no_training(error)
        return measure_memory(model, *inputs, training=False)


def _why(error: ModelError) -> str:
    if ALONE in f"{error} {error.__cause__}":
        return "a normalization needs more than one image in training; give a batch of 2 or more"
    return str(error)


def _time(
    model: nn.Module, inputs: tuple[Any, ...], setting: Setting, seconds: float, found: _Found
) -> None:
    """Whole networks, layers, and where both stand."""
    for training in (False, True) if setting.training else (False,):
        asked = replace(setting, training=training, compiled=False)
        try:
            inside, times = _clocked(model, inputs, asked, setting.compiled, seconds)
        except ModelError as error:
            if not training:
                raise
            found.no_training(error)
            continue
        found.latency += times
        if training:
            found.training = inside
        else:
            found.inside = inside
        said = (*(inside.notes if inside else ()), *(n for t in times for n in t.notes))
        found.notes += tuple(n for n in dict.fromkeys(said) if n not in found.notes)


def _clocked(
    model: nn.Module, inputs: tuple[Any, ...], setting: Setting, compiled: bool, seconds: float
) -> tuple[LayerLatencies | None, tuple[Latency, ...]]:
    """Layer by layer where hooks can see them, and the whole; compiled and not in turn."""
    inside = None
    options = {f.name: getattr(setting, f.name) for f in fields(setting) if f.name != "compiled"}
    if not any(isinstance(m, torch.jit.ScriptModule) for m in model.modules()):
        inside = time_layers(model, inputs, seconds=2 * seconds, **options)
    if inside is not None and not compiled:
        return inside, (inside.whole,)
    ways = {"eager": (model, setting)}
    if compiled:
        ways["compiled"] = (model, replace(setting, compiled=True))
    times = time_settings(ways, inputs, seconds)
    if inside is not None:  # one whole for all that is said
        inside = beside(times["eager"], inside)
    return inside, tuple(times.values())


def _place(setting: Setting, found: _Found, again: bool) -> None:
    """The whole and every timed layer under the limits of this machine."""
    whole, repeated = found.latency[0], found.repeated
    assert repeated is not None
    dtype = getattr(torch, whole.dtype)
    if dtype.is_floating_point:
        found.machine = measure_machine(
            threads=setting.threads, dtype=dtype, device=whole.device, again=again
        )
        moved = sum(o.bytes_read + o.bytes_written for o in repeated.operations)
        found.placement = place(repeated.macs, moved, whole.median_ms, found.machine)
    timed = found.inside.layers if found.inside else {}
    trained = found.training.layers if found.training else {}
    for name, latency in timed.items():
        # What a module does with the weights of modules inside it is in its time.
        parts = [c for n, c in repeated.layers.items() if n == name or n.startswith(f"{name}.")]
        placed = None
        if found.machine is not None and latency.network_ms > 0 and (parts or not name):
            macs = sum(c.macs for c in parts)
            size = sum(c.bytes_read + c.bytes_written for c in parts)
            placed = place(macs, size, latency.network_ms, found.machine)
        none = LayerMeasurement(name, latency.kind, None, None, latency.calls, 0, 0, 0, 0, 0, 0)
        layer = found.layers.get(name, none)
        found.layers[name] = replace(
            layer, latency=latency, training=trained.get(name), placement=placed
        )
