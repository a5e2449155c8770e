"""Every error that onebyone raises on purpose: what was given, what was expected, what to do."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral, Real
from textwrap import shorten
from typing import Any, TypeGuard

LONGEST = 300
PLACES = ("Exception from ", "Check '")  # lines by which OpenVINO begins


class OneByOneError(Exception):
    """The root: the user can mend what the message says. The command line exits with code 2."""


class ModelError(OneByOneError):
    """A model that cannot be loaded, run or rewritten."""


class DataError(OneByOneError):
    """Images or labels that are missing, unreadable or of the wrong shape."""


class BudgetError(OneByOneError):
    """A budget outside (0, 1], or one that no plan can meet."""


class ShapeError(OneByOneError):
    """Sizes, channels or kernels that do not fit one another."""


class PlanError(OneByOneError):
    """A plan that does not fit the model, or whose file is damaged."""


class OutputError(OneByOneError):
    """An output that cannot be written: the folder is not ours, the disk is full."""


class MissingExtraError(OneByOneError):
    """An optional package is not installed; the message has the command that installs it."""


class TrainingError(OneByOneError):
    """A training that cannot start, go on or be resumed.

    `best` is the FineTuned that was reached before, None where there was none.
    """

    best: Any = None


class LostError(TrainingError):
    """Another of the processes that worked together is gone."""


def is_number(value: object) -> TypeGuard[float]:
    """Whether it is a real number, numpy's too; True and False are none."""
    return isinstance(value, Real) and not isinstance(value, bool)


def is_whole(value: Any) -> bool:
    """Whether it is a whole number, numpy's too; True and False are none."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def whole(
    name: str, value: Any, least: int, *, most: int | None = None, error: type[OneByOneError]
) -> int:
    """An argument as a whole number from `least` (to `most`), numpy's too; `error` says what it is not."""
    if not is_whole(value) or value < least or (most is not None and value > most):
        span = f"of {least:,} or more" if most is None else f"from {least:,} to {most:,}"
        raise error(f"{name}={value!r} does not fit: give a whole number {span}")
    return int(value)


def seeded(seed: Any, error: type[OneByOneError]) -> int:
    """A seed of random numbers: a whole number that fits in 64 bits."""
    return whole("seed", seed, -(1 << 63), most=(1 << 63) - 1, error=error)


def as_bytes(memory: Any, error: type[OneByOneError]) -> int:
    """An amount of memory as whole bytes: any number from 1 up."""
    if not is_number(memory) or not memory >= 1:
        raise error(f"memory={memory!r} does not fit: give a number of bytes, such as 2 << 30")
    return int(min(memory, 1 << 62))


def listed(names: Sequence[str], most: int = 4) -> str:
    """The first few names of a message, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def said_of(names: Sequence[str], reason: str) -> str:
    """A reason why one layer is as it is, as it reads behind the names of several that have it.

    >>> said_of(["a", "b"], "its weight is tied"), said_of(["a"], "its weight is tied")
    ('their weight is tied', 'its weight is tied')
    """
    if len(names) > 1:
        for one, several in (
            ("its ", "their "),
            ("it ", "each "),
            ("no form of it ", "no form of any "),
        ):
            if reason.startswith(one):
                return several + reason.removeprefix(one)
    return reason


def names_in(text: str) -> list[str]:
    """The names in a text that has commas between them."""
    return [name.strip() for name in text.split(",") if name.strip()]


def line_of(error: BaseException) -> str:
    """The first line of what an error says, past where compiled code says it failed; "" for nothing.

    Not more of it than `LONGEST` letters: PyTorch lists all its back ends where one lacks an operator.
    """
    lines = str(error).strip().splitlines()
    telling = (line for line in lines if not line.startswith(PLACES))
    line = next((line.strip() for line in telling if line.strip()), lines[0] if lines else "")
    return line if len(line) <= LONGEST else shorten(line, LONGEST, placeholder=" …")
