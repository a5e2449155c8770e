"""Train the networks that onebyone ships, and write its built-in set. Run again by anyone:

    apt-get install dataset-fashion-mnist
    python examples/train_demo.py --network vgg --seed 0 -o src/onebyone/demo
    python examples/train_demo.py --network resnet --seed 0 -o src/onebyone/demo
    python examples/train_demo.py --images -o src/onebyone/demo

Fashion-MNIST (Xiao, Rasul & Vollgraf 2017, MIT licence): 60,000 training images and 10,000 test
images, 28×28 grey. Training never sees a test image; accuracy is measured once, at the end, on all
10,000, after the weights were rounded to float16 as they are shipped.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from onebyone.demo.networks import NETWORKS

MEAN, STD = 0.2860, 0.3530  # of the 60,000 training images, on the scale 0 to 1
CALIBRATION, TEST = 1024, 5000


def read_idx(path: Path) -> np.ndarray:
    """An array of unsigned bytes from one of the gzipped IDX files."""
    raw = gzip.decompress(path.read_bytes())
    dims = [int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(raw[3])]
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * len(dims)).reshape(dims)


def read_split(data: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    images = read_idx(data / f"{split}-images-idx3-ubyte.gz")
    return images, read_idx(data / f"{split}-labels-idx1-ubyte.gz")


def normalise(images: np.ndarray) -> Tensor:
    """(N, 28, 28) bytes → (N, 1, 28, 28) normalised floats."""
    return (torch.tensor(images)[:, None].float() / 255 - MEAN) / STD


def augment(x: Tensor, generator: torch.Generator, erase: float) -> Tensor:
    """Shift by up to two pixels, mirror half of the images, blank an 8×8 square in some."""
    n, _, h, w = x.shape
    padded = F.pad(x, (2, 2, 2, 2), value=-MEAN / STD)
    dy, dx = torch.randint(0, 5, (2, n, 1, 1), generator=generator)
    rows = dy + torch.arange(h)[None, :, None]
    cols = dx + torch.arange(w)[None, None, :]
    mirrored = torch.rand(n, 1, 1, generator=generator) < 0.5
    cols = torch.where(mirrored, cols.flip(2), cols)
    out = padded[torch.arange(n)[:, None, None], 0, rows, cols][:, None]
    top, left = torch.randint(-4, 25, (2, n, 1, 1), generator=generator)
    y, z = torch.arange(h)[None, :, None], torch.arange(w)[None, None, :]
    hole = (y >= top) & (y < top + 8) & (z >= left) & (z < left + 8)
    hole &= torch.rand(n, 1, 1, generator=generator) < erase
    return out.masked_fill(hole[:, None], -MEAN / STD)


@torch.inference_mode()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    model.eval()
    hits = sum(
        (model(a).argmax(1) == b).sum().item()
        for a, b in zip(x.split(500), y.split(500), strict=True)
    )
    return hits / len(y)


@torch.no_grad()
def renormalize(model: nn.Module, x: Tensor, images: int = 4000) -> None:
    """Statistics of BatchNorm for averaged weights: their own average starts far away."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
    model.train()
    for part in x[:images].split(256):
        model(augment(part, generator, 0.0))


def train(args: argparse.Namespace, build: Callable[[], nn.Module]) -> None:
    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    images, labels = read_split(args.data, "train")
    x, y = normalise(images), torch.tensor(labels).long()
    model = build().to(memory_format=torch.channels_last)
    average = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.998), use_buffers=True
    )
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.SGD(
        [{"params": decayed, "weight_decay": 5e-4}, {"params": others, "weight_decay": 0.0}],
        lr=args.lr, momentum=0.9, nesterov=True,
    )  # fmt: skip
    steps = args.epochs * (len(x) // args.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, args.lr, total_steps=steps, pct_start=0.2, cycle_momentum=False
    )
    began = time.perf_counter()
    for epoch in range(1, args.epochs + 1):
        model.train()
        order = torch.randperm(len(x), generator=generator)
        total = 0.0
        for index in order[: len(x) // args.batch * args.batch].split(args.batch):
            batch = augment(x[index], generator, args.erase).contiguous(
                memory_format=torch.channels_last
            )
            with torch.autocast("cpu", torch.bfloat16, enabled=args.bfloat16):
                logits = model(batch)
            loss = F.cross_entropy(logits.float(), y[index], label_smoothing=args.smoothing)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            average.update_parameters(model)
            total += loss.item()
        mean = total / (len(x) // args.batch)
        print(
            f"epoch {epoch:3d}  loss {mean:.4f}  {time.perf_counter() - began:6.0f} s", flush=True
        )

    if args.renormalize:
        renormalize(average.module, x)
    state = {k: v.detach().contiguous() for k, v in average.module.state_dict().items()}
    state = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    model.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in state.items()})
    images, labels = read_split(args.data, "t10k")
    top1 = accuracy(model, normalise(images), torch.tensor(labels).long())
    top1_shipped = accuracy(model, normalise(images[:TEST]), torch.tensor(labels[:TEST]).long())
    print(
        f"top-1 on {len(images):,} test images: {top1:.2%}; on the {TEST:,} shipped: {top1_shipped:.2%}"
    )
    args.out.mkdir(parents=True, exist_ok=True)
    save_file(state, args.out / f"{args.network}.safetensors")
    record = {
        "command": " ".join(["python", *sys.argv]),
        "torch": torch.__version__.split("+")[0],
        "seed": args.seed, "epochs": args.epochs, "batch": args.batch, "lr": args.lr,
        "bfloat16": args.bfloat16, "seconds": round(time.perf_counter() - began),
        "training_images": len(x), "test_images": len(images),
        "top1": round(top1, 4), f"top1_first_{TEST}": round(top1_shipped, 4),
    }  # fmt: skip
    (args.out / f"{args.network}.training.json").write_text(json.dumps(record, indent=2) + "\n")


def write_images(args: argparse.Namespace) -> None:
    """The built-in set: training images without labels, test images with theirs, as bytes."""
    images, _ = read_split(args.data, "train")
    chosen = np.sort(
        np.random.default_rng(args.seed).choice(len(images), CALIBRATION, replace=False)
    )
    args.out.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(args.out / "calibration.npz", images=images[chosen][:, None])
    images, labels = read_split(args.data, "t10k")
    np.savez_compressed(args.out / "test.npz", images=images[:TEST][:, None], labels=labels[:TEST])


def options(networks: Iterable[str]) -> argparse.ArgumentParser:
    """The options of training, for one of these networks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--network", choices=sorted(networks))
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--lr", type=float, default=0.2)
    parser.add_argument("--erase", type=float, default=0.0, help="fraction of images with a hole")
    parser.add_argument("--smoothing", type=float, default=0.0, help="of the labels")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bfloat16", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--renormalize", action="store_true", help="after averaging few steps")
    parser.add_argument("-o", "--out", type=Path, required=True)
    return parser


def main() -> None:
    parser = options(NETWORKS)
    parser.add_argument("--images", action="store_true", help="write the built-in images only")
    args = parser.parse_args()
    if args.images:
        write_images(args)
    elif args.network:
        train(args, NETWORKS[args.network])
    else:
        parser.error("say what to make: --network vgg, --network resnet or --images")


if __name__ == "__main__":
    main()
