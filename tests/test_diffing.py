"""diff: laws of the matching, known answers, and what is shown of them."""

import copy
import csv
import io
import itertools
import json
import re
import sys
from collections import Counter, OrderedDict
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from typer.testing import CliRunner

from onebyone.cli.app import app
from onebyone.data import open_images
from onebyone.diffing import STATUSES, Difference, Match, diff
from onebyone.errors import ModelError
from onebyone.files import json_text
from onebyone.loading import load
from onebyone.matching import _aligned
from onebyone.measurement.counting import Count
from onebyone.report.difference import difference_table
from onebyone.report.difference_files import (
    difference_csv,
    difference_json,
    difference_markdown,
    escaped,
)
from onebyone.report.difference_page import difference_html
from onebyone.report.difference_words import cost as spelled
from onebyone.report.difference_words import headline, what
from onebyone.sides import Side
from onebyone.slimming import slim

COSTS = ("macs", "params", "weight_bytes", "activation_bytes")


def named(**layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(layers))


def conv(c_in: int, c_out: int, kernel: int = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2, bias=False, **options)


def block(c_in: int, c_out: int) -> nn.Sequential:
    return named(conv=conv(c_in, c_out), norm=nn.BatchNorm2d(c_out), act=nn.ReLU())


class Repeated(nn.Module):
    """One layer, run several times."""

    def __init__(self, layer: nn.Module, times: int) -> None:
        super().__init__()
        self.a, self.times = layer, times

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.times):
            x = self.a(x)
        return x


def image(channels: int = 3, size: int = 8) -> Tensor:
    return torch.zeros(1, channels, size, size)


def statuses(found: Difference) -> dict[str, int]:
    return {s: len(found.of(s)) for s in STATUSES if found.of(s)}


def pairs(found: Difference) -> list[tuple[str, str | None, str | None]]:
    return [(m.status, m.before and m.before.name, m.after and m.after.name) for m in found.matches]


def sides(found: Difference, end: str) -> list[Side]:
    return [side for m in found.matches if (side := getattr(m, end)) is not None]


def check_laws(found: Difference) -> None:
    """What holds for any two networks."""
    for end in ("before", "after"):
        counted: Count = getattr(found, end)
        layers = [layer.counted.name for side in sides(found, end) for layer in side.layers]
        assert sorted(layers) == sorted(counted.layers)
        for cost in COSTS:
            assert sum(getattr(side, cost) for side in sides(found, end)) == getattr(counted, cost)
    for m in found.matches:
        assert (m.before is None) == (m.status == "added")
        assert (m.after is None) == (m.status == "removed")
        assert (m.status == "renamed") == (m.changes == ("name",))
        if m.status in ("unchanged", "added", "removed"):
            assert m.changes == ()
        if m.before and m.after:
            for cost, word in zip(
                COSTS, ("MACs", "parameters", "weight bytes", "activation bytes"), strict=True
            ):
                differs = getattr(m.before, cost) != getattr(m.after, cost)
                assert differs == (word in m.changes)


MIRROR = {"added": "removed", "removed": "added"}


def check_mirror(found: Difference, swapped: Difference) -> None:
    def seen(m: Match, turned: bool) -> tuple[Any, ...]:
        ends = [s and s.name for s in (m.before, m.after)]
        status = MIRROR.get(m.status, m.status) if turned else m.status
        return (status, *(ends[::-1] if turned else ends), m.changes, m.same_weights)

    assert Counter(seen(m, False) for m in found.matches) == Counter(
        seen(m, True) for m in swapped.matches
    )


LAYERS = st.lists(
    st.sampled_from(["conv3", "conv1", "bn", "relu", "pair", "wide"]), min_size=1, max_size=7
)


def built(kinds: list[str]) -> nn.Sequential:
    """A network of 3 channels throughout, so that any order of layers runs."""
    make = {
        "conv3": lambda: conv(3, 3), "conv1": lambda: conv(3, 3, 1), "bn": lambda: nn.BatchNorm2d(3),
        "relu": nn.ReLU, "pair": lambda: nn.Sequential(conv(3, 2, 1), conv(2, 3)),
        "wide": lambda: nn.Sequential(conv(3, 5), nn.ReLU(), conv(5, 3)),
    }  # fmt: skip
    torch.manual_seed(0)
    return nn.Sequential(*(make[kind]() for kind in kinds))


