"""Parts of the last screen that need more than the result: the other plans, the image, the charts."""

from __future__ import annotations

from typing import Any

from onebyone.explaining.insight import Insight, Spectrum
from onebyone.explaining.packing import packed
from onebyone.plans import Plan
from onebyone.report.markup import Content, Markup, join, tag
from onebyone.report.numbers import becomes, percent, small
from onebyone.report.words import form_title, layer_name
from onebyone.verification import Verification

WIDE, HIGH = 160, 70  # of one spectrum
DEEP, TALL = 640, 120  # of the errors layer by layer


def versus_json(verification: Verification, plan: Plan, insight: Insight | None) -> dict[str, Any]:
    """For the screen's own code: the layer that saved most, the plans, the image."""
    saved = [d.macs_before - d.macs_after for d in plan.decisions]
    values: dict[str, Any] = {
        "saver": saved.index(max(saved)) if saved else None, "frontier": None, "image": None,
    }  # fmt: skip
    if insight is not None and len(insight.plans) > 1:
        values["frontier"] = _frontier_json(verification, plan, insight)
    if insight is not None and insight.image is not None:
        values["image"] = _image_json(insight)
    return values


def _frontier_json(verification: Verification, plan: Plan, insight: Insight) -> dict[str, Any]:
    """Every plan layer by layer, in plain numbers."""
    before, after = verification.before, verification.after
    return {
        "images": verification.images,
        "by": "params" if plan.budget.macs is None else "macs",
        "layers": [layer_name(d.layer) for d in plan.decisions],
        "before": {"macs": plan.macs_before, "params": plan.params_before},
        "each": {
            "macs": [d.macs_before for d in plan.decisions],
            "params": [d.params_before for d in plan.decisions],
        },
        "chosen": next(i for i, p in enumerate(insight.plans) if p.decisions == plan.decisions),
        "measured": None if after.accuracy is None else [before.accuracy, after.accuracy],
        "plans": [_plan_json(p, _accuracy(p, verification, plan, insight)) for p in insight.plans],
    }


def _accuracy(
    found: Plan, verification: Verification, chosen: Plan, insight: Insight
) -> float | None:
    """The accuracy of a plan's network where it was measured."""
    if found.decisions == chosen.decisions:
        return verification.after.accuracy
    return next((m.accuracy for m in insight.measured if m.plan is found), None)


def _plan_json(plan: Plan, accuracy: float | None) -> dict[str, Any]:
    return {
        "accuracy": accuracy,
        "macs": plan.macs_after, "params": plan.params_after, "error": plan.error,
        "layers": [
            {
                "form": d.form, "title": form_title(d.form), "chain": becomes(d),
                "macs": d.macs_after, "params": d.params_after,
            }
            for d in plan.decisions
        ],
    }  # fmt: skip


def _image_json(insight: Insight) -> dict[str, Any]:
    image = insight.image
    assert image is not None
    return {
        "pixels": packed(image.photo.pixels),
        "layers": [
            {
                "layer": layer_name(both.layer), "channel": both.channel, "error": both.error,
                "before": both.before.to_json(), "after": both.after.to_json(),
            }
            for both in image.layers
        ],
    }  # fmt: skip


def frontier_section(plan: Plan, insight: Insight | None) -> Content:
    """The frame that the chart and the slider are drawn into."""
    if insight is None or len(insight.plans) < 2:
        return ""
    what = "parameters" if plan.budget.macs is None else "MACs"
    said = (
        f"Each point is a plan: the {what} that it keeps, and how much the loss is predicted to rise. "
        "Filled points were carried out, hollow ones are plans made roughly and predictions alone. "
        "Move along them to see what would become of each layer."
    )
    accuracies = tag("svg", id="accuracies", role="img", hidden="")
    last = len(insight.plans) - 1
    slider = tag("input", type="range", id="plans", min=0, max=last, value=0, step=1)
    return join(
        tag("h2", "At other budgets", id="frontier-title"),
        tag("p", said, class_="hint"),
        tag("div",
            tag("div",
                tag("h3", "Predicted, for each plan"),
                tag("svg", id="frontier", role="img", aria_labelledby="frontier-title"),
                tag("h3", "Measured, where carried out", id="accuracies-title", hidden=""),
                accuracies, tag("p", id="accuracies-said", class_="hint")),
            tag("div",
                tag("p", tag("label", "Plan ", for_="plans"), slider, class_="slider"),
                tag("p", id="plan-said", role="status"),
                tag("div", tag("table", tag("tbody", id="plan-rows"), class_="plan"),
                    class_="scroll plain", tabindex="0", role="region", aria_label="The plan"),
            ),
            class_="pair-of-pictures", id="frontier-box", hidden=""),
    )  # fmt: skip


