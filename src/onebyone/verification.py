"""verify: the original and the lighter network side by side, counted, compared and timed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor, nn

from onebyone.conv import ConvSpec
from onebyone.data import open_images
from onebyone.displaying import Displayed
from onebyone.errors import DataError, ModelError
from onebyone.measurement.counting import count
from onebyone.measurement.latency import Latency, time_models
from onebyone.running import as_logits, output_of, suited
from onebyone.sampling import choose_positions, output_rows, positions_of
from onebyone.several import packed, taken_by
from onebyone.surveying import PLAIN
from onebyone.tree import evaluating, hooked, modules_by_name

BATCH = 16  # images of the timed batch
COMPARED = 64  # images at once
LAYER_IMAGES = 128  # images on which the layers' errors are measured
ROWS = 4096  # sampled outputs of a layer for its error


@dataclass(frozen=True)
class Side:
    """One of the two networks: cost for one image, size of its weights, what was measured.

    `macs` is what `onebyone.measurement.counting` counts; `weight_bytes` adds up the
    tensors of the state dict, tied ones once; `accuracy` is top-1 on the held-out images, None where
    they have no labels; `latency` is empty where it was not measured.
    """

    macs: int
    params: int
    weight_bytes: int
    accuracy: float | None
    latency: tuple[Latency, ...]


@dataclass(frozen=True)
class LayerError:
    """Relative error of a layer's output inside the lighter network: E‖y − ŷ‖² / E‖y − E y‖²."""

    layer: str
    error: float


@dataclass(frozen=True)
class Verification(Displayed):
    """The original and the lighter network, compared on held-out images.

    `images` is how many held-out images there were (0: none). `agreement` is the fraction whose top-1
    class is the same, `kl` the mean Kullback–Leibler divergence of the lighter network's class
    probabilities from the original's in nats; both are None for outputs that are not class logits
    (N, classes). `output_error` is E‖f − f̂‖² / E‖f − E f‖², None without images. `inputs` says what
    a network of several inputs takes.
    """

    before: Side
    after: Side
    images: int
    agreement: float | None
    kl: float | None
    output_error: float | None
    layers: tuple[LayerError, ...]
    notes: tuple[str, ...] = ()
    inputs: str = ""


def verify(
    model: nn.Module,
    lighter: nn.Module,
    data: object = None,
    *,
    example: Tensor | None = None,
    latency: bool = True,
    progress: Callable[[float], None] | None = None,
) -> Verification:
    """Compare a network with its lighter version on images that slimming has not seen.

    data: anything that `open_images` takes, normalized as the network takes it; labels give
    accuracy. Without data, cost and latency alone are measured, on `example` (1, C, H, W).
    latency: time both, one image and a batch, on one thread, interleaved. Both networks come back as
    they were. Raises DataError where neither data nor example is given or a label is out of range,
    ModelError where a network fails or gives NaN.
    """
    images = None if data is None else open_images(data)
    if images is None and example is None:
        raise DataError("there is nothing to verify on: give images, or an example input")
    one = images.inputs[:1] if images is not None else example[:1]  # type: ignore[index]
    if images is not None:
        model, lighter = packed(model, images.packing), packed(lighter, images.packing)
    tell = progress or (lambda done: None)
    with evaluating(model), evaluating(lighter), torch.inference_mode():
        found = _Comparison(model, lighter)
        layers: tuple[LayerError, ...] = ()
        if images is not None:
            for index, (inputs, labels) in enumerate(images.batches(COMPARED)):
                found.add(inputs, labels)
                tell(0.8 * min(1.0, (index + 1) * COMPARED / len(images)))
            layers = _layer_errors(model, lighter, images.take(LAYER_IMAGES).inputs)
        times: tuple[list[Latency], list[Latency]] = ([], [])
        if latency:
            batch = one.expand(BATCH, *one.shape[1:]).contiguous()
            for inputs in (one, batch if images is None else images.inputs[:BATCH]):
                timed = time_models({"before": model, "after": lighter}, suited(model, inputs))
                for side, name in zip(times, timed, strict=True):
                    side.append(timed[name])
        sides = [
            _side(network, one, accuracy, tuple(timed))
            for network, accuracy, timed in zip(
                (model, lighter), found.accuracies(), times, strict=True
            )
        ]
    tell(1.0)
    return Verification(
        sides[0], sides[1], found.images, found.agreement(), found.divergence(),
        found.output_error(), layers, found.notes, taken_by(model),
    )  # fmt: skip


