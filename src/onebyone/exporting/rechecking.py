"""Files of other runtimes run there and compared with PyTorch, when they are written and later."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from onebyone.data import Images, open_images
from onebyone.errors import DataError, ModelError, OneByOneError, line_of
from onebyone.exporting.checking import LIMITS, Check, check
from onebyone.exporting.network import FLOAT32, INT8, on_cpu_in_float32
from onebyone.exporting.targets import Target, target_of
from onebyone.preprocessing import Preprocess
from onebyone.running import call
from onebyone.several import Packing, described, flat, packing_of, taken_out
from onebyone.tree import evaluating, random_state

CHECKED = 64  # images at most
CALIBRATED = 128  # images at most
DRAWN = 16  # images that are drawn where none are given


def recheck(
    model: nn.Module, example: Tensor | tuple[Any, ...], path: Path, *, images: object = None
) -> tuple[Check, Facts]:
    """Run a file that onebyone wrote in its runtime and compare it with the network once more.

    Also what its metadata say. The limits may be exceeded: see `Check.failure`. Raises
    MissingExtraError without the runtime, ModelError where the file is damaged or fails.
    """
    target = target_of(path)
    target.require()
    facts = Facts.of(read_about(path), path)
    packing = packing_for(model, example)
    model, inputs = ready(model, example)
    taken, _, drawn = images_for(images, inputs, FLOAT32, packing=packing)
    found = compared(
        target, path, on_cpu_in_float32(model), taken, facts.dtype, facts.any_batch, drawn,
        taken=facts.input_dtype,
    )  # fmt: skip
    return found, facts


@dataclass(frozen=True)
class Facts:
    """What the metadata of a file say of its numbers: those inside, those of its input, its batch."""

    dtype: str
    input_dtype: torch.dtype
    any_batch: bool

    @staticmethod
    def of(about: dict[str, Any], path: Path) -> Facts:
        """ModelError where the file has no metadata of ours, or damaged ones."""
        try:
            given = about["inputs"][0]
            return Facts(
                next(d for d in LIMITS if d == about["dtype"]), getattr(torch, given["dtype"]),
                given["shape"][0] == "batch",
            )  # fmt: skip
        except (KeyError, IndexError, TypeError, AttributeError, StopIteration) as error:
            raise ModelError(
                f"{path} says nothing of how onebyone wrote it, or is damaged: export it once more"
            ) from error


def read_about(path: Path) -> dict[str, Any]:
    """The metadata of a file that `export` wrote; empty where there is none."""
    target = target_of(path)
    try:
        if target.about is None:
            text = target.files(path)[-1].read_text(encoding="utf-8")
        else:
            text = target.about(path)
        found = json.loads(text) if text else {}
    except Exception:  # runtimes raise anything on damaged files
        return {}
    return found if isinstance(found, dict) else {}


def checked(
    target: Target, path: Path, model: nn.Module, inputs: tuple[Tensor, ...], dtype: str,
    any_batch: bool, drawn: bool,
) -> Check:  # fmt: skip
    """The check; ModelError where it fails."""
    found = compared(target, path, model, inputs, dtype, any_batch, drawn)
    if found.failure is None:
        return found
    why = f"the {target.title} export in {dtype} failed its check: {found.failure}"
    if _draws(model, inputs):
        why += (
            ". The network draws random numbers when it runs, and each runtime draws others: outputs "
            "cannot be compared. Give them to it as an input, or leave them out of what is exported"
        )
    raise ModelError(why)


@torch.inference_mode()
def _draws(model: nn.Module, inputs: tuple[Tensor, ...]) -> bool:
    with evaluating(model), random_state(0):
        before = torch.get_rng_state()
        call(model, *(x[:1].clone() if x.ndim else x.clone() for x in inputs))
        return not torch.equal(before, torch.get_rng_state())


def compared(
    target: Target, path: Path, model: nn.Module, inputs: tuple[Tensor, ...], dtype: str,
    any_batch: bool, drawn: bool, taken: torch.dtype | None = None,
) -> Check:  # fmt: skip
    """The check, whether it holds or not; `taken` is the type of the file's own inputs."""
    try:
        session = target.open(path, 1)
    except OneByOneError as error:
        raise ModelError(f"the {target.title} export failed its check: {error}") from error
    except Exception as error:  # runtimes raise anything
        raise ModelError(
            f"{path.name} cannot be run by {target.version} ({type(error).__name__}: "
            f"{line_of(error)})"
        ) from error

    def run(given: Sequence[Tensor]) -> list[Tensor]:
        return session([as_taken(x, taken) for x in given])

    try:
        return check(model, run, inputs, limit=LIMITS[dtype], any_batch=any_batch, drawn=drawn)
    except OneByOneError as error:
        raise ModelError(f"the {target.title} export failed its check: {error}") from error


