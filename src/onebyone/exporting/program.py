"""A network as an exported PyTorch program (.pt2): it runs without onebyone and without its source."""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.utils._pytree import tree_leaves

from onebyone.errors import line_of
from onebyone.exporting.outputs import with_plain_outputs
from onebyone.loading.programs import agree
from onebyone.tree import evaluating, kept, random_state

MOST_BATCH = 4096


def export_program(
    model: nn.Module, example: Tensor | tuple[Tensor, ...], *, any_batch: bool = True
) -> ExportedProgram | str:
    """The program with any batch size, else with the example's; or the reason why there is none.

    example: (1, C, H, W), or the tuple of what a call takes, each with the batch as its first axis;
    it is brought to the model's own dtype.
    """
    inputs = example if isinstance(example, tuple) else (example,)
    first = next(model.parameters(), None)
    if first is not None and first.is_floating_point():
        inputs = tuple(x.to(first.dtype) if x.is_floating_point() else x for x in inputs)
    model, _ = with_plain_outputs(model, inputs)
    with evaluating(model), quiet():
        if any_batch:
            # The model may fix its batch size, or cannot be traced at all. Run, `len(x)` fixes it; read
            # from the bytecode (strict), it does not.
            for strict in (False, True):
                with contextlib.suppress(Exception):
                    program = export_any_batch(model, inputs, strict=strict)
                    if _right_for_one(program, model, inputs):
                        return program
        try:
            return torch.export.export(model, inputs)
        except Exception as error:
            return (
                f"torch.export cannot export the network ({type(error).__name__}: {line_of(error)})"
            )


def export_any_batch(
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    most: int = MOST_BATCH,
    *,
    strict: bool = False,
) -> ExportedProgram:
    """The program with any batch size up to `most`; raises what torch.export does where there is none."""
    batch = Dim("batch", min=1, max=most)
    pairs = tuple(torch.cat([x, x]) if x.ndim else x for x in inputs)
    shapes: tuple[Any, ...] = tuple({0: batch} if x.ndim else None for x in inputs)
    kinds = [p.kind for p in inspect.signature(model.forward).parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL in kinds:  # what *args takes is one tuple for torch.export
        named = kinds.index(inspect.Parameter.VAR_POSITIONAL)
        if shapes[named:]:
            shapes = (*shapes[:named], shapes[named:])
    return torch.export.export(model, pairs, dynamic_shapes=shapes, strict=strict)


def _right_for_one(program: ExportedProgram, model: nn.Module, inputs: tuple[Tensor, ...]) -> bool:
    """Whether one image gives what the network gives: it may do something else with one than with several.

    torch.export takes a free batch to be of two at the least. Buffers that the network changes come back.
    """
    one = tuple(x[:1] if x.ndim else x for x in inputs)
    found = []
    for run in (model, program.module()):
        with torch.no_grad(), random_state(0), kept(model):
            found.append(tree_leaves(run(*(x.clone() for x in one))))
    return all(agree(*leaves) for leaves in zip(*found, strict=True))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Exporters print progress, and pages of what they could not trace: that is not for the user."""
    said = io.StringIO()
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(said),
    ):
        warnings.simplefilter("ignore")
        level = logging.root.manager.disable
        logging.disable(logging.ERROR)
        try:
            yield
        finally:
            logging.disable(level)


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """`quiet`, and nothing of what compiled code and other programs print either."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    kept = os.dup(1), os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        for number in (1, 2):
            os.dup2(nowhere, number)
        with quiet():
            yield
    finally:
        for number, own in zip((1, 2), kept, strict=True):
            os.dup2(own, number)
            os.close(own)
        os.close(nowhere)
