"""Which channels can be left out: found by following one pass, and proven by a trial."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from math import prod

import torch
from torch import Tensor, nn

from onebyone.errors import OneByOneError
from onebyone.narrowing.cutting import axis_of, cut_model, tensor_of
from onebyone.narrowing.following import Follower
from onebyone.narrowing.marks import Found
from onebyone.narrowing.spaces import Cut, Narrowing, Space, tensor_name
from onebyone.running import call, placed_for
from onebyone.several import packing_in
from onebyone.surveying import Survey
from onebyone.tree import hooked, modules_by_name, random_state, shallow_copy, tensors_in

READ = {"_local_scalar_dense", "is_nonzero", "nonzero", "equal"}  # values that Python sees
SUMMED = 512  # channels of a sum that are weighed: more, with all that read them, take longer than a pass
TOLERANCE = 1e-3  # of the largest output; times 64 in half precision


def find_spaces(model: nn.Module, images: Tensor, survey: Survey) -> tuple[Space, ...]:
    """All hidden spaces of an already borrowed model (eval mode), refused ones with the reason.

    images: a few, as the network takes them. The operators of one pass tell which layers write
    channels, which read them and what stands between, so that nothing is traced ahead of time. Each
    space is then tried: a network without every other channel must compute what the network computes
    whose readers have zeros there. A model that takes other operators for other images keeps its
    widths.
    """
    one = placed_for(model, images[:1])
    try:
        found = _followed(model, survey, one)[0]
        # Of two images each: what is a view of one image may be a copy of several.
        two, operators, again = _unlike(model, survey, images)
    except Exception:  # whatever a model does to a watched pass: it keeps its widths
        return ()
    spaces = [_space(model, survey, f) for f in found if f.writers and (f.readers or f.refusal)]
    if operators != again or READ.intersection(operators):
        spaces = [_refused(s, "the model's control flow depends on its data") for s in spaces]
    spaces = _unshared(spaces)
    free = [s for s in spaces if s.refusal is None]
    if free and not _proven(model, survey, free, two):
        proof = {s.name: _proven(model, survey, [s], two) for s in free}
        wrong = "a trial without some of its channels changed what other layers compute"
        spaces = [s if s.refusal or proof[s.name] else replace(s, refusal=wrong) for s in spaces]
    return tuple(spaces)


def _unlike(
    model: nn.Module, survey: Survey, images: Tensor
) -> tuple[Tensor, list[str], list[str]]:
    """Two images that have little in common, and the operators of such a pair's pass and of another's.

    One of each pair is negated; between its own least and most, where the network fails on what is
    negative or gives no finite numbers there (it checks what range images have, or takes a root).
    """
    first, last = placed_for(model, torch.cat([images[:1], images[-1:]])).split(1)
    for turn in (torch.neg, lambda x: x.amin() + x.amax() - x):
        two = torch.cat([_turned(model, first, turn), last])
        other = torch.cat([first, _turned(model, last, turn)])
        try:
            (_, operators, finite), (_, again, also) = (
                _followed(model, survey, x) for x in (two, other)
            )
        except Exception:
            if turn is not torch.neg:
                raise
            continue
        if finite and also:
            break
    return two, operators, again


def _turned(model: nn.Module, image: Tensor, turn: Callable[[Tensor], Tensor]) -> Tensor:
    """The image, or each input of several that is of floating-point numbers."""
    packing = packing_in(model)
    if packing is None:
        return turn(image)
    turned = image.clone()
    for start, shape, dtype in packing.places:
        if dtype.is_floating_point:
            part = turned[..., start : start + prod(shape)]
            part.copy_(turn(part))
    return turned


def _followed(
    model: nn.Module, survey: Survey, images: Tensor
) -> tuple[list[Found], list[str], bool]:
    """What channels were found, the operators, and whether all outputs are finite."""
    layers = {s.layer: s.conv for s in survey.layers if s.conv is not None and s.refusal is None}
    follower = Follower(model, layers)
    images = images.clone()  # before the follower watches: the network may write to them
    with torch.no_grad(), random_state(0), hooked(follower.attach()), follower:
        output = model(images)
    finite = all(t.isfinite().all() for t in tensors_in(output))
    return follower.result(output), follower.operators, finite


def _refused(space: Space, reason: str) -> Space:
    return space if space.refusal else replace(space, refusal=reason)


def _space(model: nn.Module, survey: Survey, found: Found) -> Space:
    """What was found, with a refusal where a layer runs more than once or a hook looks on."""
    modules = modules_by_name(model)
    calls = {s.layer: s.calls for s in survey.layers}
    order = {s.layer: index for index, s in enumerate(survey.layers)}
    cuts = tuple(dict.fromkeys(found.cuts))
    refusal = found.refusal
    for layer in (*found.writers, *found.readers, *found.through):
        if calls[layer] != 1:
            refusal = refusal or f"the layer {layer} runs {calls[layer]} times"
    for name in {c.module for c in cuts}:
        if modules[name]._forward_hooks:
            refusal = refusal or f"a hook on {name} may look at it"
    if found.summed and found.channels > SUMMED:
        refusal = refusal or f"a sum joins more than {SUMMED} channels of several layers"
    known = {s.layer for s in survey.layers}
    each = 0
    for cut in cuts:
        tensor = tensor_of(modules, cut)
        if isinstance(tensor, nn.Parameter) and cut.module not in known:
            each += tensor.numel() // tensor.shape[cut.axis] * cut.block
    writers, readers, through = (
        tuple(sorted(set(names), key=order.__getitem__))
        for names in (found.writers, found.readers, found.through)
    )
    return Space(found.channels, writers, readers, through, cuts, each, refusal)


def _unshared(spaces: list[Space]) -> list[Space]:
    """Refuse spaces that claim the same entries of a tensor."""
    claims = Counter((c.tensor, c.axis, c.start) for s in spaces for c in s.cuts)
    return [
        _refused(s, "a parameter belongs to other channels too")
        if any(claims[c.tensor, c.axis, c.start] > 1 for c in s.cuts)
        else s
        for s in spaces
    ]


def _proven(model: nn.Module, survey: Survey, spaces: Sequence[Space], images: Tensor) -> bool:
    """Whether every other channel can go: outputs equal those with zeros in the readers' weights."""
    halves = [
        Narrowing(s.name, (s.channels + 1) // 2, (*range(0, s.channels, 2), *range(1, s.channels, 2)),
                  s.cuts)
        for s in spaces
    ]  # fmt: skip
    cut = {c.tensor for s in spaces for c in s.cuts if c.axis == 0}
    compared = [
        s.layer for s in survey.layers
        if s.conv and not s.refusal and tensor_name(s.layer, "weight") not in cut
    ]  # fmt: skip
    try:
        expected = _outputs(_muted(shallow_copy(model), halves), compared, images)
        given = _outputs(cut_model(shallow_copy(model), halves), compared, images)
    except (OneByOneError, RuntimeError, ValueError, IndexError, TypeError):
        return False
    return len(expected) == len(given) and all(map(_close, expected, given))


