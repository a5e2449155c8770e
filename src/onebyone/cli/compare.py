"""`onebyone compare`: the ways to build one layer, side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from onebyone.cli import values
from onebyone.cli.failures import failures
from onebyone.cli.showing import progress, show
from onebyone.cli.writing import Outputs

if TYPE_CHECKING:
    from onebyone.comparison import Comparison

BLOCK, CLOCK, OUTPUT = "The blocks", "The clock", "The result"


def compare(
    input: Annotated[
        str,
        typer.Argument(
            metavar="IN", show_default=False, help="Channels × height × width, as in 100x20x20."
        ),
    ],
    output: Annotated[
        str, typer.Argument(metavar="OUT", show_default=False, help="The same of the output.")
    ],
    kernel: Annotated[
        int,
        typer.Option("-k", "--kernel", metavar="K", rich_help_panel=BLOCK, help="A K×K kernel."),
    ] = 3,
    width: Annotated[
        list[int] | None,
        typer.Option(
            metavar="N",
            rich_help_panel=BLOCK,
            help="Channels at the narrow place of a bottleneck; may be repeated. By default half of "
            "the smaller of the two numbers of channels.",
        ),
    ] = None,
    groups: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            rich_help_panel=BLOCK,
            help="Of the grouped convolution; by default 4, or the most below that which fits.",
        ),
    ] = None,
    bias: Annotated[
        bool, typer.Option(rich_help_panel=BLOCK, help="Whether the convolutions have biases.")
    ] = False,
    latency: Annotated[
        bool, typer.Option(rich_help_panel=CLOCK, help="Time all blocks on this machine.")
    ] = True,
    training: Annotated[
        bool, typer.Option(rich_help_panel=CLOCK, help="Time a training step as well.")
    ] = True,
    batch: Annotated[
        int, typer.Option(metavar="N", min=1, rich_help_panel=CLOCK, help="Images at once.")
    ] = 1,
    threads: Annotated[int, values.threads_option("CPU threads.", CLOCK)] = 1,
    code: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            rich_help_panel=OUTPUT,
            help="Print the PyTorch code of this block, and nothing else: direct, "
            "bottleneck_before, ...",
        ),
    ] = None,
    json: Annotated[str | None, values.file_option("JSON", OUTPUT)] = None,
    csv: Annotated[str | None, values.file_option("CSV", OUTPUT)] = None,
    markdown: Annotated[str | None, values.file_option("Markdown", OUTPUT)] = None,
    html: Annotated[str | None, values.file_option("a page", OUTPUT)] = None,
) -> None:
    """Compare the ways to build one layer.

    A k×k convolution, 1×1 bottlenecks before, after and around it, and eight
    others: parameters and multiply-accumulates counted, and each one timed
    here. Stride and padding follow from the two sizes.

    \b
    Examples:
      [bold]onebyone compare 100x20x20 40x20x20 --kernel 5
      onebyone compare 256x56x56 256x28x28 --width 64 --html blocks.html
      onebyone compare 100x20x20 40x20x20 --code inverted_residual[/bold]
    """
    if code is not None and any((json, csv, markdown, html)):
        raise typer.BadParameter("it prints code alone: leave out the files", param_hint="--code")
    with failures("smaller shapes or a smaller --batch, or --no-latency"):
        from onebyone.comparing import compare as make
        from onebyone.files import json_text
        from onebyone.report.comparison import comparison_table
        from onebyone.report.comparison_files import (
            comparison_csv,
            comparison_json,
            comparison_markdown,
        )
        from onebyone.report.comparison_page import comparison_html
        from onebyone.variants import check_name

        name = None if code is None else check_name(code)
        wanted = Outputs.checked(json, csv, markdown, html)
        with progress() as tell:
            tell("counting and timing the blocks", 0)
            found = make(
                input, output, kernel, width=width or None, bias=bias, groups=groups,
                latency=latency and name is None, training=training, threads=threads, batch=batch,
            )  # fmt: skip
        if name is not None:
            _print_code(found, name)
            return
        wanted.write(
            lambda: json_text(comparison_json(found)),
            lambda: comparison_csv(found),
            lambda: comparison_markdown(found),
            lambda: comparison_html(found),
        )
        if not wanted.on_stdout:
            show(comparison_table(found))


def _print_code(found: Comparison, name: str) -> None:
    """The code of every block of this name: one for each width. OneByOneError where it was refused."""
    from onebyone.errors import ShapeError

    built = [v for v in found.variants if v.name == name]
    if not built:
        reason = next(r.reason for r in found.refused if r.name == name)
        raise ShapeError(f"{name} cannot be built here: {reason}")
    for index, variant in enumerate(built):
        several = f"# {name}, width {variant.width}\n" if len(built) > 1 else ""
        typer.echo(("\n" if index else "") + several + variant.code, nl=False)
