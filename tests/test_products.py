"""Products in less usual operators: in place, sparse, packed in half precision and in four bits."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from known_costs import ByHand
from torch import Tensor, nn

from onebyone.measurement.counting import count

X, BATCH = torch.randn(4, 5), torch.randn(3, 4, 5)
BY_HAND: dict[str, tuple[Callable[[Tensor], Tensor], Tensor, int]] = {
    "addmm_": (lambda x: x.new_zeros(4, 6).addmm_(x, x.new_ones(5, 6)), X, 4 * 5 * 6),
    "addmv_": (lambda x: x.new_zeros(4).addmv_(x, x.new_ones(5)), X, 4 * 5),
    "baddbmm_": (
        lambda x: x.new_zeros(3, 4, 6).baddbmm_(x, x.new_ones(3, 5, 6)), BATCH, 3 * 4 * 5 * 6
    ),
    "addbmm_": (
        lambda x: x.new_zeros(4, 6).addbmm_(x, x.new_ones(3, 5, 6)), BATCH, 3 * 4 * 5 * 6
    ),
    "a sparse matrix added to": (
        lambda x: torch.sparse.addmm(x.new_zeros(4, 6), x.to_sparse(), x.new_ones(5, 6)), X, 120
    ),
    "a sparse matrix and a sparse one": (
        lambda x: torch.sparse.mm(x.to_sparse(), x.new_ones(5, 6).to_sparse()).to_dense(), X, 120
    ),
    "an empty sparse matrix": (lambda x: torch.sparse.mm((0 * x).to_sparse(), x.mT), X, 4 * 5 * 4),
    "sums along a sparse matrix": (
        lambda x: torch.sparse.mm(x.to_sparse_csr(), x.new_ones(5, 6), "sum"), X, 120
    ),
    "a product where a sparse matrix is": (
        lambda x: torch.sparse.sampled_addmm(
            torch.eye(4).to_sparse_csr(), x, x.new_ones(5, 4)
        ).to_dense(), X, 4 * 5 * 4,
    ),
    "hspmm": (lambda x: torch.hspmm(x.to_sparse(), x.new_ones(5, 6)).to_dense(), X, 120),
    "smm": (lambda x: torch.smm(x.to_sparse(), x.new_ones(5, 6)).to_dense(), X, 120),
    "lists": (
        lambda x: torch._foreach_mm([x, x[:2]], [x.new_ones(5, 6), x.new_ones(5, 7)])[0],
        X, 120 + 2 * 5 * 7,
    ),
    "a column by a row, added": (lambda x: torch.addr(x, x[:, 0], x[0]), X, 4 * 5),
    "a column by a row, added in place": (
        lambda x: x.new_zeros(4, 5).addr_(x[:, 0], x[0]), X, 4 * 5
    ),
    "distances of many rows": (  # squares stand beside the rows as two columns
        lambda x: torch.cdist(x, x.new_ones(50, 5)), torch.randn(30, 5), 30 * 50 * (5 + 2)
    ),
    "distances in batches": (
        lambda x: torch.cdist(x, x.new_ones(3, 50, 5)), torch.randn(3, 30, 5), 3 * 30 * 50 * (5 + 2)
    ),
    "complex numbers": (  # four products of real numbers in each
        lambda x: x.to(torch.complex64) @ x.new_ones(5, 6, dtype=torch.complex64), X, 4 * 120
    ),
    "complex numbers in batches": (
        lambda x: torch.einsum(
            "bmk,bkn->bmn", x.to(torch.complex64), x.new_ones(3, 5, 6, dtype=torch.complex64)
        ), BATCH, 4 * 3 * 120,
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize("name", BY_HAND)
def test_matrix_products(name: str) -> None:
    function, x, macs = BY_HAND[name]
    assert count(ByHand(lambda m, x: function(x)), x).macs == macs


def _quantized(x: Tensor) -> Tensor:
    return torch.quantize_per_tensor(x, 0.1, 0, torch.quint8)


@pytest.mark.filterwarnings("ignore:.*quantize_per_tensor.*are deprecated")
class TestPacked:
    def test_half_precision(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from torch.ao.quantization import quantize_dynamic

            model = quantize_dynamic(nn.Sequential(nn.Linear(8, 6)), {nn.Linear}, torch.float16)
        assert count(model, torch.randn(3, 8)).layers["0"].macs == 3 * 8 * 6

    def test_a_product_of_two_inputs(self) -> None:
        def multiply(x: Tensor) -> Tensor:
            q = _quantized(x)
            return torch.ops.quantized.matmul(q, _quantized(x.mT), 0.1, 0)

        assert count(ByHand(lambda m, x: multiply(x)), BATCH).macs == 3 * 4 * 5 * 4

    def test_a_convolution_added_to_what_is_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.backends.quantized, "engine", "onednn")
        weight = torch.quantize_per_tensor(torch.randn(4, 3, 3, 3), 0.1, 0, torch.qint8)
        packed = torch.ops.quantized.conv2d_prepack(weight, None, [1, 1], [1, 1], [1, 1], 1)

        def add(x: Tensor) -> Tensor:
            there = _quantized(x.new_zeros(1, 4, 5, 5))
            return torch.ops.quantized.conv2d_add(_quantized(x), there, packed, 0.1, 0)

        assert count(ByHand(lambda m, x: add(x)), torch.randn(1, 3, 5, 5)).macs == 25 * 4 * 27

    def test_four_bits(self) -> None:
        weight = torch.randint(0, 16, (32, 64), dtype=torch.int32)
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(weight, 1)
        scales = torch.ones(2, 32, 2, dtype=torch.bfloat16)

        def linear(x: Tensor) -> Tensor:
            x = x.bfloat16()
            return torch.ops.aten._weight_int4pack_mm_for_cpu(
                x, packed.to(x.device), 32, scales.to(x.device)
            )

        assert count(ByHand(lambda m, x: linear(x)), torch.randn(3, 64)).macs == 3 * 64 * 32
