"""fine_tune: bring a lighter network back to its original's accuracy by a short training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from onebyone.data import Images, as_classes, check_held_out, open_images
from onebyone.distributed import World, together
from onebyone.errors import LostError, OutputError, TrainingError, is_number
from onebyone.files import check_file
from onebyone.folders import unread
from onebyone.measurement.preparing import backward, to_channels_last, total
from onebyone.measurement.timing import interleave
from onebyone.preprocessing import Preprocess, check_preprocess
from onebyone.recovery.normalization import NORMS
from onebyone.recovery.objective import Objective, check_labels, floats, is_logits
from onebyone.recovery.recipe import Recipe, check_recipe
from onebyone.recovery.scoring import Score
from onebyone.recovery.status import Status
from onebyone.recovery.supply import Supply, open_supply
from onebyone.recovery.training import Measured, Training, share
from onebyone.report.numbers import small
from onebyone.report.words import held_out, images
from onebyone.running import call, suited
from onebyone.sensing import copying, overwrites
from onebyone.several import Packing, packed
from onebyone.tree import check_weights, deep_copy, evaluating, random_numbers_kept

Ended = Literal["done", "early", "interrupted", "diverged"]
CALM_IMAGES, CALM_BYTES = 2048, 256 << 20
TRIED = 32  # images of the trial batch
WORTH = 0.9  # of float32's time: what bfloat16 must take at the most to be chosen
ROUNDS = 4
COPIED = (
    "the network overwrites what its gradients need: that is copied at every step, which takes time and "
    "memory"
)
PLAIN_FORMAT = (
    "the network does not run in the memory format channels-last (a `view` of a feature map does not: "
    "`flatten` or `reshape` would), so it is trained in the plain one, which may take longer"
)


@dataclass(frozen=True)
class FineTuned:
    """A fine-tuned network and how it got there.

    `model` has the best weights of `measured`, whose first entry is before any training, or later
    ones that are as good as can be told (`holds_up`); without held-out images the last ones. `best`
    is their place there. `ended` is done, early (no better in a
    while), interrupted or diverged, and `why` says more. `images` counts image passes of training;
    `held_out` are the images that chose the weights.
    """

    model: nn.Module
    measured: tuple[Measured, ...]
    best: int
    recipe: Recipe
    precision: str
    images: int
    seconds: float
    ended: Ended = "done"
    why: str = ""
    notes: tuple[str, ...] = ()
    held_out: Images | None = None

    @property
    def before(self) -> Score | None:
        """The score before training, None without held-out images."""
        return self.measured[0].score

    @property
    def after(self) -> Score | None:
        """The score of what was kept."""
        return self.measured[self.best].score

    @property
    def words(self) -> str:
        """What it did, for people."""
        said = (
            f"fine-tuned on {images(self.images)} in all ({self.precision}, {self.seconds:.0f} s)"
        )
        before, after, kept = self.before, self.after, self.measured[self.best]
        if before is None or after is None:
            return said
        what, values = "loss", (small(before.loss), small(after.loss))
        for name in ("agreement", "accuracy"):
            pair = (getattr(before, name), getattr(after, name))
            if None not in pair:
                what, values = name, tuple(f"{100 * v:.2f} %" for v in pair)
        ended = "" if self.best == len(self.measured) - 1 else f", best after epoch {kept.epoch:g}"
        return f"{said}: {what} {values[0]} → {values[1]} on {held_out(before.images)}{ended}"


@torch.inference_mode(False)
def fine_tune(
    model: nn.Module,
    data: object,
    *,
    teacher: nn.Module | None = None,
    epochs: float | None = None,
    held_out: object = None,
    recipe: Recipe | None = None,
    preprocess: Preprocess | None = None,
    classes: tuple[str, ...] | None = None,
    checkpoint: str | Path | None = None,
    resume: bool = False,
    progress: Callable[[Status], None] | None = None,
) -> FineTuned:
    """Train a copy of the network for a few epochs, towards its teacher and towards labels.

    data: anything that `open_images` takes; labels are used where there are any. A folder's files
    are read as they are needed, a DataLoader is run through once an epoch; a dict is of several inputs.
    teacher: the original network; its outputs and the features at its block ends are what the copy is
    drawn to.
    held_out: other images to choose the best weights on, or how many of the data (a fraction, if float),
    0 for none; by default a twentieth of the data is set apart, if it is not a loader.
    epochs overrides that of the recipe.
    checkpoint: a file to write the state to after each measurement, every five minutes and on an
    interrupt; resume: go on from it, on a CPU to the same bits as without the break. On an interrupt
    what is best so far is returned. Under torchrun the work is shared (`onebyone.distributed`).
    Raises TrainingError, DataError or ModelError; where the loss diverges, the error's `best` is the
    FineTuned reached before.
    """
    check_weights(model=model)
    if teacher is not None:
        check_weights(teacher=teacher)
    check_preprocess(preprocess)
    classes = as_classes(classes)
    check_recipe(recipe)
    recipe = replace(recipe or Recipe(), **({} if epochs is None else {"epochs": epochs}))
    if resume and checkpoint is None:
        raise TrainingError("there is nothing to resume from: give checkpoint=, the file")
    with together() as world, random_numbers_kept():
        path = None if checkpoint is None else Path(checkpoint)
        if path is not None and world.leads:
            _check_file(path)
        supply, kept_back, notes = _opened(data, held_out, recipe, preprocess, classes, world)
        calm = _calm(supply, world)
        example = calm[0][:1]
        if kept_back is not None:
            check_held_out(kept_back, example, supply.packing)
        _check_augment(recipe, supply.packing)
        networks = [packed(n, supply.packing) for n in (model, teacher) if n is not None]
        if recipe.channels_last and not all(
            _takes_channels_last(n, recipe, example) for n in networks
        ):
            recipe = replace(recipe, channels_last=False)
            notes = (*notes, PLAIN_FORMAT)
        student = _student(networks[0], recipe, example)
        if teacher is not None:
            teacher = _teacher(networks[1], recipe, example)
        _check_labels(supply, student, example)
        objective = Objective(student, teacher, recipe, calm[0])
        training = _training(student, objective, recipe, supply, kept_back, calm, world)
        if resume and path is not None:
            training.resume(path)
        elif path is not None and world.leads:
            path.unlink(missing_ok=True)  # another training's
        with objective:
            ended, why = _run(training, model, path, progress, notes)
        return _result(training, model, ended, why, notes)


def _check_file(path: Path) -> None:
    """Raise OutputError, before anything is trained, where no checkpoint can be written."""
    if not path.parent.is_dir():
        raise OutputError(
            f"the checkpoint {path} cannot be written: there is no folder {path.parent}"
        )
    check_file(path)


def _run(
    training: Training,
    model: nn.Module,
    path: Path | None,
    progress: Callable[[Status], None] | None,
    notes: tuple[str, ...],
) -> tuple[Ended, str]:
    """Train; how it ended. A divergence takes the best so far with it."""
    tell = progress if progress and training.world.leads else (lambda status: None)
    try:
        why = training.run(path, tell)
        return ("early", why) if why else ("done", "")
    except KeyboardInterrupt:
        if not training.measured:
            raise
        if path is not None and training.whole:
            training.save(path)
        return "interrupted", f"interrupted at epoch {training.step / training.supply.steps:.2f}"
    except SystemExit:  # SIGTERM, in a terminal
        if path is not None and training.whole:
            training.save(path)
        raise
    except TrainingError as error:
        if isinstance(error, LostError) and path is not None:
            error = LostError(
                f"{error}; what the checkpoint {path} holds is usable: run the same command again with "
                "--resume (resume=True)"
            ).with_traceback(error.__traceback__)
        if training.measured:
            error.best = _result(training, model, "diverged", str(error), notes)
        raise error


def _opened(
    data: object, held_out: object, recipe: Recipe, preprocess: Preprocess | None,
    classes: tuple[str, ...] | None, world: World,
) -> tuple[Supply, Images | None, tuple[str, ...]]:  # fmt: skip
    """What is trained on, what is measured on, and notes."""
    supply, notes = open_supply(
        data, preprocess, classes, recipe.batch_size, held_out, recipe.seed, world
    )
    kept_back = supply.held_out
    if held_out is not None and not is_number(held_out):
        kept_back = open_images(held_out, preprocess, classes=classes)
    if kept_back is None:
        notes = (*notes, "no held-out images: the last weights are kept, not the best")
    return supply, kept_back, notes


def _check_augment(recipe: Recipe, packing: Packing | None) -> None:
    if recipe.augment and packing is not None:
        raise TrainingError(
            f"augment {', '.join(recipe.augment)} changes one image alone, and the network takes "
            f"{packing.text}: leave it out, and give images that are changed already"
        )


def _check_labels(supply: Supply, student: nn.Module, example: Tensor) -> None:
    """Raise DataError where a label is no class, before anything is trained; every process sees it."""
    if supply.labels is None:
        return
    with evaluating(student), torch.no_grad(), random_numbers_kept():
        output = floats(call(student, suited(student, example)))[0]
    if is_logits(output):
        check_labels(supply.labels, output.shape[1])


def _calm(supply: Supply, world: World) -> list[Tensor]:
    """Some of the batches to train on, as they are: enough for BatchNorm's statistics."""
    found: list[Tensor] = []
    for inputs, _ in supply.epoch(0, 0, world):
        found.append(inputs)
        images, size = sum(map(len, found)), sum(4 * x.numel() for x in found)
        if images >= CALM_IMAGES or size >= CALM_BYTES:
            break
    return found


