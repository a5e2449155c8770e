"""Sampled rows: what a layer reads and gives at chosen positions."""

from __future__ import annotations

from math import prod

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_conv import layers
from torch import Tensor, nn

from onebyone.conv import ConvSpec, kernel_of
from onebyone.sampling import choose_positions, output_rows, patch_rows, positions_of

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")


def check_rows(layer: nn.Module, x: Tensor, wanted: int) -> None:
    """Law: the layer's weight on the sampled patches gives its sampled outputs."""
    conv, generator = ConvSpec.of(layer), torch.Generator().manual_seed(0)
    with torch.no_grad():
        y = layer(x)
        count = positions_of(conv, y)
        chosen = choose_positions(len(y), count, wanted, generator)
        patches, outputs = patch_rows(conv, x, chosen), output_rows(conv, y, chosen)
        given_by_patches = torch.einsum("nkc,okc->no", patches, kernel_of(layer).float())
        if layer.bias is not None:
            given_by_patches = given_by_patches + layer.bias.float()  # type: ignore[operator]
        first = layer(x)
        rows = first.flatten(2).transpose(1, 2) if conv.kernel else first
        rows = rows.reshape(len(x), count, conv.c_out)
        expected = torch.cat([item[at] for item, at in zip(rows, chosen, strict=True)])
    assert patches.shape == (chosen.numel(), conv.taps, conv.c_in)
    torch.testing.assert_close(outputs, expected.float())
    torch.testing.assert_close(given_by_patches, outputs, rtol=1e-4, atol=1e-4)


@given(layers(), st.integers(1, 40))
def test_the_weight_on_patches_gives_the_outputs(case: tuple[nn.Module, Tensor], n: int) -> None:
    check_rows(*case, n)


def check_rows_are_copies(layer: nn.Module, x: Tensor, wanted: int) -> None:
    """Law: rows do not change when the map they came from is overwritten (in-place activations)."""
    conv = ConvSpec.of(layer)
    with torch.no_grad():
        y = layer(x)
        chosen = choose_positions(len(y), positions_of(conv, y), wanted, torch.Generator())
        rows, patches = output_rows(conv, y, chosen), patch_rows(conv, x, chosen)
        kept, kept_patches = rows.clone(), patches.clone()
        y.fill_(7)
        x.fill_(7)
    torch.testing.assert_close(rows, kept, rtol=0, atol=0)
    torch.testing.assert_close(patches, kept_patches, rtol=0, atol=0)


@given(layers(), st.integers(1, 40))
def test_rows_are_copies(case: tuple[nn.Module, Tensor], n: int) -> None:
    layer, x = case
    check_rows_are_copies(layer.float(), x.float(), n)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(4, 8, 1), (3, 4, 1, 1)),
        (nn.Conv2d(4, 1, 1), (3, 4, 5, 5)),
        (nn.Conv2d(4, 8, 3), (1, 4, 3, 3)),
        (nn.Linear(4, 8), (3, 4)),
        (nn.Linear(4, 1), (3, 5, 4)),
    ],
)
def test_rows_of_narrow_maps_are_copies(layer: nn.Module, shape: tuple[int, ...]) -> None:
    check_rows_are_copies(layer, torch.randn(shape), 100)


def check_positions(items: int, positions: int, wanted: int, seed: int) -> None:
    """Law: as many as wanted (all, if fewer), in range, none twice in an item."""
    chosen = choose_positions(items, positions, wanted, torch.Generator().manual_seed(seed))
    assert chosen.shape == (items, min(wanted, positions))
    assert chosen.min() >= 0
    assert chosen.max() < positions
    assert (chosen.sort(dim=1).values.diff(dim=1) > 0).all()


@given(st.integers(1, 4), st.integers(1, 300), st.integers(1, 300), st.integers(0, 99))
def test_positions(items: int, positions: int, wanted: int, seed: int) -> None:
    check_positions(items, positions, wanted, seed)


def test_positions_are_uniform_and_spread() -> None:
    drawn = choose_positions(4000, 30, 6, torch.Generator().manual_seed(0))
    share = torch.bincount(drawn.flatten(), minlength=30) / 4000
    torch.testing.assert_close(share, torch.full((30,), 0.2), rtol=0, atol=0.03)
    gaps = drawn.sort(dim=1).values.diff(dim=1)
    assert gaps.max() < 10
    assert len(gaps.unique()) > 5


def test_the_same_seed_draws_the_same() -> None:
    a, b, other = (
        choose_positions(5, 100, 9, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(a, b)
    assert not torch.equal(a, other)


@given(layers())
def test_positions_of_a_map(case: tuple[nn.Module, Tensor]) -> None:
    layer, x = case
    conv, y = ConvSpec.of(layer), layer(x)
    assert positions_of(conv, y) * conv.c_out * len(x) == prod(y.shape)