class Scaled(nn.Module):
    """Its number is no tensor, and it does not say it."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x


class TestLaws:
    @given(LAYERS, LAYERS)
    def test_every_layer_once_totals_and_mirror(self, a: list[str], b: list[str]) -> None:
        first, second = built(a).eval(), built(b).eval()
        found = diff(first, second, image())
        check_laws(found)
        check_mirror(found, diff(second, first, image()))

    @given(LAYERS)
    def test_of_itself_nothing_differs(self, kinds: list[str]) -> None:
        model = built(kinds)
        found = diff(model, model, image())
        assert set(statuses(found)) == {"unchanged"}
        assert found.same
        assert [m.name for m in found.matches] == list(found.before.layers)
        assert diff(model, copy.deepcopy(model), image()).same

    @given(
        st.lists(st.lists(st.integers(0, 9), min_size=3, max_size=3), min_size=1, max_size=5),
    )
    def test_alignment_has_the_most_points(self, rows: list[list[int]]) -> None:
        points = np.array(rows)
        found = _aligned(points)
        assert all(i < k and j < m for (i, j), (k, m) in itertools.pairwise(found))  # none cross
        assert all(points[i, j] > 0 for i, j in found)
        best = max(
            sum(points[i, j] for i, j in zip(rows_, columns, strict=True))
            for n in range(min(points.shape) + 1)
            for rows_ in itertools.combinations(range(points.shape[0]), n)
            for columns in itertools.combinations(range(points.shape[1]), n)
        )
        assert sum(points[i, j] for i, j in found) == best

    def test_no_trace(self) -> None:
        model, other = built(["conv3", "bn", "pair"]), built(["conv3", "bn", "wide"])
        model[1].eval()
        before = [copy.deepcopy(m.state_dict()) for m in (model, other)]
        flags = [m.training for m in model.modules()]
        state = torch.random.get_rng_state()
        diff(model, other, image())
        for m, state_dict in zip((model, other), before, strict=True):
            assert m.state_dict().keys() == state_dict.keys()
            assert all(torch.equal(v, state_dict[k]) for k, v in m.state_dict().items())
            assert not any(x._forward_hooks or x._forward_pre_hooks for x in m.modules())
        assert [m.training for m in model.modules()] == flags
        assert torch.equal(torch.random.get_rng_state(), state)


class TestMatching:
    def test_the_classic_bottleneck_is_one_changed_layer(self) -> None:
        direct = named(conv=conv(100, 40, 5))
        narrow = named(conv=nn.Sequential(conv(100, 20, 1), conv(20, 40, 5)))
        [m] = diff(direct, narrow, torch.zeros(1, 100, 20, 20)).matches
        assert (m.status, m.name) == ("changed", "conv")
        assert m.before
        assert m.after
        assert (m.before.macs, m.after.macs) == (40_000_000, 8_800_000)
        assert (m.before.params, m.after.params) == (100_000, 22_000)
        assert [layer.counted.name for layer in m.after.layers] == ["conv.0", "conv.1"]
        assert (m.after.input_shape, m.after.output_shape) == ((1, 100, 20, 20), (1, 40, 20, 20))
        assert m.same_weights is None
        assert what(m) == "Conv2d 100→40 5×5, now 2 layers"

    def test_the_root_may_be_the_layer(self) -> None:
        found = diff(conv(3, 8), nn.Sequential(conv(3, 4, 1), conv(4, 8)), image())
        assert pairs(found) == [("changed", "", "")]
        check_laws(found)

    def test_a_stage_that_was_inserted(self) -> None:
        widths = [3, 8, 16, 32, 64]
        before = named(stages=nn.Sequential(*map(block, widths, widths[1:])))
        after = copy.deepcopy(before)
        after.stages.insert(1, block(8, 8))  # type: ignore[operator, union-attr]
        found = diff(before, after, image())
        assert statuses(found) == {"unchanged": 3, "renamed": 9, "added": 3}
        for m in found.of("renamed"):
            assert m.before
            assert m.after
            number, rest = re.fullmatch(r"stages\.(\d)\.(\w+)", m.before.name).groups()  # type: ignore[union-attr]
            assert m.after.name == f"stages.{int(number) + 1}.{rest}"
            assert m.same_weights is (None if rest == "act" else True)
        assert [m.name for m in found.of("added")] == [
            f"stages.1.{n}" for n in ("conv", "norm", "act")
        ]

    def test_a_prefix(self) -> None:
        before = named(a=block(3, 8), b=block(8, 8), c=block(8, 8))
        found = diff(before, named(body=copy.deepcopy(before)), image())
        assert pairs(found) == [("renamed", n, f"body.{n}") for n in found.before.layers]

    def test_a_wider_network_keeps_its_names(self) -> None:
        def net(width: int) -> nn.Sequential:
            widths = [3, width, width, 2 * width, 2 * width, 4 * width, 4 * width]
            return named(
                **{f"block{i}": block(a, b) for i, (a, b) in enumerate(itertools.pairwise(widths))}
            )

        found = diff(net(8), net(16), image())
        assert statuses(found) == {"changed": 18}
        assert all(m.before and m.after and m.before.name == m.after.name for m in found.matches)

    def test_positions_in_a_sequence_shift(self) -> None:
        before = nn.Sequential(conv(3, 8), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 16), nn.ReLU())
        after = nn.Sequential(before[0], before[2], before[3], nn.SiLU())
        found = diff(before, after, image())
        assert pairs(found) == [
            ("unchanged", "0", "0"), ("removed", "1", None), ("renamed", "2", "1"),
            ("renamed", "3", "2"), ("removed", "4", None), ("added", None, "3"),
        ]  # fmt: skip

    def test_another_kind_at_a_name(self) -> None:
        found = diff(
            named(a=conv(3, 8), act=nn.ReLU()), named(a=conv(3, 8), act=nn.SiLU()), image()
        )
        [m] = found.of("changed")
        assert (m.changes[0], what(m)) == ("kind", "ReLU, now SiLU")

    def test_layers_that_run_in_another_order_keep_their_names(self) -> None:
        a, b = conv(3, 3), conv(3, 3, 1)
        found = diff(named(a=a, b=b), named(b=b, a=a), image())
        assert sorted(pairs(found)) == [("unchanged", "a", "a"), ("unchanged", "b", "b")]
        check_laws(found)

    def test_nothing_in_common(self) -> None:
        found = diff(
            named(a=conv(3, 8), b=nn.BatchNorm2d(8)), named(x=nn.Flatten(), y=nn.Linear(192, 4)), image()
        )  # fmt: skip
        assert {m.status for m in found.matches} == {"added", "removed"}
        check_laws(found)

    def test_shapes_that_changed_by_kind_and_order(self) -> None:
        found = diff(named(a=conv(3, 8), b=conv(8, 4)), named(x=conv(3, 9), y=conv(9, 4)), image())
        assert pairs(found) == [("changed", "a", "x"), ("changed", "b", "y")]
        assert found.matches[0].changes[:2] == ("name", "weight shapes")
        assert what(found.matches[0]) == "Conv2d 3→8 3×3, now 3→9 3×3; now x"

    def test_weights_say_more_than_their_absence(self) -> None:
        found = diff(named(a=conv(3, 3), b=nn.ReLU()), named(x=nn.ReLU(), y=conv(3, 3)), image())
        assert pairs(found) == [("added", None, "x"), ("renamed", "a", "y"), ("removed", "b", None)]

    def test_one_of_two_equally_good_answers_is_chosen_either_way_round(self) -> None:
        a, b = named(a=nn.ReLU(), b=nn.Sigmoid()), named(p=nn.Sigmoid(), q=nn.ReLU())
        check_mirror(diff(a, b, image()), diff(b, a, image()))

    def test_a_deeper_network_of_the_same_stages(self) -> None:
        """As VGG-16 and VGG-19: equal convolutions before and behind a pool, positions for names."""

        def net(depth: int) -> nn.Sequential:
            stage = [conv(8, 8), nn.ReLU()] * depth
            return copy.deepcopy(nn.Sequential(*stage, nn.MaxPool2d(2), *stage, nn.MaxPool2d(2)))

        def separate(model: nn.Sequential) -> nn.Sequential:
            return nn.Sequential(*(copy.deepcopy(layer) for layer in model))

        found = diff(separate(net(2)), separate(net(3)), image(8))
        assert statuses(found) == {"unchanged": 4, "renamed": 6, "added": 4}

    def test_a_group_whose_own_code_adds(self) -> None:
        class Residual(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv = conv(3, 3)

            def forward(self, x: Tensor) -> Tensor:
                return x + self.conv(x)

        found = diff(named(a=conv(3, 3)), named(a=Residual()), image())
        [m] = found.matches
        assert m.after
        assert (m.status, m.after.kind) == ("changed", "Residual")
        assert {layer.counted.name for layer in m.after.layers} == {"a", "a.conv"}

    def test_settings(self) -> None:
        found = diff(
            named(a=conv(3, 8)),
            named(a=nn.Conv2d(3, 8, 3, padding=2, dilation=2, bias=False)),
            image(),
        )
        [m] = found.matches
        assert m.changes == ("settings",)
        assert m.same_weights is False
        assert (
            what(m)
            == "Conv2d 3→8 3×3, now 3→8 3×3 dilation 2; padding=(1, 1), now padding=(2, 2), dilation=(2, 2)"
        )

    @pytest.mark.parametrize(
        ("one", "other", "said"),
        [
            (
                nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True),
                nn.Upsample(scale_factor=2, mode="bilinear"),
                "align_corners=True, now align_corners=None",
            ),
            (
                nn.AvgPool2d(3, 1, 1, count_include_pad=False),
                nn.AvgPool2d(3, 1, 1),
                "count_include_pad=False, now count_include_pad=True",
            ),
            (Scaled(0.5), Scaled(2.0), "factor=0.5, now factor=2.0"),
        ],
    )
    def test_settings_that_a_layer_does_not_tell_of(
        self, one: nn.Module, other: nn.Module, said: str
    ) -> None:
        found = diff(named(a=conv(3, 8), b=one), named(a=conv(3, 8), b=other), image())
        assert not found.same
        _, m = found.matches
        assert m.changes == ("settings",)
        assert said in what(m)
        assert diff(named(b=one), named(b=copy.deepcopy(one)), image()).same

    def test_examples_may_differ(self) -> None:
        model = named(a=conv(3, 8), act=nn.ReLU())
        found = diff(model, model, image(), after_example=image(size=16))
        assert [m.changes for m in found.matches] == [
            ("input", "output", "MACs", "activation bytes"), ("input", "output", "activation bytes"),
        ]  # fmt: skip
        assert found.after.macs == 4 * found.before.macs
        assert found.matches[0].same_weights is True
        assert what(found.matches[1]) == "output 1×8×8×8, now 1×8×16×16"

    def test_several_inputs(self) -> None:
        class Add(nn.Module):
            def forward(self, x: Tensor, y: Tensor) -> Tensor:
                return x + y

        assert diff(Add(), Add(), image(), image()).same
        assert diff(Add(), Add(), image(), image(), after_example=(image(), image())).same
        assert diff(Add(), Add(), (image(), image())).same
        assert diff(Add(), Add(), (image(), image()), after_example=(image(), image())).same

    def test_a_network_that_cannot_run_is_named(self) -> None:
        with pytest.raises(ModelError, match="the second network: "):
            diff(named(a=conv(3, 8)), named(a=conv(4, 8)), image())
        with pytest.raises(ModelError, match="the first network: "):
            diff(named(a=conv(4, 8)), named(a=conv(3, 8)), image())

    def test_a_parametrized_layer(self) -> None:
        plain = named(a=conv(3, 8))
        found = diff(plain, named(a=parametrizations.weight_norm(conv(3, 8))), image())
        [m] = found.matches
        assert (m.status, m.name) == ("changed", "a")
        check_laws(found)


class TestWeights:
    def change(self, value: Tensor) -> bool | None:
        a, b = named(a=conv(1, 1, 1)), named(a=conv(1, 1, 1))
        with torch.no_grad():
            a.a.weight.zero_()  # type: ignore[union-attr, operator]
            b.a.weight.copy_(value)  # type: ignore[union-attr, operator]
        found = diff(a, b, image(1))
        assert statuses(found) == {"unchanged": 1}
        assert found.same == (found.matches[0].same_weights is True)
        return found.matches[0].same_weights

    def test_equal_to_the_bit(self) -> None:
        assert self.change(torch.tensor(0.0)) is True
        assert self.change(torch.tensor(-0.0)) is False
        assert self.change(torch.tensor(1e-45)) is False

    def test_nan_is_equal_to_itself(self) -> None:
        a = named(a=conv(1, 1, 1))
        nn.init.constant_(a.a.weight, torch.nan)  # type: ignore[arg-type, union-attr]
        assert diff(a, copy.deepcopy(a), image(1)).same

    def test_buffers_are_weights(self) -> None:
        a, b = (named(a=nn.BatchNorm2d(3)).eval() for _ in range(2))
        assert diff(a, b, image()).same
        b.a.running_mean += 1  # type: ignore[union-attr, operator]
        assert diff(a, b, image()).matches[0].same_weights is False

    def test_what_cannot_be_compared(self) -> None:
        a = named(a=conv(3, 8), act=nn.ReLU())
        b = copy.deepcopy(a).to("meta")
        assert [m.same_weights for m in diff(a, b, image()).matches] == [None, None]
        assert [m.same_weights for m in diff(a, a, image(), weights=False).matches] == [None, None]
        assert [m.same_weights for m in diff(a, a, image()).matches] == [True, None]

    def test_another_dtype(self) -> None:
        a, b = named(a=conv(3, 8)).bfloat16(), named(a=conv(3, 8)).half()
        [m] = diff(a, b, image().bfloat16(), after_example=image().half()).matches
        assert (m.changes, m.same_weights) == (("dtype",), False)
        assert what(m) == "bfloat16, now float16"


@pytest.fixture(scope="module")
def slimmed(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, nn.Module, Path]:
    """The demo's ResNet, slimmed with few images, and the folder of it."""
    loaded = load("demo:resnet")
    images = open_images("demo", limit=32)
    found = slim(loaded.model, images, macs=0.5, source=loaded.source, latency=False)
    folder = tmp_path_factory.mktemp("slimmed") / "out"
    found.save(folder)
    return loaded.model, found.model, folder


