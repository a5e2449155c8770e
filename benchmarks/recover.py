"""Accuracy after a short fine-tuning at 5 and 10 times fewer MACs, onebyone beside its peers.

    apt-get install dataset-fashion-mnist
    pip install torch-pruning==1.6.1
    python benchmarks/recover.py --network vgg -o recover-vgg.json
    python benchmarks/recover.py --network resnet -o recover-resnet.json

Every method gets the same trained network, the same images (all 60,000 for training), the same recipe
of `fine_tune` with the original as teacher, and the same number of image passes: a tenth of those that
trained the original. A twentieth of the training images (2,000 at most) chooses the weights; the
10,000 test images are looked at once, at the end. Rows are added to the file as they are done, and
what is there is not run again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import fashion
import lowrank
import pruning
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import onebyone as obo
from onebyone.measurement.counting import count
from onebyone.recovery.recipe import PRECISIONS
from onebyone.searching import accuracy

TRAINED = 12 * 60_000  # image passes that trained the originals (demo/*.training.json)
CALIBRATION = 512
STEPS = {0.2: 2, 0.1: 3}  # of progressive slimming
Make = Callable[[nn.Module, obo.Images, float, int], nn.Module]


def one_shot(model: nn.Module, train: obo.Images, macs: float, seed: int) -> nn.Module:
    """onebyone without steps."""
    images = train.take(CALIBRATION, seed)
    return obo.slim(model, images, macs=macs, held_out=0, latency=False, seed=seed).model


def weight_svd(model: nn.Module, train: obo.Images, macs: float, seed: int) -> nn.Module:
    """The truncated SVD of each kernel, ranks by its energy under the same budget."""
    seen = obo.observe(model, train.take(CALIBRATION, seed), seed=seed)
    method = next(m for m in lowrank.METHODS if m.name == "weight SVD")
    made = lowrank.slim(model, seen, method, macs)
    if made is None:
        raise ValueError(f"weight SVD does not reach {macs}")
    return made[0]


def pruned(importance: str) -> Make:
    """torch-pruning with one of its importances."""

    def make(model: nn.Module, train: obo.Images, macs: float, seed: int) -> nn.Module:
        images = train.take(CALIBRATION, seed)
        assert images.labels is not None
        return pruning.prune(model, images.inputs, images.labels, importance, macs)

    return make


METHODS: dict[str, Make | None] = {
    "onebyone, in steps": None,
    "onebyone, one shot": one_shot,
    "weight SVD": weight_svd,
    "torch-pruning, group magnitude": pruned("group magnitude"),
    "torch-pruning, group Taylor": pruned("group Taylor"),
}


def row(
    network: str, method: str, macs: float, seed: int, passes: int, precision: str,
    train: obo.Images, test: obo.Images,
) -> dict[str, object]:  # fmt: skip
    """One network slimmed and fine-tuned, with its test accuracy before and after."""
    model = obo.load(f"demo:{network}").model
    began = time.perf_counter()
    recipe = obo.Recipe(seed=seed, precision=precision, measure_every=0.5)
    epochs, make = passes / (len(train) - 2000), METHODS[method]
    before = None
    if make is None:
        steps = STEPS.get(macs, 2)
        tuned = obo.slim(
            model, train, macs=macs, held_out=test, latency=False, seed=seed, steps=steps,
            finetune_epochs=epochs / steps, recipe=recipe, calibration=CALIBRATION,
        ).model  # fmt: skip
    else:
        lighter = make(model, train, macs, seed)
        before = accuracy(lighter, test)
        tuned = obo.fine_tune(lighter, train, teacher=model, recipe=recipe, epochs=epochs).model
    return {
        "network": network, "method": method, "macs": macs, "seed": seed, "passes": passes,
        "macs_kept": count(tuned, test.inputs[:1]).macs / count(model, test.inputs[:1]).macs,
        "params_kept": _params(tuned) / _params(model), "original": accuracy(model, test),
        "before": before, "after": accuracy(tuned, test),
        "seconds": round(time.perf_counter() - began),
    }  # fmt: skip


def _params(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def table(rows: list[dict]) -> Table:
    """Points of test accuracy above (+) or below the original, mean and range of the seeds."""
    original = rows[0]["original"]
    made = Table(title=f"demo:{rows[0]['network']}, {original:.2%} on 10,000 test images; "
                 f"{rows[0]['passes']:,} image passes of fine-tuning", title_justify="left")  # fmt: skip
    for name in ("method", "MACs kept", "params kept", "before", "after (least, most)", "seeds"):
        made.add_column(name, justify="left" if name == "method" else "right")
    for macs in sorted({r["macs"] for r in rows}, reverse=True):
        for method in METHODS:
            found = [r for r in rows if r["macs"] == macs and r["method"] == method]
            if not found:
                continue
            gains = [100 * (r["after"] - original) for r in found]
            before = [100 * (r["before"] - original) for r in found if r["before"] is not None]
            mean = statistics.mean
            made.add_row(
                method, f"{mean(r['macs_kept'] for r in found):.3f}",
                f"{mean(r['params_kept'] for r in found):.3f}",
                f"{mean(before):+.2f}" if before else "–",
                f"{mean(gains):+.2f} ({min(gains):+.2f}, {max(gains):+.2f})", str(len(found)),
            )  # fmt: skip
        made.add_section()
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=fashion.FOLDER)
    parser.add_argument("--network", choices=("vgg", "resnet"), default="vgg")
    parser.add_argument("--levels", type=float, nargs="+", default=(0.2, 0.1))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", nargs="*", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--passes", type=int, default=TRAINED // 10)
    parser.add_argument("--precision", choices=PRECISIONS, default="auto")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("-o", "--out", type=Path, default=Path("recover.json"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    train = obo.Images(*fashion.read_split(args.data, "train"))
    test = obo.Images(*fashion.read_split(args.data, "t10k"))
    rows = json.loads(args.out.read_text()) if args.out.exists() else []
    done = {(r["method"], r["macs"], r["seed"]) for r in rows}
    for seed in range(args.seeds):
        for method in args.methods:
            for macs in args.levels:
                if (method, macs, seed) in done:
                    continue
                rows.append(
                    row(args.network, method, macs, seed, args.passes, args.precision, train, test)
                )
                args.out.write_text(json.dumps(rows, indent=1) + "\n")
                print(rows[-1], flush=True)
    Console(width=120).print(table(rows))


if __name__ == "__main__":
    main()
