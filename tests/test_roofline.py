"""The machine's limits: placing under them, and the file that keeps them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from time import sleep
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from onebyone.errors import OneByOneError
from onebyone.measurement import roofline, timing
from onebyone.measurement.roofline import (
    Machine,
    cache_folder,
    copied_bytes,
    measure_machine,
    place,
    placement_words,
    processor_name,
)
from onebyone.measurement.timing import Samples

CPU = torch.device("cpu")
MACHINE = Machine(50e9, 10e9, 1, "float32", "cpu", "made up")  # 5 MACs a byte at the ridge


class TestPlace:
    def test_below_the_ridge(self) -> None:
        """2 MACs a byte: 1 MB takes 0.1 ms of bandwidth, 2 MMACs 0.04 ms of arithmetic."""
        found = place(2_000_000, 1_000_000, 0.4, MACHINE)
        assert (found.bound, found.intensity, found.ridge) == ("memory", 2.0, 5.0)
        assert (found.limit_ms, found.fraction) == pytest.approx((0.1, 0.25))

    def test_above_the_ridge(self) -> None:
        """40 MACs a byte: 0.1 ms of bandwidth, 0.8 ms of arithmetic."""
        found = place(40_000_000, 1_000_000, 1.0, MACHINE)
        assert (found.bound, found.intensity) == ("arithmetic", 40.0)
        assert (found.limit_ms, found.fraction) == pytest.approx((0.8, 0.8))

    def test_work_without_macs_or_bytes(self) -> None:
        copy = place(0, 1_000_000, 0.2, MACHINE)
        assert (copy.bound, copy.intensity, copy.fraction) == ("memory", 0.0, pytest.approx(0.5))
        pure = place(50_000_000, 0, 2.0, MACHINE)
        assert (pure.bound, pure.intensity, pure.fraction) == (
            "arithmetic", None, pytest.approx(0.5)
        )  # fmt: skip
        nothing = place(0, 0, 2.0, MACHINE)
        assert (nothing.limit_ms, nothing.fraction) == (0.0, 0.0)

    @given(st.integers(1, 10**12), st.integers(1, 10**12), st.floats(1e-3, 1e6))
    def test_the_bound_is_the_side_of_the_ridge(self, macs: int, moved: int, ms: float) -> None:
        found = place(macs, moved, ms, MACHINE)
        assert found.intensity is not None
        if found.intensity > found.ridge * (1 + 1e-9):
            assert found.bound == "arithmetic"
        elif found.intensity < found.ridge * (1 - 1e-9):
            assert found.bound == "memory"
        assert found.limit_ms >= max(macs / 50e6, moved / 10e6) * (1 - 1e-9)
        twice = place(macs, moved, 2 * ms, MACHINE)
        assert found.fraction == pytest.approx(2 * twice.fraction)

    @pytest.mark.parametrize("milliseconds", [0.0, -1.0, float("nan"), float("inf")])
    def test_times_that_say_nothing(self, milliseconds: float) -> None:
        with pytest.raises(OneByOneError, match="a measured time above 0"):
            place(1, 1, milliseconds, MACHINE)

    @pytest.mark.parametrize(
        ("macs", "moved", "said"),
        [
            (1, 6_100_000, "bound by memory: reaches 61 % of the measured bandwidth"),
            (45_000_000, 1, "bound by arithmetic: reaches 90 % of the measured peak"),
            (
                1, 25_000_000,
                "bound by memory: reaches 250 % of the measured bandwidth, more than memory gives: "
                "its data stay in the cache",
            ),
            (
                60_000_000, 1,
                "bound by arithmetic: reaches 120 % of the measured peak: the kernel may need fewer "
                "MACs than are counted, or the peak was seen too low",
            ),
        ],
    )  # fmt: skip
    def test_words(self, macs: int, moved: int, said: str) -> None:
        assert placement_words(place(macs, moved, 1.0, MACHINE)) == said


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Little work, a folder of its own for what is kept, no look at what else runs."""
    monkeypatch.setattr(timing, "_busy_cores_now", lambda seconds: 0.0)
    monkeypatch.setattr(roofline, "PRODUCTS", {"cpu": (8, 16)})
    monkeypatch.setattr(roofline, "CONVOLUTIONS", ((4, 6),))
    monkeypatch.setattr(roofline, "copied_bytes", lambda device: 2**20)
    monkeypatch.setenv("ONEBYONE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, torch.dtype]]:
    """What is measured instead of read, in order; each time a faster machine is found."""
    asked: list[tuple[int, torch.dtype]] = []

    def measure(threads: int, dtype: torch.dtype, device: object, seconds: float) -> Machine:
        asked.append((threads, dtype))
        return replace(MACHINE, threads=threads, macs_per_second=1e9 * len(asked))

    monkeypatch.setattr(roofline, "_measured", measure)
    return asked


class TestMeasuring:
    def test_limits_are_work_by_time_at_best(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """With a clock that gives each candidate known times: products 4 and 1 ms at best, …"""
        times = iter([(9.0, 4.0), (1.0, 2.0), (8.0, 0.5), (0.25, 3.0)])
        threads: list[int] = []

        def fake(candidates: dict[str, Callable[[], object]], **options: Any) -> Samples:
            threads.append(options["threads"])
            for run in candidates.values():
                run()
            return Samples({name: next(times) for name in candidates}, 1, 3, ("it was busy",))

        monkeypatch.setattr(roofline, "interleave", fake)
        found = measure_machine(threads=3)
        rates = [8**3 / 4e-3, 16**3 / 1e-3, 8 * 6 * 6 * 9 * 4 * 4 / 0.5e-3]
        assert found.macs_per_second == pytest.approx(max(rates))
        assert found.bytes_per_second == pytest.approx(2 * 2**20 / 0.25e-3)
        assert (found.threads, found.dtype, found.device) == (3, "float32", "cpu")
        assert threads == [3, 3]
        for part in ("reached by the 3×3 convolution of 4 channels", "copy of 1 MiB", "3 threads",
                     processor_name(CPU), str(torch.__version__), "it was busy"):  # fmt: skip
            assert part in found.how
        assert found.busy

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
    def test_each_type_is_measured_in_itself(self, dtype: torch.dtype) -> None:
        threads = torch.get_num_threads()
        found = measure_machine(dtype=dtype, threads=2, seconds=0)
        assert found.dtype == str(dtype).removeprefix("torch.")
        assert found.macs_per_second > 0
        assert found.bytes_per_second > 0
        assert found.ridge == found.macs_per_second / found.bytes_per_second
        assert torch.get_num_threads() == threads

    def test_refusals(self) -> None:
        with pytest.raises(OneByOneError, match=r"torch\.int8 has no floating-point arithmetic"):
            measure_machine(dtype=torch.int8)
        with pytest.raises(OneByOneError, match="cannot be measured on cpu"):
            measure_machine(dtype=torch.float8_e4m3fn)
        with pytest.raises(OneByOneError, match="0 threads"):
            measure_machine(threads=0)
        with pytest.raises(OneByOneError, match="moon cannot be used here"):
            measure_machine(device="moon")
        if not torch.cuda.is_available():
            with pytest.raises(OneByOneError, match="cuda cannot be used here"):
                measure_machine(device="cuda")

    def test_arrays_are_larger_than_small_caches_and_not_too_large(self) -> None:
        assert 2**27 <= copied_bytes(CPU) <= 2**29


class TestCache:
    def test_measured_once_for_each_key(
        self, small: Path, measured: list[tuple[int, torch.dtype]]
    ) -> None:
        first = measure_machine()
        assert measure_machine() == first
        assert len(measured) == 1
        measure_machine(threads=2)
        measure_machine(dtype=torch.bfloat16)
        assert measured == [(1, torch.float32), (2, torch.float32), (1, torch.bfloat16)]
        assert measure_machine() == first
        assert len(list(small.iterdir())) == 3

    @pytest.mark.parametrize("change", ["processor", "torch"])
    def test_another_processor_or_pytorch_is_another_key(
        self, change: str, measured: list[Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        measure_machine()
        if change == "torch":
            monkeypatch.setattr(torch, "__version__", "9.9")
        else:
            monkeypatch.setattr(roofline, "processor_name", lambda device: "abacus")
        measure_machine()
        assert len(measured) == 2

    def test_anew_when_asked(self, measured: list[Any]) -> None:
        measure_machine()
        again = measure_machine(again=True)
        assert len(measured) == 2
        assert measure_machine() == again

    def test_limits_of_a_busy_machine_are_not_kept(
        self, measured: list[Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        quiet, busy = measure_machine(), [True, True, False]
        measure = roofline._measured
        monkeypatch.setattr(
            roofline, "_measured", lambda *given: replace(measure(*given), busy=busy.pop(0))
        )
        assert measure_machine(again=True).busy
        assert measure_machine() == quiet  # what was seen on the quiet machine stays
        assert measure_machine(threads=2).busy
        found = measure_machine(threads=2)
        assert not found.busy
        assert measure_machine(threads=2) == found
        assert len(measured) == 4

    @pytest.mark.parametrize(
        "damage",
        [
            lambda text: "",
            lambda text: text[: len(text) // 2],
            lambda text: "[1, 2]",
            lambda text: "null",
            lambda text: text.replace("onebyone.machine/1", "onebyone.machine/9"),
            lambda text: text.replace('"threads": 1', '"threads": 4', 1),
            lambda text: text.replace('"how"', '"why"'),
            lambda text: text.replace("1000000000.0", "0.0"),
            lambda text: text.replace("1000000000.0", "NaN"),
            lambda text: text.replace("1000000000.0", '"fast"'),
        ],
    )
    def test_a_file_that_is_not_ours_is_replaced(
        self, damage: Callable[[str], str], small: Path, measured: list[Any]
    ) -> None:
        first = measure_machine()
        (path,) = small.iterdir()
        text = path.read_text(encoding="utf-8")
        assert damage(text) != text
        path.write_text(damage(text), encoding="utf-8")
        second = measure_machine()
        assert len(measured) == 2
        assert second != first
        assert measure_machine() == second
        assert list(small.iterdir()) == [path]
        assert json.loads(path.read_text(encoding="utf-8"))["machine"]["threads"] == 1

    def test_bytes_that_are_no_text(self, small: Path, measured: list[Any]) -> None:
        measure_machine()
        (path,) = small.iterdir()
        path.write_bytes(b"\xff\xfe\x00")
        measure_machine()
        assert len(measured) == 2

    def test_where_nothing_can_be_kept(self, small: Path, measured: list[Any]) -> None:
        small.write_text("a file where the folder should be", encoding="utf-8")
        measure_machine()
        measure_machine()
        assert len(measured) == 2
        assert small.read_text(encoding="utf-8") == "a file where the folder should be"

    def test_a_write_that_fails_leaves_the_old_file(
        self, small: Path, measured: list[Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first = measure_machine()

        def full(*names: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("onebyone.files.os.replace", full)
        measure_machine(again=True)
        assert measure_machine() == first
        assert len(list(small.iterdir())) == 1

    def test_the_folder(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("ONEBYONE_CACHE", str(tmp_path / "own"))
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        assert cache_folder() == tmp_path / "own"
        monkeypatch.delenv("ONEBYONE_CACHE")
        assert cache_folder() == tmp_path / "xdg" / "onebyone"
        monkeypatch.setenv("XDG_CACHE_HOME", "")
        assert cache_folder() == tmp_path / "home" / ".cache" / "onebyone"


def test_what_would_take_too_long_is_left_out() -> None:
    """Processors that emulate a type take minutes for the largest product."""
    ran: list[str] = []

    def work(name: str, seconds: float) -> Callable[[], object]:
        return lambda: (ran.append(name), sleep(seconds))

    candidates = {"large": (work("large", 60), 4000), "small": (work("small", 0.02), 10)}
    candidates["middle"] = (work("middle", 0.04), 20)
    kept = roofline._affordable(candidates, torch.device("cpu"), 1.0)
    assert [*kept] == ["small", "middle"]
    assert ran == ["small", "small"]
    assert [*roofline._affordable(candidates, torch.device("cpu"), 1e-6)] == ["small"]
