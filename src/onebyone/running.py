"""Run a network on a batch: on its own device, in its own dtype, failures as one clear message."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable

import torch
from torch import Tensor, nn

from onebyone.errors import ModelError, OneByOneError, line_of
from onebyone.several import as_bytes, packing_in
from onebyone.tree import tensors_in

UNKEPT = "does not require grad", "Inference tensors cannot be saved"  # PyTorch's words
UNCAPTURED = "UncapturedHigherOrderOpError"  # of torch.compile, which runs torch.cond
LEAST_ROWS = 4  # images, to tell scores of classes from other values
TOGETHER = 0.5  # of what the mean of as many values would vary by that know nothing of one another
FEW = 16  # values an image
VIEWED = "view size is not compatible"
ALONE = "more than 1 value per channel when training"


def suited(model: nn.Module, inputs: Tensor) -> Tensor:
    """A copy of the inputs on the device and in the floating dtype of the network's first parameter.

    A copy, since a network may write to what it is given (`x.sub_(mean)`).
    """
    placed = placed_for(model, inputs)
    return placed.clone() if placed is inputs else placed


def placed_for(model: nn.Module, inputs: Tensor) -> Tensor:
    """As `suited`, but no copy where the inputs suit already: not for the network to run on."""
    first = next((p for p in model.parameters() if p.is_floating_point()), None)
    return inputs if first is None else inputs.to(first.device, first.dtype)


def call(model: Callable[..., object], *inputs: object) -> object:
    """What the network returns for inputs that suit it; ModelError where it fails on them."""
    try:
        return model(*inputs)
    except (OneByOneError, MemoryError):
        raise
    except Exception as error:
        why = line_of(error)
        if isinstance(error, RuntimeError) and ("alloc" in why or "out of memory" in why):
            raise
        found = list(tensors_in(inputs))
        shapes = " and ".join("×".join(map(str, t.shape)) or "one number" for t in found)
        given = f"{'inputs' if len(found) > 1 else 'an input'} of shape {shapes}"
        packing = packing_in(model)
        if ALONE in why and found and len(found[0]) == 1:
            raise ModelError(
                "a batch of a single image is too little for BatchNorm to train on: give larger batches "
                "(drop_last=True of a DataLoader leaves out the last where it is one), or the network in "
                "evaluation mode, model.eval()"
            ) from error
        if type(error).__name__ == UNCAPTURED:
            raise ModelError(
                "the network has control flow of torch.cond or its like, whose layers cannot be watched "
                "while they run: export it (torch.export.save(torch.export.export(…), 'net.pt2')) and "
                "give net.pt2, where those layers stay as they are"
            ) from error
        if packing is not None:
            given = f"the inputs {packing.text}"
        if VIEWED in why:
            raise ModelError(
                f"the network fails on {given if found else 'what it is given'}: it takes a `view` of a "
                "tensor that lies otherwise in memory, as feature maps do in the format channels-last; "
                "`flatten` or `reshape` would run"
            ) from error
        raise ModelError(
            f"the network fails on {given if found else 'what it is given'} "
            f"({type(error).__name__}: {why}): give as many inputs as its forward takes, with the "
            f"channels and the size that suit it{as_bytes(packing)}"
        ) from error


def wants_gradients(error: BaseException | None) -> bool:
    """Whether a network failed because it takes gradients in its own forward, where none were kept."""
    while error is not None:
        if isinstance(error, RuntimeError) and any(said in str(error) for said in UNKEPT):
            return True
        error = error.__cause__
    return False


def output_of(model: nn.Module, inputs: Tensor) -> Tensor:
    """The network's first floating-point output for a batch."""
    return first_output(call(model, suited(model, inputs)))


def first_output(output: object) -> Tensor:
    """The first floating-point tensor in what a network returned; ModelError if it has none."""
    return float_outputs(output)[0]


def float_outputs(output: object) -> list[Tensor]:
    """The floating-point tensors in what a network returned, each once; ModelError if it has none."""
    found = {id(t): t for t in tensors_in(output) if t.is_floating_point()}
    if not found:
        raise ModelError(
            f"the network returns no floating-point tensor but {type(output).__name__}: there is nothing "
            "to keep close to"
        )
    return list(found.values())


def as_logits(output: Tensor) -> Tensor:
    """Log-probabilities where the rows (N, classes) are probabilities, whose softmax is themselves.

    A network that ends in a softmax gives no logits: taken for such, a sure prediction would look like
    an even one. All else comes back as it is.
    """
    if output.ndim != 2 or output.shape[1] < 2:
        return output
    rows = output.detach().double()
    near = (rows.sum(1) - 1).abs().amax() < 1e-3 if len(rows) else False
    if not near or rows.amin() < 0:
        return output
    return output.clamp_min(torch.finfo(output.dtype).tiny).log()


def are_scores(output: Tensor) -> bool:
    """Whether rows (N, K) look like scores of K classes, and not like K values each (a box, a pose).

    Cross-entropy moves scores against one another: their mean over the classes varies, from image to
    image, by less than a hundredth of what K values vary by of which none knows of the others. Where K
    is large, other losses may let it vary; there values have their largest at few places.
    """
    rows = output.detach().double()
    count, size = rows.shape
    if count < LEAST_ROWS or rows.logsumexp(1).abs().amax() < 1e-3:  # logarithms of probabilities
        return True
    together, each = rows.mean(1).var(), rows.var(0).mean()
    if not size * together > TOGETHER * each:  # NaN too
        return True
    places = len(rows.argmax(1).unique())
    return size > FEW and 8 * places > min(size, count)


def release_memory() -> None:
    """Give freed memory back to the system: glibc keeps it for each thread that had allocated it."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
