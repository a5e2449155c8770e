"""Where inside two networks the same features can be compared: the ends of blocks and stages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from onebyone.running import call, suited
from onebyone.surveying import CONV_LIKE
from onebyone.tree import evaluating, hooked, modules_by_name

ALIKE = 0.2  # the least correlation with the channel that one stands for


@dataclass(frozen=True)
class _Ran:
    """One module's only run: when it ended, and what it gave."""

    order: int
    shape: tuple[int, ...]
    storage: int


def block_ends(
    student: nn.Module, teacher: nn.Module, example: Tensor, *, narrower: bool = False
) -> tuple[str, ...]:
    """Names of modules that both networks have, at whose outputs features can be matched, in order.

    Taken are the innermost modules that hold two or more convolutions (blocks), and the last module
    at each size of feature maps (stages); those that run once and give a tensor (N, C, …) of one
    shape in both networks, or of fewer channels in the student if it may be `narrower`. `example`
    suits the networks.
    """
    ran = [_ran(network, example) for network in (student, teacher)]

    def fits(own: tuple[int, ...], other: tuple[int, ...]) -> bool:
        fewer = narrower and len(own) == len(other) and own[1] < other[1]
        return own == ((other[0], own[1], *other[2:]) if fewer else other)

    common = {n: r for n, r in ran[1].items() if n in ran[0] and fits(ran[0][n].shape, r.shape)}
    blocks = _blocks(teacher)
    last: dict[tuple[int, ...], str] = {}
    for name in sorted(common, key=lambda n: common[n].order):
        last[common[name].shape[2:]] = name
    # A one-pixel map is what a classifier reads: the outputs themselves are matched already.
    ends = {name for size, name in last.items() if max(size) > 1}
    chosen = sorted({*ends, *(b for b in blocks if b in common)}, key=lambda n: common[n].order)
    seen: set[int] = set()
    found = []
    for name in chosen:
        if common[name].storage not in seen:
            found.append(name)
        seen.add(common[name].storage)
    return tuple(found)


def _blocks(model: nn.Module) -> list[str]:
    """The innermost modules below the root that hold two or more convolutions."""
    counts = {
        name: sum(isinstance(m, CONV_LIKE) for m in module.modules())
        for name, module in modules_by_name(model).items()
    }
    several = [name for name, n in counts.items() if n > 1 and name]
    return [n for n in several if not any(m.startswith(f"{n}.") for m in several)]


def _ran(model: nn.Module, example: Tensor) -> dict[str, _Ran]:
    """The modules below the root that run once and give a tensor (N, C, …), by name."""
    found: dict[str, _Ran] = {}
    calls: Counter[str] = Counter()
    kept: list[Tensor] = []  # so that no storage is used again

    def hook(name: str) -> Callable[[nn.Module, object, object], None]:
        def note(_: nn.Module, inputs: object, output: object) -> None:
            calls[name] += 1
            if isinstance(output, Tensor) and output.ndim > 2 and output.is_floating_point():
                kept.append(output)
                found[name] = _Ran(sum(calls.values()), tuple(output.shape), output.data_ptr())

        return note

    modules = [
        (n, m)
        for n, m in modules_by_name(model).items()
        if n and not isinstance(m, torch.jit.ScriptModule)
    ]
    handles = [m.register_forward_hook(hook(n)) for n, m in modules]
    with evaluating(model), torch.no_grad(), hooked(handles):
        call(model, suited(model, example))
    return {name: ran for name, ran in found.items() if calls[name] == 1}


def standing_for(
    own: Float[Tensor, "n c ..."], other: Float[Tensor, "n d ..."]
) -> Int[Tensor, " c"] | None:
    """The channel of `other` that each one of `own` stands for: the one that it is correlated with most.

    None where two would stand for the same one, or one for none (its greatest correlation is below
    `ALIKE`): then the channels of `own` are no choice of those of `other`.
    """
    centred, lengths = [], []
    for features in (own, other):
        rows = features.transpose(0, 1).flatten(1).float()
        centred.append(rows - rows.mean(1, keepdim=True))
        lengths.append(centred[-1].norm(dim=1).clamp_min(torch.finfo(rows.dtype).tiny))
    most, chosen = (centred[0] @ centred[1].T / lengths[0][:, None] / lengths[1]).max(1)
    distinct = len(chosen.unique()) == len(chosen)
    return chosen if distinct and most.min() >= ALIKE else None


class Taps:
    """Hooks that hold on to the outputs of named modules, until they are taken."""

    def __init__(self, model: nn.Module, names: tuple[str, ...]) -> None:
        self.outputs: dict[str, Tensor] = {}
        modules = modules_by_name(model)
        self.handles = [modules[n].register_forward_hook(self._hook(n)) for n in names]

    def _hook(self, name: str) -> Callable[[nn.Module, object, Tensor], None]:
        def hold(_: nn.Module, inputs: object, output: Tensor) -> None:
            self.outputs[name] = output

        return hold

    def take(self) -> dict[str, Tensor]:
        """What the last pass gave."""
        taken, self.outputs = self.outputs, {}
        return taken

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self.handles:
            handle.remove()