def _student(model: nn.Module, recipe: Recipe, example: Tensor) -> nn.Module:
    """A copy to train; what is frozen in the model stays so.

    Layers in eval mode of a model that is in training mode keep their mode, and so does BatchNorm
    whose weights are all frozen.
    """
    student = _trainable(model, recipe, example)
    if not any(p.requires_grad for p in student.parameters()):
        raise TrainingError(
            "no weight of the network may be trained: set requires_grad of some to True"
        )
    if not student.training:
        student.train()
        for module in student.modules():
            own = list(module.parameters(recurse=False))
            if isinstance(module, NORMS) and own and not any(p.requires_grad for p in own):
                module.eval()
    return student


def _trainable(model: nn.Module, recipe: Recipe, example: Tensor) -> nn.Module:
    """A copy in float32 and in the memory format of the recipe."""
    copy = deep_copy(model)
    if any(p.dtype in (torch.float16, torch.bfloat16) for p in copy.parameters()):
        copy.float()
    if recipe.channels_last and example.ndim == 4:
        to_channels_last(copy)
    return copy


def _takes_channels_last(model: nn.Module, recipe: Recipe, example: Tensor) -> bool:
    """Whether it runs in that memory format: a `view` of a feature map may not."""
    if example.ndim != 4:
        return True
    copy = _trainable(model, recipe, example)
    image = suited(copy, example).contiguous(memory_format=torch.channels_last)
    with evaluating(copy), torch.no_grad(), random_numbers_kept():
        try:
            copy(image)
        except Exception:  # whatever it is, the plain format may do, and says why if not
            return False
    return True


