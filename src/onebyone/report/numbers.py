"""Numbers as people read them; one spelling for the terminal and the page."""

from __future__ import annotations

from onebyone.plans import Decision


def count(value: int) -> str:
    """Three digits and a unit: 29.1 M.

    >>> count(29_113_344), count(1_290), count(12), count(999_999)
    ('29.1 M', '1,290', '12', '1.00 M')
    """
    if value < 10_000:
        return f"{value:,}"
    return _scaled(value, (("G", 10**9), ("M", 10**6), ("k", 10**3)))


def size(value: int) -> str:
    """Bytes in binary units: 1.10 MiB.

    >>> size(1_154_472), size(40)
    ('1.10 MiB', '40 B')
    """
    if value < 2**10:
        return f"{value} B"
    return _scaled(value, (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)))


def _scaled(value: int, units: tuple[tuple[str, int], ...]) -> str:
    """In the largest unit of which there is one, once rounded to three digits."""
    rounded = float(f"{value:.3g}")
    unit, scale = next((u for u in units if rounded >= u[1]), units[-1])
    return f"{_three(value / scale)} {unit}"


def _three(value: float) -> str:
    """Three digits: 1.23, 12.3, 123; all of them from 1,000 on."""
    rounded = float(f"{value:.3g}") if value < 1000 else value
    digits = 2 if rounded < 10 else 1 if rounded < 100 else 0
    return f"{value:,.{digits}f}"


def milliseconds(value: float) -> str:
    """Three digits: 4.32 ms.

    >>> milliseconds(4.3187), milliseconds(0.0412), milliseconds(812.4)
    ('4.32 ms', '0.041 ms', '812 ms')
    """
    return f"{value:.3f} ms" if value < 0.9995 else f"{_three(value)} ms"


def percent(value: float) -> str:
    """With two digits where they matter: 0.9392 is 93.92 %."""
    return f"{100 * value:.2f} %"


def points(after: float, before: float) -> str:
    """The difference of two fractions: −0.12 points.

    >>> points(0.9378, 0.939), points(0.9, 0.9)
    ('−0.12 points', '±0.00 points')
    """
    difference = round(100 * (after - before), 2)
    sign = "−" if difference < 0 else "+" if difference > 0 else "±"
    return f"{sign}{abs(difference):.2f} points"


def ratio(after: float, before: float) -> str:
    """What is left, as a factor: ×0.50; nothing where there was nothing."""
    return f"×{after / before:.2f}" if before else ""


def share(after: float, before: float) -> str:
    """What is left, as a part of the whole: 50 %, 4.2 %; nothing where there was nothing.

    >>> share(145, 290), share(4.2, 100), share(1, 0)
    ('50 %', '4.2 %', '')
    """
    if not before:
        return ""
    value = 100 * after / before
    return f"{value:.0f} %" if value >= 9.95 or value == 0 else f"{value:.1f} %"


def small(value: float) -> str:
    """An error: 0.0123, or 3.1e-05 and 1.7e16 where that says more.

    >>> small(0.01234), small(3.1e-5), small(9999.5), small(10_000), small(1.7e16)
    ('0.0123', '3.1e-05', '9999.5000', '1.0e4', '1.7e16')
    """
    if value == 0:
        return "0"
    if value >= 0.001 and round(value, 4) < 10_000:
        return f"{value:.4f}"
    return f"{value:.1e}".replace("e+0", "e").replace("e+", "e")


def becomes(decision: Decision) -> str:
    """What stands in a layer's place, channels all the way through: 64→24→32→64."""
    shape = decision.shaped
    if shape is None or not (decision.ranks or decision.shape):
        return ""
    chain = (shape.c_in, *(rank * shape.groups for rank in decision.ranks), shape.c_out)
    return "→".join(map(str, chain))
