"""What is sent back from a network's outputs, and what stands in where none of it arrives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from statistics import median

import torch
from torch import Tensor

from onebyone.errors import ModelError, line_of
from onebyone.running import are_scores, as_logits, float_outputs

TEMPERATURE = 2.0  # training images are often known by heart: their predictions say little at 1
# PyTorch's words on what has no gradient, or has lost what it would be worked out from.
UNGRADED = (
    "modified by an inplace operation",
    "not implemented",
    "must implement",
    "Inference tensors",
)


def overwrites(work: Callable[[], object]) -> bool:
    """Do a forward and a backward pass; whether that goes only while what is overwritten is copied.

    Some networks write into a tensor that their gradients need, such as `y[..., :2] *= 2` behind a sigmoid.
    """
    try:
        work()
        return False
    except (RuntimeError, ModelError) as error:
        if UNGRADED[0] not in str(error):
            raise
    with copying(True):
        work()
    return True


def copying(whether: bool) -> AbstractContextManager[object]:
    """Copy what a network overwrites that its gradients need, which takes time and memory."""
    return torch.autograd.graph.allow_mutation_on_saved_tensors() if whether else nullcontext()


class NoGradientError(Exception):
    """The network computes something that gradients cannot be taken of."""


def send_back(output: object, images: int, generator: torch.Generator) -> None:
    """Send the loss's gradient back from every floating-point output of a network for some images.

    Logits (images, classes) have the Fisher information as their metric. Any other output has the
    plain one where it is alone; beside others, or where it is a row of values an image (`are_scores`),
    it is scaled so that its relative error counts, as much as a nat of the logits' (E‖f − E f‖² is 1
    for one image). Outputs without elements, or that do not
    depend on the layers, send nothing.
    Raises ModelError where an output has NaN or infinite values, or none is floating-point,
    NoGradientError where gradients cannot be taken.
    """
    found = float_outputs(output)
    if not all(t.isfinite().all() for t in found):
        raise ModelError(
            "the model's output has NaN or infinite values on the calibration images: check its "
            "weights and the images' normalisation"
        )
    sending = [
        as_logits(t) if _logits(t, images) else t for t in found if t.requires_grad and t.numel()
    ]
    if not sending:
        return
    drawn = [direction(t.detach(), generator, images) for t in sending]
    if len(sending) > 1 or (sending[0].ndim == 2 and not _logits(sending[0], images)):
        drawn = [d * _scale(t, images) for t, d in zip(sending, drawn, strict=True)]
    try:
        torch.autograd.backward(sending, [d.to(t) for t, d in zip(sending, drawn, strict=True)])
    except RuntimeError as error:
        if not any(words in str(error) for words in UNGRADED):
            raise
        raise NoGradientError(
            f"{type(error).__name__}: {line_of(error).partition(': [')[0]}"
        ) from error


def direction(output: Tensor, generator: torch.Generator, images: int | None = None) -> Tensor:
    """The gradient at the output: of random signs in the Fisher's metric for logits, else normal."""
    if not _logits(output, images):
        return torch.randn(output.shape, generator=generator)
    prediction = (output.double().cpu() / TEMPERATURE).softmax(1)
    signs = torch.randint(0, 2, prediction.shape, generator=generator).double() * 2 - 1
    signed = prediction.sqrt() * signs
    return signed - prediction * signed.sum(1, keepdim=True)


def _logits(output: Tensor, images: int | None) -> bool:
    """Whether an output has a row of classes' scores for each image; lists of boxes have other lengths."""
    row_each = output.ndim == 2 and output.shape[1] > 1 and images in (None, len(output))
    return row_each and are_scores(output)


def _scale(output: Tensor, images: int) -> float:
    """What makes the squared error of an output relative to what it varies by, for one image."""
    if _logits(output, images):
        return 1.0
    values = output.detach().double()
    varies = float((values - values.mean()).square().sum())
    return (images / varies) ** 0.5 if varies > 0 else 0.0


def stand_in(
    gradients: Mapping[str, Tensor], covariance: Callable[[str], Tensor], images: int
) -> tuple[str, ...]:
    """Fill, in place, the moments Σ g gᵀ of layers that no gradient reached; their names.

    The network cuts its graph before them, or returned nothing on these images. They count as much as
    the median of the others, by what the loss rises if all of the output's variance is lost (1 nat
    where there are no others), with the same weight for each of their channels.
    """
    none = tuple(name for name, found in gradients.items() if not found.any())
    if not none:
        return ()
    felt = [
        float((found.double() * covariance(name)).sum()) / images
        for name, found in gradients.items()
    ]
    known = [loss for loss in felt if loss > 0]
    for name in none:
        varies = float(covariance(name).diagonal(dim1=-2, dim2=-1).sum())
        if varies > 0:
            weight = images * (median(known) if known else 1.0) / varies
            gradients[name].diagonal(dim1=-2, dim2=-1).fill_(weight)
    return none
