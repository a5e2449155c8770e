"""Cases whose true cost is known, second part: matrix products, attention, recurrence, int8.

A product of m×k by k×n multiplies m · k · n times. Masked positions are counted, as padding is.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from known_costs import Applied, Built, ByHand, Case, build
from torch import Tensor, nn
from torch.nn import functional as F


def _pointwise(name: str, module: Callable[[], nn.Module], params: int = 4_000) -> Case:
    return Case(
        f"1×1 100→40 at 20×20 as {name}", build(module, (1, 100, 20, 20)),
        1_600_000, params, "400 pixels · 100 · 40, however it is written",
    )  # fmt: skip


def _rows(x: Tensor) -> Tensor:
    """(batch, pixels, channels)."""
    return x.flatten(2).transpose(1, 2)


def _last(module: nn.Module) -> nn.Module:
    return ByHand(lambda m, x: m.layer(x.movedim(1, -1)), layer=module)


POINTWISE: tuple[Case, ...] = (
    _pointwise("Conv2d", lambda: nn.Conv2d(100, 40, 1, bias=False)),
    _pointwise("ConvTranspose2d", lambda: nn.ConvTranspose2d(100, 40, 1, bias=False)),
    _pointwise("Linear on channels-last", lambda: _last(nn.Linear(100, 40)), 4_040),
    _pointwise(
        "Linear on channels-last, no bias", lambda: _last(nn.Linear(100, 40, bias=False))
    ),
    _pointwise("F.conv2d", lambda: Applied(lambda x, w: F.conv2d(x, w), (40, 100, 1, 1))),
    _pointwise("F.linear", lambda: Applied(lambda x, w: F.linear(_rows(x), w), (40, 100))),
    _pointwise("matmul", lambda: Applied(lambda x, w: torch.matmul(_rows(x), w), (100, 40))),
    _pointwise(
        "matmul from the left", lambda: Applied(lambda x, w: w @ x.flatten(2), (40, 100))
    ),
    _pointwise(
        "einsum", lambda: Applied(lambda x, w: torch.einsum("nchw,oc->nohw", x, w), (40, 100))
    ),
    _pointwise(
        "tensordot", lambda: Applied(lambda x, w: torch.tensordot(x, w, ([1], [0])), (100, 40))
    ),
    _pointwise("mm", lambda: Applied(lambda x, w: torch.mm(_rows(x)[0], w), (100, 40))),
    _pointwise("bmm", lambda: Applied(lambda x, w: torch.bmm(_rows(x), w), (1, 100, 40))),
    _pointwise(
        "addmm", lambda: Applied(lambda x, w, b: torch.addmm(b, _rows(x)[0], w), (100, 40), (40,)),
        4_040,
    ),
    _pointwise(
        "baddbmm",
        lambda: Applied(lambda x, w, b: torch.baddbmm(b, _rows(x), w), (1, 100, 40), (1, 1, 40)),
        4_040,
    ),
    _pointwise(
        "unfold and matmul",
        lambda: Applied(lambda x, w: w @ F.unfold(x, 1), (40, 100)),
    ),
)  # fmt: skip


def _embedding() -> Built:
    return nn.Embedding(10, 16), (torch.randint(10, (3, 5)),)


def _int_mm() -> Built:
    model = ByHand(lambda m, x: torch._int_mm(x, x.new_ones(16, 24)))
    return model, (torch.ones(32, 16, dtype=torch.int8),)


def _grouped() -> Built:
    model = Applied(lambda x, y: torch._grouped_mm(x, y))
    return model, (torch.randn(2, 8, 16).bfloat16(), torch.randn(2, 16, 24).bfloat16())


def _dynamic(layer: nn.Module, *shape: int) -> Built:
    """A dynamically quantized layer: int8 weights, activations quantized as they come."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.ao.quantization import quantize_dynamic

        model = nn.Sequential(layer).eval()
        return quantize_dynamic(model, {type(layer)}, torch.qint8), (torch.randn(shape),)


