"""A plan survives JSON, can be edited by hand, and damaged files are refused with the place."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import TRAPS
from test_conv import layers
from test_forms import ranks_of

import onebyone as obo
from onebyone import plan_files
from onebyone.conv import ConvSpec
from onebyone.errors import PlanError
from onebyone.forms import FORMS
from onebyone.plans import Budget, Decision, Plan

SHARES = st.floats(0.01, 1)
COUNTS = st.integers(0, 10**9)


@st.composite
def decisions(draw: st.DrawFn, name: str) -> Decision:
    """Any decision that a plan can hold."""
    layer, _ = draw(layers(grouped=True))
    conv = ConvSpec.of(layer)
    seen = (draw(COUNTS), draw(COUNTS))
    reason = draw(st.text(max_size=20))
    if draw(st.booleans()):
        return Decision(name, draw(st.sampled_from([conv, None])), *seen, "refuse", reason=reason)
    suited = [f for f in FORMS if f != "narrow" and FORMS[f].refuse(conv) is None]
    form = draw(st.sampled_from(suited))
    return Decision(
        name, conv, *seen, form, draw(ranks_of(form, conv)), draw(st.floats(0, 1e6)), reason,
        positions_between=draw(st.none() | COUNTS),
    )  # fmt: skip


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    names = draw(st.lists(st.text(st.characters(categories=("L", "N")), max_size=6), max_size=4,
                          unique=True))  # fmt: skip
    budget = draw(st.sampled_from([Budget(0.5), Budget(params=0.25), Budget(1 / 3, 0.1)]))
    source = draw(st.none() | st.fixed_dictionaries({"spec": st.text(max_size=5)}))
    return Plan(
        budget, tuple(draw(decisions(n)) for n in names),
        draw(st.lists(st.integers(1, 500), min_size=2, max_size=4).map(tuple)),
        draw(COUNTS), draw(COUNTS), draw(st.integers(0, 2**31)), source,
        tuple(draw(st.lists(st.text(max_size=9), max_size=2))),
    )  # fmt: skip


def check_survives_json(plan: Plan) -> None:
    """Law: written to JSON text and read again, a plan is equal to itself."""
    text = json.dumps(plan_files.plan_to_json(plan))
    assert plan_files.plan_from_json(json.loads(text)) == plan


@given(plans())
@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_a_plan_survives_json(plan: Plan) -> None:
    check_survives_json(plan)


@pytest.mark.parametrize(
    "name",
    ["plain", "tied weights", "tied layers", "attention", "transposed", "1d", "parametrised"],
)
def test_the_plan_of_a_network_survives_json(name: str, tmp_path: Path) -> None:
    trap = TRAPS[name]
    model, images = trap.model(), trap.images(8)
    plan = obo.plan(model, obo.observe(model, images), Budget(macs=0.9))
    check_survives_json(plan)
    obo.write_plan(plan, tmp_path / "plan.json")
    assert obo.read_plan(tmp_path / "plan.json") == plan


def example() -> Plan:
    conv = ConvSpec(16, 32, (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1))
    return Plan(
        Budget(macs=0.5),
        (
            Decision("stem", conv, 100, 100, "tucker2", (4, 8), 0.25, ""),
            Decision("body", conv, 100, 100, "keep", (), 0.0, "kept"),
            Decision("odd", None, 0, 0, "refuse", (), 0.0, "not a plain layer"),
        ),
        (3, 10, 10), 5, 7, 3, None, ("a note",),
    )  # fmt: skip


def written() -> dict[str, Any]:
    return json.loads(json.dumps(plan_files.plan_to_json(example())))


def test_the_file_is_for_people(tmp_path: Path) -> None:
    obo.write_plan(example(), tmp_path / "plan.json")
    text = (tmp_path / "plan.json").read_text(encoding="utf-8")
    values = json.loads(text)
    assert len(text.splitlines()) > 20
    assert values["layers"][0]["ranks"] == {"in": 4, "out": 8}
    assert values["layers"][2]["reason"] == "not a plain layer"
    assert values["cost"]["macs_after"] == example().macs_after


def test_edits_take_effect_and_costs_are_worked_out_anew() -> None:
    values = written()
    values["layers"][0] |= {"form": "squeeze", "ranks": {"in": 5}, "macs_after": 1}
    values["layers"][1] |= {"form": "channel", "ranks": {"out": 6}}
    plan = plan_files.plan_from_json(values)
    first, second = example().decisions[:2]
    assert plan.decisions[0] == replace(first, form="squeeze", ranks=(5,))
    assert plan.decisions[1] == replace(second, form="channel", ranks=(6,))
    assert plan.of("stem").macs_after == 100 * (16 * 5 + 5 * 32 * 9)


def _layer(key: str, value: object, index: int = 0) -> Callable[[dict[str, Any]], object]:
    return lambda values: values["layers"][index].update({key: value})


DAMAGE: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "another schema": (lambda v: v.update(schema="onebyone.plan/99"), "schema"),
    "no layers": (lambda v: v.pop("layers"), "layers"),
    "no positions": (lambda v: v["layers"][0].pop("positions_in"), "positions_in"),
    "budget": (lambda v: v["budget"].update(macs=7), "macs=7"),
    "unknown budget": (lambda v: v["budget"].update(speed=0.5), "speed"),
    "unknown form": (_layer("form", "shrink"), "no form 'shrink'"),
    "form that does not suit": (_layer("form", "pointwise"), "9 taps"),
    "form for no layer of ours": (_layer("form", "channel", 2), "no forms"),
    "rank too high": (_layer("ranks", {"in": 17, "out": 8}), "from 1 to 16"),
    "rank zero": (_layer("ranks", {"in": 4, "out": 0}), "from 1 to 32"),
    "rank a word": (_layer("ranks", {"in": 4, "out": "8"}), "from 1 to 32"),
    "rank a fraction": (_layer("ranks", {"in": 4.5, "out": 8}), "from 1 to 16"),
    "rank missing": (_layer("ranks", {"in": 4}), "ranks"),
    "rank too many": (_layer("ranks", {"in": 4, "out": 8, "mid": 2}), "ranks"),
    "ranks a list": (_layer("ranks", [4, 8]), "ranks"),
    "geometry": (lambda v: v["layers"][0]["conv"].update(kernel=3), "damaged"),
    "geometry unknown": (lambda v: v["layers"][0]["conv"].update(depth=3), "depth"),
    "seed too long": (lambda v: v.update(seed=1 << 70), "64 bits"),
    "layers a word": (lambda v: v.update(layers="all"), "damaged"),
    "a schedule of numbers": (lambda v: v.update(schedule=[1]), "1 is no step of a schedule"),
    "no groups": (lambda v: v["layers"][0]["conv"].update(groups=0), "groups=0 is less than 1"),
    "no stride": (lambda v: v["layers"][0]["conv"].update(stride=[0, 1]), "less than 1"),
    "a budget of words": (lambda v: v.update(budget="half"), "'half' is no budget"),
    "notes a number": (lambda v: v.update(notes=5), "the notes are 5"),
    "a source of nothing": (lambda v: v.update(source=3), "the source 3 names no network"),
    "what no plan has": (lambda v: v.update(narrowing=[]), "'narrowing', which no plan has"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_refused_and_named(name: str) -> None:
    damage, words = DAMAGE[name]
    values = written()
    damage(values)
    before = copy.deepcopy(values)
    with pytest.raises(PlanError, match=words) as told:
        plan_files.plan_from_json(values, "my/plan.json")
    assert "my/plan.json" in str(told.value)
    assert values == before


@pytest.mark.parametrize("values", [None, 3, [], "plan", {}])
def test_what_is_no_plan_is_refused(values: Any) -> None:
    with pytest.raises(PlanError, match="no plan"):
        plan_files.plan_from_json(values)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"missing\.json"):
        obo.read_plan(tmp_path / "missing.json")
    (tmp_path / "cut.json").write_text('{"schema": "onebyone.pl')
    with pytest.raises(PlanError, match="not JSON"):
        obo.read_plan(tmp_path / "cut.json")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(PlanError, match="not JSON"):
        obo.read_plan(tmp_path / "binary.json")
