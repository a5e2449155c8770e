"""slim: the one call, what it refuses, and the search for the smallest network within a drop."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from onebyone import searching
from onebyone.clock import Clock
from onebyone.data import Images, open_images
from onebyone.errors import BudgetError, DataError, ModelError, OneByOneError, PlanError
from onebyone.loading import load
from onebyone.plans import Budget
from onebyone.preprocessing import Preprocess
from onebyone.searching import RESOLUTION, TRIALS, accuracy, smallest
from onebyone.slimming import check_budget, set_apart, slim, told


def network(classes: int = 5) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 24, 3), nn.ReLU()]
        pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        return nn.Sequential(*layers, *pool, nn.Linear(24, classes)).eval()


def pictures(n: int = 32, *shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, *(shape or (3, 12, 12)), generator=generator)


class TestSlim:
    @pytest.mark.parametrize(
        "budget", [{"macs": 0.5}, {"params": 0.5}, {"macs": 0.6, "params": 0.5}]
    )
    def test_budgets_hold_and_the_counts_are_pytorchs(self, budget: dict[str, float]) -> None:
        done = slim(network(), pictures(), latency=False, **budget)  # type: ignore[arg-type]
        before, after = done.verification.before, done.verification.after
        assert (before.macs, after.macs) == (done.plan.macs_before, done.plan.macs_after)
        assert (before.params, after.params) == (done.plan.params_before, done.plan.params_after)
        assert after.macs <= budget.get("macs", 1) * before.macs
        assert after.params <= budget.get("params", 1) * before.params

    def test_inside_inference_mode_the_plan_is_the_same(self) -> None:
        model = network()
        expected = slim(model, pictures(), macs=0.5, latency=False).plan
        with torch.inference_mode():
            found = slim(model, pictures(), macs=0.5, latency=False)
        assert found.plan == expected
        assert not any(p.is_inference() for p in found.model.parameters())

    def test_weights_made_in_inference_mode_are_refused(self) -> None:
        with torch.inference_mode():
            model = network()
        with pytest.raises(ModelError, match="inference_mode"):
            slim(model, pictures(), macs=0.5, latency=False)
        assert slim(copy.deepcopy(model), pictures(), macs=0.5, latency=False).plan.macs_after

    def test_a_compiled_network_is_taken_out(self) -> None:
        model = network()
        compiled: Any = torch.compile(model, backend="eager")
        found = slim(compiled, pictures(), macs=0.5, latency=False)
        assert found.plan == slim(model, pictures(), macs=0.5, latency=False).plan

    def test_batches_without_end(self) -> None:
        endless = (pictures(8, seed=s) for s in range(10**9))
        found = slim(network(), endless, macs=0.5, latency=False, memory=1 << 20)
        assert any("the first" in n and "images were taken" in n for n in found.plan.notes)

    def test_the_model_and_the_images_are_not_touched(self) -> None:
        model, images = network().train(), pictures()
        state, before, random = (
            copy.deepcopy(model.state_dict()),
            images.clone(),
            torch.get_rng_state(),
        )
        done = slim(model, images, macs=0.5, latency=False)
        torch.testing.assert_close(model.state_dict(), state, rtol=0, atol=0)
        assert torch.equal(images, before)
        assert torch.equal(torch.get_rng_state(), random)
        assert all(m.training for m in model.modules())
        assert all(p.requires_grad and p.grad is None for p in model.parameters())
        ours = {p.data_ptr() for p in model.parameters()}
        assert not ours & {p.data_ptr() for p in done.model.parameters()}

    def test_only_plain_layers(self) -> None:
        done = slim(network(), pictures(), macs=0.5, latency=False)
        assert {type(m).__module__.split(".")[0] for m in done.model.modules()} == {"torch"}

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_dtypes_are_kept(self, dtype: torch.dtype) -> None:
        done = slim(network().to(dtype), pictures(), macs=0.5, latency=False)
        assert {p.dtype for p in done.model.parameters()} == {dtype}
        assert done.model(pictures(2).to(dtype)).shape == (2, 5)

    def test_same_seed_same_network(self) -> None:
        runs = []
        for global_seed in (1, 2):
            torch.manual_seed(global_seed)
            runs.append(slim(network(), pictures(), macs=0.5, latency=False, seed=7))
        assert runs[0].plan == runs[1].plan
        states = [run.model.state_dict() for run in runs]
        torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)

    def test_a_plan_is_applied(self) -> None:
        first = slim(network(), pictures(), macs=0.5, latency=False)
        again = slim(network(), pictures(), plan=first.plan, latency=False)
        assert again.plan.decisions == first.plan.decisions
        states = [run.model.state_dict() for run in (first, again)]
        torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)

    def test_a_plan_of_another_network(self) -> None:
        plan = slim(network(), pictures(), macs=0.5, latency=False).plan
        other = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        with pytest.raises(PlanError, match=r"layer '0' is 3→8.*3→16"):
            slim(other, pictures(), plan=plan, latency=False)

    def test_seconds_and_progress(self) -> None:
        told: list[tuple[str, float]] = []
        done = slim(
            network(), pictures(), macs=0.5, latency=False, progress=lambda *a: told.append(a)
        )
        steps = ["read", "observe", "plan", "rewrite", "verify", "look"]
        assert list(done.seconds) == steps
        assert all(seconds >= 0 for seconds in done.seconds.values())
        for step in steps:
            fractions = [done for name, done in told if name == step]
            assert (fractions[0], fractions[-1]) == (0, 1)
            assert fractions == sorted(fractions)

    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            (lambda m: nn.init.constant_(m[2].bias, torch.nan), ModelError, "NaN"),
            (lambda m: nn.init.constant_(m[0].weight, torch.inf), ModelError, "NaN or infinite"),
            (lambda m: m.insert(0, nn.Upsample(scale_factor=0.1)), ModelError, "1×3×12×12"),
        ],
    )
    def test_networks_that_fail(
        self, change: Callable[[Any], None], error: type[OneByOneError], message: str
    ) -> None:
        model = network()
        change(model)
        with pytest.raises(error, match=message):
            slim(model, pictures(), macs=0.5, latency=False)

    def test_a_large_folder_is_not_read_whole(self, tmp_path: Path) -> None:
        """A 3×32×32 image has 12 KiB as float32: half of 2 MiB holds 85 of them."""
        for i in range(100):
            Image.new("RGB", (32, 32), (i, i, i)).save(tmp_path / f"{i}.png")
        preprocess = Preprocess((3, 32, 32), (0.5,), (0.5,))
        options: dict[str, Any] = {"preprocess": preprocess, "calibration": 60, "latency": False}
        assert slim(network(), tmp_path, macs=0.7, **options).verification.images == 40
        done = slim(network(), tmp_path, macs=0.7, memory=2 << 20, **options)
        assert done.verification.images == 25

    def test_a_network_without_convolutions(self) -> None:
        with pytest.raises(ModelError, match="no convolution"):
            slim(nn.Sequential(nn.Flatten(), nn.ReLU()), pictures(), macs=0.5)

    def test_the_lowest_budget_is_named(self) -> None:
        with pytest.raises(BudgetError, match=r"lowest that this network reaches is macs=0\.\d+"):
            slim(network(), pictures(), macs=0.001, latency=False)

    def test_channels_of_held_out_images(self) -> None:
        with pytest.raises(DataError, match="4 channels"):
            slim(network(), pictures(), macs=0.5, held_out=pictures(8, 4, 12, 12))

    def test_labels_beyond_the_classes(self) -> None:
        labels = torch.full((32,), 7)
        with pytest.raises(DataError, match="a label is 7, but the network has 5 classes"):
            slim(network(), (pictures(), labels), max_drop=0.1, latency=False)


class TestBudgets:
    @pytest.mark.parametrize("value", [0, -0.5, 1.01, 50, float("nan"), float("inf"), "half"])
    @pytest.mark.parametrize("name", ["macs", "params"])
    def test_outside(self, name: str, value: Any) -> None:
        with pytest.raises(BudgetError, match=rf"{name}=.* is not a budget.*above 0 and at most 1"):
            slim(network(), pictures(), **{name: value})

    @pytest.mark.parametrize("value", [-0.1, 1.0, 5.0, float("nan")])
    def test_drops_outside(self, value: float) -> None:
        with pytest.raises(BudgetError, match="is no loss of accuracy"):
            check_budget(None, None, value)

    def test_none_and_too_many(self) -> None:
        with pytest.raises(BudgetError, match="no budget was given"):
            check_budget(None, None, None)
        plan = slim(network(), pictures(), macs=0.5, latency=False).plan
        for given in ((0.5, None, None), (None, 0.5, None), (None, None, 0.1)):
            with pytest.raises(BudgetError, match="leave one of them out"):
                check_budget(*given, plan)

    def test_what_holds(self) -> None:
        assert check_budget(1.0, None, None) == Budget(1.0)
        assert check_budget(0.5, 0.4, 0.1) == Budget(0.5, 0.4)
        assert check_budget(None, None, 0.0) is None


def numbered(n: int, labels: bool = False) -> Images:
    """Images whose pixels say which they are."""
    inputs = torch.arange(n, dtype=torch.float32)[:, None, None, None].expand(n, 1, 2, 2)
    return Images(inputs.contiguous(), torch.arange(n) % 3 if labels else None)


def which(images: Images | None) -> set[int]:
    return set() if images is None else {int(v) for v in images.inputs[:, 0, 0, 0]}


class TestSetApart:
    @pytest.mark.parametrize(
        ("n", "held_out", "sizes"),
        [
            (100, None, (60, 40)),  # what is beyond the calibration
            (64, None, (56, 8)),  # an eighth at least
            (5, None, (5, 0)),
            (100, 0, (60, 0)),
            (100, 10, (60, 10)),
            (100, 0.5, (50, 50)),
        ],
    )
    def test_sizes_and_never_the_same(
        self, n: int, held_out: float | None, sizes: tuple[int, int]
    ) -> None:
        used, kept_back = set_apart(numbered(n), held_out, calibration=60)
        assert (len(which(used)), len(which(kept_back))) == sizes
        assert not which(used) & which(kept_back)

    def test_half_is_held_out_where_labels_decide(self) -> None:
        used, kept_back = set_apart(numbered(40, labels=True), calibration=512, labels=True)
        assert (len(used), len(kept_back or ())) == (20, 20)

    def test_other_images(self) -> None:
        other = numbered(7)
        used, kept_back = set_apart(numbered(100), other, calibration=60)
        assert kept_back is other
        assert len(used) == 60

    @pytest.mark.parametrize("held_out", [None, 0, numbered(7)])
    def test_labels_missing(self, held_out: object) -> None:
        with pytest.raises(DataError, match="max_drop needs labels"):
            set_apart(numbered(100), held_out, labels=True)

    def test_what_there_is_to_say(self) -> None:
        inputs = pictures(2)
        assert told(Images(inputs)) == ()
        skipped = tuple(f"{i}.png: broken" for i in range(5))
        (line,) = told(Images(inputs, skipped=skipped))
        assert line.startswith("5 image files could not be read: 0.png: broken; 1.png")
        assert line.endswith("and 2 more")
        assert told(Images(inputs, skipped=skipped[:1], notes=("x",))) == (
            "x",
            "1 image file could not be read: 0.png: broken",
        )


@dataclass(frozen=True)
class FakePlan:
    """A plan that keeps so much of 1,000 MACs; its predicted error is off by `bias`."""

    macs_after: int
    error: float
    macs_before: int = 1000


class FakeTrial:
    """A network whose accuracy falls as MACs are taken: `curve` from the fraction kept."""

    def __init__(self, curve: Callable[[float], float], bias: float = 1.0, lowest: float = 0.05):
        self.curve, self.bias, self.lowest = curve, bias, lowest
        self.model = 1.0  # in place of a network, the fraction of its MACs
        self.clock = Clock()
        self.rewrites: list[float] = []
        self.budgets: list[Budget] = []

    def planned(self, budget: Budget) -> FakePlan:
        self.budgets.append(budget)
        if (budget.macs or 1.0) < self.lowest:
            raise BudgetError("cannot be met")
        kept = min(budget.macs or 1.0, 2 * (budget.params or 1.0))
        return FakePlan(int(1000 * kept), self.bias * (0.9 - self.curve(kept)))

    def rewritten(self, plan: FakePlan) -> float:
        self.rewrites.append(plan.macs_after / 1000)
        return self.rewrites[-1]


@pytest.fixture
def fake_accuracy(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """Accuracy of a "network" is its trial's curve at the fraction that it stands for."""
    state: dict[str, Any] = {}
    monkeypatch.setattr(searching, "accuracy", lambda kept, _: state["curve"](kept))
    return state  # type: ignore[return-value]


