"""onebyone beside other ways to make a trained network lighter: same network, same images, same MACs.

    apt-get install dataset-fashion-mnist
    python benchmarks/peers.py                                   # both built-in networks, no fine-tuning
    python benchmarks/peers.py --finetune 1
    python benchmarks/peers.py --latency --page docs/peers.md --plot docs/peers.png
    python benchmarks/peers.py --networks mobilenet efficientnet --weights edge --levels 0.5 0.35 0.25

The networks of the last line are those that `examples/train_edge.py` writes to that folder. All get the
same 512 training images, with labels (onebyone, the low-rank methods and the decomposers look at none),
and are measured on the 5,000 built-in test images. Each row is made in a process of its own; its
seconds (of the processor) and its memory are those of compressing alone, above what Python, PyTorch,
the network and the images take. Rows are kept in the cache and are not run again. `compressors.py` says
what must be installed; what is missing is left out.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import edge_networks
import fashion
import torch
from compressors import COMPRESSORS
from torch import nn

import onebyone as obo
from onebyone.measurement.counting import count
from onebyone.measurement.timing import interleave
from onebyone.pacing.whole import Stopwatch, ratio_of
from onebyone.recovery.recipe import PRECISIONS
from onebyone.searching import accuracy

NETWORKS = ("vgg", "resnet")
TRAINED = tuple(edge_networks.NETWORKS)
LEVELS = (0.8, 0.5, 0.33, 0.2, 0.1)
IMAGES = 512
TIMED_SECONDS = 5.0


def row(network: str, method: str, macs: float, given: argparse.Namespace) -> dict[str, Any]:
    """One network made lighter in one way, and measured; run in a process of its own."""
    torch.set_num_threads(given.threads)
    model = _load(network, given.weights)
    train, test = obo.Images(*fashion.read_split(given.data, "train")), obo.open_images("demo:test")
    images = train.take(IMAGES, given.seed)
    chosen = next(c for c in COMPRESSORS if c.name == method)
    example = images.inputs[:1]
    accuracy(model, images)  # what PyTorch sets up once is not the method's
    before = _peak()
    began = time.process_time()
    lighter = chosen.make(model, images, macs, given.seed)
    seconds, peak = time.process_time() - began, _peak() - before
    if lighter is None:
        return {"why": "not reached"}
    lighter.requires_grad_(True).eval()
    costs = [count(m, example).macs for m in (model, lighter)]
    found = {
        "original": accuracy(model, test), "accuracy": accuracy(lighter, test),
        "macs_kept": costs[1] / costs[0], "params_kept": _params(lighter) / _params(model),
        "seconds": round(seconds, 2), "peak_mib": round(peak / 2**20),
        "versions": chosen.versions, "date": datetime.date.today().isoformat(),
    }  # fmt: skip
    if given.latency:
        found["time_kept"] = _time_kept(model, lighter, example, given.threads)
    if given.finetune:
        found |= {"epochs": given.finetune, "tuned": _tuned(model, lighter, train, test, given)}
    return found


def _load(network: str, folder: Path) -> nn.Module:
    if network in NETWORKS:
        return obo.load(f"demo:{network}").model
    weights = folder / f"{network}.safetensors"
    return obo.load(f"edge_networks:{network}", weights=weights, input_size=(1, 28, 28)).model


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _params(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def _time_kept(
    model: nn.Module, lighter: nn.Module, example: torch.Tensor, threads: int
) -> float | None:
    """Median ratio of the times of one image in onnxruntime; None where it cannot be exported."""
    try:
        watch = Stopwatch(model, example, "onnx", threads)
        calls = {"before": watch.original, "after": watch.opened(lighter)}
    except Exception as error:
        print(f"no latency: {error}", file=sys.stderr)
        return None
    return ratio_of(interleave(calls, threads=threads, seconds=TIMED_SECONDS, most=5000)).median


def _tuned(
    model: nn.Module,
    lighter: nn.Module,
    train: obo.Images,
    test: obo.Images,
    given: argparse.Namespace,
) -> float:
    """Accuracy after the default recipe of `fine_tune` with the original as teacher."""
    recipe = obo.Recipe(seed=given.seed, precision=given.precision)
    tuned = obo.fine_tune(lighter, train, teacher=model, recipe=recipe, epochs=given.finetune)
    return accuracy(tuned.model, test)


def gather(given: argparse.Namespace) -> dict[str, Any]:
    """All rows that are asked for, those in the cache and the others."""
    rows: dict[str, Any] = json.loads(given.cache.read_text()) if given.cache.exists() else {}
    for network in given.networks:
        for compressor in (c for c in COMPRESSORS if c.name in given.methods):
            try:
                assert compressor.versions is not None
            except importlib.metadata.PackageNotFoundError as error:
                print(f"without {compressor.name}: {error} is not installed", file=sys.stderr)
                continue
            for macs in given.levels:
                key = f"{network}/{compressor.name}/{macs}/{given.seed}/{given.finetune:g}"
                if key in rows and "failed" not in rows[key]:
                    continue
                rows[key] = _apart(network, compressor.name, macs)
                given.cache.write_text(json.dumps(rows, indent=1) + "\n", "utf-8")
                print(key, json.dumps(rows[key]), flush=True)
    return rows


def _apart(network: str, method: str, macs: float) -> dict[str, Any]:
    """The row of a process with the same options."""
    command = [sys.executable, __file__, *sys.argv[1:], "--one", network, method, str(macs)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or ["nothing said"])[-1]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def text(rows: dict[str, Any], network: str, given: argparse.Namespace) -> str:
    """One Markdown table: points lost by method and level, then what each took."""
    levels = sorted({float(k.split("/")[2]) for k in rows if k.startswith(f"{network}/")})[::-1]
    lines = [
        "| method | " + " | ".join(f"{n:g}" for n in levels) + " | params | CPU seconds | memory |",
        "|---|" + "---|" * (len(levels) + 3),
    ]
    for compressor in COMPRESSORS:
        found = [
            rows.get(f"{network}/{compressor.name}/{n}/{given.seed}/{given.finetune:g}")
            for n in levels
        ]
        if not any(found):
            continue
        ran = [r for r in found if r and "accuracy" in r]
        took = (
            [f"{r[-1]['params_kept']:.2f} at {r[-1]['macs_kept']:.2f}",
             f"{min(x['seconds'] for x in r):.1f}–{max(x['seconds'] for x in r):.1f}",
             f"{max(x['peak_mib'] for x in r)} MiB"]
            if (r := ran) else ["–"] * 3
        )  # fmt: skip
        lines.append(f"| {compressor.name} | " + " | ".join([*map(_cell, found), *took]) + " |")
    return "\n".join(lines)


def _cell(row: dict[str, Any] | None) -> str:
    if row is None or "accuracy" not in row:
        return "–" if row is None else row.get("why", "failed")
    lost = f"{100 * (row['original'] - row['accuracy']):.2f}"
    if "tuned" in row:
        lost += f" → {100 * (row['original'] - row['tuned']):.2f}"
    if row.get("time_kept"):
        lost += f" ({row['time_kept']:.2f})"
    return lost


def page(rows: dict[str, Any], given: argparse.Namespace) -> str:
    """The whole document."""
    versions = sorted({v for r in rows.values() for v in r.get("versions", "").split(", ") if v})
    dates = sorted({r["date"] for r in rows.values() if "date" in r})
    when = " to ".join(dict.fromkeys((dates[0], dates[-1])))
    parts = [
        "# Beside other compressors",
        "Points of top-1 accuracy lost on the 5,000 built-in test images, by the fraction of the MACs "
        f"kept, {IMAGES} training images of the same draw"
        + (f", before → after {given.finetune:g} epochs of fine-tuning" if given.finetune else "")
        + (", and in brackets the part of the time in onnxruntime kept" if given.latency else "")
        + ". Made by `python benchmarks/peers.py`, which says how each is called; "
        f"torch {torch.__version__}, {', '.join(versions)}; {when}. "
        "Parameters kept are those at the lowest level reached; processor seconds and memory are "
        "those of compressing on one thread of a shared machine, memory above that of the loaded network.",
    ]
    for network in given.networks:
        first = next(
            (r for k, r in rows.items() if k.startswith(network) and "original" in r), None
        )
        if first:
            parts += [
                f"## {network}",
                f"Original {first['original']:.2%}.",
                text(rows, network, given),
            ]
    if given.page:
        parts.append(f"![Points lost over MACs kept]({given.plot.name})")
    return "\n\n".join(parts) + "\n"


def plot(rows: dict[str, Any], given: argparse.Namespace) -> None:
    """Points lost over MACs kept, one panel for each network."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        1, len(given.networks), figsize=(5.5 * len(given.networks), 4.5), layout="constrained",
        sharey=True, squeeze=False,
    )  # fmt: skip
    for network, axis in zip(given.networks, axes[0], strict=True):
        for compressor, marker in zip(COMPRESSORS, "os^Dv<>Pp*", strict=False):
            points = [
                (r["macs_kept"], 100 * (r["original"] - r.get("tuned", r["accuracy"])))
                for k, r in rows.items()
                if k.startswith(f"{network}/{compressor.name}/") and "accuracy" in r
                and k.endswith(f"/{given.seed}/{given.finetune:g}")
            ]  # fmt: skip
            if points:
                first = compressor.name == "onebyone"
                axis.plot(*zip(*sorted(points), strict=True), marker=marker,
                          label=compressor.name, linewidth=2.5 if first else 1.2)  # fmt: skip
        axis.set(title=network, xlabel="MACs kept", yscale="symlog",
                 yticks=(0, 1, 10, 100), yticklabels=(0, 1, 10, 100))  # fmt: skip
        axis.grid(alpha=0.3)
    after = f" after {given.finetune:g} epochs of fine-tuning" if given.finetune else ""
    axes[0][0].set_ylabel(f"points lost{after}")
    axes[0][-1].legend(fontsize=8)
    figure.savefig(given.plot, dpi=120)


def main() -> None:
    names = [c.name for c in COMPRESSORS]
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS + TRAINED, default=list(NETWORKS))
    parser.add_argument(
        "--weights", type=Path, default=Path("edge"), help="folder of train_edge.py"
    )
    parser.add_argument("--methods", nargs="+", choices=names, default=names)
    parser.add_argument("--levels", type=float, nargs="+", default=list(LEVELS))
    parser.add_argument("--seed", type=int, default=0, help="of the draw of images")
    parser.add_argument("--finetune", type=float, default=0, help="epochs of all training images")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32", help="of fine-tuning")
    parser.add_argument("--data", type=Path, default=fashion.FOLDER)
    parser.add_argument("--latency", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cache", type=Path, default=Path("peers.json"))
    parser.add_argument("--page", type=Path, help="write the tables to this Markdown file")
    parser.add_argument("--plot", type=Path, default=Path("peers.png"))
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(row(given.one[0], given.one[1], float(given.one[2]), given)))
        return
    rows = gather(given)
    made = page(rows, given)
    (given.page.write_text(made, "utf-8") if given.page else print(made))
    plot(rows, given)


if __name__ == "__main__":
    main()
