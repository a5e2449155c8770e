"""What a target writes: one exported program, with its example input and what is known about it."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import Node

from onebyone.errors import ModelError, line_of
from onebyone.exporting.folding import fold
from onebyone.exporting.program import export_program
from onebyone.exporting.tracing import Traced, traced
from onebyone.loading.layers import operator_of
from onebyone.loading.programs import batch_free
from onebyone.plans import Plan
from onebyone.preprocessing import Preprocess
from onebyone.tree import deep_copy

SCHEMA = "onebyone.export/1"
FLOAT32, FLOAT16, INT8 = DTYPES = ("float32", "float16", "int8")


@dataclass(frozen=True)
class Network:
    """A float32 program on the processor, its BatchNorm folded, and what goes into a file with it.

    A detector of torchvision has no program: it is traced for targets that are written through ONNX.
    `inputs` are an example with a batch of 1. `dtype` is what the file is to hold: "float32",
    "float16" or "int8"; `calibration` are the images (N, C, H, W) that int8 takes its ranges from.
    `about` is JSON-ready and embedded where the format has a place for it.
    """

    program: ExportedProgram | Traced
    inputs: tuple[Tensor, ...]
    dtype: str = FLOAT32
    calibration: Tensor | None = None
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def any_batch(self) -> bool:
        """Whether the program takes batches of any size."""
        return batch_free(self.program)

    @property
    def exported(self) -> ExportedProgram:
        """The program; ModelError for a network that can be traced alone."""
        if isinstance(self.program, Traced):
            raise ModelError(
                f"{self.program.why}; ONNX and OpenVINO take it: it is traced for them"
            )
        return self.program

    @property
    def about_text(self) -> str:
        """What is embedded, as JSON."""
        return json.dumps(self.about, ensure_ascii=False)


def network_of(
    program: ExportedProgram | Traced,
    inputs: tuple[Tensor, ...],
    *,
    dtype: str = FLOAT32,
    calibration: Tensor | None = None,
    about: dict[str, Any] | None = None,
) -> Network:
    """The program ready for any target; it is changed: its BatchNorm gets folded."""
    how = {"traced": True} if isinstance(program, Traced) else {"batchnorm_folded": fold(program)}
    said = dict(about or {}) | how
    return Network(program, inputs, dtype, calibration, said)


def exportable(model: nn.Module, inputs: tuple[Tensor, ...]) -> ExportedProgram | Traced | str:
    """The network's program, or it itself where it can be traced alone; or why there is neither."""
    found = export_program(model, inputs)
    return traced(model, found) or found if isinstance(found, str) else found


def exported(model: nn.Module, inputs: tuple[Tensor, ...]) -> ExportedProgram | Traced:
    """The program of a float32 network on the processor, or a detector of torchvision to be traced.

    Raises ModelError where there is neither.
    """
    found = exportable(on_cpu_in_float32(model), inputs)
    if isinstance(found, str):
        raise ModelError(
            f"{found}; what runs outside PyTorch must be traced, so control flow that depends on "
            "values has to go"
        )
    return found


def write_as_taken(
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    program: ExportedProgram | Traced,
    write: Callable[[ExportedProgram | Traced], None],
) -> ModelError | None:
    """Write the network's program, or one for one image where that of any batch is not taken: why.

    Raises what `write` does where neither is taken.
    """
    free = batch_free(program)
    try:
        write(program)
        return None
    except ModelError as error:
        fixed = export_program(model, inputs, any_batch=False) if free else ""
        if not isinstance(fixed, str):
            with suppress(ModelError):
                write(fixed)
                return error
        raise


def converted_note(model: nn.Module, dtype: str = "float32") -> tuple[str, ...]:
    """A note on a network that computes in another floating type than what runtimes are given.

    dtype: what is asked of them; float16 files of networks in float16 hold the same weights.
    """
    same = {torch.float32, torch.float16} if dtype == "float16" else {torch.float32}
    found = {t.dtype for t in model.parameters() if t.is_floating_point()} - same
    if not found:
        return ()
    names = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in found))
    return (f"the network computes in {names}: here it is converted to float32",)


