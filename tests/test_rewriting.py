"""Plan → lighter model: exact where it can be, budgets kept, everything else bit for bit."""

from __future__ import annotations

import contextlib
import copy
from dataclasses import replace
from typing import cast

import pytest
import torch
from models import TRAPS, Trap, images, plain
from test_planning import check_reported_cost
from test_tree import check_untouched
from torch import Tensor, nn

import onebyone as obo
from onebyone import rewriting
from onebyone.errors import BudgetError, ModelError, OneByOneError, PlanError
from onebyone.forms import FORMS
from onebyone.measurement.memory import held_before
from onebyone.plain import plain as seen_as_plain
from onebyone.plans import Budget, Plan
from onebyone.tree import tensors_in

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")
CASTS = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64}
HARMLESS = [n for n, t in TRAPS.items() if t.error is None]


def kept(model: nn.Module, inputs: Tensor) -> tuple[Plan, obo.Statistics]:
    """The plan that keeps every layer, to be edited."""
    statistics = obo.observe(model, inputs)
    return obo.plan(model, statistics, Budget(macs=1.0)), statistics


def edited(plan: Plan, forms: dict[str, tuple[str, tuple[int, ...]]]) -> Plan:
    """The plan with these layers in these forms."""
    return replace(plan, decisions=tuple(
        replace(d, form=forms[d.layer][0], ranks=forms[d.layer][1]) if d.layer in forms else d
        for d in plan.decisions
    ))  # fmt: skip


def full(plan: Plan, form: str) -> Plan:
    """Every layer that the form suits in that form, at full rank."""
    forms = {}
    for d in plan.decisions:
        if d.conv is not None and not d.refused and FORMS[form].refuse(d.conv) is None:
            forms[d.layer] = (form, FORMS[form].full(d.conv))
    assert forms
    return edited(plan, forms)


def outputs(model: nn.Module, inputs: Tensor) -> Tensor:
    with torch.no_grad():
        return model(inputs)


def relative_error(expected: Tensor, found: Tensor) -> float:
    gap = (expected - found).square().sum()
    return float(gap / (expected - expected.mean(0)).square().sum())


def check_full_rank_network(form: str) -> None:
    """Law: at full rank the lighter network computes what the original does."""
    model, inputs = TRAPS["plain"].model(), TRAPS["plain"].images(32)
    plan, statistics = kept(model, inputs)
    lighter = rewriting.rewrite(model, full(plan, form), inputs, statistics=statistics)
    assert relative_error(outputs(model, inputs), outputs(lighter, inputs)) < 1e-6
    held_out = TRAPS["plain"].images(16, seed=9)
    assert relative_error(outputs(model, held_out), outputs(lighter, held_out)) < 1e-6


@pytest.mark.parametrize("form", ["squeeze", "channel", "tucker2", "pointwise", "spatial"])
def test_full_rank_is_exact(form: str) -> None:
    check_full_rank_network(form)


def test_keeping_everything_keeps_every_bit() -> None:
    model, inputs = TRAPS["plain"].model(), TRAPS["plain"].images()
    plan, statistics = kept(model, inputs)
    lighter = obo.rewrite(model, plan, inputs, statistics=statistics)
    assert lighter is not model
    for key, value in model.state_dict().items():
        assert torch.equal(lighter.state_dict()[key], value)


def check_low_rank_network() -> None:
    """Law: a network whose kernels are in the forms' families is recovered."""
    model, inputs = TRAPS["plain"].model(), TRAPS["plain"].images(32)
    with torch.no_grad():
        weight: Tensor = model.conv.weight  # type: ignore[assignment,union-attr]
        left, values, right = torch.linalg.svd(weight.flatten(1), full_matrices=False)
        weight.copy_((left[:, :5] * values[:5] @ right[:5]).reshape(weight.shape))
    plan, statistics = kept(model, inputs)
    thin = edited(plan, {"conv": ("channel", (5,))})
    lighter = rewriting.rewrite(model, thin, inputs, statistics=statistics)
    assert relative_error(outputs(model, inputs), outputs(lighter, inputs)) < 1e-6


