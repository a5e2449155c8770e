"""The table layer by layer, what the forms mean, and how everything was measured."""

from __future__ import annotations

from collections import Counter
from math import isfinite

from onebyone.forms import FORMS
from onebyone.measurement.latency import Latency
from onebyone.plans import Decision, Plan
from onebyone.report.markup import Content, Markup, join, tag
from onebyone.report.numbers import becomes, count, milliseconds, ratio, small
from onebyone.report.picture import used_forms
from onebyone.report.words import (
    UNCHANGED,
    clock_notes,
    form_title,
    geometry,
    images,
    layer_name,
    threads,
)
from onebyone.verification import Verification

COLUMNS = (
    ("#", ""), ("layer", "name"), ("was", "geometry"), ("becomes", "became"), ("before", "number"),
    ("after", "number"), ("kept", "number"), ("before", "number"), ("after", "number"),
    ("kept", "number"), ("predicted", "number"), ("measured", "number"),
)  # fmt: skip
GROUPS = ((4, ""), (3, "MACs, one image"), (3, "parameters"), (2, "error"))
NONE = "–"
SCORE = (
    "The fall of the loss, in nats per image, that the best step along the gradient of an insertion "
    "promises, measured by a short probe. The budget was filled by the most score for its cost."
)
PREDICTED = (
    "The estimated rise of the loss, in nats per image, from what a form leaves out, weighted by the "
    "gradients of the loss. Planning minimises the sum."
)
MEASURED = (
    "Error of each layer’s output inside the lighter network: mean squared difference from the "
    "original’s, relative to the variance of the original’s. It adds up over the layers before it, so "
    "kept layers have one too."
)
LONG = 24  # characters of a name from which it may be broken


def layer_table(plan: Plan, errors: dict[str, float]) -> Markup:
    """One row a layer, then what is no layer of the plan, then the whole; `errors` are measured ones."""
    groups = [
        tag("td", colspan=span) if not label
        else tag("th", label, colspan=span, scope="colgroup", class_="group")
        for span, label in GROUPS
    ]  # fmt: skip
    heads = [tag("th", label, scope="col", class_=kind or None) for label, kind in COLUMNS]
    rows = [_row(i, d, errors.get(d.layer)) for i, d in enumerate(plan.decisions)]
    longest = max((len(layer_name(d.layer)) for d in plan.decisions), default=0)
    table = tag(
        "table",
        tag("caption", "Every layer in the order that data reaches it", class_="sr"),
        tag("thead", tag("tr", *groups), tag("tr", *heads)),
        tag("tbody", *rows),
        tag("tfoot", *_totals(plan)),
        id="layer-table",
        style=f"--name:{min(longest, LONG) * 0.62 + 1.8:g}em",
    )
    return tag(
        "div", table, class_="scroll", tabindex="0", role="region", aria_label="Table of layers"
    )


def _row(index: int, decision: Decision, measured: float | None) -> Markup:
    known, changed = decision.conv is not None, decision.form not in UNCHANGED
    below = becomes(decision) or decision.reason
    became = [tag("span", form_title(decision.form), class_=f"form {decision.form}")]
    if below:
        became.append(tag("small", below))
    cells = [
        tag("td", index + 1, class_="index", data_v=index),
        tag("th", *_breakable(layer_name(decision.layer)), scope="row", class_="name"),
        tag("td", geometry(decision) or NONE, class_="geometry"),
        tag("td", *became, class_="became"),
        *_cost(decision.macs_before, decision.macs_after, known, changed),
        *_cost(decision.params_before, decision.params_after, known, changed),
        _number(small(decision.error), decision.error) if changed else _number(NONE, None),
        _number(NONE if measured is None else small(measured), measured),
    ]
    return tag("tr", *cells, id=f"layer-{index}")


def _breakable(name: str) -> list[Content]:
    """A long name with places to break it behind its dots."""
    if len(name) < LONG:
        return [name]
    parts: list[Content] = []
    for part in name.split("."):
        parts += [".", tag("wbr")] if parts else []
        parts.append(part)
    return parts


def _cost(before: int, after: int, known: bool, changed: bool) -> list[Markup]:
    if not known:
        return [_number(NONE, None)] * 3
    kept = after / before if before else None
    return [
        _number(count(before), before), _number(count(after), after),
        _number(ratio(after, before) or NONE, kept) if changed else _number(NONE, None),
    ]  # fmt: skip


def _number(spelled: str, value: float | None) -> Markup:
    """A cell with the value it is sorted by; cells without one go last."""
    known = value is not None and isfinite(value)
    return tag("td", spelled, class_="number", data_v=f"{value:.9g}" if known else "")


def _totals(plan: Plan) -> list[Markup]:
    other = (plan.other_macs, plan.other_macs, plan.other_params, plan.other_params)
    whole = (plan.macs_before, plan.macs_after, plan.params_before, plan.params_after)
    rows = [_total("everything else", other, NONE)] if any(other) else []
    return [*rows, _total("the whole network", whole, small(plan.error))]


def _total(label: str, costs: tuple[int, int, int, int], error: str) -> Markup:
    cells = [tag("td"), tag("th", label, scope="row", colspan=3)]
    for before, after in (costs[:2], costs[2:]):
        kept = ratio(after, before) if before != after else NONE
        cells += [tag("td", t, class_="number") for t in (count(before), count(after), kept)]
    cells += [tag("td", error, class_="number"), tag("td", NONE, class_="number")]
    return tag("tr", *cells)


