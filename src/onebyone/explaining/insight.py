"""What a report shows beyond the result: other plans, the layers' spectra, one image in both networks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from time import monotonic

import torch
from jaxtyping import Float
from torch import Tensor, nn

from onebyone.errors import BudgetError, ModelError
from onebyone.explaining.layers import Network, show_layers
from onebyone.explaining.packing import Levels, in_levels
from onebyone.explaining.photos import Photo, of_input
from onebyone.losses import Losses
from onebyone.narrowing.spaces import kept_entries
from onebyone.planning import Planner
from onebyone.plans import Budget, Measured, Plan
from onebyone.running import call, first_output, suited
from onebyone.tree import evaluating, hooked, modules_by_name, random_state
from onebyone.verification import relative_error

# The fractions kept, the most telling first: planning stops when its time is used up.
FRACTIONS = (0.5, 0.25, 0.75, 0.33, 0.15, 0.9, 0.2, 0.6, 0.1, 0.4, 0.8, 0.05)
SECONDS = 1.0
LEAST = 2  # plans beside the chosen one that are made however long one takes
VALUES = 64  # of a spectrum that are kept
MAPS, SIDE = 8, 32
CLASSES = 5


@dataclass(frozen=True)
class Spectrum:
    """A layer's singular values relative to the largest, on its input and its output side.

    They are those of planning: of the layer's map between whitened inputs and outputs in the metric of
    the loss. `ranks` are the positions (from 1) of the values, where only some are kept. Pointwise
    layers have no input side.
    """

    layer: str
    inside: tuple[float, ...]
    ranks_in: tuple[int, ...]
    outside: tuple[float, ...]
    ranks_out: tuple[int, ...]


@dataclass(frozen=True)
class Both:
    """One layer's output on the same image, before and after: the channel that varies most."""

    layer: str
    channel: int
    before: Levels
    after: Levels
    error: float


@dataclass(frozen=True)
class SameImage:
    """One image through both networks; `before` and `after` are (class, probability), likeliest first."""

    photo: Photo
    layers: tuple[Both, ...]
    before: tuple[tuple[str, float], ...]
    after: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Insight:
    """`plans` from the cheapest to the dearest, the chosen one among them; the rest as above.

    `network` are 1×1 convolutions of the lighter network on the image, None where it has none.
    `measured` are those of the plans that a search carried out, with the accuracy that it measured.
    """

    plans: tuple[Plan, ...]
    spectra: tuple[Spectrum, ...]
    image: SameImage | None
    network: Network | None = None
    measured: tuple[Measured, ...] = ()


def look_into(
    model: nn.Module,
    lighter: nn.Module,
    chosen: Plan,
    planner: Planner,
    image: Float[Tensor, "1 c h w"],
    classes: tuple[str, ...] | None = None,
    *,
    seconds: float = SECONDS,
    measured: tuple[Measured, ...] = (),
) -> Insight:
    """Other plans under the chosen one's kind of budget, for about so many seconds, and the rest."""
    tried = tuple(found.plan for found in measured)
    plans = frontier(planner, chosen, seconds=seconds, carried_out=tried)
    both = same_image(model, lighter, chosen, image, classes)
    network = None if both is None else _network(lighter, image, both.photo)
    found = tuple(spectra(planner.candidates.losses))
    return Insight(plans, found, both, network, measured)


def _network(lighter: nn.Module, image: Tensor, photo: Photo) -> Network | None:
    try:
        return Network("the lighter network", photo, show_layers(lighter, image)[0])
    except ModelError:  # it has no 1×1 convolution, or none that can be shown
        return None


def frontier(
    planner: Planner, chosen: Plan, *, seconds: float = SECONDS, carried_out: tuple[Plan, ...] = ()
) -> tuple[Plan, ...]:
    """Plans for many budgets of MACs (of parameters, where the chosen one limits these alone).

    The others are made roughly. From the cheapest to the dearest; one that costs no less than another
    with less error is left out, but the chosen one and those that were carried out.
    """
    by_params = chosen.budget.macs is None
    end = monotonic() + seconds
    stays = [*carried_out, chosen]
    made = list(stays)
    for fraction in FRACTIONS:
        if len(made) > LEAST + len(carried_out) and monotonic() > end:
            break
        budget = Budget(params=fraction) if by_params else Budget(macs=fraction)
        try:
            made.append(planner.plan(budget, roughly=True))
        except BudgetError:
            continue
    costs = [p.params_after if by_params else p.macs_after for p in made]
    rank = {id(p): i for i, p in enumerate(stays)}
    kept = [
        (cost, p)
        for cost, p in zip(costs, made, strict=True)
        if id(p) in rank
        or not any(c <= cost and q.error < p.error for c, q in zip(costs, made, strict=True))
    ]
    # Of plans that cost the same, the chosen one goes before one carried out, that before the others.
    unique = dict(sorted(kept, key=lambda found: rank.get(id(found[1]), -1)))
    return tuple(unique[c] for c in sorted(unique))


