"""Counters side by side: who is right on the cases with a known cost, how long each takes, what stays.

    python benchmarks/counters.py                 # all three tables
    python benchmarks/counters.py --only times    # or cases, or traces

Peers come with `pip install -e .[bench]`; a missing one is left out. Cases: MACs counted over the true
ones, in eval mode on the CPU, one thread. Times: medians of interleaved calls, each on a model of its
own, given with its values and given on meta tensors, over the fastest that is right (onebyone moves a
copy to meta tensors itself, and is judged with that). Traces: what is different in the model and the
process after a count.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import logging
import os
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import operators
import torch
from counter_peers import Inputs, Peer, available, on_meta
from known_costs import CONVOLUTIONS, Built, Case
from known_networks import NETWORKS
from known_products import PRODUCTS
from torch import Tensor, nn
from torch.nn import functional as F
from traces import differences, traces

ALLOWED = 1.5  # times the fastest peer that is right
WIDTH = 13


def deep_stack(channels: int, side: int) -> Built:
    """1,002 layers: 334 times a convolution, a normalization, an activation."""
    layers = [
        layer
        for _ in range(334)
        for layer in (
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
        )
    ]
    return nn.Sequential(*layers), (torch.randn(1, channels, side, side),)


def deep_case(name: str, channels: int, side: int) -> Case:
    return Case(
        name, lambda: deep_stack(channels, side), 334 * side**2 * channels**2 * 9,
        334 * (channels**2 * 9 + 2 * channels),
        f"334 convolutions, each {side}×{side} positions · {channels} · {channels} · 9",
    )  # fmt: skip


# The widths of ResNet-1001 on 32×32 images; and layers so small that computing them takes less time
# than working out their shapes: shown beside the others, and in no verdict.
TINY = deep_case("1,000 layers, 8×8×8", 8, 8)
TIMED = (
    next(case for case in NETWORKS if case.name == "ResNet-50"),
    deep_case("1,000 layers, 16×32×32", 16, 32),
    TINY,
)


def built(case: Case) -> tuple[nn.Module, Inputs]:
    """The model in eval mode, with the same weights each time."""
    torch.manual_seed(0)
    model, inputs = case.build()
    return model.eval(), inputs


@contextmanager
def functions_given_back() -> Iterator[None]:
    """Some peers put functions of their own into PyTorch, and leave them there when they fail."""
    before = [(owner, dict(vars(owner))) for owner in (torch, F, Tensor)]
    try:
        yield
    finally:
        torch.set_grad_enabled(True)
        for owner, functions in before:
            for name, value in functions.items():
                if vars(owner)[name] is not value:
                    setattr(owner, name, value)


def quietly(
    count: Callable[[nn.Module, Inputs], int], model: nn.Module, inputs: Inputs
) -> int | None:
    """What it counts, without what it prints; None where it fails."""
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            return count(model, inputs)
    except Exception:
        return None


def row(name: str, cells: list[str], first: int = 56) -> None:
    print(f"{name:{first}}" + "".join(f"{cell:>{WIDTH}}" for cell in cells), flush=True)


def ratio(found: int | None, truth: int) -> str:
    """Over the truth: `1` only where it is exact."""
    if found is None:
        return "fails"
    if found == truth:
        return "1"
    if truth == 0:
        return f"{found:+,}"
    text = f"{found / truth:.4g}"
    return "≈ 1" if text == "1" else text


def cases(peers: list[Peer]) -> None:
    """Counted over true MACs, and how many of each peer's are exact."""
    table = (*CONVOLUTIONS, *PRODUCTS, *NETWORKS)
    right = dict.fromkeys((peer.name for peer in peers), 0)
    row("MACs counted / true", [peer.name for peer in peers])
    for case in table:
        if case.needs and importlib.util.find_spec(case.needs) is None:
            continue
        cells = []
        for peer in peers:
            with functions_given_back():
                found = quietly(peer.count, *built(case))
            right[peer.name] += found == case.macs
            cells.append(ratio(found, case.macs))
        row(case.name, cells)
    row(f"exact, of {len(table)}", [str(right[peer.name]) for peer in peers])