def _teacher(model: nn.Module, recipe: Recipe, example: Tensor) -> nn.Module:
    """A copy in eval mode and without gradients."""
    made = _trainable(model, recipe, example).eval()
    for parameter in made.parameters():  # the module's own requires_grad_ is refused by TorchScript
        parameter.requires_grad_(False)
    return made


def _training(
    student: nn.Module, objective: Objective, recipe: Recipe, supply: Supply,
    held_out: Images | None, calm: list[Tensor], world: World,
) -> Training:  # fmt: skip
    batch = suited(student, calm[0][:TRIED])
    copies = _freeze_unused(student, batch)
    precision = world.led(lambda: _precision(student, recipe, batch, copies))
    world.copy_model(student)
    objective.run = share(student, world)
    return Training(student, objective, recipe, supply, held_out, calm, precision, copies, world)


def _freeze_unused(student: nn.Module, batch: Tensor) -> bool:
    """Parameters that no gradient reaches are not trained: decay alone would change them.

    Gives whether the network overwrites what its gradients need.
    """
    trial = deep_copy(student)
    copies = overwrites(lambda: _forward_and_back(trial, batch, torch.float32))
    used = {name for name, p in trial.named_parameters() if p.grad is not None}
    for name, parameter in student.named_parameters():
        if name not in used:
            parameter.requires_grad_(False)
    return copies


def _forward_and_back(model: nn.Module, batch: Tensor, dtype: torch.dtype) -> None:
    with torch.autocast(batch.device.type, dtype, enabled=dtype != torch.float32):
        output = call(model, batch.clone())
    backward(total(output), "a network is trained by its gradients")


def _precision(student: nn.Module, recipe: Recipe, batch: Tensor, copies: bool) -> torch.dtype:
    """The type to compute in: what the recipe says, or the faster of float32 and bfloat16."""
    if recipe.precision != "auto":
        return getattr(torch, recipe.precision)
    trial = deep_copy(student)
    types = (torch.float32, torch.bfloat16)
    with copying(copies):
        timed = interleave(
            {str(t): lambda t=t: _forward_and_back(trial, batch, t) for t in types},
            threads=torch.get_num_threads(), device=batch.device, seconds=0, least=ROUNDS,
        )  # fmt: skip
    ratio = timed.ratio(str(torch.bfloat16), str(torch.float32)).median
    return torch.bfloat16 if ratio < WORTH else torch.float32


def _result(
    training: Training, model: nn.Module, ended: Ended, why: str, notes: tuple[str, ...]
) -> FineTuned:
    """The best weights in a copy of the model: its types, memory formats, modes and flags."""
    tuned = deep_copy(model)
    tuned.load_state_dict(tuned.state_dict() | training.best)
    if training.copies:
        notes = (*notes, COPIED)
    return FineTuned(
        tuned, tuple(training.measured), training.kept, training.recipe,
        _named(training), training.images, training.seconds, ended,
        why, (*notes, *unread(training.supply.skipped)), training.held_out,
    )  # fmt: skip


def _named(training: Training) -> str:
    """The type that was computed in: that of autocast, or else of the weights."""
    dtype = training.precision
    if dtype == torch.float32:
        dtype = next(p.dtype for p in training.student.parameters() if p.is_floating_point())
    return str(dtype).removeprefix("torch.")
