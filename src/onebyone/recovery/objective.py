"""What fine-tuning minimizes: distance from the original's outputs and features, and from labels."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from onebyone.distributed import World
from onebyone.errors import DataError, ModelError, TrainingError
from onebyone.recovery.features import Taps, block_ends, standing_for
from onebyone.recovery.recipe import Recipe
from onebyone.running import are_scores, as_logits, call, suited
from onebyone.tree import draw_from, evaluating, random_numbers, tensors_in

TINY = 1e-12


@dataclass(frozen=True)
class Loss:
    """One batch's loss, and how many of its images were put into the right class (None: unknown)."""

    value: Tensor
    right: Tensor | None


class Objective:
    """The loss of a student on a batch; use as a context manager, it hooks both networks.

    With p the softmax of logits divided by the temperature T (Hinton, Vinyals & Dean,
    "Distilling the Knowledge in a Neural Network", 2015), soft = s, feature weight = w:

        s T² KL(p_teacher ‖ p_student) + (1 − s) CE(labels, student) + w mean_b E‖f − f_b‖² / E‖f_b‖²

    over the block ends b that both networks have (Romero et al., "FitNets", 2015, without the
    regressors: names and shapes are equal, or the student has some of the channels; which ones is
    found on `images`, of which one is enough where no widths differ). Outputs that are not class
    logits (N, classes) are compared by E‖y − y_t‖² / E‖y_t‖² instead of the divergence; of several
    outputs all count alike.
    Raises TrainingError where there is neither a teacher nor labels to learn from.
    """

    def __init__(
        self, student: nn.Module, teacher: nn.Module | None, recipe: Recipe, images: Tensor
    ) -> None:
        self.student, self.teacher, self.recipe = student, teacher, recipe
        self.names: tuple[str, ...] = ()
        self.channels: dict[str, Tensor] = {}  # of the teacher, where it has more than the student
        if teacher is not None and recipe.features > 0:
            self._match(teacher, images)
        self.run: Callable[[Tensor], object] = student  # DDP puts its wrapper here
        self._taps: tuple[Taps, ...] = ()

    def _match(self, teacher: nn.Module, images: Tensor) -> None:
        """Find the block ends, and at those with fewer channels in the student which ones they are."""
        student, images = self.student, suited(self.student, images)
        names = block_ends(student, teacher, images[:1], narrower=True)
        if names == block_ends(student, teacher, images[:1]):
            self.names = names
            return
        with ExitStack() as stack, torch.no_grad():
            given = []
            for network in (student, teacher):
                taps = Taps(network, names)
                stack.callback(taps.remove)
                stack.enter_context(evaluating(network))
                call(network, suited(network, images))
                given.append(taps.take())
        kept = []
        for name in names:
            own, other = (features[name] for features in given)
            chosen = None
            if own.shape != other.shape:
                chosen = World.current().led(partial(standing_for, own, other))
                if chosen is None:
                    continue
                self.channels[name] = chosen.to(other.device)
            kept.append(name)
        self.names = tuple(kept)

    def __enter__(self) -> Objective:
        if self.names and self.teacher is not None:
            self._taps = (Taps(self.student, self.names), Taps(self.teacher, self.names))
        return self

    def __exit__(self, *_: object) -> None:
        for taps in self._taps:
            taps.remove()
        self._taps = ()

    def loss(self, inputs: Tensor, labels: Tensor | None) -> Loss:
        """The loss of a batch that suits the student; labels are (N,) class numbers or None."""
        wanted: tuple[Tensor, ...] = ()
        if self.teacher is not None:
            state = random_numbers()
            with torch.no_grad():
                wanted = floats(call(self.teacher, suited(self.teacher, inputs)))
            draw_from(state)
        given = floats(call(self.run, inputs))
        value = self._outputs(given, wanted, labels)
        if self._taps and self.recipe.features > 0:
            own, others = (taps.take() for taps in self._taps)
            for name, chosen in self.channels.items():
                if name in others:
                    others[name] = others[name][:, chosen]
            parts = [distance(own[n], others[n]) for n in self.names if n in own and n in others]
            if parts:
                value = value + self.recipe.features * torch.stack(parts).mean()
        return Loss(value, _right(given[0], labels))

    def _outputs(
        self, given: tuple[Tensor, ...], wanted: tuple[Tensor, ...], labels: Tensor | None
    ) -> Tensor:
        """The part of the loss that looks at outputs."""
        logits = given[0]
        hard = None
        if labels is not None and is_logits(logits):
            check_labels(labels, logits.shape[1])
            hard = F.cross_entropy(logits, labels, label_smoothing=self.recipe.smoothing)
        if not wanted:
            if hard is None:
                raise TrainingError(
                    "there is nothing to learn from: give teacher= (the original network), or images "
                    "with labels for a classifier"
                )
            return hard
        soft = away(given, wanted, self.recipe.temperature, hard is not None)
        share = self.recipe.soft
        return soft if hard is None else share * soft + (1 - share) * hard