def forms_list(plan: Plan) -> Markup:
    """Each form that occurs: what it is, one of its layers as an example, where it comes from."""
    used = Counter(d.form for d in plan.decisions)
    return tag("ul", *(_form(form, used[form], plan) for form in used_forms(plan)), class_="forms")


def _form(name: str, layers: int, plan: Plan) -> Markup:
    many = f"{layers} layer" + "s" * (layers != 1)
    title = tag("h3", tag("span", form_title(name), class_=f"form {name}"), tag("small", many))
    if name not in FORMS:
        said = "The layer stays bit for bit as it was; the table says why, layer by layer"
        return tag("li", title, tag("p", f"{said}."))
    form = FORMS[name]
    said = tag("p", f"{form.says[0].upper()}{form.says[1:]}.")
    paper = tag("p", tag("cite", form.paper), class_="paper") if form.paper else ""
    saved = [d for d in plan.decisions if d.form == name and (d.ranks or d.shape)]
    example = max(saved, key=lambda d: d.macs_before - d.macs_after, default=None)
    return tag("li", title, said, _example(example) if example else "", paper)


def _example(decision: Decision) -> Markup:
    """The layer's channels, and the convolutions between them."""
    assert decision.shaped is not None
    parts = FORMS[decision.form].parts(decision.shaped, decision.ranks)
    steps: list[Content] = [tag("span", decision.shaped.c_in)]
    for part in parts:
        kernel = "×".join(map(str, part.conv.kernel)) or "linear"
        kind = "step one" if part.conv.pointwise else "step"
        steps += [" ", tag("b", kernel, class_=kind), " ", tag("span", part.conv.c_out)]
    name = tag("small", layer_name(decision.layer))
    return tag("p", *steps, name, class_=f"example {decision.form}")


def method(verification: Verification, plan: Plan) -> Markup:
    """How the numbers came about."""
    budget = [
        f"at most {100 * value:g} % of the {what}"
        for value, what in (
            (plan.budget.macs, "MACs"),
            (plan.budget.params, "parameters"),
            (plan.budget.latency, "time"),
        )
        if value is not None
    ]
    spec = str(plan.source["spec"]) if plan.source and plan.source.get("spec") else None
    entries: list[tuple[str, Content]] = [
        ("Network", tag("code", spec) if spec else None),
        ("Input", verification.inputs or
            "×".join(map(str, plan.input_shape)) + ", one image (channels first)"),
        ("Budget", ("Use " if plan.insertions else "Keep ") + " and ".join(budget)),
        ("Seed", str(plan.seed)),
        ("Held-out images", _held_out(verification)),
        ("MACs", "Multiply–accumulates of convolutions and matrix products for one image, as "
            "PyTorch counts them, with the products at padded positions. Bias, normalisation and "
            "activations are not counted. One MAC is two FLOPs."),
        ("Weights on disk", "All parameters and buffers of the state dict, tied ones once."),
        ("Score", SCORE if any(i.score is not None for i in plan.insertions) else None),
        ("Predicted error", None if plan.insertions else PREDICTED),
        ("Measured error", None if plan.insertions else MEASURED),
        ("Latency", _latency(verification)),
    ]  # fmt: skip
    rows = [join(tag("dt", term), tag("dd", said)) for term, said in entries if said]
    return tag("dl", *rows)


def notes_list(notes: tuple[str, ...]) -> Content:
    """Notes for people under a heading of their own, nothing where there are none."""
    if not notes:
        return ""
    return join(tag("h3", "Notes"), tag("ul", *(tag("li", n) for n in notes), class_="notes"))


def _held_out(verification: Verification) -> Content:
    if not verification.images:
        return "None; nothing is known about how close the outputs stay."
    labeled = verification.before.accuracy is not None
    said = [images(verification.images) + (", with labels" if labeled else "")]
    if verification.agreement is not None and verification.kl is not None:
        said.append(f"the same top-1 class for {100 * verification.agreement:.2f} % of them")
        said.append(f"mean KL divergence from the original’s {small(verification.kl)} nats")
    if verification.output_error is not None:
        said.append(
            "squared error of the output relative to its variance "
            f"{small(verification.output_error)}"
        )
    return "; ".join(said) + "."


def _latency(verification: Verification) -> Content:
    pairs = list(zip(verification.before.latency, verification.after.latency, strict=True))
    if not pairs:
        return "Not measured."
    first = pairs[0][0]
    said = (
        f"{first.runtime} on {first.device}, {threads(first.threads)}, {first.dtype}; both networks "
        f"in turn, after {first.warmup} runs each to warm up. Fewer MACs are not always "
        "proportionally less time."
    )
    said = " ".join([said, *clock_notes(latency for pair in pairs for latency in pair)])
    heads = ("batch", "before, median", "quartiles", "after, median", "quartiles", "runs each")
    rows = [
        tag("tr", *(tag("td", cell, class_="number") for cell in (
            str(was.batch), milliseconds(was.median_ms), _quartiles(was),
            milliseconds(now.median_ms), _quartiles(now), str(was.runs),
        ))) for was, now in pairs
    ]  # fmt: skip
    table = tag(
        "table",
        tag("thead", tag("tr", *(tag("th", h, scope="col", class_="number") for h in heads))),
        tag("tbody", *rows),
    )
    return join(said, tag("div", table, class_="scroll plain", tabindex="0", role="region",
                          aria_label="Latencies"))  # fmt: skip


def _quartiles(latency: Latency) -> str:
    return f"{milliseconds(latency.low_ms)} – {milliseconds(latency.high_ms)}"
