"""The coverage benchmark: its checks catch what they are for, its page says what became of each network."""

import importlib.util
import itertools
import json
import os
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

import onebyone as obo

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def coverage() -> ModuleType:
    """benchmarks/coverage.py; what it checks as attributes, coverage_page as `page_module`."""
    before = list(sys.path)
    sys.path.insert(0, str(BENCHMARKS))
    try:
        spec = importlib.util.spec_from_file_location("bench_coverage", BENCHMARKS / "coverage.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        module.page_module = sys.modules["coverage_page"]  # type: ignore[attr-defined]
        checks = sys.modules["coverage_checks"]
        module.check, module.digest = checks.check, checks.digest  # type: ignore[attr-defined]
    finally:
        sys.path[:] = before
    return module


@pytest.fixture
def result() -> tuple[obo.Loaded, obo.Slimmed, torch.Tensor]:
    """The demo network at 0.6 of its MACs, and the images."""
    loaded = obo.load("demo")
    images = obo.open_images("demo").take(40).inputs
    return loaded, obo.slim(loaded.model, images, macs=0.6, held_out=8, latency=False), images


def test_checks_pass_and_catch(coverage: ModuleType, result: tuple) -> None:
    loaded, slimmed, images = result
    before = slimmed.plan.macs_before
    coverage.check(loaded, slimmed, images, 0.6 * before)
    with pytest.raises(AssertionError, match="above the budget"):
        coverage.check(loaded, slimmed, images, 0.5 * before)

    wrong = replace(slimmed.plan, other_macs=slimmed.plan.other_macs + 1)
    with pytest.raises(AssertionError, match="the plan says"):
        coverage.check(loaded, replace(slimmed, plan=wrong), images, before)

    with torch.no_grad():
        next(p for n, p in slimmed.model.named_parameters() if n.endswith("bias")).fill_(torch.nan)
    with pytest.raises(AssertionError, match="NaN"):
        coverage.check(loaded, slimmed, images, 0.6 * before)


def test_check_reads_refused_layers_and_reasons(coverage: ModuleType, result: tuple) -> None:
    loaded, _, images = result
    statistics = obo.observe(loaded.model, images)
    plan = obo.plan(loaded.model, statistics, obo.Budget(macs=1.0))
    left = replace(
        plan, decisions=tuple(replace(d, form="refuse", reason="by hand") for d in plan.decisions)
    )
    slimmed = obo.slim(loaded.model, images, plan=left, held_out=8, latency=False)
    coverage.check(loaded, slimmed, images, plan.macs_before)

    silent = replace(left, decisions=tuple(replace(d, reason="") for d in left.decisions))
    with pytest.raises(AssertionError, match="does not say why"):
        coverage.check(loaded, replace(slimmed, plan=silent), images, plan.macs_before)

    with torch.no_grad():
        next(slimmed.model.parameters()).mul_(1.01)
    with pytest.raises(AssertionError, match="was changed"):
        coverage.check(loaded, slimmed, images, plan.macs_before)


def test_digest_sees_values_modes_and_hooks(coverage: ModuleType) -> None:
    conv, norm = torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)
    model = torch.nn.Sequential(conv, norm).eval()
    seen = {coverage.digest(model)}
    assert coverage.digest(model) in seen
    with torch.no_grad():
        norm.weight.add_(1)
    seen.add(coverage.digest(model))
    conv.train()
    seen.add(coverage.digest(model))
    conv.register_forward_hook(lambda *_: None)
    seen.add(coverage.digest(model))
    conv.weight.requires_grad_(False)
    seen.add(coverage.digest(model))
    assert len(seen) == 5


def test_page_says_what_became_of_each(coverage: ModuleType) -> None:
    row, network = coverage.page_module.Row, coverage.Network
    grouped = "it is grouped: no form for grouped convolutions yet"
    known = {"size": "3×64×64", "images": 32}
    rows = [
        row("timm:easy", "timm", "a", "met", {}, macs=2_000_000, asked=0.6, macs_kept=0.599,
            params_kept=0.4, changed=8, kept=1, reasons={"better spent": 1}, params_outcome="lowest",
            params_asked=0.7, onnx="", gap=2e-7, **known),
        row("timm:hard", "timm", "a", "lowest", {}, macs=10**9, asked=0.83, macs_kept=0.83,
            params_kept=0.9, changed=4, refused=7, reasons={grouped: 7},
            held={grouped: 0.52, "other": 0.001}, onnx="no model.onnx: a | b", **known),
        row("timm:broken", "timm", "b", "failed", {}, why="exit code 1: a | b"),
        row("timm:odd", "timm", "c", "refused", {}, why="its tensor is sparse"),
    ]  # fmt: skip
    every = [network(f"timm:{n}", "timm", f) for n, f in
             (("odd", "c"), ("broken", "b"), ("hard", "a"), ("easy", "a"), ("unseen", "d"))]  # fmt: skip
    text = coverage.page_module.page(rows, every, 0.6, 0.6)
    assert "**4 of 5 networks were run: 1 meet the budget of MACs, 1 cannot" in text
    assert "1 are refused with a reason, 1 fail.**" in text
    assert "| timm | 4 of 5 | 3 of 4 | 1 | 1 | 1 | 1 |" in text
    assert "0 of 1 networks that were tried meet it, 1 reach" in text
    assert "ONNX: 1 of 2 are exported." in text
    assert "- no model.onnx: a / b (1)" in text
    lines = {name: next(n for n in text.splitlines() if n.startswith(f"| {name} ")) for name in
             ("easy", "hard", "broken", "odd")}  # fmt: skip
    assert {found.count("|") for found in lines.values()} == {13}
    assert (
        "| met | 0.599 | 0.400 | lowest 0.7 | yes | 2e-07 | 8 / 1 / 0 | better spent (1) |"
        in (lines["easy"])
    )
    assert f"lowest 0.830: 52% of the MACs: {grouped} (7 layers) |" in lines["hard"]
    assert "failed: exit code 1: a / b" in lines["broken"]
    assert "refused: its tensor is sparse" in lines["odd"]
    assert f"| 7 | {grouped} |" in text


