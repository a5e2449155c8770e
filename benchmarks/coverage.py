"""Every classification network of torchvision through `slim`: what is met, what is not, and why.

    python benchmarks/coverage.py -o docs/coverage.md              # all 80, about half an hour
    python benchmarks/coverage.py --only resnet18 vgg16 --save     # two, saved and loaded again too

Each network runs in a process of its own, with random weights, on random images of the smallest size
that it takes, and what comes out is checked (`check`). Where the budget cannot be met, the lowest one
that `slim` names is tried instead, and the row says what holds the rest of the MACs.
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
from dataclasses import asdict
from hashlib import blake2b
from pathlib import Path

import torch
from coverage_page import FAILED, LOWEST, MET, Row, page
from operators import declare
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import onebyone as obo
from onebyone.errors import BudgetError
from onebyone.files import write_text
from onebyone.planning import Decision, Plan
from onebyone.tree import modules_by_name

SIZES = (64, 96, 128)
MOST_IMAGES, LEAST_IMAGES = 32, 4  # a quarter of them is held out
WORK = 1e11  # MACs of one pass over the images, where fewer than the most then do


def names() -> list[str]:
    """torchvision's classification networks, quantized ones apart."""
    from torchvision import models

    return models.list_models(module=models)


def smallest(name: str) -> tuple[obo.Loaded, int]:
    """The network with random weights and the smallest square input of SIZES, or its own, that it takes."""
    for size in SIZES:
        loaded = obo.load(f"torchvision:{name}", weights="random", input_size=(3, size, size))
        try:
            with torch.no_grad():
                loaded.model(loaded.example)
        except (AssertionError, RuntimeError, ValueError):
            continue
        return loaded, size
    loaded = obo.load(f"torchvision:{name}", weights="random")
    return loaded, loaded.example.shape[-1]


def count_macs(model: nn.Module, example: Tensor) -> int:
    """PyTorch's own count for one image; fused kernels, which it does not know, are kept out."""
    plain = sdpa_kernel(SDPBackend.MATH)
    with torch.enable_grad(), plain, FlopCounterMode(display=False) as flops:
        model(example)
    return flops.get_total_flops() // 2


def digest(model: nn.Module) -> str:
    """Every name, value and mode of a network, and how many hooks it carries."""
    found = blake2b()
    for name, tensor in model.state_dict().items():
        found.update(name.encode())
        found.update(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().data)
    for name, module in modules_by_name(model).items():
        hooks = len(module._forward_hooks) + len(module._forward_pre_hooks)
        found.update(f"{name} {type(module)} {module.training} {hooks}".encode())
    for parameter in model.parameters():
        found.update(f"{parameter.requires_grad} {parameter.grad is None}".encode())
    return found.hexdigest()


