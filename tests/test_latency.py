"""Timing: the order of the rounds, what the samples say, and that nothing is left behind.

A clock that only the tests move stands for the real one, so no test depends on the machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import TRAPS
from test_tree import check_untouched
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from onebyone.errors import DataError, ModelError, OneByOneError
from onebyone.measurement import layers_alone, timing
from onebyone.measurement.latency import Latency, time_models
from onebyone.measurement.layer_latency import LayerLatencies, time_layers
from onebyone.measurement.spans import own_times
from onebyone.measurement.timing import (
    Quartiles,
    Samples,
    busy_cores,
    busy_notes,
    cpu_threads,
    interleave,
    quartiles,
)

# PyTorch says so once in a process, for padding="same" with an even kernel.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")


class FakeClock:
    """Stands still but for `pass_ms`; copies of what holds it hold the same one."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds

    def pass_ms(self, milliseconds: float) -> None:
        self.seconds += milliseconds / 1000

    def __deepcopy__(self, memo: object) -> FakeClock:
        return self


class Fault(Exception):
    """What the networks here raise."""


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """No look at what else runs, which takes a while."""
    monkeypatch.setattr(timing, "_busy_cores_now", lambda seconds: 0.0)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def taking(clock: FakeClock, *milliseconds: float) -> Callable[[], None]:
    """Takes so long at its calls, one after the other, the last one for ever."""
    left = list(milliseconds)
    return lambda: clock.pass_ms(left.pop(0) if len(left) > 1 else left[0])


