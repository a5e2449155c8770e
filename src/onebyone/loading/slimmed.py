"""A slimmed folder → its network: the original's architecture, replanned, with the weights filled in."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from onebyone.building import skeleton
from onebyone.conv import ConvSpec
from onebyone.deepening.insertions import insert
from onebyone.errors import DataError, ModelError, OneByOneError, PlanError, line_of
from onebyone.files import PLAN, PROGRAM, WEIGHTS
from onebyone.forms import KEPT
from onebyone.loading.archive import open_program
from onebyone.loading.loaded import Loaded, example_of
from onebyone.loading.programs import module_of
from onebyone.loading.weights import fit_weights, read_weights
from onebyone.narrowing.cutting import cut_model
from onebyone.plain import plain
from onebyone.plan_files import SCHEMA, plan_from_json, plan_to_json, read_plan
from onebyone.plans import Plan
from onebyone.preprocessing import Preprocess
from onebyone.several import Packing, packed, unpacked
from onebyone.tree import (
    check_weights,
    deep_copy,
    modules_by_name,
    replace_modules,
    tensor_state,
    tensors_in,
    uncompiled,
)

FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}
Build = Callable[[Mapping[str, Any], tuple[int, ...] | None], nn.Module]


def _damaged(weights: Path) -> tuple[str, ...]:
    """A note on weights that lie beside a program and cannot be read."""
    if not weights.is_file():
        return (f"{weights} is missing, and was not needed",)
    try:
        read_weights(weights)
    except ModelError as error:
        return (f"{error}; it was not needed",)
    return ()


def is_slimmed(folder: Path) -> bool:
    """Whether onebyone wrote the folder: it has a plan of ours."""
    try:
        values = json.loads((folder / PLAN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(values, dict) and values.get("schema") == SCHEMA


def check_ours(folder: Path) -> None:
    """PlanError where a folder has a plan that cannot be read."""
    if (folder / PLAN).is_file() and not is_slimmed(folder):
        read_plan(folder / PLAN)


def load_folder(
    folder: Path,
    build: Build,
    *,
    weights: str | None = None,
    trust: bool = False,
    architecture: nn.Module | None = None,
) -> Loaded:
    """The network of a slimmed folder, in eval mode, with outputs equal to the last bit.

    `build(source, input shape)` gives the original's architecture from the plan's source, where
    `architecture` (which is not changed) does not; its layers are replaced as planned and the
    weights filled in. Where neither can be had, the exported program model.pt2 is taken.
    Raises PlanError or ModelError for damaged files and where nothing is left to build from.
    """
    values = _read_plan(folder)
    plan = plan_from_json(values, str(folder / PLAN))
    about = values.get("model")
    if not isinstance(about, dict):
        raise PlanError(f"{folder / PLAN} does not describe a saved network: it has no `model`")
    packing, preprocess, classes, channels_last = _described(about, folder)
    program = False
    try:
        base = _architecture(plan, architecture, build, packing)
        model = _applied(base, plan, packing)
    except OneByOneError as error:
        if architecture is not None:
            raise
        program, (model, fixed) = True, _program(folder, trust, error)
        notes = (f"loaded from {PROGRAM}: {error}",) if plan.source else ()
        notes = (*notes, *_damaged(folder / WEIGHTS))
        if fixed is not None:
            notes = (
                *notes,
                f"{folder / PROGRAM} takes batches of {fixed} only, as the network fixes their size: "
                "obo.load(folder, architecture=…) builds it from the original instead",
            )
        if weights is not None:
            _fill(model, Path(weights), channels_last, trust)
    else:
        fixed, notes = None, ()
        _fill(model, Path(weights) if weights else folder / WEIGHTS, channels_last, trust)
    return Loaded(
        model.eval(), _examples(plan, about, packing, program),
        preprocess, classes,
        {"spec": str(folder.absolute()), "weights": weights, "plan": _changes(values)},
        fixed, notes,
    )  # fmt: skip


def _described(
    about: dict[str, Any], folder: Path
) -> tuple[Packing | None, Preprocess | None, tuple[str, ...] | None, frozenset[str]]:
    """How several inputs are packed (None for a network of one), how images are prepared, the names of
    classes, and of tensors in channels-last; PlanError names what is damaged."""

    def read(name: str, made: Callable[[Any], Any], otherwise: Any) -> Any:
        if about.get(name) is None:
            return otherwise
        try:
            return made(about[name])
        except (DataError, AttributeError, KeyError, TypeError, ValueError) as error:
            raise PlanError(
                f"{folder / PLAN} has damaged `{name}` of its `model`: {error}"
            ) from error

    return (
        read("inputs", Packing.from_json, None),
        read("preprocess", Preprocess.from_json, None),
        read("classes", _texts, ()) or None,
        frozenset(read("channels_last", _texts, ())),
    )


def _texts(values: Any) -> tuple[str, ...]:
    if not isinstance(values, list) or not all(isinstance(v, str) for v in values):
        raise ValueError(f"{values!r} stands where a list of names is expected")
    return tuple(values)


def _read_plan(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / PLAN).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PlanError(f"{folder / PLAN} cannot be read: {error}") from error


def root_source(source: Mapping[str, Any] | None) -> dict[str, Any]:
    """Where the first network of a chain came from, each made from the one before; {} if not known."""
    root = dict(source or {})
    while root.get("plan") is not None:
        root = dict(root["plan"].get("source") or {})
    return root


def as_source(made: Mapping[str, Any] | Plan | None) -> dict[str, Any] | None:
    """Where a network came from: as given, or the plan that made it with what that was made from."""
    if not isinstance(made, Plan):
        return None if made is None else dict(made)
    return dict(made.source or {}) | {"plan": _changes(plan_to_json(made))}


def _changes(values: dict[str, Any]) -> dict[str, Any]:
    """What of a plan is needed to build its network again, should its folder be gone."""
    layers = [v for v in values["layers"] if v["form"] not in (*KEPT, "refuse")]
    dropped = ("about", "cost", "model")
    changed = {k: v for k, v in values.items() if k not in dropped} | {
        "layers": layers,
        "notes": [],
    }
    if "insertions" in values:
        changed["insertions"] = [v for v in values["insertions"] if v["kind"] != "refuse"]
    return changed


def _architecture(
    plan: Plan, architecture: nn.Module | None, build: Build, packing: Packing | None
) -> nn.Module:
    """What the plan was made for; itself a slimmed network where its source has a plan."""
    source = plan.source or {}
    if source.get("plan") is not None:
        earlier = plan_from_json(source["plan"], "the plan of the network before")
        base = _architecture(earlier, architecture, build, packing)
        return _applied(base, earlier, packing)
    if architecture is not None:
        check_weights(architecture=architecture)
        return deep_copy(uncompiled(architecture))
    if not source:
        raise ModelError("its plan does not say which network it was made from")
    return build(source, plan.input_shape if packing is None else None)


def _applied(base: nn.Module, plan: Plan, packing: Packing | None = None) -> nn.Module:
    """The network cut, its layers replaced, the insertions in it: in place, weights not filled in."""
    example = _example(plan, packing)
    base = plain(packed(base, packing), example).model
    if packing is not None:
        unpacked(base)
    cut_model(base, plan.narrowings)
    model = replace_modules(base, _skeletons(base, plan))
    modules = modules_by_name(model)
    for insertion in plan.insertions:
        if not insertion.refused and insertion.place not in modules:
            raise PlanError(
                f"the plan's place {insertion.place!r} is not in the network it is loaded into"
            )
    return replace_modules(model, insert(model, plan.insertions))


def _skeletons(model: nn.Module, plan: Plan) -> dict[str, nn.Module]:
    modules = modules_by_name(model)
    found: dict[str, nn.Module] = {}
    for decision in plan.decisions:
        if decision.form in (*KEPT, "refuse"):
            continue
        layer = modules.get(decision.layer)
        if layer is None or decision.conv is None or ConvSpec.of(layer) != decision.shaped:
            raise PlanError(
                f"the plan's layer {decision.layer!r} is not in the network it is loaded into"
            )
        found[decision.layer] = skeleton(layer, decision.form, decision.ranks)
    return found


def _program(folder: Path, trust: bool, error: OneByOneError) -> tuple[nn.Module, int | None]:
    """The exported network, and the only batch size it takes (None: any)."""
    if not (folder / PROGRAM).is_file():
        raise ModelError(
            f"{folder} cannot be loaded: it has no {PROGRAM}, and {error}. Give the original "
            "network: obo.load(folder, architecture=…)"
        ) from error
    program = module_of(open_program(folder / PROGRAM, trust=trust))
    return program.model, program.fixed_batch


def _fill(model: nn.Module, weights: Path, channels_last: frozenset[str], trust: bool) -> None:
    """Load the weights with their own dtypes and memory formats, tied ones tied."""
    state = read_weights(weights, trust=trust)
    own = tensor_state(model)
    names = {(t.data_ptr(), t.shape): k for k, t in own.items() if k in state and t.numel()}
    for name, tensor in own.items():
        twin = names.get((tensor.data_ptr(), tensor.shape))
        if name not in state and twin is not None:
            state[name] = state[twin]
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if name in state and tensor.shape == state[name].shape:
            _conform(tensor, state[name].dtype, name in channels_last)
    fit_weights(model, state, weights)


def _conform(tensor: Tensor, dtype: torch.dtype, channels_last: bool) -> None:
    """Change the dtype and the memory format, in place."""
    if tensor.dtype != dtype:
        tensor.data = tensor.data.to(dtype)
    if channels_last and tensor.ndim in FORMATS:
        tensor.data = torch.empty_like(tensor.data, memory_format=FORMATS[tensor.ndim])


def _example(plan: Plan, packing: Packing | None) -> Tensor:
    """One image of the plan's size, or several inputs side by side, drawn at random."""
    if packing is not None:
        return packing.drawn()
    try:
        return example_of(plan.input_shape)
    except RuntimeError as error:
        raise PlanError(
            f"the plan's input_shape {plan.input_shape} cannot be made: {line_of(error)}"
        ) from error


def _examples(
    plan: Plan, about: dict[str, Any], packing: Packing | None, program: bool
) -> tuple[Any, ...]:
    """What one call takes, drawn at random; a program takes the tensors of lists and dicts one by one."""
    example = _example(plan, packing)
    dtype = getattr(torch, str(about.get("dtype")), None)
    example = example.to(dtype) if isinstance(dtype, torch.dtype) else example
    if packing is None:
        return (example,)
    inputs = tree_map(torch.clone, tuple(packing.apart(example).values()))
    return tuple(tensors_in(inputs)) if program else inputs


def replanned(model: nn.Module, plan: Plan) -> nn.Module:
    """A copy of the model with the layers that the plan puts in, their weights unset."""
    return _applied(deep_copy(model), plan)