def test_the_smallest_of_each_family_comes_first(coverage: ModuleType) -> None:
    network = coverage.Network
    given = [network(n, "timm", f, p) for n, f, p in
             (("a3", "a", 3), ("a1", "a", 1), ("b9", "b", 9), ("a2", "a", 2), ("b4", "b", 4))]  # fmt: skip
    assert [n.name for n in coverage.families_first(given)] == ["a1", "b4", "a2", "a3", "b9"]


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ([torch.nn.Conv2d(3, 8, 3), torch.nn.Linear(4, 4)], True),
        ([torch.nn.Conv2d(3, 8, 3), torch.nn.Linear(64, 64)], False),
        ([torch.nn.Conv2d(3, 8, 3), torch.nn.MultiheadAttention(4, 1)], False),
    ],
)
def test_what_counts_as_convolutional(
    coverage: ModuleType, layers: list[torch.nn.Module], expected: bool
) -> None:
    networks = sys.modules["coverage_networks"]
    assert networks.convolutional(torch.nn.Sequential(*layers), "any") is expected


class Amplifying(torch.nn.Conv2d):
    """What its outputs are is a matter of their last digits."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return (1e7 * super().forward(input)).sin()


def test_rounding_must_not_decide_the_output(coverage: ModuleType) -> None:
    steady, example = sys.modules["coverage_networks"].steady, torch.zeros(1, 3, 8, 8)
    assert steady(torch.nn.Conv2d(3, 4, 3), example)
    assert not steady(Amplifying(3, 4, 3), example)


def test_rows_are_kept_in_a_file(coverage: ModuleType, tmp_path: Path) -> None:
    rows = coverage.Rows(tmp_path / "rows.json")
    row = coverage.page_module.Row("timm:a", "timm", "a", "met", {"macs": 0.6}, gap=1e-6)
    rows.add(row)
    assert coverage.Rows(tmp_path / "rows.json").rows == {"timm:a": row}


@pytest.mark.parametrize(
    ("ends", "why"),
    [
        (lambda *given: 1 / 0, "ZeroDivisionError: division by zero"),
        (lambda *given: os._exit(3), "exit code 3"),
        (lambda *given: time.sleep(60), "it took longer than 1 s"),
        (lambda *given: all(True for _ in itertools.count()), "it took more than 1 s of each core"),
    ],
)
def test_a_network_that_fails_has_a_row(
    coverage: ModuleType, monkeypatch: pytest.MonkeyPatch, ends: Callable[..., object], why: str
) -> None:
    """Its process is another: whatever becomes of it, the next network runs."""
    monkeypatch.setattr(coverage, "one", ends)
    if "each core" in why:
        monkeypatch.setattr(coverage, "BUSY", 1)
    if "longer" in why:
        monkeypatch.setattr(coverage, "LONGEST", 1)
    network = coverage.Network("timm:a", "timm", "a")
    row = coverage.run(network, Namespace(macs=0.6, params=0.5, threads=1))
    assert (row.outcome, row.why, row.settings) == ("failed", why, {"macs": 0.6, "params": 0.5})


@pytest.mark.slow
def test_a_network_through_the_script(tmp_path: Path) -> None:
    """mnasnet loads no weights without their format's version: it is saved and loaded again."""
    pytest.importorskip("torchvision")
    rows = tmp_path / "rows.json"
    there = json.loads((BENCHMARKS / "coverage.json").read_text(encoding="utf-8"))
    if there["timm"]["version"] != pytest.importorskip("timm").__version__:
        pytest.skip("another version of timm: listing its networks takes minutes")
    rows.write_text(json.dumps(there | {"rows": {}}), encoding="utf-8")
    command = [sys.executable, str(BENCHMARKS / "coverage.py"), "--only", "torchvision:mnasnet0_5"]
    command += ["--threads", "1", "--rows", str(rows), "-o", str(tmp_path / "page.md")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1/1 torchvision:mnasnet0_5: met" in done.stdout
    assert "**1 of " in (tmp_path / "page.md").read_text(encoding="utf-8")
    again = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (again.returncode, again.stdout) == (0, "")  # there is a row already
