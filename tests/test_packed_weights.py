"""int8 layers keep their weights in objects: they count, for the layer, a byte each."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
import torch.ao.nn.quantized as fixed
import torch.ao.nn.quantized.dynamic as dynamic
from torch import Tensor, nn

import onebyone as obo
from onebyone.measurement import counting
from onebyone.measurement.counting import count

pytestmark = [
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(
        not {"fbgemm", "x86", "qnnpack"} & set(torch.backends.quantized.supported_engines),
        reason="no int8 kernels here",
    ),
]


class Quantized(nn.Module):
    """A static int8 layer between real numbers."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(torch.quantize_per_tensor(x, 0.1, 0, torch.quint8)).dequantize()


IMAGE, ROW = (1, 4, 9, 9), (2, 3, 4)
# Kind: how it is built, its input, its weights of one byte and its biases of four, its MACs.
KINDS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int, int, int]] = {
    "convolution": (
        lambda: Quantized(fixed.Conv2d(4, 6, 3)), IMAGE, 6 * 4 * 9, 6, 49 * 6 * 4 * 9
    ),
    "transposed": (
        lambda: Quantized(fixed.ConvTranspose2d(4, 6, 3)), IMAGE, 6 * 4 * 9, 6, 81 * 6 * 4 * 9
    ),
    "linear": (lambda: Quantized(fixed.Linear(4, 5)), ROW, 20, 5, 6 * 20),
    "linear, dynamic": (lambda: Holder(dynamic.Linear(4, 5)), ROW, 20, 5, 6 * 20),
    "recurrent": (
        lambda: Holder(dynamic.LSTM(4, 5, num_layers=2)), ROW, 20 * 4 + 3 * 20 * 5, 4 * 20,
        6 * (20 * 4 + 3 * 20 * 5),
    ),
}  # fmt: skip


class Holder(nn.Module):
    """A layer that takes real numbers."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> object:
        return self.layer(x)


@pytest.mark.parametrize("name", KINDS)
def test_packed_weights_count(name: str) -> None:
    build, shape, weights, biases, macs = KINDS[name]
    x = torch.randn(*shape)
    found = count(build(), x)
    assert found.params == weights + biases
    assert found.weight_bytes == weights + 4 * biases
    assert found.macs == macs
    assert found.layers["layer"].params == weights + biases
    assert not any("packed" in note for note in found.notes)
    product = next(o for o in found.operations if o.macs)
    assert sum(t.bytes for t in product.reads if t.dtype == "qint8") == weights


def test_a_linear_layer_and_its_quantized_twin() -> None:
    """What quantizing a layer saves is seen: three of the four bytes of each weight."""
    plain = nn.Sequential(nn.Linear(64, 32), nn.ReLU())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        small = torch.ao.quantization.quantize_dynamic(plain, {nn.Linear})
    before, after = (obo.measure(m, torch.randn(1, 64)) for m in (plain, small))
    assert before.params == after.params == 64 * 32 + 32
    assert before.weight_bytes - after.weight_bytes == 3 * 64 * 32
    assert after.memory is not None
    assert after.memory.weight_bytes == after.weight_bytes
    assert after.layers["0"].weight_bytes == after.weight_bytes


def test_what_cannot_be_looked_into_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "packed", lambda package: [])
    found = count(Quantized(fixed.Linear(4, 5)), torch.randn(*ROW))
    assert found.params == 0
    assert counting.CLOSED in found.notes