def _muted(model: nn.Module, narrowings: Sequence[Narrowing]) -> nn.Module:
    """The channels that would go have no weight in the layers that read them."""
    modules = modules_by_name(model)
    for narrowing in narrowings:
        gone = narrowing.order[narrowing.width :]
        for cut in narrowing.cuts:
            if cut.axis == 1:
                _mute(modules[cut.module], cut, cut.entries(gone))
    return model


def _mute(module: nn.Module, cut: Cut, entries: list[int]) -> None:
    weight = module._parameters[cut.name]
    assert weight is not None
    values = weight.detach().clone()
    values.index_fill_(axis_of(module, cut), torch.tensor(entries, device=values.device), 0)
    module._parameters[cut.name] = nn.Parameter(values, requires_grad=False)


def _outputs(model: nn.Module, layers: Sequence[str], images: Tensor) -> list[Tensor]:
    modules = modules_by_name(model)
    seen: list[Tensor] = []

    def look(_: nn.Module, args: object, output: object) -> None:
        seen.extend(t.clone() for t in tensors_in(output))

    handles = [modules[name].register_forward_hook(look) for name in layers]
    with torch.no_grad(), random_state(0), hooked(handles):
        return [*tensors_in(call(model, images.clone())), *seen]


def _close(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape:
        return False
    if not one.is_floating_point():
        return True
    scale = float(one.abs().max()) if one.numel() else 0.0
    tolerance = TOLERANCE * (64 if torch.finfo(one.dtype).bits < 32 else 1)
    return not one.numel() or float((one - other).abs().max()) <= tolerance * scale
