"""compare: what each way of building C×H×W → C′×H′×W′ costs, counted and timed, beside the direct one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import gcd, prod
from typing import Any

import torch
from torch import Tensor, nn

from onebyone import blocks
from onebyone.chains import Block, positive
from onebyone.comparison import Comparison, Refused, Variant, break_even
from onebyone.errors import ShapeError
from onebyone.measurement.counting import count
from onebyone.measurement.latency import Latency, time_models
from onebyone.measurement.timing import as_seconds
from onebyone.sources import source
from onebyone.tree import random_state
from onebyone.variants import KINDS, Asked, Kind
from onebyone.windows import AnyShape, Shape, Window, shape_of, shape_text

SECONDS = 4.0  # on the clock, for all variants together: half for inference, half for training
MOST_BYTES = 8 * 2**30  # that the timing may take, roughly
FLOAT = 4  # bytes
SCATTER = 0.5  # of the median between the quartiles, from which a note says so


def compare(
    input: AnyShape,
    output: AnyShape,
    kernel: int = 3,
    *,
    width: int | Sequence[int] | None = None,
    bias: bool = False,
    groups: int | None = None,
    latency: bool = True,
    training: bool = True,
    threads: int = 1,
    batch: int = 1,
    seconds: float = SECONDS,
) -> Comparison:
    """Build every variant of a k×k layer from input to output, count it and time it here.

    input, output: channels × height × width, as "100x20x20" or three numbers; stride and padding
    follow from them (`Window.between`). width: the channels at the narrow place of bottlenecks, fire
    and CP, or several; by default half of the smaller of C and C′. groups: by default the largest
    common divisor of C and C′ up to 4. latency: time inference and, if `training`, a training step
    (forward, sum, backward to the weights and to the input), all variants in turn, for about `seconds`
    in all. Activations and BatchNorm are left out. What cannot be built for these shapes stands in
    `refused` with the reason.

    Raises ShapeError for shapes, kernels, widths, groups, batches or threads that make no sense or do
    not fit one another.

    >>> compare("100x20x20", "40x20x20", 5, latency=False)["bottleneck_before"].params
    22000
    """
    start, end = _shape(input, "the input"), _shape(output, "the output")
    positive(batch, "the batch")
    positive(threads, "the number of threads")
    seconds = as_seconds(seconds)
    if not isinstance(bias, bool):
        raise ShapeError(f"bias={bias!r} does not fit: give True or False")
    window = Window.between(start[1:], end[1:], kernel)
    kernel = int(kernel)  # numpy's whole numbers too
    widths = _widths(width, start, end)
    shared = gcd(start[0], end[0])
    split = max(g for g in range(1, 5) if shared % g == 0) if groups is None else groups
    asked = Asked(start, end, kernel, widths[0], positive(split, "the number of groups"), bias)
    variants, refused, builds = _counted(asked, widths, chosen=groups is not None)
    notes: tuple[str, ...] = ()
    if latency:
        _check_room(variants, batch, start)
        timed = _timed(builds, start, training, {"threads": threads, "batch": batch}, seconds)
        variants = [replace(v, **times) for v, times in zip(variants, timed, strict=True)]
        notes = _timing_notes(variants)
    return Comparison(
        start, end, kernel, window, widths, bias, batch, break_even(start, end, kernel, bias=bias),
        tuple(variants), tuple(refused), notes,
    )  # fmt: skip


def _shape(given: AnyShape, what: str) -> Shape:
    """Channels, height and width; ShapeError also for what has no lengths at all."""
    if not isinstance(given, str | Sequence):
        raise ShapeError(
            f"{what} is given as {given!r}: channels × height × width are expected, as in 100x20x20 or "
            "(100, 20, 20)"
        )
    return shape_of(given, what)


def _widths(width: int | Sequence[int] | None, input: Shape, output: Shape) -> tuple[int, ...]:
    """Each width once, in the order given."""
    if width is None:
        return (max(1, min(input[0], output[0]) // 2),)
    given = tuple(width) if isinstance(width, Sequence) else (width,)
    if not given:
        raise ShapeError("no width is given: leave it out for the default, or give one or more")
    return tuple(dict.fromkeys(positive(w, "the width") for w in given))


def _counted(
    asked: Asked, widths: tuple[int, ...], chosen: bool
) -> tuple[list[Variant], list[Refused], list[Callable[[], Block]]]:
    """Every row for every width: counted, or refused; and what builds those that were counted."""
    variants: list[Variant] = []
    refused: list[Refused] = []
    builds: list[Callable[[], Block]] = []
    for name, kind in KINDS.items():
        for width in widths if kind.wide else (None,):
            one = asked if width is None else replace(asked, width=width)
            try:
                if name == "grouped" and not chosen and one.groups == 1:
                    raise ShapeError(
                        f"{one.input[0]} and {one.output[0]} channels have no common divisor up to 4"
                    )
                variants.append(_variant(name, kind, one, width, variants[0] if variants else None))
            except ShapeError as error:
                refused.append(Refused(name, kind.title, width, str(error)))
            else:
                builds.append(lambda kind=kind, one=one: kind.build(one))
    return variants, refused, builds


def _variant(
    name: str, kind: Kind, asked: Asked, width: int | None, direct: Variant | None
) -> Variant:
    """One block, built without memory and counted on one image."""
    with torch.device("meta"):
        block = kind.build(asked)
        with_bias = kind.build(replace(asked, bias=True))
    found = count(block, torch.empty(1, *asked.input, device="meta"))
    params = sum(p.numel() for p in with_bias.parameters())
    groups = asked.groups if isinstance(block, blocks.Grouped) else None
    variant = Variant(
        name, kind.title, kind.says, kind.paper, width, groups, block.output_shape, found.params, params,
        found.macs, found.activation_bytes, sum(o.bytes_read + o.bytes_written for o in found.operations),
        source(block), 1.0, 1.0, note=_note(block, asked),
    )  # fmt: skip
    if direct is None:
        return variant
    return replace(
        variant,
        params_ratio=found.params / direct.params,
        macs_ratio=found.macs / direct.macs,
    )


def _note(block: Block, asked: Asked) -> str:
    if block.output_shape != asked.output:
        kept = f"it keeps the {asked.input[0]} channels of its input"
        return f"{kept}, so its output is {shape_text(block.output_shape)}"
    return ""


def _check_room(variants: Sequence[Variant], batch: int, input: Shape) -> None:
    """Refuse to time what would fill the memory."""
    images = max(prod(input) * FLOAT + v.activation_bytes for v in variants)
    # A training step has the gradients of weights and activations too.
    needed = 2 * (images * batch + FLOAT * sum(v.params for v in variants))
    if needed > MOST_BYTES:
        raise ShapeError(
            f"timing these shapes takes about {needed / 2**30:.0f} GiB of memory: give a smaller batch "
            "or smaller shapes, or leave latency out (--no-latency): counting needs no memory"
        )


class _Inside(nn.Module):
    """A block as it stands inside of a network: its training step has the gradient of its input too."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x.detach().requires_grad_())


