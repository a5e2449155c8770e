"""Trained networks of PyPI packages, slimmed without fine-tuning and judged on photos held out.

    python benchmarks/real.py --networks hed --levels 0.5 0.33 --cache real.json
    python benchmarks/real.py --networks efficientnet-lite0 --methods onebyone "weight SVD"
    python benchmarks/real.py --networks hed --levels 0.33 --latency --pictures docs/hed.jpg

What must be installed stands in `photos.py` and `trained.py`; the peers need the extra `bench` and
torch-pruning. Calibration crops and held-out crops come from different photos. Rows are kept in the
cache as they are done and are not run again; `--latency` and `--pictures` take the slimmed networks
that lie beside it.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import time
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import lowrank
import numpy as np
import photos
import pruning
import torch
import trained
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from trained import Trained

import onebyone as obo
from onebyone.errors import OneByOneError
from onebyone.loading.slimmed import replanned
from onebyone.measurement.counting import count
from onebyone.measurement.timing import interleave
from onebyone.pacing.whole import Stopwatch, ratio_of
from onebyone.plain import plain

PEERS = tuple(m.name for m in lowrank.METHODS)
PRUNING = {f"torch-pruning, {name}": name for name in pruning.IMPORTANCES}
METHODS = ("onebyone", *PEERS, *PRUNING)
LEVELS = {"hed": (0.5, 0.33), "opennsfw": (0.6, 0.5)}
EDGE_LEVELS = (0.9, 0.8, 0.7, 0.6, 0.5)
CALIBRATION = {"hed": 2}  # crops of each photo; 15 GMACs an image
EACH, HELD_OUT = 16, 8
RUNTIMES = ("onnx", "openvino", "ncnn", "eager", "executorch")
ROUNDS_SECONDS = 20.0  # of interleaved timing in each runtime
LABELED = 64  # crops at the most whose gradients pruning by Taylor expansion takes


class Case:
    """One network with its crops, and what is made once for all its rows."""

    def __init__(
        self, network: Trained, every: list[photos.Photo], one_in: int, each: int, held_out: int
    ) -> None:
        known, unknown = photos.split(every, one_in)
        self.network, self.model = network, network.load().requires_grad_(False)
        self.known, self.each = known, each
        self.crops = photos.crops(unknown, held_out, network.size, 1)
        self.held_out = network.inputs(self.crops)
        self.squares = network.inputs(photos.squares(unknown, network.size))
        self.observing = 0.0

    @cached_property
    def images(self) -> Tensor:
        """Those to calibrate on, crops of one photo side by side: halves share no photo."""
        made = photos.crops(self.known, self.each, self.network.size, 0)
        by_turns = made.reshape(self.each, len(self.known), *made.shape[1:])
        return self.network.inputs(by_turns.swapaxes(0, 1).reshape(made.shape))

    @cached_property
    def before(self) -> tuple[Tensor, Tensor]:
        """What the original gives for the crops held out, and for the whole squares of those photos."""
        return outputs(self.model, self.held_out), outputs(self.model, self.squares)

    def fidelity(self, lighter: nn.Module) -> dict[str, float]:
        """How much a network's outputs are like the original's, on crops and on whole squares."""
        crops, squares = (
            self.network.fidelity(before, outputs(lighter, inputs))
            for before, inputs in zip(self.before, (self.held_out, self.squares), strict=True)
        )
        return crops | {f"whole_{name}": value for name, value in squares.items()}

    @cached_property
    def seen(self) -> obo.Statistics:
        """The statistics, and in `observing` the processor seconds that they took."""
        began = time.process_time()
        found = obo.observe(self.model, self.images)
        self.observing = time.process_time() - began
        return found

    def slimmed(self, macs: float, beside: Path) -> nn.Module:
        """By onebyone; plan and weights are kept in files."""
        plan = obo.plan(self.model, self.seen, obo.Budget(macs=macs))
        lighter = obo.rewrite(self.model, plan, self.images, statistics=self.seen)
        beside.mkdir(parents=True, exist_ok=True)
        obo.write_plan(plan, beside / f"{self.network.name}-{macs}.json")
        tensors = {n: t.contiguous() for n, t in lighter.state_dict().items()}
        save_file(tensors, beside / f"{self.network.name}-{macs}.safetensors")
        return lighter

    def kept(self, macs: float, beside: Path) -> nn.Module:
        """The slimmed network from its files."""
        plan = obo.read_plan(beside / f"{self.network.name}-{macs}.json")
        lighter = replanned(self.model, plan)
        lighter.load_state_dict(load_file(beside / f"{self.network.name}-{macs}.safetensors"))
        return lighter.eval()

    def made(self, method: str, macs: float, beside: Path) -> nn.Module | None:
        """The network at this fraction of its MACs; None where the method does not reach it."""
        if method == "onebyone":
            return self.slimmed(macs, beside)
        if method in PRUNING:
            images = self.images[:: -(-len(self.images) // LABELED)]
            labels = self.model(images).argmax(1)
            return pruning.prune(self.model, images, labels, PRUNING[method], macs)
        found = next(m for m in lowrank.METHODS if m.name == method)
        slimmed = lowrank.slim(plain(self.model, self.images[:1]).model, self.seen, found, macs)
        return None if slimmed is None else slimmed[0]

    def row(self, method: str, macs: float, beside: Path) -> dict[str, Any]:
        """What the table says of one method at one level."""
        if method not in PRUNING:
            assert self.seen
        began = time.process_time()
        try:
            lighter = self.made(method, macs, beside)
        except OneByOneError as error:
            return {"why": str(error)}
        seconds = time.process_time() - began + self.observing * (method not in PRUNING)
        if lighter is None:
            return {"why": "not reached"}
        before, after = (count(m, self.held_out[:1]) for m in (self.model, lighter))
        return {
            **self.fidelity(lighter),
            "macs_kept": after.macs / before.macs, "params_kept": after.params / before.params,
            "cpu_seconds": round(seconds, 1), "calibration": len(self.images),
            "held_out": len(self.held_out), "whole": len(self.squares), "package": self.network.version,
            "date": datetime.date.today().isoformat(), "torch": torch.__version__,
        }  # fmt: skip


@torch.inference_mode()
def outputs(model: nn.Module, inputs: Tensor) -> Tensor:
    return torch.cat([model(part) for part in inputs.split(16)])


def latencies(
    case: Case, lighter: nn.Module, threads: int, known: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """`known` and, one after another, what it lacks: medians of one image in each runtime that works."""
    for runtime in (r for r in RUNTIMES if r not in known):
        try:
            watch = Stopwatch(case.model, case.held_out[:1], runtime, threads)
            calls = {"before": watch.original, "after": watch.opened(lighter)}
        except Exception as error:  # a runtime may lack an operator, and says so in its own way
            print(f"without {runtime}: {error}", file=sys.stderr)
            continue
        samples = interleave(calls, threads=threads, seconds=ROUNDS_SECONDS, least=11, most=500)
        ratio = ratio_of(samples)
        known[runtime] = {
            "before_ms": ratio.before_ms, "after_ms": ratio.after_ms, "ratio": ratio.median,
            "doubt": ratio.doubt, "rounds": ratio.rounds, "threads": threads,
        }  # fmt: skip
        print(case.network.name, runtime, known[runtime], flush=True)
        yield known


def picture(case: Case, lighter: nn.Module, chosen: list[int], path: Path) -> None:
    """Crops that were held out, the original's output and the lighter network's, one row each."""
    from PIL import Image

    inputs = case.held_out[chosen]
    maps = [(255 * outputs(m, inputs)[:, 0]).byte().numpy() for m in (case.model, lighter)]
    columns = [np.concatenate([case.crops[i] for i in chosen], 1)]
    columns += [np.repeat(np.concatenate(list(m), 1)[..., None], 3, 2) for m in maps]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(columns, 0)).save(path, quality=85)


def main() -> None:
    names = [n.name for n in trained.NETWORKS]
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=names, default=names)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["onebyone"])
    parser.add_argument("--levels", type=float, nargs="+", help="fractions of the MACs to keep")
    parser.add_argument("--root", type=Path, default=Path("/"), help="where photos' packages are")
    parser.add_argument(
        "--packages", nargs="+", choices=photos.PACKAGES, default=list(photos.PACKAGES)
    )
    parser.add_argument("--one-in", type=int, default=2, help="one photo in so many is held out")
    parser.add_argument("--each", type=int, help="calibration crops of each photo")
    parser.add_argument("--held-out", type=int, default=HELD_OUT, help="crops of each photo")
    parser.add_argument("--cache", type=Path, default=Path("real.json"))
    parser.add_argument("--latency", action="store_true", help="time those that are in the cache")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--pictures", type=Path, help="edge maps of the last level, side by side")
    parser.add_argument(
        "--shown", type=int, nargs="+", default=[29, 3, 1, 5], help="crops by number"
    )
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    every = photos.photos(given.root, given.packages)
    rows: dict[str, Any] = json.loads(given.cache.read_text()) if given.cache.exists() else {}
    beside = given.cache.with_suffix("")

    def write(rows: dict[str, Any]) -> None:
        given.cache.write_text(json.dumps(rows, indent=1) + "\n", "utf-8")

    for network in (n for n in trained.NETWORKS if n.name in given.networks):
        each = given.each or CALIBRATION.get(network.name, EACH)
        case = Case(network, every, given.one_in, each, given.held_out)
        levels = given.levels or LEVELS.get(network.name, EDGE_LEVELS)
        for level in levels:
            for method in given.methods:
                key = f"{network.name}/{method}/{level}"
                if key not in rows:
                    rows[key] = case.row(method, level, beside)
                    print(key, json.dumps(rows[key]), flush=True)
                    write(rows)
                if given.latency and method == "onebyone":
                    known = rows[key].get("latency", {})
                    for rows[key]["latency"] in latencies(
                        case, case.kept(level, beside), given.threads, known
                    ):
                        write(rows)
        if given.pictures:
            picture(case, case.kept(levels[-1], beside), given.shown, given.pictures)


if __name__ == "__main__":
    main()
