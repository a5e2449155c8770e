"""Progress on stderr, tables on stdout."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.console import RenderableType

    from onebyone.data import Images
    from onebyone.slimming import Slimmed

STEPS = {
    "load": "loading the network",
    "read": "reading the images",
    "observe": "observing the network",
    "plan": "planning",
    "rewrite": "solving layer by layer",
    "search": "searching the smallest network",
    "verify": "comparing before and after",
    "compare": "comparing layer by layer",
    "save": "writing the results",
    "look": "looking into the layers",
    "explain": "making the page",
    "measure": "measuring",
}
Progress = Callable[[str, float], None]


@contextmanager
def progress() -> Iterator[Progress]:
    """A function to tell (step, fraction done) to; it draws bars on a terminal, else nothing."""
    if not sys.stderr.isatty():
        yield lambda step, done: None
        return
    from rich import progress as bars
    from rich.console import Console

    columns = (
        bars.SpinnerColumn(finished_text="[green]✓"), bars.TextColumn("{task.description:<31}"),
        bars.BarColumn(28), bars.TimeElapsedColumn(),
    )  # fmt: skip
    console = Console(stderr=True)
    with bars.Progress(*columns, console=console, redirect_stdout=False, transient=True) as display:
        tasks: dict[str, Any] = {}

        def tell(step: str, done: float) -> None:
            if step not in tasks:
                tasks[step] = display.add_task(STEPS.get(step, step), total=None)
            elif done == 0:
                display.reset(tasks[step], total=None)
            if done > 0:
                display.update(tasks[step], total=1.0, completed=done)

        yield tell


def show(*parts: RenderableType) -> None:
    """Print rich renderables on stdout, plain where it is no terminal."""
    from rich.console import Console

    class Plain(Console):
        def on_broken_pipe(self) -> None:
            raise  # to `failures`, which knows the exit code

    console = Plain(highlight=False)
    for part in parts:
        console.print(part)


def show_slimmed(slimmed: Slimmed, folder: Path | None, as_json: bool) -> None:
    """The plan and the comparison, and where they were written."""
    from onebyone.report import plan_table, summary, to_json

    if as_json:
        show_json(to_json(slimmed.verification, slimmed.plan))
    else:
        show(plan_table(slimmed.plan), summary(slimmed.verification, slimmed.plan))
    if folder is not None:
        note(f"written to {folder}; open {folder / 'report.html'} in a browser")


def show_json(values: dict[str, Any]) -> None:
    """Print JSON, and nothing else, on stdout."""
    import json

    typer.echo(json.dumps(values, indent=2, ensure_ascii=False))


def note(*lines: str) -> None:
    """Tell something beside the result, on stderr."""
    for line in lines:
        typer.echo(f"note: {line}", err=True)


def tell_images(images: Images) -> None:
    """Say on stderr what there is to say about the images, such as files that could not be read."""
    from onebyone.slimming import told

    note(*told(images))
