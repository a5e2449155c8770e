"""`onebyone slim`: make a trained network lighter."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from onebyone.cli import values
from onebyone.cli.failures import Outcome, failures
from onebyone.cli.reading import Pictures, Source, use_threads
from onebyone.cli.showing import leads, note, progress, show, show_json, show_slimmed, tell_images
from onebyone.cli.writing import check_spared

BUDGET, MODEL, IMAGES, TRAINING, OUTPUT, WORK = (
    "How light (one at least)", "The network", "The images", "Training between steps", "The result",
    "The work",
)  # fmt: skip
RUNTIME = "onnxruntime"


def slim(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            show_default=False,
            help="torchvision:NAME, timm:NAME, package.module:function, FILE.pt2, FILE.onnx, a "
            "folder that onebyone wrote, or demo.",
        ),
    ],
    data: Annotated[
        str,
        typer.Option(
            metavar="DIR",
            rich_help_panel=IMAGES,
            show_default=False,
            help="Images of the kind that the network is for: a folder, a .npy or .npz file, or "
            "demo. Subfolders, one a class, give labels.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--out",
            metavar="FOLDER",
            rich_help_panel=OUTPUT,
            help="Where to write plan.json, weights, model.pt2, model.onnx and report.html.",
        ),
    ] = None,
    macs: Annotated[
        float | None,
        typer.Option(
            metavar="FRACTION",
            rich_help_panel=BUDGET,
            help="Keep this fraction of the multiply-accumulates: 0.5 keeps half.",
        ),
    ] = None,
    params: Annotated[
        float | None,
        typer.Option(
            metavar="FRACTION",
            rich_help_panel=BUDGET,
            help="Keep this fraction of the parameters.",
        ),
    ] = None,
    latency: Annotated[
        float | None,
        typer.Option(
            metavar="FRACTION",
            rich_help_panel=BUDGET,
            help="Keep this fraction of the time in --runtime, measured on this machine.",
        ),
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(
            metavar="FRACTION",
            rich_help_panel=BUDGET,
            help="The smallest network that loses at most this much accuracy: 0.01 is one point. "
            "Needs labels.",
        ),
    ] = None,
    plan: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            rich_help_panel=BUDGET,
            help="Apply this plan, perhaps edited by hand, instead of making one.",
        ),
    ] = None,
    weights: Annotated[str | None, values.weights_option(MODEL)] = None,
    trust: Annotated[bool, values.trust_option(MODEL)] = False,
    input_size: Annotated[str | None, values.input_option(MODEL)] = None,
    size: Annotated[str | None, values.size_option(IMAGES)] = None,
    mean: Annotated[str | None, values.mean_option(IMAGES)] = None,
    std: Annotated[str | None, values.std_option(IMAGES)] = None,
    images: Annotated[
        int,
        typer.Option(
            metavar="N", min=1, rich_help_panel=IMAGES, help="How many images to slim with."
        ),
    ] = 512,
    held_out: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            rich_help_panel=IMAGES,
            help="Images to compare before and after on; by default some of DATA are set apart.",
        ),
    ] = None,
    plan_only: Annotated[
        bool,
        typer.Option(
            "--plan-only",
            rich_help_panel=OUTPUT,
            help="Only make the plan and write it to -o, by default plan.json.",
        ),
    ] = False,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json", rich_help_panel=OUTPUT, help="Print the report as JSON instead of tables."
        ),
    ] = False,
    force: Annotated[bool, values.force_option(OUTPUT)] = False,
    memory: Annotated[
        str,
        typer.Option(
            metavar="SIZE", rich_help_panel=WORK, help="Memory for images and activations."
        ),
    ] = "2GiB",
    threads: Annotated[int | None, values.threads_option("CPU threads to use.", WORK)] = None,
    seed: Annotated[
        int,
        typer.Option(
            rich_help_panel=WORK,
            callback=values.seed,
            help="The same seed gives the same plan and weights, with the same number of threads.",
        ),
    ] = 0,
    runtime: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            rich_help_panel=WORK,
            help="The runtime that --latency is for: eager, onnx, openvino, executorch, "
            "litert or ncnn.",
        ),
    ] = RUNTIME,
    steps: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=1,
            rich_help_panel=TRAINING,
            help="Slim in so many steps, and fine-tune after each.",
        ),
    ] = 1,
    finetune_epochs: Annotated[
        float,
        typer.Option(
            metavar="N",
            rich_help_panel=TRAINING,
            help="Passes over all of DATA after each step, towards the original and the labels.",
        ),
    ] = 0.0,
    timed: Annotated[
        bool,
        typer.Option(
            " /--no-latency",
            rich_help_panel=WORK,
            show_default=False,
            help="Do not time both networks in PyTorch; not with --latency.",
        ),
    ] = True,
) -> None:
    """Make a trained CNN lighter with 1×1 convolutions; training is not needed.

    Measures on a few hundred images how much each layer matters, chooses for
    all layers at once how to split them, solves for the new weights, and
    compares before and after. The network and its files are never changed.

    \b
    Half of the multiply-accumulates of a torchvision network:
      [bold]onebyone slim torchvision:resnet50 --data photos/ --macs 0.5 -o out/[/bold]
    Your own network and weights; images/ has one subfolder a class:
      [bold]onebyone slim my_code:make_net --weights best.pt --input 3x128x128 \\
          --mean 0.5 --std 0.25 --data images/ --max-drop 0.01 -o out/[/bold]
    Far down, in steps with training between (or onebyone finetune afterwards):
      [bold]onebyone slim demo --data demo:test --macs 0.1 --steps 3 \\
          --finetune-epochs 2 -o out/[/bold]
    Look at the plan first, edit it, apply it:
      [bold]onebyone slim demo --data demo --macs 0.4 --plan-only -o plan.json
      onebyone slim demo --data demo --plan plan.json -o out/[/bold]
    """
    source = Source(
        model, weights, values.lengths(input_size, "--input", (1, 2, 3, 4)), trust, data, held_out,
        Pictures.parse(size, mean, std), images, values.memory(memory), seed, max_drop is not None,
    )  # fmt: skip
    _check_usage(out, plan_only, plan, (macs, params, latency), max_drop)
    if latency is not None and not timed:
        raise typer.BadParameter(
            f"--latency {latency:g} is a budget of time, and times the network: leave one of them out",
            param_hint="--no-latency",
        )
    if latency is None and runtime != RUNTIME:
        raise typer.BadParameter(
            "it says whose time --latency is a part of: give that too", param_hint="--runtime"
        )
    with failures("--memory less (such as 512MiB) or --images fewer") as outcome:
        if plan_only:
            use_threads(threads)
            _write_plan(source, macs, params, out or Path("plan.json"), force, as_json, outcome)
            return
        assert out is not None
        with progress() as tell:
            tell("load", 0)
            from onebyone.distributed import together
            from onebyone.pacing.pace import runtime_named
            from onebyone.plan_files import read_plan
            from onebyone.saving import check_folder
            from onebyone.slimming import check_budget
            from onebyone.slimming import slim as slim_network

            use_threads(threads)
            given = read_plan(plan) if plan is not None else None
            check_budget(macs, params, max_drop, given, latency)
            if latency is not None:
                runtime_named(runtime)
            check_folder(out, force=force, inputs=source.paths)
            training = steps != 1 or finetune_epochs != 0
            with together():
                found = source.open(tell) if training else source.read(tell)
                slimmed = slim_network(
                    found.loaded.model, found.images, macs=macs, params=params, max_drop=max_drop,
                    plan=given, held_out=found.held_out or (None if training else 0),
                    preprocess=found.preprocess, classes=found.loaded.classes,
                    source=found.loaded.source, calibration=images, memory=found.memory, seed=seed,
                    latency=timed if latency is None else latency, runtime=runtime,
                    threads=threads or 1, steps=steps, finetune_epochs=finetune_epochs, progress=tell,
                )  # fmt: skip
            if not leads():
                return
            tell("save", 0)
            outcome.written = slimmed.save(out, force=force)
        show_slimmed(slimmed, out, as_json)


def _check_usage(
    out: Path | None,
    plan_only: bool,
    plan: Path | None,
    fractions: tuple[float | None, ...],
    max_drop: float | None,
) -> None:
    if out is None and not plan_only:
        raise typer.BadParameter("say where to write the result, such as -o out/", param_hint="-o")
    if plan is None and max_drop is None and not any(f is not None for f in fractions):
        raise typer.BadParameter(
            "say how light: 0.5 keeps half of the MACs (or give --params, --latency, --max-drop or "
            "--plan)",
            param_hint="--macs",
        )
    if plan_only and (plan is not None or max_drop is not None or fractions[2] is not None):
        raise typer.BadParameter(
            "it makes a plan for --macs and --params only, without --latency: "
            "leave --plan and --max-drop out",
            param_hint="--plan-only",
        )


def _write_plan(
    source: Source,
    macs: float | None,
    params: float | None,
    path: Path,
    force: bool,
    as_json: bool,
    outcome: Outcome,
) -> None:
    """The plan that slimming would follow, as a file."""
    with progress() as tell:
        tell("load", 0)
        from onebyone.errors import OutputError
        from onebyone.files import PLAN, check_file
        from onebyone.plan_files import plan_to_json, write_plan
        from onebyone.planning import plan as make_plan
        from onebyone.plans import Budget
        from onebyone.report import plan_table
        from onebyone.saving import make_parent
        from onebyone.statistics import observe

        budget = Budget(macs, params)
        path = path if path.suffix == ".json" else path / PLAN
        if path.exists() and not force:
            raise OutputError(f"{path} exists; give another file, or replace it with --force")
        check_spared(path, source.paths)
        check_file(path)
        found = source.read(tell)
        tell_images(found.images)
        statistics = observe(
            found.loaded.model, found.images, seed=source.seed, memory=found.memory,
            progress=lambda done: tell("observe", done),
        )  # fmt: skip
        tell("plan", 0)
        made = replace(
            make_plan(found.loaded.model, statistics, budget), source=found.loaded.source
        )
        make_parent(path)
        write_plan(made, path)
        outcome.written = path
    if as_json:
        show_json(plan_to_json(made))
    else:
        show(plan_table(made))
    note(f"the plan is in {path}: edit it, and apply it with --plan {path}")
