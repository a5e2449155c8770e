"""Counting is exact: cases with a known answer in every mode, and an oracle that counts the products."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from known_costs import CONVOLUTIONS, Built, Case
from known_networks import NETWORKS, worked_out
from known_products import PRODUCTS
from torch import nn

from onebyone.measurement.counting import count

LAYERS = (*CONVOLUTIONS, *PRODUCTS)
MODES = {"grad": torch.enable_grad, "no_grad": torch.no_grad, "inference": torch.inference_mode}

pytestmark = [
    pytest.mark.filterwarnings("ignore:Using padding='same'"),
    pytest.mark.filterwarnings("ignore:LSTM with projections"),
    pytest.mark.filterwarnings("ignore:.*quantize_per_tensor.*are deprecated"),
]
every_mode = pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
both_trainings = pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])


def built(case: Case) -> Built:
    """The model and its inputs, where all is installed that they need."""
    if case.needs:
        pytest.importorskip(case.needs)
    return case.build()


def check(case: Case, training: bool, mode: Callable[[], Any]) -> None:
    model, inputs = built(case)
    model.train(training)
    with mode():
        found = count(model, *inputs)
    expected = case.macs
    if training and case.training_macs is not None:
        expected = case.training_macs
    assert found.macs == expected
    if case.params is not None:
        assert found.params == case.params


@both_trainings
@every_mode
@pytest.mark.parametrize("case", LAYERS, ids=lambda case: case.name)
def test_known_layers(case: Case, training: bool, mode: Callable[[], Any]) -> None:
    check(case, training, mode)


@both_trainings
@every_mode
@pytest.mark.parametrize("case", NETWORKS, ids=lambda case: case.name)
def test_known_networks(case: Case, training: bool, mode: Callable[[], Any]) -> None:
    with torch.device("meta"):
        check(case, training, mode)


def test_network_with_values() -> None:
    check(
        next(c for c in NETWORKS if c.name == "ResNet-18"), training=False, mode=torch.enable_grad
    )


def test_networks_follow_from_their_papers() -> None:
    assert {case.name: (case.macs, case.params) for case in NETWORKS} == worked_out()


def test_names_are_unique() -> None:
    names = [case.name for case in (*LAYERS, *NETWORKS)]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("case", LAYERS, ids=lambda case: case.name)
def test_cases_run(case: Case) -> None:
    """The table's models compute something, and have the parameters that the table says."""
    model, inputs = built(case)
    with torch.no_grad():
        model(*inputs)
    if case.params is not None:
        assert sum(p.numel() for p in model.parameters()) == case.params


@dataclass(frozen=True)
class Geometry:
    """A convolution: one entry an axis, channels of one group."""

    size: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    c_in: int
    c_out: int
    batch: int

    def layer(self, kind: str = "Conv", **options: Any) -> nn.Module:
        return getattr(nn, f"{kind}{len(self.size)}d")(
            self.groups * self.c_in, self.groups * self.c_out, self.kernel, self.stride,
            self.padding, dilation=self.dilation, groups=self.groups, bias=False, **options,
        ).double()  # fmt: skip

    def images(self) -> torch.Tensor:
        return torch.randn(self.batch, self.groups * self.c_in, *self.size).double()

    def wiring(self) -> Iterator[tuple[int, int, int, int]]:
        """Output and input channels that meet: in the network, and in the weight's second axis."""
        for g, o, i in itertools.product(range(self.groups), range(self.c_out), range(self.c_in)):
            yield g * self.c_out + o, g * self.c_in + i, o, i


@st.composite
def geometries(draw: st.DrawFn) -> Geometry:
    dims = draw(st.integers(1, 3))
    spare = {1: 5, 2: 3, 3: 1}[dims]

    def axes(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(dims))

    kernel, dilation = axes(1, {1: 4, 2: 3, 3: 2}[dims]), axes(1, 2)
    size = tuple(
        d * (k - 1) + 1 + extra
        for d, k, extra in zip(dilation, kernel, axes(0, spare), strict=True)
    )
    return Geometry(
        size, kernel, axes(1, 3), axes(0, 1), dilation,
        *(draw(st.integers(1, high)) for high in (2, 2, 3, 2)),
    )  # fmt: skip


def steps(size: int, kernel: int, stride: int, dilation: int) -> list[int]:
    """Where a window may begin, found by sliding it until it falls off."""
    found, start = [], 0
    while start + dilation * (kernel - 1) < size:
        found.append(start)
        start += stride
    return found


def by_hand(geometry: Geometry, x: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, int]:
    """The convolution one product at a time, and how many there were."""
    x = np.pad(x, [(0, 0), (0, 0), *((p, p) for p in geometry.padding)])
    windows = [
        steps(*axis)
        for axis in zip(
            x.shape[2:], geometry.kernel, geometry.stride, geometry.dilation, strict=True
        )
    ]
    y = np.zeros((len(x), len(weight), *map(len, windows)))
    products = 0
    for n, position in itertools.product(range(len(x)), np.ndindex(y.shape[2:])):
        for tap in np.ndindex(geometry.kernel):
            pixel = tuple(
                starts[p] + t * d
                for starts, p, t, d in zip(windows, position, tap, geometry.dilation, strict=True)
            )
            for o, i, _, second in geometry.wiring():
                y[n, o, *position] += weight[o, second, *tap] * x[n, i, *pixel]
                products += 1
    return y, products


def by_hand_transposed(
    geometry: Geometry, x: np.ndarray, weight: np.ndarray, output: tuple[int, ...]
) -> tuple[np.ndarray, int]:
    """Every input spread over the outputs one product at a time; padding crops the result."""
    margin = max(geometry.padding)
    y = np.zeros((len(x), geometry.groups * geometry.c_out, *(n + 2 * margin for n in output)))
    products = 0
    for n, position in itertools.product(range(len(x)), np.ndindex(geometry.size)):
        for tap in np.ndindex(geometry.kernel):
            pixel = tuple(
                p * s + t * d + margin - pad
                for p, s, t, d, pad in zip(
                    position, geometry.stride, tap, geometry.dilation, geometry.padding, strict=True
                )
            )
            for o, i, second, _ in geometry.wiring():
                y[n, o, *pixel] += weight[i, second, *tap] * x[n, i, *position]
                products += 1
    return y[:, :, *(slice(margin, margin + n) for n in output)], products


@given(geometries())
def test_convolutions_against_counted_products(geometry: Geometry) -> None:
    layer, x = geometry.layer(), geometry.images()
    y = layer(x).detach()
    expected, products = by_hand(geometry, x.numpy(), layer.weight.detach().numpy())
    torch.testing.assert_close(y, torch.from_numpy(expected))
    assert count(layer, x).macs == products


@given(geometries(), st.data())
def test_transposed_convolutions_against_counted_products(
    geometry: Geometry, data: st.DataObject
) -> None:
    more = tuple(data.draw(st.integers(0, s - 1)) for s in geometry.stride)
    layer, x = geometry.layer("ConvTranspose", output_padding=more), geometry.images()
    assume(all(n > 2 * p for n, p in zip(geometry.size, geometry.padding, strict=True)))
    y = layer(x).detach()
    expected, products = by_hand_transposed(
        geometry, x.numpy(), layer.weight.detach().numpy(), tuple(y.shape[2:])
    )
    torch.testing.assert_close(y, torch.from_numpy(expected))
    assert count(layer, x).macs == products
