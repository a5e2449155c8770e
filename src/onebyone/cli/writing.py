"""Results in files, or on stdout instead of the table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import typer

STDOUT = "-"


@dataclass(frozen=True)
class Outputs:
    """The paths that the options for files gave, None where there is none; "-" is stdout."""

    paths: tuple[str | None, ...]

    @staticmethod
    def checked(*paths: str | None) -> Outputs:
        """With every file known to be writable before any work begins.

        Raises OutputError where two are the same, or one cannot be written.
        """
        from onebyone.errors import OutputError

        given = [path for path in paths if path is not None]
        twice = next((path for path in given if given.count(path) > 1), None)
        if twice is not None:
            raise OutputError(f"{twice} is given for two kinds of output: give each its own file")
        for path in given:
            if path != STDOUT:
                _check(Path(path))
        return Outputs(paths)

    @property
    def on_stdout(self) -> bool:
        """Whether stdout is taken by one of them."""
        return STDOUT in self.paths

    def write(self, *texts: Callable[[], str]) -> None:
        """Each text to its path, in the order of the paths; files appear whole or not at all."""
        from onebyone.files import write_text

        for path, text in zip(self.paths, texts, strict=True):
            if path == STDOUT:
                typer.echo(text(), nl=False)
            elif path is not None:
                write_text(path, text())


def _check(path: Path) -> None:
    """Refuse a folder, and a file in a folder that is not there."""
    from onebyone.errors import OutputError
    from onebyone.files import check_writable

    if path.is_dir():
        raise OutputError(f"{path} is a folder: give the name of a file")
    if not path.absolute().parent.is_dir():
        raise OutputError(f"{path} cannot be written: there is no folder {path.parent}")
    check_writable(path)
