"""Accuracy over cost without fine-tuning: onebyone beside published low-rank methods.

    python benchmarks/quality.py                     # the demo network, three calibration draws
    python benchmarks/quality.py --network resnet -o quality-resnet.png
    python benchmarks/quality.py --network edge_networks:mobilenet --weights edge/mobilenet.safetensors \\
        --data /usr/share/datasets/fashion-mnist --images 1024

The built-in images are 1,024; `--data` draws from all training images.

Every method sees the same unlabeled calibration images and is measured on all 5,000 test images.
Needs the extra `bench`.
"""

from __future__ import annotations

import argparse
import statistics as stats
from importlib.util import find_spec
from pathlib import Path

import fashion
import lowrank
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import onebyone as obo
from onebyone.searching import accuracy

LEVELS = (0.8, 0.65, 0.5, 0.4, 0.33, 0.25, 0.2, 0.15)
Point = tuple[float, float, float]  # MACs kept, parameters kept, points of accuracy lost


def curve(
    model: nn.Module,
    pool: obo.Images,
    levels: list[float],
    draws: int,
    images: int,
    methods: list[str],
) -> dict[str, dict[float, list[Point]]]:
    """Every method at every level on every draw of the calibration images."""
    test = obo.open_images("demo:test")
    before = accuracy(model, test)
    found: dict[str, dict[float, list[Point]]] = {"onebyone": {}}
    found |= {m.name: {} for m in lowrank.METHODS if m.name in methods}
    for seed in range(draws):
        inputs = pool.take(images, seed).inputs
        seen = obo.observe(model, inputs, seed=seed)
        for level in levels:
            plan = obo.plan(model, seen, obo.Budget(macs=level))
            lighter = obo.rewrite(model, plan, inputs, statistics=seen)
            point = (plan.macs_after / plan.macs_before, plan.params_after / plan.params_before)
            lost = 100 * (before - accuracy(lighter, test))
            found["onebyone"].setdefault(level, []).append((*point, lost))
            for method in lowrank.METHODS:
                if method.name not in methods:
                    continue
                made = lowrank.slim(model, seen, method, level)
                if made is not None:
                    lost = 100 * (before - accuracy(made[0], test))
                    found[method.name].setdefault(level, []).append((made[1], made[2], lost))
    return found


def table(found: dict[str, dict[float, list[Point]]], title: str) -> Table:
    """Mean points lost, with the least and the most of the draws, and the parameters kept."""
    made = Table(title=title, title_justify="left")
    made.add_column("MACs kept", justify="right")
    for name in found:
        made.add_column(f"{name}\nlost (least–most), params", justify="right")
    for level in sorted({n for curves in found.values() for n in curves}, reverse=True):
        row = [f"{level:.2f}"]
        for curves in found.values():
            points = curves.get(level, [])
            lost = [p[2] for p in points]
            row.append(
                f"{stats.mean(lost):.2f} ({min(lost):.2f}–{max(lost):.2f}), "
                f"{stats.mean(p[1] for p in points):.2f}"
                if points
                else "not reached"
            )
        made.add_row(*row)
    return made


def plot(found: dict[str, dict[float, list[Point]]], title: str, path: Path) -> None:
    """Points lost over MACs kept."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    for (name, curves), marker in zip(found.items(), "os^D", strict=False):
        levels = sorted(curves)
        mean = [stats.mean(p[2] for p in curves[n]) for n in levels]
        axes.plot(levels, mean, marker=marker, label=name)
    axes.set(
        title=title.replace("; ", "\n"), xlabel="MACs kept", yscale="symlog",
        ylabel="points of top-1 accuracy lost", yticks=(0, 1, 10, 100), yticklabels=(0, 1, 10, 100),
    )  # fmt: skip
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="vgg", help="vgg, resnet, or any that obo.load takes")
    parser.add_argument("--weights", help="of a network that is not built in")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--data", type=Path, help="Fashion-MNIST, to draw from its 60,000 images")
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--levels", type=float, nargs="+", default=LEVELS)
    parser.add_argument("--methods", nargs="*", default=[m.name for m in lowrank.METHODS])
    parser.add_argument("-o", "--out", type=Path, default=Path("quality.png"))
    args = parser.parse_args()
    missing = [name for name in ("matplotlib", "tensorly") if find_spec(name) is None]
    if missing:
        parser.error(f'{" and ".join(missing)} not found: pip install -e ".[bench]"')
    torch.manual_seed(0)
    spec = f"demo:{args.network}" if args.network in ("vgg", "resnet") else args.network
    size = None if spec.startswith("demo:") else (1, 28, 28)
    model = obo.load(spec, weights=args.weights, input_size=size).model
    before = accuracy(model, obo.open_images("demo:test"))
    title = (
        f"{spec}, top-1 {before:.2%}; {args.images} unlabeled images, no fine-tuning, "
        f"{args.draws} draws, 5,000 test images"
    )
    pool = obo.open_images("demo")
    if args.data:
        pool = obo.Images(fashion.read_split(args.data, "train")[0])
    found = curve(model, pool, list(args.levels), args.draws, args.images, args.methods)
    Console(width=130).print(table(found, title))
    plot(found, title, args.out)
    print(f"the plot is in {args.out}")


if __name__ == "__main__":
    main()
