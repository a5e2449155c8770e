"""A training's state in one file that appears whole or not at all; tensors and JSON, no pickle."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from onebyone.errors import OutputError, TrainingError
from onebyone.files import staged

SCHEMA = "onebyone.checkpoint/2"


@dataclass(frozen=True)
class Checkpoint:
    """Named tensors, and JSON-ready values about them."""

    tensors: dict[str, Tensor]
    about: dict[str, Any]

    def part(self, name: str) -> dict[str, Tensor]:
        """The tensors whose names begin with `name` and a slash, without that."""
        start = f"{name}/"
        return {k.removeprefix(start): t for k, t in self.tensors.items() if k.startswith(start)}


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Put the file in place at once; OutputError where it cannot be written."""
    tensors = {
        name: tensor.detach().to("cpu", copy=True).contiguous()
        for name, tensor in checkpoint.tensors.items()
    }
    values = json.dumps({"schema": SCHEMA} | checkpoint.about)
    with staged(path) as file:
        try:
            save_file(tensors, file, metadata={"onebyone": values})
        except SafetensorError as error:  # a full disk, told in its own way
            raise OutputError(f"{path} cannot be written: {error}") from error


def read_checkpoint(path: Path) -> Checkpoint:
    """What `write_checkpoint` wrote; TrainingError where there is none, or it is something else."""
    if not path.exists():
        raise TrainingError(
            f"there is no checkpoint {path} to go on from: start without --resume (resume=False)"
        )
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {}).get("onebyone", "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise TrainingError(f"the checkpoint {path} cannot be read: {error}") from error
    if not isinstance(about, dict) or about.get("schema") != SCHEMA:
        raise TrainingError(
            f"{path} is no checkpoint of this version: start without --resume (resume=False)"
        )
    return Checkpoint(tensors, about)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimizer's state as named tensors."""
    return {
        f"{index}.{key}": value if isinstance(value, Tensor) else torch.tensor(value)
        for index, state in optimizer.state_dict()["state"].items()
        for key, value in state.items()
        if value is not None
    }


def fill_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Give an optimizer the state that `optimizer_tensors` named."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = tensor
    # Not by load_state_dict, which turns what Shampoo keeps in float32 into the type of the weight.
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    for number, held in state.items():
        weight = weights[number]
        optimizer.state[weight] = {
            key: tensor if key == "step" else tensor.to(weight.device)
            for key, tensor in held.items()
        }
