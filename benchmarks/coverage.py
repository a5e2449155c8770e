"""Networks of torchvision and timm through `slim`: what is met, what is not, and why.

    python benchmarks/coverage.py -o docs/coverage.md                # goes on from what was run
    python benchmarks/coverage.py --only torchvision:resnet18 --again
    python benchmarks/coverage.py --groups timm --minutes 60 -o docs/coverage.md
    python benchmarks/coverage.py --minutes 0 -o docs/coverage.md    # the page alone

Each network runs in a process of its own, forked off one that has loaded the exporters, with random
weights, on random images of the smallest size that it takes, and what comes out is checked
(`coverage_row`). Where the budget cannot be met, the lowest one that `slim` names is tried instead, and
the row says what holds the rest of the MACs. Rows are kept in a file; networks that have one are not
run again unless they failed.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from dataclasses import asdict
from datetime import date
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from coverage_networks import (
    GROUPS,
    TIMM,
    Network,
    families_first,
    timm_networks,
    torchvision_networks,
)  # fmt: skip
from coverage_page import FAILED, Row, page
from coverage_row import one, versions
from operators import declare
from torch import nn

import onebyone as obo
from onebyone.files import ONNX, write_text

ROWS = Path(__file__).with_name("coverage.json")
BUSY = 1800  # seconds that each core may work on one network, whatever else it does beside it
LONGEST = 4 * BUSY  # seconds of the clock
FORK = multiprocessing.get_context("fork")


def run(network: Network, args: argparse.Namespace) -> Row:
    """One network in a process of its own; never raises."""
    here, there = FORK.Pipe(duplex=False)
    process = FORK.Process(target=send_row, args=(there, network, args), daemon=True)
    process.start()
    there.close()
    try:
        found = here.recv() if here.poll(LONGEST) else f"it took longer than {LONGEST} s"
    except EOFError:
        process.join()
        found = f"exit code {process.exitcode}"
        if process.exitcode == -signal.SIGXCPU:
            found = f"it took more than {BUSY} s of each core"
    process.kill()
    process.join()
    if isinstance(found, Row):
        return found
    settings = {"macs": args.macs, "params": args.params}
    return Row(
        network.name, network.group, network.family, FAILED, settings, why=found,
        day=date.today().isoformat(), versions=versions(),
    )  # fmt: skip


def send_row(there: Connection, network: Network, args: argparse.Namespace) -> None:
    """The row of one network, or what went wrong."""
    most = BUSY * args.threads
    resource.setrlimit(resource.RLIMIT_CPU, (most, most + 5))
    torch.set_num_threads(args.threads)
    # Gradients vanish in deep networks with drawn weights; products of denormal numbers take a hundred
    # times as long.
    torch.set_flush_denormal(True)
    try:
        there.send(one(network, args.macs, args.params))
    except Exception as error:
        traceback.print_exc()
        there.send(f"{type(error).__name__}: {error}")


def warm_up() -> None:
    """Load once what every network needs: the exporters take longer to load than a small one runs."""
    import timm  # noqa: F401

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        obo.export(nn.Conv2d(1, 1, 1), torch.zeros(1, 1, 1, 1), Path(folder, ONNX))
    gc.freeze()


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
    args = parser.parse_args()
    declare()
    rows, began = Rows(args.rows), time.monotonic()
    every = rows.networks()
    names = {n.name for n in every}
    unknown = set(args.only or ()) - names
    if unknown:
        parser.error(f"no network of this benchmark: {', '.join(sorted(unknown))}")
    chosen = [n for n in every if n.group in args.groups and n.name in (args.only or names)]
    done = {name for name, row in rows.rows.items() if row.outcome != FAILED and not args.again}
    due = [(i, n) for i, n in enumerate(chosen, start=1) if n.name not in done]
    if due and args.minutes != 0:
        warm_up()
    failed = False
    for number, network in due:
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
