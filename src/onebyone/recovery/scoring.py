"""How good a network is on held-out images: accuracy with labels, nearness to its teacher without."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from onebyone.data import Images
from onebyone.distributed import World
from onebyone.recovery.objective import away, check_labels, floats, is_logits
from onebyone.running import call, suited
from onebyone.tree import draw_from, evaluating, random_numbers

AT_ONCE = 128


@dataclass(frozen=True)
class Score:
    """On `images` held-out images: top-1 accuracy, the fraction put into the teacher's class, and the
    loss that training would have there without features, at temperature 1; None where not known."""

    images: int
    accuracy: float | None
    agreement: float | None
    loss: float

    @property
    def value(self) -> tuple[float, float]:
        """What is compared: more is better. Accuracy, else the loss; the loss between equals."""
        return (-self.loss if self.accuracy is None else self.accuracy, -self.loss)


def holds_up(later: Score, earlier: Sequence[Score]) -> bool:
    """Whether the latest weights are to be kept, beside scores that begin with the untrained ones.

    They have to be better than the untrained ones, and as good as the best as far as so many images
    can tell: within one standard error of its accuracy, √(a (1 − a) / n), the weights that were
    trained for longer are kept (the one-standard-error rule of Breiman et al., Classification and
    Regression Trees, 1984). Losses are compared as they are.
    """
    if not earlier:
        return True
    best = max(earlier, key=lambda score: score.value)
    if later.accuracy is None or best.accuracy is None or later.value <= earlier[0].value:
        return later.value > best.value
    return later.accuracy >= best.accuracy - sqrt(best.accuracy * (1 - best.accuracy) / best.images)


def score(model: nn.Module, teacher: nn.Module | None, images: Images, world: World) -> Score:
    """The score over all processes, each of which takes a share of the batches.

    The loss is the divergence from the teacher's prediction, or the labels' cross-entropy where there
    is no teacher, or the relative squared error of outputs that are no class logits; of several outputs
    the sum.
    """
    sums = torch.zeros(5, dtype=torch.float64)  # images, labeled right, labels, agreeing, loss
    with evaluating(model), torch.inference_mode():
        for _, (inputs, labels) in world.share(images.batches(AT_ONCE)):
            state = random_numbers()
            given = floats(call(model, suited(model, inputs)))
            draw_from(state)
            wanted = None if teacher is None else floats(call(teacher, suited(teacher, inputs)))
            labels = None if labels is None else labels.to(given[0].device)
            sums += _part(given, wanted, labels, len(inputs))
    world.add(sums)
    count, right, labeled, same, loss = sums.tolist()
    known = teacher is not None and same >= 0
    return Score(
        int(count), right / labeled if labeled else None, same / count if known else None,
        loss / count,
    )  # fmt: skip


def _part(
    outputs: tuple[Tensor, ...],
    wanted: tuple[Tensor, ...] | None,
    labels: Tensor | None,
    count: int,
) -> Tensor:
    """One batch's part of the sums; classes are those of the first output."""
    given, right, labeled, same, loss = outputs[0], 0, 0, 0.0, 0.0
    if is_logits(given) and labels is not None:
        check_labels(labels, given.shape[1])
        right, labeled = int((given.argmax(1) == labels).sum()), count
        loss = float(F.cross_entropy(given, labels, reduction="sum"))
    if wanted is not None:
        loss = count * float(away(outputs, wanted, 1.0, labels is not None))
        same = -torch.inf  # of classes there are none
        if is_logits(given):
            same = float((given.argmax(1) == wanted[0].argmax(1)).sum())
    return torch.tensor([count, right, labeled, same, loss], dtype=torch.float64)
