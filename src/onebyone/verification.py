"""Before and after: what the rewrite saved, and what it cost."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Latency:
    """Time of one forward pass, with the conditions it was measured under."""

    batch: int
    median_ms: float
    low_ms: float   # first quartile
    high_ms: float  # third quartile
    runs: int
    warmup: int
    threads: int
    dtype: str
    runtime: str = "PyTorch eager"


@dataclass(frozen=True)
class Side:
    """One of the two networks: cost for one image, size on disk, what was measured."""

    macs: int
    params: int
    weight_bytes: int                 # of the state dict, as stored by safetensors
    accuracy: float | None            # top-1 on the held-out images, where they have labels
    latency: tuple[Latency, ...]      # empty where it was not measured


@dataclass(frozen=True)
class LayerError:
    """Relative error of a layer's output inside the lighter network: E‖y − ŷ‖² / E‖y − E y‖²."""

    layer: str
    error: float


@dataclass(frozen=True)
class Verification:
    """The original and the lighter network, compared on held-out images.

    `images` is how many held-out images there were (0: none); `agreement` the fraction whose top-1
    class is the same; `kl` the mean Kullback–Leibler divergence of the lighter network's class
    probabilities from the original's in nats; for outputs that are not class logits both are None
    and `output_error` alone tells: E‖f − f̂‖² / E‖f − E f‖².
    """

    before: Side
    after: Side
    images: int
    agreement: float | None
    kl: float | None
    output_error: float | None
    layers: tuple[LayerError, ...]
    notes: tuple[str, ...] = ()
