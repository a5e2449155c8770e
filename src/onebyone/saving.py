"""A slimmed network as a folder, and back: no pickle is written, none is read."""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from torch import Tensor, nn

from onebyone.building import skeleton
from onebyone.conv import ConvSpec
from onebyone.errors import MissingExtraError, ModelError, OneByOneError, OutputError, PlanError
from onebyone.exporting.onnx import export_onnx
from onebyone.exporting.program import export_program
from onebyone.files import write_text
from onebyone.plan_files import SCHEMA, plan_from_json, plan_to_json
from onebyone.planning import Plan
from onebyone.preprocessing import Preprocess
from onebyone.tree import modules_by_name, replace_modules

if TYPE_CHECKING:
    from onebyone.loading.loaded import Loaded
    from onebyone.slimming import Slimmed

PLAN, WEIGHTS, PROGRAM, ONNX = "plan.json", "weights.safetensors", "model.pt2", "model.onnx"


def check_folder(folder: Path, *, force: bool) -> None:
    """OutputError if the folder exists and was not written by onebyone, unless forced."""
    if not folder.exists() or force:
        return
    if not folder.is_dir():
        raise OutputError(
            f"{folder} exists and is a file; give a folder, or replace it with --force"
        )
    if not any(folder.iterdir()) or _is_ours(folder):
        return
    raise OutputError(
        f"the folder {folder} exists and holds other things than a slimmed network; give another "
        "folder, or replace it with --force"
    )


def _is_ours(folder: Path) -> bool:
    try:
        return json.loads((folder / PLAN).read_text(encoding="utf-8")).get("schema") == SCHEMA
    except (OSError, ValueError, AttributeError):
        return False


def save_folder(slimmed: Slimmed, folder: Path, *, force: bool = False) -> Path:
    """Write everything beside the folder first, then put it in place at once."""
    check_folder(folder, force=force)
    folder = folder.absolute()
    staged: Path | None = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        staged = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        staged.chmod(0o755)
        _write_all(slimmed, staged)
        _swap(staged, folder)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OutputError(
            f"the folder {folder} cannot be written: {reason}; nothing was left there"
        ) from error
    finally:
        if staged is not None:
            shutil.rmtree(staged, ignore_errors=True)
    return folder


def _swap(staged: Path, folder: Path) -> None:
    if not folder.exists():
        staged.rename(folder)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{folder.name}-old-", dir=folder.parent)) / "was"
    folder.rename(old)
    try:
        staged.rename(folder)
    except OSError:
        old.rename(folder)
        raise
    finally:
        shutil.rmtree(old.parent, ignore_errors=True)


