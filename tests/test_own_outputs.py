"""Outputs of classes of a network's own: saved, loaded and exported as dicts."""

from __future__ import annotations

import json
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import onebyone as obo
from onebyone.exporting.outputs import as_plain, is_plain, with_plain_outputs
from onebyone.exporting.program import export_program
from onebyone.tree import tensors_in


class Named(NamedTuple):
    logits: Tensor
    features: list[Tensor]


@dataclass
class Data:
    logits: Tensor
    loss: Tensor | None
    features: tuple[Tensor, ...]


class Mapped(OrderedDict[str, Any]):
    """As the outputs of other libraries: a mapping that is a class of its own."""


class Held:
    def __init__(self, logits: Tensor, features: list[Tensor]) -> None:
        self.logits, self.features, self.name = logits, features, {"no": "tensor"}


class Returns(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.one, self.two = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 24, 3, padding=1)
        self.head = nn.Linear(24, 5)

    def forward(self, image: Tensor) -> Any:
        x = self.one(image).relu()
        y = self.two(x).relu()
        logits = self.head(y.mean((2, 3)))
        match self.kind:
            case "named":
                return Named(logits, [x, y])
            case "dataclass":
                return Data(logits, None, (x, y))
            case "mapping":
                return Mapped(logits=logits, features=(x, y))
            case "object":
                return Held(logits, [x, y])
            case "inside":
                return [logits, Named(logits, [x, y])]
            case _:
                return {"logits": logits, "features": [x, y]}


KINDS = ("named", "dataclass", "mapping", "object", "inside", "plain")


def made(kind: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return Returns(kind).eval(), torch.randn(40, 3, 10, 10)


@pytest.mark.parametrize("kind", KINDS)
def test_slimmed_saved_and_loaded(kind: str, tmp_path: Path) -> None:
    model, images = made(kind)
    slimmed = obo.slim(model, images, macs=0.6, held_out=8, latency=False)
    own = slimmed.model(images[:3])
    assert type(own) is type(model(images[:3]))
    folder = slimmed.save(tmp_path / "out")
    found = obo.load(folder).model(images[:3])
    assert is_plain(found)
    if kind != "inside":
        assert list(found) == ["logits", "features"]
    pairs = zip(tensors_in(own), tensors_in(found), strict=True)
    assert all(torch.equal(x, y) for x, y in pairs)
    notes = json.loads((folder / "plan.json").read_text(encoding="utf-8"))["notes"]
    said = [n for n in notes if "where the network returns" in n]
    assert len(said) == (kind != "plain")
    assert (folder / "model.pt2").is_file()


@pytest.mark.parametrize("kind", KINDS)
def test_exported(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model, images = made(kind)
    found = obo.export(model, images[:1], tmp_path / "net.onnx", latency=False)
    assert found.check is not None
    assert found.check.failure is None


@pytest.mark.parametrize("any_batch", [True, False])
def test_programs_of_any_batch_and_of_one(any_batch: bool) -> None:
    """Targets that do not take the first are given the second."""
    model, images = made("dataclass")
    program = export_program(model, images[:1], any_batch=any_batch)
    assert not isinstance(program, str)
    assert list(program.module()(images[:1])) == ["logits", "features"]


def test_what_is_plain_stays() -> None:
    model, images = made("plain")
    assert with_plain_outputs(model, (images[:1],)) == (model, "")
    one = {"a": [torch.ones(1), (1, None, "x")]}
    assert is_plain(one)
    assert as_plain(one)["a"][1] == (1, None, "x")


def test_names_of_inputs_stay() -> None:
    model, images = made("dataclass")
    other, said = with_plain_outputs(model, (images[:1],))
    assert said == "a dict of logits, features where the network returns Data"
    assert list(other(image=images[:1])) == ["logits", "features"]
    assert {id(p) for p in other.parameters()} == {id(p) for p in model.parameters()}


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_a_forward_that_turns_gradients_off(off: Any, tmp_path: Path) -> None:
    class Off(Returns):
        forward = off()(Returns.forward)

    _, images = made("plain")
    torch.manual_seed(0)
    model = Off("plain").eval()
    slimmed = obo.slim(model, images, macs=0.6, held_out=8, latency=False)
    assert any("no gradient" in note for note in slimmed.plan.notes)
    ends = [m(images)["logits"] for m in (model, slimmed.model)]
    spread = (ends[0] - ends[0].mean(0)).norm()
    assert float((ends[0] - ends[1]).norm() / spread) < 0.6
    assert not slimmed.model(images[:1])["logits"].requires_grad
    again = obo.load(slimmed.save(tmp_path / "out")).model(images)["logits"]
    torch.testing.assert_close(again, ends[1])
