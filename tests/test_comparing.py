"""compare: the classic example, every row counted and refused rightly, code that builds what it says."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import fields, replace
from fractions import Fraction
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
from torch import nn
from typer.testing import CliRunner

import onebyone as obo
from onebyone.cli.app import app
from onebyone.comparison import Comparison, break_even
from onebyone.errors import OneByOneError, ShapeError
from onebyone.measurement.counting import count
from onebyone.report.comparison import comparison_table
from onebyone.report.comparison_files import (
    FIELDS,
    SCHEMA,
    comparison_csv,
    comparison_json,
    comparison_markdown,
)
from onebyone.report.comparison_page import comparison_html
from onebyone.variants import KINDS, Asked

CLASSIC = ("100x20x20", "40x20x20", 5)
LATENCY = 1e-4  # seconds: the least number of rounds
SMALL = ("8x6x6", "12x6x6", 3)


@pytest.fixture(scope="module")
def classic() -> Comparison:
    return obo.compare(*CLASSIC, latency=False)


@pytest.fixture(scope="module")
def timed() -> Comparison:
    """Two widths, one block refused, everything timed."""
    return obo.compare("9x6x6", "12x6x6", 3, width=(3, 5), groups=2, seconds=LATENCY)


def rows(comparison: Comparison) -> dict[str, tuple[int, int, int]]:
    return {v.name: (v.params, v.params_with_bias, v.macs) for v in comparison.variants}


# Counting


def test_the_classic_example(classic: Comparison) -> None:
    assert rows(classic) == {
        "direct": (100_000, 100_040, 40_000_000),
        "bottleneck_before": (22_000, 22_060, 8_800_000),
        "bottleneck_after": (50_800, 50_860, 20_320_000),
        "bottleneck_both": (12_800, 12_880, 5_120_000),
        "inception": (6_150, 6_207, 2_460_000),
        "fire": (12_400, 12_460, 4_960_000),
        "depthwise_separable": (6_500, 6_640, 2_600_000),
        "inverted_residual": (99_000, 100_240, 39_600_000),
        "grouped": (25_000, 25_040, 10_000_000),
        "cp": (3_000, 3_100, 1_200_000),
        "network_in_network": (103_200, 103_320, 41_280_000),
        "max_pool": (0, 0, 0),
    }
    assert classic.widths == (20,)
    assert classic.refused == ()
    before = classic["bottleneck_before"]
    assert (before.params_ratio, before.macs_ratio) == (0.22, 0.22)
    assert before.output_shape == (40, 20, 20)
    # 20×20×20 and 40×20×20 in float32; read are the input, the middle and 22,000 weights.
    assert before.activation_bytes == 4 * 400 * (20 + 40)
    moved = 4 * (400 * (100 + 20 + 20 + 40) + 22_000)
    assert before.intensity_macs_per_byte == 8_800_000 / moved
    assert classic["max_pool"].output_shape == (100, 20, 20)
    assert "keeps the 100 channels" in classic["max_pool"].note
    assert all(v.inference is None and v.inference_ratio is None for v in classic.variants)


def test_biases_are_counted_where_they_are_asked_for() -> None:
    with_bias = obo.compare(*CLASSIC, bias=True, latency=False)
    assert all(v.params == v.params_with_bias for v in with_bias.variants)
    assert with_bias["bottleneck_before"].params == 22_060
    assert with_bias["bottleneck_before"].macs == 8_800_000


@pytest.mark.parametrize(
    ("shapes", "width"),
    [
        (("100x20x20", "40x20x20"), 20), (("3x8x8", "64x8x8"), 1), (("1x8x8", "1x8x8"), 1),
        (("64x8x8", "31x8x8"), 15),
    ],
)  # fmt: skip
def test_the_default_width_is_half_of_the_smaller(shapes: tuple[str, str], width: int) -> None:
    assert obo.compare(*shapes, latency=False).widths == (width,)


@pytest.mark.parametrize(
    ("shapes", "groups"),
    [
        (("100x20x20", "40x20x20"), 4), (("9x8x8", "6x8x8"), 3), (("10x8x8", "6x8x8"), 2),
        (("3x8x8", "64x8x8"), None),
    ],
)  # fmt: skip
def test_the_default_groups_divide_both(shapes: tuple[str, str], groups: int | None) -> None:
    found = obo.compare(*shapes, latency=False)
    assert [v.groups for v in found.variants if v.name == "grouped"] == (
        [] if groups is None else [groups]
    )
    if groups is None:
        assert [r.reason for r in found.refused] == [
            "3 and 64 channels have no common divisor up to 4"
        ]


def test_several_widths_give_several_rows() -> None:
    found = obo.compare(*CLASSIC, width=[40, 20, 40], latency=False)
    assert found.widths == (40, 20)
    pairs = [(v.name, v.width) for v in found.variants]
    wide = {n for n, kind in KINDS.items() if kind.wide}
    assert wide == {"bottleneck_before", "bottleneck_after", "bottleneck_both", "fire", "cp"}
    assert pairs == [
        (name, width) for name in KINDS for width in ((40, 20) if name in wide else (None,))
    ]
    assert found["bottleneck_before"].params == 44_000
    with pytest.raises(KeyError, match="no variant is called 'bottleneck': there are direct, "):
        _ = found["bottleneck"]


def test_what_cannot_be_built_is_refused_with_the_reason() -> None:
    found = obo.compare("100x20x20", "3x16x16", 5, latency=False)
    assert {r.name: r.reason for r in found.refused} == {
        "inception": "four branches cannot make 3 channels: four is the least",
        "fire": "a 1×1 kernel cannot make height 16 of 20, whatever stride and padding (at most 0 in "
        "all): 1 to 5, 7, 10 and 20 fit",
        "grouped": "100 and 3 channels have no common divisor up to 4",
    }
    assert {v.name for v in found.variants} | {r.name for r in found.refused} == set(KINDS)


@given(
    st.tuples(*[st.integers(1, 40)] * 2), st.tuples(*[st.integers(1, 12)] * 2), st.integers(1, 5),
    st.integers(1, 3),
)  # fmt: skip
def test_the_break_even_width_is_where_the_costs_cross(
    channels: tuple[int, int], size: tuple[int, int], kernel: int, stride: int
) -> None:
    (c, d), (h, w) = channels, size
    end = (-(-h // stride), -(-w // stride))
    even = break_even((c, h, w), (d, *end), kernel)

    def costs(width: int) -> tuple[int, int]:
        macs = width * (c * h * w + d * kernel**2 * end[0] * end[1])
        return macs, width * (c + d * kernel**2)

    direct = (c * d * kernel**2 * end[0] * end[1], c * d * kernel**2)
    for index, most in enumerate((even.most_macs, even.most_params)):
        assert costs(most)[index] < direct[index] <= costs(most + 1)[index]
    assert even.macs * costs(1)[0] == direct[0]
    assert even.params * costs(1)[1] == direct[1]


def test_the_break_even_width_of_the_classic_example(classic: Comparison) -> None:
    assert classic.break_even.macs == classic.break_even.params == Fraction(1000, 11)
    below, above = (
        obo.compare(*CLASSIC, width=w, latency=False)["bottleneck_before"] for w in (90, 91)
    )
    assert below.macs < classic.direct.macs < above.macs
    assert (classic.break_even.most_macs, classic.break_even.most_params) == (90, 90)


# Code


@pytest.mark.parametrize(
    ("start", "end", "kernel"),
    [
        ((100, 20, 20), (40, 20, 20), 5), ((8, 12, 10), (12, 6, 10), 4), ((8, 9, 9), (12, 7, 7), 3),
        ((6, 7, 8), (6, 7, 8), 2), ((6, 8, 8), (4, 4, 4), 1),
    ],
)  # fmt: skip
@pytest.mark.parametrize("bias", [False, True])
def test_the_code_builds_the_block(start: Any, end: Any, kernel: int, bias: bool) -> None:
    found = obo.compare(start, end, kernel, bias=bias, latency=False)
    assert found.variants[9:]
    for variant in found.variants:
        assert "onebyone" not in variant.code
        space: dict[str, Any] = {}
        exec(variant.code, space)
        theirs = space["block"]
        groups = variant.groups or 1
        asked = Asked(found.input_shape, found.output_shape, kernel, found.widths[0], groups, bias)
        ours = KINDS[variant.name].build(asked)
        theirs.load_state_dict(ours.state_dict())
        x = torch.randn(2, *start)
        torch.testing.assert_close(theirs(x), ours(x), rtol=0, atol=0)
        assert theirs(x).shape == (2, *variant.output_shape)
        recounted = count(theirs, x[:1])
        assert (recounted.params, recounted.macs) == (variant.params, variant.macs)


def test_code_with_activations_and_shortcuts() -> None:
    from onebyone.sources import source

    torch.manual_seed(0)
    for block in (
        obo.blocks.InceptionBranch("8x6x6", "16x6x6", relu=True),
        obo.blocks.BottleneckBoth("8x6x6", "8x6x6", 4, width=3, shortcut=True, relu=True),
        obo.blocks.InvertedResidual("8x6x6", "8x6x6", shortcut=True, relu=True, bias=True),
    ):
        space: dict[str, Any] = {}
        exec(source(block), space)
        space["block"].load_state_dict(block.state_dict())
        x = torch.randn(2, 8, 6, 6)
        torch.testing.assert_close(space["block"](x), block(x), rtol=0, atol=0)
    block = obo.blocks.Direct("8x6x6", "8x6x6")
    block.append(nn.Tanh())
    with pytest.raises(TypeError, match="no block has a layer of the kind Tanh"):
        source(block)


# The clock


def test_every_variant_is_timed_as_asked() -> None:
    found = obo.compare(*SMALL, threads=2, batch=3, seconds=LATENCY)
    for variant in found.variants:
        for latency, ratio in (
            (variant.inference, variant.inference_ratio), (variant.training, variant.training_ratio),
        ):  # fmt: skip
            assert latency is not None
            assert (latency.batch, latency.threads, latency.dtype) == (3, 2, "float32")
            assert 0 < latency.low_ms <= latency.median_ms <= latency.high_ms
            assert latency.runs >= 2
            assert ratio is not None
        assert variant.inference.mode == "inference"
        assert variant.training.mode == "training step"
        assert variant.inference_ratio == (
            variant.inference.median_ms / found.direct.inference.median_ms
        )
    assert found.direct.inference_ratio == found.direct.training_ratio == 1.0
    inference_only = obo.compare(*SMALL, training=False, seconds=LATENCY)
    assert all(v.inference and v.training is None for v in inference_only.variants)


def test_a_training_step_has_the_gradient_of_the_input(monkeypatch: pytest.MonkeyPatch) -> None:
    from onebyone import comparing

    steps: list[dict[str, nn.Module]] = []
    real = comparing.time_models

    def seen(models: dict[str, nn.Module], example: Any, **setting: Any) -> Any:
        if setting.get("training"):
            steps.append(dict(models))
        return real(models, example, **setting)

    monkeypatch.setattr(comparing, "time_models", seen)
    obo.compare(*SMALL, seconds=LATENCY)
    (models,) = steps
    assert len(models) == len(KINDS)
    for model in models.values():
        grads: list[Any] = []
        y = model(torch.randn(1, 8, 6, 6))
        nodes = [y.grad_fn]
        while nodes:
            node = nodes.pop()
            if hasattr(node, "variable"):
                grads.append(node.variable.shape)
            nodes += [n for n, _ in node.next_functions if n is not None]
        assert (1, 8, 6, 6) in grads


def test_times_that_scatter_are_said_to(timed: Comparison) -> None:
    from onebyone.comparing import _timing_notes

    def steady(latency: Any, spread: float) -> Any:
        return replace(
            latency, median_ms=1.0, low_ms=1 - spread / 2, high_ms=1 + spread / 2, notes=()
        )

    for spread, wide in ((0.4, False), (0.6, True)):
        variants = [
            replace(v, inference=steady(v.inference, spread), training=steady(v.training, 0.1))
            for v in timed.variants[:3]
        ]
        notes = _timing_notes(variants)
        assert len(notes) == wide
        if wide:
            assert notes[0].startswith("times scatter widely for 3 of 3 blocks in inference (")
    busy = replace(variants[0], inference=replace(variants[0].inference, notes=("busy",)))
    assert _timing_notes([busy])[0] == "busy"


def test_nothing_is_left_behind() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    threads = torch.get_num_threads()
    obo.compare(*SMALL, threads=threads + 1, seconds=LATENCY)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads
    assert torch.is_grad_enabled()


def test_shapes_that_do_not_fit_in_memory_are_counted_but_not_timed() -> None:
    shapes = ("64x1000x1000", "64x1000x1000")
    assert obo.compare(*shapes, latency=False).direct.macs == 36_864_000_000
    with pytest.raises(ShapeError, match=r"takes about \d+ GiB of memory: give a smaller batch"):
        obo.compare(*shapes, batch=64)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"width": 0}, "the width is given as 0"),
        ({"width": ()}, "no width is given"),
        ({"width": 20.0}, r"the width is given as 20\.0"),
        ({"width": "20"}, "the width is given as '2'"),
        ({"width": [3, -1]}, "the width is given as -1"),
        ({"groups": 0}, "the number of groups is given as 0"),
        ({"kernel": 0}, "the kernel is given as 0"),
        ({"kernel": True}, "the kernel is given as True"),
        ({"input": 5}, "the input is given as 5"),
        ({"output": None}, "the output is given as None"),
        ({"batch": 0, "latency": False}, "the batch is given as 0"),
        ({"threads": 0, "latency": False}, "the number of threads is given as 0"),
        ({"threads": True}, "the number of threads is given as True"),
        ({"batch": 0}, "the batch is given as 0"),
        ({"output": "40x30x30"}, "cannot make height 30 of 20"),
        ({"input": "100x20"}, "the input is given as '100x20'"),
        ({"threads": 0}, "threads"),
    ],
)
def test_bad_input(more: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"input": "8x20x20", "output": "4x20x20", "kernel": 3} | more
    with pytest.raises(OneByOneError, match=message):
        obo.compare(**arguments, seconds=LATENCY)


# Text, JSON, CSV, Markdown


def printed(comparison: Comparison, width: int) -> str:
    file = io.StringIO()
    Console(file=file, width=width, highlight=False).print(comparison_table(comparison))
    return file.getvalue()


@pytest.mark.parametrize("width", [60, 80, 100, 120, 200])
def test_the_table_fits_the_terminal(timed: Comparison, classic: Comparison, width: int) -> None:
    for comparison in (timed, classic):
        lines = printed(comparison, width).splitlines()
        assert max(map(len, lines)) <= width
        body = [line for line in lines if line.startswith("1×1 before, w ")]
        assert str(comparison["bottleneck_before"].params) in body[0].replace(",", "")
        for variant in comparison.variants:
            assert any(line.startswith(variant.title) for line in lines)


def test_the_terminal_says_what_matters(classic: Comparison) -> None:
    text = printed(classic, 80)
    for said in (
        "100×20×20 → 40×20×20, kernel 5×5, stride 1, padding 2, without biases", "100,000", "22,000",
        "100,040", "22,060", "40.0 M", "8.80 M", "×0.22", "up to width 90", "90.91",
        "it keeps the 100 channels of its input, so its output is 100×20×20",
    ):  # fmt: skip
        assert said in text
    assert "inference" not in text


def test_the_terminal_says_what_the_clock_says(timed: Comparison) -> None:
    text = " ".join(printed(timed, 200).split())
    assert f"{timed.direct.inference.median_ms:.3f} ms" in text  # type: ignore[union-attr]
    assert "1 thread, float32, 1 image, medians of" in text
    assert (
        "Not built: grouped: 9 and 12 channels cannot both be split into 2 groups: 1, 3 can."
        in text
    )
    assert re.search(r"1×1 before, w 5: [\d.]+ % of the parameters and [\d.]+ % of the MACs", text)
    slower = replace(
        timed,
        variants=(timed.direct, replace(timed["inception"], macs_ratio=0.5, inference_ratio=1.5)),
    )
    assert "Fewer MACs than direct, and yet slower: Inception (×1.50)." in printed(slower, 200)


def test_json_has_everything(timed: Comparison) -> None:
    values = json.loads(json.dumps(comparison_json(timed), allow_nan=False))
    assert values["schema"] == SCHEMA == "onebyone.compare/1"
    assert (values["input"], values["output"], values["kernel"]) == ([9, 6, 6], [12, 6, 6], 3)
    assert values["padding"] == {"left": 1, "right": 1, "top": 1, "bottom": 1}
    assert values["widths"] == [3, 5]
    assert [v["name"] for v in values["variants"]] == [v.name for v in timed.variants]
    told = {f.name for f in fields(timed.direct)} - {"output_shape"} | {"output", "macs_per_byte"}
    for values_of, variant in zip(values["variants"], timed.variants, strict=True):
        assert set(values_of) == told
        assert values_of["macs"] == variant.macs
        assert values_of["inference"]["median_ms"] == variant.inference.median_ms  # type: ignore[union-attr]
        assert values_of["output"] == list(variant.output_shape)
    assert values["refused"][0]["reason"] == timed.refused[0].reason
    even = values["break_even"]
    assert even["most_width_saving_macs"] == timed.break_even.most_macs
    assert even["macs_width"] == float(timed.break_even.macs)


def test_csv_reads_back(timed: Comparison) -> None:
    lines = list(csv.DictReader(io.StringIO(comparison_csv(timed))))
    assert tuple(lines[0]) == FIELDS
    assert len(lines) == len(timed.variants) + len(timed.refused)
    for line, variant in zip(lines, timed.variants, strict=False):
        assert (line["name"], int(line["macs"])) == (variant.name, variant.macs)
        assert int(line["params_with_bias"]) == variant.params_with_bias
        assert line["width"] == ("" if variant.width is None else str(variant.width))
        assert float(line["training_median_ms"]) == variant.training.median_ms  # type: ignore[union-attr]
        shape = tuple(int(line[n]) for n in ("channels", "height", "columns"))
        assert (shape, line["refused"]) == (variant.output_shape, "")
    assert (lines[-1]["name"], lines[-1]["macs"]) == ("grouped", "")
    assert lines[-1]["refused"] == timed.refused[0].reason


def test_markdown_is_one_table(timed: Comparison, classic: Comparison) -> None:
    for comparison, columns in ((timed, 13), (classic, 9)):
        lines = [n for n in comparison_markdown(comparison).splitlines() if n.startswith("|")]
        assert len(lines) == 2 + len(comparison.variants)
        assert {line.count("|") for line in lines} == {columns + 1}
    assert "| 22,000 | 22,060 | ×0.22 | 8.80 M | ×0.22 |" in comparison_markdown(classic)


# The page


class Page(HTMLParser):
    """Tags that must match, attributes, and all text."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data


