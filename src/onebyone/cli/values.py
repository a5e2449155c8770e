"""Option texts → values; what does not parse is a usage error, before any work begins."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any

import typer

MOST_THREADS = 256  # or four for each processor core, where that is more
SHAPES = {1: "224", 2: "224x320", 3: "3x224x224", 4: "3x16x224x224"}
UNITS = {
    "": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
    "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40,
    "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40,
}  # fmt: skip


def lengths(text: str | None, option: str, counts: Sequence[int]) -> tuple[int, ...] | None:
    """Whole lengths such as 3x224x224, as many as `counts` allows.

    >>> lengths("3x224x224", "--input", (3,))
    (3, 224, 224)
    """
    if text is None:
        return None
    parts = re.split("[x×X,]", text.strip())
    if len(parts) not in counts or not all(map(_is_length, parts)):
        wanted = " or ".join(SHAPES[n] for n in counts)
        raise typer.BadParameter(f"{text!r} is no size: give {wanted}", param_hint=option)
    return tuple(int(p) for p in parts)


def _is_length(text: str) -> bool:
    """Whether a text is a whole number above 0, short enough for a length in memory."""
    return bool(re.fullmatch(r"\s*[0-9]{1,18}\s*", text)) and int(text) > 0


def file_option(what: str, panel: str | None = None, name: str | None = None) -> Any:
    """--json, --csv and their like, for any command: where to write what."""
    names = () if name is None else (name,)
    return typer.Option(
        *names, metavar="FILE", show_default=False, rich_help_panel=panel,
        help=f"Write {what}; - is stdout.",
    )  # fmt: skip


def threads_option(help: str, panel: str | None = None) -> Any:
    """--threads, for any command."""
    return typer.Option(metavar="N", min=1, callback=_threads, rich_help_panel=panel, help=help)


def mean_option(panel: str | None = None) -> Any:
    """--mean, for any command that reads pictures."""
    return typer.Option(
        metavar="NUMBERS", rich_help_panel=panel,
        help="Subtract this from pixel values on the scale 0 to 1, such as 0.485,0.456,0.406.",
    )  # fmt: skip


def std_option(panel: str | None = None) -> Any:
    """--std, for any command that reads pictures."""
    return typer.Option(
        metavar="NUMBERS", rich_help_panel=panel,
        help="Then divide by this, such as 0.229,0.224,0.225.",
    )  # fmt: skip


def size_option(panel: str | None = None, what: str = "images") -> Any:
    """--size, for any command that reads pictures."""
    return typer.Option(
        metavar="HxW", rich_help_panel=panel,
        help=f"Bring {what} to this size, such as 224; by default the network's own.",
    )  # fmt: skip


def weights_option(panel: str) -> Any:
    """--weights, for any command that takes a network."""
    return typer.Option(
        metavar="FILE", rich_help_panel=panel,
        help="The trained weights: .safetensors, .pt or .pth; random draws them.",
    )  # fmt: skip


def original_weights_option(panel: str | None = None) -> Any:
    """--weights, for any command that takes a folder of ours and its original."""
    return typer.Option(
        metavar="FILE", rich_help_panel=panel, help="The original's weights, where they moved."
    )


def input_option(panel: str) -> Any:
    """--input, for any command that takes one network."""
    return typer.Option(
        "--input", metavar="CxHxW", rich_help_panel=panel,
        help="The network's input size, where it is not known, such as 3x224x224.",
    )  # fmt: skip


def trust_option(panel: str | None = None) -> Any:
    """--trust, for any command that reads a network."""
    return typer.Option(
        "--trust", rich_help_panel=panel,
        help="Read files that run code when they are read. Only for authors you trust.",
    )  # fmt: skip


def force_option(panel: str) -> Any:
    """--force, for any command that writes a folder."""
    return typer.Option(
        "--force", rich_help_panel=panel, help="Replace what stands at -o, whatever it is."
    )


def _threads(count: int | None) -> int | None:
    """The number itself; a process dies where OpenMP cannot start as many threads as it is told to."""
    most = max(MOST_THREADS, 4 * (os.cpu_count() or 1))
    if count is not None and count > most:
        raise typer.BadParameter(
            f"{count:,} are more threads than help on this machine: give {most} at most"
        )
    return count


def numbers(text: str | None, option: str) -> tuple[float, ...] | None:
    """One number, or one a channel with commas between, on the scale 0 to 1.

    >>> numbers("0.485,0.456,0.406", "--mean")
    (0.485, 0.456, 0.406)
    """
    if text is None:
        return None
    try:
        values = tuple(float(p) for p in re.split(r"[,\s]+", text.strip()))
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is no list of numbers: give one, or one a channel, as in 0.5,0.4,0.4",
            param_hint=option,
        ) from None
    if any(not abs(v) <= 1.5 for v in values):
        raise typer.BadParameter(
            f"{text!r} is not on the scale 0 to 1 of pixel values: divide by 255", param_hint=option
        )
    return values


def memory(text: str, option: str = "--memory") -> int:
    """Bytes: 2GiB, 512MiB, 1.5GB, 2e9; K, M, G and T alone are binary.

    >>> memory("2GiB"), memory("2e9")
    (2147483648, 2000000000)
    """
    found = re.fullmatch(r"\s*([\d.]+(?:e\d+)?)\s*([a-z]*)\s*", text.lower())
    try:
        size = int(float(found[1]) * UNITS[found[2]]) if found else 0
    except (KeyError, ValueError, OverflowError):
        size = 0
    if size < 1 << 20:
        raise typer.BadParameter(
            f"{text!r} is no amount of memory from 1MiB up: give 2GiB, 512MiB or 2e9",
            param_hint=option,
        )
    return size


def seed(given: int) -> int:
    """What random numbers can start from: 64 bits."""
    if not -(1 << 63) <= given < 1 << 63:
        raise typer.BadParameter(f"{given} has more than the 64 bits of a seed: give a smaller one")
    return given