def ready(
    model: nn.Module, example: Tensor | tuple[Any, ...]
) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The tensors of one call as `ready_inputs` has them, and the network that takes them one by one."""
    if isinstance(example, Mapping):
        raise ModelError(
            "the example is a dict: give a tuple of what one call takes, in the order of the network's "
            "forward"
        )
    model, given = flat(model, example if isinstance(example, tuple) else (example,))
    return model, ready_inputs(given)


def ready_inputs(given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The inputs of one call with a batch of 1, on the processor, floating ones in float32."""
    inputs = (x[:1].detach().cpu() if x.ndim else x.detach().cpu() for x in given)
    return tuple(x.float() if x.is_floating_point() else x for x in inputs)


def as_taken(x: Tensor, taken: torch.dtype | None) -> Tensor:
    """The tensor in the floating type that a file takes; whole numbers stay what they are."""
    floating = taken is not None and taken.is_floating_point and x.is_floating_point()
    return x.to(taken) if floating else x


def images_for(
    images: object,
    inputs: tuple[Tensor, ...],
    dtype: str,
    preprocess: Preprocess | None = None,
    packing: Packing | None = None,
) -> tuple[tuple[Tensor, ...], Tensor | None, bool]:
    """What is checked on, what int8 is calibrated with, and whether it was drawn.

    packing: of the inputs where they are several, which are given by its names.
    """
    several = len(inputs) != 1
    if dtype == INT8 and (images is None or several):
        raise DataError(
            "int8 takes the ranges of its numbers from images: give some (images=, --data)"
            if not several
            else "int8 is for networks of one input: this one takes several"
        )
    if images is None:
        return tuple(drawn_images(x) for x in inputs), None, True
    if packing is not None and several:
        every = open_images(images, limit=CHECKED, names=packing.names)
        return _by_names(every, inputs, packing), None, False
    every = open_images(images, preprocess, limit=CHECKED + CALIBRATED)
    taken, example = every.inputs, inputs[0]
    if taken.shape[1:] != example.shape[1:]:
        given, wanted = ("×".join(map(str, s)) for s in (taken.shape[1:], example.shape[1:]))
        raise DataError(f"the images are {given} each and the network is exported for {wanted}")
    taken = _as_example(taken, example.dtype)
    if dtype != INT8:
        return (taken[:CHECKED],), None, False
    spare = min(CHECKED, len(taken) // 2)
    return (taken[:spare] if spare else taken,), taken[spare : spare + CALIBRATED], False


def _as_example(images: Tensor, dtype: torch.dtype) -> Tensor:
    """Images in the whole numbers that a network takes; DataError where they are no such numbers."""
    if dtype.is_floating_point or images.dtype == dtype:
        return images
    whole = images.to(dtype)
    if not torch.equal(whole.to(images.dtype), images):
        name, (least, most) = str(dtype).removeprefix("torch."), images.aminmax()
        raise DataError(
            f"the network takes {name} and the images have values from {float(least):.4g} to "
            f"{float(most):.4g} that are no such numbers: give whole numbers, not normalised"
        )
    return whole


def _by_names(images: Images, inputs: tuple[Tensor, ...], own: Packing) -> tuple[Tensor, ...]:
    """Several inputs as the network is called with them; DataError for others."""
    given = images.packing
    if given is None or given.by_name != own.by_name:
        raise DataError(
            f"the inputs given are {described(given)}, and the network is called with {own.text}: give a "
            "tensor or array for each, by these names, with the images as its first axis"
        )
    found = dict(zip(given.names, given.places, strict=True))
    return tuple(
        taken_out(images.inputs, *found[name]).to(x.dtype) if x.ndim else x
        for name, x in zip(own.names, inputs, strict=True)
    )


def packing_for(model: nn.Module, example: Tensor | tuple[Any, ...]) -> Packing | None:
    """What the inputs of a call are where there are several, by their names; None for one."""
    if not isinstance(example, tuple) or (len(example) == 1 and isinstance(example[0], Tensor)):
        return None
    return packing_of(model, example)


def drawn_images(x: Tensor, *, fixed: bool = False) -> Tensor:
    """Images drawn at random between the least and the most of the example, always the same.

    As many as it has if `fixed`.
    """
    if not x.ndim:
        return x
    shape = x.shape if fixed else (DRAWN, *x.shape[1:])
    if not x.is_floating_point():
        return x[:1].expand(shape).contiguous()
    generator = torch.Generator().manual_seed(0)
    least, most = x.float().aminmax() if x.numel() else (0.0, 0.0)
    if not most > least:  # nothing is known of what images are like
        return torch.randn(shape, generator=generator).to(x.dtype)
    return (least + (most - least) * torch.rand(shape, generator=generator)).to(x.dtype)
