"""Is the saving worth more as depth? Slim, deepen back to the original's cost, fine-tune; a fair control.

    apt-get install dataset-fashion-mnist
    python benchmarks/deepen.py --network vgg -o deepen-vgg.json     # hours on one core
    python benchmarks/deepen.py --network vgg --table deepen-vgg.json

For each seed the demo network is slimmed on 512 images, deepened to the original's MACs and at most its
parameters, and fine-tuned with labels and the original as its teacher. The control is the original,
fine-tuned by the same recipe for as many image passes as all of that took. Weights are chosen on a
twentieth of the training images; accuracy is that on all 10,000 test images, which nothing else sees.
"""

from __future__ import annotations

import argparse
import json
import statistics as stats
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from fashion import FOLDER, read_split
from rich.console import Console
from rich.table import Table
from torch import nn

import onebyone as obo
from onebyone.data import Images
from onebyone.deepening.candidates import WIDTH
from onebyone.deepening.probing import BATCH, BATCHES
from onebyone.recovery.recipe import OPTIMIZERS, PRECISIONS
from onebyone.searching import accuracy

CALIBRATION = 512
ARMS = {
    "original": "the original",
    "slimmed": "slimmed",
    "tuned": "slimmed, fine-tuned",
    "deepened": "slimmed, deepened, fine-tuned",
    "control": "the original, fine-tuned as long",
}


def tuned(
    model: nn.Module, teacher: nn.Module, train: Images, held_out: Images, recipe: obo.Recipe
) -> tuple[nn.Module, dict[str, Any]]:
    """The fine-tuned network, and how that went."""
    found = obo.fine_tune(model, train, teacher=teacher, held_out=held_out, recipe=recipe)
    about = {
        "images": found.images, "seconds": round(found.seconds), "precision": found.precision,
        "measured": [m.score.accuracy for m in found.measured if m.score],
    }  # fmt: skip
    return found.model, about


def run(args: argparse.Namespace, seed: int) -> dict[str, Any]:
    """All arms with one seed: costs, test accuracies, and what was inserted."""
    loaded = obo.load(f"demo:{args.network}")
    model, example = loaded.model, loaded.example
    every = Images(*read_split(args.data, "train"))
    if args.images is not None:
        every = every.take(args.images, seed)
    train, held_out = every.split(len(every) // 20, seed)
    test = Images(*read_split(args.data, "t10k"))
    if args.images is not None:
        test = test.take(args.images, seed)
    recipe = obo.Recipe(
        epochs=args.epochs, optimizer=args.optimizer, learning_rate=args.rate, soft=args.soft,
        batch_size=args.batch, features=args.features, augment=tuple(args.augment), seed=seed,
        precision=args.precision,
    )  # fmt: skip
    found: dict[str, Any] = {"seed": seed, "network": args.network, "recipe": recipe.to_json()}
    found["test_images"] = len(test)
    networks = {"original": model}
    statistics = train.take(CALIBRATION, seed)
    networks["slimmed"] = obo.slim(
        model, statistics, macs=args.macs, held_out=0, latency=False, seed=seed
    ).model
    began = time.perf_counter()
    deepened = obo.deepen(
        networks["slimmed"], example, obo.Budget(macs=1.0, params=1.0), reference=model, data=train,
        held_out=0, kinds=tuple(args.kinds), width=args.width, seed=seed,
    )  # fmt: skip
    found["deepen_seconds"] = round(time.perf_counter() - began, 1)
    found["notes"] = deepened.plan.notes
    found["inserted"] = [
        (i.place, i.kind, i.width, i.macs, i.params, i.score)
        for i in deepened.plan.insertions if not i.refused
    ]  # fmt: skip
    # Observing and rewriting take some passes over the calibration images, the probe one over its own.
    extra = (10 * CALIBRATION + BATCH * BATCHES) / len(train)
    arms = {"deepened": (deepened.model, recipe)}
    arms["control"] = (model, replace(recipe, epochs=recipe.epochs + extra))
    if not args.no_tuned:
        arms["tuned"] = (networks["slimmed"], recipe)
    for name, (start, own) in arms.items():
        networks[name], found[f"{name}_run"] = tuned(start, model, train, held_out, own)
        print(f"seed {seed}: {name} {accuracy(networks[name], test):.4f}", flush=True)
    for name, network in networks.items():
        counted = obo.measure(network, example)
        found[name] = {
            "macs": counted.macs, "params": counted.params, "top1": accuracy(network, test)
        }  # fmt: skip
    return found


def table(runs: list[dict[str, Any]]) -> Table:
    """Mean, least and most of the seeds, and what each gains over the original and over the control."""
    made = Table(
        title=f"{runs[0]['network']}, {len(runs)} seeds, {runs[0]['test_images']:,} test images"
    )
    for head in ("", "MACs", "parameters", "top-1 mean (least to most)", "gain", "over control"):
        made.add_column(head, justify="left" if not head else "right")
    for name, title in ARMS.items():
        own = [r for r in runs if name in r]
        if not own:
            continue
        top = [100 * r[name]["top1"] for r in own]
        gains = [
            stats.mean(100 * (r[name]["top1"] - r[other]["top1"]) for r in own if other in r)
            for other in ("original", "control")
        ]
        made.add_row(
            title, f"{stats.mean(r[name]['macs'] for r in own):,.0f}",
            f"{stats.mean(r[name]['params'] for r in own):,.0f}",
            f"{stats.mean(top):.2f} ({min(top):.2f} to {max(top):.2f})",
            *(f"{gain:+.2f}" for gain in gains),
        )  # fmt: skip
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=FOLDER)
    parser.add_argument("--network", choices=("vgg", "resnet"), default="vgg")
    parser.add_argument("--macs", type=float, default=0.4, help="left by slimming")
    parser.add_argument("--kinds", nargs="+", default=["bottleneck", "pointwise", "prelu"])
    parser.add_argument("--width", type=float, default=WIDTH, help="of the channels")
    parser.add_argument("--epochs", type=float, default=6.0)
    parser.add_argument("--optimizer", choices=tuple(OPTIMIZERS), default="shampoo")
    parser.add_argument("--rate", type=float, default=0.05)
    parser.add_argument("--precision", choices=PRECISIONS, default="auto")
    parser.add_argument("--soft", type=float, default=0.5, help="share of the teacher in the loss")
    parser.add_argument("--features", type=float, default=0.0)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--augment", nargs="*", default=["shift", "mirror"])
    parser.add_argument("--images", type=int, help="train and test on so many only, to try it")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--no-tuned", action="store_true", help="leave slimmed and tuned out")
    parser.add_argument("-o", "--out", type=Path, help="JSON, written after every seed")
    parser.add_argument("--table", type=Path, nargs="+", help="only print what such files hold")
    args = parser.parse_args()
    runs: list[dict[str, Any]] = []
    if args.table:
        runs = [run for path in args.table for run in json.loads(path.read_text())]
    else:
        torch.manual_seed(0)
        for seed in args.seeds:
            runs.append(run(args, seed))
            if args.out:
                args.out.write_text(json.dumps(runs, indent=1))
    Console(width=120).print(table(runs))


if __name__ == "__main__":
    main()
