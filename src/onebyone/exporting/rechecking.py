"""Files of other runtimes run there and compared with PyTorch, when they are written and later."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from onebyone.data import open_images
from onebyone.errors import DataError, ModelError, OneByOneError
from onebyone.exporting.checking import LIMITS, Check, check
from onebyone.exporting.network import FLOAT32, INT8, on_cpu_in_float32
from onebyone.exporting.targets import Target, target_of

CHECKED = 64  # images at most
CALIBRATED = 128  # images at most
DRAWN = 16  # images that are drawn where none are given


def recheck(
    model: nn.Module, example: Tensor, path: Path, dtype: str, *, images: object = None
) -> Check:
    """Run a file that `export` wrote in its runtime and compare it with the network once more.

    Raises MissingExtraError without the runtime, ModelError where the file is damaged or fails.
    """
    target = target_of(path)
    target.require()
    inputs = (example[:1].float().cpu(),)
    taken, _, drawn = images_for(images, inputs, FLOAT32)
    about = read_about(path)
    first = (about.get("inputs") or [{}])[0].get("shape") or [1]
    return checked(target, path, on_cpu_in_float32(model), taken, dtype, first[0] == "batch", drawn)


def read_about(path: Path) -> dict[str, Any]:
    """The metadata of a file that `export` wrote; empty where there is none."""
    target = target_of(path)
    try:
        if target.about is None:
            text = target.files(path)[-1].read_text(encoding="utf-8")
        else:
            text = target.about(path)
        found = json.loads(text) if text else {}
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def checked(
    target: Target, path: Path, model: nn.Module, inputs: tuple[Tensor, ...], dtype: str,
    any_batch: bool, drawn: bool,
) -> Check:  # fmt: skip
    """The check; ModelError where it fails."""
    try:
        session = target.open(path, 1)
        found = check(model, session, inputs, limit=LIMITS[dtype], any_batch=any_batch, drawn=drawn)
    except OneByOneError as error:
        raise ModelError(f"the {target.title} export failed its check: {error}") from error
    except Exception as error:
        raise ModelError(
            f"the {target.title} export cannot be run by {target.version} "
            f"({type(error).__name__}: {error})"
        ) from error
    if found.failure is not None:
        raise ModelError(f"the {target.title} export in {dtype} failed its check: {found.failure}")
    return found


def images_for(
    images: object, inputs: tuple[Tensor, ...], dtype: str
) -> tuple[tuple[Tensor, ...], Tensor | None, bool]:
    """What is checked on, what int8 is calibrated with, and whether it was drawn."""
    several = len(inputs) != 1
    if images is None or several:
        if dtype == INT8:
            raise DataError(
                "int8 takes the ranges of its numbers from images: give some (images=, --data)"
                if not several
                else "int8 is for networks of one input: this one takes several"
            )
        return tuple(drawn_images(x) for x in inputs), None, True
    every = open_images(images, limit=CHECKED + CALIBRATED)
    taken, example = every.inputs, inputs[0]
    if taken.shape[1:] != example.shape[1:]:
        given, wanted = ("×".join(map(str, s)) for s in (taken.shape[1:], example.shape[1:]))
        raise DataError(f"the images are {given} each and the network is exported for {wanted}")
    if dtype != INT8:
        return (taken[:CHECKED],), None, False
    spare = min(CHECKED, len(taken) // 2)
    return (taken[:spare] if spare else taken,), taken[spare : spare + CALIBRATED], False


def drawn_images(x: Tensor, *, fixed: bool = False) -> Tensor:
    """Images like the example, drawn at random, always the same; as many as it has if `fixed`."""
    if not x.ndim:
        return x
    shape = x.shape if fixed else (DRAWN, *x.shape[1:])
    if not x.is_floating_point():
        return x[:1].expand(shape).contiguous()
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(x.dtype)