def test_a_network_of_low_rank_is_recovered() -> None:
    check_low_rank_network()


def check_refit_of_kept_layers(bias: bool, seed: int = 0) -> None:
    """Law: refitting a kept layer to its new inputs brings its outputs nearer, not further."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Conv2d(4, 16, 3, bias=bias), nn.ReLU(), nn.Conv2d(16, 8, 3, bias=bias), nn.Flatten(2)
        ).eval()  # fmt: skip
        model[2].weight.data.add_(0.2)  # type: ignore[union-attr,operator]
    inputs = images(32, 4, 12, 12)
    plan, statistics = kept(model, inputs)
    for ranks in ((2,), (4,), (8,)):
        thin = edited(plan, {"0": ("channel", ranks)})
        lighter = rewriting.rewrite(model, thin, inputs, statistics=statistics)
        unfitted = copy.deepcopy(lighter)
        unfitted[2] = model[2]  # type: ignore[index,operator]
        expected = outputs(model, inputs)
        refitted = relative_error(expected, outputs(lighter, inputs))
        assert refitted < relative_error(expected, outputs(unfitted, inputs)), ranks


@pytest.mark.parametrize("bias", [True, False])
def test_kept_layers_are_refitted_to_their_new_inputs(bias: bool) -> None:
    check_refit_of_kept_layers(bias)


def weight_svd_network(model: nn.Module, layer: str, form: str, rank: int) -> nn.Module:
    """The model with one kernel cut by the SVD of an unfolding, the rest as it is."""
    cut = copy.deepcopy(model)
    weight: Tensor = cut.get_submodule(layer).weight  # type: ignore[assignment]
    with torch.no_grad():
        unfolded = weight.flatten(1) if form == "channel" else weight.transpose(1, 0).flatten(1)
        left, values, right = torch.linalg.svd(unfolded, full_matrices=False)
        low = left[:, :rank] * values[:rank] @ right[:rank]
        if form == "squeeze":
            shape = weight.transpose(1, 0).shape
            weight.copy_(low.reshape(shape).transpose(1, 0))
        else:
            weight.copy_(low.reshape(weight.shape))
    return cut


@pytest.mark.parametrize("form", ["channel", "squeeze"])
def test_better_than_weight_svd_and_better_with_rank(form: str) -> None:
    model, inputs = TRAPS["plain"].model(), TRAPS["plain"].images(48)
    plan, statistics = kept(model, inputs)
    expected, errors = outputs(model, inputs), []
    for rank in (2, 4, 8, 14):
        thin = edited(plan, {"conv": (form, (rank,))})
        lighter = obo.rewrite(model, thin, inputs, statistics=statistics)
        errors.append(relative_error(expected, outputs(lighter, inputs)))
        plain_svd = weight_svd_network(model, "conv", form, rank)
        assert errors[-1] <= relative_error(expected, outputs(plain_svd, inputs))
    assert errors == sorted(errors, reverse=True)


def slimmed(trap: Trap, macs: float = 0.6) -> tuple[nn.Module, obo.Slimmed]:
    model = trap.model()
    return model, obo.slim(model, trap.images(), macs=macs, latency=False)


@pytest.mark.parametrize("name", TRAPS)
def test_every_trap_goes_through_or_is_refused_with_a_reason(name: str) -> None:
    trap = TRAPS[name]
    model = trap.model()
    cast = CASTS.get(name, torch.float32)
    if trap.error is not None:
        with pytest.raises(trap.error[0], match=trap.error[1]):
            obo.slim(model, trap.images(), macs=0.6, latency=False)
        return
    if name in ("attention", "a plain list"):  # too much of it must stay as it is
        with pytest.raises(BudgetError, match="the lowest that this network reaches is macs="):
            obo.slim(model, trap.images(), macs=0.5, latency=False)
        return
    result = obo.slim(model, trap.images(), macs=0.6, latency=False)
    image = trap.images(1).to(cast)
    check_reported_cost(result.plan, seen_as_plain(model, image).model, result.model, image)
    assert result.plan.macs_after <= 0.6 * result.plan.macs_before
    assert result.verification.after.macs == result.plan.macs_after
    for tensor in tensors_in(outputs(result.model, image)):
        assert tensor.isfinite().all()
    check_refused_layers(result.plan, model, result.model)
    assert {m.__class__ for m in result.model.modules()} <= {
        m.__class__ for m in model.modules()
    } | {nn.Sequential}


def check_refused_layers(plan: Plan, model: nn.Module, lighter: nn.Module) -> None:
    """Law: refused layers, and all that is no layer of the plan, keep every bit."""
    planned = [d.layer for d in plan.decisions if not d.refused]
    old, new = model.state_dict(keep_vars=True), lighter.state_dict(keep_vars=True)
    changed = {id(p) for n in planned for p in model.get_submodule(n).parameters()}
    narrowed = {cut.tensor for narrowing in plan.narrowings for cut in narrowing.cuts}
    for key, value in old.items():
        if id(value) not in changed and key not in narrowed:
            assert torch.equal(new[key], value)
            assert new[key].requires_grad == value.requires_grad
            assert new[key] is not value


def test_tied_layers_stay_tied() -> None:
    _, result = slimmed(TRAPS["tied layers"])
    lighter = result.model
    assert lighter.a is lighter.b
    assert lighter.inner[1] is lighter.a  # type: ignore[index]
    _, result = slimmed(TRAPS["tied weights"])
    assert result.model.first.weight is result.model.second.weight  # type: ignore[union-attr]
    _, result = slimmed(TRAPS["tied embedding"])
    assert result.model.decoder.weight is result.model.embedding.weight  # type: ignore[union-attr]


def test_modes_flags_dtype_and_layout_are_carried() -> None:
    trap = TRAPS["partly frozen"]
    model = trap.model().train()
    lighter = obo.slim(model, trap.images(), macs=0.6, latency=False).model
    assert not lighter.norm.training  # type: ignore[union-attr]
    assert lighter.body.norm.training  # type: ignore[union-attr]
    assert not any(p.requires_grad for p in lighter.norm.parameters())  # type: ignore[union-attr]
    first: nn.Module = lighter.body.first[0]  # type: ignore[assignment,index,union-attr]
    assert not any(p.requires_grad for p in first.parameters())
    assert all(m.training for m in first.modules())
    for name in ("float16", "bfloat16", "float64"):
        _, result = slimmed(TRAPS[name])
        assert {p.dtype for p in result.model.parameters()} == {CASTS[name]}
    _, result = slimmed(TRAPS["channels-last"])
    last = torch.channels_last
    for module in result.model.modules():
        if isinstance(module, nn.Conv2d):
            assert module.weight.is_contiguous(memory_format=last)


@pytest.mark.parametrize("name", [n for n in HARMLESS if n != "a plain list"])
def test_the_original_is_untouched(name: str) -> None:
    trap = TRAPS[name]
    model = trap.model().train()
    check_untouched(model, lambda m: rewritten(m, trap.images(8), macs=0.8))


def rewritten(
    model: nn.Module, inputs: Tensor, macs: float = 0.6, memory: int = 2 << 30
) -> nn.Module:
    plan = obo.plan(model, obo.observe(model, inputs), Budget(macs=macs))
    return obo.rewrite(model, plan, inputs, memory=memory)


@pytest.mark.parametrize("memory", [2 << 30, 100_000])
def test_the_original_is_untouched_by_a_failure_in_the_middle(
    monkeypatch: pytest.MonkeyPatch, memory: int
) -> None:
    model, inputs = TRAPS["partly frozen"].model().train(), TRAPS["partly frozen"].images()
    solve, calls = rewriting._solve, []

    def fails(*args: object) -> None:
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        solve(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(rewriting, "_solve", fails)

    with pytest.raises(KeyboardInterrupt):
        check_untouched(model, lambda m: rewritten(m, inputs, memory=memory))
    assert len(calls) == 2


def check_deterministic(name: str = "plain", memory: int = 2 << 30) -> None:
    """Law: the same seed gives the same plan and the same weights, whatever was drawn before."""
    trap = TRAPS[name]
    first = obo.slim(trap.model(), trap.images(), macs=0.6, latency=False, memory=memory)
    torch.rand(5)
    again = obo.slim(trap.model(), trap.images(), macs=0.6, latency=False, memory=memory)
    assert first.plan == again.plan
    for key, value in first.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[key])


@pytest.mark.parametrize("memory", [2 << 30, 500_000])
def test_the_same_seed_gives_the_same_bits(memory: int) -> None:
    check_deterministic(memory=memory)


def check_chunks(name: str) -> None:
    """Law: in chunks the result is as good as in one batch, and at full sampling nearly the same."""
    model, inputs = TRAPS[name].model(), TRAPS[name].images(32)
    statistics = obo.observe(model, inputs)
    plan = obo.plan(model, statistics, Budget(macs=0.6))
    whole, parts = (
        rewriting.rewrite(model, plan, inputs, statistics=statistics, memory=m)
        for m in (2 << 30, 1_500_000)
    )
    expected = outputs(model, inputs)
    errors = [relative_error(expected, outputs(m, inputs)) for m in (whole, parts)]
    assert errors[1] == pytest.approx(errors[0], rel=0.1)
    assert relative_error(outputs(whole, inputs), outputs(parts, inputs)) <= 0.1 * errors[0]


@pytest.mark.parametrize("name", ["plain", "run three times", "one pixel, in place", "1d"])
def test_chunks_give_nearly_the_same(name: str) -> None:
    check_chunks(name)


@pytest.mark.parametrize("name", ["plain", "run three times", "1d"])
def test_early_layers_are_solved_on_those_that_fit(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is held in the network stays under the memory; later layers see more, and it is as good."""
    model, inputs = TRAPS[name].model(), TRAPS[name].images(64)
    statistics = obo.observe(model, inputs)
    plan = obo.plan(model, statistics, Budget(macs=0.6))
    whole = rewriting.rewrite(model, plan, inputs, statistics=statistics)
    held = held_before(model, [d.layer for d in plan.decisions if not d.refused], inputs[:1])
    memory = 40 * max(held.values())
    monkeypatch.setattr(rewriting, "LEAST", 1)
    seen: dict[str, int] = {}
    solve = rewriting._solve

    def noting(job: rewriting._Job, own: nn.Module) -> None:
        seen[job.decision.layer] = sum(map(len, (job.patches or job.own_patches).values()))
        assert len({chunk for chunk, _ in job.targets}) == job.chunks
        assert job.chunks * held[job.decision.layer] <= memory  # a chunk is an image here
        solve(job, own)

    monkeypatch.setattr(rewriting, "_solve", noting)
    monkeypatch.setattr(rewriting, "CHUNK", 1)
    parts = rewriting.rewrite(model, plan, inputs, statistics=statistics, memory=memory)
    assert min(seen.values()) > 0
    expected = outputs(model, inputs)
    errors = [relative_error(expected, outputs(m, inputs)) for m in (whole, parts)]
    assert errors[1] <= 2 * errors[0]


