"""The `onebyone` command: its subcommands, and what holds for all of them."""

from __future__ import annotations

import importlib
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from onebyone.cli.signals import before_work

# What `onebyone --help` lists: a command's name, which its module and its function bear too, and
# the first sentence of its help. The module is imported when the command is called.
COMMANDS = {
    "demo": "Slim a small trained network that comes along, offline.",
    "slim": "Make a trained CNN lighter with 1×1 convolutions; training is not needed.",
    "finetune": "Fine-tune a slimmed network towards its original, and towards labels.",
    "verify": "Compare a slimmed or deepened network with its original, and check its exports again.",
    "deepen": "Make a slimmed CNN deeper, within the cost of its original.",
    "export": "Write a network as files for other runtimes, each checked there against PyTorch and "
    "timed.",
    "measure": "Count what a network costs, exactly: MACs, parameters, memory; time it with "
    "--latency.",
    "bench": "Time a network in every runtime that is installed, in turn, on this machine.",
    "compare": "Compare the ways to build one layer.",
    "diff": "Compare two networks layer by layer: what was added, removed, renamed, changed in cost.",
    "explain": "Show what a 1×1 convolution does, as a page to explore.",
}
_RUN_BARE = ("demo", "explain")  # have something to do without an argument


def _command(name: str) -> TyperCommand:
    """The whole command of a name, out of the module that bears it."""
    function = getattr(importlib.import_module(f"onebyone.cli.{name}"), name)
    alone = typer.Typer(
        add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich"
    )
    alone.command(name, no_args_is_help=name not in _RUN_BARE)(function)
    return typer.main.get_command(alone)  # pyright: ignore[reportReturnType] # has one command


class _Commands(TyperGroup):
    """Commands by their names and one line each, until one of them is called."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = {
            name: TyperCommand(name, short_help=line) for name, line in COMMANDS.items()
        }

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, _, rest = super().resolve_command(ctx, args)
        return name, _command(str(name)), rest

    def invoke(self, ctx: Any) -> Any:
        with before_work():
            return super().invoke(ctx)


app = typer.Typer(
    name="onebyone",
    cls=_Commands,
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # importing what draws boxes takes longer than all the rest
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        from onebyone import __version__

        typer.echo(f"onebyone {__version__}")
        raise typer.Exit


@app.callback()
def onebyone(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say the version.")
    ] = False,
) -> None:
    """Make trained CNNs light with 1×1 convolutions.

    \b
    See it work first, offline:
      onebyone demo
    Then slim your own network with a folder of its images, labels not needed:
      onebyone slim torchvision:resnet50 --data photos/ --macs 0.5 -o out/

    Exit codes: 0 done; 2 something to mend, and the message says what;
    130 interrupted, 143 by SIGTERM; 1 a bug in onebyone.
    """
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(2)
