"""verify: the original and the lighter network side by side, counted, compared and timed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, sqrt

import torch
from torch import Tensor, nn

from onebyone.conv import ConvSpec
from onebyone.data import open_images
from onebyone.displaying import Displayed
from onebyone.errors import DataError, ModelError
from onebyone.measurement.counting import count
from onebyone.measurement.latency import Latency, time_models
from onebyone.running import are_scores, as_logits, call, float_outputs, suited
from onebyone.sampling import choose_positions, output_rows, positions_of
from onebyone.several import packed, taken_by
from onebyone.surveying import PLAIN
from onebyone.tree import (
    check_weights,
    draw_from,
    evaluating,
    hooked,
    modules_by_name,
    random_numbers,
    random_numbers_kept,
    random_state,
    tensor_state,
)  # fmt: skip

BATCH = 16  # images of the timed batch
COMPARED = 64  # images at once
LAYER_IMAGES = 128  # images on which the layers' errors are measured
LEAST_JUDGED = 16  # labeled images, to say that the original is right by chance only
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
    check_weights(model=model, lighter=lighter)
    images = None if data is None else open_images(data)
    if images is None and example is None:
        raise DataError("there is nothing to verify on: give images, or an example input")
    one = images.inputs[:1] if images is not None else example[:1]  # type: ignore[index]
    if images is not None:
        model, lighter = packed(model, images.packing), packed(lighter, images.packing)
    tell = progress or (lambda done: None)
    with evaluating(model), evaluating(lighter), random_state(0), torch.inference_mode():
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
        self.total_kl = 0.0
        self.errors: list[_Error] = []
        self.drew = self.values = False
        self.classes: int | None = None

    def add(self, inputs: Tensor, labels: Tensor | None) -> None:
        """One batch through both."""
        state = random_numbers()
        own = _outputs(self.networks[0], inputs)
        self.drew |= not torch.equal(state[0], torch.get_rng_state())
        draw_from(state)  # the lighter network draws the same numbers, where it draws any
        other = _outputs(self.networks[1], inputs)
        if not all(y.isfinite().all() for y in own):
            raise ModelError(
                "the original network's output has NaN or infinite values on the held-out images"
            )
        if not all(y.isfinite().all() for y in other):
            raise ModelError(
                "the lighter network's output has NaN or infinite values: give more calibration "
                "images, a larger budget, or a network in float32"
            )
        self.images += len(inputs)
        if [y.shape for y in own] != [y.shape for y in other]:
            rows = [(y.ndim, len(y)) for y in (own[0], other[0]) if y.ndim]
            if rows == [(2, len(inputs))] * 2 and len(inputs) > 1:  # classes, and not what is found
                raise ModelError(
                    f"the lighter network's output has shape {tuple(other[0].shape)} and the original's "
                    f"{tuple(own[0].shape)}: give the original that the network was made from"
                )
            self.unlike += len(inputs)
            return
        if not self.errors:
            axes = _image_axes(self.networks[0], inputs, own)
            self.errors = [_Error(axis) for axis in axes]
        for error, y, t in zip(self.errors, other, own, strict=False):
            error.add(y, t)
        before, after = own[0], other[0]
        if before.ndim == 2 and before.shape[1] > 1 and len(before) == len(inputs):
            self.values |= labels is None and not are_scores(before)
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
        """Why there is no error of the output, or what it is of; labels that are perhaps no labels."""
        notes = []
        if self.unlike:
            notes.append(
                "the error of the output is not known: the two networks return different numbers of "
                f"values for {self.unlike:,} of the {self.images:,} images, as detectors do where they "
                "find more or fewer things; compare them by their own metric"
            )
        elif len(found := self._found()) > 1:
            notes.append(
                f"the network returns {len(found)} tensors: the error of the output is the mean of theirs, "
                f"which are from {min(found):.2g} to {max(found):.2g}"
            )
        if self.values:
            notes.append(
                f"the {self.classes} numbers that the network returns for an image vary together, as "
                "values do (a box, a pose) and scores of classes that were trained do not: then the error "
                "of the output tells, and the classes and the divergence say nothing"
            )
        if self.drew:
            notes.append(
                "the network draws random numbers when it runs: both were compared on the same ones"
            )
        if self.classes and self.labeled >= LEAST_JUDGED:
            chance = 1 / self.classes
            spread = sqrt(chance * (1 - chance) / self.labeled)
            if self.right[0] / self.labeled <= chance + spread:
                notes.append(
                    f"the original is right on {self.right[0]:,} of {self.labeled:,} images, no more than "
                    "by chance: it is not trained, or the labels are not in its own order (folders of "
                    f"classes are numbered by their names from 0, the network has {self.classes:,} classes)"
                )
        return tuple(notes)

    def output_error(self) -> float | None:
        """Squared error relative to the variance of the original's output over the images."""
        found = [] if self.unlike else self._found()
        return sum(found) / len(found) if found else None

    def _found(self) -> list[float]:
        return [value for error in self.errors if (value := error.value) is not None]