class TestSlimmed:
    def test_new_layers_stand_at_the_names_of_the_original(
        self, slimmed: tuple[nn.Module, nn.Module, Path]
    ) -> None:
        original, lighter, _ = slimmed
        found = diff(original, lighter, image(1, 28))
        check_laws(found)
        check_mirror(found, diff(lighter, original, image(1, 28)))
        assert set(statuses(found)) == {"changed", "unchanged"}
        groups = [m for m in found.matches if m.after and len(m.after.layers) > 1]
        assert groups
        for m in found.matches:
            assert m.before
            assert m.after
            assert m.before.name == m.after.name
            assert len(m.before.layers) == 1
            assert all(x.counted.name.startswith(m.name) for x in m.after.layers)
        assert found.after.macs < 0.55 * found.before.macs


HOSTILE = "<img src=x onerror='alert(1)'>|`_*x*_&amp;"


def hostile() -> Difference:
    layers = {HOSTILE: conv(3, 8), "b": conv(8, 8)}
    return diff(named(**layers), named(**layers, c=nn.ReLU(), d=conv(8, 4)), image())


def rich_text(found: Difference, width: int, everything: bool = False) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None, legacy_windows=False)
    console.print(difference_table(found, ("a", "b"), everything))
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def example() -> Difference:
    """With every status, and a group."""
    torch.manual_seed(0)
    before = named(
        stem=block(3, 8), body=conv(8, 8), gone=nn.Sigmoid(), old=conv(8, 16, 1), head=conv(16, 4)
    )  # fmt: skip
    after = named(
        stem=copy.deepcopy(before.stem), body=nn.Sequential(conv(8, 4, 1), conv(4, 8)),
        new=conv(8, 16, 1), more=nn.BatchNorm2d(16), head=conv(16, 4),
    )  # fmt: skip
    return diff(before.eval(), after.eval(), image())


