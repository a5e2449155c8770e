"""Latency of each layer: inside the network as it runs, and alone on the same inputs."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from onebyone.measurement.latency import Latency, latency_of
from onebyone.measurement.layers_alone import time_alone
from onebyone.measurement.preparing import Ready, Setting, backward, prepared, total
from onebyone.measurement.spans import BACKWARD, ENGINE, FORWARD, Key, Spans
from onebyone.measurement.timing import SECONDS, Clock, Quartiles, Samples, interleave, quartiles

NOTABLE = 0.1  # of the whole
PLAIN, HOOKED = "plain", "hooked"


@dataclass(frozen=True)
class LayerLatency:
    """Time of one layer, all its calls in a pass summed; medians, and quartiles of the totals.

    `network_ms` is its time inside the network; for a training step the sum of `forward_ms` and
    `backward_ms` round by round, else `backward_ms` is None. `alone_ms` is its time on the same
    inputs out of the network, timed in turn with the other layers; None where it fails there.
    """

    name: str
    kind: str
    calls: int
    network_ms: float
    network_low_ms: float
    network_high_ms: float
    forward_ms: float
    backward_ms: float | None
    alone_ms: float | None
    alone_low_ms: float | None
    alone_high_ms: float | None


@dataclass(frozen=True)
class LayerLatencies:
    """Where the time of a network goes.

    `layers` are the modules that call no other module, in the order of their first call. `whole` is
    the network without hooks; `layers_ms` the sum of the layers' medians inside it; `rest_ms` =
    whole − layers: what other modules do between their layers, Python, and autograd. It is negative
    where a pass with hooks is so slow that the layers seem to take more than the whole.
    `elsewhere_ms` says in which modules the rest is spent, hooks included, and for training how much
    of the backward pass is in no layer. `hooks_ms` is what the hooks add to the whole (median of the
    differences round by round); it is subtracted from nothing. `interrupted_ms` is what a pass with
    hooks takes beyond all these medians: other work that comes in between meets other layers each time.
    """

    whole: Latency
    layers: dict[str, LayerLatency]
    layers_ms: float
    rest_ms: float
    elsewhere_ms: dict[str, float]
    hooks_ms: float
    interrupted_ms: float
    notes: tuple[str, ...]


def time_layers(
    model: nn.Module,
    example: Tensor | tuple[Any, ...],
    *,
    training: bool = False,
    threads: int = 1,
    batch: int | None = None,
    dtype: torch.dtype | None = None,
    channels_last: bool = False,
    device: torch.device | str | None = None,
    seconds: float = 2 * SECONDS,
    clock: Clock = time.perf_counter,
) -> LayerLatencies:
    """The latency of every layer that runs, in the network and alone, and what is in no layer.

    Half of the `seconds` goes to the network, passes with and without hooks in turn, half to the
    layers alone. The other options are those of `time_models`; what torch.compile makes of a network
    has no layers. The network comes back as it was. Raises ModelError where it fails, cannot be
    copied or trained, and DataError for a batch below 1.
    """
    setting = Setting(training, threads, batch, dtype, channels_last, device=device)
    with prepared(model, example, setting) as ready:
        layers, calls = _layers(ready)
        inside = _Inside(
            ready, Spans(ready.plain, ready.weight.device, layers if training else (), clock)
        )
        samples = inside.time(setting, seconds / 2, clock)
        alone = time_alone(layers, ready, setting, seconds / 2, clock)
        whole = latency_of(PLAIN, samples, ready, setting)
    found = {
        name: _layer(name, layer, calls[name], inside.passes, alone[name], training)
        for name, layer in layers.items()
    }
    return _summed(whole, found, inside.passes, samples)


def _layers(ready: Ready) -> tuple[dict[str, nn.Module], Counter[str]]:
    """The modules during which no other one runs, in the order of the calls, and how often each."""
    spans = Spans(ready.plain, torch.device("cpu"))
    try:
        spans.attach()
        with torch.no_grad():
            ready.infer()
            ready.renew()
    finally:
        spans.detach()
    calls: Counter[str] = Counter()
    around: list[str] = []
    holders: set[str] = set()
    for (name, _), begins, _ in spans.events:
        if begins:
            holders.update(around[-1:])
            around.append(name)
            calls[name] += 1
        else:
            while around.pop() != name:
                pass
    return {n: spans.modules[n] for n in calls if n not in holders}, calls


@dataclass
class _Inside:
    """Passes with and without hooks; `passes` keeps each hooked one's times."""

    ready: Ready
    spans: Spans
    passes: list[dict[Key, float]] = field(default_factory=list)

    def time(self, setting: Setting, seconds: float, clock: Clock) -> Samples:
        """Both in turn."""
        plain = self.ready.train if setting.training else self.ready.infer
        try:
            samples = interleave(
                {PLAIN: plain, HOOKED: self._train if setting.training else plain},
                threads=setting.threads, device=self.ready.weight.device, seconds=seconds,
                before=self._before, after=self._after, clock=clock,
            )  # fmt: skip
        finally:
            self.spans.detach()
            self.ready.forget_gradients() if setting.training else None
        del self.passes[: samples.warmup]
        return samples

    def _train(self) -> None:
        loss = total(self.ready.infer())
        with self.spans.span(ENGINE):
            backward(loss)

    def _before(self, name: str) -> None:
        self.ready.renew()
        if name == HOOKED:
            self.spans.attach()

    def _after(self, name: str) -> None:
        if name == HOOKED:
            self.spans.detach()
            self.passes.append(self.spans.times())