def test_the_page_is_whole_and_alone(timed: Comparison) -> None:
    html = comparison_html(timed)
    page = Page(html)
    names = [name for name, _ in page.tags]
    assert "script" not in names
    assert "img" not in names
    for name, attributes in page.tags:
        assert not {"src", "srcset", "action", "onclick"} & set(attributes)
        if "href" in attributes:
            assert attributes["href"] in ("data:,", "#blocks-title"), name
    assert "http://" not in html
    assert "https://" not in html
    assert "@import" not in html
    assert "url(" not in html
    policy = next(a["content"] for n, a in page.tags if a.get("http-equiv"))
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert names.count("details") == len(timed.variants)
    for variant in timed.variants:
        assert variant.code in page.text
        assert variant.paper in page.text
    assert f"not built: {timed.refused[0].reason}" in page.text
    assert "onebyone compare 9x6x6 12x6x6 --kernel 3 --width 3 --width 5" in page.text


def test_bars_are_to_scale_and_cut_off_where_they_are_too_long(classic: Comparison) -> None:
    html = comparison_html(classic)
    assert "--one:96.90%" in html  # network in network is the longest, ×1.03
    assert 'class="macs" style="width:21.32%"' in html  # 0.22 of that
    assert "macs cut" not in html
    long = replace(classic["cp"], macs_ratio=14.74)
    html = comparison_html(replace(classic, variants=(*classic.variants, long)))
    assert "--one:66.67%" in html
    assert '<i class="macs cut" style="width:100.00%"></i></span><b>×14.74</b>' in html