def times(peers: list[Peer], rounds: int) -> bool:
    """Median times; whether ours is near enough to the fastest that is right."""
    near = True
    for case in TIMED:
        clocked: dict[str, list[float]] = {}
        counted: dict[str, int | None] = {}
        for index in range(rounds + 1):  # the first round warms up: imports, caches
            for peer in peers:
                for place, move in (("values", lambda m, x: (m, x)), ("meta", on_meta)):
                    name = f"{peer.name}, {place}"
                    if index and counted[name] is None:
                        continue
                    model, inputs = move(*built(case))
                    with functions_given_back():
                        began = time.perf_counter()
                        counted[name] = quietly(peer.count, model, inputs)
                        taken = time.perf_counter() - began
                    if index:
                        clocked.setdefault(name, []).append(taken)
        within = show_times(case, clocked, counted)
        near &= within or case is TINY
    return near


def show_times(case: Case, clocked: dict[str, list[float]], counted: dict[str, int | None]) -> bool:
    medians = {name: statistics.median(taken) for name, taken in clocked.items()}
    exact = {name: t for name, t in medians.items() if counted[name] == case.macs}
    fastest = min(exact, key=lambda name: exact[name])
    print()
    row(case.name, ["MACs / true", "median ms", "quartiles", "/ fastest"], 26)
    for name, found in counted.items():
        cells = [ratio(found, case.macs)]
        if name in medians:
            low, _, high = statistics.quantiles(clocked[name], n=4)
            cells += [f"{medians[name] * 1e3:.1f}", f"{low * 1e3:.1f}–{high * 1e3:.1f}"]
            cells.append(f"{medians[name] / exact[fastest]:.2f}")
        row(name, cells, 26)
    peer = min((name for name in exact if not name.startswith("onebyone")), key=lambda n: exact[n])
    ours = exact.get("onebyone, values", float("inf")) / exact[peer]
    print(
        f"the fastest peer that is right: {peer}; onebyone takes {ours:.2f} times as long "
        f"(at most {ALLOWED} allowed)"
    )
    return ours <= ALLOWED


class Failing(nn.Module):
    """Normalization and dropout in training mode; it fails at its end if it is told to."""

    def __init__(self, fails: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 6, 3)
        self.norm = nn.BatchNorm2d(6)
        self.drop = nn.Dropout(0.5)
        self.fails = fails

    def forward(self, x: Tensor) -> Tensor:
        y = self.drop(self.norm(self.conv(x)))
        if self.fails:
            raise RuntimeError("it was told to fail")
        return y


def left_behind(peers: list[Peer]) -> None:
    """What differs after a count, and after one of a model that raises."""
    print()
    for fails in (False, True):
        print(f"left behind in a model that {'raises' if fails else 'runs'} (training mode):")
        for peer in peers:
            model, x = Failing(fails).train(), torch.randn(2, 4, 8, 8)
            before = traces(model)
            with functions_given_back():
                quietly(peer.count, model, (x,))
                changed = differences(before, traces(model))
            print(f"  {peer.name:14}{', '.join(changed) or 'nothing'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=("cases", "times", "traces"))
    parser.add_argument("--rounds", type=int, default=9, help="timed calls of each, 9 by default")
    args = parser.parse_args()
    operators.declare()
    warnings.simplefilter("ignore")
    logging.disable(logging.ERROR)
    torch.set_num_threads(1)
    peers = available()
    if args.only in (None, "cases"):
        cases(peers)
    near = args.only not in (None, "times") or times(peers, args.rounds)
    if args.only in (None, "traces"):
        left_behind(peers)
    raise SystemExit(0 if near else 1)


if __name__ == "__main__":
    main()