def _write_all(slimmed: Slimmed, folder: Path) -> None:
    from onebyone.report import to_json, write_report

    model, notes = slimmed.model, list(slimmed.plan.notes)
    save_model(model, str(folder / WEIGHTS), force_contiguous=True)
    exported = export_program(model, slimmed.example)
    if isinstance(exported, str):
        notes.append(f"no {PROGRAM} and no {ONNX}: {exported}")
    else:
        torch.export.save(exported, folder / PROGRAM)
        try:
            export_onnx(exported, folder / ONNX)
        except MissingExtraError as error:
            notes.append(f"no {ONNX}: {error}")
        except ModelError as error:
            notes.append(f"no {ONNX}: {error}")
    plan = replace(slimmed.plan, notes=tuple(notes))
    values = plan_to_json(plan) | {"model": _about(slimmed)}
    write_text(folder / PLAN, json.dumps(values, indent=2, ensure_ascii=False) + "\n")
    report = to_json(slimmed.verification, plan)
    write_text(folder / "report.json", json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    write_report(folder / "report.html", slimmed.verification, plan)


def _about(slimmed: Slimmed) -> dict[str, Any]:
    """What loading needs beyond the plan."""
    tensors = [t for t in slimmed.model.state_dict().values() if t.is_floating_point()]
    dtypes = sorted({str(t.dtype).removeprefix("torch.") for t in tensors})
    last = torch.channels_last
    return {
        "class": type(slimmed.model).__name__,
        "dtype": dtypes[0] if len(dtypes) == 1 else None,
        "channels_last": any(
            t.ndim == 4 and t.is_contiguous(memory_format=last) and not t.is_contiguous()
            for t in tensors
        ),
        "preprocess": slimmed.preprocess.to_json() if slimmed.preprocess else None,
        "classes": list(slimmed.classes) if slimmed.classes else None,
    }


def load_folder(
    folder: Path,
    *,
    weights: str | None = None,
    trust: bool = False,
    architecture: nn.Module | None = None,
) -> Loaded:
    """The network of a slimmed folder, in eval mode, with bit-equal outputs.

    The original architecture is built again from the plan's source (or is `architecture`, which is
    not changed), the planned layers are replaced and the weights filled in. Where there is no source,
    or it cannot be built here, the exported program model.pt2 is taken.
    """
    from onebyone.loading.loaded import Loaded, example_of

    values = _plan_values(folder)
    plan = plan_from_json(values, str(folder / PLAN))
    about = values.get("model") or {}
    notes: tuple[str, ...] = ()
    model: nn.Module | None = None
    if architecture is None and plan.source is not None:
        try:
            architecture = _original(plan.source, plan.input_shape, trust)
        except OneByOneError as error:
            notes = (f"the source {plan.source.get('spec')!r} cannot be built here: {error}",)
    if architecture is not None:
        model = _refill(architecture, plan, about, Path(weights) if weights else folder / WEIGHTS)
    elif (folder / PROGRAM).exists():
        from onebyone.loading import module_of, open_program

        model = module_of(open_program(folder / PROGRAM, trust=trust)).model
    else:
        raise ModelError(
            f"{folder} has no {PROGRAM}, and its plan names no source to build the network from"
            + (f" ({notes[0]})" if notes else "")
            + ": load it with obo.load(folder, architecture=the original network)"
        )
    preprocess = Preprocess.from_json(about["preprocess"]) if about.get("preprocess") else None
    classes = tuple(about["classes"]) if about.get("classes") else None
    source = {"spec": str(folder.absolute()), "weights": weights}
    return Loaded(
        model.eval(), _typed(example_of(plan.input_shape), about), preprocess, classes, source,
        notes=notes,
    )  # fmt: skip


def _typed(example: Tensor, about: dict[str, Any]) -> Tensor:
    return example.to(getattr(torch, about["dtype"])) if about.get("dtype") else example


def _plan_values(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / PLAN).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PlanError(f"{folder / PLAN} cannot be read: {error}") from error


def _original(source: dict[str, Any], input_shape: tuple[int, ...], trust: bool) -> nn.Module:
    """The architecture with whatever weights cost nothing: they are replaced."""
    from onebyone.loading import load

    spec = str(source["spec"])
    named = spec.partition(":")[0] in ("torchvision", "timm")
    return load(
        spec, weights="random" if named else None, input_size=tuple(input_shape), trust=trust
    ).model


def _refill(architecture: nn.Module, plan: Plan, about: dict[str, Any], weights: Path) -> nn.Module:
    from onebyone.surveying import deep_copy

    model = deep_copy(architecture)
    if about.get("dtype"):
        model.to(getattr(torch, about["dtype"]))
    model = replace_modules(model, _skeletons(model, plan))
    if about.get("channels_last"):
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    try:
        load_model(model, str(weights))
    except (RuntimeError, SafetensorError, OSError) as error:
        raise ModelError(
            f"the weights {weights} do not fit the network of the plan: {str(error).splitlines()[0]}"
        ) from error
    return model


def _skeletons(model: nn.Module, plan: Plan) -> dict[str, nn.Module]:
    modules = modules_by_name(model)
    found: dict[str, nn.Module] = {}
    for decision in plan.decisions:
        if decision.form in ("keep", "refuse"):
            continue
        layer = modules.get(decision.layer)
        if layer is None or decision.conv is None or ConvSpec.of(layer) != decision.conv:
            raise PlanError(
                f"the plan's layer {decision.layer!r} is not in the network it is loaded into"
            )
        found[decision.layer] = skeleton(layer, decision.form, decision.ranks)
    return found