def _int8(name: str, *arguments: int, shape: tuple[int, ...], **options: int) -> Built:
    """A statically quantized layer between quantization and its opposite."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.ao.nn import quantized

        model = nn.Sequential(
            quantized.Quantize(torch.tensor([0.1]), torch.tensor([0]), torch.quint8),
            getattr(quantized, name)(*arguments, **options),
            quantized.DeQuantize(),
        )
    return model, (torch.randn(shape),)


PRODUCTS: tuple[Case, ...] = (
    *POINTWISE,
    Case(
        "Linear on a vector", build(lambda: nn.Linear(100, 40), (100,)),
        4_000, 4_040, "100 · 40",
    ),
    Case(
        "matrix times vector", build(lambda: Applied(lambda x, w: w @ x, (40, 100)), (100,)),
        4_000, 4_000, "100 · 40",
    ),
    Case(
        "broadcast matmul", build(lambda: Applied(torch.matmul, (3, 1, 6, 7)), (4, 5, 6)),
        3 * 4 * 5 * 6 * 7, 126, "a batch of 3·4 products of 5×6 by 6×7",
    ),
    Case(
        "grouped matmul", _grouped, 2 * 8 * 16 * 24, 0, "two products of 8×16 by 16×24",
    ),
    Case(
        "einsum of three", build(lambda: Applied(
            lambda x, a, b: torch.einsum("ni,ij,jk->nk", x, a, b), (6, 7), (7, 8)
        ), (5, 6)),
        5 * 6 * 7 + 5 * 7 * 8, 98, "from left to right: 5×6 by 6×7, then 5×7 by 7×8",
    ),
    Case(
        "Bilinear", build(lambda: nn.Bilinear(5, 7, 4), (3, 5), (3, 7)),
        3 * 4 * (5 * 7 + 7), 4 * 5 * 7 + 4, "for each of 4 outputs x₁W is 5 · 7, (x₁W)x₂ is 7",
    ),
    Case(
        "Bilinear as einsum", build(
            lambda: Applied(lambda x, z, w: torch.einsum("ni,oij,nj->no", x, w, z), (4, 5, 7)),
            (3, 5), (3, 7),
        ),
        3 * 4 * (5 * 7 + 7), 4 * 5 * 7, "from left to right: the products of Bilinear",
    ),
    Case("Embedding", _embedding, 0, 160, "rows are looked up"),
    Case(
        "scaled_dot_product_attention",
        build(
            lambda: Applied(F.scaled_dot_product_attention), (2, 4, 10, 8), (2, 4, 12, 8), (2, 4, 12, 6)
        ),
        8 * 10 * 12 * (8 + 6), 0, "8 heads: QKᵀ is 10 · 12 · 8, its product with V 10 · 12 · 6",
    ),
    Case(
        "scaled_dot_product_attention, causal",
        build(
            lambda: Applied(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True)),
            *[(2, 4, 10, 8)] * 3,
        ),
        8 * 10 * 10 * (8 + 8), 0, "masked positions are counted as padding is",
    ),
    Case(
        "scaled_dot_product_attention, grouped queries",
        build(
            lambda: Applied(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, enable_gqa=True)),
            (2, 8, 10, 16), (2, 2, 12, 16), (2, 2, 12, 16),
        ),
        16 * 10 * 12 * (16 + 16), 0, "16 heads of queries, whoever shares the keys",
    ),
    Case(
        "MultiheadAttention", build(lambda: nn.MultiheadAttention(16, 4), *[(10, 2, 16)] * 3),
        2 * 10 * 4 * 16 * 16 + 2 * 2 * 10 * 10 * 16, 4 * 16 * 16 + 4 * 16,
        "2 · 10 positions · (Q, K, V and output) 16 · 16; QKᵀ and its product with V 10 · 10 · 16",
    ),
    Case(
        "MultiheadAttention across", build(
            lambda: nn.MultiheadAttention(16, 4, kdim=12, vdim=9, bias=False),
            (10, 2, 16), (7, 2, 12), (7, 2, 9),
        ),
        2 * (10 * 2 * 16 * 16 + 7 * 16 * (12 + 9) + 2 * 10 * 7 * 16), 2 * 16 * 16 + 16 * (12 + 9),
        "10 queries, 7 keys of 12 and values of 9 channels",
    ),
    Case(
        "TransformerEncoderLayer",
        build(lambda: nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True), (2, 10, 16)),
        2 * 10 * 4 * 16 * 16 + 2 * 2 * 10 * 10 * 16 + 2 * 10 * 2 * 16 * 32,
        4 * 16 * 16 + 4 * 16 + 2 * 16 * 32 + 48 + 4 * 16,
        "attention as above, and 16→32→16 at 20 positions",
    ),
    Case(
        "RNN", build(lambda: nn.RNN(8, 12), (5, 3, 8)),
        15 * 12 * (8 + 12), 12 * (8 + 12 + 2), "5 steps · batch 3 · 12 · (8 in + 12 hidden)",
    ),
    Case(
        "LSTM", build(lambda: nn.LSTM(8, 12), (5, 3, 8)),
        15 * 4 * 12 * (8 + 12), 4 * 12 * (8 + 12 + 2), "four gates, each as an RNN",
    ),
    Case(
        "LSTM, two layers, both directions, projected",
        build(lambda: nn.LSTM(8, 12, 2, bidirectional=True, proj_size=6), (5, 3, 8)),
        15 * 2 * (48 * (8 + 6) + 48 * (12 + 6) + 2 * 12 * 6),
        2 * (48 * (8 + 6 + 2) + 48 * (12 + 6 + 2) + 2 * 12 * 6),
        "gates read 8 + 6, then 2·6 + 6 channels; each layer projects 12 to 6",
    ),
    Case(
        "GRU", build(lambda: nn.GRU(8, 12), (5, 3, 8)),
        15 * 3 * 12 * (8 + 12), 3 * 12 * (8 + 12 + 2), "three gates, each as an RNN",
    ),
    Case(
        "LSTMCell", build(lambda: nn.LSTMCell(8, 12), (3, 8)),
        3 * 4 * 12 * (8 + 12), 4 * 12 * (8 + 12 + 2), "one step",
    ),
    Case(
        "GRUCell", build(lambda: nn.GRUCell(8, 12), (3, 8)),
        3 * 3 * 12 * (8 + 12), 3 * 12 * (8 + 12 + 2), "one step",
    ),
    Case("int8 matmul", _int_mm, 32 * 16 * 24, 0, "32×16 by 16×24"),
    Case(
        "Linear, int8, dynamically quantized", lambda: _dynamic(nn.Linear(100, 40), 3, 100),
        3 * 100 * 40, None, "an int8 product is a product",
    ),
    Case(
        "LSTM, int8", lambda: _dynamic(nn.LSTM(8, 12, 2, bidirectional=True), 5, 3, 8),
        15 * 2 * 48 * (8 + 12 + 24 + 12), None, "each direction reads 8 + 12, then 2·12 + 12 channels",
    ),
    Case(
        "GRU, int8", lambda: _dynamic(nn.GRU(8, 12), 5, 3, 8),
        15 * 3 * 12 * (8 + 12), None, "three gates of 12, each reads 8 + 12 channels",
    ),
    Case(
        "LSTMCell, int8", lambda: _dynamic(nn.LSTMCell(8, 12), 3, 8),
        3 * 4 * 12 * (8 + 12), None, "one step",
    ),
    Case(
        "Linear, int8", lambda: _int8("Linear", 100, 40, shape=(3, 100)),
        3 * 100 * 40, None, "an int8 product is a product",
    ),
    Case(
        "Conv2d, int8", lambda: _int8("Conv2d", 6, 8, 3, stride=2, shape=(2, 6, 12, 10)),
        2 * 5 * 4 * 6 * 8 * 9, None, "5×4 outputs; an int8 product is a product",
    ),
    Case(
        "Conv2d, int8, grouped", lambda: _int8("Conv2d", 12, 8, 3, groups=4, shape=(2, 12, 12, 10)),
        2 * 80 * 3 * 8 * 9, None, "each output reads 12 / 4 channels",
    ),
    Case(
        "ConvTranspose2d, int8",
        lambda: _int8("ConvTranspose2d", 8, 6, 3, stride=2, shape=(2, 8, 5, 4)),
        2 * 20 * 8 * 6 * 9, None, "20 input positions",
    ),
)  # fmt: skip
