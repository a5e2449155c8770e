"""observe: one pass over images → second moments of layer inputs, outputs and loss gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import ceil

import torch
from torch import Tensor, nn

from onebyone.agreement import Agreement
from onebyone.conv import ConvSpec, kernel_of
from onebyone.data import open_images
from onebyone.distributed import World
from onebyone.errors import DataError, ModelError, as_bytes, listed, seeded
from onebyone.factorize.judging import JUDGED
from onebyone.factorize.metric import reach, shrink, shrinkage_of_halves
from onebyone.factorize.selection import Order
from onebyone.factorize.squeeze import input_form
from onebyone.moments import Moments, RangeMoments
from onebyone.narrowing.finding import find_spaces
from onebyone.narrowing.ordering import Forms, channel_orders
from onebyone.narrowing.spaces import Space, reads_of
from onebyone.plain import plain
from onebyone.recorder import Half, LayerStatistics, Recorder
from onebyone.running import call, release_memory, suited
from onebyone.sensing import NoGradientError, copying, send_back, stand_in
from onebyone.several import packed
from onebyone.surveying import Seen, Survey, survey
from onebyone.tree import (
    check_weights,
    evaluating,
    frozen,
    hooked,
    modules_by_name,
    random_state,
    uncompiled,
)

OVER = 2  # bytes that a pass takes for each byte of activations


@dataclass(frozen=True)
class Statistics:
    """What `observe` returns: the survey of the network and the moments of each layer it can change.

    `spaces` are the hidden channels between layers, those that cannot be left out with the reason;
    `needs` has Σ Wᵀ G W for the input channels of layers of several taps, summed over the images, and
    `orders` for each space that can be cut, by its name, which channels are needed most; what else they
    were made from is not kept. `kernels` are the weights (c_out, taps, c_in of a group) of layers whose
    kernel lies along several axes. `halves` are the sums of every other batch, of at most `JUDGED`
    channels, for what is found on one to be judged on the other. `notes` say what of
    the images the plan should be read with: that they are few, or unlike those of training.
    """

    survey: Survey
    images: int
    layers: dict[str, LayerStatistics]
    seed: int
    spaces: tuple[Space, ...] = ()
    needs: dict[str, Tensor] = field(default_factory=dict)
    orders: dict[str, Order] = field(default_factory=dict)
    kernels: dict[str, Tensor] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    halves: tuple[Half, ...] = ()


@torch.inference_mode(False)
def observe(
    model: nn.Module,
    images: object,
    *,
    seed: int = 0,
    memory: int = 2 << 30,
    progress: Callable[[float], None] | None = None,
) -> Statistics:
    """Run the images through the model once, forwards and backwards, and keep second moments.

    images: a tensor (N, C, H, W) or anything that `onebyone.data.open_images` takes; no labels are
    needed. What is sent back from logits is S v, S Sᵀ = diag(p) − p pᵀ for the model's own softened
    prediction p, v of random signs: the gradients' second moment is then the Fisher information
    (Martens 2020, §5), with less noise than from labels drawn from p. Rows of
    probabilities count as the logits behind them. For an output that is not (N, classes) it is
    v ~ N(0, I). The model comes back as it was.
    memory: bytes that the pass may take for activations; progress: told the fraction done.
    Processes that torchrun started share the batches, and each gets the sums over all.
    Layers of classes of their own that compute what a plain one does are seen as such (`onebyone.plain`).
    Raises ModelError for a model that fails on the images, returns NaN or has nothing to change.
    """
    check_weights(model=model)
    model = uncompiled(model)
    seed, memory = seeded(seed, DataError), as_bytes(memory, DataError)
    every, world = open_images(images), World.current()
    inputs = every.inputs
    model = plain(packed(model, every.packing), inputs[:1]).model
    with evaluating(model), frozen(model), random_state(seed) as generator:
        found = survey(model, inputs[:1])
        spaces = find_spaces(model, inputs, found)
        batch = max(
            1, min(ceil(len(inputs) / 2), 64, memory // max(OVER * found.activation_bytes, 1))
        )
        narrowed = frozenset(
            n for s in spaces if s.refusal is None and s.channels <= JUDGED for n in s.readers
        )
        bases = _bases(model, found)
        world.copy(*bases.values())
        cut = frozenset(n for s in spaces if s.refusal is None for n in s.writers)
        recorder = Recorder(found, len(inputs), generator, reads_of(spaces), narrowed, bases, cut)
        agreement = Agreement()

        def record(sent: bool) -> None:
            recorder.whole, recorder.first = {}, {}
            for index, part in world.share(inputs.split(batch)):
                # A batch draws the same whichever process it falls to.
                generator.manual_seed(hash((seed, index)) % (1 << 62))
                recorder.in_first = index % 2 == 0
                with hooked(agreement.attach(model) if not index else []):
                    output = call(model, suited(model, part))
                if sent:
                    send_back(output, len(part), generator)
                if progress is not None:
                    progress(min(1.0, (index + 1) * batch / len(inputs)))

        with hooked(recorder.attach(model)), torch.enable_grad():
            unfelt = _recorded(record)
    release_memory()
    layers = _summed(recorder.whole, recorder.none, found, world)
    parts = _settled(layers, _summed(recorder.first, recorder.none_first, found, world))
    _check_finite(layers)
    why = () if unfelt is None else (f"gradients of its outputs cannot be taken ({unfelt})",)
    notes = (*agreement.notes, *why, *_filled(layers, parts, len(inputs)))
    forms, of_halves = _forms(model, layers), [(part, _forms(model, part)) for part in parts]
    orders = channel_orders(spaces, layers, forms, of_halves)
    kernels = _kernels(model, layers)
    squeezed = {s.layer for s in found.layers if s.conv is not None and s.conv.taps > 1}
    needs = _kept(layers, forms, squeezed)
    halves = tuple(Half(part, _kept(part, own, squeezed)) for part, own in of_halves)
    return Statistics(
        _only(found, layers), len(inputs), layers, seed, spaces, needs, orders, kernels, notes,
        halves,
    )  # fmt: skip


def _recorded(record: Callable[[bool], None]) -> str | None:
    """One pass with gradients, or one without where there are none; why there are none.

    What a network overwrites that its gradients need is copied then, which takes time and memory.
    """
    try:
        record(True)
        return None
    except NoGradientError:
        pass
    try:
        with copying(True):
            record(True)
        return None
    except NoGradientError as error:
        record(False)
        return str(error)


def _settled(
    layers: dict[str, LayerStatistics], first: dict[str, LayerStatistics]
) -> tuple[dict[str, LayerStatistics], dict[str, LayerStatistics]]:
    """Both halves of what is judged by them; in the layers, in place, gradients' moments are shrunk by as
    much as the halves' differ.

    Few images span few directions of the gradients, others would span others. `first` is used up.
    """
    halves: tuple[dict[str, LayerStatistics], ...] = ({}, {})
    for name, total in layers.items():
        part = first.pop(name, None)
        if part is None or not 0 < part.batches < total.batches:
            continue
        rest = total.without(part)
        if part.outputs.size or part.channels.ranges:
            halves[0][name], halves[1][name] = part.in_reach(), rest.in_reach()
        if not total.gradients.any():
            continue
        parts = (total.gradients, part.gradients, rest.gradients)
        groups = [m if m.ndim == 3 else m[None] for m in parts]
        total.gradients = torch.stack([
            shrink(both, shrinkage_of_halves(a, b)) if both.any() else both
            for both, a, b in zip(*groups, strict=True)
        ]).reshape(total.gradients.shape)  # fmt: skip
    return halves[0], halves[1]


def _check_finite(layers: dict[str, LayerStatistics]) -> None:
    """ModelError where what passes a layer is too large to be multiplied."""
    for name, seen in layers.items():
        inside = (own.products for own in seen.channels.by_length.values())
        sums = (seen.outputs.products, *inside, seen.gradients)
        if not all(bool(products.isfinite().all()) for products in sums):
            raise ModelError(
                f"what passes {name or 'the layer'}, or its gradient, on the calibration images is so large"
                " that its squares overflow: check the images' normalisation, and the weights"
            )


def _filled(
    layers: dict[str, LayerStatistics], halves: tuple[dict[str, LayerStatistics], ...], images: int
) -> tuple[str, ...]:
    """Moments for layers that no gradient reached; notes on those, and on layers of few samples."""
    dense = {name: seen for name, seen in layers.items() if seen.outputs.size}
    unfelt = stand_in(
        {name: seen.gradients for name, seen in dense.items()},
        lambda name: (dense[name].outputs if dense[name].bounded else dense[name]).covariance, images,
    )  # fmt: skip
    for name in unfelt:
        for half in halves:
            if name in half:
                half[name].gradients.copy_(layers[name].felt / len(halves))
    few = tuple(name for name, seen in dense.items() if seen.outputs.few or seen.channels.few)
    notes = []
    if unfelt:
        notes.append(
            f"no gradient of the network's outputs reaches {listed(unfelt, 3)}: their own outputs are "
            "kept close instead"
        )
    if few:
        given = (
            "one calibration image gives" if images == 1 else f"{images:,} calibration images give"
        )
        notes.append(
            f"the {given} {listed(few, 3)} no more samples than channels: "
            f"{'its' if len(few) == 1 else 'their'} covariance is shrunk towards equal channels, and more "
            "images would give a better plan"
        )
    return tuple(notes)


def _forms(model: nn.Module, layers: dict[str, LayerStatistics]) -> Forms:
    """The quadratic form of the loss in the input channels of each layer that recorded them."""
    modules = modules_by_name(model)
    found: dict[str, dict[range, Tensor]] = {}
    for name, seen in layers.items():
        if not seen.channels.ranges:
            continue
        kernel, taps = kernel_of(modules[name]).cpu(), len(seen.taps)
        if kernel.shape[1] != taps:  # a linear layer behind a flattened map
            kernel = kernel.reshape(len(kernel), -1, taps).transpose(1, 2)
        felt = seen.felt
        gradients = felt if felt.ndim == 3 else felt[None]
        kernels = kernel.chunk(len(gradients))
        if seen.basis is not None:
            pairs = zip(seen.basis, kernels, strict=True)
            kernels = [torch.tensordot(q.T, w.to(q.dtype), 1) for q, w in pairs]
        found[name] = {}
        for own in seen.channels.ranges:
            parts = (w[..., own.start : own.stop] for w in kernels)
            forms = [input_form(w, seen.taps, g) for w, g in zip(parts, gradients, strict=True)]
            found[name][own] = torch.stack(forms) if felt.ndim == 3 else forms[0]
    return found


def _bases(model: nn.Module, found: Survey) -> dict[str, Tensor]:
    """What the outputs can reach of pointwise layers that give at least twice what they read."""
    modules, bases = modules_by_name(model), {}
    for seen in found.layers:
        conv = seen.conv
        if seen.refusal is None and conv is not None and conv.pointwise and not conv.depthwise:
            kernel = kernel_of(modules[seen.layer])[:, 0].cpu()
            if 2 * conv.c_in <= conv.c_out and kernel.isfinite().all():
                bases[seen.layer] = reach(kernel.unflatten(0, (conv.groups, -1)))
    return bases


def _kernels(model: nn.Module, layers: dict[str, LayerStatistics]) -> dict[str, Tensor]:
    """Copies of the weights whose taps are not all of one axis."""
    modules = modules_by_name(model)
    found: dict[str, Tensor] = {}
    for name in layers:
        conv = ConvSpec.of(modules[name])
        if conv.taps > conv.first_taps and not conv.depthwise:
            found[name] = kernel_of(modules[name]).to("cpu", torch.float32, copy=True)
    return found


def _kept(
    layers: dict[str, LayerStatistics], forms: Forms, squeezed: set[str]
) -> dict[str, Tensor]:
    """The forms that are read further on; what only `channel_orders` reads is left out, in place."""
    for name in layers.keys() - squeezed:
        layers[name] = replace(layers[name], channels=RangeMoments.none(()))
    return {
        name: form
        for name in layers.keys() & squeezed & forms.keys()
        for form in forms[name].values()
    }


def _summed(
    layers: dict[str, LayerStatistics],
    none: Callable[[Seen], LayerStatistics],
    found: Survey,
    world: World,
) -> dict[str, LayerStatistics]:
    """The sums over all processes, on the CPU; of layers that ran in none there are none."""
    summed: dict[str, LayerStatistics] = {}
    for seen in found.layers:
        if seen.refusal is not None or seen.conv is None:
            continue
        own = layers.pop(seen.layer, None)
        if world.size == 1:
            if own is not None:
                summed[seen.layer] = own.to("cpu")
            continue
        own = none(seen) if own is None else own.to("cpu")
        batches = torch.tensor(own.batches)
        world.add(batches)
        for moments in (*own.channels.by_length.values(), own.outputs):
            _add_up(moments, world)
        world.add(own.taps, own.gradients)
        world.least(own.lowest)
        world.greatest(own.highest)
        own.batches = int(batches)
        if own.batches:
            summed[seen.layer] = own
    return summed


def _add_up(moments: Moments, world: World) -> None:
    """The sums over all processes; in place."""
    own, mean = moments.samples, moments.mean
    samples = torch.tensor(own)
    world.add(samples, moments.total)
    moments.samples = int(samples)
    if own:
        moments.shift(mean - moments.mean, own)
    world.add(moments.products)


def _only(found: Survey, seen: dict[str, LayerStatistics]) -> Survey:
    """The survey with a refusal for layers that ran on the first image but not in the batches."""
    late = (
        "it ran on one image alone but not in batches: the model's control flow depends on its data"
    )
    layers = [
        replace(s, refusal=late) if s.refusal is None and s.layer not in seen else s
        for s in found.layers
    ]
    return replace(found, layers=tuple(layers))
