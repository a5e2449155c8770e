"""What test_distributed.py runs in each process that torchrun starts: JOB OUT."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from test_recovery import QUICK, labeled, net

import onebyone as obo
from onebyone.distributed import World, together
from onebyone.plan_files import plan_to_json
from onebyone.recovery.shampoo import Shampoo
from onebyone.recovery.status import Status

BATCHED = {"batch_size": 16, "epochs": 2}


def statistics(out: Path) -> None:
    """What observe gives and the plan made from it."""
    model, data = net(), labeled(200)
    seen = obo.observe(model, data)
    plan = World.current().led(lambda: obo.plan(model, seen, obo.Budget(macs=0.5)))
    rank = World.current().rank
    torch.save(
        ({n: vars(s) for n, s in seen.layers.items()}, plan_to_json(plan)), out / f"{rank}.pt"
    )


def tuning(out: Path) -> None:
    """A fine-tuned network without BatchNorm, whose statistics differ between processes."""
    model = torch.nn.Sequential(*(m for m in net() if not isinstance(m, torch.nn.BatchNorm2d)))
    tuned = obo.fine_tune(model, labeled(96), held_out=labeled(33, 2), recipe=QUICK)
    rank = World.current().rank
    torch.save((tuned.model.state_dict(), [m.score for m in tuned.measured]), out / f"{rank}.pt")


def slimming(out: Path) -> None:
    """Slimming in steps."""
    slimmed = obo.slim(
        net(), labeled(160), macs=0.4, steps=2, finetune_epochs=1, recipe=QUICK, latency=False,
        calibration=64,
    )  # fmt: skip
    result = (plan_to_json(slimmed.plan), slimmed.model.state_dict(), slimmed.verification.after)
    torch.save(result, out / f"{World.current().rank}.pt")


def losing(out: Path) -> None:
    """The last process is gone in the second epoch."""

    def leave(status: Status) -> None:
        raise AssertionError("only the leading process shows progress")

    if World.current().rank == 1:
        step = Shampoo.step
        steps = [0]

        def die(self, *args, **kwargs):
            steps[0] += 1
            if steps[0] > 8:
                os._exit(7)
            return step(self, *args, **kwargs)

        Shampoo.step = die
    progress = leave if World.current().rank else None
    obo.fine_tune(
        net(), labeled(96), held_out=labeled(33, 2), recipe=QUICK, epochs=9,
        checkpoint=out / "c.safetensors", progress=progress,
    )  # fmt: skip


def undivided(out: Path) -> None:
    """A batch that two processes cannot share."""
    obo.fine_tune(net(), labeled(96), recipe=obo.Recipe(batch_size=15))


JOBS = {j.__name__: j for j in (statistics, tuning, slimming, losing, undivided)}

if __name__ == "__main__":
    torch.set_num_threads(1)
    with together():
        try:
            JOBS[sys.argv[1]](Path(sys.argv[2]))
        except obo.OneByOneError as error:
            Path(sys.argv[2], f"error-{World.current().rank}.txt").write_text(str(error))
            sys.exit(2)