def _layer(
    name: str, module: nn.Module, calls: int, passes: list[dict[Key, float]],
    alone: Quartiles | None, training: bool,
) -> LayerLatency:  # fmt: skip
    forward = [times.get((name, FORWARD), 0.0) for times in passes]
    back = [times.get((name, BACKWARD), 0.0) for times in passes]
    inside = quartiles([a + b for a, b in zip(forward, back, strict=True)])
    return LayerLatency(
        name, type(module).__name__, calls, inside.median, inside.low, inside.high,
        median(forward), median(back) if training else None,
        alone and alone.median, alone and alone.low, alone and alone.high,
    )  # fmt: skip


def _summed(
    whole: Latency, layers: dict[str, LayerLatency], passes: list[dict[Key, float]],
    samples: Samples,
) -> LayerLatencies:  # fmt: skip
    inside = sum(layer.network_ms for layer in layers.values())
    pairs = zip(samples.milliseconds[HOOKED], samples.milliseconds[PLAIN], strict=True)
    hooks = median(hooked - plain for hooked, plain in pairs)
    keys = dict.fromkeys(key for times in passes for key in times)
    elsewhere = {
        (key[1] if key == ENGINE else key[0]): median(times.get(key, 0.0) for times in passes)
        for key in keys
        if key == ENGINE or key[0] not in layers
    }
    beyond = median(samples.milliseconds[HOOKED]) - inside - sum(elsewhere.values())
    found = LayerLatencies(whole, layers, inside, 0.0, elsewhere, hooks, beyond, ())
    return beside(whole, found)


def beside(whole: Latency, found: LayerLatencies) -> LayerLatencies:
    """The same layers beside this timing of the whole, with the rest and the notes that follow."""
    said = (*found.whole.notes, *whole.notes)
    found = replace(found, whole=whole, rest_ms=whole.median_ms - found.layers_ms)
    return replace(found, notes=tuple(dict.fromkeys((*said, *_notes(found)))))


def _notes(found: LayerLatencies) -> list[str]:
    """What a reader of the sums must know."""
    whole, notes = found.whole.median_ms, []
    if abs(found.rest_ms) > NOTABLE * whole:
        notes.append(_rest_words(found))
    if found.hooks_ms > NOTABLE * whole:
        notes.append(
            f"the hooks that time the layers add {found.hooks_ms:.3g} ms to the {whole:.3g} ms of the "
            "whole, some of it inside the layers: small layers seem slower than they are"
        )
    failed = [name for name, layer in found.layers.items() if layer.alone_ms is None]
    if failed:
        notes.append(f"not timed alone, where they fail: {', '.join(failed)}")
    return notes


def _rest_words(found: LayerLatencies) -> str:
    """Where the rest goes, or why it cannot be said."""
    whole, seen = found.whole.median_ms, sum(found.elsewhere_ms.values())
    most = sorted(found.elsewhere_ms.items(), key=lambda item: -item[1])[:3]
    places = ", ".join(f"{name or 'the root'} {ms:.3g} ms" for name, ms in most)
    said = f"the layers take {found.layers_ms:.3g} ms of {whole:.3g} ms"
    # What was seen holds the rest and what the hooks cost outside the layers, if not all they cost.
    more, least = seen + found.interrupted_ms - found.rest_ms, NOTABLE * whole
    if not -least < more < least + max(found.hooks_ms, 0.0):
        return (
            f"{said}, but with hooks {seen:.3g} ms were seen outside them: the machine was uneven "
            "between the passes; measure again, for longer"
        )
    rest = f"{said}; the rest, {found.rest_ms:.3g} ms, is in no layer"
    outside = f"with hooks {seen:.3g} ms were seen there, most in {places}"
    if found.interrupted_ms > least:
        return (
            f"{rest}: {found.interrupted_ms:.3g} ms of a pass are interruptions by other work, which meet "
            f"other layers each time, so that no layer's median has them ({outside})"
        )
    return f"{rest} ({outside})"