def cover(name: str, macs: float, save: bool) -> Row:
    """Slim one network and check the result; AssertionError or the error of `slim` where it fails."""
    began = time.perf_counter()
    loaded, size = smallest(name)
    model, before = loaded.model, digest(loaded.model)
    whole = count_macs(model, loaded.example)
    count = int(max(LEAST_IMAGES, min(MOST_IMAGES, WORK // whole)))
    images = torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))
    slimmed, asked, outcome = slim(loaded, images, macs)
    seconds = time.perf_counter() - began
    check(loaded, slimmed, images, asked * whole)
    assert digest(model) == before, "the original was changed"
    if save:
        check_saved(slimmed, images)
    plan = slimmed.plan
    forms = Counter(d.form if d.form in ("keep", "refuse") else "changed" for d in plan.decisions)
    return Row(
        name, outcome, {}, size, count, whole, asked, plan.macs_after / whole,
        plan.params_after / plan.params_before, forms["changed"], forms["keep"], forms["refuse"],
        dict(Counter(general(d) for d in plan.decisions if d.reason).most_common()),
        held(plan), seconds=seconds,
    )  # fmt: skip


def slim(loaded: obo.Loaded, images: Tensor, macs: float) -> tuple[obo.Slimmed, float, str]:
    """The network at the budget, or at the lowest one that it reaches; the budget, and which it was."""

    def attempt(budget: float) -> obo.Slimmed:
        return obo.slim(
            loaded.model, images, macs=budget, held_out=len(images) // 4, latency=False,
            source=loaded.source,
        )  # fmt: skip

    try:
        return attempt(macs), macs, MET
    except BudgetError as error:
        message = str(error)
    named = re.search(r"lowest .* macs=(\d\.\d+)", message)
    assert named is not None, f"the message names no lowest budget: {message}"
    return attempt(float(named[1])), float(named[1]), LOWEST


def check(loaded: obo.Loaded, slimmed: obo.Slimmed, images: Tensor, limit: float) -> None:
    """Raise AssertionError where the result is not what `slim` promises."""
    plan, lighter, sides = slimmed.plan, slimmed.model, slimmed.verification
    counted = count_macs(lighter, loaded.example)
    assert counted == plan.macs_after == sides.after.macs, (
        f"PyTorch counts {counted:,} MACs, the plan says {plan.macs_after:,} and the verification "
        f"{sides.after.macs:,}"
    )
    assert counted <= limit, f"{counted:,} MACs are above the budget of {limit:,.0f}"
    assert count_macs(loaded.model, loaded.example) == plan.macs_before == sides.before.macs, (
        "the original's MACs differ"
    )
    params = sum(p.numel() for p in lighter.parameters())
    assert params == plan.params_after == sides.after.params, f"{params:,} parameters"
    with torch.no_grad():
        assert lighter(images).isfinite().all(), "the output has NaN or infinite values"
    own, other = modules_by_name(loaded.model), modules_by_name(lighter)
    assert not any(type(m).__module__.startswith("onebyone") for m in other.values()), (
        "the result has layers of onebyone's own"
    )
    for decision in plan.decisions:
        if decision.form in ("keep", "refuse") and decision.macs_after:
            assert decision.reason, f"the plan does not say why {decision.layer} stays as it is"
        if decision.refused:
            pairs = zip(
                own[decision.layer].parameters(), other[decision.layer].parameters(), strict=True
            )
            assert all(torch.equal(a, b) for a, b in pairs), f"refused {decision.layer} was changed"


def check_saved(slimmed: obo.Slimmed, images: Tensor) -> None:
    """Raise AssertionError where the saved folder does not give bit-equal outputs."""
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        again = obo.load(slimmed.save(Path(folder, "out"))).model
        assert torch.equal(again(images), slimmed.model(images)), "loaded outputs differ"


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
    return {r: n / plan.macs_before for r, n in shares.most_common() if n}


def run(name: str, args: argparse.Namespace) -> Row:
    """One network in a process of its own, or as the cache has it; never raises."""
    settings = {"macs": args.macs, "save": args.save}
    cached = args.cache / f"{name}.json" if args.cache else None
    if cached is not None and cached.is_file():
        row = Row(**json.loads(cached.read_text(encoding="utf-8")))
        if row.outcome != FAILED and row.settings == settings:
            return row
    command = [sys.executable, __file__, "--one", name, "--macs", str(args.macs)]
    command += ["--save"] if args.save else []
    command += ["--threads", str(args.threads)]
    done = subprocess.run(command, capture_output=True, text=True)
    last = (done.stderr.strip().splitlines() or ["no message"])[-1]
    if done.returncode:
        row = Row(name, FAILED, settings, why=f"exit code {done.returncode}: {last}")
    else:
        row = Row(**json.loads(done.stdout.splitlines()[-1]) | {"settings": settings})
    if cached is not None:
        cached.parent.mkdir(parents=True, exist_ok=True)
        write_text(cached, json.dumps(asdict(row), indent=1))
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", metavar="NAME", help="by default every network")
    parser.add_argument("--macs", type=float, default=0.6)
    parser.add_argument("--save", action="store_true", help="save and load each result as well")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--cache", type=Path, metavar="DIR", help="results to go on from")
    parser.add_argument("-o", "--out", type=Path, metavar="FILE.md")
    parser.add_argument("--one", metavar="NAME", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    declare()
    if args.one:
        print(json.dumps(asdict(cover(args.one, args.macs, args.save))))
        return
    chosen = args.only or names()
    rows = []
    for number, name in enumerate(chosen, start=1):
        row = run(name, args)
        rows.append(row)
        said = row.why or f"{row.macs_kept:.3f} of the MACs"
        print(
            f"{number}/{len(chosen)} {name}: {row.outcome}, {said}, {row.seconds:.0f} s", flush=True
        )
    if args.out:
        write_text(args.out, page(rows, args.macs, args.save, args.threads))
    sys.exit(any(row.outcome == FAILED for row in rows))


if __name__ == "__main__":
    main()
