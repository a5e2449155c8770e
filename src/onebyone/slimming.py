"""slim: observe → plan → rewrite → verify, in one call."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from onebyone.data import Images, check_images, open_images
from onebyone.errors import BudgetError, DataError
from onebyone.planning import Budget, Plan
from onebyone.planning import plan as make_plan
from onebyone.preprocessing import Preprocess
from onebyone.rewriting import rewrite
from onebyone.statistics import Statistics, observe
from onebyone.tree import evaluating
from onebyone.verification import Verification, run, verify

CALIBRATION = 512
HELD_OUT_SHARE = 8
TRIALS = 7
Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Slimmed:
    """A lighter network of plain PyTorch layers, the plan it came from, and how it compares.

    `seconds` splits the wall time by step.
    """

    model: nn.Module
    plan: Plan
    verification: Verification
    example: Tensor
    preprocess: Preprocess | None = None
    classes: tuple[str, ...] | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    def save(self, folder: str | Path, *, force: bool = False) -> Path:
        """Write plan.json, weights.safetensors, the reports, model.pt2 and model.onnx to a folder.

        The folder appears whole or not at all; OutputError if it exists and is not a slimmed one
        (`force` replaces it all the same).
        """
        from onebyone.saving import save_folder

        return save_folder(self, Path(folder), force=force)


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
    latency: bool = True,
    progress: Progress | None = None,
) -> Slimmed:
    """Make a trained network lighter with 1×1 convolutions; the model itself is not touched.

    images: a tensor (N, C, H, W), a folder, an array file, a DataLoader or any iterable of batches,
    normalised as the network takes them; no labels are needed. macs, params: the fraction to keep;
    all that are given hold. max_drop: find the smallest network that loses at most this much top-1
    accuracy (0.01 is one point) on the held-out images, which need labels then. plan: apply this
    plan, perhaps edited, instead of making one under a budget.
    held_out: other images to verify on; by default those beyond `calibration` images, at least an
    eighth (half for max_drop), are held out of `images`; 0 holds none out.
    memory: bytes for the activations of the calibration pass.
    Raises BudgetError, DataError, ModelError or PlanError, each with one clear message.
    """
    clock = _Clock(progress or (lambda step, done: None))
    budget = check_budget(macs, params, max_drop, plan)
    with clock.step("read"):
        every = open_images(images, preprocess, seed=seed, classes=classes)
        if held_out is not None and not isinstance(held_out, int | float):
            held_out = open_images(held_out, preprocess, seed=seed, classes=classes)
        used, kept_back = set_apart(
            every, held_out, calibration=calibration, labels=max_drop is not None, seed=seed
        )
    with clock.step("observe"):
        statistics = observe(model, used.inputs, seed=seed, memory=memory, progress=clock.tell)
    trial = _Trial(model, used.inputs, statistics, memory, clock)
    notes: list[str] = []
    if max_drop is not None:
        chosen, lighter, notes = _search(trial, budget, max_drop, kept_back)
    elif plan is not None:
        chosen, lighter = plan, trial.rewritten(plan)
    else:
        assert budget is not None
        chosen, lighter = trial(budget)
    chosen = replace(chosen, source=source, notes=(*chosen.notes, *_told(every), *notes))
    with clock.step("verify"):
        result = verify(
            model, lighter, kept_back, example=used.inputs[:1], latency=latency,
            progress=clock.tell,
        )  # fmt: skip
    return Slimmed(
        lighter, chosen, result, used.inputs[:1].clone(), preprocess, classes, clock.seconds
    )


def check_budget(
    macs: float | None, params: float | None, max_drop: float | None, plan: Plan | None = None
) -> Budget | None:
    """The budget, or None where max_drop or a plan alone says how light; BudgetError if none fits."""
    if plan is not None:
        if (macs, params, max_drop) != (None, None, None):
            raise BudgetError(
                "a plan and a budget were given: the plan says already what becomes of each layer, "
                "so leave one of them out"
            )
        return None
    if max_drop is not None and not 0 <= max_drop < 1:
        raise BudgetError(
            f"max_drop={max_drop!r} is no loss of accuracy: give a fraction from 0 up to 1 "
            "(0.01 is one point)"
        )
    return None if (macs, params) == (None, None) and max_drop is not None else Budget(macs, params)


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
        raise DataError(
            "max_drop needs labels: give images with labels (a folder with one subfolder a class, "
            "or a tuple of images and labels), or a budget (macs, params) instead"
        )
    return used, kept_back


def _parted(
    images: Images, held_out: object, calibration: int, labels: bool, seed: int
) -> tuple[Images, Images | None]:
    if isinstance(held_out, Images):
        check_images(held_out, images.inputs[:1])
        return images.take(min(calibration, len(images)), seed), held_out
    if held_out == 0:
        return images.take(min(calibration, len(images)), seed), None
    if isinstance(held_out, int | float):
        used, kept_back = images.split(held_out, seed)
        return used.take(min(calibration, len(used)), seed), kept_back
    spare = max(len(images) - calibration, len(images) // (2 if labels else HELD_OUT_SHARE))
    return images.split(spare, seed) if spare else (images, None)


def _told(images: Images) -> tuple[str, ...]:
    """What there is to say about the images."""
    if not images.skipped:
        return images.notes
    first = "; ".join(images.skipped[:3])
    return (*images.notes, f"{len(images.skipped):,} image files could not be read: {first}")


class _Clock:
    """Seconds by step, and word of progress."""

    def __init__(self, progress: Progress) -> None:
        self.progress, self.seconds, self.now = progress, {}, ""
        self.seconds: dict[str, float] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        self.now = name
        self.progress(name, 0.0)
        began = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began
        self.progress(name, 1.0)

    def tell(self, done: float) -> None:
        self.progress(self.now, done)


@dataclass(frozen=True)
class _Trial:
    """Plan and rewrite under one budget."""

    model: nn.Module
    inputs: Tensor
    statistics: Statistics
    memory: int
    clock: _Clock

    def __call__(self, budget: Budget) -> tuple[Plan, nn.Module]:
        with self.clock.step("plan"):
            chosen = make_plan(self.model, self.statistics, budget)
        return chosen, self.rewritten(chosen)

    def rewritten(self, chosen: Plan) -> nn.Module:
        """The lighter network of a plan."""
        with self.clock.step("rewrite"):
            return rewrite(
                self.model, chosen, self.inputs, statistics=self.statistics, memory=self.memory,
                progress=self.clock.tell,
            )  # fmt: skip


def _search(
    trial: _Trial, budget: Budget | None, max_drop: float, held_out: Images | None
) -> tuple[Plan, nn.Module, list[str]]:
    """The smallest network within max_drop, by bisection over the MACs kept."""
    assert held_out is not None
    whole = _accuracy(trial.model, held_out)
    goal = whole - max_drop
    top = budget.macs if budget and budget.macs else 1.0
    params = budget.params if budget else None
    best: tuple[Plan, nn.Module, float] | None = None
    low, high = 0.0, top
    with trial.clock.step("search"):
        for index in range(TRIALS):
            kept = top if budget and index == 0 else (low + high) / 2
            try:
                chosen, lighter = trial(Budget(macs=kept, params=params))
            except BudgetError:
                low = kept
                continue
            reached = _accuracy(lighter, held_out)
            if reached >= goal - 1e-9:
                best, high = (chosen, lighter, reached), kept
            elif budget and index == 0:
                raise BudgetError(
                    f"macs={budget.macs}, params={budget.params} and max_drop={max_drop} cannot all "
                    f"hold: the accuracy falls from {whole:.2%} to {reached:.2%}"
                )
            else:
                low = kept
            if high - low < 0.01:
                break
    if best is None:
        raise BudgetError(
            f"no network within max_drop={max_drop} was found down from {high:.2f} of the MACs: the "
            f"original has {whole:.2%} on {len(held_out):,} held-out images; allow a larger drop"
        )
    note = (
        f"max_drop={max_drop}: top-1 {whole:.2%} → {best[2]:.2%} on {len(held_out):,} held-out images, "
        "which also chose the budget"
    )
    return best[0], best[1], [note]


@torch.inference_mode()
def _accuracy(model: nn.Module, images: Images) -> float:
    hits = 0
    with evaluating(model):
        for inputs, labels in images.batches(64):
            logits = run(model, inputs)
            if logits.ndim != 2:
                raise DataError(
                    f"max_drop needs a classifier: the output has shape {tuple(logits.shape)}, not "
                    "(N, classes)"
                )
            hits += int((logits.argmax(1).cpu() == labels).sum())
    return hits / len(images)
