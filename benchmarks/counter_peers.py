"""The counters that people use, each called as its README says, all brought to MACs.

torchinfo, thop, ptflops and calflops report MACs; fvcore counts one multiply–add as one of its flops;
PyTorch's own FlopCounterMode counts two.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Inputs = tuple[Tensor, ...]
CALFLOPS = "calflops transformers accelerate"  # it imports both, and neither is needed to count


@dataclass(frozen=True)
class Peer:
    """How to count the MACs of a model, and what pip must install for it."""

    name: str
    count: Callable[[nn.Module, Inputs], int]
    package: str | None = None

    @property
    def missing(self) -> str | None:
        """Why it cannot be used here, if it cannot."""
        if self.package is None:
            return None
        try:
            importlib.import_module(self.package.split()[0])
        except Exception as error:
            said = str(error).splitlines()[0] if str(error) else ""
            return f"{type(error).__name__}: {said}; pip install {self.package}"
        return None


def onebyone(model: nn.Module, inputs: Inputs) -> int:
    from onebyone.measurement.counting import count

    return count(model, *inputs).macs


def pytorch(model: nn.Module, inputs: Inputs) -> int:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        model(*inputs)
    return counter.get_total_flops() // 2


def torchinfo(model: nn.Module, inputs: Inputs) -> int:
    from torchinfo import summary

    device = inputs[0].device
    return summary(model, input_data=inputs, verbose=0, device=device).total_mult_adds


def fvcore(model: nn.Module, inputs: Inputs) -> int:
    from fvcore.nn import FlopCountAnalysis

    return int(FlopCountAnalysis(model, inputs).total())


def thop(model: nn.Module, inputs: Inputs) -> int:
    from thop import profile

    macs, _ = profile(model, inputs=inputs, verbose=False)
    return int(macs)


class OneArgument(nn.Module):
    """ptflops gives a model its inputs by name: one name for all of them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Inputs) -> object:
        return self.model(*inputs)


def _ptflops(backend: str) -> Callable[[nn.Module, Inputs], int]:
    def count(model: nn.Module, inputs: Inputs) -> int:
        from ptflops import get_model_complexity_info

        macs, _ = get_model_complexity_info(
            OneArgument(model).train(model.training), tuple(inputs[0].shape[1:]) or (1,),
            input_constructor=lambda _: {"inputs": inputs},
            as_strings=False, print_per_layer_stat=False, verbose=False, backend=backend,
        )  # fmt: skip
        if macs is None:
            raise RuntimeError("ptflops returned nothing")
        return int(macs)

    return count


def calflops(model: nn.Module, inputs: Inputs) -> int:
    from calflops import calculate_flops

    _, macs, _ = calculate_flops(
        model, args=list(inputs), print_results=False, output_as_string=False
    )
    return int(macs)


PEERS: tuple[Peer, ...] = (
    Peer("onebyone", onebyone),
    Peer("torch", pytorch),
    Peer("fvcore", fvcore, "fvcore"),
    Peer("torchinfo", torchinfo, "torchinfo"),
    Peer("thop", thop, "thop"),
    Peer("ptflops", _ptflops("pytorch"), "ptflops"),
    Peer("ptflops aten", _ptflops("aten"), "ptflops"),
    Peer("calflops", calflops, CALFLOPS),
)


def available() -> list[Peer]:
    """The peers that are installed; says how to install the others."""
    found = []
    for peer in PEERS:
        missing = peer.missing
        if missing is None:
            found.append(peer)
        else:
            print(f"without {peer.name}: {missing}")
    return found


def on_meta(model: nn.Module, inputs: Inputs) -> tuple[nn.Module, Inputs]:
    """The model, moved, and its inputs on the device that holds no values."""
    return model.to("meta"), tuple(torch.empty_like(x, device="meta") for x in inputs)
