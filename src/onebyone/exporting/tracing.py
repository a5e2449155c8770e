"""Detectors of torchvision, which torch.export does not take and which are written to be traced."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from onebyone.tree import evaluating

# Its code asks whether it is traced, and takes other ways then.
TRACED = "torchvision.models.detection."
OPSET = 18


@dataclass(frozen=True)
class Traced:
    """A float32 network that has no program (`why`), to be traced on an example instead.

    Of any other network a trace would keep what the example alone decided.
    """

    model: nn.Module
    why: str


def is_detector(model: nn.Module) -> bool:
    """Whether it is one of torchvision's, whose outputs have a row for each thing that it finds.

    A network that only has parts of one, such as a backbone, is not, and no part by itself: detectors
    alone turn what they find back to the image's size, by their `transform`.
    """
    return type(model).__module__.startswith(TRACED) and hasattr(model, "transform")


def traced(model: nn.Module, why: str) -> Traced | None:
    """The network to be traced, None where it is not written for that."""
    return Traced(model, why) if is_detector(model) else None


def write_traced(network: Traced, inputs: tuple[Tensor, ...], names: list[str], path: Path) -> None:
    """Write ONNX for inputs of just these shapes; raises what torch.onnx does where it cannot."""
    with evaluating(network.model), torch.no_grad():
        torch.onnx.export(
            network.model, inputs, str(path), dynamo=False, opset_version=OPSET, input_names=names,
            verbose=False,
        )  # fmt: skip
