"""fine_tune: bring a lighter network back to its original's accuracy by a short training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from onebyone.data import Images, check_images, open_images
from onebyone.distributed import World, together
from onebyone.errors import TrainingError
from onebyone.measurement.preparing import backward, total
from onebyone.measurement.timing import interleave
from onebyone.preprocessing import Preprocess
from onebyone.recovery.objective import Objective
from onebyone.recovery.recipe import Recipe
from onebyone.recovery.scoring import Score
from onebyone.recovery.supply import Supply, open_supply
from onebyone.recovery.training import Measured, Status, Training, share
from onebyone.running import call, suited
from onebyone.tree import deep_copy, random_numbers_kept

NORMS = nn.modules.batchnorm._BatchNorm
WORTH = 0.9  # of float32's time: what bfloat16 must take at the most to be chosen
ROUNDS = 4


@dataclass(frozen=True)
class FineTuned:
    """A fine-tuned network and how it got there.

    `model` has the best weights of `measured`, whose first entry is before any training; without
    held-out images the last ones. `best` is its place there. `stopped` says why the training ended
    early, None where it did not. `images` counts image passes of training.
    """

    model: nn.Module
    measured: tuple[Measured, ...]
    best: int
    recipe: Recipe
    precision: str
    images: int
    seconds: float
    stopped: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def before(self) -> Score | None:
        """The score before training, None without held-out images."""
        return self.measured[0].score

    @property
    def after(self) -> Score | None:
        """The score of what was kept."""
        return self.measured[self.best].score


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
    are read as they are needed, a DataLoader is run through once an epoch. teacher: the original
    network; its outputs and the features at its block ends are what the copy is drawn to.
    held_out: other images to choose the best weights on, 0 for none; by default a twentieth of the
    data is set apart, if it is not a loader. epochs overrides that of the recipe.
    checkpoint: a file to write the state to after each measurement and every five minutes; resume:
    go on from it, on a CPU to the same bits as without the break. On an interrupt what is best so
    far is returned. Under torchrun the work is shared (`onebyone.distributed`).
    Raises TrainingError, DataError or ModelError; where the loss diverges, the error's `best` is the
    FineTuned reached before.
    """
    recipe = replace(recipe or Recipe(), **({} if epochs is None else {"epochs": epochs}))
    if resume and checkpoint is None:
        raise TrainingError("there is nothing to resume from: give checkpoint=, the file")
    with together() as world, random_numbers_kept():
        supply, kept_back, notes = _opened(data, held_out, recipe, preprocess, classes, world)
        example = _example(supply, kept_back, world)
        student = _student(model, recipe, example)
        objective = Objective(student, _teacher(teacher, recipe, example), recipe, example)
        training = _training(student, objective, recipe, supply, kept_back, example, world)
        path = None if checkpoint is None else Path(checkpoint)
        if resume and path is not None:
            training.resume(path)
        with objective:
            stopped = _run(training, model, path, progress, notes)
        return _result(training, model, stopped, notes)


def _run(
    training: Training,
    model: nn.Module,
    path: Path | None,
    progress: Callable[[Status], None] | None,
    notes: tuple[str, ...],
) -> str | None:
    """Train; why it stopped early. A divergence takes the best so far with it."""
    tell = progress if progress and training.world.leads else (lambda status: None)
    try:
        return training.run(path, tell)
    except KeyboardInterrupt:
        if not training.measured:
            raise
        return f"interrupted at epoch {training.step / training.supply.steps:.2f}"
    except TrainingError as error:
        if training.measured:
            error.best = _result(training, model, "diverged", notes)  # type: ignore[attr-defined]
        raise


def _opened(
    data: object, held_out: object, recipe: Recipe, preprocess: Preprocess | None,
    classes: tuple[str, ...] | None, world: World,
) -> tuple[Supply, Images | None, tuple[str, ...]]:  # fmt: skip
    """What is trained on, what is measured on, and notes."""
    supply, notes = open_supply(
        data, preprocess, classes, recipe.batch_size, held_out is None, recipe.seed, world
    )
    kept_back = supply.held_out
    if held_out is not None and held_out != 0:
        kept_back = open_images(held_out, preprocess, classes=classes)
    if kept_back is None:
        notes = (*notes, "no held-out images: the last weights are kept, not the best")
    return supply, kept_back, notes


def _example(supply: Supply, held_out: Images | None, world: World) -> Tensor:
    """One image (1, C, …)."""
    inputs = next(iter(supply.epoch(0, 0, world)))[0][:1]
    if held_out is not None:
        check_images(held_out, inputs)
    return inputs


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
        copy.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return copy


def _teacher(model: nn.Module | None, recipe: Recipe, example: Tensor) -> nn.Module | None:
    """A copy in eval mode and without gradients."""
    return (
        None if model is None else _trainable(model, recipe, example).eval().requires_grad_(False)
    )


def _training(
    student: nn.Module, objective: Objective, recipe: Recipe, supply: Supply,
    held_out: Images | None, example: Tensor, world: World,
) -> Training:  # fmt: skip
    batch = suited(student, example.expand(min(recipe.batch_size, 32), *example.shape[1:]))
    _freeze_unused(student, batch)
    precision = world.led(lambda: _precision(student, recipe, batch))
    world.copy(*(t.data for t in (*student.parameters(), *student.buffers())))
    objective.run = share(student, world)
    return Training(student, objective, recipe, supply, held_out, precision, world)


def _freeze_unused(student: nn.Module, batch: Tensor) -> None:
    """Parameters that no gradient reaches are not trained: decay alone would change them."""
    trial = deep_copy(student)
    _forward_and_back(trial, batch, torch.float32)
    used = {name for name, p in trial.named_parameters() if p.grad is not None}
    for name, parameter in student.named_parameters():
        if name not in used:
            parameter.requires_grad_(False)


def _forward_and_back(model: nn.Module, batch: Tensor, dtype: torch.dtype) -> None:
    with torch.autocast(batch.device.type, dtype, enabled=dtype != torch.float32):
        output = call(model, batch)
    backward(total(output))


def _precision(student: nn.Module, recipe: Recipe, batch: Tensor) -> torch.dtype:
    """The type to compute in: what the recipe says, or the faster of float32 and bfloat16."""
    if recipe.precision != "auto":
        return getattr(torch, recipe.precision)
    trial = deep_copy(student)
    types = (torch.float32, torch.bfloat16)
    timed = interleave(
        {str(t): lambda t=t: _forward_and_back(trial, batch, t) for t in types},
        threads=torch.get_num_threads(), device=batch.device, seconds=0, least=ROUNDS,
    )  # fmt: skip
    ratio = timed.ratio(str(torch.bfloat16), str(torch.float32)).median
    return torch.bfloat16 if ratio < WORTH else torch.float32


def _result(
    training: Training, model: nn.Module, stopped: str | None, notes: tuple[str, ...]
) -> FineTuned:
    """The best weights in a copy of the model: its types, memory formats, modes and flags."""
    tuned = deep_copy(model)
    tuned.load_state_dict(training.best)
    measured = training.measured
    scores = [m.score.value if m.score else (0.0, 0.0) for m in measured]
    best = scores.index(max(scores)) if measured[0].score else len(measured) - 1
    return FineTuned(
        tuned, tuple(measured), best, training.recipe,
        str(training.precision).removeprefix("torch."), training.images, training.seconds, stopped,
        notes,
    )  # fmt: skip
