"""What each target takes: 20 CNNs of torchvision, original and slimmed, exported and checked.

    python benchmarks/exports.py --targets onnx,openvino --cache exports.json -o docs/exports.md

Weights are drawn; the slimmed networks have the layers of a plan for half of the MACs. Each file is run
in its runtime on 16 drawn images and compared with PyTorch, within the limits for float32. Results go to
the cache one by one, so that another environment, where another target is installed, adds its column.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import operators
import torch
from torch import nn

operators.declare()

import onebyone as obo  # noqa: E402
from onebyone.errors import OneByOneError  # noqa: E402
from onebyone.exporting.targets import TARGETS  # noqa: E402
from onebyone.pacing.pace import drawn  # noqa: E402
from onebyone.plans import Budget  # noqa: E402

NETWORKS = (
    "alexnet", "squeezenet1_1", "resnet18", "shufflenet_v2_x1_0", "mobilenet_v2", "mnasnet1_0",
    "mobilenet_v3_large", "regnet_y_400mf", "regnet_x_800mf", "googlenet", "efficientnet_b0",
    "densenet121", "resnet50", "resnext50_32x4d", "inception_v3", "convnext_tiny", "vgg11_bn",
    "wide_resnet50_2", "efficientnet_v2_s", "vgg16",
)  # fmt: skip
KINDS = ("original", "slimmed")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument(
        "--targets", default=",".join(n for n, t in TARGETS.items() if not t.missing)
    )
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--cache", type=Path, default=Path("exports.json"))
    parser.add_argument("-o", "--out", type=Path, help="write the table to this Markdown file")
    given = parser.parse_args()
    rows: dict[str, Any] = (
        json.loads(given.cache.read_text("utf-8")) if given.cache.exists() else {}
    )
    targets = [t for t in given.targets.split(",") if t]
    for name in given.networks.split(","):
        for kind in given.kinds.split(","):
            wanted = [t for t in targets if f"{name}/{kind}/{t}" not in rows]
            if not wanted:
                continue
            model, example = network(name, kind)
            for target in wanted:
                rows[f"{name}/{kind}/{target}"] = found = attempt(model, example, target)
                given.cache.write_text(json.dumps(rows, indent=1) + "\n", "utf-8")
                print(name, kind, target, found, flush=True)
    if given.out:
        given.out.write_text(page(rows), "utf-8")


def network(name: str, kind: str) -> tuple[nn.Module, torch.Tensor]:
    model, example = obo.load(f"torchvision:{name}", weights="random")
    if kind == "original":
        return model, example
    images = torch.randn(4, *example.shape[1:], generator=torch.Generator().manual_seed(0))
    statistics = obo.observe(model, images)
    for macs in (0.5, 0.6, 0.7, 0.8, 0.9):  # networks of 1×1 and depthwise layers leave less
        try:
            return drawn(model, obo.plan(model, statistics, Budget(macs=macs))), example
        except OneByOneError as error:
            last = error
    raise last


def attempt(model: nn.Module, example: torch.Tensor, target: str) -> dict[str, Any]:
    """The error and the size, or why there is no file."""
    began = time.perf_counter()
    row = TARGETS[target]
    with tempfile.TemporaryDirectory() as folder:
        try:
            made = obo.export(model, example, Path(folder, row.file_name("float32")), latency=False)
        except OneByOneError as error:
            return {"why": str(error), "runtime": row.version}
    return {
        "error": made.check.error,
        "size_bytes": made.size_bytes,
        "any_batch": made.any_batch,
        "runtime": row.version,
        "seconds": round(time.perf_counter() - began, 1),
    }


def page(rows: dict[str, Any]) -> str:
    """The table: the largest error of original and slimmed, or what failed."""
    targets = [t for t in TARGETS if any(key.endswith(f"/{t}") for key in rows)]
    versions = [next(r["runtime"] for k, r in rows.items() if k.endswith(f"/{t}")) for t in targets]
    lines = [
        "# What each target takes",
        "",
        "Made by `benchmarks/exports.py`: networks of torchvision with drawn weights, as they are and "
        "slimmed to half of their MACs (or as near as they come), exported in float32 and run on 16 drawn "
        "images. A number is the largest difference from PyTorch's output as a fraction of the largest "
        "output (the limit is 0.001), of the original / of the slimmed network. – was not run.",
        "",
        "| network | " + " | ".join(versions) + " |",
        "|---|" + "---|" * len(targets),
    ]
    reasons: dict[str, None] = {}
    for name in (n for n in NETWORKS if any(key.startswith(f"{n}/") for key in rows)):
        cells = []
        for target in targets:
            pair = []
            for kind in KINDS:
                row = rows.get(f"{name}/{kind}/{target}")
                if row is not None and "why" in row:
                    reasons[f"{name}, {kind}, {TARGETS[target].title}: {row['why']}"] = None
                pair.append(
                    "–" if row is None else "fails" if "why" in row else f"{row['error']:.0e}"
                )
            cells.append(" / ".join(pair))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    if reasons:
        lines += ["", "What failed:", "", *(f"- {reason}" for reason in reasons)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
