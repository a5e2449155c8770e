"""Progress on stderr, tables on stdout."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.console import RenderableType

    from onebyone.data import Images
    from onebyone.deepening.deepening import Deepened
    from onebyone.slimming import Slimmed

STEPS = {
    "load": "loading the network",
    "read": "reading the images",
    "observe": "observing the network",
    "plan": "planning",
    "finetune": "fine-tuning",
    "pace": "timing layers and planning",
    "rewrite": "solving layer by layer",
    "search": "searching the smallest network",
    "probe": "probing where depth pays",
    "verify": "comparing before and after",
    "compare": "comparing layer by layer",
    "save": "writing the results",
    "look": "looking into the layers",
    "explain": "making the page",
    "measure": "measuring",
    "export": "exporting, checking and timing",
    "bench": "timing in every runtime",
}
UNSEEN = dict.fromkeys(
    {*range(32), *range(127, 160), *range(0xD800, 0xE000)} - {*b"\t\n"}, "\N{REPLACEMENT CHARACTER}"
)
Progress = Callable[..., None]  # (step, fraction done), and perhaps a few words on how it goes


def leads() -> bool:
    """Whether this process is the one that shows and writes: the first of those that torchrun started."""
    return os.environ.get("RANK", "0") == "0" or "WORLD_SIZE" not in os.environ


@contextmanager
def progress() -> Iterator[Progress]:
    """A function to tell (step, fraction done) to; it draws bars on a terminal, else nothing."""
    if not sys.stderr.isatty() or not leads():
        yield lambda step, done, words="": None
        return
    from rich import progress as bars
    from rich.console import Console

    console = Console(stderr=True)
    columns = (
        bars.SpinnerColumn(finished_text="[green]✓"), bars.TextColumn("{task.description}"),
        bars.BarColumn(None), bars.TimeElapsedColumn(), bars.TextColumn("{task.fields[words]}"),
    )  # fmt: skip
    with bars.Progress(*columns, console=console, redirect_stdout=False, transient=True) as display:
        tasks: dict[str, Any] = {}

        def tell(step: str, done: float, words: str = "") -> None:
            if step not in tasks:
                tasks[step] = display.add_task(STEPS.get(step, step), total=None, words="")
            elif done == 0:
                display.reset(tasks[step], total=None)
            if done > 0:
                display.update(tasks[step], total=1.0, completed=done, words=words)

        yield tell


def show(*parts: RenderableType) -> None:
    """Print rich renderables on stdout, plain where it is no terminal."""
    from rich.console import Console, ConsoleOptions
    from rich.segment import Segment

    class Plain(Console):
        def on_broken_pipe(self) -> None:
            raise  # to `failures`, which knows the exit code

        def render(
            self, renderable: RenderableType, options: ConsoleOptions | None = None
        ) -> Iterator[Segment]:
            for text, style, control in super().render(renderable, options):
                yield Segment(text if control else shown(text), style, control)

    console = Plain(highlight=False)
    with _to_stdout():
        for part in parts:
            console.print(part)


@contextmanager
def _to_stdout() -> Iterator[None]:
    """OutputError, which says what could not be written, for a full disk; `failures` knows closed pipes."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.EPIPE or error.filename:
            raise
        from onebyone.errors import OutputError

        raise OutputError(
            f"standard output cannot be written: {error.strerror or error}"
        ) from error


def show_slimmed(slimmed: Slimmed | Deepened, folder: Path | None, as_json: bool) -> None:
    """The plan and the comparison, and where they were written."""
    if not leads():
        return
    from onebyone.report import plan_table, summary, to_json

    if as_json:
        show_json(to_json(slimmed.verification, slimmed.plan))
    else:
        show(plan_table(slimmed.plan), summary(slimmed.verification, slimmed.plan))
    if folder is not None:
        from onebyone.files import PLAN
        from onebyone.plan_files import read_plan

        note(f"written to {folder}; open {folder / 'report.html'} in a browser", _sizes(folder))
        told = read_plan(folder / PLAN).notes
        note(*(text for text in told if text not in slimmed.plan.notes))


def _sizes(folder: Path) -> str:
    """What the files that a runtime reads take on disk."""
    from onebyone.files import ONNX, PROGRAM, WEIGHTS
    from onebyone.report.numbers import size

    found = [folder / name for name in (ONNX, PROGRAM, WEIGHTS)]
    return "on disk: " + ", ".join(
        f"{p.name} {size(p.stat().st_size)}" for p in found if p.is_file()
    )


def show_json(values: dict[str, Any]) -> None:
    """Print JSON, and nothing else, on stdout."""
    import json

    from onebyone.files import encodable

    with _to_stdout():
        typer.echo(encodable(json.dumps(values, indent=2, ensure_ascii=False)))


def note(*lines: str) -> None:
    """Tell something beside the result, on stderr."""
    for line in lines if leads() else ():
        typer.echo(f"note: {shown(line)}", err=True)


def shown(text: str) -> str:
    """What names may hold that is no text, or would tell a terminal to do something, as marks."""
    return text.translate(UNSEEN)


def tell_images(images: Images) -> None:
    """Say on stderr what there is to say about the images, such as files that could not be read."""
    from onebyone.slimming import told

    note(*told(images))
