"""slim: observe → plan → rewrite → verify, in one call."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import prod
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from onebyone.clock import Clock, Progress
from onebyone.data import Images, as_classes, check_held_out, number_of, open_images
from onebyone.displaying import Displayed
from onebyone.distributed import World
from onebyone.errors import BudgetError, DataError, as_bytes, is_number, is_whole, seeded, whole
from onebyone.explaining.insight import Insight, look_into
from onebyone.folders import unread
from onebyone.pacing.pace import paced, runtime_named
from onebyone.plain import plain
from onebyone.planning import Planner
from onebyone.plans import Budget, Plan, as_plan, as_source
from onebyone.preprocessing import Preprocess, check_preprocess
from onebyone.progressive import schedule
from onebyone.recovering import HELD_OUT_SHARE, Recovering
from onebyone.recovery.recipe import Recipe, check_recipe
from onebyone.running import call, first_output, suited
from onebyone.searching import Found, Trial, smallest
from onebyone.several import as_called, packed, unpacked
from onebyone.statistics import observe
from onebyone.surveying import telling
from onebyone.tree import check_weights, evaluating, random_state, uncompiled
from onebyone.verification import Verification, verify

CALIBRATION = 512
LOOK_SHARE = 0.1  # of the time until then that plans at other budgets may take
LEAST = 64  # images that are read whatever the memory


@dataclass(frozen=True)
class Slimmed(Displayed):
    """A lighter network of plain PyTorch layers, the plan it came from, and how it compares.

    `example` is one image (1, C, H, W), or the tuple of a network's several inputs. `insight` is what the
    report shows besides; `seconds` splits the wall time by step.
    """

    model: nn.Module
    plan: Plan
    verification: Verification
    example: Tensor | tuple[Tensor, ...]
    preprocess: Preprocess | None = None
    classes: tuple[str, ...] | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    insight: Insight | None = None

    def save(self, folder: str | Path, *, force: bool = False) -> Path:
        """Write plan.json, weights.safetensors, the reports, model.pt2 and model.onnx to a folder.

        The folder appears whole or not at all; OutputError if it exists and is not a slimmed one
        (`force` replaces it all the same). A warning is logged where the network cannot be exported
        and the plan has no source: such a folder loads again only beside the original network.
        """
        from onebyone.saving import save_folder

        return save_folder(self, folder, force=force)


@torch.inference_mode(False)
def slim(
    model: nn.Module,
    images: object,
    *,
    macs: float | None = None,
    params: float | None = None,
    max_drop: float | None = None,
    plan: Plan | None = None,
    held_out: object = None,
    preprocess: Preprocess | None = None,
    classes: tuple[str, ...] | None = None,
    source: dict[str, Any] | None = None,
    calibration: int = CALIBRATION,
    memory: int = 2 << 30,
    seed: int = 0,
    latency: bool | float = True,
    runtime: str = "onnxruntime",
    threads: int = 1,
    steps: int = 1,
    finetune_epochs: float = 0.0,
    recipe: Recipe | None = None,
    progress: Progress | None = None,
) -> Slimmed:
    """Make a trained network lighter with 1×1 convolutions; the model itself is not touched.

    images: a tensor (N, C, H, W), a folder, an array file, a DataLoader or any iterable of batches,
    normalised as the network takes them; for a network of several inputs a dict of tensors, by the
    names of its forward's first parameters; no labels are needed. macs, params: the fraction to keep;
    all that are given hold. latency: a fraction (0.5) is a budget of time in `runtime` ("eager",
    "onnxruntime", "openvino", …) on so many `threads`, measured layer by layer and on the whole
    network; True and False say whether both networks are timed in PyTorch at the end. max_drop: find
    the smallest network that loses at most this much top-1 accuracy (0.01 is one point) on the
    held-out images, which need labels then. plan: apply this plan, perhaps edited, instead of making
    one under a budget.
    held_out: other images to verify on; by default those beyond `calibration` images, at least an
    eighth (half for max_drop), are held out of `images`; 0 holds none out.
    memory: bytes for the activations of the calibration pass, and for those of images that wait while a
    layer is solved (see `rewrite`); where `preprocess` says how large the
    images are, and from batches always, no more are taken than fit in half of it, as `open_images`
    chooses them.
    steps, finetune_epochs: slim in so many steps, and fine-tune for so many epochs of all images after
    each, as `recipe` says, towards the original and the labels where there are any.
    Raises BudgetError, DataError, ModelError, PlanError or TrainingError, each with one clear message.
    """
    check_weights(model=model)
    model = uncompiled(model)  # torch.compile would compile anew for every hook
    seed, memory = seeded(seed, DataError), as_bytes(memory, DataError)
    calibration = whole("calibration", calibration, 1, error=DataError)
    check_recipe(recipe)
    check_preprocess(preprocess)
    classes, source = as_classes(classes), as_source(source)
    clock = Clock(progress)
    timed = latency if isinstance(latency, bool) else True
    budget = check_budget(macs, params, max_drop, plan, None if latency is timed else latency)
    wanted = budget is not None and budget.latency is not None
    threads = whole("threads", threads, 1, error=BudgetError)
    runtime = runtime_named(runtime, installed=wanted)
    clocked = _Clocked(runtime, threads) if wanted else None
    if not is_whole(steps) or steps != 1 or finetune_epochs:
        if budget is None or max_drop is not None or clocked is not None:
            raise BudgetError(
                "steps and finetune_epochs go with a budget of macs and params alone, not with "
                "latency, max_drop or a plan: leave one of them out"
            )
        training = Recovering(
            model, images, held_out, preprocess, classes, recipe, calibration, memory,
            seed, clock,
        )  # fmt: skip
        found, kept_back, used, notes = training.slim(schedule(budget, steps, finetune_epochs))
        model = packed(model, used.packing)
        return _verified(
            model, found, notes, kept_back, used, timed, preprocess, classes, source, clock
        )
    with clock.step("read"):
        most = _most(preprocess, memory)
        reading: dict[str, Any] = {
            "limit": most, "seed": seed, "classes": classes, "memory": memory // 2,
        }  # fmt: skip
        every = open_images(images, preprocess, **reading)
        if held_out is not None and not is_number(held_out):
            held_out = open_images(held_out, preprocess, **reading)
        used, kept_back = set_apart(
            every, held_out, calibration=calibration, labels=max_drop is not None, seed=seed
        )
    with clock.step("observe"):
        padded = plain(packed(model, every.packing), used.inputs[:1])
        model = padded.model
        _check_class_names(model, used.inputs[:1], classes)
        used = used.led_by(telling(model, used.inputs))
        statistics = observe(model, used, seed=seed, memory=memory, progress=clock.tell)
    trial = Trial(model, used, statistics, memory, clock)
    found, note = _found(trial, budget, max_drop, plan, kept_back, clocked)
    notes = (*told(every), *padded.notes, *note)
    return _verified(
        model,
        found,
        notes,
        kept_back,
        used,
        timed,
        preprocess,
        classes,
        source,
        clock,
        trial.planner,
    )


def _verified(
    model: nn.Module, found: Found, notes: tuple[str, ...], held_out: Images | None, used: Images,
    latency: bool, preprocess: Preprocess | None, classes: tuple[str, ...] | None,
    source: dict[str, Any] | None, clock: Clock, planner: Planner | None = None,
) -> Slimmed:  # fmt: skip
    """The lighter network beside the original."""
    with clock.step("verify"):
        result = World.current().led(
            lambda: verify(
                model,
                found.model,
                held_out,
                example=used.inputs[:1],
                latency=latency,
                progress=clock.tell,
            )
        )
    insight = None
    if planner is not None and World.current().leads:
        with clock.step("look"):
            image = (held_out or used).inputs[:1]
            spent = LOOK_SHARE * sum(clock.seconds.values())
            insight = look_into(
                model, found.model, found.plan, planner, image, classes, seconds=min(1.0, spent),
                measured=found.measured,
            )  # fmt: skip
    plan = replace(found.plan, source=source, notes=(*found.plan.notes, *notes))
    example = as_called(model, suited(model, used.inputs[:1]))
    return Slimmed(
        unpacked(found.model), plan, result, example, preprocess, classes, clock.seconds, insight
    )


def _found(
    trial: Trial,
    budget: Budget | None,
    max_drop: float | None,
    plan: Plan | None,
    kept_back: Images | None,
    clocked: _Clocked | None,
) -> tuple[Found, tuple[str, ...]]:
    """The lighter network, and what there is to say about the search for it."""
    if max_drop is not None:
        assert kept_back is not None
        found, note = smallest(trial, budget, max_drop, kept_back)
        return found, (note,)
    notes: tuple[str, ...] = ()
    if clocked is not None:
        assert budget is not None
        plan, notes = clocked.planned(trial, budget)
    elif plan is None:
        assert budget is not None
        plan = trial.planned(budget)
    else:
        plan = trial.planner.renewed(trial.model, plan)
    return Found(plan, trial.rewritten(plan)), notes


@dataclass(frozen=True)
class _Clocked:
    """The runtime that a budget of latency is for."""

    runtime: str
    threads: int

    def planned(self, trial: Trial, budget: Budget) -> tuple[Plan, tuple[str, ...]]:
        """The plan that holds it, and what there is to say about that."""
        with trial.clock.step("pace"):
            found = paced(
                trial.model, trial.images.inputs[:1], budget,
                lambda goal, times: trial.planner.plan(goal, times=times),
                runtime=self.runtime, threads=self.threads, progress=trial.clock.tell,
            )  # fmt: skip
        said = found.words(str(found.table.key["version"]), self.threads)
        return found.plan, (said, *found.table.notes)


def check_budget(
    macs: float | None,
    params: float | None,
    max_drop: float | None,
    plan: Plan | None = None,
    latency: float | None = None,
) -> Budget | None:
    """The budget, or None where max_drop or a plan alone says how light; BudgetError if none fits."""
    if plan is not None:
        as_plan(plan)
        if (macs, params, max_drop, latency) != (None, None, None, None):
            raise BudgetError(
                "a plan and a budget were given: the plan says already what becomes of each layer, "
                "so leave one of them out"
            )
        return None
    if max_drop is not None and not (isinstance(max_drop, Real) and 0 <= max_drop < 1):
        raise BudgetError(
            f"max_drop={max_drop!r} is no loss of accuracy: give a fraction from 0 up to 1 "
            "(0.01 is one point)"
        )
    if max_drop is not None and latency is not None:
        raise BudgetError(
            "max_drop and a budget of latency cannot be searched together: give latency alone, or "
            "max_drop with macs or params"
        )
    if (macs, params) == (None, None) and max_drop is not None:
        return None
    return Budget(macs, params, latency)


def _check_class_names(model: nn.Module, image: Tensor, classes: tuple[str, ...] | None) -> None:
    """Raise DataError where the network gives another number of classes than there are names."""
    if classes is None:
        return
    with evaluating(model), torch.no_grad(), random_state(0):
        output = first_output(call(model, suited(model, image)))
    if output.ndim == 2 and output.shape[1] > 1 and output.shape[1] != len(classes):
        raise DataError(
            f"classes= has {len(classes)} names, and the network's output {output.shape[1]} numbers: give "
            "a name for each, in its order"
        )


def set_apart(
    images: Images,
    held_out: object = None,
    *,
    calibration: int = CALIBRATION,
    labels: bool = False,
    seed: int = 0,
) -> tuple[Images, Images | None]:
    """Calibration images and held-out ones, never the same.

    held_out: Images, or how many (a fraction, if float) of `images`, or None for those beyond
    `calibration`, at least an eighth; 0 for none. labels: the held-out ones need labels, and are at
    least a half.
    """
    used, kept_back = _parted(images, held_out, calibration, labels, seed)
    if labels and (kept_back is None or kept_back.labels is None):
        why = f" ({'; '.join(images.notes)})" if images.labels is None and images.notes else ""
        raise DataError(
            f"max_drop needs labels{why}: give images with labels (a folder with one subfolder a "
            "class, or a tuple of images and labels), or a budget (macs, params) instead"
        )
    return used, kept_back


def _parted(
    images: Images, held_out: object, calibration: int, labels: bool, seed: int
) -> tuple[Images, Images | None]:
    if isinstance(held_out, Images):
        check_held_out(held_out, images.inputs[:1], images.packing)
        return images.take(min(calibration, len(images)), seed), held_out
    if is_number(held_out):
        if not number_of(held_out, len(images)):
            return images.take(min(calibration, len(images)), seed), None
        used, kept_back = images.split(held_out, seed)
        return used.take(min(calibration, len(used)), seed), kept_back
    spare = max(len(images) - calibration, len(images) // (2 if labels else HELD_OUT_SHARE))
    return images.split(spare, seed) if spare else (images, None)


def _most(preprocess: Preprocess | None, memory: int) -> int | None:
    """How many images fit in half of the memory, as float32; None where their size is not known."""
    return None if preprocess is None else max(LEAST, memory // 2 // (4 * prod(preprocess.size)))


def told(images: Images) -> tuple[str, ...]:
    """What there is to say about the images: files that could not be read, labels that are none."""
    return (*images.notes, *unread(images.skipped))