def image_section(insight: Insight | None) -> Content:
    """The classes as text, and the frame for the image and the maps."""
    image = insight.image if insight else None
    if image is None or not (image.layers or image.before):
        return ""
    sides = [
        tag("div", tag("h3", side), tag("ol", *(_class(*c) for c in found), class_="classes"))
        for side, found in (("Before", image.before), ("After", image.after)) if found
    ]  # fmt: skip
    return join(
        tag("h2", "The same image through both"),
        tag("div", tag("div", id="same-image"), *sides, class_="same"),
        tag("ul", id="same-maps", class_="inputs"),
    )


def _class(name: str, probability: float) -> Markup:
    bar = tag("i", class_="after", style=f"width:{100 * probability:.2f}%", aria_hidden="true")
    return tag("li", tag("span", name), tag("span", percent(probability)), bar)


def charts(verification: Verification, plan: Plan, insight: Insight | None) -> Content:
    """The error layer by layer, and the spectra."""
    parts: list[Content] = []
    if verification.layers:
        parts += [tag("h2", "The error layer by layer"), *_errors(verification, plan)]
    if insight is not None and insight.spectra:
        said = (
            "Singular values of each layer in the metric of the loss, from the largest down to 0: dark "
            "for its input channels, pale for its output channels. Where the curve falls steeply, few "
            "channels say nearly all. Dots are the ranks that were chosen."
        )
        items = [_spectrum(s, plan) for s in insight.spectra]
        parts += [
            tag("h2", "How much each layer has to say"), tag("p", said, class_="hint"),
            tag("ul", *items, class_="spectra"),
        ]  # fmt: skip
    return join(*parts)


def _errors(verification: Verification, plan: Plan) -> list[Markup]:
    """Bars in the order of the layers, in the colors of their forms."""
    forms = {d.layer: d.form for d in plan.decisions}
    most = max(e.error for e in verification.layers) or 1.0
    step = DEEP / len(verification.layers)
    bars = []
    for index, found in enumerate(verification.layers):
        high = TALL * found.error / most
        name = f"{layer_name(found.layer)}: {small(found.error)}"
        bars.append(
            tag("rect", tag("title", name), x=f"{index * step:.2f}", y=f"{TALL - high:.2f}",
                width=f"{max(step - 2, step * 0.6):.2f}", height=f"{high:.2f}",
                class_=f"bar {forms.get(found.layer, 'keep')}")
        )  # fmt: skip
    worst = max(verification.layers, key=lambda e: e.error)
    said = (
        f"Squared error of each layer’s output inside the lighter network, relative to its variance, from "
        f"the first layer to the last; the largest is {small(worst.error)}, at {layer_name(worst.layer)}."
    )
    chart = tag("svg", *bars, viewBox=f"0 0 {DEEP} {TALL}", role="img", aria_label="errors", id="errors",
                preserveAspectRatio="none")  # fmt: skip
    ends = dict.fromkeys(layer_name(verification.layers[i].layer) for i in (0, -1))
    names = tag("figcaption", *(tag("span", name) for name in ends))
    figure = tag("figure", tag("p", small(most), class_="most"), chart, names, class_="errors")
    return [tag("p", said, class_="hint"), figure]


def _spectrum(spectrum: Spectrum, plan: Plan) -> Markup:
    decision = next((d for d in plan.decisions if d.layer == spectrum.layer), None)
    form = decision.form if decision else "keep"
    chosen = decision.sides if decision else {}
    last = " | ".join(
        dict.fromkeys(str(r[-1]) for r in (spectrum.ranks_in, spectrum.ranks_out) if r)
    )
    lines = [
        *_curve(spectrum.outside, spectrum.ranks_out, chosen.get("out"), "outside"),
        *_curve(spectrum.inside, spectrum.ranks_in, chosen.get("in"), "inside"),
    ]
    return tag(
        "li",
        tag("b", layer_name(spectrum.layer)),
        tag("svg", *lines, viewBox=f"-3 -3 {WIDE + 6} {HIGH + 6}", role="img",
            aria_label=f"spectrum of {layer_name(spectrum.layer)}"),
        tag("span", tag("span", "1"), tag("span", "rank"), tag("span", last), class_="ranks"),
        tag("span", f"{form_title(form)} {becomes(decision) if decision else ''}"),
        class_=form,
    )  # fmt: skip


def _curve(
    values: tuple[float, ...], ranks: tuple[int, ...], chosen: int | None, kind: str
) -> list[Markup]:
    """One falling line, with a dot at the chosen rank."""
    if not values:
        return []

    def place(rank: int, value: float) -> tuple[str, str]:
        return f"{WIDE * (rank - 1) / max(ranks[-1] - 1, 1):.1f}", f"{HIGH * (1 - value):.1f}"

    points = " ".join(",".join(place(r, v)) for r, v in zip(ranks, values, strict=True))
    drawn = [tag("polyline", points=points, class_=kind)]
    if chosen is not None:
        near = min(range(len(ranks)), key=lambda i: abs(ranks[i] - chosen))
        x, y = place(chosen, values[near])
        drawn.append(tag("circle", cx=x, cy=y, r=3))
    return drawn
