"""deepen: spend what slimming saved on depth, without changing an output before training."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from onebyone.clock import Clock, Progress
from onebyone.data import Images, as_classes, check_held_out, check_images, number_of, open_images
from onebyone.deepening.candidates import KINDS, WIDTH, candidates, inserted, same
from onebyone.deepening.filling import Room, by_gain, by_rule
from onebyone.deepening.insertions import INSERTIONS, Insertion
from onebyone.deepening.probing import BATCH, BATCHES, LEAST, RECIPE, probe
from onebyone.errors import (
    BudgetError,
    DataError,
    LostError,
    ModelError,
    TrainingError,
    is_number,
    names_in,
    seeded,
    whole,
)  # fmt: skip
from onebyone.loading.slimmed import as_source
from onebyone.measurement.counting import count
from onebyone.plans import Budget, Plan, as_budget
from onebyone.preprocessing import Preprocess, check_preprocess
from onebyone.recovery.fine_tuning import FineTuned, fine_tune
from onebyone.recovery.objective import check_labels
from onebyone.recovery.recipe import Recipe, check_recipe
from onebyone.recovery.status import Status
from onebyone.running import call, first_output, placed_for, suited
from onebyone.several import Packing, as_called, pack_example, packed, unpacked
from onebyone.tree import check_weights, evaluating, guarded, tensors_in
from onebyone.verification import Verification, verify

# Features are not matched: the reference is to be surpassed, not copied.
TUNING = Recipe(features=0.0)
RULE = (
    "no data were given, so nothing was measured: insertions are spread evenly over the network, in "
    "each round those with the cheapest MACs for a parameter first"
)
HELD_OUT_SHARE = 20
SLOWER = 1.1  # of the original's time, from which on a note says so
NOWHERE = {  # why a kind of insertion finds no place
    "bottleneck": "no module of it gives a feature map (N, C, H, W)",
    "pointwise": "no feature map comes out of a ReLU, ReLU6 or Hardtanh",
    "prelu": "no factorized layer has two halves without an activation between them",
}
NOTHING_GAINED = (
    "the probe measured no gain anywhere, so insertions are spread by the rule instead: "
)


@dataclass(frozen=True)
class Deepened:
    """A deeper network of plain PyTorch layers, and the plan of what was inserted, where and why.

    `verification` compares it with the reference; `tuned` is the fine-tuning, None where there was none;
    `example` is one image (1, C, H, W), or the tuple of a network's several inputs.
    """

    model: nn.Module
    plan: Plan
    verification: Verification
    example: Tensor | tuple[Tensor, ...]
    preprocess: Preprocess | None = None
    classes: tuple[str, ...] | None = None
    tuned: FineTuned | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    def save(self, folder: str | Path, *, force: bool = False) -> Path:
        """Write plan, weights, reports, model.pt2 and model.onnx to a folder, as `Slimmed.save` does."""
        from onebyone.saving import save_folder

        return save_folder(self, folder, force=force)


@torch.inference_mode(False)
def deepen(
    model: nn.Module,
    example: Tensor | tuple[Tensor, ...],
    budget: Budget,
    *,
    reference: nn.Module,
    data: object = None,
    held_out: object = None,
    epochs: float = 0,
    recipe: Recipe | None = None,
    kinds: tuple[str, ...] = KINDS,
    width: float = WIDTH,
    batches: int = BATCHES,
    preprocess: Preprocess | None = None,
    classes: tuple[str, ...] | None = None,
    source: dict[str, Any] | Plan | None = None,
    latency: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
    status: Callable[[Status], None] | None = None,
) -> Deepened:
    """Insert blocks that change no output into a copy of the network, until the budget is used up.

    model: the lighter network; example: an input (1, C, …) of its, or a tuple of several; budget:
    fractions of the MACs and parameters of `reference`, the original network. data: images, with labels
    or without, anything that `open_images` takes: a probe on some tens of batches decides where depth is
    worth most for its MACs; without data a rule that the plan states. kinds: which insertions may
    be used; width: hidden channels of a bottleneck, as a part of the channels that it reads.
    epochs: fine-tune afterwards on `data`, with the reference as the teacher and by `recipe`.
    held_out: other images to compare on and to choose the best weights by; by default a twentieth of the
    data is set apart; a number for so many of the data (a fraction, if float), 0 for none.
    source: what `load` said of the network (`Loaded.source`), or the plan that made it, so that a saved
    folder can be loaded again.
    Raises BudgetError for a budget of time or one that is used up already, ModelError where nothing can
    be inserted, DataError for images or labels that do not fit.
    """
    check_weights(model=model, reference=reference)
    seed, clock = seeded(seed, DataError), Clock(progress)
    check_preprocess(preprocess)
    classes = as_classes(classes)
    as_budget(budget)
    check_recipe(recipe)
    kinds = _known(kinds, width)
    batches = whole("batches", batches, 1, error=DataError)
    if epochs and data is None:
        raise DataError("there are no images to fine-tune on: give data=, or epochs=0")
    with clock.step("read"):
        images = None if data is None else open_images(data, preprocess, classes=classes)
        image, packing = _image(model, example, images)
        images, others = _parted(images, held_out, preprocess, classes, seed)
        if others is not None:
            check_held_out(others, image, packing)
    model, reference = packed(model, packing), packed(reference, packing)
    with ExitStack() as borrowed:
        for network in (model, reference):
            borrowed.enter_context(guarded(network))
            borrowed.enter_context(evaluating(network))
        with clock.step("plan"):
            _check_images(model, image, images)
            room, costs, limits = _room(model, reference, image, budget)
            found = candidates(model, image, kinds=kinds, widths=(width,))
            _check_any(found, kinds)
        notes = (RULE,)
        if images is not None:
            with clock.step("probe"):
                found = _scored(model, found, images, reference, batches, seed, clock.tell)
            notes = (_probed(images, max(batches, LEAST)),)
        chosen, notes = _chosen(found, room, notes)
        _check_same(model, image, chosen, seed)
    deeper = inserted(model, chosen, seed)
    plan = Plan(
        budget, (), tuple(image.shape[1:]), *costs, seed=seed, source=as_source(source),
        notes=notes, insertions=(*chosen, *_left(found, chosen)), reference=limits,
    )  # fmt: skip
    tuned = None
    if epochs:
        with clock.step("finetune"):
            assert images is not None
            try:
                tuned = fine_tune(
                    deeper, images, teacher=reference, epochs=epochs,
                    recipe=recipe or TUNING.fitting(len(images)),
                    held_out=0 if others is None else others, progress=status,
                )  # fmt: skip
            except TrainingError as error:
                if isinstance(error, LostError) or error.best is None:
                    raise
                tuned = error.best
            deeper = tuned.model
            if tuned.ended in ("interrupted", "diverged"):
                what = "was" if tuned.ended == "interrupted" else "ended:"
                plan = replace(plan, notes=(*plan.notes, f"the training {what} {tuned.why}"))
    with clock.step("verify"):
        result = verify(
            reference, deeper, others, example=image, latency=latency, progress=clock.tell
        )
    plan = replace(plan, notes=(*plan.notes, *_slower(result, plan)))
    own = as_called(model, suited(model, image))
    return Deepened(unpacked(deeper), plan, result, own, preprocess, classes, tuned, clock.seconds)


def _slower(result: Verification, plan: Plan) -> tuple[str, ...]:
    """A note where the deeper network takes longer than the original, though no more MACs."""
    if not result.before.latency or not result.after.latency:
        return ()
    was, now = result.before.latency[0], result.after.latency[0]
    times = now.median_ms / was.median_ms
    if times < SLOWER:
        return ()
    added = sum(not i.refused for i in plan.insertions)
    return (
        f"for one image it takes ×{times:.2f} of the original's time in {now.runtime}, at "
        f"×{result.after.macs / max(1, result.before.macs):.2f} of its MACs: each of the {added} new "
        "blocks takes time beyond its multiply-accumulates; a smaller budget (macs=, --macs) inserts "
        "fewer, and onebyone bench times other runtimes",
    )


def _known(kinds: tuple[str, ...], width: float) -> tuple[str, ...]:
    kinds = tuple(names_in(kinds) if isinstance(kinds, str) else kinds)
    for kind in kinds:
        if kind not in INSERTIONS:
            raise ModelError(f"there is no insertion {kind!r}: there are {', '.join(INSERTIONS)}")
    if not is_number(width) or not 0 < width <= 1:
        raise ModelError(f"width={width!r} does not fit: give a part of the channels, such as 0.25")
    if not kinds:
        raise ModelError(f"no kind of insertion was given: there are {', '.join(INSERTIONS)}")
    return kinds


def _image(
    model: nn.Module, example: object, images: Images | None
) -> tuple[Tensor, Packing | None]:
    """One image, or several inputs side by side as the images have them."""
    packing = None if images is None else images.packing
    if isinstance(example, tuple) and all(
        isinstance(x, Tensor) and x.ndim for x in tree_leaves(example)
    ):
        return pack_example(model, tree_map_only(Tensor, lambda x: x[:1], example), packing)
    if packing is not None:
        raise DataError(f"the inputs are {packing.text}: give a tuple of them as the example, too")
    if not isinstance(example, Tensor) or not 3 <= example.ndim <= 5:
        said = tuple(example.shape) if isinstance(example, Tensor) else type(example).__name__
        raise DataError(f"the example is {said}: one image (1, C, H, W) is expected")
    return example[:1], None


def _parted(
    images: Images | None,
    held_out: object,
    preprocess: Preprocess | None,
    classes: tuple[str, ...] | None,
    seed: int,
) -> tuple[Images | None, Images | None]:
    """Images to work with, and others to compare on."""
    if is_number(held_out):
        apart = 0 if images is None else number_of(held_out, len(images))
        return (images, None) if images is None or not apart else images.split(apart, seed)
    if held_out is not None:
        return images, open_images(held_out, preprocess, classes=classes)
    if images is None or len(images) < 2 * HELD_OUT_SHARE:
        return images, None
    return images.split(len(images) // HELD_OUT_SHARE, seed)


def _check_images(model: nn.Module, image: Tensor, images: Images | None) -> None:
    if images is None:
        return
    check_images(images, image)
    with torch.no_grad():
        output = first_output(call(model, suited(model, image)))
    if images.labels is not None and output.ndim == 2 and output.shape[1] > 1:
        check_labels(images.labels, output.shape[1])


def _room(
    model: nn.Module, reference: nn.Module, image: Tensor, budget: Budget
) -> tuple[Room, tuple[int, int], tuple[int, int]]:
    """What may be added, the network's own costs, and the reference's; BudgetError where nothing may."""
    if budget.latency is not None:
        raise BudgetError(
            f"latency={budget.latency} is no budget to deepen to: layers are inserted by their MACs and "
            "parameters. Give macs=, params= or both, and measure the result"
        )
    own, whole = (
        (counted.macs, counted.params)
        for counted in (count(m, suited(m, image)) for m in (model, reference))
    )
    left: list[int | None] = []
    for name, part, cost, most in zip(
        ("macs", "params"), (budget.macs, budget.params), own, whole, strict=True
    ):
        if part is None:
            left.append(None)
            continue
        limit = int(part * most)
        word = {"macs": "MACs", "params": "parameters"}[name]
        if cost >= limit:
            raise BudgetError(
                f"the budget {name}={part} is used up already: it is {limit:,} {word} of the "
                f"reference's {most:,}, and the network has {cost:,}. Give a larger budget, or slim "
                "the network first"
            )
        left.append(limit - cost)
    return Room(left[0], left[1]), own, whole


def _check_any(found: tuple[Insertion, ...], kinds: tuple[str, ...]) -> None:
    if any(not i.refused for i in found):
        return
    reasons = list(
        dict.fromkeys(f"{i.place or '(the network)'}: {i.reason}" for i in found if i.reason)
    )
    raise ModelError(
        "nothing can be inserted into this network: "
        + ("; ".join(reasons[:3]) + (f"; and {len(reasons) - 3} more" if reasons[3:] else "")
           if reasons else "; ".join(NOWHERE[kind] for kind in kinds))
    )  # fmt: skip


def _scored(
    model: nn.Module,
    found: tuple[Insertion, ...],
    images: Images,
    reference: nn.Module,
    batches: int,
    seed: int,
    tell: Callable[[float], None],
) -> tuple[Insertion, ...]:
    """With the score that the probe gave to each."""
    usable = [i for i in found if not i.refused]
    scores = probe(
        model, usable, images, reference, recipe=RECIPE, batches=batches, seed=seed, progress=tell
    )
    scored = {id(i): replace(i, score=s) for i, s in zip(usable, scores, strict=True)}
    return tuple(scored.get(id(i), i) for i in found)


def _probed(images: Images, batches: int) -> str:
    what = "labels and the reference's outputs" if images.labels is not None else "the reference"
    return (
        f"places were chosen by a probe of {batches} batches of {min(BATCH, len(images))} images, "
        f"towards {what}: the score is the fall of the loss that the best step along its gradient promises"
    )


def _chosen(
    found: tuple[Insertion, ...], room: Room, notes: tuple[str, ...]
) -> tuple[tuple[Insertion, ...], tuple[str, ...]]:
    """The insertions within the budget, with their reasons, and notes."""
    scored = any(i.score is not None for i in found)
    chosen = by_gain(found, room) if scored else []
    if scored and not chosen and not any((i.score or 0) > 0 for i in found):
        notes = (*notes, NOTHING_GAINED + RULE.split(": ", 1)[1])
        scored = False
    if not scored:
        chosen = by_rule(found, room)
    if not chosen:
        least = min((i for i in found if not i.refused), key=lambda i: (i.macs, i.params))
        raise BudgetError(
            f"what the budget leaves ({_left_over(room)}) is less than the smallest insertion costs "
            f"({least.macs:,} MACs and {least.params:,} parameters at {least.place!r}): give a larger "
            "budget"
        )
    why = "most gain for its cost among those left" if scored else "next by the rule"
    return tuple(replace(i, reason=why) for i in chosen), notes


def _left_over(room: Room) -> str:
    parts = ((room.macs, "MACs"), (room.params, "parameters"))
    return " and ".join(f"{n:,} {word}" for n, word in parts if n is not None)


def _left(found: tuple[Insertion, ...], chosen: tuple[Insertion, ...]) -> tuple[Insertion, ...]:
    """What is not inserted, each with why."""
    taken = {(i.place, i.kind) for i in chosen}
    left: dict[tuple[str, str], Insertion] = {}
    for i in found:
        if (i.place, i.kind) in taken:
            continue
        reason = i.reason
        if not i.refused and i.score is None:
            reason = f"{INSERTIONS[i.kind].title}: others came first by the rule"
        elif not i.refused and (i.score or 0) <= 0:
            reason = f"{INSERTIONS[i.kind].title}: the probe measured no gain"
        elif not i.refused:
            reason = f"{INSERTIONS[i.kind].title}: others gain more for their cost"
        refused = Insertion(
            i.place, "refuse", i.channels, i.channels, positions=i.positions, score=i.score,
            reason=reason,
        )  # fmt: skip
        left[i.place, reason] = refused
    return tuple(left.values())


def _check_same(model: nn.Module, image: Tensor, chosen: tuple[Insertion, ...], seed: int) -> None:
    """ModelError should the outputs of the deeper network differ."""
    inputs = placed_for(model, image)
    with torch.no_grad():
        networks = (model, inserted(model, chosen, seed))
        before, after = (list(tensors_in(call(m, inputs.clone()))) for m in networks)
    if not same(before, after):
        raise ModelError(
            "the network's outputs changed when blocks were inserted that compute nothing yet: its "
            "control flow depends on more than its modules' outputs"
        )