class Tags(HTMLParser):
    """Elements, attributes and text of a page; asserts that elements are closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes |= {name for name, _ in attrs}
        if tag not in ("meta", "link", "input", "wbr", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


class TestReports:
    @pytest.mark.parametrize("width", [44, 60, 80, 120, 200])
    def test_the_table_fits(self, example: Difference, width: int) -> None:
        text = rich_text(example, width)
        assert max(map(len, text.splitlines())) <= width
        folded = sum(int(n) for n in re.findall(r"… (\d+) unchanged", text))
        assert folded == len(example.of("unchanged")) > 0
        flat = re.sub(r"\s+", "", text)
        for m in example.matches:
            assert (m.status == "unchanged") or m.name in flat
        assert "unchanged" not in rich_text(example, width, everything=True).split("\n\n", 2)[2]

    def test_what_became_of_a_layer_stands_below_its_name_where_it_is_narrow(
        self, example: Difference
    ) -> None:
        assert re.search(r"body +Conv2d 8→8 3×3, now 2 layers", rich_text(example, 100))
        assert re.search(r"body .*\n +Conv2d 8→8 3×3,", rich_text(example, 40))

    def test_the_example_has_it_all(self, example: Difference) -> None:
        assert statuses(example) == {
            "changed": 1, "renamed": 1, "added": 1, "removed": 1, "unchanged": 4,
        }  # fmt: skip
        check_laws(example)

    def test_json(self, example: Difference) -> None:
        values = difference_json(example, ("a", "b"))
        assert json.loads(json_text(values)) == values
        assert values["schema"] == "onebyone.diff/1"
        assert values["statuses"] == {s: len(example.of(s)) for s in STATUSES}
        for end in ("before", "after"):
            there = [layer[end] for layer in values["layers"] if layer[end]]
            for cost in COSTS:
                assert sum(side[cost] for side in there) == values[end][cost]
                parts = [part for side in there for part in side["layers"]]
                assert sum(part[cost] for part in parts) == values[end][cost]

    def test_csv(self, example: Difference) -> None:
        rows = list(csv.DictReader(io.StringIO(difference_csv(example))))
        assert len(rows) == len(example.matches)
        for row, m in zip(rows, example.matches, strict=True):
            assert (row["status"], row["changes"]) == (m.status, "; ".join(m.changes))
            assert row["same_weights"] == {True: "true", False: "false", None: ""}[m.same_weights]
            for end, side in (("before", m.before), ("after", m.after)):
                for cost in COSTS:
                    assert row[f"{cost}_{end}"] == (
                        "" if side is None else str(getattr(side, cost))
                    )
        assert rows[0]["input_shape_before"] == "1x3x8x8"

    def test_a_layer_name_stays_in_its_csv_field(self) -> None:
        rows = list(csv.DictReader(io.StringIO(difference_csv(hostile()))))
        assert rows[0]["name_before"] == HOSTILE

    def test_markdown(self, example: Difference) -> None:
        said = difference_markdown(example, ("a", "b"))
        for m in example.matches:
            assert (m.status == "unchanged") or f"| {escaped(m.name)} |" in said
        everything = difference_markdown(example, ("a", "b"), everything=True)
        assert all(f"| {escaped(m.name)} |" in everything for m in example.matches)

    def test_markdown_keeps_hostile_names_in_their_cell(self) -> None:
        said = difference_markdown(hostile(), (HOSTILE, "a\n\n# b"), everything=True)
        tables = [b for b in said.split("\n\n") if b.startswith("|")]
        for table in tables:
            assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1
        assert not re.search(r"(?<!\\)<|^# ", said, re.MULTILINE)

    def test_costs_before_and_after(self, example: Difference) -> None:
        said = {m.name: spelled(m, "macs", str) for m in example.matches}
        assert said == {
            "stem.conv": "13824", "stem.norm": "–", "stem.act": "–", "body": "36864 → 20480",
            "gone": "–", "old": "8192", "more": "–", "head": "36864",
        }  # fmt: skip
        params = {m.name: spelled(m, "params", str) for m in example.matches}
        assert (params["more"], params["gone"], params["body"]) == ("+32", "–", "576 → 320")
        swapped = Match("removed", example.of("added")[0].after, None)
        assert spelled(swapped, "params", str) == "−32"

    def test_the_page_is_whole_and_runs_nothing(self, example: Difference) -> None:
        page = difference_html(example, ("a", "b"))
        tags = Tags(page)
        assert not {"script", "iframe", "img"} & set(tags.tags)
        assert not [name for name in tags.attributes if name.startswith("on") or name == "src"]
        assert "default-src 'none'" in page
        assert "http" not in page.replace("http-equiv", "")
        for m in example.matches:
            assert m.name in tags.text
            assert (f'<li class="{m.status}">') in page

    def test_the_page_escapes_names(self) -> None:
        page = difference_html(hostile(), (HOSTILE, "</title><script>alert(1)</script>"))
        tags = Tags(page)
        assert not {"script", "img"} & set(tags.tags)
        assert HOSTILE in tags.text
        assert "<img" not in page

    def test_the_filter_has_a_button_for_each_status(self, example: Difference) -> None:
        page = difference_html(example)
        shown = set(re.findall(r'id="show-(\w+)"', page))
        assert shown == {"differing", "all", *statuses(example)}
        assert page.count('checked=""') == 1
        one = difference_html(diff(named(a=conv(3, 8)), named(a=conv(3, 8), b=nn.ReLU()), image()))
        assert set(re.findall(r'id="show-(\w+)"', one)) == {
            "differing",
            "all",
            "added",
            "unchanged",
        }
        same = difference_html(diff(named(a=conv(3, 8)), named(a=conv(3, 8)), image()))
        assert set(re.findall(r'id="show-(\w+)"', same)) == {"all", "unchanged"}

    def test_the_coverage_of_both(self) -> None:
        class Never(nn.Sequential):
            def __init__(self) -> None:
                super().__init__(conv(3, 8), nn.ReLU())
                self.spare = conv(8, 8)

            def forward(self, x: Tensor) -> Tensor:
                return self[1](self[0](x))

        a, b = named(a=conv(3, 8), b=nn.ReLU()), Never()
        text = " ".join(rich_text(diff(a, b, image()), 200).split())
        assert "a: MACs come from 1 operator; not counted: relu (512 elements)." in text
        assert "relu (512 elements); never ran: spare." in text
        text = " ".join(rich_text(diff(a, a, image()), 200).split())
        assert "Both: MACs come from 1 operator; not counted: relu (512 elements)." in text

    def test_sentences_of_equal_and_of_other_networks(self) -> None:
        model = named(a=conv(3, 8), b=nn.ReLU())
        text = rich_text(diff(model, model, image()), 80)
        assert "All 2 layers are the same." in text
        assert "Weights: equal to the bit in the one layer whose weight shapes agree." in text
        other = rich_text(diff(model, named(a=conv(3, 8), b=nn.ReLU()), image()), 80)
        assert "Weights: not equal to the bit in the one layer" in other
        assert "1 with other weights" in other

    def test_sentences_begin_and_count_as_sentences_do(self) -> None:
        empty = diff(nn.ReLU(), nn.ReLU(), image())
        assert headline(replace(empty, matches=())) == "No layers"
        one = diff(named(a=conv(3, 8)), named(a=conv(3, 8)), image())
        assert headline(one) == "The one layer is the same"
        shared = conv(3, 3)
        once, twice = named(a=shared), Repeated(shared, 2)
        [calls] = diff(once, twice, image()).matches
        assert what(calls).startswith("1 call, now 2")
        [calls] = diff(twice, once, image()).matches
        assert what(calls).startswith("2 calls, now 1")


NETS = """
import torch
from torch import nn
def old():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 24, 3), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 3))
def new():
    model = old()
    model[2] = nn.Sequential(nn.Conv2d(16, 8, 1), nn.Conv2d(8, 24, 3))
    return model
