"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path

from onebyone.errors import OutputError


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text beside the path first, then put it in place at once.

    Raises OutputError where that cannot be done; what stood at the path is untouched then.
    """
    path = Path(path)
    staged: str | None = None
    try:
        handle, staged = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(staged, 0o644)
        os.replace(staged, path)
    except OSError as error:
        if staged is not None:
            with suppress(OSError):
                os.unlink(staged)
        raise OutputError(f"{path} cannot be written: {error.strerror or error}") from error
