"""Published low-rank methods inside onebyone's harness: same layers, same costs, same allocation.

Each method is two functions: `errors` of all its candidates for one layer, and the `factors` of the
chosen one. None sees gradients, compensates for the layers before, or refits kept layers: that is
how they are published.

- weight SVD: Denton et al. 2014; the SVD of the c_out × (c_in·k²) unfolding.
- Tucker-2 by higher-order orthogonal iteration (tensorly): Kim et al. 2016.
- output PCA: Zhang et al. 2016, §3.1 (linear case); the covariance of the outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from onebyone.allocation import Choices, allocate
from onebyone.building import fill, skeleton
from onebyone.conv import ConvSpec, Places
from onebyone.factorize.factors import Factors
from onebyone.factorize.metric import energies, spectrum, tails
from onebyone.forms import FORMS
from onebyone.recorder import LayerStatistics
from onebyone.statistics import Statistics
from onebyone.tree import deep_copy, modules_by_name, replace_modules


@dataclass(frozen=True)
class Layer:
    """A layer as a low-rank method sees it; the kernel is (c_out, taps, c_in), float64."""

    conv: ConvSpec
    kernel: Tensor
    bias: Tensor
    seen: LayerStatistics

    @property
    def rows(self) -> Tensor:
        """The unfolding c_out × (taps · c_in)."""
        return self.kernel.reshape(len(self.kernel), -1)


Errors = Callable[[Layer], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Method:
    """`errors` gives the energy lost at each input-side and each output-side rank, as fractions."""

    name: str
    forms: tuple[str, ...]
    errors: Errors
    factors: Callable[[Layer, str, tuple[int, ...]], Factors]


def _fractions(values: Tensor) -> np.ndarray:
    lost = tails(values)
    return (lost / lost[0].clamp_min(1e-30)).numpy()


def _weight_errors(layer: Layer) -> tuple[np.ndarray, np.ndarray]:
    inside = layer.kernel.permute(2, 0, 1).reshape(layer.conv.c_in, -1)
    return (
        _fractions(energies(inside @ inside.T)),
        _fractions(energies(layer.rows @ layer.rows.T)),
    )


def _svd_factors(layer: Layer, form: str, ranks: tuple[int, ...]) -> Factors:
    left, values, right = torch.linalg.svd(layer.rows, full_matrices=False)
    rank = ranks[-1]
    core = values[:rank, None] * right[:rank]
    return Factors(
        core.reshape(rank, layer.conv.taps, layer.conv.c_in), layer.bias, expand=left[:, :rank]
    )


def _tucker_factors(layer: Layer, form: str, ranks: tuple[int, ...]) -> Factors:
    if form == "pointwise":
        return _svd_factors(layer, form, ranks)
    import tensorly
    from tensorly.decomposition import partial_tucker

    tensorly.set_backend("pytorch")
    (core, (out, inside)), _ = partial_tucker(
        layer.kernel, rank=[ranks[1], ranks[0]], modes=[0, 2], init="svd", n_iter_max=50
    )
    return Factors(core, layer.bias, inside.T, out)


def _output_errors(layer: Layer) -> tuple[np.ndarray, np.ndarray]:
    return np.ones(layer.conv.c_in + 1), _fractions(energies(layer.seen.outputs.covariance))


def _pca_factors(layer: Layer, form: str, ranks: tuple[int, ...]) -> Factors:
    moments = layer.seen.outputs
    _, vectors = spectrum(moments.covariance)
    kept = vectors[:, : ranks[-1]]
    mean = moments.total / moments.samples
    core = (kept.T @ layer.rows).reshape(ranks[-1], layer.conv.taps, layer.conv.c_in)
    return Factors(core, kept @ (kept.T @ (layer.bias - mean)) + mean, expand=kept)


METHODS = (
    Method("weight SVD", ("channel", "pointwise"), _weight_errors, _svd_factors),
    Method("Tucker-2 (HOOI)", ("tucker2", "pointwise"), _weight_errors, _tucker_factors),
    Method("output PCA", ("channel", "pointwise"), _output_errors, _pca_factors),
)


def slim(
    model: nn.Module, statistics: Statistics, method: Method, macs: float
) -> tuple[nn.Module, float, float] | None:
    """The network at a fraction of the MACs, with the fractions of MACs and parameters that it keeps.

    None where the method has no candidates that reach so far down.
    """
    survey = statistics.survey
    modules = modules_by_name(model)
    free = [
        s for s in survey.layers if s.refusal is None and s.conv is not None and s.conv.groups == 1
    ]
    layers = [_layer(modules[s.layer], statistics.layers[s.layer]) for s in free]
    tables = [_candidates(layer, method, s.positions_in, s.positions_out)
              for layer, s in zip(layers, free, strict=True)]  # fmt: skip
    before = sum(table[1].costs[0, 0] for table in tables)
    picks = allocate([t for _, t in tables], [macs * survey.macs - (survey.macs - before)])
    if picks is None:
        return None
    lighter = deep_copy(model)
    new: dict[str, nn.Module] = {}
    after = params = 0.0
    for layer, seen, (names, table), pick in zip(layers, free, tables, picks, strict=True):
        form, ranks = names[pick]
        after += table.costs[pick, 0] - table.costs[0, 0]
        params += FORMS[form].params(layer.conv, ranks) - layer.conv.params
        if form != "keep":
            block = skeleton(modules[seen.layer], form, ranks)
            new[seen.layer] = fill(block, form, method.factors(layer, form, ranks))
    return (
        replace_modules(lighter, new).eval(),
        1 + after / survey.macs,
        1 + params / survey.params,
    )


def _layer(module: nn.Module, seen: LayerStatistics) -> Layer:
    conv = ConvSpec.of(module)
    weight: Tensor = module.weight.detach().double()  # type: ignore[operator, union-attr]
    kernel = weight.reshape(conv.c_out, conv.c_in, conv.taps).transpose(1, 2).contiguous()
    bias = (
        torch.zeros(conv.c_out).double() if module.bias is None else module.bias.detach().double()
    )
    return Layer(conv, kernel, bias, seen)  # type: ignore[arg-type]


def _candidates(
    layer: Layer, method: Method, inside: int, outside: int
) -> tuple[Sequence[tuple[str, tuple[int, ...]]], Choices]:
    """Keep, and every rank of the method's forms that is cheaper."""
    conv = layer.conv
    lost_in, lost_out = method.errors(layer)
    names: list[tuple[str, tuple[int, ...]]] = [("keep", ())]
    rows = [(0.0, float(conv.macs(outside)))]
    for form in method.forms:
        if FORMS[form].refuse(conv) is not None:
            continue
        ranges = [range(1, full) for full in FORMS[form].full(conv)]
        for ranks in np.ndindex(*map(len, ranges)):
            chosen = tuple(r[i] for r, i in zip(ranges, ranks, strict=True))
            macs = float(FORMS[form].macs(conv, chosen, Places(inside, outside)))
            if macs < rows[0][1]:
                lost = lost_out[chosen[-1]] + (lost_in[chosen[0]] if len(chosen) == 2 else 0.0)
                names.append((form, chosen))
                rows.append((float(lost), macs))
    table = np.asarray(rows)
    return names, Choices(table[:, 0], table[:, 1:])