CURVES = {
    "gentle": lambda kept: 0.9 - 0.05 * (1 - kept) ** 2,
    "steep": lambda kept: 0.9 - 0.001 / kept**2 + 0.001,
    "cliff": lambda kept: 0.9 if kept > 0.41 else 0.1,
    "flat": lambda kept: 0.9,
}


class TestSmallest:
    def find(
        self, trial: FakeTrial, drop: float, budget: Budget | None = None
    ) -> tuple[float, str]:
        found, note = smallest(trial, budget, drop, numbered(2000))  # type: ignore[arg-type]
        return found.macs, note

    @pytest.mark.parametrize("bias", [0.1, 1.0, 10.0])
    @pytest.mark.parametrize("drop", [0.0, 0.01, 0.03])
    @pytest.mark.parametrize("name", CURVES)
    def test_by_few_evaluations(
        self, name: str, drop: float, bias: float, fake_accuracy: dict[str, Any]
    ) -> None:
        curve = fake_accuracy["curve"] = CURVES[name]
        trial = FakeTrial(curve, bias)
        if name in ("gentle", "steep") and drop == 0:
            with pytest.raises(BudgetError, match=r"no network within max_drop=0\.0"):
                self.find(trial, drop)
            return
        kept, note = self.find(trial, drop)
        assert curve(kept) >= 0.9 - drop - 1e-9
        smaller = kept - RESOLUTION - 0.002
        assert smaller < trial.lowest or curve(smaller) < 0.9 - drop
        assert len(trial.rewrites) <= 5
        assert note.count("of the MACs") == len(trial.rewrites)

    def test_fewer_where_the_prediction_is_good(self, fake_accuracy: dict[str, Any]) -> None:
        fake_accuracy["curve"] = CURVES["steep"]
        trial = FakeTrial(CURVES["steep"])
        self.find(trial, 0.01)
        assert len(trial.rewrites) == 2

    def test_other_budgets_hold_in_every_trial(self, fake_accuracy: dict[str, Any]) -> None:
        fake_accuracy["curve"] = CURVES["gentle"]
        trial = FakeTrial(CURVES["gentle"])
        kept, _ = self.find(trial, 0.03, Budget(macs=0.5, params=0.9))
        assert kept < 0.5
        assert all(b.params == 0.9 and (b.macs or 1) <= 0.5 for b in trial.budgets)

    def test_budget_and_drop_that_cannot_hold_together(self, fake_accuracy: dict[str, Any]) -> None:
        fake_accuracy["curve"] = CURVES["cliff"]
        trial = FakeTrial(CURVES["cliff"])
        message = r"macs=0\.3 and max_drop=0\.01 cannot hold together.*90\.00%.*10\.00%"
        with pytest.raises(BudgetError, match=message):
            self.find(trial, 0.01, Budget(macs=0.3))
        assert len(trial.rewrites) == 1
        with pytest.raises(BudgetError, match=r"params=0\.1 and max_drop"):
            self.find(trial, 0.01, Budget(params=0.1))
        with pytest.raises(BudgetError, match="cannot be met"):
            self.find(trial, 0.01, Budget(macs=0.01))

    def test_accuracy_that_cannot_be_lost(self, fake_accuracy: dict[str, Any]) -> None:
        fake_accuracy["curve"] = lambda kept: 0.02
        with pytest.raises(DataError, match=r"right on 2\.00%.*labels"):
            self.find(FakeTrial(fake_accuracy["curve"]), 0.05)

    def test_noise_ends_after_some_trials(self, fake_accuracy: dict[str, Any]) -> None:
        generator = torch.Generator().manual_seed(0)
        noise: dict[float, float] = {1.0: 0.9}

        def curve(kept: float) -> float:
            lost = 0.02 * float(torch.rand((), generator=generator)) if kept < 0.6 else 0.0
            return noise.setdefault(kept, 0.9 - lost)

        fake_accuracy["curve"] = curve
        trial = FakeTrial(curve)
        kept, _ = self.find(trial, 0.01)
        assert len(trial.rewrites) <= TRIALS
        assert noise[kept] >= 0.89