class Add(nn.Module):
    def forward(self, x, y):
        return x + y
def two():
    return Add(), (torch.zeros(1, 3), torch.zeros(1, 3))
def broken():
    return nn.Sequential(nn.Conv2d(4, 16, 3))
"""
SHAPE = "--input 3x16x16"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "nets.py").write_text(NETS)
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("nets", None)


def call(line: str) -> Result:
    return CliRunner().invoke(app, ["diff", *line.split()])  # type: ignore[return-value]


class TestCommand:
    def test_all_files(self, place: Path) -> None:
        result = call(
            f"nets:old nets:new {SHAPE} --json d.json --csv d.csv --markdown d.md --html d.html"
        )
        assert result.exit_code == 0, result.stderr
        assert "1 changed and 6 unchanged layers." in result.stdout
        values = json.loads((place / "d.json").read_text())
        assert (values["before"]["model"], values["after"]["model"]) == ("nets:old", "nets:new")
        expected = 14 * 14 * 16 * 24 * 9, 16 * 16 * 16 * 8 + 14 * 14 * 8 * 24 * 9
        [changed] = [layer for layer in values["layers"] if layer["status"] == "changed"]
        assert (changed["before"]["macs"], changed["after"]["macs"]) == expected
        assert [part["name"] for part in changed["after"]["layers"]] == ["2.0", "2.1"]
        assert len((place / "d.csv").read_text().splitlines()) == 1 + 7
        assert (place / "d.md").read_text().startswith("**nets:old → nets:new**")
        assert (place / "d.html").read_text().startswith("<!doctype html>")

    def test_stdout_has_one_thing_alone(self, place: Path) -> None:
        result = call(f"nets:old nets:old {SHAPE} --json -")
        assert result.exit_code == 0
        assert json.loads(result.stdout)["same"] is True

    def test_all_layers(self, place: Path) -> None:
        assert "… 7 unchanged" in call(f"nets:old nets:old {SHAPE}").stdout
        shown = call(f"nets:old nets:old {SHAPE} --all").stdout
        assert "…" not in shown
        assert "Linear 24→3" in shown

    def test_two_inputs(self, place: Path) -> None:
        result = call("nets:old nets:old --input 3x16x16 --input 3x8x8 --json -")
        layers = json.loads(result.stdout)["layers"]
        assert layers[0]["before"]["input_shape"] == [1, 3, 16, 16]
        assert layers[0]["after"]["input_shape"] == [1, 3, 8, 8]

    def test_a_factory_with_several_inputs(self, place: Path) -> None:
        result = call("nets:two nets:two --json -")
        assert result.exit_code == 0, result.stderr
        assert json.loads(result.stdout)["same"] is True

    def test_a_slimmed_folder(
        self, place: Path, slimmed: tuple[nn.Module, nn.Module, Path]
    ) -> None:
        result = call(f"demo:resnet {slimmed[2]} --json -")
        assert result.exit_code == 0, result.stderr
        assert set(json.loads(result.stdout)["statuses"]) == set(STATUSES)
        assert json.loads(result.stdout)["statuses"]["added"] == 0

    def test_weights_that_were_drawn_are_not_compared(self, place: Path) -> None:
        result = call("demo:vgg demo:vgg --weights-b random --json -")
        assert {layer["same_weights"] for layer in json.loads(result.stdout)["layers"]} == {None}
        assert "not compared" in result.stderr
        trained = call("demo:vgg demo:vgg --json -")
        assert {layer["same_weights"] for layer in json.loads(trained.stdout)["layers"]} == {
            None,
            True,
        }

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            (f"nets:old no.pt2 {SHAPE}", "no.pt2 does not exist"),
            (f"nets:old nets:broken {SHAPE}", "the second network: "),
            (f"nets:broken nets:old {SHAPE}", "the first network: "),
            (f"nets:old nets:neww {SHAPE}", "the nearest are new"),
            ("nets:old nets:new", "--input 3x224x224"),
            ("nets:old nets:new --input 3by16", "is no size"),
            (f"nets:old nets:new {SHAPE} {SHAPE} {SHAPE}", "3 shapes were given"),
            (f"nets:old nets:new {SHAPE} --weights-a no.pt", "no.pt does not exist"),
            (f"nets:old nets:new {SHAPE} --json folder", "folder"),
            (f"nets:old nets:new {SHAPE} --html nowhere/d.html", "nowhere"),
            (f"nets:old nets:new {SHAPE} --json x --csv x", "two kinds of output"),
        ],
    )
    def test_bad_input(self, place: Path, line: str, message: str) -> None:
        before = sorted(p.name for p in place.iterdir() if p.name != "__pycache__")
        result = call(f"{line} --markdown d.md")
        assert result.exit_code == 2
        assert message in re.sub(r"\s*│?\n│?\s*", " ", result.stderr)
        assert "Traceback" not in result.stderr
        assert result.stdout == ""
        assert sorted(p.name for p in place.iterdir() if p.name != "__pycache__") == before


def test_a_network_that_holds_the_other_has_its_layers_renamed() -> None:
    def net() -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.ReLU()
        )

    class Doubled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * x

    x = torch.randn(1, 3, 8, 8)
    for other, added in ((nn.Sequential(net()), 0), (nn.Sequential(Doubled(), net()), 1)):
        for found in (diff(net(), other, x), diff(other, net(), x)):
            kinds = [m.status for m in found.matches]
            assert kinds.count("renamed") == 5
            assert len(kinds) == 5 + added
            assert all(m.same_weights for m in found.matches if m.same_weights is not None)


def test_a_traced_program_beside_a_module_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nets.py").write_text(
        "import torch\nfrom torch import nn\ndef net():\n    torch.manual_seed(0)\n"
        "    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), torch.zeros(1, 3, 8, 8)\n"
    )
    monkeypatch.chdir(tmp_path)
    model, x = load("nets:net")
    torch.export.save(torch.export.export(model, (x,)), "net.pt2")
    told = " ".join(call("nets:net net.pt2").stderr.split())
    assert (
        "net.pt2 is a traced program: what has no weights, such as ReLU, is no layer there" in told
    )
    for line in ("nets:net nets:net", "net.pt2 net.pt2"):
        assert "traced program" not in call(line).stderr
    sys.modules.pop("nets", None)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("side", [0, 1])
def test_what_torch_compile_wraps_is_the_network_itself(side: int) -> None:
    plain = block(3, 4).eval()
    networks: list[Any] = [plain, plain]
    networks[side] = torch.compile(plain)
    found = diff(*networks, image())
    assert statuses(found) == statuses(diff(plain, plain, image()))


@pytest.mark.parametrize("names", ["left right", "one two three", "conv1 conv2"])
def test_layers_alike_that_changed_places_keep_their_names(names: str) -> None:
    stem = nn.Conv2d(3, 8, 3, padding=1)
    layers = {name: nn.Conv2d(8, 8, 3, padding=1) for name in names.split()}
    before = nn.Sequential(OrderedDict(stem=stem, **layers))
    after = nn.Sequential(OrderedDict(stem=stem, **dict(reversed(layers.items()))))
    found = diff(before, after, torch.randn(1, 3, 8, 8))
    assert {(m.status, m.same_weights) for m in found.matches} == {("unchanged", True)}
    assert all(m.before and m.after and m.before.name == m.after.name for m in found.matches)
