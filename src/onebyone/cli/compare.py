"""`onebyone compare`: the ways to build one layer, side by side."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from onebyone.cli.failures import Outcome, failures
from onebyone.cli.showing import note, progress, show

if TYPE_CHECKING:
    from onebyone.comparing import Comparison

STDOUT = "-"
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
    threads: Annotated[
        int, typer.Option(metavar="N", min=1, rich_help_panel=CLOCK, help="CPU threads.")
    ] = 1,
    code: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            rich_help_panel=OUTPUT,
            help="Print the PyTorch code of this block, and nothing else: direct, "
            "bottleneck_before, ...",
        ),
    ] = None,
    json: Annotated[
        str | None,
        typer.Option(metavar="FILE", rich_help_panel=OUTPUT, help="Write JSON; - is stdout."),
    ] = None,
    csv: Annotated[
        str | None,
        typer.Option(metavar="FILE", rich_help_panel=OUTPUT, help="Write CSV; - is stdout."),
    ] = None,
    markdown: Annotated[
        str | None,
        typer.Option(metavar="FILE", rich_help_panel=OUTPUT, help="Write Markdown; - is stdout."),
    ] = None,
    html: Annotated[
        str | None,
        typer.Option(metavar="FILE", rich_help_panel=OUTPUT, help="Write a page; - is stdout."),
    ] = None,
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
    wanted = {"json": json, "csv": csv, "markdown": markdown, "html": html}
    files = {name: path for name, path in wanted.items() if path is not None}
    with failures() as outcome:
        with progress() as tell:
            tell("counting and timing the blocks", 0)
            _check(files, code)
            from onebyone.comparing import compare as make
            from onebyone.variants import check_name

            name = None if code is None else check_name(code)
            found = make(
                input, output, kernel, width=width or None, bias=bias, groups=groups,
                latency=latency and name is None, training=training, threads=threads, batch=batch,
            )  # fmt: skip
        if name is not None:
            _print_code(found, name)
            return
        _write(found, files, outcome)
        if STDOUT not in files.values():
            from onebyone.report.comparison import comparison_table

            show(comparison_table(found))


def _check(files: dict[str, str], code: str | None) -> None:
    """Refuse what cannot be written, before any work is done."""
    from onebyone.errors import OutputError
    from onebyone.files import check_writable

    if code is not None and files:
        raise OutputError(
            f"--code prints code alone: leave it out, or leave out {' and '.join(f'--{f}' for f in files)}"
        )
    for path in dict.fromkeys(files.values()):
        same = [f"--{name}" for name, other in files.items() if other == path]
        if len(same) > 1:
            raise OutputError(f"{' and '.join(same)} cannot both go to {path}: give each its own")
        if path != STDOUT:
            _check_file(Path(path))
            check_writable(Path(path))


def _check_file(path: Path) -> None:
    from onebyone.errors import OutputError

    if path.is_dir():
        raise OutputError(f"{path} is a folder: give the name of a file")
    if not path.absolute().parent.is_dir():
        raise OutputError(f"{path} cannot be written: there is no folder {path.parent}")


def _write(found: Comparison, files: dict[str, str], outcome: Outcome) -> None:
    """Every file that was asked for; each appears whole or not at all."""
    from onebyone.files import json_text, write_text
    from onebyone.report.comparison_files import (
        comparison_csv,
        comparison_json,
        comparison_markdown,
    )
    from onebyone.report.comparison_page import comparison_html

    makers: dict[str, Callable[[Comparison], str]] = {
        "json": lambda c: json_text(comparison_json(c)),
        "csv": comparison_csv,
        "markdown": comparison_markdown,
        "html": comparison_html,
    }
    for name, path in files.items():
        made = makers[name](found)
        if path == STDOUT:
            typer.echo(made, nl=False)
        else:
            write_text(path, made)
            outcome.written = Path(path)
            note(f"written to {path}")


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
