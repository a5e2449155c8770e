"""Fashion-MNIST from the Debian package dataset-fashion-mnist, normalized as the demo networks take it."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from onebyone.data import DEMO_PREPROCESS

FOLDER = Path("/usr/share/datasets/fashion-mnist")


def read_split(folder: Path, split: str) -> tuple[Tensor, Tensor]:
    """(N, 1, 28, 28) normalized images and their labels; split is `train` (60,000) or `t10k` (10,000)."""
    images = _read_idx(folder / f"{split}-images-idx3-ubyte.gz")
    labels = _read_idx(folder / f"{split}-labels-idx1-ubyte.gz")
    inputs = DEMO_PREPROCESS.normalize(torch.tensor(images)[:, None])
    return inputs, torch.tensor(labels).long()


def _read_idx(path: Path) -> np.ndarray:
    """An array of unsigned bytes from one of the gzipped IDX files."""
    raw = gzip.decompress(path.read_bytes())
    dims = [int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(raw[3])]
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * len(dims)).reshape(dims)
