"""Results in files, or on stdout instead of the table."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import typer

STDOUT = "-"


@dataclass(frozen=True)
class Outputs:
    """The paths that the options for files gave, None where there is none; "-" is stdout."""

    paths: tuple[str | None, ...]

    @staticmethod
    def checked(*paths: str | None, inputs: Iterable[str | None] = ()) -> Outputs:
        """With every file known to be writable before any work begins.

        Raises OutputError where two are the same file, one cannot be written, or one is a file that
        `inputs` (networks and weights, as they were given) name.
        """
        from onebyone.errors import OutputError

        given = [path for path in paths if path is not None]
        for index, path in enumerate(given):
            if any(_same(path, other) for other in given[:index]):
                raise OutputError(
                    f"{path} is given for two kinds of output: give each its own file"
                )
        for path in given:
            if not path:
                raise OutputError(
                    'the name of a file to write is empty: give one, or "-" for stdout'
                )
            if path != STDOUT:
                check_spared(path, inputs)
                _check(Path(path))
        return Outputs(paths)

    @property
    def on_stdout(self) -> bool:
        """Whether stdout is taken by one of them."""
        return STDOUT in self.paths

    def write(self, *texts: Callable[[], str]) -> None:
        """Each text to its path, in the order of the paths; files appear whole or not at all."""
        from onebyone.files import encodable, write_text

        for path, text in zip(self.paths, texts, strict=True):
            if path == STDOUT:
                typer.echo(encodable(text()), nl=False)
            elif path is not None:
                write_text(path, text())


def check_spared(output: str | Path, inputs: Iterable[str | None]) -> None:
    """Raise OutputError where writing the output would replace a file that one of the inputs names."""
    from onebyone.errors import OutputError

    for given in inputs:
        for path in () if given is None else _files_of(given):
            if path.is_file() and _same(output, path):
                raise OutputError(
                    f"the output {output} would replace {path}, which this command reads: give another "
                    "file"
                )


def _files_of(given: str) -> list[Path]:
    """What may be read for an input: the file, what onebyone wrote into the folder, or the module."""
    from onebyone.files import SLIMMED

    path = Path(given)
    found = [path, *(path / name for name in SLIMMED)]
    module, colon, _ = given.partition(":")
    names = module.split(".")
    if colon and all(name.isidentifier() for name in names):
        found += [Path(*names[:-1], f"{names[-1]}.py"), Path(*names, "__init__.py")]
    return found


def _same(one: str | Path, other: str | Path) -> bool:
    """Whether both paths are one file, however they are spelled."""
    if STDOUT in (one, other):
        return one == other
    one, other = Path(one), Path(other)
    with suppress(OSError):
        return one.samefile(other)
    return one.resolve() == other.resolve()


def _check(path: Path) -> None:
    """Refuse a folder, and a file in a folder that is not there."""
    from onebyone.errors import OutputError
    from onebyone.files import check_file

    if not path.absolute().parent.is_dir():
        raise OutputError(f"{path} cannot be written: there is no folder {path.parent}")
    check_file(path)
