"""`onebyone deepen`: spend what slimming saved on depth."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from onebyone.cli import values
from onebyone.cli.failures import INTERRUPTED, failures, stop
from onebyone.cli.originals import original_of
from onebyone.cli.reading import (
    Pictures,
    read_held_out,
    read_images,
    read_model,
    room,
    use_threads,
)  # fmt: skip
from onebyone.cli.showing import note, progress, show_slimmed, tell_images

if TYPE_CHECKING:
    from onebyone.loading import Loaded

BUDGET, MODEL, IMAGES, OUTPUT, WORK = (
    "How deep (parts of the original)", "The networks", "The images", "The result", "The work",
)  # fmt: skip


def deepen(
    model: Annotated[
        str,
        typer.Argument(
            metavar="FOLDER",
            show_default=False,
            help="The lighter network: a folder that onebyone wrote (or any MODEL, with "
            "--reference).",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "-o",
            "--out",
            metavar="FOLDER",
            rich_help_panel=OUTPUT,
            show_default=False,
            help="Where to write plan.json, weights, model.pt2, model.onnx and report.html.",
        ),
    ],
    macs: Annotated[
        float | None,
        typer.Option(
            metavar="FRACTION",
            rich_help_panel=BUDGET,
            help="Fill up to this fraction of the original's multiply-accumulates: 1 is all. "
            "Default: 1, where --params is not given.",
        ),
    ] = None,
    params: Annotated[
        float | None,
        typer.Option(
            metavar="FRACTION",
            rich_help_panel=BUDGET,
            help="Keep within this fraction of the original's parameters; both hold if both are "
            "given.",
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            rich_help_panel=IMAGES,
            help="Images that show where depth pays: a folder, a .npy or .npz file, or demo. "
            "Subfolders, one a class, give labels. Without images a rule places the blocks.",
        ),
    ] = None,
    held_out: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            rich_help_panel=IMAGES,
            help="Images to compare on; by default a twentieth of DATA is set apart.",
        ),
    ] = None,
    size: Annotated[str | None, values.size_option(IMAGES)] = None,
    mean: Annotated[str | None, values.mean_option(IMAGES)] = None,
    std: Annotated[str | None, values.std_option(IMAGES)] = None,
    epochs: Annotated[
        float,
        typer.Option(
            metavar="N",
            min=0,
            rich_help_panel=WORK,
            help="Then fine-tune for so many passes over DATA, taught by the original.",
        ),
    ] = 0,
    reference: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            rich_help_panel=MODEL,
            help="The original network, where the folder does not say it.",
        ),
    ] = None,
    weights: Annotated[str | None, values.original_weights_option(MODEL)] = None,
    trust: Annotated[bool, values.trust_option(MODEL)] = False,
    input_size: Annotated[str | None, values.input_option(MODEL)] = None,
    force: Annotated[bool, values.force_option(OUTPUT)] = False,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json", rich_help_panel=OUTPUT, help="Print the report as JSON instead of tables."
        ),
    ] = False,
    memory: Annotated[
        str, typer.Option(metavar="SIZE", rich_help_panel=WORK, help="Memory for images.")
    ] = "2GiB",
    threads: Annotated[int | None, values.threads_option("CPU threads to use.", WORK)] = None,
    seed: Annotated[
        int,
        typer.Option(
            rich_help_panel=WORK, callback=values.seed, help="The same seed gives the same network."
        ),
    ] = 0,
    latency: Annotated[
        bool, typer.Option(rich_help_panel=WORK, help="Time both networks on this machine.")
    ] = True,
) -> None:
    """Make a slimmed CNN deeper, within the cost of its original.

    Inserts blocks that compute nothing yet, so that the network starts from
    the accuracy it has, where a short probe measures the most gain for the
    multiply-accumulates. Training makes something of them: --epochs does it
    here, onebyone finetune any time later.

    \b
    Examples:
      [bold]onebyone deepen out/ --data images/ --epochs 3 -o deeper/
      onebyone deepen out/ --data images/ --macs 0.8 --params 1 -o deeper/[/bold]
    """
    bytes_, pictures = values.memory(memory), Pictures.parse(size, mean, std)
    shape = values.lengths(input_size, "--input", (1, 2, 3, 4))
    if epochs and data is None:
        raise typer.BadParameter("say on which images, with --data", param_hint="--epochs")
    if held_out is not None and data is None:
        raise typer.BadParameter("it goes with --data", param_hint="--held-out")
    with failures("--memory less (such as 512MiB)") as outcome:
        with progress() as tell:
            tell("load", 0)
            from onebyone.deepening.deepening import deepen as deepen_network
            from onebyone.plans import Budget
            from onebyone.saving import check_folder

            use_threads(threads)
            budget = Budget(1.0 if macs is None and params is None else macs, params)
            check_folder(out, force=force, inputs=(model, reference, weights, data, held_out))
            lighter, before = _networks(model, reference, weights, trust, shape)
            tell("load", 1)
            tell("read", 0)
            preprocess = pictures.preprocess(lighter)
            fit, images, others = room(bytes_, lighter, preprocess), None, None
            if data is not None:
                images = read_images(data, lighter, preprocess, fit, seed)
                tell_images(images)
            if held_out is not None:
                others = read_held_out(held_out, lighter, preprocess, fit, seed)
            tell("read", 1)
            deepened = deepen_network(
                lighter.model, lighter.sample, budget, reference=before.model, data=images,
                held_out=others, epochs=epochs, preprocess=preprocess, classes=lighter.classes,
                source=lighter.source, latency=latency, seed=seed, progress=tell,
                status=lambda status: tell("finetune", status.done, status.words),
            )  # fmt: skip
            tell("save", 0)
            outcome.written = deepened.save(out, force=force)
        show_slimmed(deepened, out, as_json)
        if not epochs:
            note("the new blocks compute nothing yet: train them with onebyone finetune")
    tuned = deepened.tuned
    if tuned is not None and tuned.ended == "interrupted":
        stop(
            f"{tuned.why}; the best so far is in {out}, and onebyone finetune trains it further",
            INTERRUPTED,
        )
    if tuned is not None and tuned.ended == "diverged":
        stop(f"{tuned.why}; the best before that is in {out}")


def _networks(
    model: str,
    reference: str | None,
    weights: str | None,
    trust: bool,
    size: tuple[int, ...] | None,
) -> tuple[Loaded, Loaded]:
    """The network to deepen, and the original whose cost is the budget's measure."""
    from onebyone.errors import ModelError
    from onebyone.loading.slimmed import is_slimmed

    folder = Path(model)
    if is_slimmed(folder):
        _, spec, weights = original_of(
            folder, reference, weights, trust, first=True, option="--reference"
        )
    elif reference is None:
        raise ModelError(
            f"{model} is no folder that onebyone wrote, so its original is not known: give "
            "--reference MODEL, whose cost the budget is a part of"
        )
    else:
        spec = reference
    lighter = read_model(model, None, size, trust, several=True)
    return lighter, read_model(spec, weights, lighter.input_size, trust, several=True)
