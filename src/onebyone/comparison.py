"""What comparing says: every way to build a layer with its cost, and where a bottleneck breaks even."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import ceil, prod

from onebyone.displaying import Displayed
from onebyone.measurement.latency import Latency
from onebyone.windows import Shape, Window


@dataclass(frozen=True)
class Variant:
    """One way to build the layer, counted for one image and timed for the whole batch.

    `params` are those of the block as it was asked for, with biases or without, `params_with_bias`
    those with. `activation_bytes` is what its operators write to new memory in float32.
    `intensity_macs_per_byte` is MACs over the bytes that they read and write, weights included. The
    ratios are this over direct, those of latencies of medians; None where nothing was timed. `code`
    builds the block with PyTorch alone, `note` is for people.
    """

    name: str
    title: str
    says: str
    paper: str
    width: int | None
    groups: int | None
    output_shape: Shape
    params: int
    params_with_bias: int
    macs: int
    activation_bytes: int
    bytes_moved: int
    code: str
    params_ratio: float
    macs_ratio: float
    inference: Latency | None = None
    training: Latency | None = None
    inference_ratio: float | None = None
    training_ratio: float | None = None
    note: str = ""

    @property
    def intensity_macs_per_byte(self) -> float:
        """MACs for each byte read or written; 0 where there are none."""
        return self.macs / self.bytes_moved if self.bytes_moved else 0.0


@dataclass(frozen=True)
class Refused:
    """A variant that cannot be built for these shapes, and why."""

    name: str
    title: str
    width: int | None
    reason: str


@dataclass(frozen=True)
class BreakEven:
    """The width at which the bottleneck before costs what direct does.

    macs: w·(C·P + k²·C′·P′) = k²·C·C′·P′; params: w·(C + k²·C′) = k²·C·C′, with biases
    w·(C + 1 + k²·C′), as both have those of the output. Both exact.
    """

    macs: Fraction
    params: Fraction

    @property
    def most_macs(self) -> int:
        """The largest width with fewer MACs than direct; 0 where there is none."""
        return ceil(self.macs) - 1

    @property
    def most_params(self) -> int:
        """The largest width with fewer parameters than direct; 0 where there is none."""
        return ceil(self.params) - 1


@dataclass(frozen=True)
class Comparison(Displayed):
    """All variants in the order of the table, direct first, and those that cannot be built."""

    input_shape: Shape
    output_shape: Shape
    kernel: int
    window: Window
    widths: tuple[int, ...]
    bias: bool
    batch: int
    break_even: BreakEven
    variants: tuple[Variant, ...]
    refused: tuple[Refused, ...]
    notes: tuple[str, ...] = ()

    @property
    def direct(self) -> Variant:
        """The k×k convolution that the others are compared with."""
        return self.variants[0]

    def __getitem__(self, name: str) -> Variant:
        """The first variant of this name; KeyError with the names that there are."""
        for variant in self.variants:
            if variant.name == name:
                return variant
        names = ", ".join(dict.fromkeys(v.name for v in self.variants))
        raise KeyError(f"no variant is called {name!r}: there are {names}")


def break_even(input: Shape, output: Shape, kernel: int, *, bias: bool = False) -> BreakEven:
    """The widths at which MACs and parameters of the bottleneck before are those of direct."""
    (c_in, *size_in), (c_out, *size_out) = input, output
    before, after = prod(size_in), prod(size_out)
    params = kernel**2 * c_in * c_out
    return BreakEven(
        Fraction(params * after, c_in * before + kernel**2 * c_out * after),
        Fraction(params, c_in + bias + kernel**2 * c_out),
    )