def on_cpu_in_float32(model: nn.Module) -> nn.Module:
    """The model, or a copy where any of it is on another device or in another floating type."""
    tensors = (*model.parameters(), *model.buffers())
    plain = all(
        t.device.type == "cpu" and (t.dtype == torch.float32 or not t.is_floating_point())
        for t in tensors
    )
    return model if plain else deep_copy(model).cpu().float()


def about_network(
    inputs: tuple[Tensor, ...],
    *,
    any_batch: bool,
    dtype: str,
    preprocess: Preprocess | None,
    classes: tuple[str, ...] | None,
    slimmed: dict[str, Any] | None,
) -> dict[str, Any]:
    """The metadata of a file: what it takes, how pictures become that, and what onebyone did."""
    return {
        "schema": SCHEMA,
        "onebyone": sys.modules["onebyone"].__version__,
        "torch": str(torch.__version__),
        "dtype": dtype,
        "inputs": [
            {
                "shape": ["batch" if any_batch else x.shape[0], *x.shape[1:]],
                "dtype": dtype_of(x),
            }
            for x in inputs
        ],
        "preprocess": None if preprocess is None else preprocess.to_json(),
        "classes": None if classes is None else list(classes),
        "slimmed": slimmed,
    }


def dtype_of(x: Tensor) -> str:
    """The type's name: float32."""
    return str(x.dtype).removeprefix("torch.")


def slimmed_facts(plan: Plan | None) -> dict[str, Any] | None:
    """What onebyone did to the network, for the metadata."""
    if plan is None:
        return None
    changed = [d for d in plan.decisions if d.form not in ("keep", "refuse")]
    return {
        "from": (plan.source or {}).get("spec"),
        "macs": [plan.macs_before, plan.macs_after],
        "params": [plan.params_before, plan.params_after],
        "layers": {d.layer: [d.form, *d.ranks] for d in changed},
    }


def refusal(title: str, network: Network, error: Exception) -> ModelError:
    """A target's failure as one message, which names the operator and its layer where it can."""
    program = network.program
    found = None if isinstance(program, Traced) else _named(program, str(error))
    if found is not None:
        return not_taken(title, *found, type(error).__name__)
    while "\x1b" in line_of(error) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # the exporter's own pages on what to try; what went wrong is below
    return ModelError(f"{title} export failed ({type(error).__name__}: {line_of(error)})")


def not_taken(title: str, operator: str, layer: str | None, why: str) -> ModelError:
    """The message on an operator that a target lacks; `layer` calls it, "" for the network itself."""
    whose = "" if layer is None else f" of the layer {layer or '(the network)'}"
    return ModelError(
        f"{title} does not take the operator {operator}{whose} ({why}): replace what calls it, or "
        "choose another target"
    )


def layer_of_node(node: Node) -> str:
    """The layer whose forward made it; "" for the network's own."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return str(stack[-1][0]) if stack else ""


def _named(program: ExportedProgram, message: str) -> tuple[str, str | None] | None:
    """The first operator of the program that a message names, with the layer that calls it.

    None for the layer where several call it and the message names no call of them.
    """
    found: list[tuple[str, str, str]] = []
    rest = message  # a call may be named like its operator
    for node in program.graph.nodes:
        if node.op != "call_function" or not hasattr(node.target, "name"):
            continue
        space, _, name = str(node.target.name()).partition("::")
        base = re.escape(name.partition(".")[0])
        operator = rf"\b{space}(\.|::|_){base}\b"
        if re.search(operator, message):
            rest = re.sub(operator, "", rest)
            found.append((f"{space}::{name}", layer_of_node(node), node.name))
    if not found:
        return _decomposed(program, message)
    called = [f for f in found if re.search(rf"\b{re.escape(f[2])}\b", rest)]
    operator, layer, _ = (called or found)[0]
    several = len({f[1] for f in found if f[0] == operator}) > 1
    return operator, None if several and not called else layer


def _decomposed(program: ExportedProgram, message: str) -> tuple[str, str | None] | None:
    """The operator that a message on one node names, which the exporter made of another one."""
    found = re.search(r"target=torch\.ops\.(\w+)\.(\w+)", message)
    if found is None:
        return None
    made_of = {
        layer_of_node(node)
        for node in program.graph.nodes
        if (own := operator_of(node)) and found[2].startswith(own)
    }
    return f"{found[1]}::{found[2]}", made_of.pop() if len(made_of) == 1 else None
