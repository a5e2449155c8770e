"""The limits of this machine, and how near to them a layer comes (Williams et al., CACM 52(4), 2009)."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import date
from math import isfinite
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import nn

from onebyone.errors import OneByOneError, OutputError
from onebyone.files import json_text, write_text
from onebyone.measurement.timing import cpu_threads, interleave, synchronizer

SCHEMA = "onebyone.machine/1"
MEMORY, ARITHMETIC = "memory", "arithmetic"
SECONDS = 2.0  # for each of the two measurements
PRODUCTS = {"cpu": (1024, 2048), "cuda": (4096, 8192)}  # sides of square matrices
CONVOLUTIONS = ((64, 56), (128, 28), (256, 14))  # channels and pixels a side, 3×3, 8 images
LEAST_COPY_BYTES, MOST_COPY_BYTES = 2**27, 2**29  # of one array


@dataclass(frozen=True)
class Machine:
    """What a machine reached at best: multiply–accumulates and bytes in a second, and how it was seen.

    `how` has the sentences for people: what ran, with what, when, and whether the machine was busy.
    `busy`: it was, so that its limits may be higher; they are measured anew the next time.
    """

    macs_per_second: float
    bytes_per_second: float
    threads: int
    dtype: str
    device: str
    how: str
    busy: bool = False

    @property
    def ridge(self) -> float:
        """The arithmetic intensity, MACs a byte, at which both limits meet."""
        return self.macs_per_second / self.bytes_per_second


@dataclass(frozen=True)
class Placement:
    """Work under the roofline.

    `intensity` is MACs a byte, None where no byte moves; `limit_ms` the least time that the limits
    allow, max(macs / peak, bytes / bandwidth); `bound` the limit that sets it, "memory" or
    "arithmetic"; `fraction` = limit_ms / milliseconds. It exceeds 1 where the data stay in a cache,
    which is faster than memory, or an algorithm needs fewer MACs than are counted.
    """

    intensity: float | None
    ridge: float
    limit_ms: float
    milliseconds: float
    bound: str
    fraction: float


def place(macs: int, bytes: int, milliseconds: float, machine: Machine) -> Placement:
    """Where work of so many MACs and bytes, done in so many milliseconds, stands on the machine.

    >>> machine = Machine(50e9, 10e9, 1, "float32", "cpu", "made up")
    >>> place(40_000_000, 1_000_000, 1.6, machine)
    Placement(intensity=40.0, ridge=5.0, limit_ms=0.8, milliseconds=1.6, bound='arithmetic', fraction=0.5)

    Raises OneByOneError for a time that is not positive.
    """
    if not (milliseconds > 0 and isfinite(milliseconds)):
        raise OneByOneError(
            f"work cannot be placed by a time of {milliseconds} ms: a measured time above 0 is needed"
        )
    arithmetic = 1000 * macs / machine.macs_per_second
    memory = 1000 * bytes / machine.bytes_per_second
    limit = max(arithmetic, memory)
    return Placement(
        macs / bytes if bytes else None, machine.ridge, limit, milliseconds,
        ARITHMETIC if arithmetic > memory else MEMORY, limit / milliseconds,
    )  # fmt: skip


def placement_words(placement: Placement) -> str:
    """The sentence for people.

    >>> machine = Machine(50e9, 10e9, 1, "float32", "cpu", "made up")
    >>> placement_words(place(1_000_000, 6_100_000, 1.0, machine))
    'bound by memory: reaches 61 % of the measured bandwidth'
    """
    limit = "the measured bandwidth" if placement.bound == MEMORY else "the measured peak"
    said = f"bound by {placement.bound}: reaches {100 * placement.fraction:.0f} % of {limit}"
    if placement.fraction <= 1:
        return said
    if placement.bound == MEMORY:
        return f"{said}, more than memory gives: its data stay in the cache"
    return f"{said}: the kernel may need fewer MACs than are counted, or the peak was seen too low"


def measure_machine(
    *,
    threads: int = 1,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    again: bool = False,
    seconds: float = SECONDS,
) -> Machine:
    """The limits of this machine with so many threads and numbers of this type.

    They are measured once and kept in the cache folder for each processor, number of threads, type
    and version of PyTorch; `again` measures anew. Where nothing can be kept there, each call
    measures, and so it does while other work keeps the machine busy. Raises OneByOneError for a
    type that has no floating-point arithmetic here.
    """
    device = _usable(dtype, device)
    key = _key(threads, dtype, device)
    path = cache_folder() / f"machine-{_digest(key)}.json"
    machine = None if again else _read(path, key)
    if machine is None:
        machine = _measured(threads, dtype, device, seconds)
        if machine.busy:
            return machine
        with suppress(OutputError, OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, json_text({"schema": SCHEMA, "key": key, "machine": asdict(machine)}))
    return machine


def _usable(dtype: torch.dtype, device: torch.device | str) -> torch.device:
    """The device; OneByOneError where nothing can be computed on it, or not with the type."""
    if not dtype.is_floating_point:
        raise OneByOneError(
            f"{dtype} has no floating-point arithmetic to be measured: give float32, bfloat16 or float16"
        )
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise OneByOneError(f"{device} cannot be used here ({error}): give cpu") from error


def cache_folder() -> Path:
    """$ONEBYONE_CACHE, else onebyone in $XDG_CACHE_HOME or ~/.cache."""
    own = os.environ.get("ONEBYONE_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "onebyone"


def _key(threads: int, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    return {
        "processor": processor_name(device),
        "threads": threads,
        "dtype": str(dtype).removeprefix("torch."),
        "torch": str(torch.__version__),
    }


def _digest(key: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]


def _read(path: Path, key: dict[str, Any]) -> Machine | None:
    """The machine in the file; None where there is none, or not one of ours for this key."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values["schema"] != SCHEMA or values["key"] != key:
            return None
        machine = Machine(**values["machine"])
        rates = machine.macs_per_second, machine.bytes_per_second
        sound = all(isinstance(r, int | float) and isfinite(r) and r > 0 for r in rates)
        return machine if sound else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def processor_name(device: torch.device) -> str:
    """The accelerator's name, or the processor's with its number of cores."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    return f"{name}, {os.cpu_count()} cores"


def _measured(threads: int, dtype: torch.dtype, device: torch.device, seconds: float) -> Machine:
    """Both limits, each the best of several runs of the best of several candidates."""
    best: list[dict[str, float]] = []
    notes: set[str] = set()
    for build in (_arithmetic, _copies):
        try:
            with cpu_threads(threads):
                candidates = _affordable(build(dtype, device), device, seconds)
            samples = interleave(
                {name: run for name, (run, _) in candidates.items()}, threads=threads,
                device=device, seconds=seconds, least=3, warmup=1,
            )  # fmt: skip
        except RuntimeError as error:
            raise OneByOneError(
                f"{dtype} cannot be measured on {device} ({error}): choose a floating-point type that "
                "it computes with"
            ) from error
        notes.update(samples.notes)
        best.append(
            {
                name: work / (min(samples.milliseconds[name]) / 1000)
                for name, (_, work) in candidates.items()
            }
        )
    (peak, macs), (copy, moved) = (max(b.items(), key=lambda item: item[1]) for b in best)
    how = (
        f"arithmetic: best of {', '.join(best[0])}, reached by the {peak}; memory: best {copy}, "
        f"bytes read and written; {processor_name(device)}, {_threads(threads)}, "
        f"PyTorch {torch.__version__}, {date.today().isoformat()}"
    )
    return Machine(
        macs, moved, threads, str(dtype).removeprefix("torch."), str(device),
        "; ".join([how, *sorted(notes)]), bool(notes),
    )  # fmt: skip


def _threads(number: int) -> str:
    return f"{number} thread" + "s" * (number != 1)


Work = dict[str, tuple[Callable[[], object], int]]


def _affordable(candidates: Work, device: torch.device, seconds: float) -> Work:
    """Those that take no longer than all the time there is, by the rate of the least of them.

    Processors that emulate a type, such as bfloat16, would take minutes for the largest.
    """
    if len(candidates) == 1:
        return candidates
    name = min(candidates, key=lambda n: candidates[n][1])
    run, least = candidates[name]
    finish = synchronizer(device)
    run()  # the first call prepares
    finish()
    began = perf_counter()
    run()
    finish()
    rate = least / (perf_counter() - began)
    return {n: (r, w) for n, (r, w) in candidates.items() if n == name or w / rate <= seconds}


def _arithmetic(dtype: torch.dtype, device: torch.device) -> Work:
    """Matrix products and convolutions by name, with their MACs."""
    found: Work = {}
    with torch.inference_mode():
        for side in PRODUCTS.get(device.type, PRODUCTS["cpu"]):
            a = torch.full((side, side), 0.5, dtype=dtype, device=device)
            found[f"{side}×{side} matrix product"] = (_quietly(lambda a=a: a @ a), side**3)
        for channels, size in CONVOLUTIONS:
            conv = nn.Conv2d(  # without weights, as drawing them would move the caller's random numbers
                channels, channels, 3, padding=1, bias=False, device="meta", dtype=dtype
            ).to_empty(device=device)
            nn.init.constant_(conv.weight, 0.5)
            x = torch.full((8, channels, size, size), 0.5, dtype=dtype, device=device)
            found[f"3×3 convolution of {channels} channels"] = (
                _quietly(lambda conv=conv, x=x: conv(x)), 8 * size**2 * 9 * channels**2,
            )  # fmt: skip
    return found


def _copies(dtype: torch.dtype, device: torch.device) -> Work:
    """Copies of arrays too large for the caches, with the bytes they read and write."""
    size = copied_bytes(device)
    source = torch.ones(size // dtype.itemsize, dtype=dtype, device=device)
    target = torch.zeros_like(source)
    return {f"copy of {size // 2**20} MiB": (lambda: target.copy_(source), 2 * size)}


def _quietly(run: Callable[[], object]) -> Callable[[], object]:
    def quiet() -> object:
        with torch.inference_mode():
            return run()

    return quiet


def copied_bytes(device: torch.device) -> int:
    """The size of an array to copy: as large as the largest cache, within reason."""
    if device.type == "cuda":
        return MOST_COPY_BYTES
    largest = 0
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        with suppress(OSError, ValueError):
            largest = max(largest, int(path.read_text(encoding="ascii").strip().removesuffix("K")))
    return min(max(1024 * largest, LEAST_COPY_BYTES), MOST_COPY_BYTES)
