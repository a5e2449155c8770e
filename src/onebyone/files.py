"""Files that appear whole or not at all, and the names of those in a slimmed folder."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from onebyone.errors import OutputError

PLAN, WEIGHTS, PROGRAM, ONNX = "plan.json", "weights.safetensors", "model.pt2", "model.onnx"
REPORT, REPORT_JSON = "report.html", "report.json"
EXPORTS = "exports.json"
EXPORTED = tuple(
    f"model{kind}{suffix}"
    for kind in ("", ".float16", ".int8")
    for suffix in (
        ".onnx", ".xml", ".bin", ".pte", ".tflite", ".tflite.json", ".ncnn.param", ".ncnn.bin",
        ".ncnn.param.json",
    )
)  # fmt: skip
SAVED = (PLAN, WEIGHTS, PROGRAM, ONNX, REPORT, REPORT_JSON)
SLIMMED = (*dict.fromkeys((*SAVED, EXPORTS, *EXPORTED)),)
LINE = 160  # JSON values that fit on a line of this length are not broken up


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text beside the path first, then put it in place at once.

    Raises OutputError where that cannot be done; what stood at the path is untouched then.
    """
    with staged(Path(path)) as file:
        file.write_text(encodable(text), encoding="utf-8")


def encodable(text: str) -> str:
    """What is no UTF-8 in names of files and layers, as escapes (JSON's own look the same)."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


@contextmanager
def staged(path: Path) -> Iterator[Path]:
    """A file beside the path to write to, which takes its place at once if all goes well.

    A link stays, and what it leads to is replaced; a device or pipe is written to.
    Raises OutputError where it cannot be written; what stood at the path is untouched then.
    """
    beside: str | None = None
    try:
        if is_stream(path):
            with tempfile.TemporaryDirectory() as around:
                yield Path(around, "out")
                path.write_bytes(Path(around, "out").read_bytes())
            return
        if path.is_symlink():
            path = path.resolve()
        handle, beside = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
        os.close(handle)
        yield Path(beside)
        share(beside)
        os.replace(beside, path)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        if beside is not None:
            with suppress(OSError):
                os.unlink(beside)


def is_stream(path: Path) -> bool:
    """Whether it is a device or a pipe, which nothing can take the place of."""
    return path.exists() and not path.is_file() and not path.is_dir()


def check_writable(path: Path) -> None:
    """Try whether a file or folder can be made here, before any work is done for it.

    Raises OutputError where it cannot; nothing is left behind.
    """
    if is_stream(path) and os.access(path, os.W_OK):
        return
    path = path.resolve() if path.is_symlink() else path
    parent = next(p for p in path.absolute().parents if p.exists())
    try:
        os.rmdir(tempfile.mkdtemp(prefix=f".{path.name}-", dir=parent))
    except OSError as error:
        raise OutputError(
            f"{path} cannot be written: {error.strerror or error}; give another place"
        ) from error


def check_file(path: Path) -> None:
    """Try whether a file can be made here, before any work is done for it.

    Raises OutputError where it cannot, or where a folder stands there; nothing is left behind.
    """
    if path.is_dir():
        raise OutputError(f"{path} is a folder: give the name of a file")
    check_writable(path)


def share(path: str | Path) -> None:
    """Give a file the permissions that a new one gets here; temporary files are the owner's alone."""
    mask = os.umask(0)
    os.umask(mask)
    os.chmod(path, 0o666 & ~mask)


def json_text(values: Any) -> str:
    """JSON for people: what fits on one line stays on one.

    >>> print(json_text({"ranks": {"in": 8}, "kernel": [3, 3]}))
    {"ranks": {"in": 8}, "kernel": [3, 3]}
    <BLANKLINE>
    """
    return _indented(values, 0) + "\n"


def _indented(value: Any, depth: int) -> str:
    flat = json.dumps(value, ensure_ascii=False)
    if not isinstance(value, dict | list | tuple) or not value or len(flat) + 2 * depth <= LINE:
        return flat
    inner = "  " * (depth + 1)
    if isinstance(value, dict):
        items = [f"{json.dumps(str(k))}: {_indented(v, depth + 1)}" for k, v in value.items()]
    else:
        items = [_indented(v, depth + 1) for v in value]
    left, right = "{}" if isinstance(value, dict) else "[]"
    return f"{left}\n{inner}" + f",\n{inner}".join(items) + f"\n{'  ' * depth}{right}"