def test_the_page_escapes_every_text(classic: Comparison) -> None:
    hostile = '"><script>alert(1)</script>&amp;$title'
    bad = replace(
        classic.direct, title=hostile, says=hostile, paper=hostile, code=hostile, note=hostile
    )
    before = classic["bottleneck_before"]
    html = comparison_html(replace(classic, variants=(bad, before), notes=(hostile,)))
    page = Page(html)
    assert "script" not in [name for name, _ in page.tags]
    assert page.text.count(hostile) >= 6


# The command


def call(line: str) -> Result:
    return CliRunner().invoke(app, ["compare", *line.split()])  # type: ignore[return-value]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_command_prints_the_classic_example() -> None:
    done = call("100x20x20 40x20x20 --kernel 5 --no-latency")
    assert done.exit_code == 0, done.stderr
    for said in ("100,000", "100,040", "40.0 M", "22,000", "22,060", "8.80 M"):
        assert said in done.stdout


def test_the_command_takes_every_option(place: Path) -> None:
    done = call(
        "8x6x6 12x3x3 -k 3 --width 2 --width 4 --groups 2 --bias --no-training --batch 2 --threads 1 "
        "--json c.json --csv c.csv --markdown c.md --html c.html"
    )
    assert done.exit_code == 0, done.stderr
    assert {p.name for p in place.iterdir()} == {"c.json", "c.csv", "c.md", "c.html"}
    values = json.loads(Path("c.json").read_text(encoding="utf-8"))
    assert (values["stride"], values["widths"], values["bias"], values["batch"]) == (
        [2, 2], [2, 4], True, 2,
    )  # fmt: skip
    assert values["variants"][0]["inference"]["batch"] == 2
    assert values["variants"][0]["training"] is None
    assert "1×1 before, w 4" in done.stdout