class TestInterleaving:
    def test_each_round_has_each_candidate_and_another_begins(self, clock: FakeClock) -> None:
        ran: list[str] = []
        candidates = {name: lambda name=name: ran.append(name) for name in "abc"}
        samples = interleave(candidates, seconds=0, least=4, warmup=2, clock=clock)
        assert "".join(ran) == "abcabc" + "abc" + "bca" + "cab" + "abc"
        assert (samples.rounds, samples.warmup) == (4, 2)

    def test_samples_are_of_the_rounds_after_the_warm_up(self, clock: FakeClock) -> None:
        run = {"a": taking(clock, 90, 80, 1, 2, 3), "b": taking(clock, 70, 60, 10, 30, 20)}
        samples = interleave(run, seconds=0, least=3, warmup=2, clock=clock)
        assert samples.milliseconds["a"] == pytest.approx((1, 2, 3))
        assert samples.milliseconds["b"] == pytest.approx((10, 30, 20))
        assert samples.quartiles("b").median == pytest.approx(20)

    @pytest.mark.parametrize(
        ("seconds", "least", "most", "rounds"), [(0, 5, 9, 5), (1, 5, 99, 10), (1, 5, 7, 7)]
    )
    def test_rounds_end_by_time_but_not_too_early(
        self, clock: FakeClock, seconds: float, least: int, most: int, rounds: int
    ) -> None:
        run = {"a": taking(clock, 60), "b": taking(clock, 40)}
        samples = interleave(run, seconds=seconds - 1e-6, least=least, most=most, clock=clock)
        assert samples.rounds == rounds

    def test_what_runs_around_a_call_is_outside_the_clock(self, clock: FakeClock) -> None:
        class Slow:
            def __del__(self) -> None:
                clock.pass_ms(500)

        def make() -> Slow:
            clock.pass_ms(1)
            told.append("run")
            return Slow()

        told: list[str] = []
        samples = interleave(
            {"a": make}, seconds=0, least=2, warmup=1, clock=clock,
            before=lambda name: (told.append(f"before {name}"), clock.pass_ms(70)),
            after=lambda name: (told.append(f"after {name}"), clock.pass_ms(90)),
        )  # fmt: skip
        assert samples.milliseconds["a"] == pytest.approx((1, 1))
        assert told == ["before a", "run", "after a"] * 3

    def test_an_accelerator_is_waited_for_on_both_sides(
        self, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        told: list[object] = []
        monkeypatch.setattr(
            torch.accelerator, "synchronize", lambda d: (told.append(d), clock.pass_ms(3))
        )
        device = torch.device("cuda", 1)
        run = {"a": lambda: told.append("run")}
        samples = interleave(run, device=device, seconds=0, least=1, warmup=0, clock=clock)
        assert told == [device, "run", device]
        assert samples.milliseconds["a"] == pytest.approx((3,))
        told.clear()
        interleave(run, device=torch.device("cpu"), seconds=0, least=1, warmup=0, clock=clock)
        assert told == ["run"]

    @pytest.mark.parametrize("fails", [False, True])
    def test_threads_are_set_and_given_back(self, clock: FakeClock, fails: bool) -> None:
        seen: list[int] = []

        def run() -> None:
            seen.append(torch.get_num_threads())
            if fails:
                raise Fault

        threads = torch.get_num_threads()
        with pytest.raises(Fault) if fails else nullcontext():
            interleave({"a": run}, threads=threads + 1, seconds=0, clock=clock)
        assert set(seen) == {threads + 1}
        assert torch.get_num_threads() == threads

    def test_refusals(self) -> None:
        with pytest.raises(OneByOneError, match="0 candidates"):
            interleave({})
        with pytest.raises(OneByOneError, match="0 threads"):
            interleave({"a": int}, threads=0)
        with pytest.raises(OneByOneError, match="0 rounds"):
            interleave({"a": int}, least=0)
        with pytest.raises(OneByOneError, match="-1 threads"), cpu_threads(-1):
            pass


class TestSamples:
    @given(st.lists(st.floats(0, 1e6), min_size=1, max_size=40))
    def test_quartiles_are_those_of_numpy(self, values: list[float]) -> None:
        found = quartiles(values)
        expected = np.percentile(values, [25, 50, 75])
        assert [found.low, found.median, found.high] == pytest.approx(list(expected))

    def test_ratios_are_of_the_same_round(self) -> None:
        """One round in three is slow for both: the times scatter, the ratios do not."""
        samples = Samples({"a": (1.0, 9.0, 1.0, 5.0), "b": (2.0, 18.0, 2.0, 10.0)}, 0, 1)
        assert samples.ratio("a", to="b") == Quartiles(0.5, 0.5, 0.5)
        assert samples.ratio("b", to="a").median == 2
        mixed = Samples({"a": (1.0, 2.0, 3.0), "b": (1.0, 1.0, 1.0)}, 0, 1)
        assert mixed.ratio("a", to="b") == Quartiles(1.5, 2.0, 2.5)
        still = Samples({"a": (1.0,), "b": (0.0,)}, 0, 1)
        assert still.ratio("a", to="b").median == float("inf")


class TestLoad:
    EARLIER = "cpu  100 10 50 1000 40 5 5 0 7 7\ncpu0 1\ncpu1 1\nintr 9\n"

    def test_cores_at_work(self) -> None:
        """100 ticks of two cores: 20 user, 10 system, 10 stolen; 50 idle and 10 waiting."""
        later = "cpu  120 10 60 1050 50 5 5 10 99 99\ncpu0 1\ncpu1 1\nintr 9\n"
        assert busy_cores(self.EARLIER, later) == pytest.approx(2 * 40 / 100)
        assert busy_cores(self.EARLIER, self.EARLIER) == 0

    @pytest.mark.parametrize(("cores", "notes"), [(None, 0), (0.2, 0), (1.24, 1)])
    def test_a_busy_machine_is_noted(
        self, cores: float | None, notes: int, monkeypatch: pytest.MonkeyPatch, clock: FakeClock
    ) -> None:
        monkeypatch.setattr(timing, "_busy_cores_now", lambda seconds: cores)
        said = interleave({"a": int}, seconds=0, clock=clock).notes
        assert len(said) == notes
        assert not notes or "other work kept 1.2 of" in said[0]
        model = nn.Linear(1, 1)
        assert time_models({"a": model}, torch.ones(1, 1), seconds=0)["a"].notes == said

    def test_of_this_machine(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.undo()
        cores = timing._busy_cores_now(0.02)
        assert cores is None or cores >= 0

    def test_where_it_cannot_be_seen(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.undo()

        class Missing:
            def read_text(self, encoding: str) -> str:
                raise FileNotFoundError

        monkeypatch.setattr(timing, "Path", lambda name: Missing())
        monkeypatch.setattr(timing.os, "getloadavg", lambda: (3.0, 0.0, 0.0))
        assert "other work kept 3.0 of" in busy_notes(0)[0]
        monkeypatch.delattr(timing.os, "getloadavg")
        assert busy_notes(0) == ()


SEEN: list[dict[str, Any]] = []


@pytest.fixture(autouse=True)
def nothing_seen() -> Iterator[None]:
    SEEN.clear()
    yield
    SEEN.clear()


class Witness(nn.Module):
    """Writes down under which conditions it runs; its time passes on the clock of the test."""

    def __init__(self, clock: FakeClock, milliseconds: float = 4, name: str = "") -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3)
        self.norm = nn.BatchNorm2d(3)
        self.clock, self.milliseconds, self.name = clock, milliseconds, name

    def forward(self, x: Tensor, indices: Tensor | None = None) -> dict[str, Tensor | None]:
        self.clock.pass_ms(self.milliseconds)
        SEEN.append({
            "name": self.name, "training": self.training and self.norm.training, "x": x.clone(),
            "channels_last": x.is_contiguous(memory_format=torch.channels_last)
            and self.conv.weight.is_contiguous(memory_format=torch.channels_last),
            "dtypes": (x.dtype, self.conv.weight.dtype), "indices": indices,
            "inference": torch.is_inference_mode_enabled(), "grad": torch.is_grad_enabled(),
            "threads": torch.get_num_threads(),
            "gradients": any(p.grad is not None for p in self.parameters()),
        })  # fmt: skip
        y = self.norm(self.conv(x))
        if y.requires_grad:
            y.register_hook(lambda g: SEEN.append({"backward of": self.name, "gradient": g}))
        return {"y": y, "indices": indices}


def image(n: int = 1) -> Tensor:
    return torch.randn(n, 2, 8, 8, generator=torch.Generator().manual_seed(0))


class TestModels:
    def test_inference(self, clock: FakeClock) -> None:
        models = {"a": Witness(clock, 4, "a"), "b": Witness(clock, 6, "b")}
        found = time_models(models, image(), seconds=0, clock=clock)
        assert [s["name"] for s in SEEN] == list("abab" + "abbaabbaab")
        for seen in SEEN:
            assert (seen["training"], seen["inference"], seen["grad"]) == (False, True, False)
        assert found["a"] == Latency(
            1, pytest.approx(4), pytest.approx(4), pytest.approx(4), 5, 2, 1, "float32", "cpu",
            "PyTorch eager", "inference", False, (),
        )  # fmt: skip
        assert found["b"].median_ms == pytest.approx(6)

    def test_training_step(self, clock: FakeClock) -> None:
        """Forward and backward, on all outputs, each step with no gradients from the one before."""
        model = Witness(clock).eval()
        found = time_models({"a": model}, image(), training=True, seconds=0, clock=clock)["a"]
        assert found.mode == "training step"
        forward, backward = SEEN[::2], SEEN[1::2]
        assert len(forward) == len(backward) == 7
        for seen in forward:
            assert (seen["training"], seen["inference"], seen["grad"]) == (True, False, True)
            assert not seen["gradients"]
        for seen in backward:
            torch.testing.assert_close(seen["gradient"], torch.ones(1, 3, 6, 6))

    def test_all_floating_outputs_take_part(self) -> None:
        class Outputs(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.first, self.second = nn.Linear(2, 3), nn.Linear(2, 3)

            def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
                outputs = self.first(x), self.second(x)
                for index, output in enumerate(outputs):
                    output.register_hook(lambda g, index=index: SEEN.append({"of": index, "is": g}))
                return outputs[0], [outputs[1]], outputs[0].argmax(1)

        time_models({"a": Outputs()}, torch.ones(5, 2), training=True, seconds=0)
        assert sorted(seen["of"] for seen in SEEN) == [0] * 7 + [1] * 7
        for seen in SEEN:
            torch.testing.assert_close(seen["is"], torch.ones(5, 3))

    def test_batch(self, clock: FakeClock) -> None:
        x, indices, shift = image(3), torch.tensor([4, 5, 6]), torch.ones(2)
        found = time_models({"a": Witness(clock)}, (x, indices), batch=7, seconds=0)["a"]
        assert found.batch == 7
        torch.testing.assert_close(SEEN[0]["x"], x[[0, 1, 2, 0, 1, 2, 0]], rtol=0, atol=0)
        assert SEEN[0]["indices"].tolist() == [4, 5, 6, 4, 5, 6, 4]
        SEEN.clear()
        time_models({"a": Witness(clock)}, (x, shift), batch=2, seconds=0)
        torch.testing.assert_close(SEEN[0]["x"], x[:2], rtol=0, atol=0)
        assert SEEN[0]["indices"].tolist() == [1, 1]
        with pytest.raises(DataError, match="a batch of 0"):
            time_models({"a": Witness(clock)}, x, batch=0)

    def test_dtype(self, clock: FakeClock) -> None:
        model, indices = Witness(clock), torch.tensor([1])
        found = time_models({"a": model}, (image(), indices), dtype=torch.bfloat16, seconds=0)["a"]
        assert found.dtype == "bfloat16"
        assert SEEN[0]["dtypes"] == (torch.bfloat16, torch.bfloat16)
        assert SEEN[0]["indices"].dtype == torch.int64
        assert model.conv.weight.dtype == torch.float32
        SEEN.clear()
        assert time_models({"a": model.double()}, image(), seconds=0)["a"].dtype == "float64"
        assert SEEN[0]["dtypes"] == (torch.float64, torch.float64)

    @pytest.mark.parametrize("training", [False, True])
    def test_channels_last(self, clock: FakeClock, training: bool) -> None:
        model = Witness(clock)
        options: dict[str, Any] = {"training": training, "seconds": 0}
        assert not time_models({"a": model}, image(), **options)["a"].channels_last
        assert not any(s["channels_last"] for s in SEEN if "x" in s)
        SEEN.clear()
        assert time_models({"a": model}, image(), channels_last=True, **options)["a"].channels_last
        assert all(s["channels_last"] for s in SEEN if "x" in s)
        assert model.conv.weight.is_contiguous()
        three = nn.Conv3d(2, 3, 2)
        time_models({"a": three}, torch.ones(1, 2, 4, 4, 4), channels_last=True, seconds=0)

    def test_threads(self, clock: FakeClock) -> None:
        threads = torch.get_num_threads()
        found = time_models({"a": Witness(clock)}, image(), threads=3, seconds=0)["a"]
        assert found.threads == 3
        assert {s["threads"] for s in SEEN} == {3}
        assert torch.get_num_threads() == threads
        with pytest.raises(OneByOneError, match="0 threads"):
            time_models({"a": Witness(clock)}, image(), threads=0)

    def test_a_network_without_parameters(self) -> None:
        for dtype in (None, torch.float64):
            found = time_models({"a": nn.ReLU()}, torch.ones(2, 3), dtype=dtype, seconds=0)["a"]
            assert (found.dtype, found.batch) == ("float64" if dtype else "float32", 2)

    @pytest.mark.parametrize(
        ("model", "options", "message"),
        [
            (lambda: nn.Conv2d(3, 4, 3), {}, "fails on an input of shape 1×2×8×8"),
            (lambda: nn.Conv2d(2, 4, 3, device="meta"), {}, "meta device"),
            (lambda: nn.LazyConv2d(4, 3), {}, "'weight' has no shape yet"),
            (lambda: nn.Conv2d(2, 4, 3).requires_grad_(False), {"training": True}, "no output"),
            (lambda: nn.Conv2d(2, 4, 3), {"device": "moon"}, "brought to moon"),
            (lambda: nn.Conv2d(2, 4, 3), {"device": "meta"}, "meta device"),
            (lambda: Backfires(), {"training": True}, "backward pass fails"),
        ],
    )
    def test_refusals(
        self, model: Callable[[], nn.Module], options: dict[str, Any], message: str
    ) -> None:
        for time in (lambda m: time_models({"a": m}, image(), seconds=0, **options),
                     lambda m: time_layers(m, image(), seconds=0, **options)):  # fmt: skip
            made = model()
            with pytest.raises(ModelError, match=message):
                time(made)
        with pytest.raises(OneByOneError, match="0 candidates"):
            time_models({}, image())


class _Backfire(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        raise Fault


class Backfires(nn.Module):
    """Fails in its backward pass only."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return _Backfire.apply(self.conv(x))


class TestCompiled:
    @pytest.fixture
    def without_generated_code(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """torch.compile traces and guards as ever, and then runs the graph with PyTorch's kernels."""
        real = torch.compile
        monkeypatch.setattr(
            torch,
            "compile",
            lambda model, dynamic, **_: real(model, dynamic=dynamic, backend="eager"),
        )

    @pytest.mark.parametrize("training", [False, True])
    def test_every_network_is_compiled(self, training: bool, without_generated_code: None) -> None:
        """Networks of one class share the code that is compiled; 8 are torch.compile's limit."""
        models = {str(n): nn.Sequential(nn.Linear(4, n), nn.ReLU()) for n in range(1, 11)}
        before = torch._dynamo.utils.counters["frames"]["ok"]
        found = time_models(models, torch.ones(2, 4), compiled=True, training=training, seconds=0)
        assert torch._dynamo.utils.counters["frames"]["ok"] - before >= len(models)
        for timed in found.values():
            assert (timed.runtime, timed.runs) == ("torch.compile", 5)
            assert any("freezing" in note for note in timed.notes) != training

    def test_the_models_stay_plain(self, without_generated_code: None) -> None:
        model = nn.Sequential(nn.Linear(4, 4)).train()
        check_untouched(
            model, lambda m: time_models({"a": m}, torch.ones(2, 4), compiled=True, seconds=0)
        )

    def test_what_was_compiled_before_is_timed_as_asked(self) -> None:
        wrapped: Any = torch.compile(nn.Linear(2, 2), backend="eager")
        found = time_models({"a": wrapped}, torch.ones(1, 2), seconds=0)["a"]
        assert found.runtime == "PyTorch eager"
        assert list(time_layers(wrapped, torch.ones(1, 2), seconds=0).layers) == [""]

    def test_a_network_that_cannot_be_compiled(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fails(*args: Any) -> Any:
            raise Fault("no compiler")

        real = torch.compile
        monkeypatch.setattr(torch, "compile", lambda model, **_: real(model, backend=fails))
        with pytest.raises(ModelError, match=r"cannot compile the network here .*no compiler"):
            time_models({"a": nn.Linear(3, 5)}, torch.ones(2, 3), compiled=True)


class FailsLate(nn.Module):
    """Works for some passes, then raises; its BatchNorm and its dropout leave traces in training."""

    def __init__(self, passes: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Dropout(0.5))
        self.passes = passes

    def forward(self, x: Tensor) -> Tensor:
        SEEN.append({})
        y = self.inner(x) + torch.rand(())
        if len(SEEN) > self.passes:
            raise Fault
        return y


OPTIONS: list[dict[str, Any]] = [
    {},
    {"training": True},
    {"channels_last": True, "dtype": torch.float64},
]
TIMERS: dict[str, Callable[..., object]] = {
    "whole": lambda m, *inputs, **options: time_models({"a": m}, inputs, seconds=0, **options),
    "layers": lambda m, *inputs, **options: time_layers(m, inputs, seconds=0, **options),
}


class TestNoTrace:
    @pytest.mark.parametrize("options", OPTIONS, ids=str)
    @pytest.mark.parametrize("timer", TIMERS)
    @pytest.mark.parametrize("passes", [0, 1, 4, 6, 1000])
    def test_a_network_that_raises(self, timer: str, passes: int, options: dict[str, Any]) -> None:
        model = FailsLate(1).train()
        model.inner[1].eval()
        model(image()).sum().backward()
        model.passes = passes
        model.inner[0].weight.requires_grad_(False)
        SEEN.clear()
        with pytest.raises(ModelError) if passes < 1000 else nullcontext():
            check_untouched(model, lambda m: TIMERS[timer](m, image(2), **options))
        assert len(SEEN) == passes + 1 or passes == 1000

    @pytest.mark.parametrize("training", [False, True])
    @pytest.mark.parametrize("timer", TIMERS)
    @pytest.mark.parametrize("name", TRAPS)
    def test_traps(self, name: str, timer: str, training: bool) -> None:
        """Every network is timed, or refused with a reason, and comes back as it was."""
        trap = TRAPS[name]
        fits = name not in ("two inputs",) and not (
            training and name in ("cannot be copied", "no layer")
        )
        with nullcontext() if fits else pytest.raises(ModelError):
            check_untouched(
                trap.model().train(), lambda m: TIMERS[timer](m, trap.images(2), training=training)
            )

    def test_the_inputs(self) -> None:
        x = image()
        before = x.clone()
        for timer in TIMERS.values():
            timer(nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(inplace=True)), x, training=True)
            timer(nn.Sequential(nn.Flatten(), nn.Linear(128, 2)), x)
        assert torch.equal(x, before)

    def test_inside_inference_mode(self) -> None:
        """Inputs and weights made there cannot be trained on; copies can."""
        model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3))
        with torch.inference_mode():
            x = image() + 1
            for timer in TIMERS.values():
                timer(model, x, training=True)
                timer(model, x)


class _Passing(torch.autograd.Function):
    """The identity; time passes forward and backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, clock: FakeClock, forward: float, backward: float) -> Tensor:
        ctx.clock, ctx.milliseconds = clock, backward
        clock.pass_ms(forward)
        return x * 1

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        ctx.clock.pass_ms(ctx.milliseconds)
        return gradients[0], None, None, None


class Takes(nn.Module):
    """A layer with one weight that takes so long forward and backward."""

    def __init__(self, clock: FakeClock, forward: float, backward: float = 0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.clock, self.times = clock, (forward, backward)

    def forward(self, x: Tensor) -> Tensor:
        return _Passing.apply(x * self.weight, self.clock, *self.times)


class Minds(nn.Module):
    """Takes longer with hooks, or without."""

    def __init__(self, clock: FakeClock, hooked: float, plain: float) -> None:
        super().__init__()
        self.layer = Takes(clock, 10)
        self.clock, self.times = clock, (plain, hooked)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x)
        self.clock.pass_ms(self.times[bool(self._forward_hooks)])
        return x


class Block(nn.Module):
    """Two layers, one of them run three times, and something of its own between them."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__()
        self.clock = clock
        self.first, self.thrice = Takes(clock, 2, 3), Takes(clock, 5, 7)
        self.spare = nn.Linear(1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for _ in range(3):
            x = F.relu(self.thrice(x), inplace=True)
        return _Passing.apply(x, self.clock, 11, 13)


def net(clock: FakeClock) -> nn.Sequential:
    return nn.Sequential(nn.Sequential(Takes(clock, 1, 4), Block(clock)), nn.ReLU(inplace=True))


class TestLayers:
    def test_inference(self, clock: FakeClock) -> None:
        found = time_layers(net(clock), torch.ones(2, 3), seconds=0, clock=clock)
        assert found.whole.median_ms == pytest.approx(1 + 2 + 15 + 11)
        assert {n: layer.calls for n, layer in found.layers.items()} == {
            "0.0": 1, "0.1.first": 1, "0.1.thrice": 3, "1": 1
        }  # fmt: skip
        inside = {n: layer.network_ms for n, layer in found.layers.items()}
        assert inside == pytest.approx({"0.0": 1, "0.1.first": 2, "0.1.thrice": 15, "1": 0})
        assert {n: layer.alone_ms for n, layer in found.layers.items()} == pytest.approx(inside)
        assert found.layers["0.1.thrice"].kind == "Takes"
        assert found.layers["0.1.thrice"].backward_ms is None
        assert found.layers_ms == pytest.approx(18)
        assert found.rest_ms == pytest.approx(11)
        assert found.hooks_ms == pytest.approx(0)
        assert found.elsewhere_ms == pytest.approx({"": 0, "0": 0, "0.1": 11})
        assert found.notes == (
            "the layers take 18 ms of 29 ms; the rest, 11 ms, is in no layer (with hooks 11 ms were "
            "seen there, most in 0.1 11 ms, 0 0 ms, the root 0 ms)",
        )  # fmt: skip

    def test_training_step(self, clock: FakeClock) -> None:
        """The backward pass goes to the layer whose nodes it is in, also in place and thrice."""
        found = time_layers(net(clock), torch.ones(2, 3), training=True, seconds=0, clock=clock)
        assert found.whole.mode == "training step"
        assert found.whole.median_ms == pytest.approx(29 + 4 + 3 + 21 + 13)
        times = {
            n: (layer.forward_ms, layer.backward_ms, layer.network_ms, layer.alone_ms)
            for n, layer in found.layers.items()
        }
        assert times == {
            "0.0": pytest.approx((1, 4, 5, 5)), "0.1.first": pytest.approx((2, 3, 5, 5)),
            "0.1.thrice": pytest.approx((15, 21, 36, 36)), "1": pytest.approx((0, 0, 0, 0)),
        }  # fmt: skip
        assert found.rest_ms == pytest.approx(11 + 13)
        assert found.elsewhere_ms == pytest.approx(
            {"": 0, "0": 0, "0.1": 11, "backward outside the layers": 13}
        )

    def test_passes_of_the_warm_up_do_not_count(self, clock: FakeClock) -> None:
        class WarmsUp(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                SEEN.append({})
                clock.pass_ms(
                    100 if len(SEEN) <= 5 else 1
                )  # one pass to look, two pairs to warm up
                return x

        layer = time_layers(WarmsUp(), torch.ones(2), seconds=0, clock=clock).layers[""]
        times = layer.network_low_ms, layer.network_ms, layer.network_high_ms, layer.alone_high_ms
        assert times == pytest.approx((1, 1, 1, 1))

    def test_what_hooks_cost_is_said_and_subtracted_from_nothing(self, clock: FakeClock) -> None:
        """The network is slower by 50 ms in every pass in which it has hooks."""

        found = time_layers(Minds(clock, hooked=50, plain=0), torch.ones(2), seconds=0, clock=clock)
        assert (found.whole.median_ms, found.hooks_ms) == pytest.approx((10, 50))
        assert (found.layers_ms, found.rest_ms) == pytest.approx((10, 0))
        assert found.elsewhere_ms == pytest.approx({"": 50})
        assert len(found.notes) == 1
        assert "add 50 ms to the 10 ms" in found.notes[0]

    def test_a_rest_that_was_not_seen_is_not_explained(self, clock: FakeClock) -> None:
        """The passes without hooks were the slow ones, as when other work came in between."""
        found = time_layers(Minds(clock, hooked=0, plain=50), torch.ones(2), seconds=0, clock=clock)
        assert (found.rest_ms, found.hooks_ms) == pytest.approx((50, -50))
        assert len(found.notes) == 1
        assert "with hooks 0 ms were seen outside them: the machine was uneven" in found.notes[0]

    def test_interruptions_that_meet_other_layers_each_time(self, clock: FakeClock) -> None:
        """Every pass is 30 ms slower somewhere: no layer's median has that, and it is said."""
        passes = iter(range(10**6))

        class Interrupted(nn.Sequential):
            def forward(self, x: Tensor) -> Tensor:
                struck = next(passes) // 2 % len(self)
                for index, layer in enumerate(self):
                    layer.times = (31 if index == struck else 1, 0)
                    x = layer(x)
                return x

        network = Interrupted(*(Takes(clock, 1) for _ in range(5)))
        found = time_layers(network, torch.ones(2), seconds=0, clock=clock)
        assert (found.whole.median_ms, found.layers_ms) == pytest.approx((35, 5))
        assert (found.rest_ms, found.interrupted_ms) == pytest.approx((30, 30))
        assert found.notes == (
            "the layers take 5 ms of 35 ms; the rest, 30 ms, is in no layer: 30 ms of a pass are "
            "interruptions by other work, which meet other layers each time, so that no layer's median "
            "has them (with hooks 0 ms were seen there, most in the root 0 ms)",
        )

    def test_a_layer_that_fails_alone(self, clock: FakeClock) -> None:
        class Guarded(nn.Module):
            open = False

            def forward(self, x: Tensor) -> Tensor:
                if not Guarded.open:
                    raise Fault
                return x

        class Opens(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.guarded, self.takes = Guarded(), Takes(clock, 3)

            def forward(self, x: Tensor) -> Tensor:
                Guarded.open = True
                x = self.guarded(x)
                Guarded.open = False
                return self.takes(x)

        found = time_layers(Opens(), torch.ones(2), seconds=0, clock=clock)
        assert found.layers["guarded"].alone_ms is None
        assert found.layers["takes"].alone_ms == pytest.approx(3)
        assert found.notes == ("not timed alone, where they fail: guarded",)

    @pytest.mark.parametrize("training", [False, True])
    def test_inputs_held_in_parts(
        self, clock: FakeClock, monkeypatch: pytest.MonkeyPatch, training: bool
    ) -> None:
        x = torch.ones(2, 3)
        whole = time_layers(net(clock), x, training=training, seconds=0, clock=clock)
        monkeypatch.setattr(layers_alone, "CAPTURED_BYTES", 30)
        parts = time_layers(net(clock), x, training=training, seconds=0, clock=clock)
        assert {n: layer.alone_ms for n, layer in parts.layers.items()} == pytest.approx(
            {n: layer.alone_ms for n, layer in whole.layers.items()}
        )

    def test_what_a_layer_is(self) -> None:
        """What calls no other module: attention with its unused parts, a parametrized layer whole."""

        class Mixed(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.scale = nn.Parameter(torch.ones(4))
                self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
                self.linear = parametrizations.weight_norm(nn.Linear(4, 4))
                self.empty = nn.Sequential()

            def forward(self, x: Tensor) -> Tensor:
                y, _ = self.attention(query=x, key=x, value=x)
                return self.empty(self.linear(y * self.scale))

        for training in (False, True):
            found = time_layers(Mixed(), torch.ones(1, 3, 4), training=training, seconds=0)
            assert list(found.layers) == ["attention", "linear", "empty"]
            assert set(found.elsewhere_ms) - {"backward outside the layers"} == {""}
            assert all(layer.alone_ms is not None for layer in found.layers.values())

    def test_alone_on_the_inputs_of_the_network(self) -> None:
        """Also for a layer that works in place, whose input would change from run to run."""

        class Adds(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                SEEN.append({"x": x.clone()})
                return x.add_(1)

        model = nn.Sequential(nn.Linear(2, 2), Adds())
        for training in (False, True):
            SEEN.clear()
            time_layers(model, torch.ones(1, 2), training=training, seconds=0)
            for seen in SEEN:
                torch.testing.assert_close(seen["x"], SEEN[0]["x"])
            assert len(SEEN) > 15

    def test_conditions_are_those_asked_for(self, clock: FakeClock) -> None:
        found = time_layers(
            Witness(clock), image(), batch=4, dtype=torch.float64, channels_last=True, threads=2,
            seconds=0,
        )  # fmt: skip
        assert isinstance(found, LayerLatencies)
        whole = found.whole
        assert (whole.batch, whole.dtype, whole.threads, whole.channels_last) == (
            4, "float64", 2, True
        )  # fmt: skip
        assert {(*s["dtypes"], s["threads"], len(s["x"])) for s in SEEN} == {
            (torch.float64, torch.float64, 2, 4)
        }


class TestSpans:
    def test_inner_spans_are_not_the_outer_ones_too(self) -> None:
        events: list[Any] = []
        for key, begins, mark in [
            ("net", True, 0), ("a", True, 1), ("b", True, 2), ("b", False, 5), ("a", False, 6),
            ("b", True, 7), ("b", False, 9), ("net", False, 10),
        ]:  # fmt: skip
            events.append(((key, "forward"), begins, mark))
        found = own_times(events, lambda a, b: b - a)
        assert {key: ms for (key, _), ms in found.items()} == {"b": 5, "a": 2, "net": 3}

    def test_an_end_that_never_came(self) -> None:
        """Its span ends with the one around it; an end without a beginning is nothing."""
        keys = {name: (name, "forward") for name in "abx"}
        events: list[Any] = [
            (keys["a"], True, 0), (keys["b"], True, 2), (keys["x"], False, 3), (keys["a"], False, 9)
        ]  # fmt: skip
        assert own_times(events, lambda a, b: b - a) == {keys["b"]: 7, keys["a"]: 2}

    @given(
        st.recursive(st.integers(0, 9), lambda inner: st.lists(inner, max_size=4), max_leaves=30)
    )
    def test_own_times_add_up_to_the_whole(self, tree: Any) -> None:
        """A number is time that passes, a list a module that does what is in it."""
        events: list[Any] = []
        now = 0

        def walk(part: Any, depth: int) -> None:
            nonlocal now
            if isinstance(part, int):
                now += part
                return
            events.append(((str(depth % 3), "forward"), True, now))
            for inner in part:
                walk(inner, depth + 1)
            events.append(((str(depth % 3), "forward"), False, now))

        walk([tree], 0)
        assert sum(own_times(events, lambda a, b: b - a).values()) == now
