"""Latency of whole networks: inference or a training step, timed in turn."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from onebyone.measurement.preparing import Ready, Setting, batch_of, is_channels_last, prepared
from onebyone.measurement.timing import SECONDS, Clock, Samples, interleave

EAGER, COMPILED = "PyTorch eager", "torch.compile"
INFERENCE, TRAINING = "inference", "training step"


@dataclass(frozen=True)
class Latency:
    """Time of one forward pass or one training step, with the conditions it was measured under.

    `low_ms` and `high_ms` are the first and the third quartile; `runs` is how often it was timed
    after `warmup` runs that do not count. `runtime` is "PyTorch eager" or "torch.compile", `mode`
    "inference" or "training step". `channels_last`: the weights lie in that layout.
    """

    batch: int
    median_ms: float
    low_ms: float
    high_ms: float
    runs: int
    warmup: int
    threads: int
    dtype: str
    device: str = "cpu"
    runtime: str = EAGER
    mode: str = INFERENCE
    channels_last: bool = False
    notes: tuple[str, ...] = ()


def time_models(
    models: Mapping[str, nn.Module],
    example: Tensor | tuple[Any, ...],
    *,
    training: bool = False,
    threads: int = 1,
    batch: int | None = None,
    dtype: torch.dtype | None = None,
    channels_last: bool = False,
    compiled: bool = False,
    device: torch.device | str | None = None,
    seconds: float = SECONDS,
    clock: Clock = time.perf_counter,
) -> dict[str, Latency]:
    """The latency of each network, all timed in turn on the same inputs.

    Inference is a forward pass in eval and inference mode. A training step is, in training mode, a
    forward pass, the sum of all floating-point outputs, and the backward pass, without an optimizer;
    gradients are dropped between the steps, outside the clock. `batch` repeats the example to so
    many (all its tensors that share the first axis); `dtype`, `channels_last` and `device` apply to
    the network and the inputs; `compiled` times what torch.compile makes of the network, compiled
    before the clock starts. The networks come back as they were: what would change them is done to a
    copy. `seconds` are for all networks together, read from `clock`.

    Raises ModelError where a network fails, cannot be copied, compiled or trained, and DataError for
    a batch below 1.
    """
    setting = Setting(training, threads, batch, dtype, channels_last, compiled, device)
    return time_settings({n: (m, setting) for n, m in models.items()}, example, seconds, clock)


def time_settings(
    networks: Mapping[str, tuple[nn.Module, Setting]],
    example: Tensor | tuple[Any, ...],
    seconds: float = SECONDS,
    clock: Clock = time.perf_counter,
) -> dict[str, Latency]:
    """As `time_models`, each network in a setting of its own; mode and threads must be the same."""
    first = next((setting for _, setting in networks.values()), Setting())
    with ExitStack() as stack:
        ready = {
            n: stack.enter_context(prepared(m, example, setting))
            for n, (m, setting) in networks.items()
        }
        steps = {n: r.train if first.training else r.infer for n, r in ready.items()}
        place = next(iter(ready.values())).weight.device if ready else None
        samples = interleave(
            steps, threads=first.threads, device=place, seconds=seconds, clock=clock,
            before=lambda name: ready[name].renew(),
        )  # fmt: skip
        return {n: latency_of(n, samples, r, networks[n][1]) for n, r in ready.items()}


def latency_of(name: str, samples: Samples, ready: Ready, setting: Setting) -> Latency:
    """What the samples say about one of the candidates, with the conditions."""
    spread = samples.quartiles(name)
    notes = (*samples.notes, *ready.notes)
    if setting.compiled and not setting.training:
        notes += ("compiled with its weights as constants (the option freezing)",)
    return Latency(
        batch_of(ready.inputs), spread.median, spread.low, spread.high, samples.rounds,
        samples.warmup, samples.threads, str(ready.weight.dtype).removeprefix("torch."),
        str(ready.weight.device), COMPILED if setting.compiled else EAGER,
        TRAINING if setting.training else INFERENCE,
        setting.channels_last or is_channels_last(ready.plain), notes,
    )  # fmt: skip
