"""deepen: the same outputs, a deeper network, the budget kept, every refusal with its reason."""

from __future__ import annotations

import copy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from models import TRAPS, Trap, plain
from test_tree import check_untouched
from torch import Tensor, nn

import onebyone as obo
from onebyone import saving
from onebyone.data import Images
from onebyone.deepening import candidates as choosing
from onebyone.deepening import deepening, filling, probing
from onebyone.deepening.candidates import candidates, inserted
from onebyone.deepening.filling import Room
from onebyone.deepening.insertions import Activation, Insertion
from onebyone.deepening.places import find_places
from onebyone.errors import BudgetError, DataError, ModelError, OneByOneError
from onebyone.measurement.latency import Latency
from onebyone.plans import Budget
from onebyone.tree import evaluating, tensors_in
from onebyone.verification import Verification, verify

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")
ROUNDING = {torch.float16: 2e-3, torch.bfloat16: 1e-2, torch.float32: 1e-6, torch.float64: 1e-12}
TAKING = [
    n for n, t in TRAPS.items() if t.error is None and n not in ("a plain list", "root is pointwise")
]  # fmt: skip


def outputs(model: nn.Module, inputs: Tensor) -> list[Tensor]:
    first = next((p for p in model.parameters()), torch.zeros(()))
    with torch.no_grad():
        return [t for t in tensors_in(model(inputs.to(first.dtype))) if t.is_floating_point()]


def usable(model: nn.Module, inputs: Tensor) -> tuple[Insertion, ...]:
    with evaluating(model):
        return tuple(c for c in candidates(model, inputs[:1]) if not c.refused)