def test_a_dash_is_stdout_and_nothing_else(place: Path) -> None:
    done = call("8x6x6 12x6x6 --no-latency --json - --csv c.csv")
    assert json.loads(done.stdout)["schema"] == SCHEMA
    assert Path("c.csv").read_text(encoding="utf-8").startswith("name,width")
    assert call("8x6x6 12x6x6 --no-latency --html -").stdout.startswith("<!doctype html>")


def test_code_is_printed_alone() -> None:
    done = call("8x6x6 12x6x6 --code inverted-residual")
    space: dict[str, Any] = {}
    exec(done.stdout, space)
    assert space["block"](torch.randn(1, 8, 6, 6)).shape == (1, 12, 6, 6)
    twice = call("8x6x6 12x6x6 --width 2 --width 3 --code cp").stdout
    assert twice.count("# cp, width ") == 2
    exec(twice, space)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("100x20 40x20x20", "the input is given as '100x20'"),
        ("100x20x20 40x15x20", "cannot make height 15 of 20"),
        ("100x20x20 40x20x20 --kernel 0", "the kernel is given as 0"),
        ("100x20x20 40x20x20 --width 0", "the width is given as 0"),
        ("100x20x20 40x20x20 --kernel five", "--kernel"),
        ("8x6x6 8x6x6 --code fir", "no block is called 'fir': there are direct, bottleneck_before"),
        ("3x6x6 8x6x6 --code grouped", "grouped cannot be built here: 3 and 8 channels"),
        ("8x6x6 8x6x6 --code fire --json -", "it prints code alone: leave out the files"),
        (
            "8x6x6 8x6x6 --json a --csv a",
            "a is given for two kinds of output: give each its own file",
        ),
        ("8x6x6 8x6x6 --json no/a.json", "there is no folder no"),
        ("8x6x6 8x6x6 --html .", ". is a folder: give the name of a file"),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(place: Path, line: str, message: str) -> None:
    done = call(line)
    assert done.exit_code == 2
    assert message in " ".join(done.stderr.replace("│", " ").split())
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert list(place.iterdir()) == []


def test_the_break_even_width_with_biases() -> None:
    """Where the table itself says that both have as many parameters."""
    found = obo.compare("7x9x5", "3x5x5", kernel=4, width=6, bias=True, latency=False)
    assert found["bottleneck_before"].params == found.direct.params == 339
    assert (found.break_even.params, found.break_even.most_params) == (6, 5)


def test_whole_numbers_of_numpy() -> None:
    start, end = (np.int64(10), 6, 6), (4, np.int32(6), 6)
    found = obo.compare(start, end, kernel=3, width=np.int64(3), latency=False)
    expected = obo.compare("10x6x6", "4x6x6", kernel=3, width=3, latency=False)
    assert found.direct == expected.direct
    assert found["bottleneck_before"] == expected["bottleneck_before"]
