"""Names and sentences that the terminal and the page share."""

from __future__ import annotations

from collections.abc import Iterable

from onebyone.conv import ConvSpec
from onebyone.errors import listed, said_of
from onebyone.forms import FORMS
from onebyone.measurement.latency import Latency
from onebyone.plans import Decision, Plan
from onebyone.report.numbers import becomes, percent, small
from onebyone.verification import Verification

UNCHANGED = ("keep", "refuse")


def widths(plan: Plan) -> list[str]:
    """The hidden channels that are left, space by space: `narrow 64→40: conv1`."""
    return [f"narrow {n.channels}→{n.width}: {layer_name(n.layer)}" for n in plan.narrowings]


def layer_name(layer: str) -> str:
    """The qualified name; the root has none."""
    return layer or "(the network)"


def form_title(form: str) -> str:
    """A form in plain words; a refused layer is left as it is."""
    return FORMS[form].title if form in FORMS else "left as it is"


def geometry(decision: Decision) -> str:
    """The original layer: `64→128 3×3 /2`; nothing for a kind without formulas."""
    return _text(decision.conv)


def _text(conv: ConvSpec | None) -> str:
    if conv is None:
        return ""
    return conv.text() if conv.kernel else f"{conv.text()} linear"


def chain(decision: Decision) -> str:
    """The layer with all its channels: `64→24→128 3×3 /2`, or its geometry where it stays."""
    shape = decision.shaped
    if shape is None or not decision.ranks:
        return _text(shape)
    return becomes(decision) + _text(shape).removeprefix(f"{shape.c_in}→{shape.c_out}")


def reasons(plan: Plan) -> list[str]:
    """Why layers stay, each reason once with its layers."""
    found: dict[tuple[str, str], list[str]] = {}
    for decision in plan.decisions:
        if decision.reason:
            key = (form_title(decision.form), decision.reason)
            found.setdefault(key, []).append(layer_name(decision.layer))
    lines = []
    for (title, reason), layers in found.items():
        lines.append(f"{title}: {listed(layers)}: {said_of(layers, reason)}")
    return lines


def images(number: int) -> str:
    """So many images."""
    return f"{number:,} image" + "s" * (number != 1)


def held_out(number: int) -> str:
    """So many held-out images."""
    return f"{number:,} held-out image" + "s" * (number != 1)


def threads(number: int) -> str:
    """So many threads."""
    return f"{number} thread" + "s" * (number != 1)


def fidelity(verification: Verification) -> list[str]:
    """How close the lighter network stays to the original, in sentences."""
    if not verification.images:
        return ["No images were held out: how close the outputs stay was not measured."]
    lines = []
    many = held_out(verification.images)
    if verification.agreement is not None and verification.kl is not None:
        lines.append(
            f"On {many} both networks choose the same class for "
            f"{percent(verification.agreement)}; KL divergence {small(verification.kl)} nats."
        )
    if verification.output_error is not None:
        lines.append(
            f"Relative squared error of the output: {small(verification.output_error)}"
            + ("." if lines else f", on {many}.")
        )
    return lines


def clock_notes(times: Iterable[Latency]) -> list[str]:
    """What must be known of the clock, such as that the machine was busy.

    Each run says so in numbers of its own: the first that has anything to say speaks for all.
    """
    notes = next((latency.notes for latency in times if latency.notes), ())
    return [f"{note[:1].upper()}{note[1:].rstrip('.')}." for note in notes]


def conditions(before: Latency, after: Latency) -> str:
    """How the clock was read."""
    return (
        f"Latency: {before.runtime}, {before.device}, {threads(before.threads)}, {before.dtype}, "
        f"medians of interleaved runs after {before.warmup} to warm up; for {images(before.batch)} "
        f"the quartiles are {before.low_ms:.3g}–{before.high_ms:.3g} ms before and "
        f"{after.low_ms:.3g}–{after.high_ms:.3g} ms after."
    )
