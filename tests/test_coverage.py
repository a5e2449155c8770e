"""The coverage benchmark: its checks catch what they are for, its page says what became of each network."""

import importlib.util
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

import onebyone as obo

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def coverage() -> ModuleType:
    """benchmarks/coverage.py, and coverage_page as its attribute `page_module`."""
    before = list(sys.path)
    sys.path.insert(0, str(BENCHMARKS))
    try:
        spec = importlib.util.spec_from_file_location("bench_coverage", BENCHMARKS / "coverage.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        module.page_module = sys.modules["coverage_page"]  # type: ignore[attr-defined]
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
    row = coverage.page_module.Row
    grouped = "it is grouped: no form for grouped convolutions yet"
    rows = [
        row("easy", "met", {}, 64, 32, 2_000_000, 0.6, 0.599, 0.4, 8, 1, 0, {"better spent": 1}),
        row("hard", "lowest", {}, 64, 32, 10**9, 0.83, 0.83, 0.9, 4, 0, 7, {grouped: 7},
            {grouped: 0.52, "other": 0.001}),
        row("broken", "failed", {}, why="exit code 1: a | b"),
    ]  # fmt: skip
    text = coverage.page_module.page(rows, 0.6, False, 1)
    assert "Of 3 networks 1 keep at most 0.6 of their MACs, 1 cannot" in text
    assert "1 fail.**" in text
    lines = {name: next(n for n in text.splitlines() if n.startswith(f"| {name} ")) for name in
             ("easy", "hard", "broken")}  # fmt: skip
    columns = {name: found.count("|") for name, found in lines.items()}
    assert set(columns.values()) == {10}
    assert "| met | 0.599 | 0.400 | 8 / 1 / 0 | better spent (1) |" in lines["easy"]
    assert f"lowest 0.830: 52% of the MACs: {grouped} (7 layers) |" in lines["hard"]
    assert "failed: exit code 1: a / b" in lines["broken"]
    assert f"| 7 | {grouped} |" in text


@pytest.mark.slow
def test_a_network_through_the_script(tmp_path: Path) -> None:
    """mnasnet loads no weights without their format's version: saved and loaded again too."""
    pytest.importorskip("torchvision")
    files = ["--cache", str(tmp_path / "cache"), "-o", str(tmp_path / "page.md")]
    command = [sys.executable, str(BENCHMARKS / "coverage.py"), "--only", "mnasnet0_5", "--save"]
    command += ["--threads", "1", *files]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1/1 mnasnet0_5: met" in done.stdout
    assert "Of 1 networks 1 keep" in (tmp_path / "page.md").read_text(encoding="utf-8")
    again = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert again.returncode == 0
    assert again.stdout == done.stdout  # from the cache
