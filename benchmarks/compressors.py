"""Ways to make a trained network lighter without fine-tuning, each brought to a fraction of the MACs.

    pip install torch-pruning==1.6.1 tensorly tensorly-torch==0.5.0 opt_einsum fasterai==0.4.1 einops
    pip install --no-deps fasterai==0.4.1     # it asks for fastai, which its decomposer does not use

- onebyone: `observe`, `plan`, `rewrite`.
- torch-pruning: `pruning.py`.
- tensorly-torch and fasterai know a share of the ranks to keep, the same for all layers: it is found by
  bisection. Layers that would become heavier are left as they are.
- weight SVD, Tucker-2, output PCA with a knapsack: `lowrank.py`. The last is what BALF (2025) does, seen
  from the output: the best projection of the activations, ranks chosen under one budget.
- spatial SVD, greedy: as AIMET does it (Jaderberg et al. 2014; Kuzmin et al. 2019): k×1 and 1×k, each
  layer's ranks as low as a common loss of accuracy allows, measured with one layer changed at a time.
- NNCF 3.4 is not here: what is left of its pruning sets single weights to zero, which leaves all MACs.
"""

from __future__ import annotations

import copy
import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass

import lowrank
import pruning
import torch
from torch import Tensor, nn

import onebyone as obo
from onebyone.measurement.counting import count
from onebyone.searching import accuracy

HALVINGS = 12
RATIOS = tuple(n / 10 for n in range(1, 10))  # of a layer's MACs, as AIMET tries
Make = Callable[[nn.Module, obo.Images, float, int], nn.Module | None]
Change = Callable[[nn.Conv2d, float], nn.Module]


@dataclass(frozen=True)
class Compressor:
    """`make(model, labeled images, fraction of MACs, seed)`; None where it does not reach so low."""

    name: str
    make: Make
    packages: tuple[str, ...] = ()

    @property
    def versions(self) -> str:
        """Its packages with their versions; PackageNotFoundError where one is missing."""
        return ", ".join(f"{p} {importlib.metadata.version(p)}" for p in self.packages)


def onebyone(model: nn.Module, images: obo.Images, macs: float, seed: int) -> nn.Module:
    seen = obo.observe(model, images.inputs, seed=seed)
    plan = obo.plan(model, seen, obo.Budget(macs=macs))
    return obo.rewrite(model, plan, images.inputs, statistics=seen)


def low_rank(name: str) -> Make:
    method = next(m for m in lowrank.METHODS if m.name == name)

    def make(model: nn.Module, images: obo.Images, macs: float, seed: int) -> nn.Module | None:
        seen = obo.observe(model, images.inputs, seed=seed)
        made = lowrank.slim(model, seen, method, macs)
        return None if made is None else made[0]

    return make


def pruned(importance: str) -> Make:
    def make(model: nn.Module, images: obo.Images, macs: float, seed: int) -> nn.Module:
        assert images.labels is not None
        return pruning.prune(model, images.inputs, images.labels, importance, macs)

    return make


def uniform(change: Change) -> Make:
    """The greatest share of the ranks, the same for all layers, that is within the budget."""

    def make(model: nn.Module, images: obo.Images, macs: float, seed: int) -> nn.Module | None:
        example = images.inputs[:1]
        goal = macs * count(model, example).macs
        low, high, best = 0.0, 1.0, None
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            made = _changed(model, change, middle, example)
            if count(made, example).macs <= goal:
                low, best = middle, made
            else:
                high = middle
        return best

    return make


def _changed(model: nn.Module, change: Change, share: float, example: Tensor) -> nn.Module:
    made = copy.deepcopy(model)
    for name, layer in _layers(model, example).items():
        block = change(layer.conv, share)
        if count(block, layer.inputs).macs < layer.macs:
            made.set_submodule(name, block)
    return made


@dataclass(frozen=True)
class _Layer:
    conv: nn.Conv2d
    inputs: Tensor
    macs: int


def _layers(model: nn.Module, example: Tensor) -> dict[str, _Layer]:
    """Dense k×k convolutions but the first layer of all, which sees the image, with their inputs."""
    inputs: dict[str, Tensor] = {}
    handles = []
    for name, module in model.named_modules():
        if type(module) is nn.Conv2d and module.groups == 1 and max(module.kernel_size) > 1:

            def hook(_: nn.Module, args: tuple[Tensor], __: Tensor, name: str = name) -> None:
                inputs[name] = args[0]

            handles.append(module.register_forward_hook(hook))
    with torch.no_grad():
        model(example)
    for handle in handles:
        handle.remove()
    convs = {name: model.get_submodule(name) for name in inputs}
    return {
        name: _Layer(conv, inputs[name], count(conv, inputs[name]).macs)
        for name, conv in convs.items()
        if isinstance(conv, nn.Conv2d) and conv.in_channels > 4
    }


