"""measure: its parts agree with one another, and nothing is left behind."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from models import TRAPS
from rich.console import Console
from test_tree import check_untouched
from torch import Tensor, nn
from typer.testing import CliRunner

import onebyone as obo
from onebyone.cli.app import app
from onebyone.cli.reading import read_model
from onebyone.errors import ModelError, OneByOneError
from onebyone.measurement import measuring, roofline
from onebyone.measurement.measuring import Measurement, measure
from onebyone.report.measurement import (
    counted_sentence,
    measurement_table,
    operators_table,
    peaks_table,
    title,
)
from onebyone.report.measurement_files import FIELDS, TIMM, measurement_csv, measurement_json
from onebyone.report.measurement_page import measurement_html
from onebyone.report.measurement_rows import View, rows_of, total_of

MACHINE = roofline.Machine(50e9, 10e9, 1, "float32", "cpu", "made up")


@pytest.fixture(autouse=True)
def made_up_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "measure_machine", lambda **_: MACHINE)


class Nested(nn.Module):
    """Blocks in blocks, a layer that runs twice and one that never does."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.body = nn.Sequential(
            nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.ReLU()), nn.Conv2d(16, 8, 1)
        )
        self.spare = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(self.body(self.stem(x)))
        return self.head(y.mean((2, 3)))


def nested() -> tuple[nn.Module, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Nested().eval(), torch.randn(1, 3, 10, 10)


def timed(**options: object) -> Measurement:
    model, example = nested()
    return measure(model, example, latency=True, seconds=0.05, **options)  # type: ignore[arg-type]


def test_the_parts_agree() -> None:
    model, example = nested()
    found = measure(model, example)
    assert found.macs == 100 * (3 * 8 * 9 + 2 * (8 * 16 * 9 + 16 * 8)) + 8 * 5
    assert found.params == sum(p.numel() for p in model.parameters())
    assert found.macs == sum(layer.macs for layer in found.layers.values())
    assert found.activation_bytes == sum(x.activation_bytes for x in found.layers.values())
    assert found.layers["body.1"].calls == 2
    assert found.unused == ("spare",)
    assert found.memory is not None
    assert found.memory.weight_bytes == found.weight_bytes == 4 * found.params
    assert (found.latency, found.machine, found.layer_latency) == ((), None, None)
    assert found.batch == 1


def test_a_batch_is_for_memory_and_time_alone() -> None:
    one, four = timed(), timed(batch=4)
    assert (one.macs, one.batch, four.macs, four.batch) == (one.macs, 1, one.macs, 4)
    assert one.memory is not None
    assert four.memory is not None
    assert four.memory.inference.of("activation") == 4 * one.memory.inference.of("activation")
    assert four.memory.inference.of("weight") == one.memory.inference.of("weight")
    assert four.latency[0].batch == 4
    first, fourth = one.layers["stem"].placement, four.layers["stem"].placement
    assert first is not None
    assert fourth is not None
    # Weights and biases, 896 bytes, are read once for any number of images.
    assert (first.bound, first.limit_ms) == ("memory", pytest.approx((4 * 1100 + 896) / 1e7))
    assert (fourth.bound, fourth.limit_ms) == ("memory", pytest.approx((4 * 4400 + 896) / 1e7))


def test_half_precision_halves_the_memory() -> None:
    model, example = nested()
    whole, half = (measure(model, example, dtype=d).memory for d in (None, torch.bfloat16))
    assert whole is not None
    assert half is not None
    assert half.inference.bytes * 2 == whole.inference.bytes


def test_times_belong_to_layers() -> None:
    found = timed(training=True)
    assert [t.mode for t in found.latency] == ["inference", "training step"]
    ran = [layer for layer in found.layers.values() if layer.latency is not None]
    assert {"stem", "body.0.0", "body.0.1", "body.1", "head"} == {layer.name for layer in ran}
    assert found.layers["spare"].latency is None
    assert found.training_latency is not None
    assert found.latency[1] == found.training_latency.whole
    assert all(layer.training is not None for layer in ran)
    assert found.layers["spare"].training is None
    assert found.placement is not None
    assert found.placement.milliseconds == found.latency[0].median_ms
    assert found.placement.fraction == found.placement.limit_ms / found.placement.milliseconds


@pytest.mark.parametrize("name", ["plain", "partly frozen", "data-dependent", "cannot be copied"])
@pytest.mark.parametrize("partial", [False, True])
def test_the_model_comes_back_as_it_was(name: str, partial: bool) -> None:
    trap = TRAPS[name]
    model = trap.model().train()
    check_untouched(
        model, lambda m: measure(m, trap.images(1), memory=name[0] != "c", partial=partial)
    )


def test_several_inputs() -> None:
    trap = TRAPS["two inputs"]
    found = measure(trap.model(), (trap.images(1), trap.images(1)))
    assert len(found.input_shapes) == 2
    assert found.macs > 0


class Fails(nn.Sequential):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(super().forward(input))


def test_a_failure_half_way_is_partial_or_told() -> None:
    model = Fails(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1))
    example = torch.randn(1, 3, 5, 5)
    with pytest.raises(ModelError, match="to have 3 channels, but got 4"):
        measure(model, example)
    found = measure(model, example, partial=True)
    assert found.failure is not None
    assert "layer '0'" in found.failure
    assert found.macs == 25 * (24 + 32)
    assert found.memory is None
    with pytest.raises(ModelError, match="to have 3 channels, but got 9"):
        measure(model, torch.randn(1, 9, 5, 5), partial=True)


