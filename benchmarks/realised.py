"""How much of the MACs saved the clock sees: plans by MACs and by latency, at the same predicted loss.

    python benchmarks/realised.py --networks demo,torchvision:resnet18 --runtimes onnx,openvino

For each network and runtime: the plan that keeps half (or a quarter) of the MACs; the fastest plan by
the times of layers whose predicted rise of the loss is no higher; both networks whole, beside the
original, on one thread. Realised = (t_before / t_after) / (MACs_before / MACs_after). Weights are drawn
(times do not depend on them, predicted losses do), but for the demo network and those of `trained.py`,
such as efficientnet-lite0, which need the packages that `trained.py` and `photos.py` name.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import operators
import photos
import torch
import trained
from torch import nn

operators.declare()

import onebyone as obo  # noqa: E402
from onebyone.errors import OneByOneError  # noqa: E402
from onebyone.pacing.caches import mebibytes_between  # noqa: E402
from onebyone.pacing.pace import LayerTimes, drawn, runtime_named, timed_plan  # noqa: E402
from onebyone.pacing.sites import sites_of  # noqa: E402
from onebyone.pacing.timetable import Timetable  # noqa: E402
from onebyone.pacing.whole import Ratio, Stopwatch  # noqa: E402
from onebyone.plain import plain  # noqa: E402
from onebyone.planning import Planner, Times  # noqa: E402
from onebyone.plans import Budget, Plan  # noqa: E402

NETWORKS = (
    "demo", "torchvision:resnet18", "torchvision:resnet50", "torchvision:vgg16",
    "torchvision:mobilenet_v2", "efficientnet-lite0",
)  # fmt: skip
RUNTIMES = ("onnx", "openvino", "executorch")
HALVINGS = 8  # of the interval in which the fastest plan is looked for


@dataclass(frozen=True)
class Row:
    """One plan of one network, measured in one runtime."""

    network: str
    runtime: str
    by: str
    macs_kept: float
    time_kept: float
    doubt: float
    realised: float
    error_nats: float
    before_ms: float
    after_ms: float


def main() -> None:
    given = arguments()
    rows: list[Row] = []
    for name in given.networks.split(","):
        model, images = network(name, given.images, given.root)
        planner = Planner(obo.observe(model, images))
        for runtime in given.runtimes.split(","):
            try:
                found = measured(name, runtime, model, planner, images[:1], given)
            except OneByOneError as error:
                print(f"{name} in {runtime}: {error}", file=sys.stderr)
                continue
            rows += found
            for row in found:
                print(line(row), flush=True)
    if given.json:
        Path(given.json).write_text(json.dumps([asdict(r) for r in rows], indent=2) + "\n", "utf-8")
    slower = [r for r in rows if r.by == "latency" and r.time_kept > 1]
    print(
        f"\n{len(rows)} plans measured, {len(slower)} of those by latency slower than the original"
    )


def arguments() -> Any:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--runtimes", default=",".join(RUNTIMES))
    parser.add_argument("--macs", type=float, nargs="+", default=[0.5, 0.25])
    parser.add_argument("--images", type=int, default=32, help="to observe with")
    parser.add_argument("--root", type=Path, default=Path("/"), help="where photos' packages are")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", help="write the rows to this file")
    found = parser.parse_args()
    print("| network | runtime | plan by | MACs kept | time kept | realised | predicted loss |")
    print("|---|---|---|---|---|---|---|")
    return found


def network(name: str, number: int, root: Path) -> tuple[nn.Module, torch.Tensor]:
    """The network, and images for it: its own for those that are trained, drawn ones else."""
    if name.startswith("demo"):
        return obo.load(name).model, obo.open_images("demo", limit=number).inputs
    for known in trained.NETWORKS:
        if known.name == name:
            chosen = photos.split(photos.photos(root))[0]
            crops = photos.crops(chosen, -(-number // len(chosen)), known.size, 0)[:number]
            inputs = known.inputs(crops)
            return plain(known.load(), inputs[:1]).model, inputs
    model, example = obo.load(name, weights="random")
    generator = torch.Generator().manual_seed(0)
    return model, torch.randn(number, *example.shape[1:], generator=generator)


def measured(
    name: str, runtime: str, model: nn.Module, planner: Planner, example: torch.Tensor, given: Any
) -> list[Row]:  # fmt: skip
    """The rows of one network in one runtime."""
    runtime = runtime_named(runtime)
    table = Timetable(runtime, given.threads, mebibytes_between(model))
    sites = sites_of(model, example)
    table.prepare([s for every in sites.values() for s in every])
    watch = Stopwatch(model, example, runtime, given.threads)
    times = LayerTimes(table, sites, watch.original_ms())
    rows: list[Row] = []
    for macs in given.macs:
        try:
            plan = planner.plan(Budget(macs=macs))
        except OneByOneError as error:
            print(f"{name} at {macs} of the MACs: {error}", file=sys.stderr)
            continue
        rows.append(row(name, runtime, "MACs", plan, watch.ratio(drawn(model, plan))))
        other = fastest(planner, times, plan.error)
        rows.append(row(name, runtime, "latency", other, watch.ratio(drawn(model, other))))
    return rows


def fastest(planner: Planner, times: LayerTimes, error: float) -> Plan:
    """The fastest plan, by the times of layers, whose predicted loss is at most `error`."""

    def planned(goal: Budget, asked: Times) -> Plan:
        return planner.plan(goal, times=asked)

    low, high = 0.0, 1.0
    best = timed_plan(Budget(latency=1.0), planned, times)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        try:
            plan = timed_plan(Budget(latency=middle), planned, times)
        except OneByOneError:
            low = middle
            continue
        if plan.error <= error:
            best, high = plan, middle
        else:
            low = middle
    return best


def row(name: str, runtime: str, by: str, plan: Plan, ratio: Ratio) -> Row:
    kept = plan.macs_after / plan.macs_before
    return Row(
        name, runtime, by, kept, ratio.median, ratio.doubt * ratio.median, kept / ratio.median,
        plan.error, ratio.before_ms, ratio.after_ms,
    )  # fmt: skip


def line(found: Row) -> str:
    return (
        f"| {found.network} | {found.runtime} | {found.by} | {found.macs_kept:.3f} | "
        f"{found.time_kept:.3f} ± {found.doubt:.3f} | {found.realised:.2f} | {found.error_nats:.3g} |"
    )


if __name__ == "__main__":
    main()
