"""`onebyone diff`: two networks side by side, layer by layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from onebyone.cli import values
from onebyone.cli.failures import failures
from onebyone.cli.reading import with_inputs
from onebyone.cli.showing import note, progress, show
from onebyone.cli.writing import Outputs

if TYPE_CHECKING:
    from onebyone.loading import Loaded

RANDOM = "random"
NETWORKS, OUTPUT = "The networks", "The result"
KINDS = (
    "torchvision:NAME, timm:NAME, package.module:function, FILE.pt2, FILE.onnx, a folder that "
    "onebyone wrote, or demo."
)


def diff(
    before: Annotated[
        str, typer.Argument(metavar="A", show_default=False, help=f"One network: {KINDS}")
    ],
    after: Annotated[
        str, typer.Argument(metavar="B", show_default=False, help="The other one, likewise.")
    ],
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            metavar="SHAPE",
            rich_help_panel=NETWORKS,
            help="Channels × height × width of one image, such as 3x224x224; given twice, that of A "
            "and that of B.",
        ),
    ] = None,
    weights_a: Annotated[
        str | None,
        typer.Option(
            "--weights-a",
            metavar="FILE",
            rich_help_panel=NETWORKS,
            help="The weights of A: .safetensors, .pt or .pth; random draws them.",
        ),
    ] = None,
    weights_b: Annotated[
        str | None,
        typer.Option(
            "--weights-b", metavar="FILE", rich_help_panel=NETWORKS, help="The same of B."
        ),
    ] = None,
    trust: Annotated[bool, values.trust_option(NETWORKS)] = False,
    everything: Annotated[
        bool,
        typer.Option(
            "--all", rich_help_panel=OUTPUT, help="Show unchanged layers one by one as well."
        ),
    ] = False,
    json: Annotated[str | None, values.file_option("JSON", OUTPUT)] = None,
    csv: Annotated[str | None, values.file_option("CSV", OUTPUT)] = None,
    markdown: Annotated[str | None, values.file_option("tables for an issue", OUTPUT)] = None,
    html: Annotated[str | None, values.file_option("a page", OUTPUT)] = None,
) -> None:
    """Compare two networks layer by layer: what was added, removed, renamed, changed in cost.

    Layers are matched by name, kind, weight shapes and order; each has its
    parameters, multiply-accumulates and bytes on both sides, and whether the
    weights are equal. The exit code is 0 whether the networks differ or not.

    \b
    Examples:
      [bold]onebyone diff torchvision:vgg16 torchvision:vgg19
      onebyone diff demo out/ --html diff.html
      onebyone diff nets:old nets:new --input 3x224x224 --markdown -[/bold]
    """
    sizes = _sizes(inputs)
    with failures("a smaller --input"):
        outputs = Outputs.checked(
            json, csv, markdown, html, inputs=(before, weights_a, after, weights_b)
        )
        with progress() as tell:
            tell("load", 0)
            from onebyone.diffing import diff as compare
            from onebyone.files import json_text
            from onebyone.loading.programs import is_program
            from onebyone.report.difference import difference_table
            from onebyone.report.difference_files import (
                difference_csv,
                difference_json,
                difference_markdown,
            )
            from onebyone.report.difference_page import difference_html

            a = _read(before, weights_a, sizes[0], trust, "--weights-a")
            tell("load", 0.5)
            b = _read(after, weights_b, sizes[1], trust, "--weights-b")
            tell("load", 1)
            tell("compare", 0)
            drawn = RANDOM in (weights_a, weights_b)
            found = compare(a.model, b.model, a.inputs, after_example=b.inputs, weights=not drawn)
        if drawn:
            note("weights are not compared: some were drawn at random")
        names = before, after
        traced = [n for n, x in zip(names, (a, b), strict=True) if is_program(x.model)]
        if len(traced) == 1:
            note(
                f"{traced[0]} is a traced program: what has no weights, such as ReLU, is no layer there "
                "and counts as removed or added"
            )
        outputs.write(
            lambda: json_text(difference_json(found, names)),
            lambda: difference_csv(found),
            lambda: difference_markdown(found, names, everything),
            lambda: difference_html(found, names),
        )
        if not outputs.on_stdout:
            show(difference_table(found, names, everything))


def _read(
    spec: str, weights: str | None, size: tuple[int, ...] | None, trust: bool, option: str
) -> Loaded:
    """The network; what its loading says of --weights is said of this option."""
    from onebyone.errors import ModelError
    from onebyone.loading import load

    try:
        loaded = load(spec, weights=weights, input_size=size, trust=trust)
    except ModelError as error:
        raise ModelError(str(error).replace("--weights ", f"{option} ")) from error
    if size is not None:  # also where the network brings an example of its own
        loaded = with_inputs(loaded, [size])
    note(*loaded.notes)
    return loaded


def _sizes(inputs: list[str] | None) -> tuple[tuple[int, ...] | None, tuple[int, ...] | None]:
    """The input sizes of A and of B."""
    found = [values.lengths(text, "--input", (1, 2, 3, 4)) for text in inputs or ()]
    if len(found) > 2:
        raise typer.BadParameter(
            f"{len(found)} shapes were given: give one for both networks, or one for each",
            param_hint="--input",
        )
    return (found[0], found[-1]) if found else (None, None)
