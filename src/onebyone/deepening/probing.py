"""A short probe: what each insertion promises, from the gradients that it gets before it has moved."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from onebyone.data import Images
from onebyone.deepening.insertions import Insertion, insert
from onebyone.errors import ModelError
from onebyone.recovery.objective import Objective
from onebyone.recovery.recipe import Recipe
from onebyone.running import suited
from onebyone.sensing import copying, overwrites
from onebyone.tree import deep_copy, evaluating, random_state, replace_modules

BATCHES, BATCH = 32, 128
LEAST = 12  # batches that means and spreads need, in both halves
# An identity 1×1 is at first a part of the convolution behind it, which can learn the same: what it adds
# is the activation between the two.
NEW = {"pointwise": 0.25}
# Half of the loss looks at labels, where there are any: depth is for what the reference cannot do.
RECIPE = Recipe(soft=0.5, features=0.0)


def probe(
    model: nn.Module,
    insertions: Sequence[Insertion],
    images: Images,
    teacher: nn.Module | None,
    *,
    recipe: Recipe = RECIPE,
    batches: int = BATCHES,
    batch: int = BATCH,
    seed: int = 0,
    progress: Callable[[float], None] | None = None,
) -> tuple[float, ...]:
    """The fall of the loss that the best step along each insertion's gradient promises, in nats per image.

    All are inserted at once into a copy of the network, which computes the same with them; nothing is
    trained. With u = ḡ·g, g the gradient of one insertion's parameters over a batch of B images and ḡ the
    mean of those before it, the loss along −ḡ falls at the rate E u and has the curvature ḡᵀFḡ ≈ B Var u,
    F the empirical Fisher matrix. The best step lowers it by (E u)² / (2 B Var u). So a score depends
    neither on the scale of the weights nor on the number of pixels, and what only fits the noise of its
    batches gets nothing. Every other batch goes into a second estimate; as far as the two do not agree on
    which insertions of a kind are better, a score is drawn to the mean of its kind (`reliability`). The
    model is not touched.
    Raises ModelError for a loss that is not finite.
    """
    if not insertions:
        return ()
    count = max(batches, LEAST)
    with random_state(seed) as generator, ExitStack() as borrowed:
        trial = _wide(deep_copy(model))
        made = insert(trial, tuple(insertions), seed)
        blocks = _in_order(made, insertions)
        trial = replace_modules(trial, made)
        _borrow(trial, blocks)
        if teacher is not None:
            teacher = borrowed.enter_context(_as_teacher(teacher))
        objective = borrowed.enter_context(Objective(trial, teacher, recipe, images.inputs[:1]))
        probes = [(_Probe(), _Probe()) for _ in blocks]
        order = _order(len(images), count * min(batch, len(images)), generator)
        copies = False
        for number, chosen in enumerate(order.chunk(count)):
            work = partial(_back, objective, trial, images, chosen, number)
            if number:
                with copying(copies):
                    work()
            else:
                copies = overwrites(work)
            for one, block in zip(probes, blocks, strict=True):
                one[number % 2].add(_gradient(block))
            if progress is not None:
                progress((number + 1) / count)
    size = min(batch, len(images))
    promises = [tuple(half.promise(size) for half in pair) for pair in probes]
    scores = dict.fromkeys(range(len(insertions)), 0.0)
    for kind in {i.kind for i in insertions}:
        own = [n for n, i in enumerate(insertions) if i.kind == kind]
        halves = torch.tensor([promises[n] for n in own], dtype=torch.float64)
        trust, mean = reliability(halves), float(halves.mean())
        for n, score in zip(own, halves.mean(1).tolist(), strict=True):
            scores[n] = NEW.get(kind, 1.0) * (trust * score + (1 - trust) * mean)
    return tuple(scores.values())


def reliability(halves: Float[Tensor, "insertions 2"]) -> float:
    """How far the mean of two estimates can be trusted, from 0 to 1: 2r / (1 + r), r their correlation.

    Spearman (1910) and Brown (1910), for a test of twice the length; 0 for fewer than three insertions.

    >>> reliability(torch.tensor([[1.0, 1.1], [2.0, 2.1], [4.0, 4.1]]))
    1.0
    """
    if len(halves) < 3 or bool((halves.std(0) == 0).any()):
        return 0.0
    r = float(torch.corrcoef(halves.T)[0, 1])
    return round(min(1.0, max(0.0, 2 * r / (1 + r))), 6) if r > 0 else 0.0


class _Probe:
    """One insertion's gradients: their sum so far, and each one's product with the mean before it."""

    def __init__(self) -> None:
        self.total: Tensor | None = None
        self.products: list[float] = []

    def add(self, gradient: Tensor) -> None:
        """The next batch's gradient."""
        if self.total is None:
            self.total = gradient.double()
            return
        seen = len(self.products) + 1
        self.products.append(float(self.total @ gradient.double()) / seen)
        self.total += gradient

    def promise(self, batch: int) -> float:
        """(E u)² / (2 B Var u), or 0 where the gradients do not agree."""
        u = torch.tensor(self.products, dtype=torch.float64)
        weight = torch.arange(1, len(u) + 1, dtype=torch.float64)
        # Weighted so, it is the mean over all pairs of batches.
        mean, variance = float((weight * u).sum() / weight.sum()), float(u[len(u) // 2 :].var())
        return mean**2 / (2 * batch * variance) if mean > 0 and variance > 0 else 0.0


def _order(images: int, wanted: int, generator: torch.Generator) -> Tensor:
    """Image numbers at random, every one before any comes again."""
    rounds = -(-wanted // images)
    return torch.cat([torch.randperm(images, generator=generator) for _ in range(rounds)])[:wanted]


def _wide(model: nn.Module) -> nn.Module:
    """In float32 where it was in half precision, whose gradients are too coarse to compare."""
    half = any(p.dtype in (torch.float16, torch.bfloat16) for p in model.parameters())
    return model.float() if half else model


class _as_teacher:
    """The teacher in eval mode and without gradients; a copy where its type must change."""

    def __init__(self, teacher: nn.Module) -> None:
        half = any(p.dtype in (torch.float16, torch.bfloat16) for p in teacher.parameters())
        self.teacher = _wide(deep_copy(teacher)) if half else teacher
        self.borrowed = evaluating(self.teacher)

    def __enter__(self) -> nn.Module:
        self.borrowed.__enter__()
        return self.teacher

    def __exit__(self, *failure: object) -> None:
        self.borrowed.__exit__(*failure)  # type: ignore[arg-type]


def _back(
    objective: Objective, model: nn.Module, images: Images, chosen: Tensor, number: int
) -> None:
    """The gradients of the loss on some of the images, on the device and in the dtype of the network."""
    model.zero_grad(set_to_none=True)
    inputs = suited(model, images.inputs[chosen])
    labels = None if images.labels is None else images.labels[chosen].to(inputs.device)
    value = objective.loss(inputs, labels).value
    _check(value, number)
    with torch.enable_grad():
        value.backward()


def _in_order(made: dict[str, nn.Module], insertions: Sequence[Insertion]) -> list[nn.Module]:
    """The new blocks, as the insertions are given."""
    taken: dict[str, int] = {}
    blocks = []
    for insertion in insertions:
        taken[insertion.place] = taken.get(insertion.place, 0) + 1
        blocks.append(list(made[insertion.place].children())[taken[insertion.place]])
    return blocks


def _borrow(trial: nn.Module, blocks: list[nn.Module]) -> None:
    """Only the blocks get gradients, and only their normalizations look at the batch."""
    trial.eval()
    for parameter in trial.parameters():
        parameter.requires_grad_(False)
    for block in blocks:
        block.train()
        block.requires_grad_(True)


def _gradient(block: nn.Module) -> Tensor:
    """The gradients of the parameters that have one that is not zero by construction, in a row."""
    zero = getattr(getattr(block, "body", None), "expand", block)
    parts = [torch.zeros_like(p) if p.grad is None else p.grad.detach() for p in zero.parameters()]
    return torch.cat([part.flatten().float().cpu() for part in parts])


def _check(loss: Tensor, number: int) -> None:
    if not bool(torch.isfinite(loss)):
        raise ModelError(
            f"the loss is {float(loss.detach())} at batch {number + 1} of the probe: check the images' "
            "normalization and the networks' weights, or run them in float32"
        )