def tensorly_tucker(conv: nn.Conv2d, share: float) -> nn.Module:
    """tensorly-torch's factorized convolution; spatial modes whole, as its documentation advises."""
    import tltorch

    ranks = [max(1, round(share * n)) for n in (conv.out_channels, conv.in_channels)]
    return tltorch.FactorizedConv.from_conv(
        copy.deepcopy(conv), rank=[*ranks, *conv.kernel_size], factorization="tucker",
        decompose_weights=True, implementation="factorized", decomposition_kwargs={"init": "svd"},
    ).eval()  # fmt: skip


def fasterai(method: str) -> Change:
    def change(conv: nn.Conv2d, share: float) -> nn.Module:
        from fasterai.misc.conv_decomposer import Conv_Decomposer

        block = nn.Sequential(copy.deepcopy(conv))
        with torch.no_grad():
            made = Conv_Decomposer().decompose(block, percent_removed=1 - share, method=method)
        return made[0].eval()  # type: ignore[index]

    return change


def spatial(conv: nn.Conv2d, rank: int) -> nn.Module:
    """k×1 to `rank` channels and 1×k: the SVD of the (c_in · kh) × (c_out · kw) unfolding."""
    out, inside, kh, kw = conv.weight.shape
    rows = conv.weight.detach().double().permute(1, 2, 0, 3).reshape(inside * kh, out * kw)
    left, values, right = torch.linalg.svd(rows, full_matrices=False)
    root = values[:rank].sqrt()
    (sh, sw), (ph, pw) = conv.stride, conv.padding  # type: ignore[misc]
    first = nn.Conv2d(inside, rank, (kh, 1), (sh, 1), (ph, 0), bias=False)  # type: ignore[arg-type]
    second = nn.Conv2d(rank, out, (1, kw), (1, sw), (0, pw), bias=conv.bias is not None)  # type: ignore[arg-type]
    with torch.no_grad():
        first.weight.copy_((left[:, :rank] * root).T.reshape(rank, inside, kh, 1))
        second.weight.copy_(
            (root[:, None] * right[:rank]).reshape(rank, out, 1, kw).transpose(0, 1)
        )
        if conv.bias is not None:
            second.bias.copy_(conv.bias)  # type: ignore[union-attr]
    return nn.Sequential(first, second).eval()


def greedy_spatial(
    model: nn.Module, images: obo.Images, macs: float, seed: int
) -> nn.Module | None:
    example = images.inputs[:1]
    layers = _layers(model, example)
    whole = count(model, example).macs
    options: dict[str, list[tuple[float, int, nn.Module | None]]] = {}
    for name, layer in layers.items():
        options[name] = [(accuracy(model, images), layer.macs, None)]
        one = count(spatial(layer.conv, 1), layer.inputs).macs
        for rank in sorted({max(1, round(r * layer.macs / one)) for r in RATIOS}):
            block = spatial(layer.conv, rank)
            alone = copy.deepcopy(model)
            alone.set_submodule(name, block)
            options[name].append((accuracy(alone, images), rank * one, block))
    rest = whole - sum(layer.macs for layer in layers.values())
    for floor in sorted({s for rows in options.values() for s, _, _ in rows}, reverse=True):
        chosen = {
            name: min((o for o in rows if o[0] >= floor), key=lambda o: o[1], default=rows[0])
            for name, rows in options.items()
        }
        if rest + sum(o[1] for o in chosen.values()) <= macs * whole:
            made = copy.deepcopy(model)
            for name, (_, _, block) in chosen.items():
                if block is not None:
                    made.set_submodule(name, block)
            return made
    return None


COMPRESSORS = (
    Compressor("onebyone", onebyone),
    Compressor("torch-pruning, group magnitude", pruned("group magnitude"), ("torch-pruning",)),
    Compressor("torch-pruning, group Taylor", pruned("group Taylor"), ("torch-pruning",)),
    Compressor("tensorly-torch, Tucker", uniform(tensorly_tucker), ("tensorly-torch", "tensorly")),
    Compressor("fasterai, Tucker", uniform(fasterai("tucker")), ("fasterai",)),
    Compressor("fasterai, SVD", uniform(fasterai("svd")), ("fasterai",)),
    Compressor("weight SVD, knapsack", low_rank("weight SVD")),
    Compressor("Tucker-2, knapsack", low_rank("Tucker-2 (HOOI)"), ("tensorly",)),
    Compressor("output PCA, knapsack", low_rank("output PCA")),
    Compressor("spatial SVD, greedy", greedy_spatial),
)
