"""The `onebyone` command: its subcommands, and what holds for all of them."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from onebyone.cli.bench import bench
from onebyone.cli.compare import compare
from onebyone.cli.deepen import deepen
from onebyone.cli.demo import demo
from onebyone.cli.diff import diff
from onebyone.cli.export import export
from onebyone.cli.failures import INTERRUPTED
from onebyone.cli.finetune import finetune
from onebyone.cli.measure import measure
from onebyone.cli.signals import listen
from onebyone.cli.slim import slim
from onebyone.cli.verify import verify

app = typer.Typer(
    name="onebyone",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(demo)
app.command(no_args_is_help=True)(slim)
app.command(no_args_is_help=True)(finetune)
app.command(no_args_is_help=True)(verify)
app.command(no_args_is_help=True)(deepen)
app.command(no_args_is_help=True)(export)
app.command(no_args_is_help=True)(measure)
app.command(no_args_is_help=True)(bench)
app.command(no_args_is_help=True)(compare)
app.command(no_args_is_help=True)(diff)


def _version(asked: bool) -> None:
    if asked:
        from onebyone import __version__

        typer.echo(f"onebyone {__version__}")
        raise typer.Exit


@app.callback()
def onebyone(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say the version.")
    ] = False,
) -> None:
    """Make trained CNNs light with 1×1 convolutions.

    \b
    See it work first, offline:
      [bold]onebyone demo[/bold]
    Then slim your own network with a folder of its images, labels not needed:
      [bold]onebyone slim torchvision:resnet50 --data photos/ --macs 0.5 -o out/[/bold]

    Exit codes: 0 done; 2 something to mend, and the message says what;
    130 interrupted; 1 a bug in onebyone.
    """


def main() -> None:
    """The console entry point."""
    # OpenMP threads that wait by spinning slow a shared machine down many times; torch reads this
    # when it is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    listen()
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
