"""Numbers as people read them; one spelling for the terminal and the page."""

from __future__ import annotations

from onebyone.planning import Decision


def count(value: int) -> str:
    """Three digits and a unit: 29.1 M.

    >>> count(29_113_344), count(1_290), count(12)
    ('29.1 M', '1,290', '12')
    """
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if value >= 10 * size or (unit != "k" and value >= size):
            scaled = value / size
            digits = 2 if scaled < 10 else 1 if scaled < 100 else 0
            return f"{scaled:.{digits}f} {unit}"
    return f"{value:,}"


def size(value: int) -> str:
    """Bytes in binary units: 1.10 MiB.

    >>> size(1_154_472), size(40)
    ('1.10 MiB', '40 B')
    """
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if value >= scale:
            scaled = value / scale
            digits = 2 if scaled < 10 else 1 if scaled < 100 else 0
            return f"{scaled:.{digits}f} {unit}"
    return f"{value} B"


def milliseconds(value: float) -> str:
    """Three digits: 4.32 ms.

    >>> milliseconds(4.3187), milliseconds(0.0412), milliseconds(812.4)
    ('4.32 ms', '0.041 ms', '812 ms')
    """
    digits = 3 if value < 1 else 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:.{digits}f} ms"


def percent(value: float) -> str:
    """With two digits where they matter: 0.9392 is 93.92 %."""
    return f"{100 * value:.2f} %"


def ratio(after: float, before: float) -> str:
    """What is left, as a factor: ×0.50; nothing where there was nothing."""
    return f"×{after / before:.2f}" if before else ""


def small(value: float) -> str:
    """An error: 0.0123, or 3.1e-05 where that says more."""
    return "0" if value == 0 else f"{value:.4f}" if value >= 0.001 else f"{value:.1e}"


def becomes(decision: Decision) -> str:
    """What stands in a layer's place, channels all the way through: 64→24→32→64."""
    if not decision.ranks or decision.conv is None:
        return ""
    chain = (decision.conv.c_in, *decision.ranks, decision.conv.c_out)
    return "→".join(map(str, chain))
