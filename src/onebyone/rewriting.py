"""Plan → new model: each layer solved on what reaches it, as the calibration batch passes through."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn

from onebyone.applying import planned_layers
from onebyone.building import fill, skeleton
from onebyone.conv import ConvSpec, bear_geometry, kernel_of
from onebyone.data import open_images
from onebyone.effort import Effort, Work, efforts
from onebyone.errors import DataError, ModelError, as_bytes, listed
from onebyone.factorize.fit import Band, fit, fit_within
from onebyone.factorize.grouped import fit_each_group, fit_groups, group_features
from onebyone.factorize.metric import factor
from onebyone.factorize.spatial import along_first
from onebyone.forms import KEPT
from onebyone.lockstep import Lockstep
from onebyone.measurement.memory import held_before
from onebyone.narrowing.cutting import cut_model
from onebyone.narrowing.spaces import kept_entries
from onebyone.plain import plain
from onebyone.planning import check_seen
from onebyone.plans import Decision, Plan, as_plan
from onebyone.recorder import LayerStatistics
from onebyone.running import call, placed_for, release_memory
from onebyone.sampling import choose_positions, output_rows, patch_rows, positions_of
from onebyone.several import packed, takes_packed, unpacked
from onebyone.statistics import Statistics, observe
from onebyone.tree import (
    check_weights,
    deep_copy,
    evaluating,
    hooked,
    modules_by_name,
    random_numbers,
    random_state,
    replace_modules,
    uncompiled,
)  # fmt: skip

CHUNK = 64  # images at once: more would leave the processor's cache
LEAST = 64  # images that a layer is solved on whatever the memory
SOLVING = 1.0  # what the solutions may cost, in passes of the original over the images
METRIC_SHRINKAGE = 1e-3
RIDGE = 0.02  # times features / rows
UNCHANGED = 1e-5  # relative residual under which a kept layer keeps its bits
FIRST_ROWS = 64  # that are looked at before all others

BY_DATA = "the model's control flow depends on its data; keep what decides it out of the plan"


@dataclass
class _Job:
    """One planned layer on its way to its solution; rows are kept by (chunk, call).

    `conv` is its geometry after the narrowings; `rows` are the outputs that stay, `read` the inputs,
    None for all. `chunks` is how many of the first chunks it is solved on.
    """

    index: int
    decision: Decision
    conv: ConvSpec
    rows: list[int] | None
    read: list[int] | None
    layer: nn.Module
    training: bool
    seen: LayerStatistics
    images: int
    calls: int
    effort: Effort
    chunks: int = 0
    positions: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    targets: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    patches: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    own_patches: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    solution: nn.Module | None = None

    @property
    def channels_read(self) -> list[int] | None:
        """The channels of its input that stay: of a depthwise layer those that its outputs are of."""
        if not self.conv.depthwise or self.rows is None:
            return self.read
        assert self.decision.conv is not None
        many = self.decision.conv.c_out // self.decision.conv.c_in
        return sorted({row // many for row in self.rows})


@torch.inference_mode(False)
def rewrite(
    model: nn.Module,
    plan: Plan,
    images: object,
    *,
    statistics: Statistics | None = None,
    memory: int = 2 << 30,
    progress: Callable[[float], None] | None = None,
) -> nn.Module:
    """A lighter copy of the model, as the plan says; the model itself is not touched.

    images: the calibration images, as for `observe`; statistics: what `observe` gave on them (it is
    run again if absent). Every planned layer is solved on the inputs that it gets from the lighter
    layers before it, towards the outputs that the original gave (Zhang et al. 2016, §3.3, extended
    to the kept layers). The result has plain PyTorch layers only. memory: bytes for what is alive in the
    network while the images wait at a layer; where they do not all fit there (in the first layers,
    mostly), it is solved on the first of them, and the others pass when there is room.
    Raises PlanError for a plan of another network.
    """
    check_weights(model=model)
    if statistics is not None:
        check_seen(model, statistics)
    model, plan = uncompiled(model), as_plan(plan)
    memory = as_bytes(memory, DataError)
    every, given = open_images(images), model
    inputs = every.inputs
    model = plain(packed(model, every.packing), inputs[:1]).model
    statistics = statistics or observe(model, every, seed=plan.seed, memory=memory)
    jobs = _jobs(model, plan, statistics)
    size = max(1, min(CHUNK, memory // max(40 * statistics.survey.live_bytes, 1)))
    chunks = [placed_for(model, part) for part in inputs.split(size)]
    _share(model, jobs, chunks, statistics, memory)
    with evaluating(model):
        drawn = _collect(model, jobs, chunks, plan.seed)
    lighter = cut_model(deep_copy(model), plan.narrowings)
    with evaluating(lighter):
        solvers = _pass_through(lighter, jobs, chunks, drawn, progress or (lambda done: None))
    lighter = replace_modules(lighter, solvers)
    return lighter if takes_packed(given) else unpacked(lighter)


def _jobs(model: nn.Module, plan: Plan, statistics: Statistics) -> list[_Job]:
    """The planned layers in the order that data reaches them; PlanError where plan and model differ."""
    modules = modules_by_name(model)
    seen = {s.layer: s for s in statistics.survey.layers}
    planned = planned_layers(model, plan, statistics)
    samples = [statistics.images * seen[d.layer].positions_out for d, _ in planned]
    work = [Work(c, d, n) for (d, c), n in zip(planned, samples, strict=True)]
    budget = SOLVING * statistics.survey.macs * statistics.images
    return [
        _job(index, decision, conv, modules[decision.layer], statistics, effort, plan)
        for index, ((decision, conv), effort) in enumerate(
            zip(planned, efforts(work, budget), strict=True)
        )
    ]


def _job(
    index: int, decision: Decision, conv: ConvSpec, layer: nn.Module, statistics: Statistics,
    effort: Effort, plan: Plan,
) -> _Job:  # fmt: skip
    found = statistics.layers[decision.layer]
    calls = next(s.calls for s in statistics.survey.layers if s.layer == decision.layer)
    assert decision.conv is not None
    rows = kept_entries(decision.layer, 0, decision.conv.c_out, plan.narrowings)
    read = kept_entries(decision.layer, 1, decision.conv.c_in, plan.narrowings)
    return _Job(
        index, decision, conv, rows, read, layer, layer.training, found, statistics.images, calls,
        effort,
    )  # fmt: skip


def _share(
    model: nn.Module, jobs: list[_Job], chunks: list[Tensor], statistics: Statistics, memory: int
) -> None:
    """How many chunks each layer is solved on: as many as can be held there, and at all layers after."""
    most, size = len(chunks), len(chunks[0])
    held: dict[str, int] = {}
    if statistics.images * statistics.survey.activation_bytes > memory:
        held = held_before(model, [job.decision.layer for job in jobs], chunks[0][:1])
    for job in reversed(jobs):
        fit = memory // max(held.get(job.decision.layer, 0), 1)
        most = min(most, max(fit // size, ceil(LEAST / size)))
        job.chunks = most


def _band(job: _Job) -> Band:
    """The outputs that the rest of the network can feel; all, for a channel that never felt any."""
    lowest, highest = job.seen.lowest, job.seen.highest
    if job.rows is not None:
        lowest, highest = lowest[job.rows], highest[job.rows]
    never = lowest > highest
    infinite = torch.full_like(lowest, torch.inf)
    return Band(torch.where(never, -infinite, lowest), torch.where(never, infinite, highest))


def _metric(job: _Job) -> Tensor:
    """A factor of the metric of the loss at the outputs that stay, for one image."""
    gradients = job.seen.gradients / job.images
    if job.rows is not None:
        gradients = gradients[job.rows][:, job.rows]
    return factor(gradients, METRIC_SHRINKAGE)


def _metrics(job: _Job) -> Tensor:
    """The same for each group of a grouped layer, which has no narrowings."""
    gradients = job.seen.gradients / job.images
    return torch.stack([factor(group, METRIC_SHRINKAGE) for group in gradients])


def _collect(
    model: nn.Module, jobs: list[_Job], chunks: list[Tensor], seed: int
) -> list[tuple[Any, ...]]:
    """One pass of the original: its outputs at sampled positions are the targets.

    Gives where random numbers were before each chunk: the lighter network is to draw the same.
    """
    starts = list(itertools.accumulate((len(chunk) for chunk in chunks), initial=0))
    current: list[int] = [0]
    counts: Counter[int] = Counter()

    def hook(job: _Job) -> Callable[[nn.Module, tuple[Tensor], Tensor], None]:
        def take(_: nn.Module, args: tuple[Tensor], y: Tensor) -> None:
            if current[0] >= job.chunks:
                return
            key = (current[0], counts[job.index])
            counts[job.index] += 1
            items, over = divmod(len(y), len(chunks[key[0]]))
            # Drawn for all images at once, so that chunks of any size see the same positions; but a
            # layer may run on something else than images, such as a table of relative positions.
            images = starts[job.chunks]
            drawn, first = (len(y), 0) if over else (items * images, items * starts[key[0]])
            generator = torch.Generator().manual_seed(hash((seed, job.index, key[1])) % (1 << 62))
            wanted = ceil(job.effort.rows / max(drawn * job.calls, 1))
            every = choose_positions(drawn, positions_of(job.conv, y), wanted, generator)
            chosen = every[first:][: len(y)]
            job.positions[key] = chosen
            rows = output_rows(job.conv, y, chosen)
            job.targets[key] = rows if job.rows is None else rows[:, job.rows]
            if job.calls > 1 or len(y) != len(chunks[key[0]]):
                assert job.decision.conv is not None
                patches = patch_rows(job.decision.conv, args[0], chosen)
                read = job.channels_read
                job.own_patches[key] = patches if read is None else patches[..., read]

        return take

    handles = [job.layer.register_forward_hook(hook(job)) for job in jobs]
    drawn = []
    with torch.no_grad(), hooked(handles), random_state(seed):
        for index, chunk in enumerate(chunks):
            current[0] = index
            counts.clear()
            drawn.append(random_numbers())
            call(model, chunk.clone())
    return drawn


class _Solver(nn.Module):
    """Stands in for a planned layer: gathers what arrives, waits for the solution, applies it."""

    def __init__(self, job: _Job, layer: nn.Module, lockstep: list[Lockstep]) -> None:
        super().__init__()
        bear_geometry(self, layer)
        self.job, self.lockstep = job, lockstep

    def forward(self, x: Tensor) -> Tensor:
        job = self.job
        if job.solution is None:
            key = (self.lockstep[0].chunk, 0)
            positions = job.positions.get(key)
            if job.calls == 1 and positions is not None and len(positions) == len(x):
                job.patches[key] = patch_rows(job.conv, x, positions)
            self.lockstep[0].wait(job.index)
        assert job.solution is not None
        return job.solution(x)


def _pass_through(
    lighter: nn.Module,
    jobs: list[_Job],
    chunks: list[Tensor],
    drawn: list[tuple[Any, ...]],
    progress: Callable[[float], None],
) -> dict[str, nn.Module]:
    """Send the chunks through the lighter network in lockstep; the solution of every planned layer."""
    own = modules_by_name(lighter)
    lockstep: list[Lockstep] = []
    names = {job.decision.layer: job for job in jobs}
    shell = replace_modules(lighter, {n: _Solver(j, own[n], lockstep) for n, j in names.items()})

    def solve(index: int) -> None:
        release_memory()
        _solve(jobs[index], own[jobs[index].decision.layer])
        progress((index + 1) / len(jobs))

    lockstep.append(Lockstep(shell, chunks, solve, drawn, [job.chunks for job in jobs]))
    lockstep[0].run()
    late = [job.decision.layer for job in jobs if job.solution is None]
    if late:
        raise ModelError(
            f"on the way through the lighter network layer {listed([*map(repr, late)], 1)} was not "
            f"reached: {BY_DATA}"
        )
    return {job.decision.layer: job.solution for job in jobs if job.solution is not None}


def _solve(job: _Job, own: nn.Module) -> None:
    """The best layer for the samples that have arrived; the samples are dropped."""
    patches, targets = _samples(job)
    job.patches.clear()
    job.own_patches.clear()
    job.targets.clear()
    job.positions.clear()
    decision, conv = job.decision, job.conv
    kept = decision.form in KEPT
    if kept and _unchanged(own, conv, patches, targets):
        job.solution = own
        return
    grouped = decision.conv is not None and decision.conv.groups != 1
    if grouped and kept:  # one channel of a depthwise layer looks dense
        job.solution = _regrouped(job, own, patches, targets)
        return
    kernel = kernel_of(own)
    work = Work(conv, decision, len(patches))
    if work.first > 1:
        kernel, patches = along_first(kernel, work.first), _first_by_group(job, patches)
    ranks = work.rank_in, decision.sides.get("out")
    ridge, rounds = RIDGE * work.width / len(patches), job.effort.rounds
    if grouped:
        metrics = _metrics(job)
        factors = fit_each_group(
            kernel, patches, targets, metrics, *ranks, ridge, _band(job), rounds
        )
    elif job.seen.bounded:
        assert job.seen.basis is not None
        factors = fit_within(
            job.seen.basis[0], kernel, patches, targets, _metric(job), ranks[1], ridge,
            bias=not kept or conv.bias,
        )  # fmt: skip
    else:
        factors = fit(
            kernel, patches, targets, _metric(job), *ranks, ridge, _band(job), rounds,
            bias=not kept or conv.bias,
        )  # fmt: skip
    job.solution = fill(skeleton(own, decision.form, decision.ranks), decision.form, factors)
    job.solution.train(job.training)


def _samples(job: _Job) -> tuple[Tensor, Tensor]:
    """What arrives at the layer in the lighter network, and what it gave in the original.

    Layers that run several times get what arrived in the original. So do those that run on rows which the
    network itself chooses (a detector's proposals), where these are others in the lighter one: one row
    after another, as a few that changed places would spoil what all others say.
    """
    given, own = job.patches, job.own_patches
    if own:
        moved = _moved(job)
        given = own if moved else {k: _where_same(rows, own[k]) for k, rows in given.items()}
    keys = sorted(given)
    if not keys:
        raise ModelError(
            f"layer {job.decision.layer!r} gets another number of rows in the lighter network than in "
            f"the original: {BY_DATA}"
        )
    patches = torch.cat([given[key] for key in keys])
    return patches, torch.cat([job.targets[key] for key in keys])


def _moved(job: _Job) -> bool:
    """Whether rows are missing, or tell as little of the original's as their mean does."""
    if job.own_patches.keys() != job.patches.keys():
        return True
    gap = whole = 0.0
    for key, rows in job.own_patches.items():
        gap += float((job.patches[key] - rows).square().sum())
        whole += float((rows - rows.mean(0)).square().sum())
    return gap > whole


def _where_same(rows: Tensor, own: Tensor) -> Tensor:
    """The rows, but for those that tell less of the original's own than their mean does: these."""
    gap, whole = ((own - other).square().flatten(1).sum(1) for other in (rows, own.mean(0)))
    return torch.where((gap > whole)[:, None, None], own, rows)


def _first_by_group(job: _Job, patches: Tensor) -> Tensor:
    """Patches with the taps of the first axis as channels, those of each group together."""
    groups = job.conv.groups
    parts = [along_first(part, job.conv.first_taps) for part in patches.chunk(groups, 2)]
    return torch.cat(parts, 2) if groups > 1 else parts[0]


def _regrouped(job: _Job, own: nn.Module, patches: Tensor, targets: Tensor) -> nn.Module:
    """The best grouped layer for the samples."""
    conv = job.conv
    kernel = kernel_of(own)
    ridge = RIDGE * kernel[0].numel() / len(patches)
    factors = fit_groups(
        kernel, patches, targets, conv.groups, ridge, _band(job), job.effort.rounds, conv.bias
    )
    own = fill(skeleton(own, job.decision.form, ()), job.decision.form, factors)
    return own.train(job.training)


def _unchanged(own: nn.Module, conv: ConvSpec, patches: Tensor, targets: Tensor) -> bool:
    """Whether the layer's own weights give the targets already, within rounding; few rows often tell."""
    kernel = kernel_of(own)
    rows = kernel.reshape(conv.groups, len(kernel) // conv.groups, -1).float().transpose(1, 2)
    bias = own._parameters["bias"]
    tolerance = max(UNCHANGED, 16 * torch.finfo(kernel.dtype).eps) * targets.abs().max()
    for some in (slice(FIRST_ROWS), slice(FIRST_ROWS, None)):
        given = group_features(patches[some], conv.groups) @ rows
        rest = targets[some] - given.transpose(0, 1).reshape(targets[some].shape)
        if bias is not None:
            rest = rest - bias.detach().float()
        if not bool((rest.abs() <= tolerance).all()):
            return False
    return True