def test_a_failure_of_the_networks_own_code_is_not_its_last_layers() -> None:
    class Views(nn.Sequential):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input).view(7, -1)

    example = torch.randn(1, 3, 5, 5)
    for model, where in (
        (Views(nn.Conv2d(3, 8, 1)), "the network's own forward"),
        (nn.Sequential(nn.Conv2d(3, 8, 1), Views(nn.ReLU()), nn.ReLU()), "layer '1'"),
    ):
        assert f"(in {where})" in (measure(model, example, partial=True).failure or "")


def test_what_is_not_counted_is_said() -> None:
    model, example = nested()
    said = counted_sentence(measure(model, example))
    assert "not counted: relu (3,200 elements), mean (8 elements); " in said
    assert "never ran: spare." in said


def test_an_operator_of_others_is_named() -> None:
    with torch.library._scoped_library("obotest", "FRAGMENT") as library:
        library.define("twice(Tensor x) -> Tensor")
        library.impl("twice", lambda x: x * 2, "CPU")
        library.impl("twice", torch.empty_like, "Meta")

        class Custom(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return torch.ops.obotest.twice(x)

        found = measure(Custom(), torch.randn(2, 3), memory=False)
    assert found.unknown == ("obotest.twice",)
    assert "may hide products: obotest.twice" in counted_sentence(found)


# --- what is shown


def test_rows_sum_to_the_whole_however_they_are_shown() -> None:
    found = timed()
    total = total_of(found)
    for view in (
        View(), View(every=True), View(sort="macs", top=2), View(sort="time", top=1), View(depth=1),
        View(depth=2), View(sort="params"),
    ):  # fmt: skip
        rows = rows_of(found, view)
        assert sum(r.macs for r in rows) == total.macs
        assert sum(r.params for r in rows) == total.params
        assert sum(r.activation_bytes for r in rows) == total.activation_bytes
    top = [r for r in rows_of(found, View(tree=True)) if r.level == 0]
    assert sum(r.macs for r in top) == total.macs
    assert [r.label for r in top] == ["stem", "body", "(its own)", "head", "spare"]


def test_rows_are_sorted_and_cut() -> None:
    model, example = nested()
    found = measure(model, example)
    rows = rows_of(found, View(sort="macs", top=2))
    assert [r.label for r in rows[:2]] == ["body.0.0 ×2", "body.1 ×2"]
    assert rows[-1].label.endswith("others")
    assert [r.label for r in rows_of(found, View(depth=1))][:2] == ["stem", "body"]
    indented = [(r.level, r.label) for r in rows_of(found, View(tree=True))]
    assert (1, "0") in indented
    assert (2, "0 ×2") in indented
    assert not any(r.level > 0 for r in rows_of(found, View(tree=True, depth=1)))


@pytest.mark.parametrize("options", [{"sort": "size"}, {"top": 0}, {"depth": 0}])
def test_a_view_of_nothing_is_refused(options: dict) -> None:
    with pytest.raises(OneByOneError, match="give"):
        View(**options)


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_table_fits(width: int) -> None:
    found = timed(training=True)
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(measurement_table("nested", found, View(every=True)))
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= width
    assert any(line.startswith("whole network") for line in lines)
    assert any(line.startswith("body.0.0 ×2") for line in lines)


def test_operators_and_peaks_are_listed() -> None:
    model, example = nested()
    found = measure(model, example)
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(operators_table(found))
    console.print(peaks_table(found))
    text = console.export_text()
    relu = next(line for line in text.splitlines() if line.startswith("aten.relu")).split()
    assert relu[:4] == ["aten.relu", "2", "–", "3,200"]
    assert "Alive at the peak of inference" in text
    assert "Alive at the peak of a training step" in text
    assert "1×16×10×10" in text


def test_the_title_has_the_inputs() -> None:
    model, example = nested()
    assert title("net", measure(model, example)) == "net, 3×10×10"
    assert title("net", measure(model, example.expand(5, -1, -1, -1))) == "net, 5 images of 3×10×10"


def test_json_and_csv() -> None:
    found = timed(training=True)
    values = json.loads(
        json.dumps(measurement_json("net", found, operations=True), allow_nan=False)
    )
    assert values["schema"] == "onebyone.measure/1"
    assert values["macs"] == sum(layer["macs"] for layer in values["layers"])
    assert sum(o["macs"] or 0 for o in values["operations"]) == values["macs"]
    assert "operations" not in measurement_json("net", found)
    whole, *layers = csv.DictReader(io.StringIO(measurement_csv("net", found)))
    assert set(TIMM) < set(FIELDS) == set(whole)
    assert float(whole["infer_gmacs"]) == pytest.approx(found.macs / 1e9, abs=1e-4)
    assert float(whole["infer_macts"]) == pytest.approx((800 + 2 * 2400 + 5) / 1e6, abs=1e-4)
    assert float(whole["infer_step_time"]) == pytest.approx(found.latency[0].median_ms, abs=1e-4)
    assert float(whole["train_step_time"]) == pytest.approx(found.latency[1].median_ms, abs=1e-4)
    assert (whole["infer_img_size"], whole["infer_batch_size"]) == ("10", "1")
    assert [layer["layer"] for layer in layers] == list(found.layers)
    assert sum(int(layer["macs"]) for layer in layers) == int(whole["macs"]) == found.macs


def test_the_page_is_whole_and_escaped() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1))
    model.add_module("<b>&", nn.Conv2d(4, 5, 1))
    page = measurement_html(
        "<i>net", measure(model, torch.randn(1, 3, 5, 5), latency=True, seconds=0.02)
    )
    assert "&lt;b&gt;&amp;" in page
    assert "<b>&" not in page
    assert "<i>net" not in page
    assert "http" not in page.replace("http-equiv", "")
    assert "made up" in page


