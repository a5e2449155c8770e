"""Does a short probe know where depth pays? Its scores beside the real gain of each insertion.

    apt-get install dataset-fashion-mnist
    python benchmarks/probe.py --network vgg

The demo network is slimmed; each insertion is then trained alone, with the whole network, for some
hundred steps, and the fall of the loss on held-out training images is compared with that of the
slimmed network trained the same way. Against these gains stand the scores that a probe could go by.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from fashion import FOLDER, read_split
from torch import Tensor, nn

import onebyone as obo
from onebyone.data import Images
from onebyone.deepening.candidates import WIDTH
from onebyone.deepening.candidates import candidates as all_of
from onebyone.deepening.insertions import Insertion, insert
from onebyone.deepening.probing import RECIPE, _borrow, _in_order, probe
from onebyone.recovery.objective import Objective
from onebyone.tree import deep_copy, replace_modules

Loss = Callable[[nn.Module, Tensor, Tensor | None], Tensor]


def against(teacher: nn.Module) -> Loss:
    """The loss of the probe, for any student."""

    def loss(student: nn.Module, inputs: Tensor, labels: Tensor | None) -> Tensor:
        return Objective(student, teacher, RECIPE, inputs[:1]).loss(inputs, labels).value

    return loss


def with_one(model: nn.Module, insertions: tuple[Insertion, ...], seed: int) -> nn.Module:
    copy = deep_copy(model)
    return replace_modules(copy, insert(copy, insertions, seed))


def trained(
    model: nn.Module, images: Images, loss: Loss, steps: int, batch: int, rate: float, seed: int
) -> nn.Module:
    """The network after so many steps of SGD with one cycle, in bfloat16 where that is faster."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), rate, momentum=0.9, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rate, total_steps=steps, pct_start=0.2, cycle_momentum=False
    )
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        chosen = torch.randint(len(images), (batch,), generator=generator)
        assert images.labels is not None
        with torch.autocast("cpu", torch.bfloat16):
            value = loss(model, images.inputs[chosen], images.labels[chosen])
        optimizer.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return model.eval()


@torch.inference_mode()
def mean_loss(model: nn.Module, images: Images, loss: Loss) -> float:
    total = sum(float(loss(model, x, y)) * len(x) for x, y in images.batches(500))
    return total / len(images)


