"""Factors → layers: what is built equals the convolution with the reconstructed kernel."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_forms import cases
from torch import Tensor, nn

from onebyone.building import fill, skeleton
from onebyone.conv import CONVOLUTIONS, GEOMETRY, ConvSpec, as_weight
from onebyone.factorize.factors import Factors
from onebyone.forms import FORMS, KEPT

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")
BOTH = [("squeeze", (4,)), ("channel", (3,)), ("tucker2", (4, 3)), ("keep", ())]


def random_factors(form: str, conv: ConvSpec, ranks: tuple[int, ...], seed: int = 0) -> Factors:
    """Factors of a form's shape, in float64."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    sides, groups = dict(zip(FORMS[form].ranks, ranks, strict=True)), conv.groups
    first = conv.first_taps if "between" in sides else 1
    r_in = sides.get("in", sides.get("between", conv.c_in // groups))
    r_out = sides.get("out", conv.c_out // groups)
    return Factors(
        draw(groups * r_out, conv.taps // first, r_in), draw(conv.c_out),
        draw(groups * r_in, first * (conv.c_in // groups)) if first > 1 or "in" in sides else None,
        draw(conv.c_out, r_out) if "out" in sides else None,
    )  # fmt: skip


def reconstructed(factors: Factors, conv: ConvSpec | None = None) -> Tensor:
    """expand · core · reduce: the kernel (c_out, taps, c_in of a group) that the factors stand for.

    conv: needed where the layer is grouped or its first part spans several taps.
    """
    groups, number = [], 1 if conv is None else conv.groups
    for g in range(number):
        core, reduce, expand = (
            None if part is None else part.chunk(number)[g]
            for part in (factors.core, factors.reduce, factors.expand)
        )
        assert core is not None
        if reduce is not None:  # (rank, taps of the first axis, c_in), those taps outermost
            rest = core.shape[1]
            core = core @ reduce
            if conv is not None:
                core = core.reshape(len(core), rest, -1, conv.c_in // number).transpose(1, 2)
                core = core.flatten(1, 2)
        groups.append(core if expand is None else torch.einsum("or,rkc->okc", expand, core))
    return torch.cat(groups)


def check_reconstruction(
    form: str, layer: nn.Module, x: Tensor, ranks: tuple[int, ...], tolerance: float = 1e-9
) -> None:
    """Law: the rewritten module is the convolution with the reconstructed kernel."""
    conv = ConvSpec.of(layer)
    factors = random_factors(form, conv, ranks)
    built = fill(skeleton(layer, form, ranks), form, factors)
    direct = copy.deepcopy(layer).double()
    with torch.no_grad():
        direct.weight.copy_(as_weight(direct, reconstructed(factors, conv)))  # type: ignore[union-attr,arg-type,operator]
        if direct.bias is not None:
            direct.bias.copy_(factors.bias)  # type: ignore[operator]
        expected = direct(x.double())
        if direct.bias is None and form not in KEPT:
            axes = (1,) * len(conv.kernel)
            expected = expected + factors.bias.reshape(-1, *axes)
        result = built(x).double()
    scale = expected.abs().max().item() + 1e-30
    torch.testing.assert_close(result, expected, rtol=tolerance, atol=tolerance * scale)


@given(cases())
def test_the_built_module_is_the_reconstructed_convolution(
    case: tuple[str, nn.Module, Tensor, tuple[int, ...]],
) -> None:
    check_reconstruction(*case)


@pytest.mark.parametrize(("form", "ranks"), BOTH)
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float32, 1e-5), (torch.float16, 2e-2), (torch.bfloat16, 5e-2)],
)
def test_other_dtypes(
    form: str, ranks: tuple[int, ...], dtype: torch.dtype, tolerance: float
) -> None:
    layer = nn.Conv2d(6, 5, 3, stride=2, padding=1, padding_mode="reflect", dtype=dtype)
    x = torch.randn(2, 6, 9, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    check_reconstruction(form, layer, x, ranks, tolerance)


@given(cases(), st.booleans(), st.booleans())
def test_the_skeleton_carries_the_layers_state(
    case: tuple[str, nn.Module, Tensor, tuple[int, ...]], training: bool, trains: bool
) -> None:
    form, layer, _, ranks = case
    layer.train(training).requires_grad_(trains).bfloat16()
    block = skeleton(layer, form, ranks)
    assert [m.training for m in block.modules()] == [training] * len(list(block.modules()))
    for parameter in block.parameters():
        assert parameter.requires_grad == trains
        assert parameter.dtype == torch.bfloat16
        assert parameter.device == layer.weight.device  # type: ignore[union-attr]
    plain = {type(layer), nn.Sequential}
    if ConvSpec.of(layer).transposed:  # the 1×1 around it
        plain.add(CONVOLUTIONS[len(ConvSpec.of(layer).kernel)])
    assert {type(m) for m in block.modules()} <= plain
    if form not in KEPT:  # the network's own code may read them
        for name in GEOMETRY:
            assert getattr(block, name, None) == getattr(layer, name, None), name
    if form in KEPT:
        mode = ConvSpec.of(layer).padding_mode  # has no effect where nothing is padded
        assert replace(ConvSpec.of(block), padding_mode=mode) == ConvSpec.of(layer)


@pytest.mark.parametrize(("form", "ranks"), BOTH)
def test_channels_last_stays(form: str, ranks: tuple[int, ...]) -> None:
    last = torch.channels_last
    layer = nn.Conv2d(6, 5, 3).to(memory_format=last)  # type: ignore[call-overload]
    x = torch.randn(2, 6, 9, 9).to(memory_format=last)
    built = fill(
        skeleton(layer, form, ranks), form, random_factors(form, ConvSpec.of(layer), ranks)
    )
    assert all(m.weight.is_contiguous(memory_format=last)  # type: ignore[union-attr,call-arg]
               for m in built.modules() if isinstance(m, nn.Conv2d))  # fmt: skip
    assert built(x).is_contiguous(memory_format=last)


@pytest.mark.parametrize("form", FORMS)
def test_the_layer_itself_is_not_touched(form: str) -> None:
    layer = nn.Linear(6, 5) if form == "pointwise" else nn.Conv2d(6, 5, 3)
    ranks = (4,) * len(FORMS[form].ranks)
    before = {k: v.clone() for k, v in layer.state_dict().items()}
    factors = random_factors(form, ConvSpec.of(layer), ranks)
    fill(skeleton(layer, form, ranks), form, factors)
    for key, value in layer.state_dict().items():
        assert torch.equal(value, before[key])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_denormal_numbers_become_zero(dtype: torch.dtype) -> None:
    layer = nn.Conv2d(2, 3, 3, dtype=dtype)
    tiny = torch.finfo(dtype).tiny
    values = torch.tensor([tiny, tiny / 2, -tiny / 4, 0.0, 1.0], dtype=torch.float64)
    core = values[torch.arange(3 * 9 * 2) % 5].reshape(3, 9, 2)
    built = fill(skeleton(layer, "keep", ()), "keep", Factors(core, values[:3]))
    for parameter in built.parameters():
        kept = parameter.detach()[parameter != 0]
        assert len(kept)
        assert kept.abs().min() >= tiny
