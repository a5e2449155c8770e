"""Two networks timed whole in one runtime, until their ratio is known well enough."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from onebyone.errors import BudgetError
from onebyone.exporting.network import exported, network_of
from onebyone.exporting.targets import TARGETS
from onebyone.measurement.timing import Samples, interleave
from onebyone.pacing.graphs import EAGER
from onebyone.running import call
from onebyone.tree import evaluating

SECONDS, WIDEST = 2.0, 16.0  # for both networks together
SURE = 0.03  # half the width of the interval in which the ratio lies, as a part of it


@dataclass(frozen=True)
class Ratio:
    """tᵢ(after) / tᵢ(before) over interleaved rounds: the median, and how sure it is.

    `doubt` is 1.57 · IQR / √rounds, half the width of a 95 % interval around a median (McGill,
    Tukey and Larsen, "Variations of Box Plots", 1978), as a part of the median.
    """

    median: float
    doubt: float
    before_ms: float
    after_ms: float
    rounds: int
    notes: tuple[str, ...] = ()

    @property
    def sure(self) -> bool:
        """Whether it is known to three per cent."""
        return self.doubt <= SURE


def ratio_of(samples: Samples) -> Ratio:
    """What the rounds say about "after" to "before"."""
    found = samples.ratio("after", "before")
    doubt = 1.57 * (found.high - found.low) / samples.rounds**0.5 / found.median
    before, after = (samples.quartiles(n).median for n in ("before", "after"))
    return Ratio(found.median, doubt, before, after, samples.rounds, samples.notes)


class Stopwatch:
    """Times versions of one network beside the original, which is opened once."""

    def __init__(self, model: nn.Module, example: Tensor, runtime: str, threads: int) -> None:
        self.example, self.runtime, self.threads = example[:1].float().cpu(), runtime, threads
        self.original = self.opened(model)

    def opened(self, model: nn.Module) -> Callable[[], object]:
        """A call of the network in the runtime, on one image."""
        if self.runtime == EAGER:
            return self._eager(model)
        inputs = (self.example,)
        target = TARGETS[self.runtime]
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            path = Path(folder, target.file_name("float32"))
            target.write(network_of(exported(model, inputs), inputs), path)
            session = target.open(path, self.threads)
            session(inputs)
        return lambda: session(inputs)

    def _eager(self, model: nn.Module) -> Callable[[], object]:
        own = self.example.clone()

        def run() -> object:
            given = self.example.clone() if own._version else own  # it has written to its own
            with evaluating(model), torch.inference_mode():
                return call(model, given)

        return run

    def original_ms(self) -> float:
        """The original's own time, a median."""
        samples = interleave(
            {"before": self.original},
            threads=self.threads,
            seconds=SECONDS / 2,
            least=11,
            most=2000,
        )
        return samples.quartiles("before").median

    def ratio(self, model: nn.Module, seconds: float = SECONDS) -> Ratio:
        """The time of another version in parts of the original's; longer where the machine is noisy.

        Raises BudgetError where it cannot be told even so.
        """
        calls = {"before": self.original, "after": self.opened(model)}
        while True:
            samples = interleave(calls, threads=self.threads, seconds=seconds, least=11, most=2000)
            found = ratio_of(samples)
            if found.sure:
                return found
            if seconds >= WIDEST:
                raise BudgetError(
                    f"this machine is too noisy to decide on a budget of latency: after "
                    f"{found.rounds} rounds the lighter network takes {found.median:.2f} ± "
                    f"{found.doubt * found.median:.2f} of the original's time; end what else runs, or "
                    "give a budget of MACs"
                )
            seconds *= 2
