"""The page's head: what became of the network in one sentence, and the numbers that matter."""

from __future__ import annotations

from collections.abc import Callable

from onebyone.report.markup import Markup, join, tag
from onebyone.report.numbers import (
    count,
    milliseconds,
    percent,
    points,
    ratio,
    share,
    size,
    small,
)  # fmt: skip
from onebyone.report.words import held_out, images
from onebyone.verification import Verification

MISSING = "not measured"


def headline(verification: Verification) -> str:
    """What is left of the cost."""
    before, after = verification.before, verification.after
    parts = [
        f"{share(now, was)} of the {what}"
        for now, was, what in (
            (after.macs, before.macs, "MACs"), (after.params, before.params, "parameters"),
        )
        if was
    ]  # fmt: skip
    return " and ".join(parts) + " are left" if parts else "There was nothing to make lighter"


def deeper_headline(verification: Verification) -> str:
    """What a deepened network costs beside its original."""
    before, after = verification.before, verification.after
    return (
        f"Deeper, with {share(after.macs, before.macs)} of the original’s MACs and "
        f"{share(after.params, before.params)} of its parameters"
    )


def quality_sentence(verification: Verification) -> str:
    """What that cost in quality, as far as it was measured."""
    before, after, many = verification.before, verification.after, held_out(verification.images)
    if before.accuracy is not None and after.accuracy is not None:
        return (
            f"Top-1 accuracy on {many} was {percent(before.accuracy)} and is "
            f"{percent(after.accuracy)}."
        )
    if not verification.images:
        return "No images were held out: how close the outputs stay was not measured."
    if verification.agreement is not None:
        return (
            f"Both networks choose the same class for {percent(verification.agreement)} of {many}."
        )
    if verification.output_error is not None:
        return f"The relative squared error of the output on {many} is {small(verification.output_error)}."
    return f"The outputs on {many} could not be compared."


def cards(verification: Verification) -> Markup:
    """Each number before and after, with bars to scale."""
    before, after = verification.before, verification.after
    found = [
        card("MACs, one image", before.macs, after.macs, count),
        card("Parameters", before.params, after.params, count),
        card("Weights on disk", before.weight_bytes, after.weight_bytes, size),
    ]
    for was, now in zip(before.latency, after.latency, strict=True):
        slower = " slower" if now.median_ms > 1.005 * was.median_ms else ""
        found.append(
            card(
                f"Latency, {images(was.batch)}", was.median_ms, now.median_ms, milliseconds, slower
            )
        )
    found.append(_quality(verification))
    return tag("ul", *found, class_=f"cards of{min(len(found), 6)}")


def card(
    label: str, before: float, after: float, spell: Callable[..., str], more: str = ""
) -> Markup:
    """One number before and after, with two bars; `more` stands behind what is left of it."""
    most = max(before, after) or 1
    factor = ratio(after, before)
    return tag(
        "li",
        tag("h2", label),
        tag("p", spell(after), class_="big"),
        tag("p", "was ", spell(before), tag("b", factor + more) if factor else "", class_="was"),
        _bars(before / most, after / most),
    )


def _bars(before: float | None, after: float) -> Markup:
    bars = [
        tag("i", class_=kind, style=f"width:{100 * value:.2f}%")
        for kind, value in (("before", before), ("after", after)) if value is not None
    ]  # fmt: skip
    return tag("div", *bars, class_="bars", aria_hidden="true")


def _quality(verification: Verification) -> Markup:
    """Accuracy, else agreement, else the output's error, else that nothing was measured."""
    before, after = verification.before.accuracy, verification.after.accuracy
    many = held_out(verification.images)
    if before is not None and after is not None:
        was = tag("p", "was ", percent(before), tag("b", points(after, before)), class_="was")
        inside = ("Top-1 accuracy", percent(after), join(was, _bars(before, after)))
    elif not verification.images:
        inside = ("Quality", MISSING, tag("p", "no images were held out", class_="was"))
    elif verification.agreement is not None and verification.kl is not None:
        said = tag(
            "p", f"of {many}", tag("b", f"KL {small(verification.kl)} nats"), class_="was"
        )  # fmt: skip
        inside = (
            "Same top-1 class as before", percent(verification.agreement),
            join(said, _bars(None, verification.agreement)),
        )  # fmt: skip
    elif verification.output_error is not None:
        said = tag("p", f"relative squared, on {many}", class_="was")
        inside = ("Error of the output", small(verification.output_error), said)
    else:
        inside = ("Quality", MISSING, tag("p", f"on {many}", class_="was"))
    label, big, rest = inside
    kind = "big none" if big == MISSING else "big"
    return tag("li", tag("h2", label), tag("p", big, class_=kind), rest)