# --- the command


def run(*words: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, ["measure", *words])
    return done.exit_code, done.stdout, done.stderr


def test_the_command(tmp_path: Path) -> None:
    files = [tmp_path / n for n in ("a.json", "a.csv", "a.html")]
    code, out, _ = run(
        "demo", "--json", str(files[0]), "--csv", str(files[1]), "--html", str(files[2])
    )
    assert code == 0
    assert "29.1 M" in out
    assert json.loads(files[0].read_text(encoding="utf-8"))["macs"] == 29_128_448
    assert files[1].read_text(encoding="utf-8").startswith("model,")
    assert files[2].read_text(encoding="utf-8").startswith("<!doctype html>")


def test_json_on_stdout_is_alone() -> None:
    code, out, _ = run("demo:resnet", "--json", "-")
    assert code == 0
    assert json.loads(out)["params"] == sum(
        p.numel() for p in obo.load("demo:resnet").model.parameters()
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["demo", "--input", "3x28x28"], "to have 1 channels, but got 3"),
        (["demo", "--input", "1xa"], "is no size"),
        (["demo", "--dtype", "int8"], "is none of"),
        (["demo", "--sort", "size"], "is no order of layers"),
        (["demo", "--csv", "x", "--json", "x"], "two kinds of output"),
        (["demo", "--csv", "/nowhere/x.csv"], "cannot be written"),
        (["demo", "--training"], "it needs --latency"),
        (["nothing"], "names no model"),
        (["demo", "--top", "0"], "greater than or equal to 1"),
    ],
)  # fmt: skip
def test_bad_input_is_one_message(words: list[str], said: str) -> None:
    code, out, error = run(*words)
    assert code == 2
    assert said in " ".join(error.replace("│", " ").split())
    assert out == ""


