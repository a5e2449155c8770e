"""Networks of torchvision and timm through `slim`: what is met, what is not, and why.

    python benchmarks/coverage.py -o docs/coverage.md                # goes on from what was run
    python benchmarks/coverage.py --only torchvision:resnet18 --again
    python benchmarks/coverage.py --groups timm --minutes 60 -o docs/coverage.md
    python benchmarks/coverage.py --minutes 0 -o docs/coverage.md    # the page alone

Each network runs in a process of its own, with random weights, on random images of the smallest size
that it takes, and what comes out is checked (`coverage_checks`). Where the budget cannot be met, the
lowest one that `slim` names is tried instead, and the row says what holds the rest of the MACs. Rows
are kept in a file; networks that have one are not run again unless they failed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from coverage_checks import check, check_equal, check_plan, digest
from coverage_networks import (
    DETECTION,
    GROUPS,
    TIMM,
    Network,
    families_first,
    smallest,
    timm_networks,
    torchvision_networks,
)  # fmt: skip
from coverage_page import FAILED, LOWEST, MET, REFUSED, Row, page
from operators import declare
from torch import Tensor

import onebyone as obo
from onebyone.errors import BudgetError, OneByOneError
from onebyone.files import ONNX, PLAN, write_text
from onebyone.forms import FORMS
from onebyone.plans import Decision, Plan
from onebyone.running import first_output
from onebyone.statistics import Statistics

ROWS = Path(__file__).with_name("coverage.json")
MOST_IMAGES, LEAST_IMAGES = 16, 4  # a quarter of them is held out
WORK = 2e10  # MACs of one pass over the images, where fewer than the most then do
LONGEST = 1800  # seconds for one network
FULL_RANK = 1e-3  # of the largest output: what rounding may change


def cover(network: Network, macs: float, params: float) -> Row:
    """Slim one network and check the result; AssertionError or the error of `slim` where it fails."""
    began = time.perf_counter()
    loaded, by_data = smallest(network), network.group == DETECTION
    model, before, shape = loaded.model, digest(loaded.model), loaded.example.shape[1:]
    whole = obo.measure(model, loaded.example).macs
    count = int(max(LEAST_IMAGES, min(MOST_IMAGES, WORK // max(whole, 1))))
    images = torch.randn(count, *shape, generator=torch.Generator().manual_seed(0))
    slimmed, asked, outcome = lowest(lambda budget: slim(loaded, images, budget), "macs", macs)
    check(loaded, slimmed, images, asked * whole, by_data=by_data)
    onnx = saved(loaded, slimmed, images)
    plan, used = slimmed.plan, images[len(images) // 4 :]
    statistics = obo.observe(model, used)
    by_params = lowest(lambda budget: fitted(loaded, statistics, used, budget), "params", params)
    gap = full_rank(loaded, statistics, used)
    assert digest(model) == before, "the original was changed"
    forms = Counter(d.form if d.form in ("keep", "refuse") else "changed" for d in plan.decisions)
    return Row(
        network.name, network.group, network.family, outcome, {"macs": macs, "params": params},
        "×".join(map(str, shape)), count, whole, asked, plan.macs_after / whole,
        plan.params_after / plan.params_before, forms["changed"], forms["keep"], forms["refuse"],
        dict(Counter(general(d) for d in plan.decisions if d.reason).most_common()), held(plan),
        by_params[2], by_params[1], onnx, gap, seconds=time.perf_counter() - began,
        day=date.today().isoformat(), versions=versions(),
    )  # fmt: skip


def lowest(attempt: Callable[[float], Any], name: str, budget: float) -> tuple[Any, float, str]:
    """What comes out at the budget, or at the lowest one that is named; the budget, and which it was."""
    try:
        return attempt(budget), budget, MET
    except BudgetError as error:
        message = str(error)
    named = re.search(rf"lowest .* {name}=(\d\.\d+)", message)
    assert named is not None, f"the message names no lowest budget: {message}"
    return attempt(float(named[1])), float(named[1]), LOWEST


def slim(loaded: obo.Loaded, images: Tensor, macs: float) -> obo.Slimmed:
    """The whole of it, at a budget of MACs."""
    return obo.slim(
        loaded.model, images, macs=macs, held_out=len(images) // 4, latency=False,
        source=loaded.source,
    )  # fmt: skip


def fitted(loaded: obo.Loaded, statistics: Statistics, images: Tensor, params: float) -> Plan:
    """The steps of slim, at a budget of parameters, and their result checked."""
    plan = obo.plan(loaded.model, statistics, obo.Budget(params=params))
    lighter = obo.rewrite(loaded.model, plan, images, statistics=statistics)
    assert plan.params_after <= params * plan.params_before, "parameters are above the budget"
    check_plan(loaded.model, lighter, plan, images)
    return plan


def saved(loaded: obo.Loaded, slimmed: obo.Slimmed, images: Tensor) -> str:
    """Why there is no ONNX file, empty where there is one; the folder gives bit-equal outputs."""
    with tempfile.TemporaryDirectory() as around, torch.no_grad():
        folder = slimmed.save(Path(around, "out"))
        again = obo.load(folder, architecture=loaded.model).model
        message = "outputs differ from those of the network that was saved"
        check_equal(again(images), slimmed.model(images), message)
        if (folder / ONNX).is_file():
            return ""
        notes = json.loads((folder / PLAN).read_text(encoding="utf-8"))["notes"]
    return next((n for n in notes if n.startswith("no ")), "no file, and no note on it")


def full_rank(loaded: obo.Loaded, statistics: Statistics, images: Tensor) -> float:
    """How far the network in forms of full rank is from the original, of its largest output."""
    plan = obo.plan(loaded.model, statistics, obo.Budget(macs=1.0), narrow=False)
    decisions = []
    for decision in plan.decisions:
        conv = decision.conv
        if conv is not None and not decision.refused and conv.groups == 1:
            form = "pointwise" if conv.pointwise else "tucker2"
            sides = {"in": conv.c_in, "out": conv.c_out}
            ranks = tuple(sides[side] for side in FORMS[form].ranks)
            decision = replace(decision, form=form, ranks=ranks, reason="")
        decisions.append(decision)
    whole = replace(plan, decisions=tuple(decisions))
    lighter = obo.rewrite(loaded.model, whole, images, statistics=statistics)
    with torch.no_grad():
        one, other = (first_output(m(images)) for m in (loaded.model, lighter))
    if not one.numel():
        return 0.0 if not other.numel() else 1.0
    assert one.shape == other.shape, "at full rank the output has another shape"
    gap = float((one - other).abs().max() / one.abs().max().clamp_min(1e-30))
    assert gap <= FULL_RANK, f"at full rank outputs differ by {gap:.1e} of the largest"
    return gap


def general(decision: Decision) -> str:
    """Why a layer stays as it is, without what is particular to it."""
    reason = re.sub(r" \(\d+ groups\)", "", decision.reason)
    return re.sub(r"(tied to that of) .*", r"\1 another layer", reason)


def held(plan: Plan) -> dict[str, float]:
    """The share of the original's MACs that stays whatever the budget, by reason; greatest first."""
    shares = Counter[str]()
    for decision in plan.decisions:
        if decision.refused or decision.reason.startswith("no form"):
            shares[general(decision)] += decision.macs_before
    shares["products in no layer's own forward, such as attention's"] += plan.other_macs
    return {r: n / max(plan.macs_before, 1) for r, n in shares.most_common() if n}


