"""What a count has in it and what it has not, in the words that all reports share."""

from __future__ import annotations

from onebyone.measurement.counting import Count
from onebyone.report.numbers import count
from onebyone.report.words import layer_name

NAMED = 3  # operators and layers that a sentence names


def coverage(counted: Count) -> list[str]:
    """Where the MACs come from, what was not counted, what may hide products, what never ran."""
    weighted = sum(o.macs is not None for o in counted.operations)
    lines = [f"MACs come from {weighted:,} operator{'s' * (weighted != 1)}"]
    if counted.uncounted:
        first = list(counted.uncounted.items())[:NAMED]
        named = [f"{name.removeprefix('aten.')} ({_elements(number)})" for name, number in first]
        lines[0] += f"; not counted: {', '.join(named)}{_more(len(counted.uncounted))}"
    if counted.unknown:
        lines.append(f"not PyTorch's own, and may hide products: {', '.join(counted.unknown)}")
    if counted.unused:
        named = [layer_name(name) for name in counted.unused[:NAMED]]
        lines.append(f"never ran: {', '.join(named)}{_more(len(counted.unused))}")
    return lines


def _elements(number: int) -> str:
    return f"{count(number)} element{'s' * (number != 1)}"


def _more(number: int) -> str:
    return f" and {number - NAMED} more" if number > NAMED else ""