class _Comparison:
    """Running sums over batches of both networks' outputs."""

    def __init__(self, model: nn.Module, lighter: nn.Module) -> None:
        self.networks = (model, lighter)
        self.images = self.labeled = self.same = self.unlike = 0
        self.right = [0, 0]
        self.total_kl = self.gap = self.square = 0.0
        self.sum: Tensor | None = None
        self.classes: int | None = None

    def add(self, inputs: Tensor, labels: Tensor | None) -> None:
        """One batch through both."""
        before, after = (output_of(network, inputs).double().cpu() for network in self.networks)
        if not before.isfinite().all():
            raise ModelError(
                "the original network's output has NaN or infinite values on the held-out images"
            )
        if not after.isfinite().all():
            raise ModelError(
                "the lighter network's output has NaN or infinite values: give more calibration "
                "images, a larger budget, or a network in float32"
            )
        self.images += len(inputs)
        if before.shape != after.shape:
            self.unlike += len(inputs)
            return
        self.gap += float((before - after).square().sum())
        self.square += float(before.square().sum())
        total = before.sum(0)
        if self.sum is None or self.sum.shape == total.shape:
            self.sum = total if self.sum is None else self.sum + total
        if before.ndim == 2 and before.shape[1] > 1 and len(before) == len(inputs):
            self._classify(before, after, labels)

    def _classify(self, before: Tensor, after: Tensor, labels: Tensor | None) -> None:
        self.classes = before.shape[1]
        expected, given = (as_logits(y).log_softmax(1) for y in (before, after))
        self.total_kl += float((expected.exp() * (expected - given)).sum())
        self.same += int((before.argmax(1) == after.argmax(1)).sum())
        if labels is None:
            return
        if int(labels.max()) >= self.classes:
            raise DataError(
                f"a label is {int(labels.max())}, but the network has {self.classes} classes: labels "
                f"from 0 to {self.classes - 1} are expected, in the network's own order"
            )
        self.labeled += len(labels)
        for index, output in enumerate((before, after)):
            self.right[index] += int((output.argmax(1) == labels).sum())

    def accuracies(self) -> tuple[float | None, float | None]:
        """Top-1 before and after."""
        if not self.labeled:
            return None, None
        return self.right[0] / self.labeled, self.right[1] / self.labeled

    def agreement(self) -> float | None:
        """The fraction of images put into the same class."""
        return None if self.classes is None else self.same / self.images

    def divergence(self) -> float | None:
        """Mean KL(before ‖ after), nats."""
        return None if self.classes is None else max(self.total_kl / self.images, 0.0)

    @property
    def notes(self) -> tuple[str, ...]:
        """Why there is no error of the output."""
        if not self.unlike:
            return ()
        return (
            "the error of the output is not known: the two networks return different numbers of values "
            f"for {self.unlike:,} of the {self.images:,} images, as detectors do where they find more or "
            "fewer things; compare them by their own metric",
        )

    def output_error(self) -> float | None:
        """Squared error relative to the variance of the original's output over the images."""
        if self.sum is None or self.unlike or not self.sum.numel():
            return None
        variance = self.square - float(self.sum.square().sum()) / self.images
        # One image alone, or a constant output, has no variance: relative to its size then.
        scale = variance if variance > 1e-9 * self.square else self.square
        return self.gap / scale if scale else 0.0


def _layer_errors(model: nn.Module, lighter: nn.Module, inputs: Tensor) -> tuple[LayerError, ...]:
    """The error of every plain layer at sampled positions, in the order of the calls."""
    own, other = modules_by_name(model), modules_by_name(lighter)
    names = [n for n, m in own.items() if type(m) in PLAIN and n in other]
    kept: dict[tuple[str, int], tuple[Tensor, Tensor]] = {}
    sums: dict[str, list[Tensor]] = {}
    calls: Counter[str] = Counter()
    generator = torch.Generator().manual_seed(0)

    def take(name: str, after: bool):
        conv = ConvSpec.of(own[name])

        def hook(_: nn.Module, args: object, y: object) -> None:
            key = (name, calls[name])
            calls[name] += 1
            if not isinstance(y, Tensor) or y.ndim < 2:
                return
            if conv.kernel and y.ndim != len(conv.kernel) + 2:
                return
            if not after:
                wanted = ceil(ROWS / len(inputs))
                chosen = choose_positions(len(y), positions_of(conv, y), wanted, generator)
                kept[key] = (chosen, output_rows(conv, y, chosen).double())
                return
            if key not in kept:
                return
            chosen, rows = kept.pop(key)
            if y.shape[0] != len(chosen) or positions_of(conv, y) <= int(chosen.max()):
                return
            if y.shape[1 if conv.kernel else -1] != rows.shape[1]:  # a narrowed layer
                return
            gap = (rows - output_rows(conv, y, chosen)).square().sum()
            part = [torch.tensor(float(len(rows))), gap, rows.square().sum(), rows.sum(0)]
            before = sums.get(name)
            sums[name] = (
                part if before is None else [a + b for a, b in zip(before, part, strict=True)]
            )

        return hook

    first = [own[n].register_forward_hook(take(n, after=False)) for n in names]
    with hooked(first):
        second = [other[n].register_forward_hook(take(n, after=True)) for n in names]
        with hooked(second):
            for part in inputs.split(16):
                for network in (model, lighter):
                    calls.clear()
                    output_of(network, part)
    errors = []
    for name, (rows, gap, square, total) in sums.items():
        variance = float(square - total.square().sum() / rows)
        scale = variance if variance > 1e-9 * float(square) else float(square)
        errors.append(LayerError(name, float(gap) / scale if scale else 0.0))
    return tuple(errors)


def _side(
    model: nn.Module, one: Tensor, accuracy: float | None, latency: tuple[Latency, ...]
) -> Side:
    unique = {(t.data_ptr(), t.shape, t.dtype): t for t in model.state_dict().values()}
    size = sum(t.numel() * t.element_size() for t in unique.values())
    params = sum(p.numel() for p in model.parameters())
    return Side(count(model, suited(model, one)).macs, params, size, accuracy, latency)