class TestAccuracy:
    def test_is_the_fraction_that_is_right(self) -> None:
        inputs = torch.zeros(100, 1, 1, 4)
        labels = torch.arange(100) % 4
        inputs[torch.arange(100), 0, 0, labels] = 1.0
        inputs[:25] = -inputs[:25]  # the right class is the least likely one there
        model = nn.Sequential(nn.Flatten(), nn.Linear(4, 4, bias=False)).train()
        nn.init.eye_(model[1].weight)  # type: ignore[arg-type]
        assert accuracy(model, Images(inputs, labels)) == 0.75
        assert model.training

    def test_an_output_that_is_no_classes(self) -> None:
        labels = torch.zeros(4, dtype=torch.long)
        with pytest.raises(DataError, match=r"needs a classifier.*\(4, 3, 12, 12\)"):
            accuracy(nn.Identity(), Images(pictures(4), labels))


class TestClock:
    def test_inner_steps_give_the_outer_one_back(self) -> None:
        told: list[str] = []
        clock = Clock(lambda step, done: told.append(f"{step} {done}"))
        with clock.step("search"):
            with clock.step("plan"):
                pass
            clock.tell(0.5)
        assert told == ["search 0.0", "plan 0.0", "plan 1.0", "search 0.5", "search 1.0"]
        assert set(clock.seconds) == {"search", "plan"}


@pytest.mark.slow
@pytest.mark.parametrize("drop", [0.005, 0.02])
def test_max_drop_on_the_demo_network(drop: float) -> None:
    loaded, held_out = load("demo"), open_images("demo:test").take(2500)
    done = slim(loaded.model, open_images("demo"), max_drop=drop, held_out=held_out, latency=False)
    before, after = done.verification.before, done.verification.after
    assert before.accuracy is not None
    assert after.accuracy is not None
    assert before.accuracy - after.accuracy <= drop + 1e-9
    assert after.macs < 0.6 * before.macs
    assert (
        f"max_drop={drop}: top-1 {before.accuracy:.2%} → {after.accuracy:.2%}" in done.plan.notes[0]
    )
