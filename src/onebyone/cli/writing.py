"""Results that go to files, each whole or not at all, or to stdout."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import typer

from onebyone.cli.failures import Outcome
from onebyone.cli.showing import note

STDOUT = "-"


def check_files(files: Mapping[str, str]) -> None:
    """Try the path of each option before any work is done; OutputError where it cannot be written."""
    from onebyone.errors import OutputError
    from onebyone.files import check_writable

    for path in dict.fromkeys(files.values()):
        same = [f"--{option}" for option, other in files.items() if other == path]
        if len(same) > 1:
            raise OutputError(f"{' and '.join(same)} cannot both go to {path}: give each its own")
        if path == STDOUT:
            continue
        if Path(path).is_dir():
            raise OutputError(f"{path} is a folder: give the name of a file")
        if not Path(path).absolute().parent.is_dir():
            raise OutputError(f"{path} cannot be written: there is no folder {Path(path).parent}")
        check_writable(Path(path))


def write_files(
    files: Mapping[str, str], makers: Mapping[str, Callable[[], str]], outcome: Outcome
) -> None:
    """Write what each option asked for; all texts are made before the first is written."""
    from onebyone.files import write_text

    made = {option: makers[option]() for option in files}
    for option, path in files.items():
        if path == STDOUT:
            typer.echo(made[option], nl=False)
        else:
            write_text(path, made[option])
            outcome.written = Path(path)
            note(f"written to {path}")
