"""The report says every number once decided or measured, in one spelling, and nothing it was not told."""

from __future__ import annotations

import io
import json
import re
from base64 import b64encode
from dataclasses import replace
from hashlib import sha256
from html.parser import HTMLParser

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console, RenderableType

from onebyone.conv import ConvSpec
from onebyone.errors import OutputError
from onebyone.explaining.insight import Insight, SameImage
from onebyone.explaining.photos import of_input
from onebyone.explaining.report import report_html, write_report
from onebyone.forms import FORMS
from onebyone.measurement.latency import Latency
from onebyone.plans import Budget, Decision, Plan
from onebyone.report import plan_table, summary, to_json
from onebyone.report.markup import Markup, join, tag, text
from onebyone.report.numbers import (
    becomes,
    count,
    milliseconds,
    percent,
    points,
    ratio,
    share,
    size,
    small,
)  # fmt: skip
from onebyone.report.text import broken
from onebyone.report.words import chain, form_title, geometry, layer_name
from onebyone.verification import LayerError, Side, Verification

VOID = {"meta", "link", "input", "wbr", "br"}
HOSTILE = (
    "<img src=x onerror=alert(1)>", "</script><script>alert(1)</script>", '"><b onclick="x()">',
    "$title ${style} &amp;", "'};alert(1)//",
)  # fmt: skip