def test_data_dependent_ways_end_well_or_with_a_clear_error() -> None:
    trap = TRAPS["data-dependent"]
    model, inputs = trap.model(), trap.images(32)
    inputs[16:] -= (
        3  # the second half goes the other way; so does the whole, but not the first image
    )
    for memory in (2 << 30, 1_500_000):
        found: list[object] = []
        with contextlib.suppress(ModelError, BudgetError):
            found.append(outputs(rewritten(model, inputs, macs=0.8, memory=memory), inputs))
        assert all(tensor.isfinite().all() for tensor in tensors_in(found))


class Picks(nn.Module):
    """A second stage on the places that the first one finds, as a detector has: so many of each image in
    the order of their scores (`most`), or all above the mean.
    """

    def __init__(self, most: int | None) -> None:
        super().__init__()
        self.most = most
        self.trunk = nn.Sequential(
            nn.Conv2d(3, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 32, 3, padding=1), nn.ReLU()
        )
        self.score = nn.Conv2d(32, 1, 3, padding=1)
        self.head = nn.Sequential(
            nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 5)
        )

    def forward(self, x: Tensor) -> Tensor:
        found = self.trunk(x)
        scores = self.score(found).flatten(1)
        if self.most is None:
            image, place = (scores > scores.mean()).nonzero(as_tuple=True)
        else:
            place = scores.topk(self.most, 1).indices.flatten()
            image = torch.arange(len(x)).repeat_interleave(self.most)
        rows = self.head(found.flatten(2).movedim(1, -1)[image, place])
        return rows.new_zeros(len(x), 5).index_add(0, image, rows) / 60