def versions() -> dict[str, str]:
    """Of what the networks come from."""
    return {name: version(name) for name in ("torch", "torchvision", "timm")}


def run(network: Network, args: argparse.Namespace) -> Row:
    """One network in a process of its own; never raises."""
    command = [sys.executable, __file__, "--one", json.dumps(asdict(network))]
    for name in ("macs", "params", "threads"):
        command += [f"--{name}", str(getattr(args, name))]
    settings = {"macs": args.macs, "params": args.params}
    blank = Row(
        network.name, network.group, network.family, FAILED, settings, day=date.today().isoformat()
    )
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST)
    except subprocess.TimeoutExpired:
        return replace(blank, why=f"it took longer than {LONGEST} s")
    if not done.returncode:
        return Row(**json.loads(done.stdout.splitlines()[-1]))
    last = (done.stderr.strip().splitlines() or ["no message"])[-1]
    return replace(blank, why=f"exit code {done.returncode}: {last}")


def one(text: str, macs: float, params: float) -> Row:
    """The row of one network; what the product refuses with a message of its own is no failure."""
    network = Network(**json.loads(text))
    try:
        return cover(network, macs, params)
    except OneByOneError as error:
        if type(error) is BudgetError:
            raise
        return Row(
            network.name, network.group, network.family, REFUSED, {"macs": macs, "params": params},
            why=str(error), day=date.today().isoformat(), versions=versions(),
        )  # fmt: skip


