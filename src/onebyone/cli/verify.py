"""`onebyone verify`: compare a slimmed network with its original once more."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from onebyone.cli import values
from onebyone.cli.failures import failures, stop
from onebyone.cli.originals import original_of
from onebyone.cli.reading import Pictures, read_held_out, read_model, room, use_threads
from onebyone.cli.showing import Progress, note, progress, show, show_json, tell_images

if TYPE_CHECKING:
    from onebyone.data import Images
    from onebyone.exporting.export import Export
    from onebyone.loading import Loaded


def verify(
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
            show_default=False,
            help="Images to compare on, best ones that slimming has not seen: a folder, a .npy or "
            ".npz file, or demo:test. Subfolders, one a class, give labels.",
        ),
    ],
    original: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="The original network, where the plan does not say it."),
    ] = None,
    weights: Annotated[str | None, values.original_weights_option()] = None,
    trust: Annotated[bool, values.trust_option()] = False,
    size: Annotated[str | None, values.size_option()] = None,
    mean: Annotated[str | None, values.mean_option()] = None,
    std: Annotated[str | None, values.std_option()] = None,
    memory: Annotated[str, typer.Option(metavar="SIZE", help="Memory for images.")] = "2GiB",
    threads: Annotated[int | None, values.threads_option("CPU threads to use.")] = None,
    latency: Annotated[bool, typer.Option(help="Time both networks on this machine.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Compare a slimmed or deepened network with its original, and check its exports again.

    Exports in the folder (model.onnx, model.xml …) are run in their runtimes
    and compared with PyTorch; the exit code is 2 where one fails.

    \b
    Examples:
      [bold]onebyone verify out/ --data more_photos/
      onebyone verify out/ --data demo:test --json[/bold]
    """
    bytes_, pictures = values.memory(memory), Pictures.parse(size, mean, std)
    with failures("--memory less (such as 512MiB)"):
        with progress() as tell:
            tell("load", 0)
            from onebyone.report import summary, to_json
            from onebyone.report.exports import export_json, exports_table
            from onebyone.verification import verify as compare

            use_threads(threads)
            plan, spec, weights = original_of(folder, original, weights, trust)
            slimmed = read_model(str(folder), None, None, trust, several=True)
            before = read_model(spec, weights, slimmed.input_size, trust, several=True)
            tell("load", 1)
            tell("read", 0)
            preprocess = pictures.preprocess(slimmed)
            fit = room(2 * bytes_, slimmed, preprocess)
            images = read_held_out(data, slimmed, preprocess, fit)
            tell_images(images)
            tell("read", 1)
            tell("verify", 0)
            result = compare(
                before.model, slimmed.model, images, latency=latency,
                progress=lambda done: tell("verify", done),
            )  # fmt: skip
            exports, failed = _exports(folder, slimmed, images, latency, tell)
        plan = replace(plan, notes=())  # they tell of the images that it was slimmed with
        if as_json:
            show_json(to_json(result, plan) | {"exports": [export_json(e) for e in exports]})
        else:
            show(summary(result, plan))
            if exports:
                show(exports_table(exports, None))
        if failed:
            stop("\n          ".join(failed))


def _exports(
    folder: Path, slimmed: Loaded, images: Images, latency: bool, tell: Progress
) -> tuple[list[Export], list[str]]:
    """The exports in the folder as they are found now, and the messages of those that fail."""
    from onebyone.errors import MissingExtraError, ModelError
    from onebyone.exporting.export import examine
    from onebyone.exporting.records import exports_in

    found: list[Export] = []
    failed: list[str] = []
    paths = exports_in(folder)
    for index, path in enumerate(paths):
        tell("export", index / len(paths))
        try:
            export = examine(slimmed.model, slimmed.inputs, path, images=images, latency=latency)
        except MissingExtraError as error:
            note(f"{path.name} was not checked: {error}")
            continue
        except ModelError as error:
            failed.append(f"{path.name}: {error}")
            continue
        found.append(export)
        if export.check.failure is not None:
            failed.append(f"{path.name} failed its check: {export.check.failure}")
    if paths:
        tell("export", 1)
    return found, failed
