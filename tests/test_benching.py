"""bench: every runtime times the same network, checked first, and says why others are not there."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from models import Viewing
from rich.console import Console
from torch import Tensor, nn

import onebyone as obo
from onebyone import benching
from onebyone.benching import PYTORCH, RUNTIMES, chosen
from onebyone.errors import ModelError
from onebyone.exporting.targets import TARGETS
from onebyone.report.bench import bench_table

pytestmark = pytest.mark.skipif(
    TARGETS["onnx"].missing is not None, reason="onnx, onnxscript or onnxruntime is missing"
)


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4)]
    return nn.Sequential(*layers)


X = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_runtimes_by_any_name() -> None:
    assert chosen(["onnxruntime", "Torch.Compile", "eager", "eager"]) == [
        "onnx",
        "compile",
        "eager",
    ]
    assert set(chosen(["all"])) >= {*PYTORCH, "onnx"}
    assert all(TARGETS[n].missing is None for n in chosen(["all"]) if n in TARGETS)
    with pytest.raises(ModelError, match="no runtime is given: give one or more of eager, "):
        obo.bench(nn.Identity(), torch.ones(1, 2), runtimes=[])
    with pytest.raises(ModelError, match=r"'tensorrt' is no runtime: give one or more of eager"):
        chosen(["tensorrt"])
    assert set(RUNTIMES) == {*PYTORCH, *TARGETS}


def test_all_are_timed_in_turn_and_checked() -> None:
    model = network().train()
    found = obo.bench(model, X, runtimes=["eager", "channels-last", "onnx"], batch=3, seconds=0.2)
    assert {r.name for r in found.runs} == {"eager", "channels-last", "onnx"}
    medians = [r.latency.median_ms for r in found.runs]
    assert medians == sorted(medians)
    assert {(r.latency.batch, r.latency.threads) for r in found.runs} == {(3, 1)}
    assert len({r.latency.runs for r in found.runs}) == 1
    onnx = next(r for r in found.runs if r.name == "onnx")
    assert onnx.check is not None
    assert onnx.check.failure is None
    assert onnx.size_bytes is not None
    assert onnx.size_bytes > 4 * sum(p.numel() for p in model.parameters())
    assert all(m.training for m in model.modules())


def test_the_error_is_explained_where_its_column_is_shown() -> None:
    found = obo.bench(network(), X, runtimes=["eager", "onnx"], seconds=0.05)
    for width in (50, 140):
        console = Console(width=width, file=io.StringIO())
        console.print(bench_table("net", found, None))
        said = console.file.getvalue()  # type: ignore[attr-defined]
        shown = re.search(r"^runtime.* error", said, re.MULTILINE) is not None
        assert shown == (width == 140)
        assert ("Error: the largest difference" in said) == shown
        assert "interleaved runs" in " ".join(said.split())


def test_what_cannot_run_is_refused_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    class Fickle(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if float(x.sum()) > 1e9 else x.mean((2, 3))

    found = obo.bench(Fickle(), X, runtimes=["eager", "onnx"], seconds=0.1)
    assert [r.name for r in found.runs] == ["eager"]
    assert "torch.export cannot export" in found.refused["onnx"]
    with pytest.raises(ModelError, match="no runtime can time the network: onnx: "):
        obo.bench(Fickle(), X, runtimes=["onnx"])
    monkeypatch.setattr(benching.Target, "missing", "litert_torch")
    with pytest.raises(ModelError, match=r'LiteRT needs .*pip install "onebyone\[litert\]"'):
        obo.bench(network(), X, runtimes=["litert"])


def test_a_memory_format_that_a_network_does_not_take_is_told() -> None:
    found = obo.bench(
        Viewing(), torch.zeros(1, 3, 8, 8), runtimes=("eager", "channels-last"), seconds=0.05
    )
    assert [r.name for r in found.runs] == ["eager"]
    assert "`flatten` or `reshape` would" in found.refused["channels-last"]


def test_a_file_that_computes_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Scaled(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            return 1.5 * self.inner(x)

    plain = benching.exported
    monkeypatch.setattr(benching, "exported", lambda m, x: plain(Scaled(m), x))
    found = obo.bench(network(), X, runtimes=["eager", "onnx"], seconds=0.1)
    assert "it does not compute the same: its outputs differ" in found.refused["onnx"]


def test_an_onnx_file_runs_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    obo.export(network(), X, path, latency=False)
    found = obo.bench(None, X, runtimes=["onnx", "eager"], file=path, seconds=0.1)
    assert [r.name for r in found.runs] == ["onnx"]
    assert found.runs[0].size_bytes == path.stat().st_size
    assert found.refused == {"eager": "PyTorch cannot read the file"}


def test_what_pytorch_makes_ready_is_given_back() -> None:
    before: Any = (torch.get_num_threads(), torch.is_inference_mode_enabled())
    obo.bench(network(), X, runtimes=["eager"], seconds=0.05)
    assert (torch.get_num_threads(), torch.is_inference_mode_enabled()) == before