class Rows:
    """What was run, and which networks of timm there are, in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        self.timm: dict[str, Any] = known.get("timm", {})
        self.rows = {name: Row(**row) for name, row in known.get("rows", {}).items()}

    def add(self, row: Row) -> None:
        """Take a row in, and write them all."""
        self.rows[row.name] = row
        self.write()

    def write(self) -> None:
        """The whole file, a row on each line so that changes can be seen."""
        lines = ",\n".join(
            f"{json.dumps(n)}: {json.dumps(asdict(r), ensure_ascii=False)}"
            for n, r in sorted(self.rows.items())
        )
        text = f'{{"timm": {json.dumps(self.timm)},\n"rows": {{\n{lines}\n}}}}\n'
        write_text(self.path, text)

    def networks(self) -> list[Network]:
        """All networks in the order in which they are run; timm's are listed once for a version."""
        if self.timm.get("version") != version("timm"):
            found = [[n.name, n.family, n.params] for n in timm_networks()]
            self.timm = {"version": version("timm"), "networks": found}
            self.write()
        timm = [Network(n, TIMM, family, p) for n, family, p in self.timm["networks"]]
        every = [*torchvision_networks(), *families_first(timm)]
        return sorted(every, key=lambda n: GROUPS.index(n.group))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", metavar="NAME", help="such as timm:resnet18")
    parser.add_argument("--groups", nargs="+", default=list(GROUPS), choices=GROUPS)
    parser.add_argument("--again", action="store_true", help="also those that have a row")
    parser.add_argument("--minutes", type=float, help="start none after so many; 0 runs none")
    parser.add_argument("--macs", type=float, default=0.6)
    parser.add_argument("--params", type=float, default=0.6)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rows", type=Path, default=ROWS, metavar="FILE.json")
    parser.add_argument("-o", "--out", type=Path, metavar="FILE.md")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    declare()
    if args.one:
        print(json.dumps(asdict(one(args.one, args.macs, args.params))))
        return
    rows, began = Rows(args.rows), time.monotonic()
    every = rows.networks()
    names = {n.name for n in every}
    unknown = set(args.only or ()) - names
    if unknown:
        parser.error(f"no network of this benchmark: {', '.join(sorted(unknown))}")
    chosen = [n for n in every if n.group in args.groups and n.name in (args.only or names)]
    failed = False
    for number, network in enumerate(chosen, start=1):
        before = rows.rows.get(network.name)
        if before is not None and before.outcome != FAILED and not args.again:
            continue
        if args.minutes is not None and time.monotonic() - began >= 60 * args.minutes:
            break
        row = run(network, args)
        rows.add(row)
        failed |= row.outcome == FAILED
        said = row.why or f"{row.macs_kept:.3f} of the MACs"
        print(
            f"{number}/{len(chosen)} {row.name}: {row.outcome}, {said}, {row.seconds:.0f} s",
            flush=True,
        )
    if args.out:
        write_text(args.out, page([*rows.rows.values()], every, args.macs, args.params))
    sys.exit(failed)


if __name__ == "__main__":
    main()
