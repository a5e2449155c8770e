"""Networks as people bring them: slimmed, or refused by name."""

from collections.abc import Callable

import own_models as own
import pytest
import torch
from models import images
from torch import nn

import onebyone as obo
from onebyone import sensing, statistics
from onebyone.errors import ModelError
from onebyone.tree import tensors_in

SQUARE = (3, 12, 12)
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "two heads": (own.Heads, SQUARE),
    "a detector": (lambda: own.Detector(0.55), SQUARE),
    "a detector that finds nothing": (lambda: own.Detector(2.0), SQUARE),
    "U-Net": (own.UNet, SQUARE),
    "generator": (own.Generator, (16, 1, 1)),
    "sound": (own.sound, (1, 256)),
    "volume": (own.Volume, (1, 4, 8, 8)),
    "blurred": (own.Blurred, SQUARE),
    "conditional": (own.Conditional, SQUARE),
    "rearranged": (own.Rearranged, SQUARE),
    "complex parameter": (own.Fourier, SQUARE),
    "whole numbers as a parameter": (own.Permuted, SQUARE),
}


def made(build: Callable[[], nn.Module]) -> nn.Module:
    """The network with the same random weights every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build().eval()


@pytest.mark.parametrize("name", NETWORKS)
def test_slimmed(name: str) -> None:
    build, shape = NETWORKS[name]
    model, inputs = made(build), images(24, *shape)
    slimmed = obo.slim(model, inputs, macs=0.75, held_out=6, latency=False)
    assert slimmed.plan.macs_after <= 0.75 * slimmed.plan.macs_before
    with torch.no_grad():
        outputs = list(tensors_in(slimmed.model(inputs)))
    assert outputs
    assert all(y.isfinite().all() for y in outputs)
    again = obo.rewrite(
        model, obo.plan(model, obo.observe(model, inputs), obo.Budget(macs=1.0)), inputs
    )
    with torch.no_grad():
        for one, other in zip(tensors_in(model(inputs)), tensors_in(again(inputs)), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def errors_of_heads() -> dict[str, float]:
    """The relative error of each output of two equal heads at 0.7 of the MACs."""
    model, inputs = made(own.Heads), images(48, *SQUARE)
    lighter = obo.slim(model, inputs[:40], macs=0.7, held_out=0, latency=False).model
    with torch.no_grad():
        before, after = model(inputs[40:]), lighter(inputs[40:])
    return {
        name: float((before[name] - after[name]).square().sum() / before[name].var() / y.numel())
        for name, y in before.items()
    }


def test_every_output_is_kept_close() -> None:
    """The second output is worth as much as the first: it was given away before."""
    found = errors_of_heads()
    assert max(found.values()) < 0.1
    assert max(found.values()) < 4 * min(found.values())


def test_the_first_output_alone_gives_the_second_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted bug: what the test above is for."""

    def first_only(output: object, images: int, generator: torch.Generator) -> None:
        sensing.send_back(next(tensors_in(output)), images, generator)

    monkeypatch.setattr(statistics, "send_back", first_only)
    monkeypatch.setattr(statistics, "stand_in", lambda *_: ())
    found = errors_of_heads()
    assert max(found.values()) > 4 * min(found.values())


def test_layers_that_no_gradient_reaches_count_like_others() -> None:
    model, inputs = made(lambda: own.Detector(0.4)), images(24, *SQUARE)
    found = obo.observe(model, inputs)
    losses = {
        name: float((seen.gradients.double() * seen.outputs.covariance).sum()) / found.images
        for name, seen in found.layers.items()
    }
    unfelt = [losses.pop(name) for name in ("boxes.0.0", "boxes.1")]
    expected = torch.tensor(list(losses.values())).median()
    low, high = sorted(losses.values())[1:3]
    assert all(low * 0.99 <= loss <= high * 1.01 for loss in unfelt), (unfelt, expected)
    assert any("reaches boxes.0.0, boxes.1:" in note for note in found.notes)


def test_a_detector_is_not_compared_box_by_box() -> None:
    """Where the two networks find different numbers of things, there is no error but a note."""
    model, inputs = made(lambda: own.Detector(0.55)), images(24, *SQUARE)
    other = made(lambda: own.Detector(0.5))
    result = obo.verify(model, other, inputs, latency=False)
    assert result.output_error is None
    assert result.agreement is None
    assert "different numbers of values" in result.notes[0]


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "sparse": (own.Sparse, r"its tensor links is sparse \(torch.sparse_coo\).*to_dense"),
    "TorchScript": (
        lambda: torch.jit.trace(own.classifier().eval(), torch.zeros(1, *SQUARE)),
        "TorchScript .*Give the nn.Module that it was made from",
    ),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(name: str) -> None:
    build, words = REFUSED[name]
    with pytest.raises(ModelError, match=words):
        obo.slim(made(build), images(8, *SQUARE), macs=0.5, latency=False)


@pytest.mark.filterwarnings("ignore:.*quantiz:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_quantized_is_refused_by_name() -> None:
    if not {"fbgemm", "x86", "qnnpack"} & set(torch.backends.quantized.supported_engines):
        pytest.skip("this build has no kernels for quantized layers")
    small = torch.ao.quantization.quantize_dynamic(made(own.classifier), {nn.Linear})
    with pytest.raises(ModelError, match=r"its layer '4' is quantized already .*before"):
        obo.slim(small, images(8, *SQUARE), macs=0.5, latency=False)


@pytest.mark.filterwarnings("ignore:.*quantiz:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_prepared_for_quantization_is_refused_by_name() -> None:
    """Its layers compute with rounded copies of their weights; places to begin are no such layers."""
    quantization = torch.ao.quantization
    model = nn.Sequential(quantization.QuantStub(), made(own.classifier))
    assert obo.observe(model.eval(), images(8, *SQUARE)).layers
    model.train().qconfig = quantization.get_default_qat_qconfig("fbgemm")  # type: ignore[assignment]
    ready = quantization.prepare_qat(model).eval()
    with pytest.raises(ModelError, match=r"is prepared for quantization .*before"):
        obo.slim(ready, images(8, *SQUARE), macs=0.5, latency=False)


def test_a_complex_layer_stays() -> None:
    model, inputs = made(own.ComplexLayer), images(16, *SQUARE)
    (seen,) = [s for s in obo.observe(model, inputs).survey.layers if s.layer == "complex"]
    assert seen.refusal == "its weight is torch.complex64, not floating point"


def test_a_map_of_one_pixel_and_channel_can_be_saved(tmp_path) -> None:
    """A 1×1 convolution to one number has no spread: the report held NaN, which JSON has not."""
    model = nn.Sequential(
        own.block(3, 16), own.block(16, 16), nn.AdaptiveAvgPool2d(1), nn.Conv2d(16, 1, 1)
    ).eval()  # fmt: skip
    slimmed = obo.slim(model, images(24, *SQUARE), macs=0.7, held_out=6, latency=False)
    assert (slimmed.save(tmp_path / "out") / "report.html").is_file()
