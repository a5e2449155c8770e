"""Images a second of fine-tuning in several processes beside one, and under torchrun beside plain Python.

    apt-get install dataset-fashion-mnist
    python benchmarks/distributed.py --network vgg --processes 2

Each run fine-tunes the built-in network slimmed to a fifth of its MACs, one thread a process, batches of
128 images in all, float32, gloo. Runs take turns, and the median of each is printed with its ratio; the
first measurement on the way and the start of Python are not counted. More processes than free cores
say nothing.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import fashion
import torch
from rich.console import Console
from rich.table import Table

import onebyone as obo
from onebyone.distributed import World, together

WAYS = {"plain": None, "torchrun, 1 process": 1}


def work(args: argparse.Namespace) -> None:
    """One training; the leading process writes its images a second."""
    torch.set_num_threads(1)
    with together():
        model = obo.load(f"demo:{args.network}").model
        images = obo.Images(*fashion.read_split(args.data, "train")).take(args.images, 0)
        lighter = obo.slim(
            model, images.take(512, 0), macs=args.macs, held_out=0, latency=False
        ).model
        recipe = obo.Recipe(epochs=1, precision="float32", measure_every=2)
        found = obo.fine_tune(lighter, images, teacher=model, held_out=0, recipe=recipe)
        first, last = found.measured[0], found.measured[-1]
        if World.current().leads:
            args.work.write_text(str(last.images / (last.seconds - first.seconds)))


def speed(processes: int | None, args: argparse.Namespace) -> float:
    """Images a second of one run."""
    own = [__file__, "--network", args.network, "--macs", str(args.macs)]
    own += ["--images", str(args.images), "--data", str(args.data)]
    run = [sys.executable]
    if processes:
        run += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "speed")
        subprocess.run([*run, *own, "--work", str(out)], check=True, capture_output=True)
        return float(out.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=fashion.FOLDER)
    parser.add_argument("--network", choices=("vgg", "resnet"), default="vgg")
    parser.add_argument("--macs", type=float, default=0.2)
    parser.add_argument("--images", type=int, default=12800)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        work(args)
        return
    ways = WAYS | {f"torchrun, {args.processes} processes": args.processes}
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(args.rounds):
        for name, processes in ways.items():
            found[name].append(speed(processes, args))
    made = Table(title=f"demo:{args.network} at {args.macs} of its MACs, {args.rounds} rounds")
    for head in ("", "images/s (least, most)", "ratio to plain"):
        made.add_column(head, justify="right" if head else "left")
    plain = statistics.median(found["plain"])
    for name, values in found.items():
        middle = statistics.median(values)
        made.add_row(
            name, f"{middle:,.0f} ({min(values):,.0f}, {max(values):,.0f})", f"{middle / plain:.2f}"
        )
    Console(width=100).print(made)


if __name__ == "__main__":
    main()