def gradients(
    model: nn.Module,
    insertions: list[Insertion],
    images: Images,
    loss: Loss,
    batches: int,
    seed: int,
) -> dict[str, list[float]]:
    """Scores from gradients at the start alone.

    `squared gradient`: the product of the mean gradients of two halves of the batches, so that noise
    cancels. `natural gradient`: the same in the metric of the layer's own inputs and of the gradients at
    its output (K-FAC, Martens & Grosse 2015), for the zero-initialized convolutions of bottlenecks.
    """
    trial = deep_copy(model)
    made = insert(trial, tuple(insertions), seed)
    blocks = _in_order(made, insertions)
    trial = replace_modules(trial, made)
    _borrow(trial, blocks)
    zero = [
        b.body.expand if i.kind == "bottleneck" else b
        for b, i in zip(blocks, insertions, strict=True)
    ]
    first = [next(z.parameters()) for z in zero]
    sums = [[torch.zeros_like(w) for w in first] for _ in range(2)]
    inside: dict[int, Tensor] = {}
    outside: dict[int, Tensor] = {}

    def hook(index: int):
        def take(_: nn.Module, args: tuple[Tensor], y: Tensor) -> None:
            rows = args[0].detach().transpose(0, 1).flatten(1)
            inside[index] = inside.get(index, 0) + rows @ rows.T / rows.shape[1]

            def felt(g: Tensor) -> None:
                g = g.transpose(0, 1).flatten(1) * len(y)
                outside[index] = outside.get(index, 0) + g @ g.T / len(y)

            y.register_hook(felt)

        return take

    for index, (z, i) in enumerate(zip(zero, insertions, strict=True)):
        if i.kind == "bottleneck":
            z.register_forward_hook(hook(index))
    generator = torch.Generator().manual_seed(seed)
    for number in range(batches):
        chosen = torch.randint(len(images), (64,), generator=generator)
        assert images.labels is not None
        trial.zero_grad()
        loss(trial, images.inputs[chosen], images.labels[chosen]).backward()
        for total, w in zip(sums[number % 2], first, strict=True):
            total += w.grad / (batches // 2)
    plain = [float((a * b).sum()) for a, b in zip(*sums, strict=True)]
    natural = []
    for index, (a, b) in enumerate(zip(*sums, strict=True)):
        if index not in inside:
            natural.append(float("nan"))
            continue
        h, s = (m / batches for m in (inside[index], outside[index]))
        damp = 0.1
        h = h + damp * h.diagonal().mean() * torch.eye(len(h))
        s = s + damp * s.diagonal().mean() * torch.eye(len(s))
        a, b = a.flatten(1), b.flatten(1)
        natural.append(float((a * torch.linalg.solve(s, b) @ torch.linalg.inv(h)).sum()) / 2)
    signs = [float((a.sign() * b + b.sign() * a).sum()) / 2 for a, b in zip(*sums, strict=True)]
    return {"squared gradient": plain, "sign of gradient": signs, "natural gradient": natural}


def candidates(model: nn.Module, example: Tensor, widths: list[float]) -> list[Insertion]:
    return [c for c in all_of(model, example, widths=tuple(widths)) if not c.refused]


def rank_correlation(a: list[float], b: list[float]) -> float:
    ranks = [np.argsort(np.argsort(v)) for v in (a, b)]
    return float(np.corrcoef(*ranks)[0, 1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=FOLDER)
    parser.add_argument("--network", choices=("vgg", "resnet"), default="vgg")
    parser.add_argument("--macs", type=float, default=0.4, help="left by slimming")
    parser.add_argument("--widths", type=float, nargs="+", default=[WIDTH], help="of the channels")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--held-out", type=int, default=4000)
    parser.add_argument("--kinds", nargs="+", default=["bottleneck", "pointwise"])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rate", type=float, default=0.02)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("-o", "--out", type=Path, help="write all numbers as JSON")
    args = parser.parse_args()
    loaded = obo.load(f"demo:{args.network}")
    slimmed = obo.slim(
        loaded.model, obo.open_images("demo"), macs=args.macs, held_out=0, latency=False
    ).model
    images = Images(*read_split(args.data, "train"))
    images, held_out = images.split(args.held_out, 0)
    loss = against(loaded.model.requires_grad_(False))
    found = [c for c in candidates(slimmed, loaded.example, args.widths) if c.kind in args.kinds]
    scores: dict[str, list[float]] = {}
    began = time.perf_counter()
    runs = [probe(slimmed, found, images, loaded.model, seed=s) for s in range(args.seeds)]
    scores["probe"] = [float(np.mean(v)) for v in zip(*runs, strict=True)]
    print(f"the probe takes {(time.perf_counter() - began) / args.seeds:.1f} s")
    scores |= gradients(slimmed, found, images, loss, 24, 0)
    gains: list[list[float]] = [[] for _ in found]
    for seed in range(args.seeds):
        training = (images, loss, args.steps, args.batch, args.rate, seed)
        base = mean_loss(trained(deep_copy(slimmed), *training), held_out, loss)
        for gain, insertion in zip(gains, found, strict=True):
            made = trained(with_one(slimmed, (insertion,), seed), *training)
            gain.append(base - mean_loss(made, held_out, loss))
            print(seed, insertion.place, insertion.kind, insertion.width, insertion.macs,
                  *(f"{s[found.index(insertion)]:.5f}" for s in scores.values()),
                  f"gain {gain[-1]:.5f}", flush=True)  # fmt: skip
    real = [float(np.mean(g)) for g in gains]
    for kinds in (("bottleneck",), ("bottleneck", "pointwise")):
        chosen = [n for n, i in enumerate(found) if i.kind in kinds]
        for name, values in scores.items():
            mine, true = [values[n] for n in chosen], [real[n] for n in chosen]
            per = [
                [v / max(found[n].macs, 1) for v, n in zip(vs, chosen, strict=True)]
                for vs in (mine, true)
            ]
            gained, per_mac = rank_correlation(mine, true), rank_correlation(*per)
            print(f"{'+'.join(kinds):22} {name:18} rank correlation of gains {gained:+.2f}, "
                  f"per MAC {per_mac:+.2f}")  # fmt: skip
    if args.out:
        rows = [
            {"place": i.place, "kind": i.kind, "width": i.width, "macs": i.macs, "params": i.params,
             "gain": real[n], **{k: v[n] for k, v in scores.items()}}
            for n, i in enumerate(found)
        ]  # fmt: skip
        args.out.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
