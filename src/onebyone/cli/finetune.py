"""`onebyone finetune`: bring a slimmed network back to its original's accuracy."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from onebyone.cli import values
from onebyone.cli.failures import INTERRUPTED, failures, stop
from onebyone.cli.originals import original_of
from onebyone.cli.reading import (
    Pictures,
    place,
    read_held_out,
    read_model,
    read_pool,
    room,
    use_threads,
)
from onebyone.cli.showing import Progress, leads, progress, show_slimmed
from onebyone.recovery.recipe import Recipe

if TYPE_CHECKING:
    from torch import nn

    from onebyone.data import Images
    from onebyone.loading import Loaded
    from onebyone.plans import Plan
    from onebyone.pools import Pool
    from onebyone.preprocessing import Preprocess
    from onebyone.recovery.fine_tuning import FineTuned
    from onebyone.slimming import Slimmed

MODEL, IMAGES, TRAINING, OUTPUT, WORK = (
    "The networks", "The images", "The training", "The result", "The work",
)  # fmt: skip
CHECKPOINT = ".checkpoint.safetensors"
BROKEN_OFF = "broken off by an interrupt"  # said of a training that --resume goes on with


def finetune(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER", show_default=False, help="A folder that onebyone slim wrote."
        ),
    ],
    data: Annotated[
        str,
        typer.Option(
            metavar="DIR",
            rich_help_panel=IMAGES,
            show_default=False,
            help="Images to train on, as many as there are: a folder, a .npy or .npz file, or demo. "
            "Subfolders, one a class, give labels; they help and are not needed.",
        ),
    ],
    held_out: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            rich_help_panel=IMAGES,
            help="Images to compare with the original on; by default those that choose the best "
            "weights, a twentieth of DATA.",
        ),
    ] = None,
    epochs: Annotated[
        float, typer.Option(metavar="N", rich_help_panel=TRAINING, help="Passes over the images.")
    ] = 2.0,
    original: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            rich_help_panel=MODEL,
            help="The original network, where the plan does not say it.",
        ),
    ] = None,
    weights: Annotated[str | None, values.original_weights_option(MODEL)] = None,
    trust: Annotated[bool, values.trust_option(MODEL)] = False,
    optimizer: Annotated[
        str, typer.Option(metavar="NAME", rich_help_panel=TRAINING, help="shampoo, sgd or adamw.")
    ] = Recipe.optimizer,
    rate: Annotated[
        float | None,
        typer.Option(
            "--learning-rate",
            metavar="NUMBER",
            rich_help_panel=TRAINING,
            help="The highest learning rate; by default one that suits the optimizer.",
        ),
    ] = None,
    batch: Annotated[
        int,
        typer.Option(metavar="N", min=1, rich_help_panel=TRAINING, help="Images a step."),
    ] = Recipe.batch_size,
    soft: Annotated[
        float | None,
        typer.Option(
            metavar="FRACTION",
            rich_help_panel=TRAINING,
            help="The original's share in the loss beside the labels.",
        ),
    ] = None,
    augment: Annotated[
        str,
        typer.Option(
            metavar="NAMES",
            rich_help_panel=TRAINING,
            help="Random changes of the images: shift, mirror, both with a comma between, or none.",
        ),
    ] = "none",
    precision: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            rich_help_panel=TRAINING,
            help="float32, bfloat16, or auto: whichever is faster here.",
        ),
    ] = "auto",
    patience: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            rich_help_panel=TRAINING,
            help="Stop after so many epochs without a better one.",
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            rich_help_panel=TRAINING,
            help="Go on from the checkpoint beside the result.",
        ),
    ] = False,
    size: Annotated[str | None, values.size_option(IMAGES)] = None,
    mean: Annotated[str | None, values.mean_option(IMAGES)] = None,
    std: Annotated[str | None, values.std_option(IMAGES)] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--out",
            metavar="FOLDER",
            rich_help_panel=OUTPUT,
            help="Where to write the result; by default FOLDER itself is replaced.",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", rich_help_panel=OUTPUT, help="Print the report as JSON.")
    ] = False,
    force: Annotated[bool, values.force_option(OUTPUT)] = False,
    memory: Annotated[
        str, typer.Option(metavar="SIZE", rich_help_panel=WORK, help="Memory for held-out images.")
    ] = "2GiB",
    device: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            rich_help_panel=WORK,
            help="cpu, cuda, or auto: the GPU if there is one.",
        ),
    ] = "auto",
    threads: Annotated[int | None, values.threads_option("CPU threads to use.", WORK)] = None,
    seed: Annotated[
        int, typer.Option(rich_help_panel=WORK, callback=values.seed, help="For order and changes.")
    ] = 0,
    latency: Annotated[
        bool, typer.Option(rich_help_panel=WORK, help="Time both networks on this machine.")
    ] = True,
) -> None:
    """Fine-tune a slimmed network towards its original, and towards labels.

    Keeps the weights that are best on held-out images, those from before if
    none are better. Ctrl-C keeps the best so far; --resume goes on.

    \b
    Examples:
      [bold]onebyone finetune out/ --data photos/ --epochs 3
      torchrun --nproc-per-node 2 -m onebyone finetune out/ --data photos/[/bold]
    """
    pictures = Pictures.parse(size, mean, std)
    bytes_, goal = values.memory(memory), out or folder
    with failures("--batch less") as outcome, progress() as tell:
        tell("load", 0)
        from onebyone.distributed import together
        from onebyone.saving import check_folder, make_parent

        use_threads(threads)
        recipe = Recipe(
            epochs=epochs, optimizer=optimizer, learning_rate=rate, batch_size=batch,
            augment=_augment(augment), precision=precision, patience=patience, seed=seed,
            soft=Recipe.soft if soft is None else soft,
        )  # fmt: skip
        reads = (weights, data, held_out, original, None if out is None else str(folder))
        check_folder(goal, force=force, inputs=reads)
        checkpoint = goal.with_name(f"{goal.name}{CHECKPOINT}")
        plan, spec, weights = original_of(folder, original, weights, trust)
        with together():
            lighter = read_model(str(folder), None, None, trust, several=True)
            before = read_model(spec, weights, lighter.input_size, trust, several=True)
            preprocess = pictures.preprocess(lighter)
            pool = read_pool(data, lighter, preprocess)
            tell("load", 1)
            run = _Run(plan, lighter, before.model, recipe, preprocess, device, tell)
            apart = None
            if held_out is not None:
                apart = read_held_out(
                    held_out, lighter, preprocess, room(2 * bytes_, lighter, preprocess), seed
                )
            make_parent(goal)
            tuned = run.tuned(pool, checkpoint, resume)
            if not leads():
                return
            slimmed = run.compared(tuned, apart, latency, resume)
        tell("save", 0)
        outcome.written = slimmed.save(goal, force=force or out is None)
        if tuned.ended in ("done", "early"):
            checkpoint.unlink(missing_ok=True)
    show_slimmed(slimmed, goal, as_json)
    if tuned.ended == "interrupted":
        again = (
            f"and {checkpoint} is beside it: the same command with --resume goes on"
            if checkpoint.exists() else "with no checkpoint to go on from"
        )  # fmt: skip
        stop(f"{tuned.why}; the best so far is in {goal}, {again}", INTERRUPTED)
    if tuned.ended == "diverged":
        stop(f"{tuned.why}; the best before that is in {goal}")


@dataclass(frozen=True)
class _Run:
    """The networks and how to train them."""

    plan: Plan
    lighter: Loaded
    original: nn.Module
    recipe: Recipe
    preprocess: Preprocess | None
    device: str
    tell: Progress

    def tuned(self, data: Pool, checkpoint: Path, resume: bool) -> FineTuned:
        """The fine-tuned network, back on the CPU; where training diverged, the best before that."""
        from onebyone.errors import TrainingError
        from onebyone.recovery.fine_tuning import fine_tune

        where = place(self.device)
        self.tell("finetune", 0)
        try:
            tuned = fine_tune(
                self.lighter.model.to(where), data, teacher=self.original.to(where),
                recipe=self.recipe, preprocess=self.preprocess, classes=self.lighter.classes,
                checkpoint=checkpoint, resume=resume,
                progress=lambda status: self.tell("finetune", status.done, status.words),
            )  # fmt: skip
        except TrainingError as error:
            if error.best is None or not error.best.best:
                raise
            tuned = error.best
        for network in (tuned.model, self.original, self.lighter.model):
            network.cpu()
        return tuned

    def compared(
        self, tuned: FineTuned, held_out: Images | None, latency: bool, resumed: bool
    ) -> Slimmed:
        """Beside the original, on the held-out images or on those that chose the weights."""
        from onebyone.slimming import Slimmed
        from onebyone.verification import verify

        self.tell("verify", 0)
        images = held_out or tuned.held_out
        example = self.lighter.example if images is None else images.inputs[:1]
        result = verify(
            self.original, tuned.model, images, example=example, latency=latency,
            progress=lambda done: self.tell("verify", done),
        )  # fmt: skip
        # What an interrupted training in place told is told anew by the one that goes on from it.
        known = [n for n in self.plan.notes if not (resumed and BROKEN_OFF in n)]
        words = f"{tuned.words}; {BROKEN_OFF}" if tuned.ended == "interrupted" else tuned.words
        told = [*tuned.notes, words]
        if held_out is None and images is not None:
            told.append("the same held-out images chose the weights")
        notes = (*known, *(note for note in told if note not in known))
        plan = replace(self.plan, notes=notes)
        return Slimmed(
            tuned.model, plan, result, self.lighter.sample, self.preprocess, self.lighter.classes,
        )  # fmt: skip


def _augment(text: str) -> tuple[str, ...]:
    return () if text == "none" else tuple(part.strip() for part in text.split(","))
