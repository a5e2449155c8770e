"""export: a network → one file that another runtime reads, checked there against PyTorch and timed."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.export import ExportedProgram

from onebyone.data import as_classes
from onebyone.errors import ModelError, OneByOneError, OutputError
from onebyone.exporting.checking import NOTHING, Check
from onebyone.exporting.clocking import Timing, time_exports
from onebyone.exporting.network import (
    DTYPES,
    FLOAT32,
    Network,
    about_network,
    exported,
    network_of,
    on_cpu_in_float32,
    slimmed_facts,
    write_as_taken,
)
from onebyone.exporting.outputs import left_out
from onebyone.exporting.rechecking import as_taken, checked, images_for, packing_for, ready, recheck
from onebyone.exporting.targets import Target, target_of
from onebyone.exporting.tracing import Traced
from onebyone.files import check_file, share
from onebyone.loading.programs import batch_free
from onebyone.plans import Plan
from onebyone.preprocessing import Preprocess, check_preprocess
from onebyone.tree import check_weights


@dataclass(frozen=True)
class Export:
    """A file for another runtime, with what its check and the clock said.

    `path` is the main file, `size_bytes` the size of all its files on disk; `original_bytes` that of
    the original network exported the same way, None where that was not given. `runtime` has the
    version that the file was checked and timed in.
    """

    path: Path
    target: str
    dtype: str
    runtime: str
    any_batch: bool
    size_bytes: int
    original_bytes: int | None
    check: Check
    timings: tuple[Timing, ...] = ()
    notes: tuple[str, ...] = field(default=())


def export(
    model: nn.Module,
    example: Tensor | tuple[Any, ...],
    path: str | Path,
    *,
    target: str | None = None,
    dtype: str = FLOAT32,
    images: object = None,
    original: nn.Module | None = None,
    preprocess: Preprocess | None = None,
    classes: tuple[str, ...] | None = None,
    plan: Plan | None = None,
    latency: bool = True,
    progress: Callable[[float], None] | None = None,
) -> Export:
    """Write a network, slimmed or not, as a file for another runtime; the network stays as it is.

    The target is the one that the suffix of `path` names, or `target`: onnx (.onnx), openvino
    (.xml), executorch (.pte), litert (.tflite) or ncnn (.ncnn.param). `example` is one input (1, C,
    H, W), or the tuple of what the network takes; the tensors of lists and dicts in it are inputs of the
    file one by one. BatchNorm is folded, and the batch size left free where network and target allow.
    dtype: "float32", "float16", or "int8", quantized after training on `images` (anything that
    `open_images` takes) by the target's own quantizer.

    The file is run in its runtime on `images`, or on drawn ones, and compared with PyTorch; limits
    are in `onebyone.exporting.checking.LIMITS`. Then it is timed, with `latency`, on one thread and
    all, beside `original` exported the same way where that is given. `preprocess`, `classes` and
    `plan` go into its metadata.

    Raises MissingExtraError without the target's packages, DataError for int8 without images,
    ModelError where the target does not take the network or the check fails, OutputError where
    nothing can be written. No file is left then, and one that stood at the path stays as it was.
    """
    check_weights(model=model)
    if original is not None:
        check_weights(original=original)
    check_preprocess(preprocess)
    classes = as_classes(classes)
    path = Path(path)
    chosen = target_of(path, target)
    check_dtype(chosen, dtype)
    chosen.require()
    for file in chosen.files(path):
        check_file(file)
    packing = packing_for(model, example)
    model, inputs = ready(model, example)
    original = None if original is None else ready(original, example)[0]
    taken, calibration, drawn = images_for(images, inputs, dtype, preprocess, packing)
    job = _Job(chosen, dtype, inputs, calibration, preprocess, classes)
    tell = progress or (lambda done: None)
    plain = on_cpu_in_float32(model)
    with _staged(path) as staged:
        free = job.write(plain, staged, plan)
        tell(0.4)
        found = checked(chosen, staged, plain, taken, dtype, free, drawn)
        tell(0.6)
        files = {"after": staged}
        notes = (*([NOTHING] if found.empty else ()), *left_out(plain, inputs))
        notes += job.write_original(original, files)
        timings: tuple[Timing, ...] = ()
        if latency:
            timed = time_exports(
                {name: partial(chosen.open, file) for name, file in files.items()},
                tuple(x[:1] if x.ndim else x for x in taken), runtime=chosen.version, dtype=dtype,
                any_batch=free,
            )  # fmt: skip
            timings = tuple(Timing(t["after"], t.get("before")) for t in timed)
        sizes = {name: size_of(chosen, file) for name, file in files.items()}
        _place(chosen, staged, path)
    tell(1.0)
    return Export(
        path, chosen.name, dtype, chosen.version, free, sizes["after"], sizes.get("before"), found,
        timings, notes,
    )  # fmt: skip


def examine(
    model: nn.Module, example: Tensor | tuple[Any, ...], path: str | Path, *,
    images: object = None, latency: bool = True,
) -> Export:  # fmt: skip
    """A file that onebyone wrote, checked against the network in its runtime again, and timed.

    The check may fail: `check.failure` says so. Raises MissingExtraError without the runtime,
    ModelError where the file is damaged or fails, DataError for images of another size.
    """
    path = Path(path)
    target = target_of(path)
    found, facts = recheck(model, example, path, images=images)
    timings: tuple[Timing, ...] = ()
    if latency:
        timed = time_exports(
            {"after": partial(target.open, path)},
            tuple(as_taken(x, facts.input_dtype) for x in ready(model, example)[1]),
            runtime=target.version, dtype=facts.dtype, any_batch=facts.any_batch,
        )  # fmt: skip
        timings = tuple(Timing(t["after"], None) for t in timed)
    return Export(
        path, target.name, facts.dtype, target.version, facts.any_batch, size_of(target, path), None,
        found, timings,
    )  # fmt: skip


@dataclass(frozen=True)
class _Job:
    """What the network and the original are exported with alike."""

    target: Target
    dtype: str
    inputs: tuple[Tensor, ...]
    calibration: Tensor | None
    preprocess: Preprocess | None
    classes: tuple[str, ...] | None

    def write(self, model: nn.Module, path: Path, plan: Plan | None) -> bool:
        """Write the files; whether they take any batch. Some operators are taken for one image alone."""
        program = exported(model, self.inputs)
        free = batch_free(program) and self.target.any_batch
        if not free:
            self._write(program, path, plan)
            return False
        write = partial(self._write, path=path, plan=plan)
        return write_as_taken(model, self.inputs, program, write) is None

    def _write(self, program: ExportedProgram | Traced, path: Path, plan: Plan | None) -> None:
        free = batch_free(program) and self.target.any_batch
        about = about_network(
            self.inputs, any_batch=free, dtype=self.dtype, preprocess=self.preprocess,
            classes=self.classes, slimmed=slimmed_facts(plan),
        )  # fmt: skip
        network = network_of(
            program, self.inputs, dtype=self.dtype, calibration=self.calibration, about=about
        )
        _write(self.target, network, path)

    def write_original(self, original: nn.Module | None, files: dict[str, Path]) -> tuple[str, ...]:
        """Write the original too, add its file as `before`; notes where that fails."""
        if original is None:
            return ()
        path = files["after"].with_name(f"original-{files['after'].name}")
        try:
            self.write(on_cpu_in_float32(original), path, None)
        except ModelError as error:
            return (f"not compared with the original: {error}",)
        files["before"] = path
        return ()


def check_dtype(target: Target, dtype: str) -> None:
    """Raise ModelError where the target has no files of that type."""
    if dtype not in DTYPES:
        raise ModelError(f"dtype={dtype!r} is none of {', '.join(DTYPES)}")
    if dtype not in target.dtypes:
        raise ModelError(
            f"{target.title} is not exported in {dtype}: no Python package brings its quantizer; "
            f"give {' or '.join(target.dtypes)}"
        )


def _write(target: Target, network: Network, path: Path) -> None:
    try:
        target.write(network, path)
        if target.about is None:
            target.files(path)[-1].write_text(network.about_text, encoding="utf-8")
    except OneByOneError:
        raise
    except OSError as error:
        raise OutputError(f"{path.name} cannot be written: {error.strerror or error}") from error


def size_of(target: Target, path: Path) -> int:
    """Bytes on disk of all files of an export."""
    return sum(p.stat().st_size for p in target.files(path) if p.is_file())


@contextmanager
def _staged(path: Path) -> Iterator[Path]:
    """A place for the files on the same disk; what is left there goes, whatever happens.

    So do the folders above that were made for it, where nothing came into them.
    """
    new = [p for p in path.absolute().parents if not p.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        around = tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}") from error
    try:
        yield Path(around, path.name)
    finally:
        shutil.rmtree(around, ignore_errors=True)
        with suppress(OSError):  # they are not empty
            for folder in new:
                folder.rmdir()


def _place(target: Target, staged: Path, path: Path) -> None:
    """Put all files in place; if one cannot be, what stood there comes back."""
    placed: list[tuple[Path, Path]] = []
    try:
        for source, goal in zip(target.files(staged), target.files(path), strict=True):
            old = source.with_name(f"old-{source.name}")
            if goal.exists():
                os.replace(goal, old)
                placed.append((goal, old))
            if source.is_file():
                share(source)
                os.replace(source, goal)
                placed.append((goal, old))
    except BaseException as error:
        for goal, _ in placed:
            with suppress(OSError):
                goal.unlink(missing_ok=True)
        for goal, old in placed:
            with suppress(OSError):
                os.replace(old, goal)
        if isinstance(error, OSError):
            raise OutputError(f"{path} cannot be written: {error.strerror or error}") from error
        raise
