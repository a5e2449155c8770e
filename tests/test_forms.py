"""The table of forms: every row keeps one list of promises."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_conv import counted_macs, counted_params, layers
from torch import Tensor, nn

from onebyone.building import skeleton
from onebyone.conv import ConvSpec, Places
from onebyone.forms import FORMS, KEPT
from onebyone.surveying import survey

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")
THIN = [name for name, form in FORMS.items() if form.ranks]


def suits(form: str, layer: nn.Module) -> bool:
    return FORMS[form].refuse(ConvSpec.of(layer)) is None


@st.composite
def cases(draw: st.DrawFn) -> tuple[str, nn.Module, Tensor, tuple[int, ...]]:
    """A layer with its input, a form that suits it and ranks from 1 to full."""
    layer, x = draw(layers())
    form = draw(st.sampled_from([f for f in FORMS if suits(f, layer)]))
    return form, layer, x, draw(ranks_of(form, ConvSpec.of(layer)))


def ranks_of(form: str, conv: ConvSpec) -> st.SearchStrategy[tuple[int, ...]]:
    return st.tuples(*[st.integers(1, full) for full in FORMS[form].full(conv)])


def check_chain(form: str, conv: ConvSpec, ranks: tuple[int, ...]) -> None:
    """Law: the parts fit together, end as the layer does, and only the last has a bias."""
    parts = [part.conv for part in FORMS[form].parts(conv, ranks)]
    assert (parts[0].c_in, parts[-1].c_out) == (conv.c_in, conv.c_out)
    widths = tuple(part.c_out for part in parts[:-1])
    assert widths == tuple(rank * conv.groups for rank in ranks)
    assert all(a.c_out == b.c_in for a, b in pairwise(parts))
    assert [part.bias for part in parts[:-1]] == [False] * (len(parts) - 1)
    assert parts[-1].bias or form in KEPT
    assert math.prod(part.taps for part in parts) == conv.taps
    assert {part.groups for part in parts} == {conv.groups}
    size = tuple(sum(map(abs, p)) + d * k + 5 for p, d, k in
                 zip(conv.padding, conv.dilation, conv.kernel, strict=True))  # fmt: skip
    reached = size
    for part in parts:
        reached = part.output_size(reached)
    assert reached == conv.output_size(size)


def check_form_cost(form: str, layer: nn.Module, x: Tensor, ranks: tuple[int, ...]) -> None:
    """Law: a form's cost formula gives PyTorch's own count on the layers it is made of."""
    conv, block = ConvSpec.of(layer), skeleton(layer, form, ranks)
    places = survey(layer, x[:1]).layers[0].places
    assert FORMS[form].macs(conv, ranks, places) == counted_macs(block, x)
    assert FORMS[form].params(conv, ranks) == counted_params(block)


@given(cases())
def test_parts_fit_together(case: tuple[str, nn.Module, Tensor, tuple[int, ...]]) -> None:
    form, layer, _, ranks = case
    check_chain(form, ConvSpec.of(layer), ranks)


@given(cases())
def test_cost_is_that_of_pytorch(case: tuple[str, nn.Module, Tensor, tuple[int, ...]]) -> None:
    check_form_cost(*case)


@pytest.mark.parametrize("form", FORMS)
def test_every_row_says_what_it_is(form: str) -> None:
    row = FORMS[form]
    assert row.title
    assert row.says
    assert row.paper or form == "keep"
    assert set(row.ranks) <= {"in", "out", "between"}


@pytest.mark.parametrize("form", THIN)
def test_depthwise_layers_are_refused_with_a_reason(form: str) -> None:
    for kernel in ((3, 3), (1, 1)):
        ones = (1,) * 2
        conv = ConvSpec(8, 16, kernel, ones, ((1, 1),) * 2, ones, groups=8)
        reason = FORMS[form].refuse(conv)
        assert reason is not None
        assert any(word in reason for word in ("depthwise", "tap", "pointwise"))


@pytest.mark.parametrize("kernel", [(3,), (3, 1), (1, 1, 5)])
def test_a_kernel_along_one_axis_has_no_two_halves(kernel: tuple[int, ...]) -> None:
    ones = (1,) * len(kernel)
    conv = ConvSpec(8, 8, kernel, ones, ((1, 1),) * len(kernel), ones)
    assert FORMS["spatial"].refuse(conv) == "the kernel lies along one axis"


def test_each_dense_layer_has_a_thin_form_and_can_be_kept() -> None:
    dense = ConvSpec.of(nn.Conv2d(8, 8, 3))
    for conv in (dense, replace(dense, kernel=(1, 1)), ConvSpec.of(nn.Linear(8, 8))):
        suited = [name for name in FORMS if FORMS[name].refuse(conv) is None]
        assert "keep" in suited
        assert len(suited) > 1


def test_the_worked_example() -> None:
    conv = ConvSpec.of(nn.Conv2d(100, 40, 5, padding=2, bias=False))
    squeeze = FORMS["squeeze"]
    assert squeeze.macs(conv, (20,), Places(400, 400)) == 8_800_000
    assert squeeze.params(conv, (20,)) == 22_000 + 40  # with the bias of the last layer


def test_the_first_part_of_a_strided_layer_runs_on_the_larger_map() -> None:
    layer = nn.Conv2d(8, 8, 3, stride=2, padding=1)
    x = torch.randn(1, 8, 12, 12)
    cases = (("squeeze", (4,)), ("tucker2", (4, 4)), ("channel", (4,)), ("spatial", (4,)))
    for form, ranks in cases:
        check_form_cost(form, layer, x, ranks)
    conv, places = ConvSpec.of(layer), Places(144, 36, 72)
    assert FORMS["squeeze"].macs(conv, (4,), places) == 144 * 32 + 36 * 4 * 8 * 9
    assert FORMS["spatial"].macs(conv, (4,), places) == 72 * 4 * 8 * 3 + 36 * 4 * 8 * 3