def _timed(
    builds: Sequence[Callable[[], Block]], input: Shape, training: bool, setting: dict[str, Any],
    seconds: float,
) -> list[dict[str, Any]]:  # fmt: skip
    """For each build the fields of `Variant` that a clock gives."""
    with random_state(0):
        made = {str(index): build() for index, build in enumerate(builds)}
        example = torch.randn(1, *input)
    share = seconds / 2 if training else seconds
    inferred = time_models(made, example, seconds=share, **setting)
    trained: dict[str, Latency] = {}
    if training:
        inside = {index: _Inside(block) for index, block in made.items()}
        trained = time_models(inside, example, training=True, seconds=share, **setting)
    return [_times(inferred, trained, index) for index in made]


def _times(inferred: dict[str, Latency], trained: dict[str, Latency], index: str) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for what, found in (("inference", inferred), ("training", trained)):
        if found:
            fields[what] = found[index]
            fields[f"{what}_ratio"] = found[index].median_ms / found["0"].median_ms
    return fields


def _timing_notes(variants: Sequence[Variant]) -> tuple[str, ...]:
    """What the clock had to say, and whether its times are worth comparing."""
    direct = variants[0]
    # Each of the two runs says in numbers of its own how busy the machine was: once is enough.
    said = next((t.notes for t in (direct.inference, direct.training) if t and t.notes), ())
    wide = []
    for what, found in (
        ("inference", [v.inference for v in variants if v.inference]),
        ("training", [v.training for v in variants if v.training]),
    ):
        number = sum(t.high_ms - t.low_ms > SCATTER * t.median_ms for t in found)
        wide += [f"{number} of {len(found)} blocks in {what}"] if number else []
    if not wide:
        return said
    return (
        *said,
        f"times scatter widely for {' and '.join(wide)} (their quartiles lie more than half of the "
        "median apart): repeat this on a quieter machine before you trust the ratios",
    )