def spectra(losses: Losses) -> Iterable[Spectrum]:
    """The spectra of all dense layers that were observed, in the order that data reaches them."""
    for seen in losses.statistics.survey.layers:
        moments = losses.statistics.layers.get(seen.layer)
        if seen.conv is None or moments is None or seen.conv.groups != 1:
            continue
        sides = ("in", "out") if seen.conv.taps > 1 else ("out",)
        found = {side: _thinned(losses.spectrum(seen, side).sqrt()) for side in sides}
        yield Spectrum(seen.layer, *found.get("in", ((), ())), *found["out"])


def _thinned(values: Tensor) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """At most 64 of the values relative to the first, and their positions from 1."""
    if not len(values):
        return (), ()
    count = min(VALUES, len(values))
    picked = torch.linspace(0, len(values) - 1, count).round().long()
    scaled = values[picked] / values[0].clamp_min(1e-30)
    return tuple(scaled.tolist()), tuple((picked + 1).tolist())


def same_image(
    model: nn.Module,
    lighter: nn.Module,
    chosen: Plan,
    image: Float[Tensor, "1 c h w"],
    classes: tuple[str, ...] | None = None,
) -> SameImage | None:
    """The image through both: outputs of the layers that changed, and the likeliest classes.

    None for inputs that are no images, and where one alone gives NaN. Both networks come back as they
    were.
    """
    if image.ndim != 4:
        return None
    names = [d.layer for d in chosen.decisions if d.conv is not None and len(d.conv.kernel) == 2]
    changed = [d.layer for d in chosen.decisions if d.ranks and d.layer in names]
    before, logits = _outputs(model, image, changed)
    after, lighter_logits = _outputs(lighter, image, changed)
    if not all(
        y.isfinite().all() for y in (logits, lighter_logits, *before.values(), *after.values())
    ):
        return None
    for name, maps in before.items():  # of a narrowed layer, the channels that both have
        rows = kept_entries(name, 0, len(maps), chosen.narrowings)
        before[name] = maps if rows is None else maps[rows]
    layers = [_both(n, before[n], after[n]) for n in changed if n in before and n in after]
    spread = (
        [layers[round(i * (len(layers) - 1) / (MAPS - 1))] for i in range(MAPS)] if layers else []
    )
    return SameImage(
        of_input(image[0].detach().float().cpu()), tuple(dict.fromkeys(spread)),
        _likeliest(logits, classes), _likeliest(lighter_logits, classes),
    )  # fmt: skip


def _outputs(model: nn.Module, image: Tensor, names: list[str]) -> tuple[dict[str, Tensor], Tensor]:
    """The named layers' outputs (C, H, W), and the network's first output."""
    modules = modules_by_name(model)
    caught: dict[str, Tensor] = {}

    def take(name: str):
        def hook(_: nn.Module, args: tuple, output: object) -> None:
            if isinstance(output, Tensor) and output.ndim == 4:
                caught.setdefault(name, output[0].detach().float().cpu().clone())

        return hook

    handles = [modules[n].register_forward_hook(take(n)) for n in names if n in modules]
    with hooked(handles), evaluating(model), random_state(0), torch.inference_mode():
        output = first_output(call(model, suited(model, image[:1])))
    return caught, output.detach().float().cpu()


def _both(layer: str, before: Tensor, after: Tensor) -> Both:
    channel = int(before.flatten(1).std(1, correction=0).argmax())
    stride = max(1, -(-max(before.shape[1:]) // SIDE))
    one, other = (maps[channel : channel + 1, ::stride, ::stride] for maps in (before, after))
    was, now = before.double(), after.double()
    gap, square = (v.square().sum() for v in (was - now, was))
    mean = was.sum((1, 2)).square().sum() / was[0].numel()
    error = relative_error(float(gap), float(square), float(mean))
    return Both(layer, channel, in_levels(one), in_levels(other), error)


def _likeliest(logits: Tensor, classes: tuple[str, ...] | None) -> tuple[tuple[str, float], ...]:
    """The five likeliest classes with their probabilities; none for outputs that are no class logits."""
    if logits.ndim != 2 or not len(logits) or not 1 < logits.shape[1] <= 100_000:
        return ()
    found = logits[0].softmax(0)
    best = found.argsort(descending=True)[:CLASSES].tolist()
    named = classes if classes is not None and len(classes) == len(found) else None
    return tuple((named[i] if named else f"class {i}", float(found[i])) for i in best)