@pytest.mark.parametrize("most", [60, None])
def test_rows_that_the_network_chooses(most: int | None) -> None:
    """Others, or others' order, in the lighter network: inputs and outputs must still be of one row."""
    torch.manual_seed(0)
    model = Picks(most).eval()
    x = torch.randn(96, 3, 12, 12) * torch.rand(96, 1, 1, 1) * 2 + torch.randn(96, 3, 1, 1)
    statistics = obo.observe(model, x)
    made = obo.plan(model, statistics, Budget(macs=0.6))
    changed = {d.layer for d in made.decisions if d.form not in ("keep", "refuse")}
    assert changed & {"trunk.0", "trunk.2", "score"}
    with torch.no_grad():
        before = model(x)
        gap = obo.rewrite(model, made, x, statistics=statistics)(x) - before
    assert gap.square().sum() < 0.1 * (before - before.mean(0)).square().sum()


def test_rows_that_changed_places_do_not_spoil_the_others() -> None:
    """Some of the two best places of an image are others in the lighter network; what reads them is kept,
    and stays nearly as it was."""
    torch.manual_seed(0)
    model = Picks(2).eval()
    x = torch.randn(96, 3, 12, 12) * torch.rand(96, 1, 1, 1) * 2 + torch.randn(96, 3, 1, 1)
    statistics = obo.observe(model, x)
    made = obo.plan(model, statistics, Budget(macs=0.6))
    decisions = tuple(
        replace(d, form="squeeze", ranks=(8,), shape=None, reason="")
        if d.layer == "score"
        else replace(d, form="refuse" if d.refused else "keep", ranks=(), shape=None)
        for d in made.decisions
    )
    made = replace(made, decisions=decisions, narrowings=())
    lighter = cast(Picks, obo.rewrite(model, made, x, statistics=statistics))
    with torch.no_grad():
        one, other = (m.score(m.trunk(x)).flatten(1).topk(2, 1).indices for m in (model, lighter))
    assert 0.2 < float((one != other).double().mean()) < 0.5
    for before, after in zip(model.head.parameters(), lighter.head.parameters(), strict=True):
        assert (after - before).abs().max() < 0.2 * before.abs().max()


def test_plans_of_other_networks_are_refused() -> None:
    model, inputs = TRAPS["plain"].model(), TRAPS["plain"].images(8)
    plan, _ = kept(model, inputs)
    lists = TRAPS["lists and dicts of modules"].model()
    with pytest.raises(PlanError, match=r"first\.0"):
        obo.rewrite(lists, plan, inputs)
    wider = plain().eval()
    wider.conv = nn.Conv2d(16, 24, 5, padding=2)
    with pytest.raises(PlanError, match="conv"):
        obo.rewrite(wider, plan, inputs)
    short = replace(plan, decisions=plan.decisions[1:])
    with pytest.raises(PlanError, match=f"what becomes of layer '{plan.decisions[0].layer}'"):
        obo.rewrite(model, short, inputs)
    hooked = TRAPS["hooks"].model()
    with pytest.raises(PlanError, match="hooks"):
        obo.rewrite(hooked, plan, inputs)


def test_errors_have_one_root() -> None:
    for kind in (BudgetError, ModelError, PlanError):
        assert issubclass(kind, OneByOneError)