def check_same(before: nn.Module, after: nn.Module, inputs: Tensor) -> None:
    """Law: inserting changes no output by more than the dtype's rounding."""
    for mode in (False, True):
        pair = [copy.deepcopy(network).train(mode) for network in (before, after)]
        with torch.random.fork_rng():
            torch.manual_seed(0)
            expected = outputs(pair[0], inputs)
            torch.manual_seed(0)
            found = outputs(pair[1], inputs)
        for one, other in zip(expected, found, strict=True):
            tolerance = ROUNDING[one.dtype]
            torch.testing.assert_close(other, one, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", TAKING)
def test_inserting_changes_no_output(name: str) -> None:
    trap = TRAPS[name]
    model, inputs = trap.model(), trap.images(4)
    found = usable(model, inputs)
    assert found
    deeper = inserted(model, found)
    check_same(model, deeper, inputs)
    own = {id(t) for t in (*model.parameters(), *model.buffers())}
    assert not own & {id(t) for t in (*deeper.parameters(), *deeper.buffers())}


@pytest.mark.parametrize("name", TAKING)
def test_the_reported_cost_is_the_counted_one(name: str) -> None:
    check_cost(TRAPS[name])


def check_cost(trap: Trap) -> None:
    """Law: MACs and parameters of insertions are what PyTorch counts."""
    model, inputs = trap.model(), trap.images(1)
    found = usable(model, inputs)
    first = next(model.parameters())
    before, after = (
        obo.measure(m, inputs.to(first.dtype)) for m in (model, inserted(model, found))
    )
    assert after.macs - before.macs == sum(i.macs for i in found)
    assert after.params - before.params == sum(i.params for i in found)


@pytest.mark.parametrize("name", ["plain", "1d", "3d", "tied layers", "hooks", "channels-last"])
def test_what_is_inserted_learns(name: str) -> None:
    check_learning(TRAPS[name])


def check_learning(trap: Trap) -> None:
    """Law: every new weight moves within two steps of SGD, and the outputs with them."""
    model, inputs = trap.model(), trap.images(8)
    deeper = inserted(model, usable(model, inputs)).train()
    old = {id(p) for p in model.parameters()}
    new = {n: p for n, p in deeper.named_parameters() if "deeper" in n and id(p) not in old}
    before = {n: p.detach().clone() for n, p in new.items()}
    optimizer = torch.optim.SGD(new.values(), 0.1)
    for _ in range(2):
        optimizer.zero_grad()
        deeper(inputs).square().sum().backward()
        optimizer.step()
    still = [n for n, p in new.items() if torch.equal(p, before[n])]
    assert new
    assert still == []


def places_of(model: nn.Module, image: Tensor) -> dict[str, str | None]:
    with evaluating(model):
        return {p.module: p.refusal for p in find_places(model, image)}


def test_places_of_the_plain_demo() -> None:
    model, example = obo.load("demo:vgg")
    names = [f"relu{stage}_{i}" for stage in (1, 2, 3) for i in (1, 2)]
    assert places_of(model, example) == dict.fromkeys([*names, "pool1", "pool2"])


def test_a_residual_block_takes_it_behind_its_sum() -> None:
    model, example = obo.load("demo:resnet")
    found = places_of(model, example)
    assert found["stage1.0.relu2"] is None
    assert not {"stage1.0.norm2", "stage1.0", "stage1.0.conv2"} & set(found)


class Block(nn.Module):
    """A residual block whose one activation is used twice, as torchvision's are; or has none behind."""

    def __init__(self, activated: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(8, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.activated = activated

    def forward(self, x: Tensor) -> Tensor:
        y = x + self.conv2(self.relu(self.conv1(x)))
        return self.relu(y) if self.activated else y


@pytest.mark.parametrize("activated", [True, False])
def test_a_block_without_an_activation_of_its_own_is_wrapped(activated: bool) -> None:
    model = nn.Sequential(nn.Conv2d(4, 8, 3), Block(activated), Block(activated), nn.Flatten())
    image = torch.randn(1, 4, 9, 9)
    found = places_of(model.eval(), image)
    assert [n for n in ("1", "2") if n in found and found[n] is None] == ["1", "2"]
    if activated:
        assert "runs 2 times" in str(found["1.relu"])
        kinds = [c.kind for c in usable(model, image) if c.place == "1"]
        assert kinds == ["pointwise", "bottleneck"]
    check_same(model, inserted(model, usable(model, image)), image)


REFUSED = {
    "tied layers": {"a": "runs 3 times"},
    "run three times": {"conv": "runs 3 times"},
    "weight used directly too": {"conv": "reads its attribute `weight`"},
    "a plain list": {"conv1": "past the module tree"},
    "one pixel, in place": {"relu": "one pixel"},
    "partly frozen": {"norm": "training mode"},
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_take_one_says_why(name: str) -> None:
    trap = TRAPS[name]
    found = candidates(trap.model(), trap.images(1))
    for place, words in REFUSED[name].items():
        reasons = [c.reason for c in found if c.place == place]
        assert any(words in reason for reason in reasons)
        assert all(c.refused for c in found if c.place == place)


def test_a_parametrized_end_is_refused() -> None:
    layer = nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 8, 3))
    found = candidates(nn.Sequential(layer, nn.Flatten()).eval(), torch.randn(1, 4, 8, 8))
    assert ["parametrized" in c.reason for c in found] == [True]


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
def test_torchscript_is_refused() -> None:
    inner = torch.jit.script(plain().eval())
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(), inner).eval()
    found = candidates(model, torch.randn(1, 4, 12, 12))
    assert [c.place for c in found if "TorchScript" in c.reason] == ["2"]
    assert [c.kind for c in found if c.place == "1"] == ["pointwise", "bottleneck"]


class Unread(nn.Module):
    """Ignores what its activation returns: it works on the input in place."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu = nn.Conv2d(4, 8, 3), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        self.relu(y)
        return y.mean((2, 3))


def test_an_output_that_nothing_reads_is_refused() -> None:
    found = candidates(Unread().eval(), torch.randn(1, 4, 8, 8))
    assert {c.reason for c in found if c.place == "relu"} == {choosing.UNREAD}


class Counting(nn.Module):
    """Its output depends on how many modules it has."""

    def __init__(self) -> None:
        super().__init__()
        self.body = plain()

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) * len(list(self.modules()))


def test_a_network_that_changes_all_the_same_is_refused() -> None:
    found = candidates(Counting().eval(), torch.randn(1, 4, 12, 12))
    assert found
    assert {c.reason for c in found} == {choosing.CHANGES}
    with pytest.raises(ModelError, match="outputs change"):
        deepened(Counting().eval(), TRAPS["plain"])


@pytest.mark.parametrize(
    ("activation", "idempotent"),
    [(nn.ReLU(), True), (nn.ReLU(inplace=True), True), (nn.ReLU6(), True),
     (nn.Hardtanh(-0.3, 0.8), True), (nn.GELU(), False), (nn.SiLU(inplace=True), False),
     (nn.LeakyReLU(0.2), False), (nn.Tanh(), False), (nn.Hardswish(), False), (nn.ELU(0.5), False)],
)  # fmt: skip
def test_identities_only_behind_idempotent_activations(
    activation: nn.Module, idempotent: bool
) -> None:
    model = nn.Sequential(nn.Conv2d(4, 8, 3), activation, nn.Conv2d(8, 2, 3)).eval()
    image = torch.randn(1, 4, 8, 8)
    found = [c for c in candidates(model, image) if c.place == "1"]
    assert [c.kind for c in found] == (["pointwise"] if idempotent else []) + ["bottleneck"]
    assert found[-1].activation.build()(image).equal(activation(image.clone()))
    check_same(model, inserted(model, tuple(found)), image)


def test_a_second_identity_would_show_behind_another_activation() -> None:
    block = Insertion("1", "pointwise", 8, 8, (3, 3), 36, activation=Activation("Tanh"))
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Tanh()).eval()
    image = torch.randn(1, 4, 8, 8)
    with pytest.raises(AssertionError):
        check_same(model, inserted(model, (block,)), image)


def test_the_style_follows_the_network() -> None:
    normed, bare = TRAPS["plain"].model(), nn.Sequential(nn.Conv2d(4, 16, 3), nn.SiLU()).eval()
    image = TRAPS["plain"].images(1)
    for model, norm, name in ((normed, True, "ReLU"), (bare, False, "SiLU")):
        (block,) = [c for c in candidates(model, image) if c.kind == "bottleneck"][-1:]
        assert (block.norm, block.activation.name) == (norm, name)


def test_memory_formats_follow_the_network() -> None:
    for name, last in (("channels-last", True), ("plain", False)):
        model, inputs = TRAPS[name].model(), TRAPS[name].images(1)
        deeper = inserted(model, usable(model, inputs))
        weights = {n: p for n, p in deeper.named_parameters() if n.endswith("body.conv.weight")}
        assert weights
        for weight in weights.values():
            assert weight.is_contiguous(memory_format=torch.channels_last) == last


def test_modes_are_those_of_the_model() -> None:
    trap = TRAPS["plain"]
    for mode in (True, False):
        result = deepened(trap.model().train(mode), trap)
        assert {m.training for m in result.model.modules()} == {mode}


@pytest.mark.parametrize("name", ["1d", "3d"])
def test_kernels_follow_the_axes(name: str) -> None:
    found = usable(TRAPS[name].model(), TRAPS[name].images(1))
    assert {len(c.kernel) for c in found} == {1 if name == "1d" else 3}
    assert all(k in (1, 3) for c in found for k in c.kernel)


# --- filling a budget


def block(place: str, width: int, score: float | None = 1.0, kind: str = "bottleneck") -> Insertion:
    return Insertion(place, kind, 16, width, (3, 3), 100, True, score=score)


ROOMS = [Room(10**6, None), Room(None, 9000), Room(700_000, 7000), Room(10**6, 3000)]


@pytest.mark.parametrize("room", ROOMS)
@pytest.mark.parametrize("fill", [filling.by_gain, filling.by_rule])
def test_budgets_hold_and_are_used(fill: object, room: Room) -> None:
    check_budget(fill, room)


def check_budget(fill: object, room: Room) -> None:
    """Law: what is chosen fits, and the smallest candidate does not fit in what is left."""
    found = [block("a", 16), block("b", 16, 2.0), block("c", 8, 0.5), block("d", 0, None, "refuse")]
    chosen = fill(found, room)  # type: ignore[operator]
    left = room
    for insertion in chosen:
        left = left.less(insertion)
    assert chosen
    assert all(rest is None or rest >= 0 for rest in (left.macs, left.params))
    assert not left.holds(block("c", 4))
    assert "d" not in {i.place for i in chosen}


def test_the_most_gain_for_its_cost_comes_first() -> None:
    found = [block("a", 8, 1.0), block("b", 8, 3.0), block("c", 16, 3.0), block("d", 8, 0.0)]
    assert [i.place for i in filling.by_gain(found, Room(found[1].macs, None))] == ["b"]
    chosen = filling.by_gain(found, Room(10**7, None))
    assert {i.place for i in chosen} == {"a", "b", "c"}
    assert [i.place for i in chosen] == sorted(i.place for i in chosen)


def test_the_rule_spreads_over_the_network() -> None:
    found = [block(name, 8) for name in "abcd"]
    chosen = filling.by_rule(found, Room(6 * found[0].macs, None))
    assert sorted(i.place for i in chosen)[:4] in (list("aabb"), list("aabc"), list("abcd"))
    assert {i.place for i in chosen} == set("abcd")


def test_the_rule_takes_what_was_asked_for() -> None:
    found = [block(name, 8, kind="prelu") for name in "abc"]
    room = Room(0, 2 * found[0].params)
    assert [i.place for i in filling.by_rule(found, room)] == ["a", "b"]
    assert {i.kind for i in filling.by_rule([*found, block("d", 8)], Room(None, 10**6))} == {
        "bottleneck"
    }


# --- the probe


class Three(nn.Module):
    """Three branches; the output feels the second one a tenth as much, and the third not at all."""

    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU()) for _ in range(3)
        )
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        maps = [branch(x).mean((2, 3)) for branch in self.branches]
        return self.fc(maps[0] + 0.1 * maps[1] + 0.0 * maps[2])


def check_probe(labels: bool = True) -> None:
    """Law: a block is worth something where the output feels it, and nothing where it does not."""
    torch.manual_seed(0)
    model, teacher = Three().eval(), Three().eval()
    x = torch.randn(512, 3, 8, 8)
    y = teacher(x).argmax(1) if labels else None
    found = tuple(Insertion(f"branches.{n}", "bottleneck", 8, 8, (3, 3), 64) for n in range(3))
    scores = probing.probe(model, found, Images(x, y), teacher, batches=24, batch=64)
    assert scores[0] > 2 * scores[2]
    assert scores[1] > 2 * scores[2]


@pytest.mark.parametrize("labels", [True, False])
def test_the_probe_sees_what_matters(labels: bool) -> None:
    check_probe(labels)


def test_estimates_that_disagree_are_not_trusted() -> None:
    generator = torch.Generator().manual_seed(0)
    truth, noise = torch.rand(400, 1, generator=generator), torch.rand(400, 2, generator=generator)
    assert probing.reliability(truth.repeat(1, 2)) == 1.0
    # Equal variances of truth and noise: r = 1/2, and 2r / (1 + r) = 2/3.
    assert probing.reliability(truth + noise) == pytest.approx(2 / 3, abs=0.06)
    assert probing.reliability(noise) < 0.15
    assert probing.reliability(torch.zeros(5, 2)) == 0.0


def test_the_probe_is_drawn_by_its_seed_and_leaves_no_trace() -> None:
    state = torch.get_rng_state()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    model, images = TRAPS["plain"].model(), TRAPS["plain"].images(32)
    teacher = TRAPS["plain"].model(1).train()
    found = usable(model, images)
    runs: list[tuple[float, ...]] = []

    def act() -> None:
        for seed in (0, 0, 1):
            scores = probing.probe(
                model, found, Images(images), teacher, batches=6, batch=8, seed=seed
            )
            runs.append(scores)

    check_untouched(model, lambda _: check_untouched(teacher, lambda _: act()))
    assert torch.equal(torch.get_rng_state(), before)
    assert runs[0] == runs[1] != runs[2]
    torch.set_rng_state(state)


def test_a_loss_that_is_not_finite_is_told() -> None:
    model, images = plain().eval(), TRAPS["plain"].images(16)
    teacher = nn.Sequential(plain(), nn.Threshold(1e9, float("inf"))).eval()
    with pytest.raises(OneByOneError, match="normalization"):
        probing.probe(model, usable(model, images), Images(images), teacher, batches=6, batch=8)


# --- deepen as a whole


def deepened(model: nn.Module, trap: Trap, budget: Budget | None = None, **options: object):
    """A network deepened beside a wider one of its kind."""
    reference = nn.Sequential(
        nn.Conv2d(trap.shape[0], 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
    ).eval()  # fmt: skip
    return obo.deepen(
        model, trap.images(1), budget or Budget(macs=1.0), reference=reference, **options
    )  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "budget", [Budget(macs=0.5), Budget(params=1.0), Budget(macs=1.0, params=0.9)]
)
@pytest.mark.parametrize("probe", [True, False])
def test_the_budget_of_the_reference_holds(budget: Budget, probe: bool) -> None:
    trap = TRAPS["plain"]
    model = trap.model()
    data = trap.images(32) if probe else None
    result = deepened(model, trap, budget, data=data, batches=6)
    plan, after = result.plan, result.verification.after
    assert (plan.macs_after, plan.params_after) == (after.macs, after.params)
    assert plan.reference == (result.verification.before.macs, result.verification.before.params)
    for part, cost, whole in zip(
        (budget.macs, budget.params), (after.macs, after.params), plan.reference, strict=True
    ):
        assert part is None or cost <= part * whole
    assert plan.macs_after > plan.macs_before
    check_same(model, result.model, trap.images(4))
    assert all(i.reason for i in plan.insertions)
    assert any("nothing was measured" in note for note in plan.notes) != probe


def test_bad_input_is_told(tmp_path: Path) -> None:
    trap = TRAPS["plain"]
    model, one = trap.model(), trap.images(1)
    with pytest.raises(BudgetError, match=r"macs=1.0 is used up already: .* the network has"):
        obo.deepen(model, one, Budget(macs=1.0), reference=model)
    with pytest.raises(BudgetError, match=r"latency=0.5 is no budget to deepen to"):
        obo.deepen(model, one, Budget(macs=0.9, latency=0.5), reference=model)
    with pytest.raises(BudgetError, match=r"params=0.1 is used up already"):
        deepened(model, trap, Budget(macs=1.0, params=0.1))
    with pytest.raises(ModelError, match="nothing can be inserted"):
        deepened(nn.Sequential(nn.Flatten(), nn.Linear(4 * 144, 10)).eval(), trap)
    with pytest.raises(ModelError, match=r"conv1: the model calls it past the module tree"):
        deepened(TRAPS["a plain list"].model(), trap)
    with pytest.raises(DataError, match="a label is 10, but the network has 10 classes"):
        deepened(model, trap, data=(trap.images(8), torch.arange(3, 11)))
    with pytest.raises(DataError, match="channels"):
        deepened(model, trap, data=torch.randn(8, 3, 12, 12))
    with pytest.raises(DataError, match="no images to fine-tune on"):
        deepened(model, trap, epochs=1)
    with pytest.raises(DataError, match="the example is"):
        obo.deepen(model, one[0, 0], Budget(macs=1.0), reference=model)
    with pytest.raises(ModelError, match="no insertion 'wider'"):
        deepened(model, trap, kinds=("wider",))
    with pytest.raises(ModelError, match="width='a' does not fit"):
        deepened(model, trap, width="a")
    with pytest.raises(ModelError, match="no insertion 'wider'"):
        deepened(model, trap, kinds="prelu,wider")
    with pytest.raises(OneByOneError, match="output has shape"):
        obo.deepen(
            nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()), one,
            Budget(macs=1.0), reference=model, data=trap.images(16), batches=6,
        )  # fmt: skip
    wide = nn.Sequential(nn.Flatten(), nn.Linear(576, 2000), nn.Linear(2000, 10))
    macs = obo.measure(model, one).macs
    tight = Budget(macs=(macs + 2000) / obo.measure(wide, one).macs)
    with pytest.raises(BudgetError, match="less than the smallest insertion"):
        obo.deepen(model, one, tight, reference=wide)


def test_fine_tuning_makes_something_of_it() -> None:
    trap = TRAPS["plain"]
    model, images = trap.model(), trap.images(96)
    labels = images.mean((1, 2, 3)).gt(0.3).long()
    result = deepened(
        model, trap, data=(images, labels), held_out=(images, labels), epochs=4, batches=6,
        kinds=("bottleneck",), recipe=obo.Recipe(soft=0.0, batch_size=16, average=0.0),
    )  # fmt: skip
    assert result.tuned is not None
    assert result.tuned.images == 4 * 96
    before, after = result.tuned.before, result.tuned.after
    assert before is not None
    assert after is not None
    assert (before.accuracy or 0) + 0.2 < (after.accuracy or 0)
    expands = [p for n, p in result.model.named_parameters() if n.endswith("expand.weight")]
    assert expands
    assert all(bool(p.detach().abs().max() > 0) for p in expands)
    assert result.model.get_submodule("conv").training == model.training


def test_an_interrupted_training_is_in_the_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    from onebyone.recovery import training

    def interrupted(self: object, *batch: object) -> float:
        raise KeyboardInterrupt

    monkeypatch.setattr(training.Training, "_step", interrupted)
    trap = TRAPS["plain"]
    images = trap.images(48)
    labels = images.mean((1, 2, 3)).gt(0.3).long()
    result = deepened(
        trap.model(), trap, data=(images, labels), held_out=(images, labels), epochs=1, batches=6,
        recipe=obo.Recipe(batch_size=16),
    )  # fmt: skip
    assert result.tuned is not None
    assert result.tuned.ended == "interrupted"
    assert "the training was interrupted at epoch 0.00" in result.plan.notes


def test_a_training_that_diverges_keeps_the_network() -> None:
    trap = TRAPS["plain"]
    images = trap.images(48)
    labels = images.mean((1, 2, 3)).gt(0.3).long()
    recipe = obo.Recipe(
        batch_size=16, optimizer="sgd", learning_rate=1e30, clip=0.0, warmup=0.0, average=0.0
    )
    result = deepened(
        trap.model(), trap, data=(images, labels), held_out=(images, labels), epochs=1, batches=6,
        recipe=recipe,
    )  # fmt: skip
    assert result.tuned is not None
    assert result.tuned.ended == "diverged"
    assert any(n.startswith("the training ended: the loss") for n in result.plan.notes)
    assert outputs(result.model, images)[0].isfinite().all()


# --- saved, loaded, nested


@pytest.fixture
def no_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders without exported programs, which take long; so nothing is loaded from those either."""
    monkeypatch.setattr(saving, "_write_programs", lambda *_: [])


@pytest.mark.slow
@pytest.mark.usefixtures("no_programs")
def test_slim_deepen_slim_deepen_survives_a_fresh_process(tmp_path: Path) -> None:
    reference, example = obo.load("demo:vgg")
    images = obo.open_images("demo").take(24)
    folder: str | Path = "demo:vgg"
    for number, step in enumerate(("slim", "deepen", "slim", "deepen")):
        loaded = obo.load(folder)
        if step == "slim":
            made = obo.slim(
                loaded.model, images, macs=0.4 + 0.1 * number, held_out=0, latency=False,
                source=loaded.source,
            )  # fmt: skip
            inside = [d.form for d in made.plan.decisions if "deeper" in d.layer]
            assert number == 0 or {*inside} - {"keep", "refuse"}
        else:
            made = obo.deepen(
                loaded.model, example, Budget(macs=1.0, params=1.0), reference=reference,
                source=loaded.source, seed=number,
            )  # fmt: skip
            _stir(made.model)
        folder = made.save(tmp_path / f"{number}")
        again = obo.load(folder)
        assert again.notes == ()
        check_same(made.model, again.model, images.inputs[:8])
    x = images.inputs[:4]
    torch.save(made.model(x).detach(), tmp_path / "expected.pt")
    for path in tmp_path.iterdir():  # the earlier folders may be gone
        if path.is_dir() and path != folder:
            path.rename(path.with_name(f"moved-{path.name}"))
    code = (
        "import torch, onebyone as obo\n"
        "x = obo.open_images('demo').take(24).inputs[:4]\n"
        f"y = obo.load({str(folder)!r}).model(x)\n"
        f"assert torch.equal(y, torch.load({str(tmp_path / 'expected.pt')!r}))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def _stir(model: nn.Module) -> None:
    """Weights as training may leave them: none is zero."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "deeper" in name:
                parameter += 0.02 * torch.randn(parameter.shape, generator=generator)


def test_the_plan_that_made_it_is_source_enough(tmp_path: Path) -> None:
    loaded = obo.load("demo:vgg")
    slimmed = obo.slim(
        loaded.model, obo.open_images("demo").take(32), macs=0.4, held_out=0, latency=False,
        source=loaded.source,
    )  # fmt: skip
    result = obo.deepen(
        slimmed.model, loaded.example, Budget(macs=0.8), reference=loaded.model, source=slimmed.plan
    )
    again = obo.load(result.save(tmp_path / "deeper"))
    assert again.notes == ()
    check_same(result.model, again.model, obo.open_images("demo").take(4).inputs)
    report = (tmp_path / "deeper" / "report.html").read_text(encoding="utf-8")
    assert "residual bottleneck" in report
    assert "relu2_2" in report
    for parts in (again.model.modules(), result.model.modules()):
        assert {type(m).__module__.split(".")[0] for m in parts} == {"torch"}


def test_few_images_are_trained_on_in_batches_that_they_fill() -> None:
    trap = TRAPS["plain"]
    made = obo.slim(trap.model(), trap.images(40), macs=0.5, held_out=8, latency=False)
    deeper = obo.deepen(
        made.model, trap.images(1), Budget(macs=1.0), reference=trap.model(), data=trap.images(40),
        epochs=1, batches=1,
    )  # fmt: skip
    assert deeper.plan.insertions


@pytest.mark.parametrize("times", [0.9, 1.05, 1.5])
def test_a_deeper_network_that_takes_longer_than_the_original_is_told(
    times: float, monkeypatch: pytest.MonkeyPatch
) -> None:

    def timed(*given: Any, **options: Any) -> Verification:
        found = verify(*given, **options)
        was, now = (Latency(1, ms, ms, ms, 9, 1, 1, "float32") for ms in (2.0, 2.0 * times))
        sides = [replace(found.before, latency=(was,)), replace(found.after, latency=(now,))]
        return replace(found, before=sides[0], after=sides[1])

    monkeypatch.setattr(deepening, "verify", timed)
    wide = nn.Sequential(nn.Conv2d(3, 16, 9, padding=4), nn.ReLU(), nn.Conv2d(16, 16, 1)).eval()
    thin = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 1)).eval()
    deeper = obo.deepen(thin, torch.randn(1, 3, 8, 8), obo.Budget(macs=1.0), reference=wide)
    told = [n for n in deeper.plan.notes if "of the original's time" in n]
    assert len(told) == (times > 1.1)
    assert all("takes ×1.50 of the original's time in PyTorch eager, at ×" in n for n in told)
    assert all(
        f"{sum(not i.refused for i in deeper.plan.insertions)} new blocks" in n for n in told
    )