class Page(HTMLParser):
    """A page as elements with their attributes, texts and parents; fails on tags that do not match."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[dict] = []
        self.elements: list[dict] = []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list) -> None:
        element = {"tag": tag, "attrs": dict(attrs), "text": "", "up": list(self.open)}
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()["tag"] == tag

    def handle_data(self, data: str) -> None:
        for element in self.open:
            element["text"] += data

    def all(self, tag: str, **attrs: str) -> list[dict]:
        return [
            e for e in self.elements
            if e["tag"] == tag and all(e["attrs"].get(k.rstrip("_")) == v for k, v in attrs.items())
        ]  # fmt: skip

    def one(self, tag: str, **attrs: str) -> dict:
        (element,) = self.all(tag, **attrs)
        return element

    def inside(self, parent: dict, tag: str) -> list[dict]:
        return [e for e in self.elements if e["tag"] == tag and any(u is parent for u in e["up"])]


def square(channels: int = 64, groups: int = 1, stride: int = 1) -> ConvSpec:
    return ConvSpec(
        channels, channels, (3, 3), (stride,) * 2, ((1, 1), (1, 1)), (1, 1), groups, bias=False
    )


def pointwise(c_in: int, c_out: int) -> ConvSpec:
    return ConvSpec(c_in, c_out, (1, 1), (2, 2), ((0, 0), (0, 0)), (1, 1))


def decisions() -> tuple[Decision, ...]:
    """One layer of each form, one refused, one that has no formulas."""
    return (
        Decision("features.0", square(48), 196, 196, reason="every other form costs more"),
        Decision("features.1", square(64), 784, 784, "squeeze", (24,), 0.0125),
        Decision("features.2", square(72), 780, 780, "channel", (16,), 3.1e-05),
        Decision("features.3", square(80, stride=2), 770, 193, "tucker2", (24, 32), 0.25),
        Decision("features.4", pointwise(96, 128), 760, 190, "pointwise", (8,), 0.0034),
        Decision("features.5", square(88, 88), 740, 740, "refuse", reason="it is grouped"),
        Decision("up", None, 700, 700, "refuse", reason="ConvTranspose2d is not plain"),
        Decision("fc", ConvSpec(128, 10), 1, 1, "pointwise", (4,), 0.0),
    )


def latency(batch: int, median: float) -> Latency:
    return Latency(batch, median, 0.9 * median, 1.2 * median, 37, 2, 3, "bfloat16", "cpu", "eager")


@pytest.fixture
def plan() -> Plan:
    return Plan(
        Budget(macs=0.55, params=0.65), decisions(), (3, 28, 30), 4_321_000, 987, 17,
        {"spec": "my.net:make"}, ("3 image files could not be read: a.jpg; b.png; c.gif",),
    )  # fmt: skip


@pytest.fixture
def verification(plan: Plan) -> Verification:
    return Verification(
        Side(plan.macs_before, plan.params_before, 5_242_880, 0.9392,
             (latency(1, 4.3187), latency(16, 51.26))),
        Side(plan.macs_after, plan.params_after, 2_097_152, 0.9377,
             (latency(1, 2.1234), latency(16, 33.87))),
        5000, 0.98741, 0.00481, 0.00886,
        tuple(LayerError(f"features.{i}", 0.0111 * (i + 1)) for i in range(6)),
        ("a note of the verification",),
    )  # fmt: skip


def unlabeled(verification: Verification) -> Verification:
    return replace(
        verification,
        before=replace(verification.before, accuracy=None),
        after=replace(verification.after, accuracy=None),
    )


def printed(renderable: RenderableType, width: int, color: bool = False) -> str:
    file = io.StringIO()
    Console(file=file, width=width, highlight=False, force_terminal=color).print(renderable)
    return file.getvalue()


# Numbers


def test_numbers_have_three_digits_and_the_unit_that_they_round_to() -> None:
    spelled = {
        9: "9", 9_999: "9,999", 10_000: "10.0 k", 12_345: "12.3 k", 999_499: "999 k",
        999_999: "1.00 M", 9_996_000: "10.0 M", 29_113_344: "29.1 M", 99_960_000: "100 M",
        999_600_000: "1.00 G", 3_999_000_000: "4.00 G", 1_234_567_890_123: "1,235 G",
    }  # fmt: skip
    assert {n: count(n) for n in spelled} == spelled
    assert [size(n) for n in (0, 1023, 1024, 1_048_575, 1_154_472, 99 << 30)] == [
        "0 B", "1023 B", "1.00 KiB", "1.00 MiB", "1.10 MiB", "99.0 GiB",
    ]  # fmt: skip
    assert [milliseconds(v) for v in (0.0412, 0.99951, 9.996, 99.96, 812.4, 12345.6)] == [
        "0.041 ms", "1.00 ms", "10.0 ms", "100 ms", "812 ms", "12,346 ms",
    ]  # fmt: skip


@given(st.integers(10_000, 10**12))
def test_a_count_reads_back_within_half_of_its_last_digit(value: int) -> None:
    number, unit = count(value).split(" ")
    read = float(number.replace(",", "")) * {"k": 1e3, "M": 1e6, "G": 1e9}[unit]
    assert abs(read - value) <= 0.0051 * value
    assert len(number.replace(".", "").replace(",", "")) >= 3


def test_fractions_and_errors() -> None:
    assert [percent(v) for v in (0, 0.9392, 1)] == ["0.00 %", "93.92 %", "100.00 %"]
    assert [points(a, 0.5) for a in (0.4988, 0.5, 0.51, 0.500001)] == [
        "−0.12 points", "±0.00 points", "+1.00 points", "±0.00 points",
    ]  # fmt: skip
    assert [ratio(1, 2), ratio(1, 0)] == ["×0.50", ""]
    assert [share(1, 2), share(99, 1000), share(9.96, 100), share(0, 3), share(1, 0)] == [
        "50 %", "9.9 %", "10 %", "0 %", "",
    ]  # fmt: skip
    assert [small(v) for v in (0, 0.01234, 0.001, 0.00099, 3.14e-7)] == [
        "0", "0.0123", "0.0010", "9.9e-04", "3.1e-07",
    ]  # fmt: skip
    assert [small(v) for v in (9999.99, 9999.99999, 1e4, 16524195682552716.0, 1.37e37)] == [
        "9999.9900", "1.0e4", "1.0e4", "1.7e16", "1.4e37",
    ]  # fmt: skip


def test_a_layer_is_written_with_all_its_channels() -> None:
    by_name = {d.layer: d for d in decisions()}
    assert chain(by_name["features.3"]) == "80→24→32→80 3×3 /2"
    assert chain(by_name["features.4"]) == "96→8→128 1×1 /2"
    assert chain(by_name["features.5"]) == geometry(by_name["features.5"])
    assert geometry(by_name["features.5"]) == "88→88 3×3 groups 88"
    assert geometry(by_name["fc"]) == "128→10 linear"
    assert (chain(by_name["up"]), layer_name("")) == ("", "(the network)")


# Markup


@given(st.text())
def test_text_never_becomes_markup(content: str) -> None:
    html = tag("p", content, title=content)
    assert html.count("<") == 2
    assert html.count('"') == 2
    assert tag("p", html) == f"<p>{html}</p>"
    assert "<" not in text(content)


def test_what_joins_markup_and_text_escapes_the_text() -> None:
    assert join(Markup("<b>"), "<i>", None, 3) == "<b>&lt;i&gt;3"
    assert tag("input", checked="", name_=None) == '<input checked="">'


# The page


def test_the_page_escapes_every_name_reason_note_and_spec(
    plan: Plan, verification: Verification
) -> None:
    kinds = (
        ("keep", ()), ("squeeze", (8,)), ("channel", (8,)), ("tucker2", (8, 8)), ("refuse", ())
    )  # fmt: skip
    evil = tuple(
        Decision(name, square(), 9, 9, form, ranks, 0.1, name if not ranks else "")
        for name, (form, ranks) in zip(HOSTILE, kinds, strict=True)
    )
    plan = replace(plan, decisions=evil, notes=HOSTILE, source={"spec": HOSTILE[0]})
    html = report_html(replace(verification, notes=HOSTILE), plan)
    page = Page(html)
    assert [e["tag"] for e in page.elements if e["tag"] in ("img", "iframe")] == []
    assert not [e for e in page.elements if any(a.startswith("on") for a in e["attrs"])]
    assert len(page.all("script")) == 2  # the data, and the page's own code
    table = page.one("table", id="layer-table")
    shown = [e["text"] for e in page.inside(table, "th") if e["attrs"].get("scope") == "row"]
    assert shown[: len(HOSTILE)] == list(HOSTILE)
    assert [e["text"] for e in page.inside(page.one("ul", class_="notes"), "li")] == [*HOSTILE] * 2
    assert HOSTILE[0] in page.all("title")[0]["text"]


def test_the_page_asks_nothing_of_the_network(plan: Plan, verification: Verification) -> None:
    html = report_html(verification, plan)
    page = Page(html)
    for element in page.elements:
        assert element["tag"] not in ("img", "iframe", "object", "embed", "base", "form")
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            value = element["attrs"].get(name)
            assert value is None or value.startswith(("#", "data:")), (element["tag"], value)
    assert not re.search(r"https?:|//[a-z]+\.|@import|url\(|fetch\(|XMLHttp|import\(", html)


def test_the_policy_allows_the_pages_own_script_and_no_other(
    plan: Plan, verification: Verification
) -> None:
    page = Page(report_html(verification, plan))
    policy = next(e["attrs"]["content"] for e in page.all("meta") if "http-equiv" in e["attrs"])
    digest = b64encode(sha256(page.one("script", type=None)["text"].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none';")


def test_links_and_the_script_find_what_they_name(plan: Plan, verification: Verification) -> None:
    cheaper = replace(plan, decisions=(replace(plan.decisions[0], error=1.0), *plan.decisions[1:]))
    sides = (("coat", 0.75),), (("coat", 0.5),)
    image = SameImage(of_input(torch.zeros(3, 4, 4)), (), *sides)
    page = Page(report_html(verification, plan, Insight((cheaper, plan), (), image)))
    ids = [e["attrs"]["id"] for e in page.elements if "id" in e["attrs"]]
    assert len(ids) == len(set(ids))
    targets = [e["attrs"]["href"][1:] for e in page.all("a")]
    targets += [e["attrs"]["for"] for e in page.all("label")]
    script = page.one("script", type=None)["text"]
    targets += re.findall(r'(?:getElementById|byId)\("([^"]+)"\)', script)
    assert len(targets) > len(plan.decisions)
    made = re.findall(r'\bid: "([^"]+)"', script)
    assert set(targets) <= {*ids, *made}


def test_the_table_has_every_number_of_every_layer(plan: Plan, verification: Verification) -> None:
    page = Page(report_html(verification, plan))
    errors = {e.layer: e.error for e in verification.layers}
    for index, d in enumerate(plan.decisions):
        row = page.one("tr", id=f"layer-{index}")
        cells = [e["text"] for e in page.inside(row, "td")]
        changed, known = d.form not in ("keep", "refuse"), d.conv is not None
        kept = (ratio(d.macs_after, d.macs_before), ratio(d.params_after, d.params_before))
        wanted = [
            str(index + 1),
            geometry(d) or "–",
            form_title(d.form) + (becomes(d) or d.reason),
            count(d.macs_before) if known else "–",
            count(d.macs_after) if known else "–",
            kept[0] if changed else "–",
            count(d.params_before) if known else "–",
            count(d.params_after) if known else "–",
            kept[1] if changed else "–",
            small(d.error) if changed else "–",
            small(errors[d.layer]) if d.layer in errors else "–",
        ]
        assert cells == wanted, d.layer
        assert page.inside(row, "th")[0]["text"] == d.layer


def test_the_table_ends_in_totals_that_add_up(plan: Plan, verification: Verification) -> None:
    page = Page(report_html(verification, plan))
    other, whole = page.inside(page.one("tfoot"), "tr")
    assert [e["text"] for e in page.inside(other, "td")][1:] == [
        "4.32 M", "4.32 M", "–", "987", "987", "–", "–", "–",
    ]  # fmt: skip
    assert [e["text"] for e in page.inside(whole, "td")][1:] == [
        count(plan.macs_before), count(plan.macs_after), ratio(plan.macs_after, plan.macs_before),
        count(plan.params_before), count(plan.params_after),
        ratio(plan.params_after, plan.params_before), small(plan.error), "–",
    ]  # fmt: skip


def test_cells_sort_by_their_values_not_by_their_spelling(
    plan: Plan, verification: Verification
) -> None:
    page = Page(report_html(verification, plan))
    rows = [page.one("tr", id=f"layer-{i}") for i in range(len(plan.decisions))]
    keys = [page.inside(row, "td")[3]["attrs"]["data-v"] for row in rows]
    assert [float(k) if k else None for k in keys] == [
        d.macs_before if d.conv else None for d in plan.decisions
    ]


def test_the_head_has_the_big_numbers_before_and_after(
    plan: Plan, verification: Verification
) -> None:
    page = Page(report_html(verification, plan))
    cards = [
        [e["text"] for e in page.inside(card, "p")] for card in page.inside(
            next(e for e in page.all("ul") if e["attrs"]["class"].startswith("cards")), "li"
        )
    ]  # fmt: skip
    macs, params = plan.macs_before, plan.params_before
    assert cards == [
        [count(plan.macs_after), f"was {count(macs)}{ratio(plan.macs_after, macs)}"],
        [count(plan.params_after), f"was {count(params)}{ratio(plan.params_after, params)}"],
        ["2.00 MiB", "was 5.00 MiB×0.40"],
        ["2.12 ms", "was 4.32 ms×0.49"],
        ["33.9 ms", "was 51.3 ms×0.66"],
        ["93.77 %", "was 93.92 %−0.15 points"],
    ]
    head = page.one("h1")["text"].replace("\xa0", " ")
    assert f"{share(plan.macs_after, macs)} of the MACs" in head
    assert f"{share(plan.params_after, params)} of the parameters" in head


def test_bars_are_to_scale(plan: Plan, verification: Verification) -> None:
    page = Page(report_html(verification, plan))
    rows = page.inside(page.one("ol", class_="rows columns1"), "li")
    assert len(rows) == len(plan.decisions)
    for key, kind, most in (
        ("m", "macs", max(d.macs_before for d in plan.decisions)),
        ("p", "params", max(d.params_before for d in plan.decisions)),
    ):
        for row, d in zip(rows, plan.decisions, strict=True):
            lengths = {"before": 0.0, "after": 0.0}
            for bar in page.inside(row, "i"):
                found = re.search(rf"--{key}:([\d.]+)%", bar["attrs"]["style"])
                assert found is not None
                lengths[bar["attrs"]["class"].split()[0]] += float(found[1])
            wanted = {
                "before": 100 * getattr(d, f"{kind}_before") / most,
                "after": 100 * getattr(d, f"{kind}_after") / most,
            }
            assert lengths == pytest.approx(wanted, abs=0.002), d.layer


def test_strips_hold_the_whole_network(plan: Plan, verification: Verification) -> None:
    page = Page(report_html(verification, plan))
    before, after = (
        sum(
            float(re.findall(r"--m:([\d.]+)%", i["attrs"]["style"])[0]) for i in page.inside(s, "i")
        )
        for s in page.all("div", class_="strip")
    )
    assert before == pytest.approx(100, abs=0.01)
    assert after == pytest.approx(100 * plan.macs_after / plan.macs_before, abs=0.01)


def test_forms_are_told_once_each_and_only_those_used(
    plan: Plan, verification: Verification
) -> None:
    narrow = Decision("cut", square(), 9, 9, "narrow", shape=replace(square(), c_out=5))
    halves = Decision("halves", square(), 9, 9, "spatial", (3,))
    every = replace(plan, decisions=(*plan.decisions, narrow, halves))
    page = Page(report_html(verification, every))
    told = page.inside(page.one("ul", class_="forms"), "li")
    assert len(told) == len(FORMS) + 1
    assert f"{square().c_in} " in told[1]["text"]
    assert " 5" in told[1]["text"]
    for entry, form in zip(told, FORMS.values(), strict=False):
        assert form.title in entry["text"]
        assert form.says[1:] in entry["text"]
        assert form.paper in entry["text"]
    few = replace(plan, decisions=plan.decisions[:2])
    page = Page(report_html(verification, few))
    told = page.inside(page.one("ul", class_="forms"), "li")
    assert [form_title("keep") in told[0]["text"], form_title("squeeze") in told[1]["text"]] == [
        True, True,
    ]  # fmt: skip
    assert len(told) == 2
    assert FORMS["tucker2"].paper not in report_html(verification, few)


def test_the_method_says_how_it_was_measured(plan: Plan, verification: Verification) -> None:
    said = Page(report_html(verification, plan)).one("dl")["text"]
    for wanted in (
        "my.net:make", "3×28×30", "at most 55 % of the MACs and at most 65 % of the parameters",
        "17", "5,000 images, with labels", "98.74 %", "0.0048 nats", "0.0089", "eager on cpu",
        "3 threads", "bfloat16", "after 2 runs each", "3.89 ms – 5.18 ms", "37", "two FLOPs",
    ):  # fmt: skip
        assert wanted in said, wanted


# What is missing


def test_without_labels_the_page_tells_agreement_and_divergence(
    plan: Plan, verification: Verification
) -> None:
    html = report_html(unlabeled(verification), plan)
    head = Page(html).one("p", class_="lede")["text"].replace("\xa0", " ")
    assert head == "Both networks choose the same class for 98.74 % of 5,000 held-out images."
    assert "KL 0.0048 nats" in html
    assert "accuracy" not in Page(html).one("main")["text"].lower()


def test_outputs_that_are_no_classes_are_told_by_their_error(
    plan: Plan, verification: Verification
) -> None:
    bare = replace(unlabeled(verification), agreement=None, kl=None, images=1)
    page = Page(report_html(bare, plan))
    assert page.one("p", class_="lede")["text"] == (
        "The relative squared error of the output on 1 held-out image is 0.0089."
    )
    assert "top-1" not in page.one("main")["text"].lower()


def test_without_held_out_images_nothing_is_claimed(plan: Plan, verification: Verification) -> None:
    bare = Verification(
        replace(verification.before, accuracy=None, latency=()),
        replace(verification.after, accuracy=None, latency=()), 0, None, None, None, (),
    )  # fmt: skip
    page = Page(report_html(bare, replace(plan, source=None, notes=())))
    assert "No images were held out" in page.one("p", class_="lede")["text"]
    assert "not measured" in page.one("p", class_="big none")["text"]
    assert "Not measured." in page.one("dl")["text"]
    assert not re.search(r"\bNone\b(?!;)|\bnan\b|\binf\b", page.one("main")["text"])
    assert not page.all("ul", class_="notes")
    assert " ms" not in page.one("main")["text"]


def test_a_network_that_got_slower_says_so(plan: Plan, verification: Verification) -> None:
    slow = replace(verification, after=replace(verification.after, latency=(latency(1, 6.0),)))
    slow = replace(slow, before=replace(slow.before, latency=(latency(1, 5.0),)))
    assert "×1.20 slower" in report_html(slow, plan)
    assert "slower" not in Page(report_html(verification, plan)).one("main")["text"]


@pytest.mark.parametrize("number", [0, 1, 24, 25, 120, 121, 300])
def test_networks_of_any_depth_have_one_row_a_layer(
    number: int, plan: Plan, verification: Verification
) -> None:
    deep = tuple(
        Decision(f"stage.{i}.conv" if i else "", square(), 9, 9, "squeeze", (8,), 0.1)
        for i in range(number)
    )
    page = Page(report_html(verification, replace(plan, decisions=deep)))
    columns = 1 if number <= 24 else 2 if number <= 120 else 3
    assert len(page.inside(page.one("ol", class_=f"rows columns{columns}"), "li")) == number
    table = page.one("table", id="layer-table")
    ids = [r["attrs"]["id"] for r in page.inside(table, "tr") if "id" in r["attrs"]]
    assert ids == [f"layer-{i}" for i in range(number)]
    if number:
        row = page.one("tr", id="layer-0")
        assert page.inside(row, "th")[0]["text"] == "(the network)"


def test_long_names_stay_whole_in_the_table(plan: Plan, verification: Verification) -> None:
    name = "features." + "denseblock." * 12 + "conv"
    long = replace(plan, decisions=(Decision(name, square(), 9, 9),))
    page = Page(report_html(verification, long))
    head = page.inside(page.one("tr", id="layer-0"), "th")[0]
    assert head["text"] == name
    assert len([e for e in page.all("wbr") if head in e["up"]]) == name.count(".")


# Files


def test_the_file_is_the_page(plan: Plan, verification: Verification, tmp_path) -> None:
    path = tmp_path / "report.html"
    write_report(path, verification, plan)
    assert path.read_text(encoding="utf-8") == report_html(verification, plan)
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    with pytest.raises(OutputError, match="cannot be written"):
        write_report(tmp_path / "missing" / "report.html", verification, plan)


# JSON


def test_json_survives_a_round_trip_and_has_no_surprises(
    plan: Plan, verification: Verification
) -> None:
    values = to_json(verification, plan)
    assert json.loads(json.dumps(values, allow_nan=False)) == values
    assert values["schema"] == "onebyone.report/1"
    assert values["macs_kept"] == plan.macs_after / plan.macs_before
    assert values["params_kept"] == plan.params_after / plan.params_before
    assert values["accuracy_drop"] == pytest.approx(0.0015)
    assert values["before"]["latency"][1]["batch"] == 16
    assert values["notes"] == [*plan.notes, *verification.notes]
    assert [layer["layer"] for layer in values["layers"]] == [d.layer for d in plan.decisions]
    tucker = values["layers"][3]
    assert (tucker["ranks"], tucker["output_error"]) == ([24, 32], pytest.approx(0.0444))
    assert sum(layer["macs_after"] for layer in values["layers"]) + 4_321_000 == plan.macs_after


def test_json_has_null_for_what_was_not_measured_or_is_not_finite(
    plan: Plan, verification: Verification
) -> None:
    odd = replace(
        unlabeled(verification), kl=float("inf"), output_error=float("nan"),
        layers=(LayerError("features.0", float("nan")),),
    )  # fmt: skip
    values = json.loads(json.dumps(to_json(odd, plan), allow_nan=False))
    assert values["accuracy_drop"] is None
    assert values["kl_nats"] is None
    assert values["output_error"] is None
    assert values["layers"][0]["output_error"] is None
    assert values["layers"][1]["output_error"] is None


# The terminal

RESNET = (
    ("layer4.0.downsample.0", pointwise(1024, 2048), "pointwise", (56,)),
    ("layer4.0.conv2", square(512, stride=2), "tucker2", (128, 160)),
    ("layer4.2.conv2", square(512), "channel", (104,)),
    ("layer4.2.conv3", pointwise(512, 2048), "keep", ()),
    ("fc", ConvSpec(2048, 1000), "pointwise", (80,)),
)


def resnet(plan: Plan) -> Plan:
    return replace(
        plan,
        decisions=tuple(
            Decision(name, conv, 196, 49, form, ranks, 0.1) for name, conv, form, ranks in RESNET
        ),
    )


@pytest.mark.parametrize("width", [80, 120])
def test_the_plan_fits_with_names_and_numbers_whole(width: int, plan: Plan) -> None:
    deep = resnet(plan)
    lines = printed(plan_table(deep), width).splitlines()
    assert max(map(len, lines)) <= width
    for d in deep.decisions:
        (line,) = [x for x in lines if x.split(" ")[0] == d.layer]
        for wanted in (d.form, chain(d), count(d.macs_after), count(d.params_after)):
            assert wanted in line, (d.layer, wanted)
    (total,) = [x for x in lines if x.startswith("whole network")]
    assert ratio(deep.macs_after, deep.macs_before) in total
    assert "…" not in "".join(lines)
    kept = 2 if width == 120 else 1
    assert sum(line.split().count("kept") for line in lines if "params" in line) == kept


def test_names_too_long_for_the_terminal_break_at_dots(plan: Plan) -> None:
    name = "features.denseblock4.denselayer32.conv2"
    deep = replace(plan, decisions=(replace(resnet(plan).decisions[1], layer=name),))
    lines = [line.rstrip() for line in printed(plan_table(deep), 80).splitlines()]
    pieces = [
        line.split(" ")[0] for line in lines if line.startswith(("features", "dense", "conv"))
    ]
    assert "".join(pieces) == name
    assert all(piece.endswith(".") for piece in pieces[:-1])
    assert broken("no_dots_at_all", 5) == "no_dots_at_all"
    assert broken("a.bb.ccc", 5) == "a.bb.\nccc"


def test_the_plan_tells_each_reason_once_with_its_layers(plan: Plan) -> None:
    many = replace(
        plan, decisions=tuple(Decision(f"c{i}", square(), 9, 9, reason="[b]why") for i in range(6))
    )
    said = printed(plan_table(many), 120)
    assert said.count("why") == 1
    assert "kept: c0, c1, c2, c3 and 2 more: [b]why" in said
    several = {
        "its cheaper forms cost more": "c0, c1: their cheaper forms cost more",
        "it carries hooks": "c0, c1: each carries hooks",
        "no form of it is cheaper than the layer itself": "c0, c1: no form of any is cheaper than",
        "the layer is depthwise": "c0, c1: the layer is depthwise",
    }
    for reason, wanted in several.items():
        both = tuple(Decision(f"c{i}", square(), 9, 9, reason=reason) for i in range(2))
        assert wanted in printed(plan_table(replace(plan, decisions=both)), 120)
    refused = printed(plan_table(plan), 120)
    assert "left as it is: features.5: it is grouped" in refused
    (line,) = [x for x in refused.splitlines() if x.startswith("up")]
    assert line.split() == ["up", "refuse", "–", "–"]


def test_the_summary_is_whole_at_80_columns(plan: Plan, verification: Verification) -> None:
    lines = printed(summary(verification, plan), 80).splitlines()
    assert max(map(len, lines)) <= 80
    rows = {
        re.split(r"\s{2,}", line.strip())[0]: re.split(r"\s{2,}", line.strip()) for line in lines
    }
    assert rows["weights on disk"] == ["weights on disk", "5.00 MiB", "2.00 MiB", "×0.40"]
    assert rows["latency, 16 images"] == ["latency, 16 images", "51.3 ms", "33.9 ms", "×0.66"]
    assert rows["top-1 accuracy"] == ["top-1 accuracy", "93.92 %", "93.77 %", "−0.15 points"]
    said = " ".join(" ".join(lines).split())
    assert "On 5,000 held-out images both networks choose the same class for 98.74 %" in said
    assert "the quartiles are 3.89–5.18 ms before and 1.91–2.55 ms after" in said
    for note in (*plan.notes, *verification.notes):
        assert f"note: {note}" in said


def test_what_the_clock_noticed_is_told_once(plan: Plan, verification: Verification) -> None:
    side = verification.after
    times = tuple(
        replace(t, notes=("the machine was busy: times may be high",)) for t in side.latency
    )
    busy = replace(verification, after=replace(side, latency=times))
    told = "The machine was busy: times may be high."
    terminal = " ".join(printed(summary(busy, plan), 80).split())
    assert terminal.count(told) == 1
    assert Page(report_html(busy, plan)).one("dl")["text"].count(told) == 1
    assert told not in printed(summary(verification, plan), 80)


def test_the_summary_leaves_out_what_was_not_measured(
    plan: Plan, verification: Verification
) -> None:
    bare = Verification(
        replace(verification.before, accuracy=None, latency=()),
        replace(verification.after, accuracy=None, latency=()), 0, None, None, None, (),
    )  # fmt: skip
    said = printed(summary(bare, plan), 80)
    assert "No images were held out" in said
    assert "latency" not in said.lower()
    assert "accuracy" not in said


def test_color_changes_the_look_and_not_the_words(plan: Plan, verification: Verification) -> None:
    for part in (plan_table(resnet(plan)), summary(verification, plan)):
        colored = printed(part, 80, color=True)
        assert "\x1b[1m" in colored
        assert re.sub(r"\x1b\[[\d;]*m", "", colored) == printed(part, 80)
