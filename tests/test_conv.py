"""ConvSpec: geometry and cost formulas against PyTorch itself."""

from __future__ import annotations

from math import prod

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from onebyone.conv import TRANSPOSED, ConvSpec, as_weight, kernel_of

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")
CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
MODES = ("zeros", "reflect", "replicate", "circular")


@st.composite
def layers(
    draw: st.DrawFn, dims: tuple[int, ...] = (0, 1, 2, 3), grouped: bool = False
) -> tuple[nn.Module, Tensor]:
    """A plain float64 layer of any geometry with random weights, and inputs that it takes."""
    d = draw(st.sampled_from(dims))
    groups = draw(st.sampled_from((1, 2, 3))) if grouped and d else 1
    c_in, c_out = (groups * draw(st.integers(1, 6 // groups)) for _ in range(2))
    bias = draw(st.booleans())
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    if d == 0:
        axes = draw(st.lists(st.integers(1, 4), max_size=2))
        return _filled(nn.Linear(c_in, c_out, bias=bias), (2, *axes, c_in), generator)
    kernel = draw(st.tuples(*[st.integers(1, 4)] * d))
    dilation = draw(st.tuples(*[st.integers(1, 2)] * d))
    if draw(st.booleans()):
        return _transposed(draw, c_in, c_out, kernel, dilation, groups, bias, generator)
    padding = draw(
        st.one_of(st.just("same"), st.just("valid"), st.tuples(*[st.integers(0, 2)] * d))
    )
    stride = (1,) * d if padding == "same" else draw(st.tuples(*[st.integers(1, 3)] * d))
    reach = [e * (k - 1) + 1 for k, e in zip(kernel, dilation, strict=True)]
    size = [n + draw(st.integers(2, 5 if d < 3 else 3)) for n in reach]
    layer = CONVOLUTIONS[d](
        c_in, c_out, kernel, stride=stride, padding=padding, dilation=dilation, groups=groups,
        bias=bias, padding_mode=draw(st.sampled_from(MODES)),
    )  # fmt: skip
    return _filled(layer, (2, c_in, *size), generator)


def _transposed(
    draw: st.DrawFn, c_in: int, c_out: int, kernel: tuple[int, ...], dilation: tuple[int, ...],
    groups: int, bias: bool, generator: torch.Generator,
) -> tuple[nn.Module, Tensor]:  # fmt: skip
    d = len(kernel)
    stride = draw(st.tuples(*[st.integers(1, 3)] * d))
    reach = [e * (k - 1) for k, e in zip(kernel, dilation, strict=True)]
    more = tuple(draw(st.integers(0, max(s, e) - 1)) for s, e in zip(stride, dilation, strict=True))
    layer = TRANSPOSED[d](
        c_in, c_out, kernel, stride=stride, padding=tuple(min(r, draw(st.integers(0, 2))) for r in reach),
        output_padding=more, dilation=dilation, groups=groups, bias=bias,
    )  # fmt: skip
    size = [draw(st.integers(2, 5 if d < 3 else 3)) for _ in kernel]
    return _filled(layer, (2, c_in, *size), generator)


def _filled(
    layer: nn.Module, shape: tuple[int, ...], generator: torch.Generator
) -> tuple[nn.Module, Tensor]:
    layer = layer.double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(generator=generator)
    return layer, torch.randn(shape, generator=generator, dtype=torch.float64)


def positions(layer: nn.Module, maps: Tensor) -> int:
    """Positions of one item, of a layer's input or output."""
    return prod(maps.shape[1:-1]) if isinstance(layer, nn.Linear) else prod(maps.shape[2:])


def counted_macs(module: nn.Module, x: Tensor) -> int:
    """PyTorch's own count for one item."""
    with FlopCounterMode(display=False) as flops, torch.no_grad():
        module(x[:1])
    return flops.get_total_flops() // 2


def counted_params(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def check_cost(layer: nn.Module, x: Tensor) -> None:
    """Law: the formulas give PyTorch's own counts and output size."""
    conv, y = ConvSpec.of(layer), layer(x)
    if conv.kernel:
        assert conv.output_size(tuple(x.shape[2:])) == tuple(y.shape[2:])
    assert conv.macs(positions(layer, x if conv.transposed else y)) == counted_macs(layer, x)
    assert conv.params == counted_params(layer)


@given(layers(grouped=True))
def test_cost_is_that_of_pytorch(case: tuple[nn.Module, Tensor]) -> None:
    check_cost(*case)


@given(layers(grouped=True))
def test_fields_rebuild_the_layer(case: tuple[nn.Module, Tensor]) -> None:
    layer, _ = case
    conv = ConvSpec.of(layer)
    kernel = kernel_of(layer)
    assert (conv.c_out, conv.taps, conv.c_in // conv.groups) == tuple(kernel.shape)
    assert torch.equal(as_weight(layer, kernel), layer.weight)  # type: ignore[arg-type]
    assert conv.bias == (layer.bias is not None)
    assert conv.taps == prod(conv.kernel)
    assert conv.pointwise == (conv.taps == 1)
    assert conv == ConvSpec.of(layer)
    assert hash(conv) == hash(ConvSpec.of(layer))


def test_the_worked_example() -> None:
    direct = ConvSpec(100, 40, (5, 5), (1, 1), ((2, 2),) * 2, (1, 1), bias=False)
    assert direct.output_size((20, 20)) == (20, 20)
    assert (direct.params, direct.macs(400)) == (100_000, 40_000_000)


@pytest.mark.parametrize(
    ("layer", "text"),
    [
        (nn.Conv2d(64, 128, 3, stride=2), "64→128 3×3 /2"),
        (nn.Conv2d(8, 8, (1, 5), stride=(1, 2), groups=8), "8→8 1×5 /1×2 groups 8"),
        (nn.Conv3d(1, 2, 3, dilation=2), "1→2 3×3×3 dilation 2"),
        (nn.ConvTranspose2d(64, 32, 4, stride=2), "64→32 4×4 transposed /2"),
        (nn.Linear(512, 10), "512→10"),
    ],
)
def test_text(layer: nn.Module, text: str) -> None:
    assert ConvSpec.of(layer).text() == text


@pytest.mark.parametrize("layer", [nn.BatchNorm2d(2), nn.ReLU(), nn.Bilinear(2, 2, 2)])
def test_other_layers_have_no_geometry(layer: nn.Module) -> None:
    with pytest.raises(TypeError, match=f"not {type(layer).__name__}"):
        ConvSpec.of(layer)
