"""What slimming costs: wall time in plain forward passes over the same images, and peak memory.

    python benchmarks/slim_cost.py                          # the built-in network, six at 224 px
    python benchmarks/slim_cost.py torchvision:vgg16 --images 64

Each network runs in a process of its own. A unit is the median of three forward passes over the
calibration images in batches of 32, without gradients, with the same number of threads; two of them
run before slimming and one after. Slimming holds 16 images more back to verify on; timing the result
is left out. Weights of torchvision networks are random: that changes no cost.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time

NETWORKS = (
    "demo", "torchvision:resnet18", "torchvision:resnet50", "torchvision:densenet121",
    "torchvision:mobilenet_v2", "torchvision:efficientnet_b0", "torchvision:mobilenet_v3_large",
)  # fmt: skip
STEPS = ("observe", "plan", "rewrite", "verify")
HELD_OUT = 16


def measure(spec: str, count: int, macs: float, memory: int, threads: int) -> dict[str, float]:
    """Seconds by step, the unit in seconds, and the process's peak memory in bytes."""
    import operators
    import torch

    import onebyone as obo

    operators.declare()
    torch.set_num_threads(threads)
    demo = spec.startswith("demo")
    loaded = obo.load(spec, weights=None if demo else "random")
    if demo:
        images = obo.open_images("demo").take(count + HELD_OUT).inputs
    else:
        shape = (count + HELD_OUT, *loaded.example.shape[1:])
        images = torch.randn(shape, generator=torch.Generator().manual_seed(0))

    def forward() -> float:
        began = time.perf_counter()
        with torch.no_grad():
            for part in images[:count].split(32):
                loaded.model(part)
        return time.perf_counter() - began

    # PyTorch imports hundreds of modules when it first counts: that is no part of slimming.
    obo.slim(loaded.model, images[:4], macs=macs, held_out=0, memory=memory, latency=False)
    forward()
    units = [forward(), forward()]
    began = time.perf_counter()
    slimmed = obo.slim(
        loaded.model, images, macs=macs, held_out=HELD_OUT, calibration=count, memory=memory,
        latency=False,
    )  # fmt: skip
    total = time.perf_counter() - began
    units.append(forward())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return slimmed.seconds | {"total": total, "unit": statistics.median(units), "peak": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    parser.add_argument("--images", type=int, help="by default 512 for demo, 128 for others")
    parser.add_argument("--macs", type=float, default=0.5)
    parser.add_argument("--memory", type=float, default=2.0, help="GiB")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        spec = args.networks[0]
        print(
            json.dumps(
                measure(spec, args.images, args.macs, int(args.memory * 2**30), args.threads)
            )
        )
        return
    print(f"{'network':24}{'unit s':>8}" + "".join(f"{s:>9}" for s in (*STEPS, "total", "peak")))
    for spec in args.networks:
        images = args.images or (512 if spec.startswith("demo") else 128)
        options = {
            "images": images,
            "macs": args.macs,
            "memory": args.memory,
            "threads": args.threads,
        }
        given = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        command = [sys.executable, __file__, spec, "--one", *given]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found = json.loads(done.stdout.splitlines()[-1])
        units = "".join(f"{found.get(s, 0.0) / found['unit']:9.2f}" for s in (*STEPS, "total"))
        print(f"{spec:24}{found['unit']:8.2f}{units}{found['peak'] / 2**30:6.2f}GiB", flush=True)


if __name__ == "__main__":
    main()