def away(
    given: tuple[Tensor, ...], wanted: tuple[Tensor, ...], temperature: float, labeled: bool
) -> Tensor:
    """How far outputs are from those wanted: the sum of divergences of logits and distances of others.

    labeled: there are labels, so what may be logits is.
    A network may give more in training than in eval mode: where the numbers of outputs differ, the first
    is in both. Others of different shapes, as lists of boxes are, cannot be compared and do not count.
    """
    check_alike(given[0], wanted[0])
    both = len(given) if len(given) == len(wanted) else 1
    return torch.stack([
        _divergence(y, t, temperature)
        if is_logits(y) and (labeled or are_scores(t))
        else distance(y, t)
        for y, t in zip(given[:both], wanted[:both], strict=True)
        if y.shape == t.shape
    ]).sum()  # fmt: skip


def floats(output: object) -> tuple[Tensor, ...]:
    """The floating-point tensors of an output, in float32; of probabilities of classes the logits."""
    found = tuple(as_logits(t.float()) for t in tensors_in(output) if t.is_floating_point())
    if not found:
        raise ModelError(
            f"the network returns no floating-point tensor but {type(output).__name__}: there is nothing "
            "to train on"
        )
    return found


def is_logits(output: Tensor) -> bool:
    """Whether an output is class logits (N, classes)."""
    return output.ndim == 2 and output.shape[1] > 1


def _right(output: Tensor, labels: Tensor | None) -> Tensor | None:
    if labels is None or not is_logits(output):
        return None
    return (output.detach().argmax(1) == labels).sum()


def _divergence(logits: Tensor, wanted: Tensor, temperature: float) -> Tensor:
    """T² KL(p_wanted ‖ p), the mean over the batch, nats."""
    p = F.log_softmax(wanted / temperature, 1)
    q = F.log_softmax(logits / temperature, 1)
    return temperature**2 * F.kl_div(q, p, reduction="batchmean", log_target=True)


def distance(given: Tensor, wanted: Tensor) -> Tensor:
    """E‖y − t‖² / E‖t‖²."""
    given, wanted = given.float(), wanted.float()
    return F.mse_loss(given, wanted) / wanted.square().mean().clamp_min(TINY)


def check_labels(labels: Tensor, classes: int) -> None:
    """Raise DataError where a label is no class of the network's."""
    odd = (labels >= classes).nonzero()
    if len(odd):
        raise DataError(
            f"a label is {int(labels.max())}, but the network has {classes} classes: labels from 0 to "
            f"{classes - 1} are expected, in the network's own order ({len(odd):,} of {len(labels):,} "
            "are none)"
        )


def check_alike(given: Tensor, wanted: Tensor) -> None:
    """Raise TrainingError where the two outputs cannot be compared."""
    if given.shape[1:] == wanted.shape[1:] and len(given) != len(wanted):
        raise TrainingError(
            f"for the same images the network returns {len(given):,} rows and its teacher {len(wanted):,}, "
            "as detectors do whose boxes are those found: outputs that differ in number cannot be drawn "
            "together; train what it returns before it selects, with a loss of your own, and deepen it "
            "without images"
        )
    if given.shape != wanted.shape:
        raise TrainingError(
            f"the network's output has shape {tuple(given.shape)} and its teacher's "
            f"{tuple(wanted.shape)}: give the original that the network was made from"
        )
