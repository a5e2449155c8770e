"""Other devices than the processor, as far as they can be seen without one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from onebyone.errors import ModelError
from onebyone.measurement import rehearsing
from onebyone.measurement.counting import count
from onebyone.measurement.spans import FORWARD, Spans


@dataclass
class FakeEvent:
    """Says which stream it was recorded on; each is a millisecond after the one before it."""

    enable_timing: bool
    stream: object = None
    at: int = 0
    last = 0

    def record(self, stream: object = None) -> None:
        FakeEvent.last += 1
        self.stream, self.at = stream, FakeEvent.last

    def elapsed_time(self, end: FakeEvent) -> float:
        return float(end.at - self.at)


def test_marks_are_in_the_stream_of_the_networks_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second accelerator's work is not seen in the stream of the first, the current one."""
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: f"stream of {device}")
    spans = Spans(nn.Sequential(nn.ReLU(), nn.ReLU()), torch.device("cuda:1"))
    spans.attach()
    spans.modules[""](torch.zeros(2))
    spans.detach()
    assert {mark.stream for _, _, mark in spans.events} == {"stream of cuda:1"}
    # Six marks a millisecond apart: each layer takes one, the root what lies between.
    assert spans.times() == {("", FORWARD): 3.0, ("0", FORWARD): 1.0, ("1", FORWARD): 1.0}


class Chosen(nn.Module):
    """Its control flow depends on the data."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) if x.sum() > -1e9 else x


def test_inputs_are_brought_to_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[Any] = []
    beside = rehearsing._beside

    def seen(device: torch.device, value: Any) -> Any:
        moved.append((device.type, value.shape))
        return beside(device, value)

    monkeypatch.setattr(rehearsing, "_beside", seen)
    assert count(Chosen(), torch.randn(1, 3, 2, 2)).macs == 48
    assert moved == [("cpu", (1, 3, 2, 2))]


def test_weights_without_values_leave_one_way() -> None:
    """What ran is counted, and the message is that of the network, not of values that it has not."""
    model, x = Chosen().to("meta"), torch.randn(1, 3, 2, 2)
    with pytest.raises(ModelError, match="meta"):
        count(model, x)
    assert count(model.conv, x).macs == 48
    found = count(model, x, partial=True)
    assert found.failure is not None
    assert "fails on an input of shape 1×3×2×2" in found.failure
