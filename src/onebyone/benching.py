"""bench: one network in every runtime that is installed, timed in turn."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from onebyone.errors import ModelError, OneByOneError, names_in, whole
from onebyone.exporting.checking import Check
from onebyone.exporting.clocking import latency_in
from onebyone.exporting.export import size_of
from onebyone.exporting.network import FLOAT32, exported, network_of, on_cpu_in_float32
from onebyone.exporting.rechecking import compared, drawn_images, ready_inputs
from onebyone.exporting.targets import TARGETS, Session, Target
from onebyone.measurement.latency import COMPILED, EAGER, Latency
from onebyone.measurement.preparing import Setting, prepared
from onebyone.measurement.timing import as_seconds, cpu_threads, interleave
from onebyone.several import flat
from onebyone.tree import check_weights

SECONDS = 4.0  # for all runtimes together
PYTORCH = {
    "eager": (EAGER, Setting()),
    "channels-last": (f"{EAGER}, channels last", Setting(channels_last=True)),
    "compile": (COMPILED, Setting(compiled=True)),
}
RUNTIMES = (*PYTORCH, *TARGETS)
SPELLINGS = {t.runtime: name for name, t in TARGETS.items()} | {
    "torch.compile": "compile", "pytorch": "eager", "litert": "litert",
}  # fmt: skip


@dataclass(frozen=True)
class Run:
    """A network in one runtime; size and check are None in PyTorch itself."""

    name: str
    latency: Latency
    size_bytes: int | None = None
    check: Check | None = None


@dataclass(frozen=True)
class Bench:
    """One network in several runtimes, the fastest first; `refused` says why others are not there."""

    runs: tuple[Run, ...]
    refused: dict[str, str] = field(default_factory=dict)


def bench(
    model: nn.Module | None,
    example: Tensor | tuple[Any, ...],
    *,
    runtimes: str | Sequence[str] = ("all",),
    threads: int = 1,
    batch: int = 1,
    file: Path | None = None,
    seconds: float = SECONDS,
    progress: Callable[[float], None] | None = None,
) -> Bench:
    """Time a network in several runtimes, in turn, each on so many threads.

    runtimes: one or more names of RUNTIMES or of the packages, or "all" for those that are installed.
    Each file is checked against PyTorch first, on drawn inputs. `file` is an ONNX file to be run as it
    is in onnxruntime and OpenVINO; without `model` those are the only runtimes. `seconds` are for all
    together. Raises ModelError for a name that is none, or where no runtime is left.
    """
    if model is not None:
        check_weights(model=model)
    batch, seconds = whole("batch", batch, 1, error=ModelError), as_seconds(seconds)
    names = chosen(runtimes)
    given = example if isinstance(example, tuple) else (example,)
    if model is not None:
        model, given = flat(model, given)
    inputs = tuple(
        x[:1].expand(batch, *x.shape[1:]).contiguous() if x.ndim else x for x in ready_inputs(given)
    )
    tell = progress or (lambda done: None)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
        entries: dict[str, _Entry] = {}
        refused: dict[str, str] = {}
        # PyTorch last: what it is made ready with (inference mode) is not for exporters.
        for index, name in enumerate(sorted(names, key=lambda n: n in PYTORCH)):
            tell(0.8 * index / len(names))
            try:
                entries[name] = _entry(name, model, inputs, threads, file, folder, stack)
            except OneByOneError as error:
                refused[name] = str(error)
        if not entries:
            raise ModelError(
                "no runtime can time the network: "
                + "; ".join(f"{n}: {why}" for n, why in refused.items())
            )
        calls: Mapping[str, Callable[[], object]] = {
            n: partial(e.session, inputs) for n, e in entries.items()
        }
        stack.enter_context(torch.inference_mode())
        samples = interleave(calls, threads=threads, seconds=seconds)
        tell(1.0)
    runs = [
        Run(n, latency_in(samples, n, batch, e.title, FLOAT32), e.size_bytes, e.check)
        for n, e in entries.items()
    ]
    return Bench(tuple(sorted(runs, key=lambda r: r.latency.median_ms)), refused)


def chosen(runtimes: str | Sequence[str]) -> list[str]:
    """The names of the runtimes; ModelError for one that is not known, or where there is none."""
    found: list[str] = []
    runtimes = names_in(runtimes) if isinstance(runtimes, str) else runtimes
    if not runtimes:
        raise ModelError(f"no runtime is given: give one or more of {', '.join(RUNTIMES)}, or all")
    for given in runtimes:
        name = SPELLINGS.get(str(given).lower(), str(given).lower())
        if name == "all":
            found += [n for n in RUNTIMES if n in PYTORCH or TARGETS[n].missing is None]
        elif name in RUNTIMES:
            found.append(name)
        else:
            raise ModelError(
                f"{given!r} is no runtime: give one or more of {', '.join(RUNTIMES)}, or all"
            )
    return list(dict.fromkeys(found))


@dataclass(frozen=True)
class _Entry:
    title: str
    session: Session
    size_bytes: int | None = None
    check: Check | None = None


def _entry(
    name: str, model: nn.Module | None, inputs: tuple[Tensor, ...], threads: int,
    file: Path | None, folder: Path, stack: ExitStack,
) -> _Entry:  # fmt: skip
    if name in PYTORCH:
        if model is None:
            raise ModelError("PyTorch cannot read the file")
        return _in_pytorch(name, model, inputs, stack)
    target = TARGETS[name]
    target.require()
    if file is not None and name in ("onnx", "openvino"):
        return _as_it_is(target, model, inputs, threads, file)
    if model is None:
        raise ModelError("PyTorch cannot read the file, so it is not converted")
    return _exported(target, model, inputs, threads, folder)


def _in_pytorch(
    name: str, model: nn.Module, inputs: tuple[Tensor, ...], stack: ExitStack
) -> _Entry:
    title, setting = PYTORCH[name]
    own = on_cpu_in_float32(model)
    ready = stack.enter_context(prepared(own, inputs, setting))

    def run(given: Sequence[Tensor]) -> list[Tensor]:
        ready.renew()
        return [ready.infer()]  # type: ignore[list-item]

    if setting.channels_last:  # not every network runs so: told before anything is timed
        run(inputs)
    return _Entry(f"{title} {version('torch')}", run)


def _as_it_is(
    target: Target, model: nn.Module | None, inputs: tuple[Tensor, ...], threads: int, file: Path
) -> _Entry:
    try:
        session = target.open(file, threads)
        session(inputs)
    except Exception as error:
        raise ModelError(
            f"{target.version} cannot run {file.name} ({type(error).__name__}: {error})"
        ) from error
    found = None
    if model is not None:
        found = compared(
            target, file, on_cpu_in_float32(model), inputs, FLOAT32, len(inputs[0]) > 1, True
        )
    return _Entry(target.version, session, file.stat().st_size, found)


def _exported(
    target: Target, model: nn.Module, inputs: tuple[Tensor, ...], threads: int, folder: Path
) -> _Entry:
    plain = on_cpu_in_float32(model)
    one = tuple(x[:1] if x.ndim else x for x in inputs)
    batch = len(inputs[0])
    network = network_of(exported(plain, one), one)
    free = network.any_batch and target.any_batch
    if batch > 1 and not free:
        why = (
            "torch.export finds the network to depend on how many there are"
            if target.any_batch
            else "they have a fixed batch size"
        )
        raise ModelError(
            f"{target.title} files of it take one image at a time, not {batch}: {why}; give --batch 1"
        )
    path = folder / target.name / target.file_name(FLOAT32)
    path.parent.mkdir()
    target.write(network, path)
    drawn = tuple(drawn_images(x) for x in one)
    found = compared(target, path, plain, drawn, FLOAT32, free, True)
    if found.failure is not None:
        raise ModelError(f"it does not compute the same: {found.failure}")
    with cpu_threads(threads):
        return _Entry(target.version, target.open(path, threads), size_of(target, path), found)