def test_several_inputs_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "two_inputs_net.py").write_text(
        "import torch\nfrom torch import nn\n"
        "class Two(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.a = nn.Linear(4, 6)\n"
        "    def forward(self, x, y):\n        return self.a(x) + y\n"
        "def bare():\n    return Two()\n"
        "def full():\n    return Two(), (torch.zeros(1, 4), torch.zeros(1, 6))\n"
        "def odd():\n    return Two(), 3\n",
        encoding="utf-8",
    )
    monkeypatch.chdir(tmp_path)
    for words in (["two_inputs_net:bare", "--input", "4", "--input", "6"], ["two_inputs_net:full"]):
        code, out, _ = run(*words, "--json", "-")
        assert (code, json.loads(out)["macs"]) == (0, 24)
    assert run("two_inputs_net:bare", "--input", "4")[0] == 2
    assert "not an example tensor" in run("two_inputs_net:odd")[2]
    with pytest.raises(ModelError, match="2 inputs"):
        read_model("two_inputs_net:full", None, None, False)


def test_public_names() -> None:
    assert obo.measure is measure
    assert obo.Measurement is Measurement


def test_one_whole_where_compiled_is_timed_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda model, **_: model)
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    found = measure(model, torch.ones(2, 4), latency=True, training=True, compiled=True, seconds=0)
    assert [t.runtime for t in found.latency] == ["PyTorch eager", "torch.compile"] * 2
    for inside, eager in zip(
        (found.layer_latency, found.training_latency), found.latency[::2], strict=True
    ):
        assert inside is not None
        assert inside.whole is eager
        assert inside.rest_ms == eager.median_ms - inside.layers_ms
    assert found.placement is not None
    assert total_of(found).milliseconds == found.placement.milliseconds


def test_why_there_is_no_training_step_is_said_once() -> None:
    model = nn.Sequential(nn.Linear(4, 4)).requires_grad_(False)
    found = measure(model, torch.ones(2, 4), latency=True, training=True, seconds=0)
    assert len([note for note in found.notes if note.startswith("no training step")]) == 1


def test_a_type_by_its_name_is_told() -> None:
    dtype: Any = "float16"
    with pytest.raises(ModelError, match=r"^dtype='float16' is no type: give one of torch's"):
        measure(nn.Linear(4, 4), torch.ones(2, 4), dtype=dtype)


def test_complex_outputs_are_trained() -> None:
    found = measure(nn.Linear(3, 5, dtype=torch.complex64), torch.ones(2, 3, dtype=torch.complex64))
    assert found.notes == ()
    assert found.memory is not None
    assert found.memory.training is not None
    assert found.memory.training.of("gradient") >= (3 * 5 + 5) * 8