class _Error:
    """Running sums of one output's error; `axis` is that of the images."""

    def __init__(self, axis: int) -> None:
        self.axis, self.rows = axis, 0
        self.gap = self.square = 0.0
        self.sum: Tensor | None = None
        self.even = True  # whether the images' outputs have one shape

    def add(self, given: Tensor, wanted: Tensor) -> None:
        """One batch of it."""
        if not wanted.numel():
            return
        self.gap += float((wanted - given).square().sum())
        self.square += float(wanted.square().sum())
        self.rows += wanted.shape[self.axis] if wanted.ndim else 1
        total = wanted.sum(self.axis) if wanted.ndim else wanted
        self.even &= self.sum is None or self.sum.shape == total.shape
        if self.even:
            self.sum = total if self.sum is None else self.sum + total

    @property
    def value(self) -> float | None:
        """None where there were no values."""
        if self.sum is None:
            return None
        mean = float(self.sum.square().sum()) / self.rows if self.even else self.square
        return relative_error(self.gap, self.square, mean)


def relative_error(gap: float, square: float, mean: float) -> float:
    """A squared error relative to the variance of the values it is of: their squares less their mean's.

    All three are sums over the same values. What is constant, as is one row alone, has no variance: the
    error is relative to its size then, or 1 where that is zero too and the values beside it are not.
    """
    variance = square - mean
    scale = variance if variance > 1e-9 * square else square
    return gap / (scale or gap) if gap else 0.0


def _outputs(model: nn.Module, inputs: Tensor) -> list[Tensor]:
    """The floating-point outputs, in float64; ModelError without any."""
    return [t.double().cpu() for t in float_outputs(call(model, suited(model, inputs)))]


def _image_axes(model: nn.Module, inputs: Tensor, outputs: list[Tensor]) -> list[int]:
    """The axis of each output that grows with the images: rarely another than the first.

    Sequences may come time first. Which axis it is is told from fewer images where it cannot be seen.
    """
    count = len(inputs)
    if count == 1:
        return [y.shape.index(1) if 1 in y.shape else 0 for y in outputs]
    if all(y.ndim and y.shape[0] == count and count not in y.shape[1:] for y in outputs):
        return [0] * len(outputs)
    try:
        with random_numbers_kept():
            fewer = _outputs(model, inputs[1:])
    except ModelError:  # it takes no such number of them
        return [0] * len(outputs)
    axes = []
    for y, less in zip(outputs, fewer, strict=False):
        pairs = enumerate(zip(y.shape, less.shape, strict=False))
        grows = [axis for axis, (n, m) in pairs if n > m] if y.ndim == less.ndim else []
        axes.append(grows[0] if len(grows) == 1 else 0)
    return axes + [0] * (len(outputs) - len(axes))


def _layer_errors(model: nn.Module, lighter: nn.Module, inputs: Tensor) -> tuple[LayerError, ...]:
    """The error of every plain layer at sampled positions, in the order of the calls."""
    own, other = modules_by_name(model), modules_by_name(lighter)
    names = [
        n for n, m in own.items()
        if type(m) in PLAIN and not isinstance(other.get(n), torch.jit.ScriptModule | None)
    ]  # fmt: skip
    kept: dict[tuple[str, int], tuple[Tensor, Tensor]] = {}
    sums: dict[str, list[Tensor]] = {}
    calls: Counter[str] = Counter()
    generator = torch.Generator().manual_seed(0)

    def take(name: str, after: bool):
        conv = ConvSpec.of(own[name])

        def hook(_: nn.Module, args: object, y: object) -> None:
            key = (name, calls[name])
            calls[name] += 1
            if not isinstance(y, Tensor) or y.ndim < 2 or not y.numel():
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
                state = random_numbers()
                for network in (model, lighter):
                    calls.clear()
                    draw_from(state)
                    call(network, suited(network, part))
    errors = []
    for name, (rows, gap, square, total) in sums.items():
        mean = total.square().sum() / rows
        errors.append(LayerError(name, relative_error(float(gap), float(square), float(mean))))
    return tuple(errors)


def _side(
    model: nn.Module, one: Tensor, accuracy: float | None, latency: tuple[Latency, ...]
) -> Side:
    unique = {(t.data_ptr(), t.shape, t.dtype): t for t in tensor_state(model).values()}
    size = sum(t.numel() * t.element_size() for t in unique.values())
    params = sum(p.numel() for p in model.parameters())
    return Side(count(model, suited(model, one)).macs, params, size, accuracy, latency)
