"""A slimmed network → a folder, whole or not at all; no pickle is written."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.export import ExportedProgram

from onebyone.errors import MissingExtraError, ModelError, OutputError, line_of
from onebyone.exporting.checking import LIMITS, NOTHING
from onebyone.exporting.network import (
    about_network,
    dtype_of,
    exportable,
    network_of,
    on_cpu_in_float32,
    slimmed_facts,
    write_as_taken,
)  # fmt: skip
from onebyone.exporting.onnx import export_onnx
from onebyone.exporting.outputs import with_plain_outputs
from onebyone.exporting.program import quiet
from onebyone.exporting.rechecking import checked, drawn_images
from onebyone.exporting.targets import TARGETS
from onebyone.exporting.tracing import Traced, is_detector
from onebyone.files import (
    ONNX,
    PLAN,
    PROGRAM,
    REPORT,
    REPORT_JSON,
    SLIMMED,
    WEIGHTS,
    check_writable,
    is_stream,
    json_text,
    share,
    write_text,
)  # fmt: skip
from onebyone.loading.programs import batch_free
from onebyone.loading.slimmed import FORMATS, is_slimmed
from onebyone.plan_files import plan_to_json
from onebyone.several import flat, packing_of
from onebyone.tree import deep_copy

if TYPE_CHECKING:
    from onebyone.deepening.deepening import Deepened
    from onebyone.plans import Plan
    from onebyone.slimming import Slimmed

LOG = logging.getLogger("onebyone")


def check_folder(folder: Path, *, force: bool, inputs: Iterable[object] = ()) -> None:
    """Raise OutputError where the folder cannot be written or holds what must not be lost.

    What stands there is replaced if onebyone wrote it or with `force`; never if one of `inputs` (the
    network, its weights, the images: texts that may be paths) or the working directory is in it. Nor may
    it be in a folder that is one of the inputs: it would be read for a part of that the next time.
    """
    folder = folder.resolve()
    for path in [Path.cwd(), *(Path(str(i)).resolve() for i in inputs if i is not None)]:
        if folder.exists() and path.exists() and path.is_relative_to(folder):
            inside = "" if path == folder else f" and, with it, {path}"
            raise OutputError(
                f"the result would replace {folder}{inside}, where this command reads or works: give "
                "another folder"
            )
    for path in (Path(str(i)).resolve() for i in inputs if i is not None):
        if path.is_dir() and folder != path and folder.is_relative_to(path):
            raise OutputError(
                f"the result would lie in {path}, which this command reads: give a folder beside it"
            )
    if os.path.ismount(folder):
        raise OutputError(
            f"the folder {folder} is a mounted disk, which cannot be replaced as a whole: give a "
            f"folder in it, such as {folder / 'slimmed'}"
        )
    if is_stream(folder):
        raise OutputError(f"{folder} is a device or a pipe, which stays there: give a folder")
    if not force:
        _check_replaceable(folder)
    check_writable(folder)


def _check_replaceable(folder: Path) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise OutputError(
            f"{folder} exists and is a file; give a folder, or replace it with --force (force=True)"
        )
    others = sorted(p.name for p in folder.iterdir() if p.name not in SLIMMED)
    if not others and (is_slimmed(folder) or not any(folder.iterdir())):
        return
    named = ", ".join(others[:3]) + (", …" if len(others) > 3 else "")
    held = f"holds other things than a slimmed network ({named})" if others else "is not ours"
    raise OutputError(
        f"the folder {folder} exists and {held}; give another folder, or replace it with all that "
        "is in it by --force (force=True)"
    )


def make_parent(folder: Path) -> None:
    """Make the folders above; OutputError where they cannot be made."""
    above = folder.resolve().parent
    try:
        above.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"the folder {above} cannot be made: {error.strerror or error}"
        ) from error


def save_folder(slimmed: Slimmed | Deepened, folder: str | Path, *, force: bool = False) -> Path:
    """Write everything beside the folder first, then put it in place at once."""
    if not isinstance(folder, str | os.PathLike):
        raise OutputError(f"the folder is {folder!r}: give the path of one, such as 'out/'")
    folder = Path(folder)
    source = slimmed.plan.source or {}
    check_folder(folder, force=force, inputs=(source.get("spec"), source.get("weights")))
    folder = folder.resolve()
    try:
        make_parent(folder)
        with _staged(folder) as staged:
            notes = _write_all(slimmed, staged)
            program = (staged / PROGRAM).is_file()
            _swap(staged, folder)
    except (OSError, SafetensorError, OutputError) as error:
        reason = getattr(error.__cause__ or error, "strerror", None) or error
        raise OutputError(
            f"the folder {folder} cannot be written: {reason}; nothing was left there"
        ) from error
    if not source and not program:
        why = next((note for note in notes if PROGRAM in note), f"no {PROGRAM}")
        LOG.warning(
            "%s loads again only beside the original network, as obo.load(folder, architecture=network): "
            "it has %s", folder, why,
        )  # fmt: skip
    return folder


@contextmanager
def _staged(folder: Path) -> Iterator[Path]:
    """A new folder on the same disk; what is left of it goes, whatever happens."""
    around = tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent)
    try:
        staged = Path(around, "new")
        staged.mkdir()
        yield staged
    finally:
        shutil.rmtree(around, ignore_errors=True)


def _swap(staged: Path, folder: Path) -> None:
    """Put the staged folder in place; what stood there comes back if that fails or is interrupted."""
    old = staged.with_name("old")
    try:
        if folder.exists():
            folder.rename(old)
        staged.rename(folder)
    except BaseException:
        if old.exists() and not folder.exists():
            old.rename(folder)
        raise


def _write_all(slimmed: Slimmed | Deepened, folder: Path) -> list[str]:
    """Every file of the folder; the notes of its plan."""
    from onebyone.explaining.report import write_report
    from onebyone.report import to_json
    from onebyone.report.deepened import deepened_html

    model = _on_cpu(slimmed.model)
    notes = [*slimmed.plan.notes, *_write_weights(model, folder / WEIGHTS)]
    notes += _write_programs(slimmed, model, slimmed.plan, folder)
    plan = replace(slimmed.plan, notes=tuple(notes))
    write_text(folder / PLAN, json_text(plan_to_json(plan) | {"model": _about(slimmed, model)}))
    write_text(folder / REPORT_JSON, json_text(to_json(slimmed.verification, plan)))
    if plan.insertions:
        write_text(folder / REPORT, deepened_html(slimmed.verification, plan))
    else:
        insight = getattr(slimmed, "insight", None)
        write_report(folder / REPORT, slimmed.verification, plan, insight)
    return notes


def _on_cpu(model: nn.Module) -> nn.Module:
    """The model, or a copy where any of it is on another device."""
    tensors = (*model.parameters(), *model.buffers())
    return model if all(t.device.type == "cpu" for t in tensors) else deep_copy(model).cpu()


def _write_weights(model: nn.Module, path: Path) -> list[str]:
    """The state dict, tied tensors once, as `safetensors.torch.load_model` expects it; notes."""
    state = model.state_dict()
    seen: set[tuple[Any, ...]] = set()
    tensors: dict[str, Tensor] = {}
    for name, value in state.items():
        if not isinstance(value, Tensor):
            continue
        key = (value.data_ptr(), value.shape, value.stride(), value.dtype)
        if key not in seen or not value.numel():
            tensors[name] = value.detach().clone(memory_format=torch.contiguous_format)
        seen.add(key)
    save_file(tensors, path, metadata={"format": "pt"})
    share(path)
    others = [name for name, value in state.items() if not isinstance(value, Tensor)]
    return [f"{WEIGHTS} has only tensors, so not {', '.join(others)}"] if others else []


def _write_programs(
    slimmed: Slimmed | Deepened, model: nn.Module, plan: Plan, folder: Path
) -> list[str]:
    """The network for use without onebyone, as far as it can be exported; notes on what cannot."""
    given = slimmed.example if isinstance(slimmed.example, tuple) else (slimmed.example,)
    model, inputs = flat(model, given)
    _, other = with_plain_outputs(model, inputs)
    program = exportable(model, inputs)
    if isinstance(program, str):
        return [f"no {PROGRAM} and no {ONNX}: {program}"]
    if isinstance(program, Traced):
        notes = [f"no {PROGRAM}: {program.why}"]
    else:
        notes = _write_program(program, folder / PROGRAM)
        notes += [f"{PROGRAM} returns {other}"] if other and not notes else []
    if _dtype_of(inputs) not in LIMITS:  # no runtime of ONNX takes it
        model = on_cpu_in_float32(model)
        inputs = tuple(x.float() if x.is_floating_point() else x for x in inputs)
        program = exportable(model, inputs)
        notes.append(f"{ONNX} computes in float32")
    if isinstance(program, str):
        return [*notes, f"no {ONNX}: {program}"]
    free = batch_free(program)

    def write_onnx(program: ExportedProgram | Traced) -> None:
        about = about_network(
            inputs, any_batch=batch_free(program), dtype=_dtype_of(inputs),
            preprocess=slimmed.preprocess, classes=slimmed.classes, slimmed=slimmed_facts(plan),
        )  # fmt: skip
        export_onnx(network_of(program, inputs, about=about), folder / ONNX)
        if _check_onnx(model, inputs, folder / ONNX, batch_free(program)):
            notes.append(f"{ONNX}: {NOTHING}")

    try:
        why = write_as_taken(model, inputs, program, write_onnx)
    except (MissingExtraError, ModelError) as error:
        (folder / ONNX).unlink(missing_ok=True)
        notes.append(f"no {ONNX}: {error}")
    else:
        notes += [f"{ONNX} for one image at a time: for any number, {why}"] if why else []
    written = [name for name in (PROGRAM, ONNX) if (folder / name).is_file()]
    if written and isinstance(program, Traced):
        notes.append(f"{ONNX} is traced: for one image at a time, of this size")
    elif written and not free:
        notes.append(
            f"{' and '.join(written)} for one image at a time: torch.export found the network to depend "
            "on how many there are"
        )
    return notes


def _write_program(program: ExportedProgram, path: Path) -> list[str]:
    """Write the exported program; a note where it cannot be."""
    buffer = BytesIO()  # torch's own writer tells of a full disk in many words, or not at all
    try:
        with quiet():
            torch.export.save(program, buffer)
    except Exception as error:  # such as for outputs of classes that it does not know
        return [f"no {PROGRAM}: torch.export cannot save the network ({line_of(error)})"]
    path.write_bytes(buffer.getbuffer())
    return []


def _check_onnx(model: nn.Module, inputs: tuple[Tensor, ...], path: Path, any_batch: bool) -> bool:
    """Whether the network finds nothing in drawn images; a detector gets the example as well.

    Raises ModelError where onnxruntime computes something else; nothing where it is missing.
    """
    target = TARGETS["onnx"]
    dtype = _dtype_of(inputs)
    if target.missing is not None or not path.is_file():
        return False
    drawn = tuple(drawn_images(x, fixed=not any_batch) for x in inputs)
    if is_detector(model):
        drawn = tuple(torch.cat([x, y]) for x, y in zip(inputs, drawn, strict=True))
    return checked(target, path, model, drawn, dtype, any_batch, drawn=True).empty


def _dtype_of(inputs: tuple[Tensor, ...]) -> str:
    """The type that the network computes in: that of its first floating input."""
    return next((dtype_of(x) for x in inputs if x.is_floating_point()), dtype_of(inputs[0]))


def _about(slimmed: Slimmed | Deepened, model: nn.Module) -> dict[str, Any]:
    """What loading needs beyond the plan."""
    tensors = {k: t for k, t in model.state_dict().items() if isinstance(t, Tensor)}
    floats = {
        str(t.dtype).removeprefix("torch.") for t in tensors.values() if t.is_floating_point()
    }
    return {
        "class": type(model).__name__,
        "dtype": floats.pop() if len(floats) == 1 else None,
        "channels_last": [name for name, tensor in tensors.items() if _channels_last(tensor)],
        "preprocess": slimmed.preprocess.to_json() if slimmed.preprocess else None,
        "classes": list(slimmed.classes) if slimmed.classes else None,
        **({"inputs": packing_of(model, slimmed.example).to_json()}
           if isinstance(slimmed.example, tuple) else {}),
    }  # fmt: skip


def _channels_last(tensor: Tensor) -> bool:
    """Whether the strides are those of channels-last; a 1×1 kernel's can be, contiguous or not."""
    if tensor.ndim not in FORMATS:
        return False
    ordered = torch.empty_like(tensor, memory_format=FORMATS[tensor.ndim], device="meta")
    plain = torch.empty(tensor.shape, device="meta")
    return tensor.stride() == ordered.stride() and tensor.stride() != plain.stride()
